//! The task queue: rows of `tasks`, claimed one at a time.
//!
//! Not here: what a task does (`steps`), when it is tried again (`worker::RetryPolicy`).
//!
//! Invariants
//! - A task is in exactly one of pending, started, finished, failed.
//! - A started task belongs to the worker whose claim time it carries, until the lease ends.
//! - Every write of a worker is made under [`Store::fenced`], which holds the claim. No row means:
//!   not ours any more.
//! - Locks are taken in one order everywhere: the instance, then its tasks.
//!
//! Sources: PostgreSQL manual, SELECT, "The Locking Clause" (SKIP LOCKED).

use std::time::{Duration, SystemTime};

use postgres::Row;
use postgres::types::Type;

use super::instances::seconds;
use super::kinds::{NOTICES, TaskKind};
use super::listen::{DUE, ENDED};
use super::webhooks::Ended;
use super::{Store, StoreError, Transaction};

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TaskState {
    /// Waits to be claimed.
    Pending,
    /// A worker has it, or had it when it died.
    Started,
    /// Done.
    Finished,
    /// Given up, or stopped.
    Failed,
}

impl TaskState {
    /// Whether nothing more happens.
    pub(crate) fn has_ended(self) -> bool {
        matches!(self, TaskState::Finished | TaskState::Failed)
    }

    /// The state that a text in the table means.
    pub(super) fn parse(text: &str) -> Result<TaskState, StoreError> {
        match text {
            "pending" => Ok(TaskState::Pending),
            "started" => Ok(TaskState::Started),
            "finished" => Ok(TaskState::Finished),
            "failed" => Ok(TaskState::Failed),
            _ => Err(StoreError::Unreadable("tasks.status")),
        }
    }
}

/// Which tasks a worker's thread takes: receivers of webhooks may be slow, and hold up nobody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Work on AWS.
    Work,
    /// Calls of webhooks.
    Notices,
}

/// A task to be enqueued. It has no `Debug`: the metadata may hold a secret.
#[derive(Clone)]
pub(crate) struct NewTask {
    /// Its id.
    pub(crate) task: String,
    /// The instance that it works on.
    pub(crate) instance: String,
    /// What it is to do.
    pub(crate) kind: TaskKind,
    /// What it needs to know, as JSON.
    pub(crate) metadata: String,
    /// How long it is to wait first.
    pub(crate) delay: Duration,
}

/// A task that this worker has claimed. Task, worker and claim time together are the fence. It has no
/// `Debug`: the metadata may hold a secret.
#[derive(Clone)]
pub(crate) struct Claim {
    /// The task's id.
    pub(crate) task: String,
    /// The instance that it works on.
    pub(crate) instance: String,
    /// What it is to do.
    pub(crate) kind: TaskKind,
    /// What it needs to know, as JSON.
    pub(crate) metadata: String,
    /// How often it was claimed, this time included.
    pub(crate) attempt: u32,
    /// How long it waited until a worker had it first.
    pub(crate) waited: Option<Duration>,
    /// Whose claim this is.
    worker: String,
    /// When it was claimed, by the database's clock.
    claimed_at: SystemTime,
}

/// What a worker learns when it looks after its claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeaseState {
    /// Still ours.
    Held,
    /// Still ours, but the work is not wanted any more: stop.
    Cancelled,
}

