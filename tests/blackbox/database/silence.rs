//! The database takes bytes and never answers.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::proxy::{Fault, Point, steps_of_a_request, steps_of_a_task};

/// The default of `STATEMENT_TIMEOUT_SECONDS`.
const STATEMENT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// The default of `DATABASE_CONNECTIONS`.
const CONNECTIONS: usize = 8;
/// Calls that may hang at most when a silence begins: as many as make the database count as silent, in two
/// waves.
const HANGING_MAX: usize = 2 * 8;
/// Threads that a client's connection may take: at the door, at the inner server, for the request.
const THREADS_EACH: usize = 3;
/// Descriptors that it may take (README, "Operations").
const DESCRIPTORS_EACH: usize = 4;
/// Descriptors of a database connection: its socket and what waits for it.
const EACH_CONNECTION: usize = 5;

/// What a process takes of the system.
#[derive(Debug, Clone, Copy)]
struct Taken {
    threads: usize,
    /// Those that own a database connection.
    database_threads: usize,
    descriptors: usize,
}

impl Taken {
    fn by(pid: u32) -> Taken {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().map_while(Result::ok);
        let names: Vec<String> =
            tasks.filter_map(|it| std::fs::read_to_string(it.path().join("comm")).ok()).collect();
        Taken {
            threads: names.len(),
            database_threads: names.iter().filter(|it| it.trim_end() == "database").count(),
            descriptors: std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
        }
    }

    fn max(self, other: Taken) -> Taken {
        Taken {
            threads: self.threads.max(other.threads),
            database_threads: self.database_threads.max(other.database_threads),
            descriptors: self.descriptors.max(other.descriptors),
        }
    }
}

/// `clients` ask one request after the other for so long; every one is refused within `limit`. What the
/// process took at most meanwhile.
fn ask_in_vain(api: &Broker, clients: usize, silence: Duration, limit: Duration) -> Taken {
    /// A client's requests begin so far apart, where they do not take longer.
    const PACE: Duration = Duration::from_millis(500);
    let (end, over) = (Instant::now() + silence, AtomicBool::new(false));
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut most = Taken::by(api.pid());
            while !over.load(Ordering::Relaxed) {
                most = most.max(Taken::by(api.pid()));
                std::thread::sleep(Duration::from_millis(100)); // between looks
            }
            most
        });
        let asking: Vec<_> =
            (0..clients).map(|client| scope.spawn(move || ask_until(api, client, end, PACE))).collect();
        let asked: Vec<(usize, Duration)> = asking.into_iter().map(|it| it.join().unwrap()).collect();
        over.store(true, Ordering::Relaxed);
        let (requests, slowest) =
            (asked.iter().map(|it| it.0).sum::<usize>(), asked.iter().map(|it| it.1).max());
        eprintln!("silence: {requests} requests of {clients} clients, slowest {slowest:?}, limit {limit:?}");
        assert!(slowest.is_some_and(|it| it <= limit), "{slowest:?}");
        watching.join().unwrap()
    })
}

/// One client; how many requests it sent, and how long the slowest took.
fn ask_until(api: &Api, client: usize, end: Instant, pace: Duration) -> (usize, Duration) {
    let (mut requests, mut slowest) = (0, Duration::ZERO);
    while Instant::now() < end {
        let began = Instant::now();
        let answer = match (client + requests) % 4 {
            0 => api.provision(&format!("{client}-{requests}"), BASIC),
            1 => api.get("/v2/service_instances/a/last_operation"),
            2 => api.put(&binding_at("a", "b"), &bind_body(BASIC)),
            _ => api.get(&binding_at("a", "b")),
        };
        assert_eq!(answer.status, 503, "{}", answer.text);
        requests += 1;
        slowest = slowest.max(began.elapsed());
        std::thread::sleep(pace.saturating_sub(began.elapsed()));
    }
    (requests, slowest)
}

