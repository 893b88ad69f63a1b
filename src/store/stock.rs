//! The stock: instances that are ready before anybody asks, rows of `resources` that nobody has claimed.
//!
//! Not here: how many there shall be and when one is made (`worker::stock`), who gets one (`broker::provision`).
//!
//! Invariants
//! - A row is claimed by one transaction or by none: it is locked, and takes the platform's id, together with all
//!   that refers to it, in one statement.
//! - A row is handed out only if its bucket was made or looked at lately, and since its plan's row was changed last,
//!   and nothing works on it. So what comes back with an old copy of the database, and was claimed since, is looked at
//!   first, and nobody is given what the plan promised yesterday.
//! - The id of a row that nobody has claimed is known to no platform and found by no request.

use std::time::Duration;

use postgres::Row;
use postgres::types::Type;

use super::{NewInstance, NewTask, StoreError, Transaction};

/// Whom the stock belongs to, as `billingcode` says it; the old broker's word.
const ORGANIZATION: &str = "preprovisioned";
/// How long the making of an instance, or a look at it, vouches for it.
const VOUCHED: Duration = Duration::from_secs(3_600);
/// When an instance is looked at again.
const CHECK_INTERVAL: Duration = Duration::from_secs(600);
/// When a row on which nobody works counts as left over: the time that the old broker's tasks are given too.
const LEFT_OVER: Duration = Duration::from_secs(3_600);
/// The pause after a first failure; it doubles with each.
const PAUSE_FIRST: Duration = Duration::from_secs(60);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(4 * 3_600);
/// Chosen once, at random, so that nothing else in the database uses it.
const ADVISORY_LOCK: i64 = 0x31c6_a40e_77d2_9b05;

/// How a plan's stock stands.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stock {
    /// The plan's id.
    pub(crate) plan: String,
    /// Its name.
    pub(crate) name: String,
    /// How many there shall be; none of a plan that is not sold.
    pub(crate) wanted: i64,
    /// How many there are, those included that have to be looked at.
    pub(crate) ready: i64,
    /// How many are being made.
    pub(crate) making: i64,
    /// How many are to be removed and are not gone yet.
    pub(crate) removing: i64,
    /// How often in a row one could not be made.
    pub(crate) failures: i32,
    /// Whether one may be made now.
    pub(crate) may_try: bool,
}

/// Whether a task of `$kinds` is open for the row `i`.
macro_rules! has_open_task {
    ($kinds:literal) => {
        concat!(
            "exists (select 1 from tasks t where t.resource = i.id and not t.deleted
                and t.status in ('pending', 'started')",
            $kinds,
            ")"
        )
    };
}

/// Whether a task vouches for the row `i` of the plan `p`: within `$2` seconds it made what the plan promises now, or
/// looked at it. Either reads the plan's row after it has begun; a look that goes on has the end of the last one. An end
/// that is still to come says that the clock was set back: nothing.
macro_rules! is_vouched {
    ($kinds:literal) => {
        concat!(
            "exists (select 1 from tasks v where v.resource = i.id and not v.deleted
                and v.action in ('provision', 'check')",
            $kinds,
            " and p.updated < case v.action when 'check' then coalesce(v.started, v.created) else i.created end
                and p.updated < v.finished and v.finished > now() - make_interval(secs => $2)
                and v.finished <= clock_timestamp())"
        )
    };
}

