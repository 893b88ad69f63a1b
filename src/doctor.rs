//! Operator commands. `reconcile` reports what AWS and the database do not share, and removes from AWS what an
//! operator names.
//!
//! Not here: what counts as a finding (`compare`), what may be removed (`removal`), how it is (`steps`).
//!
//! Invariants
//! - A report changes nothing. What could not be looked at is an error, never "nothing found".
//! - A database that takes no changes is not believed: the rows of a standby may be old.

mod compare;
mod removal;

use std::io::{IsTerminal, Write};
use std::time::Duration;

use crate::aws::{Aws, AwsError, Caller, Permit};
use crate::config::Errand;
use crate::steps::{self, StepError, Verdict};
use crate::store::{InstanceStatus, Store, Transaction};

use compare::{Books, Finding, Held, Kind, Mark, Report, Thing, Usable, compare};

/// Pauses before AWS or the database is asked again for what it did not answer, in seconds.
const READ_PAUSES_S: &[u64] = &[1, 4];
/// How much later what seems to be missing is looked for again: AWS' lists come after its changes.
const CONFIRM_AFTER: Duration = Duration::from_secs(5);

/// Looks at both sides for an operator.
pub(crate) struct Doctor<'a> {
    /// The database.
    pub(crate) store: &'a Store,
    /// AWS.
    pub(crate) aws: &'a Aws,
    /// The settings of a worker.
    pub(crate) settings: &'a steps::Settings,
}

/// For calls that only read.
struct Always;

impl Permit for Always {
    fn may_call(&self, _operation: &'static str) -> bool {
        true
    }
}

impl Doctor<'_> {
    /// `servicebroker reconcile`; true when nothing was found, or all was removed.
    ///
    /// # Errors
    /// AWS or the database could not be asked; what was printed may not be all.
    pub(crate) fn reconcile(&self, errand: &Errand, out: &mut dyn Write) -> Result<bool, StepError> {
        if errand.remove.is_empty() {
            return self.report(out);
        }
        if !errand.yes && !std::io::stdin().is_terminal() {
            say(out, "refused: reason=\"there is no terminal to ask on, and no --yes\"")?;
            return Ok(false);
        }
        let (mut all, mut failure) = (true, None);
        for name in &errand.remove {
            match self.remove(name, errand, out) {
                Ok(None) => {}
                Ok(Some(reason)) => {
                    say(out, &format!("refused: name={name:?} reason={reason:?}"))?;
                    all = false;
                }
                Err(err) => {
                    say(out, &format!("failed: name={name:?} cause={:?}", err.to_string()))?;
                    failure = Some(err);
                }
            }
        }
        failure.map_or(Ok(all), Err)
    }

    /// Compares, and prints a line for each finding and one with the numbers.
    fn report(&self, out: &mut dyn Write) -> Result<bool, StepError> {
        let (mut report, instances) = self.compare()?;
        if report.findings.iter().any(Finding::is_missing) {
            std::thread::sleep(CONFIRM_AFTER);
            let (later, _) = self.compare()?;
            report.findings.retain(|it| !it.is_missing() || later.findings.contains(it));
        }
        for finding in &report.findings {
            say(out, &finding.to_string())?;
        }
        let (findings, others, unmarked) = (report.findings.len(), report.others, report.unmarked);
        say(
            out,
            &format!(
                "reconciled: findings={findings} instances={instances} of_other_brokers={others} \
                 untagged_left_out={unmarked}"
            ),
        )?;
        Ok(report.findings.is_empty())
    }

    /// Looks at both sides once; also says how many instances there are.
    fn compare(&self) -> Result<(Report, usize), StepError> {
        let before = read_books(self.store)?;
        let held = self.look(&before)?;
        let after = read_books(self.store)?;
        Ok((compare(&self.settings.name_prefix, &held, &before, &after), after.usable.len()))
    }

    /// What AWS holds that may be ours.
    fn look(&self, before: &Books) -> Result<Held, StepError> {
        let caller = self.aws.caller(&Always);
        let prefix = format!("{}-u", self.settings.name_prefix);
        // Else the prefix was another one when some were made.
        let is_usual = before.usable.iter().all(|it| it.name.starts_with(&prefix));
        let buckets =
            patiently(READ_PAUSES_S, || Ok(caller.list_buckets(if is_usual { &prefix } else { "" })?))?;
        let buckets = buckets.into_iter().map(|it| it.name).collect();
        let users = patiently(READ_PAUSES_S, || Ok(caller.list_users()?))?;
        let policies = patiently(READ_PAUSES_S, || match caller.list_policies() {
            Err(err) if err.is_unsupported() => Ok(Vec::new()),
            other => Ok(other?),
        })?;
        let mut held = Held::default();
        for (kind, names) in [(Kind::Bucket, buckets), (Kind::User, users), (Kind::Policy, policies)] {
            for name in names {
                let thing = Thing { kind, name, mark: Mark::Nobodys };
                let known = thing.known_as(&self.settings.name_prefix);
                let marked = match known.filter(|(name, _)| !before.names.contains(*name)) {
                    Some(_) => patiently(READ_PAUSES_S, || {
                        Ok(read_mark(&caller, kind, &thing.name, &before.broker)?)
                    })?,
                    None => Some(Mark::Nobodys), // it does not matter
                };
                held.things.extend(marked.map(|mark| Thing { mark, ..thing }));
            }
        }
        for usable in &before.usable {
            let keys = patiently(READ_PAUSES_S, || Ok(caller.list_active_access_keys(&usable.name)?))?;
            held.keys.insert(usable.name.clone(), keys);
        }
        Ok(held)
    }
}

