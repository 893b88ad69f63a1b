//! The workshop: claim a task, run it, settle it; again.
//!
//! Not here: what a task does (`steps`), how claims are fenced (`store::tasks`).
//!
//! Invariants
//! - A call to AWS begins only while the lease has so much left that the call ends before it.
//! - A lease is renewed while its task makes progress, and by nobody but this process.
//! - A panic in a task counts as a failed attempt.
//! - A delete never gives up.

mod lease;
mod measure;
mod notify;
mod retry;
mod settle;
mod stock;
mod upkeep;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::aws::{Aws, Observer, Permit};
use crate::event::Event;
use crate::metrics::Metrics;
use crate::random;
use crate::steps::{self, Ending, StepError, Verdict, Work};
use crate::store::{Claim, Lane, Listener, Store, StoreError};

pub(crate) use notify::Webhooks;

use lease::{Lease, renew};
use retry::{RetryPolicy, spread};
use settle::{Next, log_outcome};

/// How often a worker with nothing to do looks for a task.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How long to do without notifications before connecting for them again.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(5);
/// How often settling is tried while the database is away.
const SETTLE_TRIES: u32 = 5;
/// The longest that a call may take: a worker that is told to end waits for it.
const CALL_DEADLINE_MAX: Duration = Duration::from_secs(15);
/// Parts of a lease: it is renewed after one of them, and a call takes one at most.
const LEASE_PARTS: u32 = 4;