/// `$1` is this worker's name, `$2` the lease in seconds, `$3` are the actions of notices. One row at most;
/// the order is total.
///
/// Attempts count from when a worker of this broker had the task first: the Go broker counted looks, once a minute.
/// A row is due when pending, or when its worker's lease ran out, or when the Go broker left it
/// (it never sets `worker`). Another running task of the same instance holds it back, a dead one
/// too: that one is claimed again first. Both rows are locked, so two claims never meet.
const CLAIM: &str = "
    update tasks set status = 'started', started = clock_timestamp(), worker = $1,
        lease_until = clock_timestamp() + make_interval(secs => $2),
        retries = case when begun is null then 1 else retries + 1 end,
        begun = coalesce(begun, started, clock_timestamp())
    where task = (
        select t.task from tasks t join resources i on i.id = t.resource
        where not t.deleted and t.status in ('pending', 'started') and t.run_at <= now()
          and t.action <> all($3)
          and (t.status = 'pending'
            or (t.worker is not null and t.lease_until < now())
            or (t.worker is null and coalesce(t.started, t.updated) < now() - interval '1 hour'))
          and not exists (
            select 1 from tasks r where r.resource = t.resource and r.task <> t.task
              and not r.deleted and r.status = 'started' and r.worker is not null)
        order by t.run_at, t.created, t.task
        limit 1
        for no key update of t, i skip locked)
    returning task::text, resource, action, metadata, retries, started,
        extract(epoch from case when isfinite(begun) and isfinite(created) then begun - created end)::float8 as waited_s";

/// The part of [`CLAIM`] that keeps to one lane.
const NO_NOTICES: &str = "t.action <> all($3)";
/// What stands there in the other.
const ONLY_NOTICES: &str = "t.action = any($3)";

/// SQLSTATE of a broken unique index.
const UNIQUE_VIOLATION: &str = "23505";
/// How often a claim is tried when others were faster.
const CLAIM_TRIES: usize = 5;

/// Takes the locks of a fenced write in their order; the second gives the row while the claim holds.
const HOLD_INSTANCE: &str = "select 1 from resources where id = $1 for no key update";
/// `$1` task, `$2` worker, `$3` claim time.
const HOLD_CLAIM: &str = "
    select cancel from tasks
    where task = $1::uuid and worker = $2 and started = $3 and status = 'started' and not deleted
    for no key update";
/// The same without locks, for a look before an AWS call.
const LOOK_AT_CLAIM: &str = "
    select cancel from tasks
    where task = $1::uuid and worker = $2 and started = $3 and status = 'started' and not deleted";
/// `$1` the lease in seconds, `$2` to `$4` the fences. A row that is being written at this moment is left out: it must
/// not hold up the others.
const RENEW: &str = "
    update tasks set lease_until = clock_timestamp() + make_interval(secs => $1)
    where task in (
        select t.task from tasks t
        join unnest($2::text[], $3::text[], $4::timestamptz[]) held (task, worker, started)
            on t.task = held.task::uuid and t.worker = held.worker and t.started = held.started
        where t.status = 'started' and not t.deleted
        for no key update of t skip locked)
    returning task::text, cancel";

/// `$5` is the delay in seconds.
const ENQUEUE: &str = "
    insert into tasks (task, resource, action, metadata, run_at)
    values ($1::uuid, $2, $3, $4, now() + make_interval(secs => $5))";
/// Told to all who listen once the transaction is committed.
const NOTIFY: &str = "select pg_notify($1, $2)";

/// Ends a claim: `$2` the state, `$3` what is said of it.
const SETTLE: &str = "
    update tasks set status = $2::task_status, result = $3, finished = now(), worker = null, lease_until = null
    where task = $1::uuid";
/// Puts a claimed task back: `$2` delay in seconds, `$3` attempts given back, `$4` what is said of it.
const REQUEUE: &str = "
    update tasks set status = 'pending', run_at = now() + make_interval(secs => $2), worker = null,
        lease_until = null, retries = greatest(retries - $3, 0), result = $4
    where task = $1::uuid";
/// `$2` what is said of the task now.
const REPORT: &str = "update tasks set result = $2 where task = $1::uuid";
/// `$2` what the task needs to know from now on.
const REMEMBER: &str = "update tasks set metadata = $2 where task = $1::uuid";

