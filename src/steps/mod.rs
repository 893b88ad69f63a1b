//! The work of each task kind on AWS: ordered steps, each safe to repeat.
//!
//! Not here: when a task runs again (`worker`), what a call looks like on the wire (`aws`).
//!
//! Invariants
//! - `ensure_x` leaves x true whatever was there before; `remove_x` leaves nothing and is content
//!   when nothing was there. A process that is killed after any call or statement, and run again,
//!   ends in the same state.
//! - Before each AWS call the [`Permit`] is asked, so nothing happens after the lease is lost.
//! - Every write to the database is made while the claim is held.

mod check;
mod delete;
mod form;
mod keys;
mod plan;
mod provision;
mod resync;
mod rotate;
mod tags;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::aws::{Aws, AwsError, Caller, Permit};
use crate::random;
use crate::store::{
    Claim, Instance, NewTask, Store, StoreError, TaskKind, Transaction, Webhook, Whereabouts,
};

pub(crate) use delete::Removal;
pub(crate) use form::Form;

/// The tag by which the buckets and users of this broker are known; its value is the broker's id.
pub(crate) const BROKER_TAG: &str = "servicebroker";

/// What the worker's settings say about the work.
pub(crate) struct Settings {
    /// AWS account id, where known.
    pub(crate) account_id: Option<String>,
    /// What the names of buckets and users begin with.
    pub(crate) name_prefix: String,
    /// KMS key of encrypted plans; without one the account's own for S3.
    pub(crate) kms_key_id: Option<String>,
    /// IAM path of the users.
    pub(crate) iam_path: Option<String>,
    /// Permissions boundary of the users.
    pub(crate) iam_permissions_boundary: Option<String>,
    /// How long a provision may take from its request.
    pub(crate) provision_deadline: Duration,
    /// How long the access key before the present one works on.
    pub(crate) rotation_grace: Duration,
}

/// What one run of a task works with.
pub(crate) struct Work<'a> {
    /// The database.
    pub(crate) store: &'a Store,
    /// AWS.
    pub(crate) aws: &'a Aws,
    /// The settings.
    pub(crate) settings: &'a Settings,
    /// The task.
    pub(crate) claim: &'a Claim,
    /// Whether a call may be made now.
    pub(crate) permit: &'a dyn Permit,
}

/// How a run came to its end.
#[derive(Debug, Clone)]
pub(crate) enum Ending {
    /// The instance can be used; its bucket is there.
    Available(Whereabouts),
    /// Nothing of the instance is left in AWS. The name that it had is looked at once more later.
    Removed {
        /// The name of bucket and user.
        name: String,
    },
    /// Nothing of that name came up again.
    Swept,
    /// The key that waited works, and is to be given out.
    Rotated {
        /// How long the one before works on.
        grace: Duration,
    },
    /// The previous access key is gone.
    KeyRemoved {
        /// Its id.
        key: String,
    },
    /// The user has no access key that the row does not name.
    KeysKnown,
    /// The bucket is what that plan promises.
    PlanChanged {
        /// The plan's id.
        plan: String,
    },
    /// AWS refused a change of plan, and the bucket is as it was.
    PlanKept {
        /// Why, fit for the platform to read.
        reason: String,
    },
    /// Bucket and user bear the tags that they should.
    Tagged,
    /// The row says what AWS does.
    Resynced,
    /// A webhook took its notice.
    Told,
    /// An instance of the stock can be handed out; its bucket is there.
    Sound(Whereabouts),
    /// It cannot, and must be replaced.
    Unsound {
        /// What is wrong, fit for the log.
        reason: String,
    },
    /// The instance is not one of the stock any more.
    NotStock,
}

/// Why a run did not come to its end.
#[derive(Debug)]
pub(crate) enum StepError {
    /// AWS refused or did not answer.
    Aws(AwsError),
    /// The database did.
    Store(StoreError),
    /// No repetition helps; says why, fit for the platform to read.
    Unfixable(String),
    /// Nothing is wrong, it only takes time.
    Wait {
        /// When to look again.
        delay: Duration,
        /// What for, fit for the platform to read.
        reason: String,
    },
    /// AWS will not let something go, or shows something that is wrong; says what. Repeated all the same.
    Stuck(String),
}