/// `$1` plan, `$2` seconds. A check that failed once puts its row in doubt: its next attempt decides. Tags that could not
/// be written say nothing against it.
const PICK: &str = concat!(
    "select i.id from resources i join plans p on p.plan = i.plan
    where not i.claimed and not i.deleted and i.plan = $1::uuid and i.status = 'available'
      and i.name <> '' and i.username <> '' and i.password <> '' and i.region is not null and i.location is not null
      and not exists (
        select 1 from tasks t where t.resource = i.id and not t.deleted
          and (t.status = 'started' or (t.status = 'pending' and t.retries > 0 and t.action <> 'tag')))
      and ",
    is_vouched!(" and v.status <> 'failed'"),
    " order by i.created, i.id limit 1 for update of i skip locked"
);
/// The row that kept the id against other requests goes.
const GIVE_WAY: &str = "delete from resources where id = $1";
/// `$1` the row, `$2` its id from now on, `$3` organization, `$4` space. The foreign keys are checked when all has
/// moved. No row: a task has begun since the row was picked. A check that waits has nothing left to do.
const TAKE: &str = "
    with taken as (
        update resources i set id = $2, claimed = true, organization = $3, space = $4, created = now()
        where i.id = $1 and not exists (
            select 1 from tasks t where t.resource = i.id and not t.deleted and t.status = 'started')
        returning i.id),
    tasks_taken as (
        update tasks t set resource = $2,
            status = case when t.action = 'check' and t.status = 'pending' then 'finished' else t.status end,
            result = case when t.action = 'check' and t.status = 'pending' then 'claimed' else t.result end,
            finished = case when t.action = 'check' and t.status = 'pending' then now() else t.finished end
        from taken where t.resource = $1),
    bindings_taken as (
        update bindings b set resource = $2 from taken where b.resource = $1)
    select id from taken";

