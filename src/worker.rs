//! The workshop: claim a task, run it, settle it; again.
//!
//! Not here: what a task does (`steps`), how claims are fenced (`store::tasks`).
//!
//! Invariants
//! - A call to AWS begins only while the lease has so much left that the call ends before it.
//! - A lease is renewed while its task makes progress, and by nobody but this process.
//! - A panic in a task counts as a failed attempt.
//! - A delete never gives up.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::aws::{Aws, Permit};
use crate::event::Event;
use crate::random;
use crate::steps::{self, Ending, Notes, StepError, Verdict, Work};
use crate::store::{
    Claim, InstanceStatus, LeaseState, Listener, NewTask, Store, StoreError, TaskKind, Transaction,
};

/// How often a worker with nothing to do looks for a task.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How long to do without notifications before connecting for them again.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(5);
/// A task that makes no AWS call for so long loses its lease.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(600);
/// When the name of a removed instance is looked at once more.
const SWEEP_DELAY: Duration = Duration::from_secs(300);
/// How often settling is tried while the database is away.
const SETTLE_TRIES: u32 = 5;
/// Parts of a lease: it is renewed after one of them, and a call takes one at most.
const LEASE_PARTS: u32 = 4;

/// When to run a failed task again. Attempts count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RetryPolicy {
    /// The pause after the first attempt; it doubles with each.
    delay_s_first: u32,
    /// The longest pause.
    delay_s_max: u32,
    /// Attempts in all.
    attempts_max: u32,
}

impl RetryPolicy {
    /// All policies on one screen.
    #[rustfmt::skip]
    const fn of(kind: &TaskKind) -> RetryPolicy {
        match kind {
            // its deadline ends it before the attempts do, unless it fails at once again and again
            TaskKind::Provision  => RetryPolicy { delay_s_first: 1,  delay_s_max: 60,    attempts_max: 30 },
            // nobody asks again: the platform has forgotten the instance
            TaskKind::Delete     => RetryPolicy { delay_s_first: 2,  delay_s_max: 3_600, attempts_max: u32::MAX },
            TaskKind::Sweep      => RetryPolicy { delay_s_first: 10, delay_s_max: 3_600, attempts_max: u32::MAX },
            TaskKind::Unknown(_) => RetryPolicy { delay_s_first: 1,  delay_s_max: 1,     attempts_max: 1 },
        }
    }

    /// The pause after failed attempt `attempt`, doubling up to the cap; `None`: give up.
    fn delay_after(self, attempt: u32) -> Option<Duration> {
        if attempt >= self.attempts_max {
            return None;
        }
        let doubled = self
            .delay_s_first
            .saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1)));
        Some(Duration::from_secs(doubled.min(self.delay_s_max).into()))
    }
}

/// Takes a random part, a quarter at most, off a pause, so that many do not come back together.
fn spread(pause: Duration) -> Duration {
    let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(pause_ms - random::below(pause_ms / 4))
}

/// How long one AWS call may take with all its retries, for a lease of that length.
pub(crate) fn call_deadline(lease: Duration) -> Duration {
    lease / LEASE_PARTS
}

/// The running workshop.
pub(crate) struct Worker {
    /// One thread for each task at once, one that keeps leases, one that listens.
    threads: Vec<JoinHandle<()>>,
}

/// How much at once, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Tasks at once.
    pub(crate) threads: usize,
    /// How long a claim holds.
    pub(crate) lease: Duration,
}

/// What all threads share.
struct Shop {
    /// The database.
    store: Store,
    /// AWS.
    aws: Aws,
    /// What the steps need to know.
    settings: steps::Settings,
    /// How long a claim holds.
    lease: Duration,
    /// The database has its tables.
    ready: Arc<Event>,
    /// The word to end.
    stop: Arc<Event>,
    /// Who we are, in front of a thread's number.
    name: String,
    /// The tasks that run now.
    leases: Mutex<HashMap<String, Arc<Lease>>>,
    /// Counts calls to look for a task.
    calls: Mutex<u64>,
    /// Signalled with each.
    called: Condvar,
}