/// What the worker is to do after a [`StepError`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Run the task again; the attempt counts.
    Retry,
    /// Run it again after the time given; the attempt does not count.
    Snooze(Duration),
    /// Give up.
    GiveUp,
    /// The permit was withheld: the worker knows why.
    Halted,
}

impl StepError {
    /// The worker's only question.
    pub(crate) fn verdict(&self) -> Verdict {
        match self {
            StepError::Aws(AwsError::Halted { .. }) | StepError::Store(StoreError::LeaseLost) => {
                Verdict::Halted
            }
            StepError::Aws(err) if err.is_transient() => Verdict::Retry,
            StepError::Aws(_) | StepError::Unfixable(_) => Verdict::GiveUp,
            StepError::Store(_) | StepError::Stuck(_) => Verdict::Retry,
            StepError::Wait { delay, .. } => Verdict::Snooze(*delay),
        }
    }

    /// What the platform may read: which call, which code, nothing of ours.
    pub(crate) fn public(&self) -> String {
        match self {
            StepError::Aws(AwsError::NoCredentials { .. }) => "the broker has no AWS credentials".to_owned(),
            StepError::Aws(err) => match err.code() {
                Some(code) => format!("AWS answered {code}"),
                None => "AWS did not answer as expected".to_owned(),
            },
            StepError::Store(_) => "the broker's database was not available".to_owned(),
            StepError::Unfixable(reason) | StepError::Stuck(reason) => reason.clone(),
            StepError::Wait { reason, .. } => reason.clone(),
        }
    }
}

impl From<AwsError> for StepError {
    fn from(err: AwsError) -> StepError {
        StepError::Aws(err)
    }
}

impl From<StoreError> for StepError {
    fn from(err: StoreError) -> StepError {
        StepError::Store(err)
    }
}

impl std::fmt::Display for StepError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StepError::Aws(err) => err.fmt(f),
            StepError::Store(err) => err.fmt(f),
            StepError::Unfixable(reason) | StepError::Stuck(reason) => f.write_str(reason),
            StepError::Wait { reason, .. } => f.write_str(reason),
        }
    }
}

/// Does the work of a task.
pub(crate) fn run(work: &Work<'_>) -> Result<Ending, StepError> {
    match &work.claim.kind {
        TaskKind::Provision => provision::run(work),
        TaskKind::Delete => delete::run(work),
        TaskKind::Sweep => delete::sweep(work),
        TaskKind::ChangePlans => plan::change(work),
        TaskKind::RotateCredentials => rotate::run(work),
        TaskKind::RemovePreviousKey => rotate::remove_previous_key(work),
        TaskKind::RemoveUnknownKeys => rotate::remove_unknown_keys(work),
        TaskKind::Tag => tags::run(work),
        TaskKind::Check => check::run(work),
        TaskKind::ResyncFromProvider | TaskKind::ResyncUntilAvailable | TaskKind::PerformPostProvision => {
            resync::run(work)
        }
        TaskKind::ChangeProviders => Err(StepError::Unfixable("buckets have one provider, AWS".to_owned())),
        TaskKind::RestoreDatabase => Err(StepError::Unfixable("a bucket is no database".to_owned())),
        TaskKind::NotifyCreateService | TaskKind::NotifyCreateBinding | TaskKind::Unknown(_) => {
            Err(StepError::Unfixable("this version has no such task".to_owned()))
        }
    }
}

/// What a task keeps in its metadata from one run to the next.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct Notes {
    /// Provision: everything is made but the key is not proven yet.
    #[serde(default)]
    prepared: bool,
    /// Provision: the first name turned out to be somebody else's bucket.
    #[serde(default)]
    renamed: bool,
    /// Provision: who wants to be told of its end. Kept, not read, here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    webhook: Option<Webhook>,
    /// Rotation: a new key never came to work and was replaced.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    replaced: bool,
    /// Sweep: the name to look for; removal of a key: its user; delete by the old broker: bucket and user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Removal of a key: its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// Delete: nobody asked for it, a provision was given up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unasked: bool,
    /// Change of plan: the new one, as the old broker wrote it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    plan: Option<String>,
    /// Change of plan: for how many seconds somebody waits for it to begin; for ever without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wait_s: Option<u64>,
    /// Change of plan: why AWS refused it; from then on the bucket is put back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    /// Change of plan that was refused: it has turned versioning on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    versioning: bool,
}

