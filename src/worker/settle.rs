//! How the end of a run is written down.
//!
//! Invariants
//! - A run is settled in one transaction under its claim: the task, the instance, and the task
//!   that follows, or nothing.
//! - The instance's status at that moment decides: a delete that came meanwhile has the last word.

use std::time::{Duration, Instant};

use super::stock;
use super::upkeep::enqueue_tags;
use crate::random;
use crate::steps::{Ending, key_removal, sweep, unasked};
use crate::store::{Claim, InstanceStatus, LeaseState, NewTask, StoreError, TaskKind, Transaction};

/// When the name of a removed instance is looked at once more.
const SWEEP_DELAY: Duration = Duration::from_secs(300);
/// When keys are looked for that an earlier run may have made without hearing of it: IAM shows them everywhere by then,
/// and a call that was under way has come through.
const UNKNOWN_KEYS_DELAY: Duration = Duration::from_secs(60);

/// What becomes of a task after a run.
#[derive(Debug, Clone)]
pub(super) enum Next {
    /// It is done.
    End(Ending),
    /// It runs again; the attempt counts.
    Retry {
        /// After that.
        delay: Duration,
        /// For the platform.
        public: String,
        /// For the log.
        cause: String,
    },
    /// It runs again; the attempt does not count.
    Snooze {
        /// After that.
        delay: Duration,
        /// For the platform.
        public: String,
    },
    /// It is given up.
    GiveUp {
        /// For the platform.
        public: String,
        /// For the log.
        cause: String,
    },
    /// A delete has stopped it.
    Stopped,
    /// It is not ours any more.
    Nothing,
}

impl Next {
    /// Writes it; the claim is held meanwhile.
    pub(super) fn write(
        self,
        tx: &mut Transaction<'_>,
        claim: &Claim,
        state: LeaseState,
    ) -> Result<(), StoreError> {
        match self {
            // A delete has come since the last look; nothing of this task may happen after it.
            Next::Retry { .. } | Next::Snooze { .. } | Next::GiveUp { .. }
                if state == LeaseState::Cancelled =>
            {
                tx.fail_task(claim, "stopped by delete")
            }
            Next::End(ending) => write_ending(tx, claim, ending),
            Next::Retry { delay, public, .. } => tx.retry_task(claim, delay, &public),
            Next::Snooze { delay, public } => tx.snooze_task(claim, delay, &public),
            Next::GiveUp { public, .. } => give_up(tx, claim, &public),
            Next::Stopped => tx.fail_task(claim, "stopped by delete"),
            Next::Nothing => Ok(()),
        }
    }
}

/// Writes the end of a task that did its work.
fn write_ending(tx: &mut Transaction<'_>, claim: &Claim, ending: Ending) -> Result<(), StoreError> {
    let instance = tx.find_any_instance(&claim.instance)?;
    let status = instance.as_ref().map(|it| it.status);
    let is_gone = instance.as_ref().is_some_and(|it| it.deleted);
    let of_stock = instance.filter(|it| !it.claimed);
    match ending {
        // A delete came after the last look: it finds what was made.
        Ending::Available(_) if status != Some(InstanceStatus::Provisioning) => {
            tx.fail_task(claim, "stopped by delete")
        }
        Ending::Available(bucket) => {
            tx.mark_available(&claim.instance, &bucket)?;
            if let Some(made) = of_stock {
                tx.forget_stock_failures(&made.provisioned.plan)?;
            }
            tx.finish_task(claim, "available")?;
            look_for_unknown_keys(tx, claim)
        }
        Ending::Removed { name } => {
            // One that failed stays to be seen as failed until the platform deletes it, if it has one.
            // One that was deleted before has lost its key, and must not look as if it had failed.
            let is_seen = of_stock.is_none() && !is_gone && status == Some(InstanceStatus::Failed);
            tx.wipe_instance(&claim.instance, !is_seen)?;
            tx.finish_task(claim, "deleted")?;
            if name.is_empty() { Ok(()) } else { tx.enqueue(&sweep(&claim.instance, name, SWEEP_DELAY)?) }
        }
        Ending::Swept => tx.finish_task(claim, "nothing was left"),
        Ending::KeyRemoved { key } => {
            tx.forget_previous_key(&claim.instance, Some(&key))?;
            tx.finish_task(claim, "the previous access key was removed")
        }
        Ending::KeysKnown => tx.finish_task(claim, "no unknown access key is left"),
        Ending::Tagged => tx.finish_task(claim, "tagged"),
        Ending::Resynced => {
            tx.finish_task(claim, "in line with AWS")?;
            enqueue_tags(tx, &claim.instance, Duration::ZERO)
        }
        // A delete came after the last look.
        Ending::Rotated { .. } | Ending::PlanChanged { .. } | Ending::PlanKept { .. }
            if !matches!(status, Some(InstanceStatus::Available | InstanceStatus::Modifying)) =>
        {
            tx.fail_task(claim, "stopped by delete")
        }
        Ending::Rotated { grace } => {
            let user = tx.find_instance(&claim.instance)?.map(|it| it.name).unwrap_or_default();
            if let Some(previous) = tx.advance_key(&claim.instance, grace)? {
                tx.enqueue(&key_removal(&claim.instance, user, previous, grace)?)?;
            }
            tx.finish_task(claim, "rotated")?;
            look_for_unknown_keys(tx, claim)
        }
        Ending::PlanChanged { plan } => {
            tx.change_plan(&claim.instance, &plan)?;
            tx.finish_task(claim, "the plan was changed")
        }
        Ending::PlanKept { reason } => {
            tx.set_status(&claim.instance, InstanceStatus::Available)?;
            tx.fail_task(claim, &reason)
        }
        Ending::Told => tx.finish_task(claim, "delivered"),
        Ending::Sound(_) | Ending::Unsound { .. }
            if of_stock.is_none() || status != Some(InstanceStatus::Available) =>
        {
            tx.finish_task(claim, "not in stock any more")
        }
        Ending::Sound(bucket) => {
            tx.finish_task(claim, "can be handed out")?;
            let placed = tx.place_instance(&claim.instance, &bucket)?;
            if placed { enqueue_tags(tx, &claim.instance, Duration::ZERO) } else { Ok(()) }
        }
        Ending::Unsound { reason } => stock::replace(tx, claim, &reason),
        Ending::NotStock => tx.finish_task(claim, "not in stock any more"),
    }
}

