//! *check*: can an instance of the stock be handed out? Its own key must reach its bucket, the bucket must be empty and
//! keep what the plan promises, and the user must not carry the id of another instance, nor the old broker's policy.
//!
//! Nothing is changed here. What AWS does not answer now is asked later, and says nothing against the instance.

use std::time::Duration;

use super::plan::{promise_of, promised_key, read_key, shows_encryption};
use super::{Ending, StepError, Verdict, Work, find_bucket};
use crate::aws::{AwsError, Credentials, tag_value};
use crate::store::{Instance, InstanceStatus, Whereabouts};

/// How often something must be wrong before the instance is replaced.
const ATTEMPTS: u32 = 3;
/// When it is asked again what AWS did not answer.
const ANSWER_INTERVAL: Duration = Duration::from_secs(60);

/// Said of what was claimed, when the database has forgotten it.
pub(super) const ANOTHERS: &str = "the user carries the id of another instance";

/// Why an instance was not found sound.
enum Doubt {
    /// That is wrong with it.
    Unsound(String),
    /// It could not be looked at.
    Unknown(StepError),
}

impl From<AwsError> for Doubt {
    fn from(err: AwsError) -> Doubt {
        Doubt::Unknown(err.into())
    }
}

/// Looks at the instance.
pub(super) fn run(work: &Work<'_>) -> Result<Ending, StepError> {
    let id = work.claim.instance.clone();
    let instance = work.store.transaction(move |tx| tx.find_any_instance(&id))?;
    let in_stock = |it: &Instance| !it.claimed && !it.deleted && it.status == InstanceStatus::Available;
    let Some(instance) = instance.filter(in_stock) else {
        return Ok(Ending::NotStock);
    };
    match examine(work, &instance) {
        Ok(place) => Ok(Ending::Sound(place)),
        Err(Doubt::Unsound(reason)) if work.claim.attempt >= ATTEMPTS => Ok(Ending::Unsound { reason }),
        Err(Doubt::Unsound(reason)) => Err(StepError::Stuck(reason)),
        Err(Doubt::Unknown(err)) if err.verdict() == Verdict::Halted => Err(err),
        Err(Doubt::Unknown(err)) => {
            log::warn!("stock not looked at: instance={:?} cause={err}", instance.id);
            Err(StepError::Wait { delay: ANSWER_INTERVAL, reason: err.public() })
        }
    }
}

