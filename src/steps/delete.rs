//! *delete*: keys first, so that nobody writes into a bucket that is being emptied; then policies,
//! user, uploads, all versions, the bucket. *sweep*: the same once more, some time later.
//!
//! An instance of the old broker is removed by the same steps; it has a managed policy besides.
//! What another instance has as well, by the old broker's mistake, stays until that one goes; the sweep of the first
//! sees to it when both go at once.
//! [`Removal`] is the part that knows names only: an operator's command shares it with the tasks.

use std::time::{Duration, Instant};

use super::check::{ANOTHERS, is_anothers};
use super::{Ending, Form, Notes, StepError, Work};
use crate::aws::{AbortedUpload, AwsError, Caller, ObjectError};
use crate::store::{Instance, InstanceStatus};

/// How long one run may empty a bucket before others get their turn.
const SLICE: Duration = Duration::from_secs(30);
/// How often the platform is told of the progress.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);
/// Pages of uploads that one run aborts before it looks at the objects.
const UPLOAD_PAGES_MAX: usize = 100;

/// Removes the instance's bucket, user and whatever belongs to them.
pub(super) fn run(work: &Work<'_>) -> Result<Ending, StepError> {
    let mut instance = work.instance()?;
    let notes = Notes::parse(&work.claim.metadata);
    if instance.name.is_empty() {
        // The old broker could lose a name; its delete is then all that knows it.
        instance.name = notes.name.unwrap_or_default();
        if instance.name.is_empty() {
            return Ok(Ending::Removed { name: instance.name });
        }
        work.refuse_foreign(&instance.name)?;
    } else if notes.name.is_some_and(|it| it != instance.name) {
        return sweep(work); // the old broker's delete of an instance whose id was used again since
    }
    if work.is_shared(&instance.name)? {
        return Ok(Ending::Removed { name: instance.name });
    }
    let report = |progress| work.report(progress);
    let removal = Removal { account: work.account(&instance), ..Removal::of(work, &report) };
    work.believing_one_account(&instance, || {
        if !instance.claimed || (notes.unasked && instance.status != InstanceStatus::Deprovisioning) {
            removal.refuse_used(&instance)?;
        }
        removal.remove_user(&instance.name)?;
        removal.remove_bucket(&instance.name)
    })?;
    Ok(Ending::Removed { name: instance.name })
}

/// Looks whether a call that was under way when the instance was removed has made something since.
pub(super) fn sweep(work: &Work<'_>) -> Result<Ending, StepError> {
    let name = Notes::parse(&work.claim.metadata).name;
    let name = name.ok_or_else(|| StepError::Unfixable("the task names nothing to look for".to_owned()))?;
    work.refuse_foreign(&name)?;
    if work.is_shared(&name)? {
        return Ok(Ending::Swept);
    }
    let instance = work.instance()?;
    let report = |progress| work.report(progress);
    let removal = Removal { account: work.account(&instance), ..Removal::of(work, &report) };
    work.believing_one_account(&instance, || {
        if !instance.claimed && instance.name == name {
            removal.refuse_used(&instance)?;
        }
        removal.remove_user(&name)?;
        // The name may be one that turned out to be somebody else's bucket.
        if work.caller().owns_bucket(&name)? { removal.remove_bucket(&name) } else { Ok(()) }
    })?;
    Ok(Ending::Swept)
}

/// Removes what bears a name. Whoever gives the caller its permit answers for the name.
pub(crate) struct Removal<'a> {
    /// AWS.
    pub(crate) caller: Caller<'a>,
    /// The second field of every ARN.
    pub(crate) partition: &'static str,
    /// The account that bucket and user belong to, where it is known.
    pub(crate) account: Option<&'a str>,
    /// Is told now and then how far the emptying of a bucket has come.
    pub(crate) report: &'a dyn Fn(String) -> Result<(), StepError>,
}

