//! Access keys of an instance's user: made, tried, and those removed that nobody knows.

use std::time::Duration;

use super::{StepError, Work, find_bucket, wait};
use crate::aws::{AccessKey, AwsError, Credentials};
use crate::store::Whereabouts;

/// How often a new key is tried.
pub(super) const KEY_TRIAL_INTERVAL: Duration = Duration::from_secs(1);
/// When a key that still does not work is replaced; one that AWS does not list yet is believed
/// in as long.
pub(super) const KEY_PATIENCE: Duration = Duration::from_secs(120);

/// Removes all keys of a user but those given; the list as it was. A key whose secret nobody holds
/// is the leftover of a crash.
pub(super) fn keep_only(work: &Work<'_>, user: &str, kept: &[String]) -> Result<Vec<String>, StepError> {
    let caller = work.caller();
    let listed = caller.list_access_keys(user)?;
    for leftover in listed.iter().filter(|it| !kept.contains(it)) {
        caller.delete_access_key(user, leftover)?;
    }
    Ok(listed)
}

/// A new key. IAM shows its secret once: it must be committed next.
pub(super) fn create(work: &Work<'_>, user: &str) -> Result<AccessKey, StepError> {
    match work.caller().create_access_key(user) {
        // Keys whose answers were lost, and which IAM does not list yet: the next run removes them.
        Err(err) if err.code() == Some("LimitExceeded") => {
            Err(wait(KEY_TRIAL_INTERVAL, "AWS does not show all access keys of the user yet"))
        }
        other => Ok(other?),
    }
}

/// A signed call with a tenant's own key: where the bucket is, or `None` while AWS does not know the
/// key everywhere.
pub(super) fn try_key(
    work: &Work<'_>,
    bucket: &str,
    key: &Credentials,
) -> Result<Option<Whereabouts>, StepError> {
    match find_bucket(&work.aws.tenant_caller(key, work.permit), work.aws, bucket) {
        Ok(place) => Ok(Some(place)),
        Err(err @ AwsError::Refused { status: 400 | 401 | 403, .. }) => {
            log::debug!("key does not work yet: bucket={bucket} cause={err}");
            Ok(None)
        }
        Err(err) => Err(err.into()),
    }
}

/// The key is not known everywhere; look again soon.
pub(super) fn not_yet() -> StepError {
    wait(KEY_TRIAL_INTERVAL, "AWS does not know the new access key everywhere yet")
}
