//! How many tasks and instances there are: counted by one process for all, and kept in a row that all read.
//!
//! Any process may count: when no worker is left, an api still sees the queue grow old.
//!
//! Invariants
//! - Whoever counts holds the row meanwhile; the others pass on.
//! - What is written holds kinds, states and names of plans, no id.

use std::collections::BTreeMap;
use std::time::Duration;

use postgres::Row;
use postgres::types::Type;

use super::instances::InstanceStatus;
use super::kinds::TaskKind;
use super::{Store, StoreError, Transaction};

/// Failed attempts after which a delete counts as stuck: about two minutes after its first.
const STUCK_ATTEMPTS: i32 = 6;
/// The most groups that are read of a table; kinds and states of tasks are free text there.
const GROUPS_MAX: i64 = 1_000;

/// The figures, and how old they are in seconds.
const READ: &str = "
    select extract(epoch from clock_timestamp() - taken_at)::float8 as age_s, figures
    from census where taken_at is not null";
/// Takes the turn to count, if it is time and nobody else has it.
const TAKE_TURN: &str = "
    select 1 from census where taken_at is null or taken_at < clock_timestamp() - interval '1 minute'
    for no key update skip locked";
/// `$1` the most rows.
const COUNT_TASKS: &str = "
    select action, status::text as state, count(*) as census_count
    from tasks where not deleted group by action, status limit $1";
/// `$1` the most rows.
const COUNT_INSTANCES: &str = "
    select p.name::text as plan, r.status, r.claimed, r.username is not null as has_key,
        count(*) as census_count
    from resources r join plans p on p.plan = r.plan
    where not r.deleted group by 1, 2, 3, 4 limit $1";
/// How long the task has been due that has been longest and that a worker could take (see `CLAIM`), in seconds.
const OLDEST_DUE: &str = "
    select coalesce(extract(epoch from now() - min(case
            when t.status = 'pending' then t.run_at
            when t.worker is not null then t.lease_until
            else coalesce(t.started, t.updated) + interval '1 hour' end)), 0)::float8 as census_age_s
    from tasks t
    where not t.deleted and t.status in ('pending', 'started') and t.run_at <= now()
      and (t.status = 'pending'
        or (t.worker is not null and t.lease_until < now())
        or (t.worker is null and coalesce(t.started, t.updated) < now() - interval '1 hour'))
      and not exists (
        select 1 from tasks r where r.resource = t.resource and r.task <> t.task
          and not r.deleted and r.status = 'started' and r.worker is not null)";
/// `$1` the attempts after which a delete is stuck.
const COUNT_STUCK: &str = "
    select count(*) as census_count from tasks
    where not deleted and status in ('pending', 'started') and action in ('delete', 'sweep')
      and retries >= $1";
/// `$1` the figures.
const WRITE: &str = "update census set taken_at = clock_timestamp(), figures = $1";

/// What was counted last.
pub(crate) struct Census {
    /// How long ago.
    pub(crate) age: Duration,
    /// The figures.
    pub(crate) figures: Vec<Figure>,
}

/// One figure.
#[derive(Debug, PartialEq)]
pub(crate) struct Figure {
    /// What was counted.
    pub(crate) what: String,
    /// By what.
    pub(crate) by: Vec<String>,
    /// How many, or how much.
    pub(crate) value: f64,
}

impl Store {
    /// The last census; taken now if it is time.
    pub(crate) fn census(&self) -> Result<Option<Census>, StoreError> {
        self.transaction(|tx| {
            if tx.query_opt(TAKE_TURN, &[])?.is_some() {
                let figures = tx.count_all()?;
                let text: String = figures.iter().map(Figure::to_line).collect();
                tx.execute(WRITE, &[(&text, Type::TEXT)])?;
            }
            tx.query_opt(READ, &[])?.map(|row| Census::read(&row)).transpose()
        })
    }
}

impl Transaction<'_> {
    /// Counts everything.
    fn count_all(&mut self) -> Result<Vec<Figure>, StoreError> {
        let mut counts: BTreeMap<Vec<String>, f64> = BTreeMap::new();
        let mut add = |key: &[&str], row: &Row| -> Result<(), StoreError> {
            let key = key.iter().map(|it| (*it).to_owned()).collect();
            *counts.entry(key).or_default() += row.try_get::<_, i64>("census_count")? as f64;
            Ok(())
        };
        for row in self.query(COUNT_TASKS, &[(&GROUPS_MAX, Type::INT8)])? {
            let kind = TaskKind::parse(row.try_get("action")?);
            add(&["tasks", kind.label(), row.try_get("state")?], &row)?;
        }
        for row in self.query(COUNT_INSTANCES, &[(&GROUPS_MAX, Type::INT8)])? {
            let status = InstanceStatus::parse(row.try_get("status")?, row.try_get("has_key")?);
            let claimed = if row.try_get("claimed")? { "yes" } else { "no" };
            add(&["instances", row.try_get("plan")?, status.as_str(), claimed], &row)?;
        }
        add(&["deletes_stuck"], &self.query_one(COUNT_STUCK, &[(&STUCK_ATTEMPTS, Type::INT4)])?)?;
        let oldest = self.query_one(OLDEST_DUE, &[])?.try_get("census_age_s")?;
        counts.insert(vec!["oldest_due_task_age_seconds".to_owned()], oldest);
        Ok(counts.into_iter().filter_map(|(key, value)| Figure::of(key, value)).collect())
    }
}

impl Census {
    /// From a row of [`READ`].
    fn read(row: &Row) -> Result<Census, StoreError> {
        let age_s: f64 = row.try_get("age_s")?;
        let text: &str = row.try_get("figures")?;
        let age = Duration::try_from_secs_f64(age_s.max(0.0)).unwrap_or(Duration::MAX);
        Ok(Census { age, figures: text.lines().filter_map(Figure::from_line).collect() })
    }
}

impl Figure {
    /// From what was counted, and by what.
    fn of(mut key: Vec<String>, value: f64) -> Option<Figure> {
        let by = key.split_off(key.len().min(1));
        Some(Figure { what: key.pop()?, by, value })
    }

    /// As a line of the row's text. None of its words holds a space: they are ours, or names of plans, whose type
    /// forbids it.
    fn to_line(&self) -> String {
        format!("{} {} {}\n", self.what, self.by.join(" "), self.value)
    }

    /// From such a line; what cannot be read, from another version perhaps, is passed over.
    fn from_line(line: &str) -> Option<Figure> {
        let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let value = words.pop()?.parse::<f64>().ok().filter(|it| it.is_finite())?;
        Figure::of(words, value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_as_they_are_written() {
        for (by, value) in [(&[][..], 0.5), (&["delete", "pending"], 3.0), (&["p", "available", "no"], 0.0)] {
            let by = by.iter().map(|it| (*it).to_owned()).collect();
            let figure = Figure { what: "x".to_owned(), by, value };
            assert_eq!(Figure::from_line(figure.to_line().trim_end()), Some(figure));
        }
        for nonsense in ["", "x", "1", "x y", "x NaN", "x inf"] {
            assert_eq!(Figure::from_line(nonsense), None, "{nonsense}");
        }
    }
}