/// A task that looks whether anything of that name is left, or came up behind its removal.
pub(crate) fn sweep(instance: &str, name: String, delay: Duration) -> Result<NewTask, StoreError> {
    Ok(NewTask {
        task: random::uuid().map_err(|_| StoreError::Unreadable("random bytes"))?,
        instance: instance.to_owned(),
        kind: TaskKind::Sweep,
        metadata: Notes { name: Some(name), ..Notes::default() }.to_json(),
        delay,
    })
}

/// A task that removes the access key before the present one when its grace is over.
pub(crate) fn key_removal(
    instance: &str,
    user: String,
    key: String,
    grace: Duration,
) -> Result<NewTask, StoreError> {
    Ok(NewTask {
        task: random::uuid().map_err(|_| StoreError::Unreadable("random bytes"))?,
        instance: instance.to_owned(),
        kind: TaskKind::RemovePreviousKey,
        metadata: Notes { name: Some(user), key: Some(key), ..Notes::default() }.to_json(),
        delay: grace,
    })
}

/// What the delete notes that cleans up after a provision that was given up.
pub(crate) fn unasked() -> String {
    Notes { unasked: true, ..Notes::default() }.to_json()
}

/// The name that an open task will look for, whatever its instance is called by now.
pub(crate) fn name_in(metadata: &str) -> Option<String> {
    Notes::parse(metadata).name
}

impl Notes {
    /// From a task's metadata; what cannot be read counts as nothing, which is always safe. The old broker's deletes hold
    /// a name and nothing else.
    fn parse(metadata: &str) -> Notes {
        let name = Form::read(metadata).map(|_| metadata.to_owned());
        serde_json::from_str(metadata).unwrap_or(Notes { name, ..Notes::default() })
    }

    /// As a task's metadata.
    fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| "{}".to_owned())
    }
}

impl Work<'_> {
    /// AWS, asked with the broker's own key.
    fn caller(&self) -> Caller<'_> {
        self.aws.caller(self.permit)
    }

    /// The instance as it is now.
    fn instance(&self) -> Result<Instance, StepError> {
        let id = self.claim.instance.clone();
        let found = self.store.transaction(move |tx| tx.find_any_instance(&id))?;
        let found = found.ok_or_else(|| StepError::Unfixable("the instance has no row".to_owned()))?;
        if !found.name.is_empty() {
            self.refuse_foreign(&found.name)?;
        }
        Ok(found)
    }

    /// The same for what has no use for one that is gone. The old broker's rows still look usable then.
    fn live_instance(&self) -> Result<Instance, StepError> {
        let found = Some(self.instance()?).filter(|it| !it.deleted);
        found.ok_or_else(|| StepError::Unfixable("the instance is gone".to_owned()))
    }

    /// Nothing is done to what no broker named: who can write the tables shall not reach with the worker's key
    /// whatever else the account holds. A delete waits for a better name, since the platform was told that it comes.
    fn refuse_foreign(&self, name: &str) -> Result<(), StepError> {
        let reason = || "the bucket's name is none that a broker gives".to_owned();
        match (Form::read(name), &self.claim.kind) {
            (Some(_), _) => Ok(()),
            (None, TaskKind::Delete) => Err(StepError::Stuck(reason())),
            (None, _) => Err(StepError::Unfixable(reason())),
        }
    }

    /// Removes what belongs to an instance. That AWS shows nothing of it proves that nothing is left only in the account
    /// in which it was made; so it is asked for before, and again after, since another key may have come meanwhile.
    fn believing_one_account(
        &self,
        instance: &Instance,
        remove: impl FnOnce() -> Result<(), StepError>,
    ) -> Result<(), StepError> {
        self.refuse_other_account(instance)?;
        remove()?;
        self.refuse_other_account(instance)
    }

    /// Goes on only with a key of the account that the instance's user is of.
    fn refuse_other_account(&self, instance: &Instance) -> Result<(), StepError> {
        let Some(account) = self.account(instance) else {
            return Ok(());
        };
        match self.caller().identity() {
            Ok(ours) if ours.account == account => Ok(()),
            Ok(_) => Err(StepError::Stuck("the broker's AWS key is of another account".to_owned())),
            Err(err) if err.is_unsupported() => Ok(()),
            Err(err) => Err(err.into()),
        }
    }

    /// Whether another instance has bucket and user of that name as well.
    fn is_shared(&self, name: &str) -> Result<bool, StepError> {
        let (id, sought) = (self.claim.instance.clone(), name.to_owned());
        let shared = self.store.transaction(move |tx| tx.is_shared(&id, &sought))?;
        if shared {
            log::warn!(
                "another instance has the bucket too: instance={:?} bucket={name}",
                self.claim.instance
            );
        }
        Ok(shared)
    }

    /// Changes the instance's row while the claim is held.
    fn write(
        &self,
        job: impl FnOnce(&mut Transaction<'_>, &str) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), StepError> {
        let id = self.claim.instance.clone();
        Ok(self.store.fenced(self.claim, move |tx, _| job(tx, &id))?)
    }

    /// Keeps notes for the next run.
    fn remember(&self, notes: &Notes) -> Result<(), StepError> {
        let (task, metadata) = (self.claim.task.clone(), notes.to_json());
        Ok(self.store.fenced(self.claim, move |tx, _| tx.remember(&task, &metadata))?)
    }

    /// Tells how far the task has come.
    fn report(&self, progress: String) -> Result<(), StepError> {
        let claim = self.claim.clone();
        Ok(self.store.fenced(self.claim, move |tx, _| tx.report_progress(&claim, &progress))?)
    }

    /// The account that the buckets belong to, where it is known.
    fn account<'s>(&'s self, instance: &'s Instance) -> Option<&'s str> {
        let of_user = instance.user_arn.as_deref().and_then(account_of);
        of_user.or(self.settings.account_id.as_deref())
    }
}