/// Our hold on a task, as seen by our own clock.
struct Lease {
    /// The task.
    claim: Claim,
    /// The database.
    store: Store,
    /// The word to end.
    stop: Arc<Event>,
    /// What must be left for a call to begin.
    margin: Duration,
    /// Until when it holds, and since when nothing happened.
    clock: Mutex<Clock>,
    /// Another worker has the task, or may have it.
    lost: AtomicBool,
    /// The work is not wanted any more.
    cancelled: AtomicBool,
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

    /// Prolongs the lease, unless the task has stopped making progress.
    fn renew(&self, lease: Duration) {
        if self.is_over() || self.clock().progressed.elapsed() > PROGRESS_TIMEOUT {
            return;
        }
        let asked = Instant::now();
        if self.note(self.store.renew_lease(&self.claim, lease)) {
            self.clock().ends = asked + lease;
        }
    }

    /// The moments. A panic elsewhere cannot leave them half changed.
    fn clock(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    /// Starts the threads that work, and those that help them.
    ///
    /// # Errors
    /// A thread could not be started, or there is no randomness for a name.
    pub(crate) fn start(
        store: Store,
        aws: Aws,
        settings: steps::Settings,
        limits: Limits,
        ready: &Arc<Event>,
        stop: &Arc<Event>,
    ) -> Result<Worker, String> {
        let shop = Arc::new(Shop {
            store,
            aws,
            settings,
            lease: limits.lease,
            ready: Arc::clone(ready),
            stop: Arc::clone(stop),
            name: random::hex16().map_err(|err| err.to_string())?,
            leases: Mutex::default(),
            calls: Mutex::default(),
            called: Condvar::new(),
        });
        if shop.aws.s3_is_plain_http() {
            log::warn!("the S3 endpoint is plain HTTP: buckets get no policy that demands TLS");
        }
        let mut worker = Worker { threads: Vec::new() };
        for number in 0..limits.threads {
            worker.spawn(format!("worker-{number}"), &shop, move |shop| shop.work(number))?;
        }
        worker.spawn("leases".to_owned(), &shop, Shop::keep_leases)?;
        worker.spawn("due".to_owned(), &shop, Shop::listen)?;
        Ok(worker)
    }

    /// Starts one thread.
    fn spawn(
        &mut self,
        name: String,
        shop: &Arc<Shop>,
        run: impl FnOnce(&Shop) + Send + 'static,
    ) -> Result<(), String> {
        let shop = Arc::clone(shop);
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || run(&shop));
        self.threads
            .push(thread.map_err(|err| format!("no thread for {name}: {err}"))?);
        Ok(())
    }

    /// Waits until all tasks were given back, after the process was told to end.
    pub(crate) fn finish(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                log::error!("a thread of the worker panicked");
            }
        }
    }
}

impl Shop {
    /// One thread's life: drain the queue, wait to be called, look again.
    fn work(&self, number: usize) {
        let name = format!("{}-{number}", self.name);
        while !self.stop.is_set() && !self.ready.wait(POLL_INTERVAL) {}
        while !self.stop.is_set() {
            let calls = *self.calls();
            let asked = Instant::now();
            match self.store.claim_task(&name, self.lease) {
                Ok(Some(claim)) => self.run(claim, asked + self.lease),
                Ok(None) => self.wait_for_call(calls),
                Err(err) => {
                    log::warn!("no task claimed: cause={err}");
                    self.stop.wait(spread(POLL_INTERVAL));
                }
            }
        }
    }

    /// Runs a claimed task and settles it.
    fn run(&self, claim: Claim, ends: Instant) {
        let began = Instant::now();
        let lease = Arc::new(Lease {
            claim: claim.clone(),
            store: self.store.clone(),
            stop: Arc::clone(&self.stop),
            margin: self.lease / 3,
            clock: Mutex::new(Clock {
                ends,
                progressed: began,
            }),
            lost: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
        });
        self.leases().insert(claim.task.clone(), Arc::clone(&lease));
        let work = Work {
            store: &self.store,
            aws: &self.aws,
            settings: &self.settings,
            claim: &claim,
            permit: lease.as_ref(),
        };
        let result = catch_unwind(AssertUnwindSafe(|| steps::run(&work)));
        let result =
            result.unwrap_or_else(|_| Err(StepError::Stuck("the broker failed while it worked".to_owned())));
        self.settle(&lease, result, began);
        self.leases().remove(&claim.task);
    }

