//! Two apis, two workers, a database and AWS, each of which can fail.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::own_postgres::OwnPostgres;
use crate::relay::Relay;
use crate::support::*;

/// How long after its return the database may still be missed.
const RECOVERY: Duration = Duration::from_secs(2);

/// Random numbers that are the same for the same seed (splitmix64).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// A number below `limit`.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((mixed ^ (mixed >> 31)) % limit as u64).unwrap()
    }
}

/// Everything that there is.
pub(super) struct World {
    pub(super) setup: Setup,
    pub(super) relay: Relay,
    postgres: Mutex<OwnPostgres>,
    apis: [Mutex<Broker>; 2],
    addresses: [Mutex<Api>; 2],
    workers: [Mutex<Broker>; 2],
    /// When the database was away, and whether it is.
    outages: Mutex<Vec<(Instant, Option<Instant>)>>,
    asked: AtomicUsize,
    unanswered: AtomicUsize,
    refused: AtomicUsize,
    killed: AtomicUsize,
}

impl World {
    /// All of it, in good health.
    pub(super) fn start() -> World {
        let (relay, postgres) = (relay(), OwnPostgres::start());
        let setup = Setup::new()
            .with("DATABASE_URL", postgres.url())
            .with("STATEMENT_TIMEOUT_SECONDS", "2")
            .with("WAIT_SECONDS", "1")
            .with("LEASE_SECONDS", "8")
            .with("WORKER_THREADS", "12")
            .with("DATABASE_CONNECTIONS", "24")
            .through(&relay);
        let apis = [setup.api(&[]), setup.api(&[])];
        let addresses = [(*apis[0]).clone(), (*apis[1]).clone()].map(Mutex::new);
        let workers = [setup.worker(), setup.worker()].map(Mutex::new);
        World {
            relay,
            postgres: Mutex::new(postgres),
            apis: apis.map(Mutex::new),
            addresses,
            workers,
            setup,
            outages: Mutex::default(),
            asked: AtomicUsize::new(0),
            unanswered: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            killed: AtomicUsize::new(0),
        }
    }

    /// Asks one of the apis as a platform; `None` when it was gone. Fails on an answer that no platform may get.
    pub(super) fn ask(&self, method: &str, path: &str, body: &str) -> Option<u16> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let api = self.addresses[number % 2].lock().unwrap().clone();
        let began = Instant::now();
        let Ok(answer) =
            api.with_header("Content-Type", "application/json").try_send(method, path, body.as_bytes())
        else {
            self.unanswered.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        let is_told = match answer.status {
            200..=202 | 404 | 409 | 410 | 422 | 503 => true,
            502 => path.ends_with("/credentials"), // AWS refused, for good
            _ => false,
        };
        assert!(is_told, "{method} {path}: {} {}", answer.status, answer.text);
        let is_withdrawn = method == "PATCH" && answer.text.contains("no worker came");
        if answer.status == 503 && !is_withdrawn {
            self.refused.fetch_add(1, Ordering::Relaxed);
            assert!(
                self.was_away(began, Instant::now()),
                "503 with a database: {method} {path}: {}",
                answer.text
            );
        }
        Some(answer.status)
    }

    /// Whether the database was away, or had just come back, at some time between.
    fn was_away(&self, from: Instant, to: Instant) -> bool {
        let outages = self.outages.lock().unwrap();
        outages.iter().any(|(began, ended)| *began <= to && ended.is_none_or(|it| it + RECOVERY >= from))
    }

    /// Kills an api and starts another.
    pub(super) fn replace_api(&self, number: usize) {
        let mut api = self.apis[number].lock().unwrap();
        api.kill();
        self.killed.fetch_add(1, Ordering::Relaxed);
        *api = self.setup.api(&[]);
        *self.addresses[number].lock().unwrap() = (**api).clone();
    }

    /// Ends a worker, by force or as a supervisor would, and starts another.
    pub(super) fn replace_worker(&self, number: usize, by_force: bool) {
        let mut worker = self.workers[number].lock().unwrap();
        if by_force {
            worker.kill();
            self.killed.fetch_add(1, Ordering::Relaxed);
        } else {
            assert_eq!(worker.terminate(), Some(0));
        }
        *worker = self.setup.worker();
    }

    /// Stops the database, or lets it crash, and starts it again.
    pub(super) fn restart_database(&self, crash: bool) {
        let mut postgres = self.postgres.lock().unwrap();
        self.outages.lock().unwrap().push((Instant::now(), None));
        postgres.tell(if crash { "crash" } else { "stop" });
        let back = postgres.start_again();
        self.outages.lock().unwrap().last_mut().unwrap().1 = Some(back);
    }

    /// Values of a query of one text column.
    pub(super) fn texts(&self, sql: &str) -> Vec<String> {
        self.postgres.lock().unwrap().texts(sql)
    }

    /// Waits until all tasks have ended, the looks after deletes too.
    pub(super) fn come_to_rest(&self, limit: Duration) {
        let began = Instant::now();
        let open = "select resource from tasks where status in ('pending', 'started')";
        eventually("all tasks have ended", limit, || {
            self.execute("update tasks set run_at = now() where status = 'pending' and run_at > now()");
            self.texts(open).is_empty().then_some(())
        });
        eprintln!("chaos: at rest after {:?}", began.elapsed());
    }

    fn execute(&self, sql: &str) {
        let url = self.postgres.lock().unwrap().url().to_owned();
        postgres::Client::connect(&url, postgres::NoTls).unwrap().batch_execute(sql).unwrap();
    }

    /// What happened.
    pub(super) fn report(&self) {
        let count = |it: &AtomicUsize| it.load(Ordering::Relaxed);
        eprintln!(
            "chaos: {} requests, {} without answer, {} refused; {} processes killed, {} outages; {} calls to AWS, {} broken or slowed",
            count(&self.asked),
            count(&self.unanswered),
            count(&self.refused),
            count(&self.killed),
            self.outages.lock().unwrap().len(),
            self.relay.calls().len(),
            self.relay.struck(),
        );
    }
}
