//! Something that happens once in a process, and that threads wait for: the word to end, the
//! database being ready.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Happens once, noticed by all.
#[derive(Default)]
pub(crate) struct Event {
    /// Whether it has happened.
    happened: Mutex<bool>,
    /// Signalled when it does.
    noticed: Condvar,
}

impl Event {
    /// Makes it happen.
    pub(crate) fn set(&self) {
        *self.happened.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.noticed.notify_all();
    }

    /// Whether it has happened.
    pub(crate) fn is_set(&self) -> bool {
        *self.happened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it happens, `limit` at most; true when it has.
    pub(crate) fn wait(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut happened = self.happened.lock().unwrap_or_else(PoisonError::into_inner);
        while !*happened {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            happened = self.noticed.wait_timeout(happened, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *happened
    }
}