impl Store {
    /// Claims the next due task of a lane, or one whose worker let its lease run out.
    ///
    /// The unique index over running tasks is the safety net: when it objects, another worker was
    /// faster, and the claim is tried again.
    pub(crate) fn claim_task(
        &self,
        worker: &str,
        lease: Duration,
        lane: Lane,
    ) -> Result<Option<Claim>, StoreError> {
        let sql = match lane {
            Lane::Work => CLAIM.to_owned(),
            Lane::Notices => CLAIM.replace(NO_NOTICES, ONLY_NOTICES),
        };
        for _ in 0..CLAIM_TRIES {
            let sql = sql.clone();
            let (name, lease_s) = (worker.to_owned(), lease.as_secs_f64());
            let claimed = self.transaction(move |tx| {
                let notices: Vec<&str> = NOTICES.iter().map(TaskKind::as_str).collect();
                let parameters: [super::Parameter<'_>; 3] =
                    [(&name, Type::TEXT), (&lease_s, Type::FLOAT8), (&notices, Type::TEXT_ARRAY)];
                let row = tx.query_opt(&sql, &parameters)?;
                row.map(|row| Claim::read(&row, name)).transpose()
            });
            match claimed {
                Err(StoreError::Postgres(err))
                    if err.code().is_some_and(|it| it.code() == UNIQUE_VIOLATION) => {}
                other => return other,
            }
        }
        Ok(None)
    }

    /// Runs `job` while the claim is held: nobody can take the task over, or settle it, meanwhile.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] when the claim is not ours any more; nothing was changed.
    pub(crate) fn fenced<T: Send + 'static>(
        &self,
        claim: &Claim,
        job: impl FnOnce(&mut Transaction<'_>, LeaseState) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let claim = claim.clone();
        self.transaction(move |tx| {
            tx.query_opt(HOLD_INSTANCE, &[(&claim.instance, Type::TEXT)])?;
            let row = tx.query_opt(HOLD_CLAIM, &claim.fence())?.ok_or(StoreError::LeaseLost)?;
            job(tx, LeaseState::read(&row)?)
        })
    }

    /// Whether the claim still holds, and the work is still wanted.
    pub(crate) fn look_at_claim(&self, claim: &Claim) -> Result<LeaseState, StoreError> {
        let claim = claim.clone();
        self.transaction(move |tx| {
            let row = tx.query_opt(LOOK_AT_CLAIM, &claim.fence())?.ok_or(StoreError::LeaseLost)?;
            LeaseState::read(&row)
        })
    }

    /// Prolongs the leases of claims, and touches nothing else. Gives the tasks whose lease was prolonged.
    pub(crate) fn renew_leases(
        &self,
        claims: Vec<Claim>,
        lease: Duration,
    ) -> Result<Vec<(String, LeaseState)>, StoreError> {
        self.transaction(move |tx| {
            let tasks: Vec<&str> = claims.iter().map(|it| it.task.as_str()).collect();
            let workers: Vec<&str> = claims.iter().map(|it| it.worker.as_str()).collect();
            let claimed_at: Vec<SystemTime> = claims.iter().map(|it| it.claimed_at).collect();
            let parameters: [super::Parameter<'_>; 4] = [
                (&lease.as_secs_f64(), Type::FLOAT8),
                (&tasks, Type::TEXT_ARRAY),
                (&workers, Type::TEXT_ARRAY),
                (&claimed_at, Type::TIMESTAMPTZ_ARRAY),
            ];
            let rows = tx.query(RENEW, &parameters)?;
            rows.iter().map(|row| Ok((row.try_get("task")?, LeaseState::read(row)?))).collect()
        })
    }
}

impl Transaction<'_> {
    /// Enqueues a task and wakes the workers.
    pub(crate) fn enqueue(&mut self, new: &NewTask) -> Result<(), StoreError> {
        let parameters: [_; 5] = [
            (&new.task as &(dyn postgres::types::ToSql + Sync), Type::TEXT),
            (&new.instance, Type::TEXT),
            (&new.kind.as_str(), Type::TEXT),
            (&new.metadata, Type::TEXT),
            (&new.delay.as_secs_f64(), Type::FLOAT8),
        ];
        self.execute(ENQUEUE, &parameters)?;
        self.notify(DUE, &new.task)
    }

    /// Marks a claimed task finished. Only under [`Store::fenced`], as all that follow.
    pub(crate) fn finish_task(&mut self, claim: &Claim, result: &str) -> Result<(), StoreError> {
        self.settle(claim, "finished", result)
    }

