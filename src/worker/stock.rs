//! Keeps as many instances ready as the plans ask for (`plans.preprovision`).
//!
//! Not here: how one is made and looked at (`steps`), who gets one (`broker::provision`).
//!
//! Invariants
//! - One worker at a time decides, and there are never more than was asked for; with those that cannot be removed,
//!   never more than twice as many.
//! - After a failure one is tried at a time, and after a pause that doubles.
//! - Platforms' tasks come first: few of the stock are made or looked at at once.

use std::collections::BTreeSet;
use std::time::Duration;

use super::retry::spread;
use super::{POLL_INTERVAL, Shop};
use crate::random;
use crate::store::{Claim, Instance, InstanceStatus, NewTask, Stock, StoreError, TaskKind, Transaction};

/// How often it is looked whether something is missing.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// The pause when the database did not answer.
const ERROR_INTERVAL: Duration = Duration::from_secs(10);
/// How many of a plan are made at once.
const MAKING_MAX: i64 = 8;
/// How many are removed in one go.
const SLICE: i64 = 16;
/// How many tasks of the stock may wait for a worker: whoever asks for an instance now waits behind them.
const WAITING_MAX: i64 = 8;

/// What has come of a look after the stock: lines for the log.
#[derive(Default)]
struct Tended {
    /// What was done.
    done: Vec<String>,
    /// What stands in the way.
    held: BTreeSet<String>,
}

impl Shop {
    /// Looks after the stock until the process is to end.
    pub(super) fn keep_stock(&self) {
        while !self.stop.is_set() && !self.ready.wait(POLL_INTERVAL) {}
        let mut said = BTreeSet::new();
        while !self.stop.is_set() {
            let prefix = self.settings.name_prefix.clone();
            let pause = match self.store.transaction(move |tx| tend(tx, &prefix)) {
                Ok(None) => LOOK_INTERVAL, // another worker is at it
                Ok(Some(Tended { done, held })) => {
                    done.iter().for_each(|line| log::info!("{line}"));
                    held.difference(&said).for_each(|line| log::warn!("{line}"));
                    said = held;
                    LOOK_INTERVAL
                }
                Err(err) => {
                    log::warn!("stock not looked after: cause={err}");
                    ERROR_INTERVAL
                }
            };
            self.stop.wait(spread(pause));
        }
    }
}

/// Brings the stock a step closer to what is asked for, unless another worker does.
fn tend(tx: &mut Transaction<'_>, prefix: &str) -> Result<Option<Tended>, StoreError> {
    if !tx.lock_stock()? {
        return Ok(None);
    }
    let Tended { mut done, mut held } = Tended::default();
    let mut room = (WAITING_MAX - tx.waiting_for_stock()?).max(0);
    for stock in tx.stock()? {
        if stock.is_held() {
            let Stock { name, wanted, .. } = &stock;
            held.insert(format!(
                "stock is not replaced while so much of it cannot be removed: plan={name} wanted={wanted}"
            ));
        }
        let added = stock.to_add().min(room);
        let excess = match stock.to_remove().min(room) {
            0 => Vec::new(),
            count => tx.lock_excess(&stock.plan, count)?,
        };
        room = (room - added - i64::try_from(excess.len()).unwrap_or(room)).max(0);
        for _ in 0..added {
            add(tx, &stock.plan, prefix)?;
        }
        for id in &excess {
            dismiss(tx, id)?;
        }
        if added > 0 || !excess.is_empty() {
            let Stock { name, wanted, ready, making, .. } = &stock;
            let removed = excess.len();
            done.push(format!(
                "stock changed: plan={name} wanted={wanted} ready={ready} making={making} added={added} removed={removed}"
            ));
        }
    }
    for (id, name) in tx.lock_left_over(SLICE)? {
        if name.is_empty() {
            tx.wipe_instance(&id, true)?; // nothing in AWS bears a name that was never given
        } else if room > 0 {
            dismiss(tx, &id)?;
            room -= 1;
        } else {
            continue;
        }
        done.push(format!("stock that nobody finished is removed: instance={id:?} name={name:?}"));
    }
    for (id, last) in tx.lock_unchecked(room)? {
        match last {
            Some(task) => tx.repeat_check(&task)?,
            None => tx.enqueue(&task(&id, TaskKind::Check)?)?,
        }
    }
    Ok(Some(Tended { done, held }))
}

impl Stock {
    /// How many are to be added now.
    fn to_add(&self) -> i64 {
        let at_once = match (self.failures, self.may_try) {
            (0, _) => MAKING_MAX,
            (_, true) => 1,
            (_, false) => 0,
        };
        let missing = self.wanted - self.ready - self.making;
        missing.min(at_once - self.making).min(self.room()).max(0)
    }

