//! A worker's hold on a task, and the permission to call AWS that comes with it.
//!
//! Invariants
//! - A call begins only while the lease has so much left that the call ends before it.
//! - Once lost or cancelled, always so.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::aws::Permit;
use crate::event::Event;
use crate::store::{Claim, LeaseState, Store, StoreError};

/// A task that makes no AWS call for so long loses its lease.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(600);

/// Our hold on a task, as seen by our own clock.
pub(super) struct Lease {
    /// The task.
    pub(super) claim: Claim,
    /// The database.
    store: Store,
    /// The word to end.
    stop: Arc<Event>,
    /// What must be left for a call to begin.
    margin: Duration,
    /// Until when it holds, and since when nothing happened.
    clock: Mutex<Clock>,
    /// Another worker has the task, or may have it.
    pub(super) lost: AtomicBool,
    /// The work is not wanted any more.
    pub(super) cancelled: AtomicBool,
}

/// The moments of a [`Lease`].
struct Clock {
    /// When it ends, counted from before the claim was sent.
    ends: Instant,
    /// When a call was last let through.
    progressed: Instant,
}

impl Permit for Lease {
    fn may_call(&self, operation: &'static str) -> bool {
        if self.stop.is_set() || self.is_over() {
            return false;
        }
        let left = self.clock().ends.saturating_duration_since(Instant::now());
        if left < self.margin {
            log::warn!(
                "call not begun, the lease ends too soon: task={} operation={operation}",
                self.claim.task
            );
            return false;
        }
        if self.note(self.store.look_at_claim(&self.claim)) {
            self.clock().progressed = Instant::now();
        }
        !self.is_over()
    }
}

impl Lease {
    /// The hold on a task that was just claimed, for a lease that ends at `ends`.
    pub(super) fn new(
        claim: Claim,
        store: Store,
        stop: Arc<Event>,
        margin: Duration,
        ends: Instant,
    ) -> Lease {
        Lease {
            claim,
            store,
            stop,
            margin,
            clock: Mutex::new(Clock { ends, progressed: Instant::now() }),
            lost: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
        }
    }

    /// Whether the task is not ours to work on any more.
    fn is_over(&self) -> bool {
        self.lost.load(Ordering::Relaxed) || self.cancelled.load(Ordering::Relaxed)
    }

    /// Takes in what the database says of the claim; true when it is held. Without an answer the
    /// task goes on only as long as the lease does.
    fn note(&self, state: Result<LeaseState, StoreError>) -> bool {
        match state {
            Ok(LeaseState::Held) => return true,
            Ok(LeaseState::Cancelled) => self.cancelled.store(true, Ordering::Relaxed),
            Err(StoreError::LeaseLost) => self.lost.store(true, Ordering::Relaxed),
            Err(err) => log::warn!("claim not confirmed: task={} cause={err}", self.claim.task),
        }
        false
    }

    /// Whether it is to be prolonged: not once the task has stopped making progress.
    fn is_alive(&self) -> bool {
        !self.is_over() && self.clock().progressed.elapsed() <= PROGRESS_TIMEOUT
    }

    /// The moments. A panic elsewhere cannot leave them half changed.
    fn clock(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Prolongs all these leases that are alive, in one statement: one after the other, the last would run out while a slow
/// database keeps the first ones waiting.
pub(super) fn renew(store: &Store, held: &[Arc<Lease>], lease: Duration) {
    let alive: Vec<&Arc<Lease>> = held.iter().filter(|it| it.is_alive()).collect();
    if alive.is_empty() {
        return;
    }
    let claims = alive.iter().map(|it| it.claim.clone()).collect();
    let asked = Instant::now();
    let renewed = match store.renew_leases(claims, lease) {
        Ok(renewed) => renewed,
        Err(err) => return log::warn!("leases not renewed: tasks={} cause={err}", alive.len()),
    };
    for held in alive {
        match renewed.iter().find(|(task, _)| *task == held.claim.task) {
            Some((_, state)) => {
                if held.note(Ok(*state)) {
                    held.clock().ends = asked + lease;
                }
            }
            // Somebody else has it, or writes its row at this moment.
            None => {
                log::debug!("lease not renewed at once, its claim is looked at: task={}", held.claim.task);
                held.note(store.look_at_claim(&held.claim));
            }
        }
    }
}
