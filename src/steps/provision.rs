//! *provision*: user, policy, key, bucket, what the plan promises, and the proof that the key works.
//!
//! IAM comes first so that the key spreads while the bucket is made. The user's own policy opens
//! the bucket; no bucket policy names the user.
//!
//! What a plan promises and AWS refuses fails the provision, and is read back before it is
//! believed. What only hardens, and a store does not know, is skipped with a warning.

use std::time::Duration;

use serde::Deserialize;

use super::{BROKER_TAG, Ending, Notes, StepError, Work, find_bucket, sweep};
use crate::aws::{
    AwsError, BucketCreation, Credentials, KmsKey, tag_value, tenant_policy, tls_only_bucket_policy,
};
use crate::random;
use crate::store::{Instance, Whereabouts};

/// Name of the user's one policy.
const POLICY_NAME: &str = "bucket";
/// How often a new key is tried.
const KEY_TRIAL_INTERVAL: Duration = Duration::from_secs(1);
/// When a key that still does not work is replaced; one that AWS does not list yet is believed
/// in as long.
const KEY_PATIENCE: Duration = Duration::from_secs(120);
/// When what bears a name that was somebody else's is removed: IAM shows it everywhere by then.
const RENAME_SWEEP_DELAY: Duration = Duration::from_secs(60);
/// When to look again at a setting that AWS does not show yet.
const SETTING_TRIAL_INTERVAL: Duration = Duration::from_secs(1);
/// Where versions that are rarely read go.
const STORAGE_CLASS: &str = "STANDARD_IA";
/// Days for which a versioned plan keeps what was overwritten or deleted.
const NONCURRENT_DAYS: u32 = 180;

/// What a plan's `provider_private_details` promise.
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
pub(super) struct Promise {
    /// Overwritten and deleted objects are kept.
    #[serde(default)]
    pub(super) versioned: bool,
    /// Objects are encrypted with a KMS key.
    #[serde(default)]
    pub(super) encrypted: bool,
    /// The key; `${AWS_KMS_KEY_ID}` stands for the worker's setting.
    #[serde(default, rename = "kmsKeyId")]
    kms_key_id: Option<String>,
}

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
    remove_unknown_keys(work, &instance)?;
    Ok(Ending::Available(place))
}