/// Does something again after each of these pauses while the trouble may pass.
fn patiently<T>(pauses_s: &[u64], mut job: impl FnMut() -> Result<T, StepError>) -> Result<T, StepError> {
    /// So often it is tried again when AWS holds on to something: that seldom passes.
    const STUCK_TRIES: usize = 2;
    let mut tries = 0;
    loop {
        let err = match job() {
            Ok(done) => return Ok(done),
            Err(err) => err,
        };
        let is_held = matches!(err, StepError::Stuck(_)) && tries >= STUCK_TRIES;
        match (err.verdict(), pauses_s.get(tries)) {
            // A task would let others work meanwhile.
            (Verdict::Snooze(delay), _) => {
                log::info!("goes on: cause={err}");
                std::thread::sleep(delay);
                tries = 0;
            }
            (Verdict::Retry, Some(pause_s)) if !is_held => {
                log::warn!("will be tried again: in_s={pause_s} cause={err}");
                std::thread::sleep(Duration::from_secs(*pause_s));
                tries += 1;
            }
            (_, _) => return Err(err),
        }
    }
}

/// Whose something is; `None` when it is gone. A store that knows no tags has marked nothing.
fn read_mark(caller: &Caller<'_>, kind: Kind, name: &str, broker: &str) -> Result<Option<Mark>, AwsError> {
    let tags = match kind {
        Kind::Bucket => caller.get_bucket_tagging(name),
        Kind::User => caller.get_user(name).map(|user| user.map(|it| it.tags)),
        Kind::Policy => Ok(Some(Vec::new())), // the old broker, which made them, wrote no tags
    };
    match tags {
        Err(err) if err.is_unsupported() => Ok(Some(Mark::Nobodys)),
        other => Ok(other?.map(|tags| Mark::of(&tags, broker))),
    }
}

/// Asks the database, which must be the one that takes changes.
fn ask<T: Send + 'static>(
    store: &Store,
    question: impl Fn(&mut Transaction<'_>) -> Result<T, StepError> + Clone + Send + 'static,
) -> Result<T, StepError> {
    patiently(READ_PAUSES_S, || {
        let question = question.clone();
        store.transaction(move |tx| match tx.is_writable()? {
            true => question(tx),
            false => Err(StepError::Unfixable(
                "the database takes no changes; a standby may not know everything yet".to_owned(),
            )),
        })
    })
}

/// What the database says now.
fn read_books(store: &Store) -> Result<Books, StepError> {
    let (broker, rows) = ask(store, |tx| Ok((tx.broker_id()?, tx.named()?)))?;
    let mut books = Books { broker, ..Books::default() };
    for row in rows {
        let is_settled = row.open_tasks.is_empty();
        books.names.extend(row.open_tasks.iter().filter_map(|it| steps::name_in(it)));
        books.names.insert(row.name.clone());
        if is_settled && matches!(row.status, InstanceStatus::Available | InstanceStatus::Modifying) {
            books.usable.insert(Usable { id: row.id, name: row.name, key: row.access_key_id });
        }
    }
    Ok(books)
}

/// Prints a line.
fn say(out: &mut dyn Write, line: &str) -> Result<(), StepError> {
    writeln!(out, "{line}").map_err(|err| StepError::Unfixable(format!("standard output: {err}")))
}