/// Where a bucket is, as far as AWS and the settings tell.
pub(crate) fn find_bucket(caller: &Caller<'_>, aws: &Aws, bucket: &str) -> Result<Whereabouts, AwsError> {
    let region = caller.get_bucket_location(bucket)?;
    let location = aws.bucket_location(bucket, &region);
    Ok(Whereabouts { region, location, s3_endpoint: aws.s3_endpoint().map(str::to_owned) })
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

/// The account in an ARN.
fn account_of(arn: &str) -> Option<&str> {
    arn.split(':').nth(4).filter(|it| !it.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    #[test]
    fn verdicts_follow_what_helps() {
        let refused = |code: &str, status| {
            StepError::Aws(AwsError::Refused {
                operation: "CreateUser",
                code: code.to_owned(),
                status,
                request_id: String::new(),
                message: String::new(),
            })
        };
        let wait = StepError::Wait { delay: Duration::from_secs(1), reason: "x".into() };
        for (err, verdict) in [
            (refused("AccessDenied", 403), Verdict::GiveUp),
            (refused("NoSuchEntity", 404), Verdict::Retry),
            (refused("InvalidClientTokenId", 403), Verdict::Retry),
            (StepError::Aws(AwsError::Halted { operation: "x" }), Verdict::Halted),
            (StepError::Aws(AwsError::Deadline { operation: "x" }), Verdict::Retry),
            (StepError::Store(StoreError::Silent), Verdict::Retry),
            (StepError::Store(StoreError::LeaseLost), Verdict::Halted),
            (StepError::Unfixable("x".into()), Verdict::GiveUp),
            (StepError::Stuck("x".into()), Verdict::Retry),
            (wait, Verdict::Snooze(Duration::from_secs(1))),
        ] {
            assert_eq!(err.verdict(), verdict, "{err}");
        }
    }

    #[test]
    fn notes_survive_and_nonsense_counts_as_none() {
        let webhook = Some(Webhook::new(&Secret::new("https://h/"), &Secret::new("s")));
        let notes = Notes { prepared: true, renamed: true, webhook: webhook.clone(), ..Notes::default() };
        let again = Notes::parse(&notes.to_json());
        assert!(again.prepared && again.renamed && again.webhook == webhook);
        assert_eq!(Notes::parse(&webhook.clone().unwrap().to_metadata().unwrap()).webhook, webhook);
        assert!(!Notes::parse("").prepared && !Notes::parse("[1]").prepared);
        let task = sweep("i", "n".into(), Duration::ZERO).unwrap();
        assert_eq!(Notes::parse(&task.metadata).name.as_deref(), Some("n"));
    }

    #[test]
    fn arns_name_their_account() {
        assert_eq!(account_of("arn:aws:iam::123456789012:user/x/y"), Some("123456789012"));
        assert_eq!(account_of("arn:aws:s3:::bucket"), None);
        assert_eq!(account_of(""), None);
    }
}
