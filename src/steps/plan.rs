//! What plans promise, and the settings of a bucket that keep it. *change-plans*: the bucket of an instance
//! becomes what another plan promises.
//!
//! A change is seen on AWS before the row's plan changes. What AWS refuses for good is put back, and
//! the row keeps its plan.

use std::time::Duration;

use super::{Ending, Notes, StepError, Verdict, Work, wait};
use crate::aws::{AwsError, Caller, KmsKey, tenant_policy};
use crate::store::{Instance, InstanceStatus, Promise};

/// Name of the user's one policy.
const POLICY_NAME: &str = "bucket";
/// When to look again at a setting that AWS does not show yet.
const SETTING_TRIAL_INTERVAL: Duration = Duration::from_secs(1);
/// How often, in about ten minutes, AWS may not find bucket or user before they count as gone.
const MISSING_ATTEMPTS: u32 = 10;
/// Where versions that are rarely read go.
const STORAGE_CLASS: &str = "STANDARD_IA";
/// Days for which a versioned plan keeps what was overwritten or deleted.
const NONCURRENT_DAYS: u32 = 180;

/// What a plan promises.
pub(super) fn promise_of(work: &Work<'_>, plan: &str) -> Result<Promise, StepError> {
    let plan = plan.to_owned();
    let row = work.store.transaction(move |tx| tx.find_plan(&plan))?;
    let row = row.ok_or_else(|| StepError::Unfixable("the plan has no row".to_owned()))?;
    row.promise()
        .ok_or_else(|| StepError::Unfixable("the plan's provider_private_details cannot be read".to_owned()))
}

/// The key of a plan that encrypts, `None` for the account's own.
pub(super) fn promised_key(
    work: &Work<'_>,
    promise: &Promise,
    instance: &Instance,
) -> Result<Option<KmsKey>, StepError> {
    let named = match promise.kms_key_id.as_deref() {
        Some("${AWS_KMS_KEY_ID}" | "$AWS_KMS_KEY_ID") | None => work.settings.kms_key_id.as_deref(),
        Some("") => None,
        Some(other) => Some(other),
    };
    named.filter(|_| promise.encrypted).map(|it| read_key(work, instance, it)).transpose()
}

/// A KMS key by whatever it is called.
pub(super) fn read_key(work: &Work<'_>, instance: &Instance, named: &str) -> Result<KmsKey, StepError> {
    let parsed = KmsKey::parse(named, work.aws.partition(), work.aws.region(), work.account(instance));
    parsed.map_err(|err| StepError::Unfixable(format!("the plan's KMS key: {err}")))
}

/// Changes the plan, or goes on changing it, or goes on putting the bucket back.
pub(super) fn change(work: &Work<'_>) -> Result<Ending, StepError> {
    let mut notes = Notes::parse(&work.claim.metadata);
    let target =
        notes.plan.clone().ok_or_else(|| StepError::Unfixable("the task names no plan".to_owned()))?;
    let instance = work.live_instance()?;
    if !matches!(instance.status, InstanceStatus::Available | InstanceStatus::Modifying) {
        return Err(StepError::Unfixable("the instance cannot be used".to_owned()));
    }
    let is_late = |wait_s| work.claim.waited.is_some_and(|it| it >= Duration::from_secs(wait_s));
    if notes.wait_s.is_some_and(is_late) {
        // The platform was told that nobody came, or, if its database was away, of an error. Either way it keeps the plan.
        return Ok(Ending::PlanKept { reason: "no worker came in time".to_owned() });
    }
    if notes.refused.is_none() {
        match shape(work, &target, None) {
            Ok(()) => return Ok(Ending::PlanChanged { plan: target }),
            Err(err) if is_final(work, &err) => {
                log::warn!(
                    "plan not changed, the bucket is put back: instance={:?} cause={err}",
                    instance.id
                );
                notes.refused = Some(err.public());
                notes.versioning = is_after_versioning(&err);
                work.remember(&notes)?;
            }
            Err(err) => return Err(err),
        }
    }
    let mut reason = notes.refused.unwrap_or_default();
    if let Err(err) = shape(work, &instance.provisioned.plan, Some(notes.versioning)) {
        if !is_final(work, &err) {
            return Err(err);
        }
        log::error!("bucket not put back entirely: instance={:?} cause={err}", instance.id);
        reason.push_str("; the bucket could not be put back entirely");
    }
    Ok(Ending::PlanKept { reason })
}