    /// Marks a claimed task failed for good.
    pub(crate) fn fail_task(&mut self, claim: &Claim, result: &str) -> Result<(), StoreError> {
        self.settle(claim, "failed", result)
    }

    /// Ends a claim and tells who waits for the task.
    fn settle(&mut self, claim: &Claim, state: &str, result: &str) -> Result<(), StoreError> {
        self.execute(SETTLE, &[(&claim.task, Type::TEXT), (&state, Type::TEXT), (&result, Type::TEXT)])?;
        self.settle_webhook(&Ended {
            task: &claim.task,
            instance: &claim.instance,
            kind: &claim.kind,
            metadata: &claim.metadata,
            succeeded: state == "finished",
            result,
        })?;
        self.notify(ENDED, &claim.task)
    }

    /// Puts a claimed task back for later; the attempt counts.
    pub(crate) fn retry_task(
        &mut self,
        claim: &Claim,
        delay: Duration,
        result: &str,
    ) -> Result<(), StoreError> {
        self.requeue(claim, delay, 0, result)
    }

    /// Puts a claimed task back for later as if it had not been claimed.
    pub(crate) fn snooze_task(
        &mut self,
        claim: &Claim,
        delay: Duration,
        result: &str,
    ) -> Result<(), StoreError> {
        self.requeue(claim, delay, 1, result)
    }

    /// Puts a claimed task back.
    fn requeue(
        &mut self,
        claim: &Claim,
        delay: Duration,
        given_back: i32,
        result: &str,
    ) -> Result<(), StoreError> {
        let parameters: [_; 4] = [
            (&claim.task as &(dyn postgres::types::ToSql + Sync), Type::TEXT),
            (&delay.as_secs_f64(), Type::FLOAT8),
            (&given_back, Type::INT4),
            (&result, Type::TEXT),
        ];
        self.execute(REQUEUE, &parameters)?;
        if delay.is_zero() { self.notify(DUE, &claim.task) } else { Ok(()) }
    }

    /// Says how far a claimed task has come.
    pub(crate) fn report_progress(&mut self, claim: &Claim, result: &str) -> Result<(), StoreError> {
        self.execute(REPORT, &[(&claim.task, Type::TEXT), (&result, Type::TEXT)]).map(drop)
    }

    /// Keeps what a claimed task needs to know when it runs again.
    pub(crate) fn remember(&mut self, task: &str, metadata: &str) -> Result<(), StoreError> {
        self.execute(REMEMBER, &[(&task, Type::TEXT), (&metadata, Type::TEXT)]).map(drop)
    }

    /// Tells who listens on `channel`, once committed.
    pub(super) fn notify(&mut self, channel: &str, task: &str) -> Result<(), StoreError> {
        self.query_one(NOTIFY, &[(&channel, Type::TEXT), (&task, Type::TEXT)]).map(drop)
    }
}

impl Claim {
    /// A claimed row.
    fn read(row: &Row, worker: String) -> Result<Claim, StoreError> {
        Ok(Claim {
            task: row.try_get("task")?,
            instance: row.try_get("resource")?,
            kind: TaskKind::parse(row.try_get("action")?),
            metadata: row.try_get("metadata")?,
            attempt: u32::try_from(row.try_get::<_, i32>("retries")?).unwrap_or(u32::MAX),
            waited: row.try_get::<_, Option<f64>>("waited_s")?.map(seconds),
            worker,
            claimed_at: row.try_get("started")?,
        })
    }

    /// What proves that the claim is this one.
    fn fence(&self) -> [super::Parameter<'_>; 3] {
        [(&self.task, Type::TEXT), (&self.worker, Type::TEXT), (&self.claimed_at, Type::TIMESTAMPTZ)]
    }
}

impl LeaseState {
    /// From a row with `cancel`.
    fn read(row: &Row) -> Result<LeaseState, StoreError> {
        Ok(if row.try_get("cancel")? { LeaseState::Cancelled } else { LeaseState::Held })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_lanes_are_told_apart() {
        assert_eq!(CLAIM.matches(NO_NOTICES).count(), 1);
    }
}
