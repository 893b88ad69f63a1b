//! *delete*: keys first, so that nobody writes into a bucket that is being emptied; then policies,
//! user, uploads, all versions, the bucket. *sweep*: the same once more, some time later.
//!
//! An instance of the old broker is removed by the same steps; it has a managed policy besides.

use std::time::{Duration, Instant};

use super::{Ending, Notes, StepError, Work};
use crate::aws::{AbortedUpload, AwsError, Caller, ObjectError};
use crate::store::Instance;

/// How long one run may empty a bucket before others get their turn.
const SLICE: Duration = Duration::from_secs(30);
/// How often the platform is told of the progress.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);
/// Pages of uploads that one run aborts before it looks at the objects.
const UPLOAD_PAGES_MAX: usize = 100;

/// Removes the instance's bucket, user and whatever belongs to them.
pub(super) fn run(work: &Work<'_>) -> Result<Ending, StepError> {
    let instance = work.instance()?;
    remove_user(work, &instance, &instance.name)?;
    remove_bucket(work, &instance, &instance.name)?;
    Ok(Ending::Removed { name: instance.name })
}

/// Looks whether a call that was under way when the instance was removed has made something since.
pub(super) fn sweep(work: &Work<'_>) -> Result<Ending, StepError> {
    let name = Notes::parse(&work.claim.metadata).name;
    let name = name.ok_or_else(|| StepError::Unfixable("the task names nothing to look for".to_owned()))?;
    let instance = work.instance()?;
    remove_user(work, &instance, &name)?;
    // The name may be one that turned out to be somebody else's bucket.
    if work.caller().owns_bucket(&name)? {
        remove_bucket(work, &instance, &name)?;
    }
    Ok(Ending::Swept)
}

/// Leaves no user of that name, no key and no policy of it.
fn remove_user(work: &Work<'_>, instance: &Instance, name: &str) -> Result<(), StepError> {
    let caller = work.caller();
    for key in caller.list_access_keys(name)? {
        caller.delete_access_key(name, &key)?;
    }
    for policy in caller.list_user_policies(name)? {
        caller.delete_user_policy(name, &policy)?;
    }
    for policy in caller.list_attached_user_policies(name)? {
        caller.detach_user_policy(name, &policy)?;
    }
    remove_managed_policy(work, instance, name)?;
    Ok(caller.delete_user(name)?)
}

/// The old broker made a policy `<name>policy` for each instance. Its ARN is computed, so that it
/// is found also by a run that comes after it was detached.
fn remove_managed_policy(work: &Work<'_>, instance: &Instance, name: &str) -> Result<(), StepError> {
    if !is_old_name(name) {
        return Ok(());
    }
    let caller = work.caller();
    let account = match work.account(instance) {
        Some(account) => account.to_owned(),
        None => caller.get_caller_identity()?.account,
    };
    let arn = format!("arn:{}:iam::{account}:policy/{name}policy", work.aws.partition());
    for version in caller.list_policy_versions(&arn)? {
        if !version.is_default {
            caller.delete_policy_version(&arn, &version.id)?;
        }
    }
    Ok(caller.delete_policy(&arn)?)
}

/// Whether the old broker made the name: it took eight digits where we take sixteen.
fn is_old_name(name: &str) -> bool {
    let digits = name.rsplit_once("-u").map_or("", |(_, digits)| digits);
    digits.len() == 8 && digits.bytes().all(|it| it.is_ascii_hexdigit())
}

/// Leaves no bucket of that name that is ours.
fn remove_bucket(work: &Work<'_>, instance: &Instance, name: &str) -> Result<(), StepError> {
    let caller = work.caller().expecting_owner(work.account(instance));
    match remove_uploads(&caller, name) {
        Ok(true) => {}
        Ok(false) => return Ok(()), // no such bucket
        Err(err) if err.code() == Some("AccessDenied") && !work.caller().owns_bucket(name)? => {
            log::warn!("bucket is somebody else's and stays: bucket={name}");
            return Ok(());
        }
        Err(err) => return Err(err.into()),
    }
    remove_versions(work, &caller, name)?;
    Ok(caller.delete_bucket(name)?)
}

/// Aborts unfinished uploads; false when there is no such bucket.
fn remove_uploads(caller: &Caller<'_>, bucket: &str) -> Result<bool, AwsError> {
    for _ in 0..UPLOAD_PAGES_MAX {
        let Some(uploads) = caller.list_multipart_uploads(bucket)? else {
            return Ok(false);
        };
        let mut aborted = 0;
        for upload in &uploads {
            match caller.abort_multipart_upload(bucket, upload)? {
                AbortedUpload::Gone => aborted += 1,
                AbortedUpload::Unreachable => log::warn!("upload left to its bucket's end: bucket={bucket}"),
            }
        }
        if aborted == 0 {
            break;
        }
    }
    Ok(true)
}

/// Deletes all versions and delete markers, always from the start, until a first page is empty.
fn remove_versions(work: &Work<'_>, caller: &Caller<'_>, bucket: &str) -> Result<(), StepError> {
    let (began, mut reported, mut deleted) = (Instant::now(), Instant::now(), 0_usize);
    loop {
        let Some(page) = caller.list_object_versions(bucket)? else {
            return Ok(());
        };
        if page.objects.is_empty() && !page.truncated {
            return Ok(());
        }
        let errors = caller.delete_objects(bucket, &page.objects)?;
        let gone = page.objects.len().saturating_sub(errors.len());
        if gone == 0 {
            return Err(stuck(&errors));
        }
        deleted += gone;
        let progress = format!("the bucket is being emptied: {deleted} versions deleted in this run");
        if began.elapsed() > SLICE {
            return Err(StepError::Wait { delay: Duration::ZERO, reason: progress });
        }
        if reported.elapsed() > REPORT_INTERVAL {
            work.report(progress)?;
            reported = Instant::now();
        }
    }
}

/// Names what cannot be deleted.
fn stuck(errors: &[ObjectError]) -> StepError {
    StepError::Stuck(match errors.first() {
        None => "AWS lists versions that it does not delete".to_owned(),
        Some(first) => format!(
            "{} objects cannot be deleted, the first is {:?}: AWS answered {}",
            errors.len(),
            first.key,
            first.code
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_old_broker_have_a_managed_policy() {
        for (name, old) in [
            ("tst-u4b36b824", true),
            ("a-u-u4b36b824", true),
            ("tst-u0123456789abcdef", false),
            ("tst-u4b36b82x", false),
        ] {
            assert_eq!(is_old_name(name), old, "{name}");
        }
    }

    #[test]
    fn what_cannot_be_deleted_is_named() {
        let error = ObjectError { key: "a\nb".into(), version_id: "v".into(), code: "AccessDenied".into() };
        let text = stuck(&[error.clone(), error]).to_string();
        assert_eq!(text, "2 objects cannot be deleted, the first is \"a\\nb\": AWS answered AccessDenied");
    }
}
