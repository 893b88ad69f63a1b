//! *provision*: user, policy, key, bucket, what the plan promises, and the proof that the key works.
//!
//! IAM comes first so that the key spreads while the bucket is made. The user's own policy opens
//! the bucket; no bucket policy names the user.
//!
//! What a plan promises and AWS refuses fails the provision, and is read back before it is
//! believed. What only hardens, and a store does not know, is skipped with a warning.

use std::time::Duration;

use super::keys::{self, KEY_PATIENCE, KEY_TRIAL_INTERVAL};
use super::plan::{ensure_encryption, ensure_versioning, promise_of, promised_key, put_user_policy};
use super::tags::own_tags;
use super::{Ending, Notes, StepError, Work, skip_unknown, sweep, wait};
use crate::aws::{BucketCreation, Credentials, tls_only_bucket_policy};
use crate::random;
use crate::store::{Instance, Whereabouts};

/// When what bears a name that was somebody else's is removed: IAM shows it everywhere by then.
const RENAME_SWEEP_DELAY: Duration = Duration::from_secs(60);

/// Makes the instance, or goes on making it.
pub(super) fn run(work: &Work<'_>) -> Result<Ending, StepError> {
    let mut instance = work.instance()?;
    if instance.age > work.settings.provision_deadline {
        return Err(StepError::Unfixable("the bucket could not be created in time".to_owned()));
    }
    let mut notes = Notes::parse(&work.claim.metadata);
    if !notes.prepared {
        prepare(work, &mut instance, &mut notes)?;
        notes.prepared = true;
        work.remember(&notes)?;
        instance = work.instance()?;
    }
    let place = prove_access_key(work, &instance, &mut notes)?;
    keys::keep_only(work, &instance.name, instance.access_key_id.as_slice())?;
    Ok(Ending::Available(place))
}

/// Everything that does not have to wait for the key.
fn prepare(work: &Work<'_>, instance: &mut Instance, notes: &mut Notes) -> Result<(), StepError> {
    let promise = promise_of(work, &instance.provisioned.plan)?;
    let tags = own_tags(work, instance)?;
    ensure_user(work, instance, &tags)?;
    let key = promised_key(work, &promise, instance)?;
    put_user_policy(work, instance, key.as_ref())?;
    ensure_access_key(work, instance)?;
    ensure_bucket(work, instance, notes)?;
    harden(work, instance)?;
    if promise.encrypted {
        ensure_encryption(work, instance, key.as_ref())?;
    }
    if promise.versioned {
        ensure_versioning(work, instance)?;
    }
    let tagged = work.caller().put_bucket_tagging(&instance.name, &tags);
    skip_unknown(tagged, "PutBucketTagging", &instance.name)
}

/// Leaves a user of the instance's name, and its ARN in the row.
fn ensure_user(work: &Work<'_>, instance: &mut Instance, tags: &[(String, String)]) -> Result<(), StepError> {
    if instance.user_arn.is_some() {
        return Ok(());
    }
    let (path, boundary) =
        (work.settings.iam_path.as_deref(), work.settings.iam_permissions_boundary.as_deref());
    let caller = work.caller();
    let made = caller.create_user(&instance.name, path, boundary, tags)?;
    // The name is random: a user that is there already is the work of an earlier run.
    let user = match made {
        Some(user) => Some(user),
        None => caller.get_user(&instance.name)?,
    };
    let arn = user.ok_or_else(|| wait(KEY_TRIAL_INTERVAL, "AWS does not show the new user yet"))?.arn;
    instance.user_arn = Some(arn.clone());
    work.write(move |tx, id| tx.save_user_arn(id, &arn))
}

/// Leaves the instance's user with one access key, the one whose secret we hold.
///
/// IAM shows a secret once (CreateAccessKey), so it is committed before this returns. A key we
/// hold no secret for is the leftover of a crash: it goes, a new one comes. A key we hold that IAM
/// does not list may just be too new.
fn ensure_access_key(work: &Work<'_>, instance: &Instance) -> Result<(), StepError> {
    let held = instance.access_key_id.as_deref();
    let listed = keys::keep_only(work, &instance.name, instance.access_key_id.as_slice())?;
    let is_new = instance.key_age.is_some_and(|it| it < KEY_PATIENCE);
    if held.is_some_and(|held| is_new || listed.iter().any(|it| it == held)) {
        return Ok(());
    }
    let key = keys::create(work, &instance.name)?;
    work.write(move |tx, id| tx.save_access_key(id, Some((&key.id, &key.secret))))
}