#[test]
fn a_silence_of_thirty_seconds_under_load_is_503_and_bounded() {
    const CLIENTS: usize = 50;
    let (setup, proxy) = behind_proxy(&[("MAX_CONNECTIONS_PER_ADDRESS", "100")]);
    let api = setup.api(&[]);
    let idle = Taken::by(api.pid());
    proxy.turn(Mood::Frozen);
    let most = ask_in_vain(&api, CLIENTS, Duration::from_secs(30), STATEMENT_TIMEOUT + GRACE);
    eprintln!("silence: idle {idle:?}, at most {most:?}, {} connections at the proxy", proxy.connections());
    let hanging = CONNECTIONS + HANGING_MAX;
    assert!(most.database_threads <= hanging, "{most:?}");
    assert!(most.threads <= idle.threads + CLIENTS * THREADS_EACH + hanging, "{most:?}, idle {idle:?}");
    let descriptors = idle.descriptors + CLIENTS * DESCRIPTORS_EACH + hanging * EACH_CONNECTION;
    assert!(most.descriptors <= descriptors, "{most:?}, idle {idle:?}");
    assert_eq!((api.get("/healthz").status, api.get("/v2/catalog").status), (200, 200));
    proxy.turn(Mood::Open);
    let took = wait_until_ready(&api);
    eprintln!("silence: ready {took:?} after its end");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(setup.database.text("select count(*)::text from resources").as_deref(), Some("0"));
    assert_eq!(api.provision("one", BASIC).status, 202);
    // What hung is let go of when its connections end.
    proxy.turn(Mood::Down);
    eventually("nothing hangs any more", PATIENCE, || {
        let now = Taken::by(api.pid());
        let descriptors = idle.descriptors + CONNECTIONS * EACH_CONNECTION;
        (now.database_threads <= CONNECTIONS + 1 && now.descriptors <= descriptors).then_some(())
    });
}

#[test]
fn silence_is_503_in_time_with_the_default_limit_and_as_many_connections_as_can_be() {
    const CLIENTS: usize = 70;
    let (setup, proxy) = behind_proxy(&[
        ("STATEMENT_TIMEOUT_SECONDS", ""), // empty: as if unset
        ("DATABASE_CONNECTIONS", "64"),
        ("MAX_CONNECTIONS_PER_ADDRESS", "100"),
    ]);
    let api = setup.api(&[]);
    proxy.turn(Mood::Frozen);
    ask_in_vain(&api, CLIENTS, Duration::from_secs(8), STATEMENT_TIMEOUT_DEFAULT + GRACE);
    proxy.turn(Mood::Open);
    let took = wait_until_ready(&api);
    eprintln!("silence, many connections: ready {took:?} after its end");
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn what_was_answered_503_is_not_committed_later() {
    let (setup, proxy) = behind_proxy(&[]);
    let api = setup.api(&[]);
    proxy.turn(Mood::Held);
    assert_eq!(api.provision("one", BASIC).status, 503);
    proxy.turn(Mood::Open);
    assert_eq!(api.deprovision("one", BASIC).status, 410);
    let busy =
        "select 'busy' from pg_stat_activity where datname = current_database() and xact_start is not null
        and pid <> pg_backend_pid() limit 1";
    eventually("all calls have ended", PATIENCE, || setup.database.text(busy).is_none().then_some(()));
    assert_eq!(setup.database.text("select id from resources"), None);
}

#[test]
fn a_worker_ends_although_its_database_is_silent() {
    let (setup, proxy) = behind_proxy(&[]);
    let mut worker = setup.worker();
    proxy.turn(Mood::Frozen);
    let began = Instant::now();
    assert_eq!(worker.terminate(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
}

#[test]
fn a_commit_that_never_arrives_is_503_and_the_request_can_be_sent_again() {
    let (setup, proxy) = behind_proxy(&[]);
    let api = setup.api(&[]);
    proxy.count(Some(steps_of_a_request));
    proxy.arm(Point::Name("commit#1".to_owned()), Fault::Hang);
    let began = Instant::now();
    assert_eq!(api.provision("one", BASIC).status, 503);
    assert!(began.elapsed() <= STATEMENT_TIMEOUT + GRACE, "{:?}", began.elapsed());
    // The server still holds the row for the transaction that it hears nothing of, but not for long.
    eventually("it can be sent again", Duration::from_secs(10), || {
        let again = api.provision("one", BASIC);
        assert!(matches!(again.status, 202 | 503), "{} {}", again.status, again.text);
        (again.status == 202).then_some(())
    });
    let rows = "select concat_ws(' ', (select count(*) from resources), (select count(*) from tasks))";
    assert_eq!(setup.database.text(rows).as_deref(), Some("1 1"));
}

#[test]
fn a_worker_goes_on_after_a_silence() {
    let (setup, proxy) = behind_proxy(&[("LEASE_SECONDS", "4")]);
    let (api, worker) = (setup.api(&[]), setup.worker());
    proxy.count(Some(steps_of_a_task));
    proxy.arm(Point::Number(13), Fault::Hang); // the task is under way
    assert_eq!(api.provision("one", BASIC).status, 202);
    proxy.wait_until_struck(PATIENCE);
    proxy.turn(Mood::Frozen);
    worker.wait_for_log("the database does not answer");
    proxy.turn(Mood::Open);
    wait_until_ready(&api);
    api.wait_for_state("one", "succeeded");
    let name = setup.database.text("select name from resources").unwrap();
    assert_eq!(setup.left_in_aws(), [name.clone(), name]);
}
