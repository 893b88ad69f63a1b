//! The database is really restarted while requests come in.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::own_postgres::OwnPostgres;

/// Requests begin so far apart.
const PACE: Duration = Duration::from_millis(20);
/// How long a request may wait for its task.
const WAIT: Duration = Duration::from_secs(1);
/// How soon after its return the database must be used again.
const RECOVERY: Duration = Duration::from_secs(2);
/// Connections of the api's pool.
const CONNECTIONS: usize = 8;

/// A request that was answered.
struct Sent {
    what: &'static str,
    id: String,
    at: Instant,
    took: Duration,
    status: u16,
}

impl Sent {
    fn ended(&self) -> Instant {
        self.at + self.took
    }
}

/// One request after the other, each in a thread of its own, until `enough`.
fn load(api: &Api, enough: &AtomicBool, answers: &Mutex<Vec<Sent>>) {
    let began = Instant::now();
    std::thread::scope(|scope| {
        for number in 0_u32.. {
            if enough.load(Ordering::Relaxed) {
                return;
            }
            let due = began + PACE * number;
            std::thread::sleep(due.saturating_duration_since(Instant::now())); // the pace
            scope.spawn(move || {
                let (id, at) = (format!("i{number}"), Instant::now());
                let (what, answer) = match number % 10 {
                    0 | 5 => ("catalog", api.get("/v2/catalog")),
                    1 | 6 => ("provision", api.provision(&id, BASIC)),
                    2 | 7 => ("last_operation", api.get("/v2/service_instances/old/last_operation")),
                    3 => ("bind", api.put(&binding_at("old", &id), &bind_body(BASIC))),
                    4 | 8 => ("fetch", api.get(&binding_at("old", "b"))),
                    _ => ("readyz", api.get("/readyz")),
                };
                let took = at.elapsed();
                answers.lock().unwrap().push(Sent { what, id, at, took, status: answer.status });
            });
        }
    });
}

/// Waits for `more` answers for which `is_one` holds.
fn wait_for(what: &str, answers: &Mutex<Vec<Sent>>, more: usize, is_one: impl Fn(&Sent) -> bool) {
    let count = || answers.lock().unwrap().iter().filter(|it| is_one(it)).count();
    let before = count();
    eventually(what, PATIENCE, || (count() >= before + more).then_some(()));
}

/// The first answer to a request that needed the database after its return came in time, and no later
/// request failed.
fn check_recovery(how: &str, answers: &[Sent], back: Instant) {
    let needs = |it: &&Sent| !matches!(it.what, "catalog" | "readyz");
    let served = answers.iter().filter(needs).filter(|it| it.status != 503 && it.ended() >= back);
    let first = served.map(|it| it.ended() - back).min().expect("an answer after the return");
    let failed = answers.iter().filter(|it| it.status == 503 && it.ended() >= back);
    let last = failed.map(|it| it.ended() - back).max().unwrap_or_default();
    eprintln!("restart after {how}: first answer {first:?} after the return, last 503 {last:?} after it");
    assert!(first <= RECOVERY, "{how}: {first:?}");
    assert!(last <= RECOVERY, "{how}: still 503 {last:?} after the return");
}

#[test]
fn a_restart_under_load_is_503_for_a_moment_and_loses_nothing() {
    let mut postgres = OwnPostgres::start();
    let setup = Setup::new()
        .with("DATABASE_URL", postgres.url())
        .with("DATABASE_CONNECTIONS", &CONNECTIONS.to_string())
        .with("STATEMENT_TIMEOUT_SECONDS", &STATEMENT_TIMEOUT.as_secs().to_string())
        .with("WAIT_SECONDS", &WAIT.as_secs().to_string())
        .with("LEASE_SECONDS", "4");
    let (api, worker) = (setup.api(&[]), setup.worker());
    api.provide("old", BASIC);
    api.bind("old", "b");
    let (enough, answers) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        scope.spawn(|| load(&api, &enough, &answers));
        for how in ["stop", "crash"] {
            wait_for("requests are served", &answers, 60, |it| it.status != 503);
            postgres.tell(how);
            wait_for("requests are refused", &answers, 40, |it| it.status == 503);
            let back = postgres.start_again();
            wait_for("requests long after it", &answers, 20, |it| it.at > back + RECOVERY);
            check_recovery(how, &answers.lock().unwrap(), back);
        }
        enough.store(true, Ordering::Relaxed);
    });
    let answers = answers.into_inner().unwrap();
    let limit = STATEMENT_TIMEOUT + GRACE + WAIT;
    for it in &answers {
        assert!(matches!(it.status, 200..=299 | 503), "{} {}: {}", it.what, it.id, it.status);
        assert!(it.took <= limit, "{} {}: {} after {:?}", it.what, it.id, it.status, it.took);
        assert!(it.what != "catalog" || it.status == 200, "the catalog is in memory");
    }
    let slowest = answers.iter().map(|it| it.took).max().unwrap();
    let refused = answers.iter().filter(|it| it.status == 503).count();
    eprintln!("restart: {} requests, {refused} of them 503, slowest {slowest:?}", answers.len());

    let rows = postgres.texts("select id from resources");
    let provisions = || answers.iter().filter(|it| it.what == "provision");
    for promised in provisions().filter(|it| it.status != 503) {
        assert!(rows.contains(&promised.id), "{} was answered {} and lost", promised.id, promised.status);
    }
    // Whether a commit whose answer was cut happened, nobody knows: the platform asks again.
    let unknown = provisions().filter(|it| it.status == 503 && rows.contains(&it.id)).count();
    eprintln!("restart: {unknown} provisions were answered 503 and exist");
    assert!(unknown <= 2 * CONNECTIONS, "{unknown}");
    for refused in provisions().filter(|it| it.status == 503) {
        let again = api.provision(&refused.id, BASIC);
        assert!(matches!(again.status, 200..=202), "{}: {} {}", refused.id, again.status, again.text);
    }
    eventually("all instances are available", PATIENCE, || {
        let open = postgres.texts("select id from resources where status <> 'available'");
        open.is_empty().then_some(())
    });
    assert_eq!(postgres.texts("select id from resources").len(), provisions().count() + 1);
    let tasks = postgres.texts("select resource from tasks where action = 'provision'");
    assert_eq!(tasks.len(), provisions().count() + 1, "one task each");
    assert_eq!(
        postgres.texts(
            "select resource from tasks where action not in ('provision', 'tag', 'remove-unknown-keys')"
        ),
        Vec::<String>::new()
    );
    let (mut names, mut left) = (postgres.texts("select name from resources"), setup.left_in_aws());
    names.extend(names.clone()); // a bucket and a user
    names.sort();
    left.sort();
    assert_eq!(left, names);
    drop((api, worker));
}