/// Everything that does not have to wait for the key.
fn prepare(work: &Work<'_>, instance: &mut Instance, notes: &mut Notes) -> Result<(), StepError> {
    let promise = promise(work, instance)?;
    let tags = tags(work, instance)?;
    ensure_user(work, instance, &tags)?;
    let key = kms_key(work, instance, &promise)?;
    let policy = tenant_policy(work.aws.partition(), &instance.name, key.as_ref());
    work.caller().put_user_policy(&instance.name, POLICY_NAME, &policy)?;
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

/// What the instance's plan promises.
pub(super) fn promise(work: &Work<'_>, instance: &Instance) -> Result<Promise, StepError> {
    let plan = instance.provisioned.plan.clone();
    let row = work.store.transaction(move |tx| tx.find_plan(&plan))?;
    let row = row.ok_or_else(|| StepError::Unfixable("the instance's plan has no row".to_owned()))?;
    serde_json::from_str(&row.details)
        .map_err(|_| StepError::Unfixable("the plan's provider_private_details cannot be read".to_owned()))
}

/// The key that the plan names, `None` for the account's own.
fn kms_key(work: &Work<'_>, instance: &Instance, promise: &Promise) -> Result<Option<KmsKey>, StepError> {
    let named = match promise.kms_key_id.as_deref() {
        Some("${AWS_KMS_KEY_ID}") | None => work.settings.kms_key_id.as_deref(),
        Some("") => None,
        Some(other) => Some(other),
    };
    let Some(named) = named.filter(|_| promise.encrypted) else {
        return Ok(None);
    };
    let parsed = KmsKey::parse(named, work.aws.partition(), work.aws.region(), work.account(instance));
    parsed.map(Some).map_err(|err| StepError::Unfixable(format!("the plan's KMS key: {err}")))
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
    let caller = work.caller();
    let held = instance.access_key_id.as_deref();
    let listed = caller.list_access_keys(&instance.name)?;
    for leftover in listed.iter().filter(|it| Some(it.as_str()) != held) {
        caller.delete_access_key(&instance.name, leftover)?;
    }
    let is_new = instance.key_age.is_some_and(|it| it < KEY_PATIENCE);
    if held.is_some_and(|held| is_new || listed.iter().any(|it| it == held)) {
        return Ok(());
    }
    let key = match caller.create_access_key(&instance.name) {
        // Keys whose answers were lost, and which IAM does not list yet: the next run removes them.
        Err(err) if err.code() == Some("LimitExceeded") => {
            return Err(wait(KEY_TRIAL_INTERVAL, "AWS does not show all access keys of the user yet"));
        }
        other => other?,
    };
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

/// Leaves the bucket encrypting with the key, and sees that it does.
fn ensure_encryption(work: &Work<'_>, instance: &Instance, key: Option<&KmsKey>) -> Result<(), StepError> {
    let (caller, wanted) = (work.caller(), key.map(KmsKey::master_key_id));
    caller.put_bucket_encryption(&instance.name, wanted)?;
    let found = caller.get_bucket_encryption(&instance.name)?;
    let kept = found.is_some_and(|it| {
        it.algorithm == "aws:kms" && wanted.is_none_or(|wanted| is_key(it.kms_key.as_deref(), wanted))
    });
    if kept { Ok(()) } else { Err(wait(SETTING_TRIAL_INTERVAL, "AWS does not show the encryption yet")) }
}

/// Whether AWS shows the key that was named. It may show the ARN of what was named by id or alias.
fn is_key(shown: Option<&str>, named: &str) -> bool {
    let is_alias = named.contains("alias/");
    shown.is_some_and(|shown| shown == named || is_alias || shown.ends_with(&format!("/{named}")))
}

/// Leaves the bucket keeping versions for as long as is promised, and sees that it does.
fn ensure_versioning(work: &Work<'_>, instance: &Instance) -> Result<(), StepError> {
    let (caller, bucket) = (work.caller(), instance.name.as_str());
    caller.put_bucket_versioning(bucket, true)?;
    caller.put_bucket_lifecycle_configuration(bucket, Some(STORAGE_CLASS))?;
    let versioned = caller.get_bucket_versioning(bucket)?.as_deref() == Some("Enabled");
    let rules = caller.get_bucket_lifecycle_configuration(bucket)?.unwrap_or_default();
    let expires = rules
        .iter()
        .any(|it| it.status == "Enabled" && it.noncurrent_expiration_days == Some(NONCURRENT_DAYS));
    if versioned && expires {
        Ok(())
    } else {
        Err(wait(SETTING_TRIAL_INTERVAL, "AWS does not show the versioning yet"))
    }
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
    let tenant = Credentials::lasting(id, secret);
    match find_bucket(&work.aws.tenant_caller(&tenant, work.permit), work.aws, &instance.name) {
        Ok(place) => Ok(place),
        Err(err @ AwsError::Refused { status: 400 | 401 | 403, .. }) => {
            log::debug!("new key does not work yet: instance={:?} cause={err}", instance.id);
            if instance.key_age.is_none_or(|it| it > KEY_PATIENCE) {
                replace_access_key(work, instance, id, notes)?;
            }
            Err(wait(KEY_TRIAL_INTERVAL, "AWS does not know the new access key everywhere yet"))
        }
        Err(err) => Err(err.into()),
    }
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

/// A key that IAM did not list at first, left over from a crash, shows by now.
fn remove_unknown_keys(work: &Work<'_>, instance: &Instance) -> Result<(), StepError> {
    let caller = work.caller();
    for key in caller.list_access_keys(&instance.name)? {
        if Some(&key) != instance.access_key_id.as_ref() {
            caller.delete_access_key(&instance.name, &key)?;
        }
    }
    Ok(())
}

/// The tags of bucket and user.
fn tags(work: &Work<'_>, instance: &Instance) -> Result<Vec<(String, String)>, StepError> {
    let broker = work.store.transaction(|tx| tx.broker_id())?;
    let organization = instance.provisioned.organization.as_deref().unwrap_or_default();
    let tags = [("billingcode", organization), ("instance", &instance.id), (BROKER_TAG, &broker)];
    Ok(tags.map(|(key, value)| (key.to_owned(), tag_value(value))).into())
}

/// Goes on without what a store does not know.
fn skip_unknown(result: Result<(), AwsError>, operation: &str, bucket: &str) -> Result<(), StepError> {
    match result {
        Err(err) if err.is_unsupported() => {
            log::warn!("skipped what the store does not know: operation={operation} bucket={bucket}");
            Ok(())
        }
        other => Ok(other?),
    }
}

/// Look again after `delay`.
fn wait(delay: Duration, reason: &str) -> StepError {
    StepError::Wait { delay, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_four_plans_promise_what_their_rows_say() {
        for (details, versioned, encrypted) in [
            (r#"{"versioned":false}"#, false, false),
            (r#"{"versioned":true}"#, true, false),
            (r#"{"versioned":false, "encrypted":true, "kmsKeyId":"${AWS_KMS_KEY_ID}"}"#, false, true),
            (r#"{"versioned":true, "encrypted":true, "kmsKeyId":"alias/x", "more":1}"#, true, true),
            ("{}", false, false),
        ] {
            let promise: Promise = serde_json::from_str(details).unwrap();
            assert_eq!((promise.versioned, promise.encrypted), (versioned, encrypted), "{details}");
        }
        assert!(serde_json::from_str::<Promise>(r#"{"versioned":"yes"}"#).is_err());
    }

    #[test]
    fn a_key_is_known_by_its_arn_too() {
        let arn = "arn:aws:kms:us-west-2:123456789012:key/1234-abcd";
        for (shown, named, same) in [
            (Some(arn), arn, true),
            (Some(arn), "1234-abcd", true),
            (Some(arn), "alias/mine", true),
            (Some(arn), "4-abcd", false),
            (Some("arn:aws:kms:us-west-2:123456789012:key/other"), arn, false),
            (None, "alias/mine", false),
        ] {
            assert_eq!(is_key(shown, named), same, "{shown:?} {named}");
        }
    }
}