/// Whether no repetition helps. A bucket or user that AWS has not found for so long is gone.
fn is_final(work: &Work<'_>, err: &StepError) -> bool {
    let is_missing =
        matches!(err, StepError::Aws(err) if matches!(err.code(), Some("NoSuchBucket" | "NoSuchEntity")));
    err.verdict() == Verdict::GiveUp || (is_missing && work.claim.attempt >= MISSING_ATTEMPTS)
}

/// Makes the bucket what a plan promises, and sees that it is.
///
/// The user's policy comes first, so that the tenant can use the key before the bucket wants it. Two different KMS keys
/// at once are refused; a bucket that is `put_back` gets the one that it had, whatever the settings say by now. The
/// policy allows that one in any case, so then it comes last, and what AWS refuses there harms nobody. What AWS shows
/// may be older than the change: settings that this may have made are unmade unseen, and `put_back` says whether
/// versioning is one of them.
fn shape(work: &Work<'_>, plan: &str, put_back: Option<bool>) -> Result<(), StepError> {
    let is_put_back = put_back.is_some();
    let (instance, promise) = (&work.instance()?, promise_of(work, plan)?);
    let mut key = promised_key(work, &promise, instance)?;
    let former = former_key(work, instance)?;
    if let (Some(wanted), Some(held)) = (&key, &former)
        && !wanted.is(held)
    {
        if !is_put_back {
            return Err(StepError::Unfixable("the bucket holds objects of another KMS key".to_owned()));
        }
        key = former.clone();
    }
    let allow = || put_user_policy(work, instance, key.as_ref().or(former.as_ref()));
    if !is_put_back {
        allow()?;
    }
    if promise.encrypted {
        ensure_encryption(work, instance, key.as_ref())?;
    } else {
        ensure_no_encryption(work, &instance.name, is_put_back)?;
    }
    if promise.versioned {
        ensure_versioning(work, instance)?;
    } else {
        ensure_no_versioning(work, &instance.name, put_back == Some(true))?;
    }
    match is_put_back.then(allow) {
        Some(Err(err)) if err.verdict() == Verdict::GiveUp => {
            log::warn!("the user's policy stays as it is: instance={:?} cause={err}", instance.id);
            Ok(())
        }
        Some(other) => other,
        None => Ok(()),
    }
}

/// Sees that AWS shows what was written. What it refused for good does no harm where it shows it all the same: a change
/// that never began is put back so.
fn see(
    written: Result<(), AwsError>,
    is_shown: impl Fn() -> Result<bool, AwsError>,
    missing: &str,
) -> Result<(), StepError> {
    match written {
        Ok(()) if is_shown()? => Ok(()),
        Ok(()) => Err(wait(SETTING_TRIAL_INTERVAL, missing)),
        Err(err) if !err.is_transient() && is_shown().unwrap_or(false) => Ok(()),
        Err(err) => Err(err.into()),
    }
}

/// Opens the bucket, and the key, to the instance's user.
pub(super) fn put_user_policy(
    work: &Work<'_>,
    instance: &Instance,
    key: Option<&KmsKey>,
) -> Result<(), StepError> {
    let policy = tenant_policy(work.aws.partition(), &instance.name, key);
    Ok(work.caller().put_user_policy(&instance.name, POLICY_NAME, &policy)?)
}

/// The key of the objects that are there already: the tenant goes on reading them, whatever the plan.
/// It is kept in the row before the bucket forgets it.
pub(super) fn former_key(work: &Work<'_>, instance: &Instance) -> Result<Option<KmsKey>, StepError> {
    let shown = work.caller().get_bucket_encryption(&instance.name)?.and_then(|it| it.kms_key);
    let named = match (&instance.former_kms_key, shown) {
        (Some(kept), _) => Some(kept.clone()),
        // the account's own key needs no word in a policy
        (None, Some(shown)) if !shown.ends_with("alias/aws/s3") => {
            let kept = shown.clone();
            work.write(move |tx, id| tx.save_former_kms_key(id, &kept))?;
            Some(shown)
        }
        (None, _) => None,
    };
    named.map(|it| read_key(work, instance, &it)).transpose()
}