/// Where its bucket is, if all is well.
fn examine(work: &Work<'_>, instance: &Instance) -> Result<Whereabouts, Doubt> {
    let unsound = |reason: &str| Err(Doubt::Unsound(reason.to_owned()));
    let (Some(id), Some(secret)) = (&instance.access_key_id, &instance.secret_access_key) else {
        return unsound("its row has no access key");
    };
    let (tenant, bucket) = (Credentials::lasting(id, secret), instance.name.as_str());
    if work.is_shared(bucket).map_err(Doubt::Unknown)? {
        return unsound("another instance has the bucket too");
    }
    let tenant = work.aws.tenant_caller(&tenant, work.permit);
    let place = find_bucket(&tenant, work.aws, bucket).map_err(refused)?;
    match tenant.list_object_versions(bucket).map_err(refused)? {
        None => return unsound("there is no bucket"),
        Some(page) if !page.objects.is_empty() || page.truncated => {
            return unsound("the bucket is not empty");
        }
        Some(_) => {}
    }
    let promise = promise_of(work, &instance.provisioned.plan).map_err(Doubt::Unknown)?;
    let caller = work.caller();
    match caller.get_user(bucket)? {
        None => return unsound("there is no user"),
        Some(user) if is_anothers(&user.tags, &instance.id) => return unsound(ANOTHERS),
        Some(_) => {}
    }
    // it opens the bucket's own settings
    let old_policy = format!("/{bucket}policy");
    if caller.list_attached_user_policies(bucket)?.iter().any(|arn| arn.ends_with(&old_policy)) {
        return unsound("its user has the old broker's policy");
    }
    let versions = known(caller.get_bucket_versioning(bucket), promise.versioned)?;
    let versions = versions.as_deref() == Some("Enabled");
    if promise.versioned && !versions {
        return unsound("the bucket keeps no versions");
    }
    let shown = known(caller.get_bucket_encryption(bucket), promise.encrypted)?;
    let shown = shown.filter(|it| it.algorithm == "aws:kms");
    let wanted = promised_key(work, &promise, instance).map_err(Doubt::Unknown)?;
    if promise.encrypted && !shows_encryption(&caller, bucket, wanted.as_ref())? {
        return unsound("the bucket is not encrypted, or with another key");
    }
    // Only an edit can have left more than is promised, or a key that is only perhaps another: what stores and accounts
    // add by themselves would be there again in the next one.
    let id = instance.id.clone();
    let is_older = work.store.transaction(move |tx| tx.is_older_than_its_plan(&id));
    if is_older.map_err(|err| Doubt::Unknown(err.into()))? {
        let encrypts = shown.is_some();
        let held = shown.and_then(|it| it.kms_key).filter(|it| !it.ends_with("alias/aws/s3"));
        let held = held.map(|it| read_key(work, instance, &it)).transpose().map_err(Doubt::Unknown)?;
        let wanted = wanted.filter(|it| !it.master_key_id().ends_with("alias/aws/s3"));
        let is_same_key = match (&wanted, &held) {
            (Some(wanted), Some(held)) => wanted.is(held),
            (wanted, held) => wanted.is_none() && held.is_none(),
        };
        if versions != promise.versioned || encrypts != promise.encrypted || !is_same_key {
            return unsound("the bucket is what its plan promised before");
        }
    }
    Ok(place)
}

/// A setting that a store may not know, and need not where nothing is promised.
fn known<T>(shown: Result<Option<T>, AwsError>, is_promised: bool) -> Result<Option<T>, AwsError> {
    match shown {
        Err(err) if !is_promised && err.is_unsupported() => Ok(None),
        other => other,
    }
}

/// Whether tags name another instance than that one. The old broker wrote none, and some stores keep none.
pub(super) fn is_anothers(tags: &[(String, String)], instance: &str) -> bool {
    tags.iter().any(|(key, value)| key == "instance" && *value != tag_value(instance))
}

/// What AWS refuses to the instance's own key is wrong with the instance. An answer without a code of AWS' is somebody
/// else's, a proxy's.
fn refused(err: AwsError) -> Doubt {
    if let AwsError::Refused { operation, code, status: 400 | 401 | 403 | 404, .. } = &err
        && !code.starts_with("Http")
    {
        return Doubt::Unsound(format!("its own key is refused: operation={operation} code={code}"));
    }
    err.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_proxy_refuses_says_nothing_against_the_instance() {
        let doubt = |status, code: &str| {
            refused(AwsError::Refused {
                operation: "ListObjectVersions",
                code: code.to_owned(),
                status,
                request_id: String::new(),
                message: String::new(),
            })
        };
        assert!(matches!(doubt(403, "InvalidAccessKeyId"), Doubt::Unsound(_)));
        assert!(matches!(doubt(404, "NoSuchBucket"), Doubt::Unsound(_)));
        assert!(matches!(doubt(403, "Http403"), Doubt::Unknown(_)));
        assert!(matches!(doubt(500, "InternalError"), Doubt::Unknown(_)));
    }

    #[test]
    fn tags_tell_whose_an_instance_is() {
        let tag = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        for (tags, anothers) in [
            (vec![], false),
            (vec![tag("billingcode", "preprovisioned")], false),
            (vec![tag("billingcode", "x"), tag("instance", "a#1")], true),
            (vec![tag("instance", "a_1")], false),
            (vec![tag("instance", "")], true),
        ] {
            assert_eq!(is_anothers(&tags, "a*1"), anothers, "{tags:?}");
        }
    }
}