/// Leaves a bucket of the instance's name that is ours.
fn ensure_bucket(work: &Work<'_>, instance: &Instance, notes: &mut Notes) -> Result<(), StepError> {
    match work.caller().create_bucket(&instance.name)? {
        BucketCreation::Ours => Ok(()),
        BucketCreation::TakenByAnother if notes.renamed => {
            Err(StepError::Unfixable("two random bucket names belong to somebody else".to_owned()))
        }
        BucketCreation::TakenByAnother => rename(work, instance, notes),
    }
}

/// Starts again under a new name. What bears the old one, which is not the bucket, is swept up by a
/// task of its own that is written in the same breath.
fn rename(work: &Work<'_>, instance: &Instance, notes: &mut Notes) -> Result<(), StepError> {
    let name = random::instance_name(&work.settings.name_prefix);
    let name = name.map_err(|err| StepError::Unfixable(err.to_string()))?;
    log::warn!("bucket name is somebody else's: instance={:?} old={} new={name}", instance.id, instance.name);
    notes.renamed = true;
    let (task, metadata) = (work.claim.task.clone(), notes.to_json());
    let swept = sweep(&instance.id, instance.name.clone(), RENAME_SWEEP_DELAY)?;
    work.write(move |tx, id| {
        tx.rename_instance(id, &name)?;
        tx.remember(&task, &metadata)?;
        tx.enqueue(&swept)
    })?;
    Err(wait(Duration::ZERO, "the bucket gets another name"))
}

/// Private, without access lists, and over TLS only where the endpoint speaks TLS.
fn harden(work: &Work<'_>, instance: &Instance) -> Result<(), StepError> {
    let (caller, bucket) = (work.caller(), instance.name.as_str());
    skip_unknown(caller.put_public_access_block(bucket), "PutPublicAccessBlock", bucket)?;
    skip_unknown(caller.put_bucket_ownership_controls(bucket), "PutBucketOwnershipControls", bucket)?;
    if work.aws.s3_is_plain_http() {
        return Ok(()); // the policy would lock the tenant out; the worker has warned at its start
    }
    let policy = tls_only_bucket_policy(work.aws.partition(), bucket);
    skip_unknown(caller.put_bucket_policy(bucket, &policy), "PutBucketPolicy", bucket)
}

/// A signed call with the tenant's own key succeeds; says where the bucket is. New keys take
/// seconds to be known everywhere, so until then the task sleeps.
fn prove_access_key(
    work: &Work<'_>,
    instance: &Instance,
    notes: &mut Notes,
) -> Result<Whereabouts, StepError> {
    let (Some(id), Some(secret)) = (&instance.access_key_id, &instance.secret_access_key) else {
        notes.prepared = false;
        work.remember(notes)?;
        return Err(wait(Duration::ZERO, "the access key is made again"));
    };
    if let Some(place) = keys::try_key(work, &instance.name, &Credentials::lasting(id, secret))? {
        return Ok(place);
    }
    if instance.key_age.is_none_or(|it| it > KEY_PATIENCE) {
        replace_access_key(work, instance, id, notes)?;
    }
    Err(keys::not_yet())
}

/// Removes a key that never came to work, so that the next run makes another.
fn replace_access_key(
    work: &Work<'_>,
    instance: &Instance,
    key: &str,
    notes: &mut Notes,
) -> Result<(), StepError> {
    log::warn!("access key never came to work and is replaced: instance={:?} key={key}", instance.id);
    work.caller().delete_access_key(&instance.name, key)?;
    notes.prepared = false;
    let (task, metadata) = (work.claim.task.clone(), notes.to_json());
    work.write(move |tx, id| {
        tx.save_access_key(id, None)?;
        tx.remember(&task, &metadata)
    })
}