    /// How many there may be more, those included that are on their way out: what cannot be removed, in bucket after
    /// bucket, must not eat up the account.
    fn room(&self) -> i64 {
        self.wanted.saturating_mul(2) - self.ready - self.making - self.removing
    }

    /// Whether some are missing and none is made because so many are still to be removed.
    fn is_held(&self) -> bool {
        self.wanted > self.ready + self.making && self.room() <= 0
    }

    /// How many are to be removed now.
    fn to_remove(&self) -> i64 {
        (self.ready + self.making - self.wanted).clamp(0, SLICE)
    }
}

/// One more of a plan.
fn add(tx: &mut Transaction<'_>, plan: &str, prefix: &str) -> Result<(), StoreError> {
    let name = random::instance_name(prefix).map_err(no_randomness)?;
    let id = random::uuid().map_err(no_randomness)?;
    tx.add_stock(plan, &name, &task(&id, TaskKind::Provision)?)
}

/// One less; whatever was to be done with it is not any more.
fn dismiss(tx: &mut Transaction<'_>, id: &str) -> Result<(), StoreError> {
    tx.set_status(id, InstanceStatus::Deprovisioning)?;
    tx.stop_tasks(id)?;
    tx.enqueue(&task(id, TaskKind::Delete)?)
}

/// Writes that a check found its instance wrong: it goes, and the next look sees that one is missing.
pub(super) fn replace(tx: &mut Transaction<'_>, claim: &Claim, reason: &str) -> Result<(), StoreError> {
    tx.fail_task(claim, reason)?;
    log::warn!("stock cannot be handed out and is replaced: instance={:?} reason={reason:?}", claim.instance);
    dismiss(tx, &claim.instance)
}

/// Counts that one could not be made.
pub(super) fn count_failure(tx: &mut Transaction<'_>, instance: &Instance) -> Result<(), StoreError> {
    let plan = &instance.provisioned.plan;
    if let Some((failures, pause)) = tx.count_stock_failure(plan)? {
        log::warn!(
            "stock waits after a failure: plan={plan} failures={failures} next_in_s={}",
            pause.as_secs()
        );
    }
    Ok(())
}

/// A task that is due at once and needs to know nothing.
pub(super) fn task(instance: &str, kind: TaskKind) -> Result<NewTask, StoreError> {
    Ok(NewTask {
        task: random::uuid().map_err(no_randomness)?,
        instance: instance.to_owned(),
        kind,
        metadata: "{}".to_owned(),
        delay: Duration::ZERO,
    })
}

/// There is no name for something new.
fn no_randomness(_: random::NoRandomness) -> StoreError {
    StoreError::Unreadable("random bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_more_than_asked_and_few_at_once() {
        #[rustfmt::skip]
        let cases = [
            // wanted, ready, making, failures, may_try: added, removed
            (0,   0,  0, 0, true,  0, 0),
            (5,   0,  0, 0, true,  5, 0),
            (5,   3,  2, 0, true,  0, 0),
            (50,  0,  0, 0, true,  8, 0),
            (50,  0,  8, 0, true,  0, 0),
            (50,  3,  6, 0, true,  2, 0),
            (50, 49,  0, 0, true,  1, 0),
            (2,   5,  1, 0, true,  0, 4),
            (0, 100,  0, 0, true,  0, 16),
            (5,   0,  0, 1, false, 0, 0),
            (5,   0,  0, 3, true,  1, 0),
            (5,   0,  1, 3, true,  0, 0),
            (5,   0,  4, 3, true,  0, 0),
            (0,   1,  0, 3, false, 0, 1),
        ];
        for (wanted, ready, making, failures, may_try, added, removed) in cases {
            let stock = Stock { wanted, ready, making, failures, may_try, ..Stock::default() };
            assert_eq!((stock.to_add(), stock.to_remove()), (added, removed), "{stock:?}");
        }
    }

    #[test]
    fn what_is_not_gone_yet_counts() {
        for (wanted, ready, making, removing, added, is_held) in [
            (4, 1, 0, 3, 3, false),
            (4, 0, 0, 7, 1, false),
            (4, 0, 0, 8, 0, true),
            (4, 0, 1, 8, 0, true),
            (4, 4, 0, 9, 0, false),
            (1, 0, 0, 1, 1, false),
            (0, 0, 0, 5, 0, false),
        ] {
            let stock = Stock { wanted, ready, making, removing, may_try: true, ..Stock::default() };
            assert_eq!((stock.to_add(), stock.is_held()), (added, is_held), "{stock:?}");
        }
    }
}