/// Held until the transaction ends: whoever has it decides about the stock.
const TRY_LOCK: &str = "select pg_try_advisory_xact_lock($1) as mine";
/// All plans, in a fixed order.
const LOOK: &str = concat!(
    "select p.plan::text, p.name::text,
        (case when p.deleted or p.deprecated or s.deleted or s.deprecated then 0
            else greatest(p.preprovision, 0) end)::bigint as wanted,
        (select count(*) from resources i
            where not i.claimed and not i.deleted and i.plan = p.plan and i.status = 'available') as ready,
        (select count(*) from resources i
            where not i.claimed and not i.deleted and i.plan = p.plan and i.status = 'provisioning' and ",
    has_open_task!(" and t.action = 'provision'"),
    ") as making,
        (select count(*) from resources i where not i.claimed and not i.deleted and i.plan = p.plan and ",
    has_open_task!(" and t.action = 'delete'"),
    ") as removing,
        coalesce(f.failures, 0) as failures, coalesce(f.not_before <= now(), true) as may_try
    from plans p join services s on s.service = p.service left join stock_failures f on f.plan = p.plan
    order by p.plan"
);
/// Tasks of the stock that wait for a worker.
const COUNT_WAITING: &str = "
    select count(*) as waiting from tasks t join resources i on i.id = t.resource
    where not i.claimed and not i.deleted and not t.deleted and t.status = 'pending' and t.run_at <= now()";
/// `$1` id, `$2` name, `$3` plan, `$4` organization. The time is that of this moment, since the transaction may have
/// begun before the edit of the plan that it has seen.
const INSERT: &str = "
    insert into resources (id, name, plan, claimed, status, endpoint, organization, created)
    values ($1, $2, $3::uuid, false, 'provisioning', $2, $4, clock_timestamp())";
/// `$1` plan, `$2` how many. Those that are not ready yet go first, then the newest.
const FIND_EXCESS: &str = concat!(
    "select i.id from resources i
    where not i.claimed and not i.deleted and i.plan = $1::uuid
      and (i.status = 'available' or (i.status = 'provisioning' and ",
    has_open_task!(" and t.action = 'provision'"),
    "))
    order by i.status = 'available', i.created desc, i.id
    limit $2
    for update of i skip locked"
);
/// Rows that are not ready and that nobody makes so: the old broker left them. `$1` seconds, `$2` how many.
const FIND_LEFT_OVER: &str = concat!(
    "select i.id, i.name from resources i
    where not i.claimed and not i.deleted and i.status <> 'available'
      and i.created < now() - make_interval(secs => $1) and not ",
    has_open_task!(""),
    " order by i.created, i.id limit $2 for update of i skip locked"
);
/// Rows to be looked at, and their last check. `$1` how many, `$2` seconds.
const FIND_UNCHECKED: &str = concat!(
    "select i.id, (select c.task::text from tasks c
        where c.resource = i.id and c.action = 'check' and not c.deleted
        order by c.created desc, c.task desc limit 1) as task
    from resources i join plans p on p.plan = i.plan
    where not i.claimed and not i.deleted and i.status = 'available'
      and not ",
    is_vouched!(""),
    " and not ",
    has_open_task!(" and t.action <> 'tag'"),
    " order by i.created, i.id limit $1 for no key update of i skip locked"
);
/// Whether the plan of the row `$1` was edited since it was made.
const IS_OLDER: &str = "
    select p.updated > i.created as older from resources i join plans p on p.plan = i.plan where i.id = $1";
/// The same task runs again, so that looking for ever fills no table. When it last went well is kept, unless the plan
/// was changed since.
const REPEAT_CHECK: &str = "
    update tasks t set status = 'pending', run_at = now(), retries = 0, metadata = '{}', cancel = false,
        finished = case when t.status = 'finished' and t.started > p.updated then t.finished end
    from resources i join plans p on p.plan = i.plan
    where t.task = $1::uuid and i.id = t.resource";

/// `$1` plan, `$2` and `$3` the first and the longest pause in seconds. Those that fail during a pause were begun
/// before it: no row.
const COUNT_FAILURE: &str = "
    insert into stock_failures as f (plan, failures, not_before)
    values ($1::uuid, 1, now() + make_interval(secs => $2))
    on conflict (plan) do update set failures = f.failures + 1,
        not_before = now() + make_interval(secs => least($2 * 2 ^ least(f.failures, 30), $3))
    where f.not_before <= now()
    returning failures, extract(epoch from not_before - now())::float8 as pause_s";
/// One that was begun before the pause says nothing of what is now.
const FORGET_FAILURES: &str = "delete from stock_failures where plan = $1::uuid and not_before <= now()";

impl Transaction<'_> {
    /// Gives an instance of the stock the place of `new`, which was just inserted and holds the id against other
    /// requests. False when none is ready; then all is as it was.
    pub(crate) fn claim_stock(&mut self, new: &NewInstance) -> Result<bool, StoreError> {
        let wanted = &new.provisioned;
        let parameters: [super::Parameter<'_>; 2] =
            [(&wanted.plan, Type::TEXT), (&VOUCHED.as_secs_f64(), Type::FLOAT8)];
        let Some(row) = self.query_opt(PICK, &parameters)? else {
            return Ok(false);
        };
        let picked: String = row.try_get("id")?;
        self.execute(GIVE_WAY, &[(&new.id, Type::TEXT)])?;
        let parameters: [super::Parameter<'_>; 4] = [
            (&picked, Type::TEXT),
            (&new.id, Type::TEXT),
            (&wanted.organization, Type::TEXT),
            (&wanted.space, Type::TEXT),
        ];
        if self.query_opt(TAKE, &parameters)?.is_some() {
            return Ok(true);
        }
        self.insert_instance(new)?;
        Ok(false)
    }

    /// Whether this transaction may decide about the stock; no other does until it has ended.
    pub(crate) fn lock_stock(&mut self) -> Result<bool, StoreError> {
        Ok(self.query_one(TRY_LOCK, &[(&ADVISORY_LOCK, Type::INT8)])?.try_get("mine")?)
    }

    /// How the stock of each plan stands.
    pub(crate) fn stock(&mut self) -> Result<Vec<Stock>, StoreError> {
        self.query(LOOK, &[])?.iter().map(Stock::read).collect()
    }

    /// How many tasks of the stock wait for a worker, as platforms' tasks do.
    pub(crate) fn waiting_for_stock(&mut self) -> Result<i64, StoreError> {
        Ok(self.query_one(COUNT_WAITING, &[])?.try_get("waiting")?)
    }

    /// Adds an instance that is to be made by `task`.
    pub(crate) fn add_stock(&mut self, plan: &str, name: &str, task: &NewTask) -> Result<(), StoreError> {
        let parameters: [super::Parameter<'_>; 4] = [
            (&task.instance, Type::TEXT),
            (&name, Type::TEXT),
            (&plan, Type::TEXT),
            (&ORGANIZATION, Type::TEXT),
        ];
        self.execute(INSERT, &parameters)?;
        self.enqueue(task)
    }

    /// So many instances of a plan, those that are missed least first; held until the transaction ends.
    pub(crate) fn lock_excess(&mut self, plan: &str, count: i64) -> Result<Vec<String>, StoreError> {
        let rows = self.query(FIND_EXCESS, &[(&plan, Type::TEXT), (&count, Type::INT8)])?;
        rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
    }

    /// Ids and names of rows that are not ready and never will be, `count` at most; held until the transaction ends.
    pub(crate) fn lock_left_over(&mut self, count: i64) -> Result<Vec<(String, String)>, StoreError> {
        let parameters: [super::Parameter<'_>; 2] =
            [(&LEFT_OVER.as_secs_f64(), Type::FLOAT8), (&count, Type::INT8)];
        let rows = self.query(FIND_LEFT_OVER, &parameters)?;
        rows.iter().map(|row| Ok((row.try_get("id")?, row.try_get("name")?))).collect()
    }

    /// Ids of instances that were not looked at lately, and their last check, `count` at most; held until the
    /// transaction ends.
    pub(crate) fn lock_unchecked(&mut self, count: i64) -> Result<Vec<(String, Option<String>)>, StoreError> {
        let parameters: [super::Parameter<'_>; 2] =
            [(&count, Type::INT8), (&CHECK_INTERVAL.as_secs_f64(), Type::FLOAT8)];
        let rows = self.query(FIND_UNCHECKED, &parameters)?;
        rows.iter().map(|row| Ok((row.try_get("id")?, row.try_get("task")?))).collect()
    }

    /// Whether the instance was made before its plan was edited last.
    pub(crate) fn is_older_than_its_plan(&mut self, id: &str) -> Result<bool, StoreError> {
        let row = self.query_opt(IS_OLDER, &[(&id, Type::TEXT)])?;
        row.map_or(Ok(false), |row| Ok(row.try_get("older")?))
    }

    /// Lets a check that has ended run again.
    pub(crate) fn repeat_check(&mut self, task: &str) -> Result<(), StoreError> {
        self.execute(REPEAT_CHECK, &[(&task, Type::TEXT)]).map(drop)
    }

    /// One of the plan's stock could not be made: how often in a row, and how long it is waited now. `None` while it
    /// is waited already.
    pub(crate) fn count_stock_failure(&mut self, plan: &str) -> Result<Option<(i32, Duration)>, StoreError> {
        let parameters: [super::Parameter<'_>; 3] = [
            (&plan, Type::TEXT),
            (&PAUSE_FIRST.as_secs_f64(), Type::FLOAT8),
            (&PAUSE_MAX.as_secs_f64(), Type::FLOAT8),
        ];
        let row = self.query_opt(COUNT_FAILURE, &parameters)?;
        row.map(|row| {
            let pause = Duration::try_from_secs_f64(row.try_get("pause_s")?).unwrap_or_default();
            Ok((row.try_get("failures")?, pause))
        })
        .transpose()
    }

    /// One of the plan's stock was made.
    pub(crate) fn forget_stock_failures(&mut self, plan: &str) -> Result<(), StoreError> {
        self.execute(FORGET_FAILURES, &[(&plan, Type::TEXT)]).map(drop)
    }
}

impl Stock {
    /// From a row of [`LOOK`].
    fn read(row: &Row) -> Result<Stock, StoreError> {
        Ok(Stock {
            plan: row.try_get("plan")?,
            name: row.try_get("name")?,
            wanted: row.try_get("wanted")?,
            ready: row.try_get("ready")?,
            making: row.try_get("making")?,
            removing: row.try_get("removing")?,
            failures: row.try_get("failures")?,
            may_try: row.try_get("may_try")?,
        })
    }
}