/// How long one AWS call may take with all its retries, for a lease of that length.
pub(crate) fn call_deadline(lease: Duration) -> Duration {
    (lease / LEASE_PARTS).min(CALL_DEADLINE_MAX)
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

/// What the work needs beside the database.
pub(crate) struct Outfit {
    /// AWS.
    pub(crate) aws: Aws,
    /// What the steps need to know.
    pub(crate) settings: steps::Settings,
    /// Where notices may go.
    pub(crate) webhooks: Webhooks,
}

/// What all threads share.
struct Shop {
    /// The database.
    store: Store,
    /// AWS.
    aws: Aws,
    /// What the steps need to know.
    settings: steps::Settings,
    /// What notices need.
    webhooks: Webhooks,
    /// How long a claim holds.
    lease: Duration,
    /// The database has its tables.
    ready: Arc<Event>,
    /// The word to end.
    stop: Arc<Event>,
    /// What is counted.
    metrics: Arc<Metrics>,
    /// Who we are, in front of a thread's number.
    name: String,
    /// The tasks that run now.
    leases: Mutex<Vec<Arc<Lease>>>,
    /// Counts calls to look for a task.
    calls: Mutex<u64>,
    /// Signalled with each.
    called: Condvar,
}

impl Permit for Event {
    /// For calls that belong to no task: until the process is to end.
    fn may_call(&self, _operation: &'static str) -> bool {
        !self.is_set()
    }
}

impl Worker {
    /// Starts the threads that work, and those that help them.
    ///
    /// # Errors
    /// A thread could not be started, or there is no randomness for a name.
    pub(crate) fn start(
        store: Store,
        outfit: Outfit,
        limits: Limits,
        ready: &Arc<Event>,
        stop: &Arc<Event>,
        metrics: &Arc<Metrics>,
    ) -> Result<Worker, String> {
        let Outfit { aws, settings, webhooks } = outfit;
        let shop = Arc::new(Shop {
            store,
            aws: aws.observed_by(Arc::clone(metrics) as Arc<dyn Observer>),
            metrics: Arc::clone(metrics),
            settings,
            webhooks,
            lease: limits.lease,
            ready: Arc::clone(ready),
            stop: Arc::clone(stop),
            name: random::hex16().map_err(|err| err.to_string())?,
            leases: Mutex::default(),
            calls: Mutex::default(),
            called: Condvar::new(),
        });
        measure::begin(metrics);
        if shop.aws.s3_is_plain_http() {
            log::warn!("the S3 endpoint is plain HTTP: buckets get no policy that demands TLS");
        }
        if shop.settings.kms_key_id.is_none() {
            log::info!("AWS_KMS_KEY_ID is not set: encrypted plans use the account's own key for S3");
        }
        let mut worker = Worker { threads: Vec::new() };
        for number in 0..limits.threads {
            worker.spawn(format!("worker-{number}"), &shop, move |shop| shop.work(number, Lane::Work))?;
        }
        worker.spawn_notifiers(&shop, limits.threads)?;
        worker.spawn("leases".to_owned(), &shop, Shop::keep_leases)?;
        worker.spawn("due".to_owned(), &shop, Shop::listen)?;
        worker.spawn("identity".to_owned(), &shop, Shop::introduce)?;
        worker.spawn("places".to_owned(), &shop, Shop::place_old_instances)?;
        worker.spawn("upkeep".to_owned(), &shop, Shop::keep_house)?;
        worker.spawn("stock".to_owned(), &shop, Shop::keep_stock)?;
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
        let thread = std::thread::Builder::new().name(name.clone()).spawn(move || run(&shop));
        self.threads.push(thread.map_err(|err| format!("no thread for {name}: {err}"))?);
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
    /// One thread's life: drain its lane of the queue, wait to be called, look again.
    fn work(&self, number: usize, lane: Lane) {
        let name = format!("{}-{number}", self.name);
        while !self.stop.is_set() && !self.ready.wait(POLL_INTERVAL) {}
        while !self.stop.is_set() {
            let calls = *self.calls();
            let asked = Instant::now();
            match self.store.claim_task(&name, self.lease, lane) {
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
        let margin = self.lease / 3;
        let lease = Lease::new(claim.clone(), self.store.clone(), Arc::clone(&self.stop), margin, ends);
        let lease = Arc::new(lease);
        self.leases().push(Arc::clone(&lease));
        let work = Work {
            store: &self.store,
            aws: &self.aws,
            settings: &self.settings,
            claim: &claim,
            permit: lease.as_ref(),
        };
        let result = catch_unwind(AssertUnwindSafe(|| match claim.kind.is_notice() {
            // no run before this one lived to say how it went
            _ if claim.attempt > RetryPolicy::of(&claim.kind).attempts_max => {
                Err(StepError::Stuck("its worker died each time".to_owned()))
            }
            true => self.notify(&claim.metadata, lease.as_ref()),
            false => steps::run(&work),
        }));
        let result =
            result.unwrap_or_else(|_| Err(StepError::Stuck("the broker failed while it worked".to_owned())));
        self.settle(&lease, result, began);
        self.leases().retain(|it| !Arc::ptr_eq(it, &lease)); // another thread may have the task by now
    }

    /// Writes down how a run went. While the database is away it is tried again for a while; after
    /// that the lease runs out and somebody runs the task again.
    fn settle(&self, lease: &Lease, result: Result<Ending, StepError>, began: Instant) {
        let claim = &lease.claim;
        let next = self.decide(lease, result);
        log_outcome(claim, &next, began);
        measure::count_run(&self.metrics, claim, &next, began);
        for attempt in 1..=SETTLE_TRIES {
            let (next, of) = (next.clone(), claim.clone());
            match self.store.fenced(claim, move |tx, state| next.write(tx, &of, state)) {
                Ok(()) => return,
                Err(StoreError::LeaseLost) => {
                    return log::warn!("task not settled, another worker has it: task={}", claim.task);
                }
                Err(err) => log::warn!("task not settled: task={} attempt={attempt} cause={err}", claim.task),
            }
            if self.stop.wait(spread(POLL_INTERVAL)) {
                return; // the lease runs out, and somebody runs the task again
            }
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
            Some(delay) => Next::Retry { delay: spread(delay), public: public.clone(), cause: cause.clone() },
            None => Next::GiveUp { public: public.clone(), cause: cause.clone() },
        };
        match err.verdict() {
            Verdict::Halted if lease.lost.load(Ordering::Relaxed) => Next::Nothing,
            Verdict::Halted if lease.cancelled.load(Ordering::Relaxed) => Next::Stopped,
            Verdict::Halted if self.stop.is_set() => {
                Next::Snooze { delay: Duration::ZERO, public: "waits for another worker".to_owned() }
            }
            Verdict::Halted | Verdict::Retry => retry(),
            Verdict::Snooze(delay) => Next::Snooze { delay, public },
            Verdict::GiveUp if matches!(err, StepError::Aws(_)) && retry::outlasts_refusal(&claim.kind) => {
                retry()
            }
            Verdict::GiveUp => Next::GiveUp { public, cause },
        }
    }

    /// Renews the leases of the tasks that run, until all have ended.
    fn keep_leases(&self) {
        let interval = self.lease / LEASE_PARTS;
        loop {
            if self.stop.wait(interval) {
                return; // what still runs ends at its next call
            }
            let held: Vec<Arc<Lease>> = self.leases().clone();
            renew(&self.store, &held, self.lease);
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
    fn leases(&self) -> MutexGuard<'_, Vec<Arc<Lease>>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of calls so far.
    fn calls(&self) -> MutexGuard<'_, u64> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_ends_before_the_lease_that_it_began_under() {
        let lease = Duration::from_secs(60);
        assert!(call_deadline(lease) < lease / 3);
    }
}
