//! What the tables need now and then: tasks that nobody will ask for go, and secrets that nothing needs; somebody looks
//! whether the Go broker still writes into them.

use postgres::types::Type;

use super::kinds::{NOTICES, TaskKind};
use super::{Store, StoreError};

/// How many tasks go in one transaction.
const SLICE: i64 = 1_000;

/// Takes settled tasks out of sight after a month. `$1` is how many at most.
///
/// The newest provision and delete of each instance stay: `last_operation` and repeated requests are
/// answered from them.
const PURGE: &str = "
    update tasks set deleted = true
    where task in (
        select t.task from tasks t
        where not t.deleted and t.status in ('finished', 'failed')
          and coalesce(t.finished, t.updated) < now() - interval '30 days'
          and (t.action not in ('provision', 'delete') or exists (
            select 1 from tasks n
            where n.resource = t.resource and n.action = t.action and not n.deleted
              and (n.created, n.task) > (t.created, t.task)))
        limit $1
        for update skip locked)";

/// Settled notices keep neither URL nor secret; the Go broker left both. `$1` are their actions, `$2` how many at most.
const FORGET_WEBHOOKS: &str = "
    update tasks set metadata = '{}'
    where task in (
        select task from tasks
        where action = any($1) and status in ('finished', 'failed') and metadata <> '{}'
        limit $2
        for update skip locked)";
/// Deleted instances keep no key; the Go broker left it in the row. `$1` is how many at most.
const FORGET_KEYS: &str = "
    update resources set username = null, password = null, next_key = null, next_secret = null
    where id in (
        select id from resources where deleted and coalesce(username, password, next_secret) is not null
        limit $1
        for update skip locked)";

/// Tasks that the Go broker's worker has taken lately: it never says who it is.
const TAKEN_BY_OTHERS: &str = "
    select count(*) from tasks
    where not deleted and status = 'started' and worker is null and started > now() - interval '1 hour'";
/// Sessions of this role that do not say what they are, as the Go broker's do not.
const NAMELESS_SESSIONS: &str = "
    select count(*) from pg_stat_activity
    where datname = current_database() and usename = current_user and application_name = ''
      and backend_type = 'client backend' and pid <> pg_backend_pid()";

impl Store {
    /// Takes a slice of old tasks out of sight; false when there is no more of them.
    pub(crate) fn purge_tasks(&self) -> Result<bool, StoreError> {
        let purged = self.transaction(|tx| tx.execute(PURGE, &[(&SLICE, Type::INT8)]))?;
        Ok(is_slice(purged))
    }

    /// Forgets whom a slice of settled notices told; false when there is no more of them.
    pub(crate) fn forget_webhooks(&self) -> Result<bool, StoreError> {
        let forgotten = self.transaction(|tx| {
            let notices: Vec<&str> = NOTICES.iter().map(TaskKind::as_str).collect();
            tx.execute(FORGET_WEBHOOKS, &[(&notices, Type::TEXT_ARRAY), (&SLICE, Type::INT8)])
        })?;
        Ok(is_slice(forgotten))
    }

    /// Forgets the keys of a slice of deleted instances; false when there is no more of them.
    pub(crate) fn forget_keys(&self) -> Result<bool, StoreError> {
        let forgotten = self.transaction(|tx| tx.execute(FORGET_KEYS, &[(&SLICE, Type::INT8)]))?;
        Ok(is_slice(forgotten))
    }

    /// How many others are in the database with this role's password and no name.
    pub(crate) fn nameless_sessions(&self) -> Result<i64, StoreError> {
        self.transaction(|tx| Ok(tx.query_one(NAMELESS_SESSIONS, &[])?.try_get(0)?))
    }

    /// How many tasks a worker that is none of ours has taken within the hour.
    pub(crate) fn tasks_of_others(&self) -> Result<i64, StoreError> {
        self.transaction(|tx| Ok(tx.query_one(TAKEN_BY_OTHERS, &[])?.try_get(0)?))
    }
}

/// Whether there may be more rows than these.
fn is_slice(rows: u64) -> bool {
    i64::try_from(rows).unwrap_or(SLICE) >= SLICE
}