/// Whether the refused call comes after the one that turns versioning on.
fn is_after_versioning(err: &StepError) -> bool {
    matches!(err, StepError::Aws(AwsError::Refused { operation: "PutBucketLifecycleConfiguration", .. }))
}

/// Leaves the bucket without a KMS key for new objects, and sees that it has none.
fn ensure_no_encryption(work: &Work<'_>, bucket: &str, unseen: bool) -> Result<(), StepError> {
    let caller = work.caller();
    let is_free = || -> Result<bool, AwsError> {
        Ok(caller.get_bucket_encryption(bucket)?.is_none_or(|it| it.algorithm != "aws:kms"))
    };
    if !unseen && is_free()? {
        return Ok(());
    }
    see(caller.delete_bucket_encryption(bucket), is_free, "AWS shows the encryption still")
}

/// Leaves the bucket making no more versions, and sees that it makes none and moves nothing. Those that it has expire as
/// they would have.
fn ensure_no_versioning(work: &Work<'_>, bucket: &str, unseen: bool) -> Result<(), StepError> {
    let caller = work.caller();
    let status = caller.get_bucket_versioning(bucket)?;
    if status.is_none() && !unseen {
        return Ok(());
    }
    if status.as_deref() != Some("Suspended") {
        caller.put_bucket_versioning(bucket, false)?;
    }
    let is_shown = || {
        let rules = caller.get_bucket_lifecycle_configuration(bucket)?.unwrap_or_default();
        Ok(caller.get_bucket_versioning(bucket)?.as_deref() == Some("Suspended")
            && rules.iter().all(|it| it.status != "Enabled" || it.transition_class.is_none()))
    };
    see(caller.put_bucket_lifecycle_configuration(bucket, None), is_shown, "AWS shows the versioning still")
}

/// Leaves the bucket encrypting with the key, and sees that it does.
pub(super) fn ensure_encryption(
    work: &Work<'_>,
    instance: &Instance,
    key: Option<&KmsKey>,
) -> Result<(), StepError> {
    let caller = work.caller();
    let written = caller.put_bucket_encryption(&instance.name, key.map(KmsKey::master_key_id));
    let is_shown = || shows_encryption(&caller, &instance.name, key);
    see(written, is_shown, "AWS does not show the encryption yet")
}

/// Whether AWS shows that the bucket encrypts with the key.
pub(super) fn shows_encryption(
    caller: &Caller<'_>,
    bucket: &str,
    key: Option<&KmsKey>,
) -> Result<bool, AwsError> {
    let wanted = key.map(KmsKey::master_key_id);
    Ok(caller.get_bucket_encryption(bucket)?.is_some_and(|it| {
        it.algorithm == "aws:kms" && wanted.is_none_or(|wanted| is_key(it.kms_key.as_deref(), wanted))
    }))
}

/// Whether AWS shows the key that was named. It may show the ARN of what was named by id or alias.
fn is_key(shown: Option<&str>, named: &str) -> bool {
    let is_alias = named.contains("alias/");
    shown.is_some_and(|shown| shown == named || is_alias || shown.ends_with(&format!("/{named}")))
}

/// Leaves the bucket keeping versions for as long as is promised, and sees that it does.
pub(super) fn ensure_versioning(work: &Work<'_>, instance: &Instance) -> Result<(), StepError> {
    let (caller, bucket) = (work.caller(), instance.name.as_str());
    let written = caller
        .put_bucket_versioning(bucket, true)
        .and_then(|()| caller.put_bucket_lifecycle_configuration(bucket, Some(STORAGE_CLASS)));
    let is_shown = || {
        let rules = caller.get_bucket_lifecycle_configuration(bucket)?.unwrap_or_default();
        let is_kept = rules.iter().any(|it| {
            it.status == "Enabled"
                && it.noncurrent_expiration_days == Some(NONCURRENT_DAYS)
                && it.transition_class.as_deref() == Some(STORAGE_CLASS)
        });
        Ok(is_kept && caller.get_bucket_versioning(bucket)?.as_deref() == Some("Enabled"))
    };
    see(written, is_shown, "AWS does not show the versioning yet")
}

#[cfg(test)]
mod tests {
    use super::*;

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
