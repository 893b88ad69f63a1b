//! Requests that wait for a task to end: one list for the process.
//!
//! A waiter holds no database connection. One thread learns for all which tasks have ended: from
//! notifications where the connection passes them on, and by asking twice a second, which alone
//! suffices.
//!
//! Invariants
//! - A task is on the list before it is committed, so its end cannot be missed.
//! - The list is bounded; who finds it full does not wait.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::event::Event;
use crate::store::{Listener, Store, StoreError, TaskState};

/// Requests that may wait at once.
const WAITERS_MAX: usize = 256;
/// How often the database is asked.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How long to do without notifications before connecting for them again.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(5);

/// The list.
#[derive(Default)]
pub(super) struct Waiters {
    /// Tasks waited for, with how many wait and how the task ended.
    tasks: Mutex<List>,
    /// Signalled when a task has ended or the process is to.
    changed: Condvar,
}

/// What the list holds.
#[derive(Default)]
struct List {
    /// By the task's id.
    entries: HashMap<String, Entry>,
    /// All waiters.
    waiters: usize,
    /// Nobody shall wait any more.
    stopping: bool,
}

/// One task on the list.
#[derive(Default)]
struct Entry {
    /// Requests that wait for it.
    waiters: usize,
    /// How it ended.
    ended: Option<TaskState>,
}

/// A place on the list, given up when dropped.
pub(super) struct Ticket<'a> {
    /// The list.
    waiters: &'a Waiters,
    /// The task.
    task: String,
}

impl Waiters {
    /// Takes a place for `task`; `None` when there is none.
    pub(super) fn enter(&self, task: &str) -> Option<Ticket<'_>> {
        let mut list = self.list();
        if list.stopping || list.waiters >= WAITERS_MAX {
            return None;
        }
        list.waiters += 1;
        list.entries.entry(task.to_owned()).or_default().waiters += 1;
        Some(Ticket { waiters: self, task: task.to_owned() })
    }

    /// Sends everyone away, now and from now on.
    pub(super) fn stop(&self) {
        self.list().stopping = true;
        self.changed.notify_all();
    }

    /// Learns which tasks have ended, until the process is to end.
    pub(super) fn watch(&self, store: &Store, stop: &Event) {
        let mut listener: Option<Listener> = None;
        let (mut retry_at, mut asked_at) = (Instant::now(), Instant::now());
        while !stop.is_set() {
            if listener.is_none() && Instant::now() >= retry_at {
                listener = store
                    .listen(Listener::ENDED)
                    .inspect_err(|err| log::warn!("no notifications, polling only: cause={err}"))
                    .ok();
                retry_at = Instant::now() + RECONNECT_INTERVAL;
            }
            let told = match &mut listener {
                Some(open) => open.wait(POLL_INTERVAL),
                None => {
                    stop.wait(POLL_INTERVAL);
                    Ok(Vec::new())
                }
            };
            match told {
                Ok(tasks) if asked_at.elapsed() >= POLL_INTERVAL || self.wants_any(&tasks) => {
                    self.ask(store);
                    asked_at = Instant::now();
                }
                Ok(_) => {}
                Err(err) => {
                    log::warn!("connection for notifications was lost: cause={err}");
                    listener = None;
                }
            }
        }
    }

    /// Whether somebody waits for one of these.
    fn wants_any(&self, tasks: &[String]) -> bool {
        let list = self.list();
        tasks.iter().any(|it| list.entries.contains_key(it))
    }

    /// Asks the database once for all waiters.
    fn ask(&self, store: &Store) {
        let open: Vec<String> = {
            let list = self.list();
            list.entries.iter().filter(|(_, it)| it.ended.is_none()).map(|(task, _)| task.clone()).collect()
        };
        if open.is_empty() {
            return;
        }
        match store.ended_tasks(open) {
            Ok(ended) => self.tell(ended),
            Err(err @ (StoreError::Busy | StoreError::Silent)) => {
                log::warn!("waiters not served: cause={err}")
            }
            Err(err) => log::debug!("waiters not served: cause={err}"),
        }
    }

    /// Notes how tasks ended and wakes who waits.
    fn tell(&self, ended: Vec<(String, TaskState)>) {
        let mut list = self.list();
        for (task, state) in ended {
            if let Some(entry) = list.entries.get_mut(&task) {
                entry.ended = Some(state);
            }
        }
        self.changed.notify_all();
    }

    /// The list. A panic elsewhere cannot leave it half changed.
    fn list(&self) -> MutexGuard<'_, List> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket<'_> {
    /// Waits for the task to end; `None` when it did not within `limit`, or the process is to end.
    pub(super) fn wait(&self, limit: Duration) -> Option<TaskState> {
        let deadline = Instant::now() + limit;
        let mut list = self.waiters.list();
        loop {
            let ended = list.entries.get(&self.task).and_then(|it| it.ended);
            let left = deadline.saturating_duration_since(Instant::now());
            if ended.is_some() || list.stopping || left.is_zero() {
                return ended;
            }
            list = self.waiters.changed.wait_timeout(list, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut list = self.waiters.list();
        list.waiters -= 1;
        if let Some(entry) = list.entries.get_mut(&self.task) {
            entry.waiters -= 1;
            if entry.waiters == 0 {
                list.entries.remove(&self.task);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiter_is_woken_by_the_end_of_its_task_only() {
        let waiters = Waiters::default();
        let ticket = waiters.enter("mine").unwrap();
        waiters.tell(vec![("other".into(), TaskState::Finished)]);
        assert_eq!(ticket.wait(Duration::ZERO), None);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| ticket.wait(Duration::from_secs(10)));
            waiters.tell(vec![("mine".into(), TaskState::Failed)]);
            assert_eq!(waiting.join().unwrap(), Some(TaskState::Failed));
        });
    }

    #[test]
    fn the_list_is_bounded_and_empties_itself() {
        let waiters = Waiters::default();
        let tickets: Vec<_> = (0..WAITERS_MAX).map(|it| waiters.enter(&it.to_string()).unwrap()).collect();
        assert!(waiters.enter("one more").is_none());
        drop(tickets);
        assert!(waiters.enter("one more").is_some());
        assert!(waiters.list().entries.is_empty());
    }

    #[test]
    fn stopping_sends_everyone_away() {
        let waiters = Waiters::default();
        let ticket = waiters.enter("task").unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| ticket.wait(Duration::from_secs(60)));
            waiters.stop();
            assert_eq!(waiting.join().unwrap(), None);
        });
        assert!(waiters.enter("task").is_none());
    }
}
