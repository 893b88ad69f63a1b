//! All SQL, and the connections that it runs on.
//!
//! Not here: what an answer means to a platform (`broker`) or to a task (`worker`, `steps`).
//!
//! Every use of the database is one transaction, given as a closure to [`Store::transaction`]. It
//! runs on a thread that owns its connection, so that the caller can give up on a silent server:
//! the client library has no time limit of its own on a query.
//!
//! Invariants
//! - There are never more connections than the settings allow, apart from those given up on.
//! - A call that was given up on is not committed, unless its commit was under way; its connection is
//!   never used again and ends by itself.
//! - While too many are given up on, callers are refused without asking the database.
//! - Errors carry the server's code and primary message, never a row's values.

mod bindings;
mod catalog;
mod census;
mod changes;
mod connect;
mod error;
mod instances;
mod kinds;
mod listen;
mod names;
mod schema;
mod stock;
mod task_rows;
mod tasks;
mod upkeep;
mod webhooks;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use postgres::types::{ToSql, Type};
use postgres::{Client, Row};

pub(crate) use catalog::{OfferingRow, PlanRow, Promise};
pub(crate) use connect::Target;
pub(crate) use error::StoreError;
pub(crate) use instances::{Instance, InstanceStatus, NewInstance, NextKey, Provisioned, Whereabouts};
pub(crate) use kinds::TaskKind;
pub(crate) use listen::Listener;
pub(crate) use stock::Stock;
pub(crate) use task_rows::TaskRow;
pub(crate) use tasks::{Claim, Lane, LeaseState, NewTask, TaskState};
pub(crate) use webhooks::{Notice, Webhook};

/// How much longer than its statements' limit a call may take before it is given up on; of this it may spend all
/// on waiting for a connection.
const GRACE: Duration = Duration::from_secs(5);
/// Calls that may hang at once before the database counts as silent.
const ABANDONED_MAX: usize = 8;
/// Calls that may hang at most beside a whole pool: those let through because a knock was answered.
const PROBES_MAX: usize = 24;
/// How often it is knocked to see whether the database is back.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);
/// How long a knock may take.
const KNOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection idle for longer is tried before it is used.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);
/// How long trying it may take.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Stack of a connection's thread, in bytes.
const STACK_BYTES: usize = 512 * 1024;

/// The database, for any number of threads.
#[derive(Clone)]
pub(crate) struct Store(Arc<Shared>);

/// What all users of the store share.
struct Shared {
    /// Where the database is.
    target: Target,
    /// Connections allowed.
    connections_max: usize,
    /// How long a call may take in all.
    call_timeout: Duration,
    /// The connections.
    pool: Mutex<Pool>,
    /// Signalled when a connection comes back or goes.
    returned: Condvar,
    /// Calls that were given up on and still hang.
    abandoned: AtomicUsize,
    /// Whether the last call that ended was given up on.
    is_silent: AtomicBool,
    /// When it was last knocked to see whether the database is back.
    probed: Mutex<Instant>,
}

/// Which connections there are.
struct Pool {
    /// Those that nobody uses; the last one was used last.
    idle: Vec<Connection>,
    /// All, used or not, but those given up on.
    open: usize,
}

/// A thread that owns a connection and does one job at a time.
struct Connection {
    /// Where jobs go. When this is dropped, the thread ends.
    jobs: Sender<Job>,
}

/// What a connection's thread does.
type Job = Box<dyn FnOnce(&mut Slot) + Send>;

/// A connection's place: connected or not.
struct Slot {
    /// The connection, if there is one.
    client: Option<Client>,
    /// When it was last used.
    used: Instant,
}

/// One transaction. It is committed when the closure that got it returns `Ok`.
pub(crate) struct Transaction<'a>(postgres::Transaction<'a>);

impl Store {
    /// A store on `target`; connects when it is first used.
    pub(crate) fn new(target: Target, connections_max: usize, statement_timeout: Duration) -> Store {
        Store(Arc::new(Shared {
            target,
            connections_max,
            call_timeout: statement_timeout + GRACE,
            pool: Mutex::new(Pool { idle: Vec::new(), open: 0 }),
            returned: Condvar::new(),
            abandoned: AtomicUsize::new(0),
            is_silent: AtomicBool::new(false),
            probed: Mutex::new(Instant::now()),
        }))
    }