    /// Writes down how a run went. While the database is away it is tried again for a while; after
    /// that the lease runs out and somebody runs the task again.
    fn settle(&self, lease: &Lease, result: Result<Ending, StepError>, began: Instant) {
        let claim = &lease.claim;
        let next = self.decide(lease, result);
        log_outcome(claim, &next, began);
        for attempt in 1..=SETTLE_TRIES {
            let (next, of) = (next.clone(), claim.clone());
            match self.store.fenced(claim, move |tx| next.write(tx, &of)) {
                Ok(()) => return,
                Err(StoreError::LeaseLost) => {
                    return log::warn!("task not settled, another worker has it: task={}", claim.task);
                }
                Err(err) => log::warn!(
                    "task not settled: task={} attempt={attempt} cause={err}",
                    claim.task
                ),
            }
            self.stop.wait(spread(POLL_INTERVAL));
        }
    }

    /// What is to be written after a run.
    fn decide(&self, lease: &Lease, result: Result<Ending, StepError>) -> Next {
        let claim = &lease.claim;
        let err = match result {
            Ok(ending) => return Next::End(ending),
            Err(err) => err,
        };
        let (public, cause) = (err.public(), err.to_string());
        let retry = || match RetryPolicy::of(&claim.kind).delay_after(claim.attempt) {
            Some(delay) => Next::Retry {
                delay: spread(delay),
                public: public.clone(),
                cause: cause.clone(),
            },
            None => Next::GiveUp {
                public: public.clone(),
                cause: cause.clone(),
            },
        };
        match err.verdict() {
            Verdict::Halted if lease.lost.load(Ordering::Relaxed) => Next::Nothing,
            Verdict::Halted if lease.cancelled.load(Ordering::Relaxed) => Next::Stopped,
            Verdict::Halted if self.stop.is_set() => Next::Snooze {
                delay: Duration::ZERO,
                public: "waits for another worker".to_owned(),
            },
            Verdict::Halted | Verdict::Retry => retry(),
            Verdict::Snooze(delay) => Next::Snooze { delay, public },
            Verdict::GiveUp if RetryPolicy::of(&claim.kind).attempts_max == u32::MAX => retry(),
            Verdict::GiveUp => Next::GiveUp { public, cause },
        }
    }

    /// Renews the leases of the tasks that run, until all have ended.
    fn keep_leases(&self) {
        let interval = self.lease / LEASE_PARTS;
        loop {
            let stopping = self.stop.wait(interval);
            let held: Vec<Arc<Lease>> = self.leases().values().cloned().collect();
            if stopping {
                return; // what still runs ends at its next call
            }
            for lease in held {
                lease.renew(self.lease);
            }
        }
    }

    /// Calls the workers when a task becomes due.
    fn listen(&self) {
        while !self.stop.is_set() {
            let broken = self.store.listen(Listener::DUE).and_then(|mut listener| {
                while !self.stop.is_set() {
                    if !listener.wait(Duration::from_millis(500))?.is_empty() {
                        *self.calls() += 1;
                        self.called.notify_all();
                    }
                }
                Ok(())
            });
            if let Err(err) = broken {
                log::warn!("no notifications, polling only: cause={err}");
                self.stop.wait(RECONNECT_INTERVAL);
            }
        }
    }