/// A task that makes a key, and did not do so in its first run, may have made another.
fn look_for_unknown_keys(tx: &mut Transaction<'_>, claim: &Claim) -> Result<(), StoreError> {
    if claim.attempt > 1 { enqueue_unknown_keys(tx, &claim.instance) } else { Ok(()) }
}

/// A look, later, for keys that the instance's row does not name.
fn enqueue_unknown_keys(tx: &mut Transaction<'_>, instance: &str) -> Result<(), StoreError> {
    let removal = stock::task(instance, TaskKind::RemoveUnknownKeys)?;
    tx.enqueue(&NewTask { delay: UNKNOWN_KEYS_DELAY, ..removal })
}

/// Writes the end of a task that is given up. A provision fails at once for the platform; what
/// there is of it, or of a rotation, is removed by a task that nobody has to ask for.
fn give_up(tx: &mut Transaction<'_>, claim: &Claim, public: &str) -> Result<(), StoreError> {
    tx.fail_task(claim, public)?;
    let instance = tx.find_any_instance(&claim.instance)?;
    if claim.kind == TaskKind::RotateCredentials && instance.as_ref().is_some_and(|it| !it.deleted) {
        tx.save_next_key(&claim.instance, None)?;
        return enqueue_unknown_keys(tx, &claim.instance);
    }
    let status = instance.as_ref().map(|it| it.status);
    if claim.kind == TaskKind::ChangePlans && status == Some(InstanceStatus::Modifying) {
        return tx.set_status(&claim.instance, InstanceStatus::Available);
    }
    let provisioning = instance.filter(|it| it.status == InstanceStatus::Provisioning);
    let Some(instance) = provisioning.filter(|_| claim.kind == TaskKind::Provision) else {
        return Ok(());
    };
    if !instance.claimed {
        stock::count_failure(tx, &instance)?;
    }
    tx.set_status(&claim.instance, InstanceStatus::Failed)?;
    tx.enqueue(&NewTask {
        task: random::uuid().map_err(|_| StoreError::Unreadable("random bytes"))?,
        instance: claim.instance.clone(),
        kind: TaskKind::Delete,
        metadata: unasked(),
        delay: Duration::ZERO,
    })
}

/// One line for each run.
pub(super) fn log_outcome(claim: &Claim, next: &Next, began: Instant) {
    let (kind, took_ms) = (claim.kind.as_str(), began.elapsed().as_millis());
    let of =
        format!("task={} kind={kind} instance={:?} attempt={}", claim.task, claim.instance, claim.attempt);
    match next {
        Next::End(Ending::Sound(_)) => log::debug!("task finished: {of} took_ms={took_ms}"),
        Next::End(_) => log::info!("task finished: {of} took_ms={took_ms}"),
        Next::Retry { delay, cause, .. } => {
            log::warn!("task will be retried: {of} next_in_s={:.1} cause={cause}", delay.as_secs_f64());
        }
        Next::Snooze { delay, public } => {
            log::debug!("task waits: {of} next_in_s={:.1} reason={public}", delay.as_secs_f64());
        }
        Next::GiveUp { cause, .. } => log::error!("task given up: {of} cause={cause}"),
        Next::Stopped => log::info!("task stopped by delete: {of}"),
        Next::Nothing => log::warn!("task lost to another worker: {of} took_ms={took_ms}"),
    }
}