impl<'a> Removal<'a> {
    /// The removal that a task does; the account is not known yet.
    fn of(work: &'a Work<'_>, report: &'a dyn Fn(String) -> Result<(), StepError>) -> Removal<'a> {
        Removal { caller: work.caller(), partition: work.aws.partition(), account: None, report }
    }

    /// Nobody was ever told of an instance of the stock, or of one that failed, so its bucket is empty, and its user
    /// carries its id. If not, somebody has it of whom the database does not know (any more), as after a restore: then
    /// nothing of it is removed.
    fn refuse_used(&self, instance: &Instance) -> Result<(), StepError> {
        let stays = |why: &str| Err(StepError::Stuck(format!("what nobody was given stays: {why}")));
        let name = instance.name.as_str();
        if self.caller.get_user(name)?.is_some_and(|it| is_anothers(&it.tags, &instance.id)) {
            return stays(ANOTHERS);
        }
        match self.caller.expecting_owner(self.account).list_object_versions(name) {
            Ok(Some(page)) if !page.objects.is_empty() => stays("the bucket holds objects"),
            Ok(_) => Ok(()),
            Err(err) if err.code() == Some("AccessDenied") && !self.caller.owns_bucket(name)? => Ok(()),
            Err(err) => Err(err.into()),
        }
    }

    /// Leaves no user of that name, no key and no policy of it.
    pub(crate) fn remove_user(&self, name: &str) -> Result<(), StepError> {
        let caller = self.caller;
        if name.is_empty() {
            return Ok(()); // IAM would take it for the caller's own user
        }
        for key in caller.list_access_keys(name)? {
            caller.delete_access_key(name, &key)?;
        }
        for policy in caller.list_user_policies(name)? {
            caller.delete_user_policy(name, &policy)?;
        }
        for policy in caller.list_attached_user_policies(name)? {
            caller.detach_user_policy(name, &policy)?;
        }
        if let Some(arn) = self.old_policy(name)? {
            for version in caller.list_policy_versions(&arn)?.iter().filter(|it| !it.is_default) {
                caller.delete_policy_version(&arn, &version.id)?;
            }
            caller.delete_policy(&arn)?;
        }
        Ok(caller.delete_user(name)?)
    }

    /// The old broker made a policy `<name>policy` for each instance. Its ARN is computed, so that it
    /// is found also by a run that comes after it was detached.
    pub(crate) fn old_policy(&self, name: &str) -> Result<Option<String>, StepError> {
        if Form::read(name).is_none_or(|(_, form)| form != Form::Old) {
            return Ok(None);
        }
        let account = match self.account {
            Some(account) => account.to_owned(),
            None => self.caller.identity()?.account,
        };
        Ok(Some(format!("arn:{}:iam::{account}:policy/{name}policy", self.partition)))
    }

    /// Leaves no bucket of that name that is ours.
    pub(crate) fn remove_bucket(&self, name: &str) -> Result<(), StepError> {
        let caller = self.caller.expecting_owner(self.account);
        if name.is_empty() {
            return Ok(());
        }
        match remove_uploads(&caller, name) {
            Ok(true) => {}
            Ok(false) => return Ok(()), // no such bucket
            Err(err) if err.code() == Some("AccessDenied") && !self.caller.owns_bucket(name)? => {
                log::warn!("bucket is somebody else's and stays: bucket={name}");
                return Ok(());
            }
            Err(err) => return Err(err.into()),
        }
        self.remove_versions(&caller, name)?;
        Ok(caller.delete_bucket(name)?)
    }

    /// Deletes all versions and delete markers, always from the start, until a first page is empty.
    fn remove_versions(&self, caller: &Caller<'_>, bucket: &str) -> Result<(), StepError> {
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
                (self.report)(progress)?;
                reported = Instant::now();
            }
        }
    }
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
    fn what_cannot_be_deleted_is_named() {
        let error = ObjectError { key: "a\nb".into(), version_id: "v".into(), code: "AccessDenied".into() };
        let text = stuck(&[error.clone(), error]).to_string();
        assert_eq!(text, "2 objects cannot be deleted, the first is \"a\\nb\": AWS answered AccessDenied");
    }
}