    /// Waits until there was a call after the first `before`, or it is time to look anyway.
    fn wait_for_call(&self, before: u64) {
        let calls = self.calls();
        if *calls == before {
            let waited = self.called.wait_timeout(calls, spread(POLL_INTERVAL));
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// The tasks that run now. A panic elsewhere cannot leave them half changed.
    fn leases(&self) -> MutexGuard<'_, HashMap<String, Arc<Lease>>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of calls so far.
    fn calls(&self) -> MutexGuard<'_, u64> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What becomes of a task after a run.
#[derive(Debug, Clone)]
enum Next {
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
    fn write(self, tx: &mut Transaction<'_>, claim: &Claim) -> Result<(), StoreError> {
        match self {
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
    let status = tx.find_instance(&claim.instance)?.map(|it| it.status);
    match ending {
        // A delete came after the last look: it finds what was made.
        Ending::Available(_) if status != Some(InstanceStatus::Provisioning) => {
            tx.fail_task(claim, "stopped by delete")
        }
        Ending::Available(bucket) => {
            tx.mark_available(&claim.instance, &bucket)?;
            tx.finish_task(claim, "available")
        }
        Ending::Removed { name } => {
            // One that failed stays to be seen as failed until the platform deletes it.
            tx.wipe_instance(&claim.instance, status != Some(InstanceStatus::Failed))?;
            tx.finish_task(claim, "deleted")?;
            tx.enqueue(&NewTask {
                task: random::uuid().map_err(|_| StoreError::Unreadable("random bytes"))?,
                instance: claim.instance.clone(),
                kind: TaskKind::Sweep,
                metadata: Notes::of_sweep(name).to_json(),
                delay: SWEEP_DELAY,
            })
        }
        Ending::Swept => tx.finish_task(claim, "nothing was left"),
    }
}

/// Writes the end of a task that is given up. A provision fails at once for the platform; what
/// there is of it is removed by a delete that nobody has to ask for.
fn give_up(tx: &mut Transaction<'_>, claim: &Claim, public: &str) -> Result<(), StoreError> {
    tx.fail_task(claim, public)?;
    let instance = tx.find_instance(&claim.instance)?;
    let provisioning = instance.is_some_and(|it| it.status == InstanceStatus::Provisioning);
    if claim.kind != TaskKind::Provision || !provisioning {
        return Ok(());
    }
    tx.set_status(&claim.instance, InstanceStatus::Failed)?;
    tx.enqueue(&NewTask {
        task: random::uuid().map_err(|_| StoreError::Unreadable("random bytes"))?,
        instance: claim.instance.clone(),
        kind: TaskKind::Delete,
        metadata: "{}".to_owned(),
        delay: Duration::ZERO,
    })
}

/// One line for each run.
fn log_outcome(claim: &Claim, next: &Next, began: Instant) {
    let (kind, took_ms) = (claim.kind.as_str(), began.elapsed().as_millis());
    let of = format!(
        "task={} kind={kind} instance={:?} attempt={}",
        claim.task, claim.instance, claim.attempt
    );
    match next {
        Next::End(_) => log::info!("task finished: {of} took_ms={took_ms}"),
        Next::Retry { delay, cause, .. } => {
            log::warn!(
                "task will be retried: {of} next_in_s={:.1} cause={cause}",
                delay.as_secs_f64()
            );
        }
        Next::Snooze { delay, public } => {
            log::debug!(
                "task waits: {of} next_in_s={:.1} reason={public}",
                delay.as_secs_f64()
            );
        }
        Next::GiveUp { cause, .. } => log::error!("task given up: {of} cause={cause}"),
        Next::Stopped => log::info!("task stopped by delete: {of}"),
        Next::Nothing => log::warn!("task lost to another worker: {of} took_ms={took_ms}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_cap() {
        let policy = RetryPolicy {
            delay_s_first: 2,
            delay_s_max: 60,
            attempts_max: 8,
        };
        let delays: Vec<_> = (1..=8)
            .map(|it| policy.delay_after(it).map(|it| it.as_secs()))
            .collect();
        let expected = [2, 4, 8, 16, 32, 60, 60].map(Some);
        assert_eq!((&delays[..7], delays[7]), (&expected[..], None));
    }

    #[test]
    fn deletes_never_give_up() {
        for kind in [TaskKind::Delete, TaskKind::Sweep] {
            let delay = RetryPolicy::of(&kind).delay_after(u32::MAX - 1);
            assert_eq!(delay, Some(Duration::from_secs(3_600)), "{kind:?}");
        }
        assert_eq!(
            RetryPolicy::of(&TaskKind::Unknown("x".into())).delay_after(1),
            None
        );
    }

    #[test]
    fn spread_takes_a_quarter_off_at_most() {
        for _ in 0..100 {
            let pause = spread(Duration::from_secs(8));
            assert!(
                (Duration::from_secs(6)..=Duration::from_secs(8)).contains(&pause),
                "{pause:?}"
            );
        }
        assert_eq!(spread(Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn a_call_ends_before_the_lease_that_it_began_under() {
        let lease = Duration::from_secs(60);
        assert!(call_deadline(lease) < lease / 3);
    }
}