    /// Runs `job` as one transaction: committed on `Ok`, rolled back on `Err`.
    ///
    /// # Errors
    /// The job's own, or the database's as [`StoreError`]. After an error of the commit itself
    /// nobody knows whether it happened; every job here may be repeated.
    pub(crate) fn transaction<T, E>(
        &self,
        job: impl FnOnce(&mut Transaction<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        self.transaction_within(self.0.call_timeout, job)
    }

    /// The same, with a time limit of its own.
    fn transaction_within<T, E>(
        &self,
        limit: Duration,
        job: impl FnOnce(&mut Transaction<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        self.call(limit, move |slot, target, progress| {
            let client = slot.connected(target).map_err(StoreError::from)?;
            in_transaction(client, progress, job)
        })
    }

    /// A connection to wait for notifications on; it leaves the pool.
    pub(crate) fn listen(&self, channel: &'static str) -> Result<Listener, StoreError> {
        self.call(self.0.call_timeout, move |slot, target, _| {
            slot.connected(target)?;
            let client = slot.client.take().ok_or(StoreError::Silent)?;
            Listener::open(client, channel)
        })
    }

    /// Has a connection's thread do `job`. Waits no longer than `limit` for the connection and the
    /// job together: who asks has been promised an answer by then.
    fn call<T, E>(
        &self,
        limit: Duration,
        job: impl FnOnce(&mut Slot, &Target, &Progress) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let deadline = Instant::now() + limit;
        let connection = self.take()?;
        let (answer, answered) = mpsc::sync_channel(1);
        let progress = Arc::new(Progress::new(Arc::clone(&self.0)));
        let (shared, of_job) = (Arc::clone(&self.0), Arc::clone(&progress));
        let job = Box::new(move |slot: &mut Slot| {
            let end = EndOfCall(of_job);
            let result = job(slot, &shared.target, &end.0);
            slot.tidy();
            drop(end);
            if answer.send(result).is_err() {
                slot.client = None; // nobody waits any more
            }
        });
        if connection.jobs.send(job).is_err() {
            self.forget();
            return Err(StoreError::Panicked.into());
        }
        match answered.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(result) => {
                self.0.is_silent.store(false, Ordering::Relaxed);
                self.give_back(connection);
                result
            }
            Err(RecvTimeoutError::Timeout) => {
                progress.give_up();
                self.forget();
                Err(StoreError::Silent.into())
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.forget(); // the thread is gone and its connection with it
                Err(StoreError::Panicked.into())
            }
        }
    }

    /// How long one use of the database may take.
    pub(crate) fn call_timeout(&self) -> Duration {
        self.0.call_timeout
    }

    /// An idle connection, or a new one while that is allowed.
    fn take(&self) -> Result<Connection, StoreError> {
        let deadline = Instant::now() + GRACE;
        loop {
            self.refuse_while_silent()?; // each time: it may have fallen silent while we waited
            let mut pool = self.pool();
            if let Some(connection) = pool.idle.pop() {
                return Ok(connection);
            }
            if pool.open < self.0.connections_max {
                pool.open += 1;
                drop(pool);
                return open_thread().inspect_err(|_| self.forget());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(StoreError::Busy);
            }
            drop(self.0.returned.wait_timeout(pool, left).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Puts a connection back for others.
    fn give_back(&self, connection: Connection) {
        self.pool().idle.push(connection);
        self.0.returned.notify_one();
    }

    /// Makes room for a connection that is gone. Wakes all: the first may be refused now.
    fn forget(&self) {
        self.pool().open -= 1;
        self.0.returned.notify_all();
    }

    /// While too many calls hang and none was answered since, only a call now and then is let through,
    /// and only when the server answers a knock: on a silent one it would hang like the others.
    fn refuse_while_silent(&self) -> Result<(), StoreError> {
        let hanging = self.0.abandoned.load(Ordering::Relaxed);
        let is_full = hanging >= self.0.connections_max + PROBES_MAX;
        if hanging < ABANDONED_MAX || !(is_full || self.0.is_silent.load(Ordering::Relaxed)) {
            return Ok(());
        }
        let mut probed = self.0.probed.lock().unwrap_or_else(PoisonError::into_inner);
        if is_full || probed.elapsed() < PROBE_INTERVAL {
            return Err(StoreError::Silent);
        }
        *probed = Instant::now();
        drop(probed);
        if self.0.target.answers(KNOCK_TIMEOUT) { Ok(()) } else { Err(StoreError::Silent) }
    }

    /// The pool. A panic elsewhere cannot leave it half changed.
    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.0.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the thread of a new connection; it connects with its first job.
fn open_thread() -> Result<Connection, StoreError> {
    let (jobs, inbox) = mpsc::channel::<Job>();
    let work = move || {
        let mut slot = Slot { client: None, used: Instant::now() };
        for job in inbox {
            job(&mut slot);
        }
    };
    match std::thread::Builder::new().name("database".into()).stack_size(STACK_BYTES).spawn(work) {
        Ok(_) => Ok(Connection { jobs }),
        Err(err) => {
            log::error!("no thread for a database connection: cause={err}");
            Err(StoreError::Busy)
        }
    }
}

/// How far a call has come, known to who waits for it and to the thread that does it.
struct Progress {
    /// Where hanging calls are counted.
    shared: Arc<Shared>,
    /// The one truth about the call.
    stage: Mutex<Stage>,
}

/// The stages of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// At work.
    Open,
    /// The commit is under way: too late to take it back.
    Committing,
    /// Nobody waits for it any more: it must not be committed.
    GivenUp,
    /// Over.
    Ended,
}

impl Progress {
    /// A call that begins.
    fn new(shared: Arc<Shared>) -> Progress {
        Progress { shared, stage: Mutex::new(Stage::Open) }
    }

    /// Whether it may be committed: from now on nobody can give it up in time.
    fn may_commit(&self) -> bool {
        let mut stage = self.stage();
        let open = *stage == Stage::Open;
        if open {
            *stage = Stage::Committing;
        }
        open
    }

    /// Leaves it to itself; it counts as hanging until it ends.
    fn give_up(&self) {
        let mut stage = self.stage();
        self.shared.is_silent.store(true, Ordering::Relaxed);
        if *stage != Stage::Ended {
            *stage = Stage::GivenUp;
            self.shared.abandoned.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The stage. A panic elsewhere cannot leave it half changed.
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a call when it is dropped, be it by a panic.
struct EndOfCall(Arc<Progress>);

impl Drop for EndOfCall {
    fn drop(&mut self) {
        if std::mem::replace(&mut *self.0.stage(), Stage::Ended) == Stage::GivenUp {
            self.0.shared.abandoned.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Slot {
    /// Notes that the connection was used, and lets go of one that is broken.
    fn tidy(&mut self) {
        self.used = Instant::now();
        if self.client.as_ref().is_some_and(Client::is_closed) {
            self.client = None;
        }
    }

    /// The connection; a new one where there is none or the old one does not answer.
    fn connected(&mut self, target: &Target) -> Result<&mut Client, postgres::Error> {
        let usable = match &mut self.client {
            None => false,
            Some(client) if self.used.elapsed() < TRUSTED_IDLE => !client.is_closed(),
            Some(client) => client.is_valid(TRIAL_TIMEOUT).is_ok(),
        };
        if !usable {
            self.client = None;
        }
        match &mut self.client {
            Some(client) => Ok(client),
            place @ None => Ok(place.insert(target.connect()?)),
        }
    }
}

/// Begins, does the job, commits or rolls back.
fn in_transaction<T, E: From<StoreError>>(
    client: &mut Client,
    progress: &Progress,
    job: impl FnOnce(&mut Transaction<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let begun = client.transaction().map_err(StoreError::from)?;
    let mut transaction = Transaction(begun);
    let result = job(&mut transaction)?; // dropped: rolled back
    if !progress.may_commit() {
        return Err(StoreError::Silent.into()); // the caller was told that it failed
    }
    transaction.0.commit().map_err(StoreError::from)?;
    Ok(result)
}

/// A parameter and its type: with it a query takes one round trip.
type Parameter<'p> = (&'p (dyn ToSql + Sync), Type);

impl Transaction<'_> {
    /// All rows.
    fn query(&mut self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, StoreError> {
        Ok(self.0.query_typed(sql, parameters)?)
    }

    /// The row, if there is one; the statement gives one at most.
    fn query_opt(&mut self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Option<Row>, StoreError> {
        Ok(self.0.query_typed_opt(sql, parameters)?)
    }

    /// The row; the statement gives exactly one.
    fn query_one(&mut self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Row, StoreError> {
        Ok(self.0.query_typed_one(sql, parameters)?)
    }

    /// Changes rows and counts them.
    fn execute(&mut self, sql: &str, parameters: &[Parameter<'_>]) -> Result<u64, StoreError> {
        Ok(self.0.execute_typed(sql, parameters)?)
    }

    /// Whether the server takes changes: a standby does not.
    pub(crate) fn is_writable(&mut self) -> Result<bool, StoreError> {
        Ok(self.query_one("show transaction_read_only", &[])?.try_get::<_, &str>(0)? == "off")
    }

    /// Several statements without parameters.
    fn batch(&mut self, sql: &str) -> Result<(), StoreError> {
        Ok(self.0.batch_execute(sql)?)
    }
}
