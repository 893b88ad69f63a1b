//! Tasks as others than their worker see them: who waits for them, who asks how they went, who stops them.

use std::time::Duration;

use postgres::Row;
use postgres::types::Type;

use super::instances::seconds;
use super::kinds::TaskKind;
use super::listen::ENDED;
use super::tasks::{NewTask, TaskState};
use super::webhooks::Ended;
use super::{Store, StoreError, Transaction};

/// A task as others see it.
#[derive(Debug, Clone)]
pub(crate) struct TaskRow {
    /// Its id.
    pub(crate) task: String,
    /// Where it stands.
    pub(crate) state: TaskState,
    /// What was said of it last.
    pub(crate) result: String,
    /// Whether a worker has ever had it.
    pub(crate) begun: bool,
    /// How long it waited until one had it first.
    pub(crate) waited: Option<Duration>,
    /// What it needs to know, as JSON.
    pub(crate) metadata: String,
    /// How long ago it ended, or how far ahead that is by a clock that was set back.
    pub(crate) ended: Option<Duration>,
}

/// The kinds of task that a delete does not stop: those that remove, and those that only tell.
const UNSTOPPABLE: [TaskKind; 4] =
    [TaskKind::Delete, TaskKind::Sweep, TaskKind::NotifyCreateService, TaskKind::NotifyCreateBinding];
/// Tasks of `$1` that nobody works on: they never will be, but for the actions `$2`. Those count that the old broker's
/// worker left started.
const STOP_PENDING: &str = "
    update tasks set status = 'failed', result = 'stopped by delete', finished = now()
    where resource = $1 and (status = 'pending' or (status = 'started' and worker is null)) and action <> all($2) and not deleted
    returning task::text, action, metadata";
/// Running ones are told to stop, but for the actions `$2`.
const CANCEL_RUNNING: &str = "
    update tasks set cancel = true
    where resource = $1 and status = 'started' and worker is not null and action <> all($2) and not deleted";
/// All columns that a [`TaskRow`] is read from; two selects share it.
macro_rules! select_task {
    ($tail:literal) => {
        concat!(
            "select task::text, status::text, result, metadata, started is not null or retries > 0 as begun,
                extract(epoch from case when isfinite(begun) and isfinite(created) then begun - created end)::float8 as waited_s,
                abs(extract(epoch from now() - finished))::float8 as ended_s
            from tasks where resource = $1 and not deleted and ",
            $tail
        )
    };
}

/// The newest task of `$1` with action `$2`. One that goes on counts as newer than all that have ended, also after a clock
/// was set back.
const FIND_LATEST: &str = select_task!(
    "action = $2 order by status in ('pending', 'started') desc, created desc, task desc limit 1"
);
/// One task of `$1`.
const FIND_TASK: &str = select_task!("task::text = $2");
/// Takes back what nobody has begun: `$1` instance, `$2` task. A snooze gives attempts back, but what a worker did stays
/// done.
const WITHDRAW: &str = "
    update tasks set status = 'failed', result = 'withdrawn before a worker came', finished = now()
    where resource = $1 and task = $2::uuid and status = 'pending' and started is null and retries = 0 and not deleted";
/// Lets the task of `$1` with action `$2` that waits, if one does, be due in `$3` seconds at the latest.
const HASTEN: &str = "
    update tasks set run_at = least(run_at, now() + make_interval(secs => $3))
    where resource = $1 and action = $2 and status = 'pending' and not deleted";
/// Of the given ones, those that have ended.
const FIND_ENDED: &str = "
    select task::text, status::text from tasks
    where task = any($1::text[]::uuid[]) and status in ('finished', 'failed')";

impl Store {
    /// Of `tasks`, those that have ended, with their state.
    pub(crate) fn ended_tasks(&self, tasks: Vec<String>) -> Result<Vec<(String, TaskState)>, StoreError> {
        self.transaction(move |tx| {
            let rows = tx.query(FIND_ENDED, &[(&tasks, Type::TEXT_ARRAY)])?;
            rows.iter()
                .map(|row| Ok((row.try_get("task")?, TaskState::parse(row.try_get("status")?)?)))
                .collect()
        })
    }
}

impl Transaction<'_> {
    /// A delete stops the other tasks of its instance: waiting ones fail, running ones are told to.
    pub(crate) fn stop_tasks(&mut self, instance: &str) -> Result<(), StoreError> {
        let spared: Vec<&str> = UNSTOPPABLE.iter().map(TaskKind::as_str).collect();
        let parameters: [super::Parameter<'_>; 2] = [(&instance, Type::TEXT), (&spared, Type::TEXT_ARRAY)];
        for row in self.query(STOP_PENDING, &parameters)? {
            let (task, kind) = (row.try_get("task")?, TaskKind::parse(row.try_get("action")?));
            let (metadata, result) = (row.try_get("metadata")?, "stopped by delete");
            self.settle_webhook(&Ended { task, instance, kind: &kind, metadata, succeeded: false, result })?;
            self.notify(ENDED, task)?;
        }
        self.execute(CANCEL_RUNNING, &parameters).map(drop)
    }

    /// Takes back a task that no worker has begun; false when one has.
    pub(crate) fn withdraw_task(&mut self, instance: &str, task: &str) -> Result<bool, StoreError> {
        Ok(self.execute(WITHDRAW, &[(&instance, Type::TEXT), (&task, Type::TEXT)])? == 1)
    }

    /// Enqueues a task unless one of its kind waits already: that one will see what there is to see.
    pub(crate) fn enqueue_unless_waiting(&mut self, new: &NewTask) -> Result<(), StoreError> {
        if self.hasten(&new.instance, &new.kind, new.delay)? { Ok(()) } else { self.enqueue(new) }
    }

    /// Lets the waiting task of a kind be due within `delay`; false when none waits.
    pub(crate) fn hasten(
        &mut self,
        instance: &str,
        kind: &TaskKind,
        delay: Duration,
    ) -> Result<bool, StoreError> {
        let action = kind.as_str();
        let parameters: [super::Parameter<'_>; 3] =
            [(&instance, Type::TEXT), (&action, Type::TEXT), (&delay.as_secs_f64(), Type::FLOAT8)];
        Ok(self.execute(HASTEN, &parameters)? > 0)
    }

    /// The newest task of a kind.
    pub(crate) fn latest_task(
        &mut self,
        instance: &str,
        kind: &TaskKind,
    ) -> Result<Option<TaskRow>, StoreError> {
        let action = kind.as_str();
        let row = self.query_opt(FIND_LATEST, &[(&instance, Type::TEXT), (&action, Type::TEXT)])?;
        row.map(|row| TaskRow::read(&row)).transpose()
    }

    /// A task of the instance by its id, which may be any text.
    pub(crate) fn find_task(&mut self, instance: &str, task: &str) -> Result<Option<TaskRow>, StoreError> {
        let row = self.query_opt(FIND_TASK, &[(&instance, Type::TEXT), (&task, Type::TEXT)])?;
        row.map(|row| TaskRow::read(&row)).transpose()
    }
}

impl TaskRow {
    /// From a row of [`FIND_LATEST`] or [`FIND_TASK`].
    fn read(row: &Row) -> Result<TaskRow, StoreError> {
        Ok(TaskRow {
            task: row.try_get("task")?,
            state: TaskState::parse(row.try_get("status")?)?,
            result: row.try_get("result")?,
            begun: row.try_get("begun")?,
            waited: row.try_get::<_, Option<f64>>("waited_s")?.map(seconds),
            metadata: row.try_get("metadata")?,
            ended: row.try_get::<_, Option<f64>>("ended_s")?.map(seconds),
        })
    }
}
