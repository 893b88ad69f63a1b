//! How many connections there are, and how long a request waits for one.

use super::*;

/// Connections of the pool.
const CONNECTIONS: usize = 4;
/// Requests at once.
const REQUESTS: usize = 64;

/// The broker's connections at the server, at this moment.
fn connections(client: &mut postgres::Client) -> usize {
    let sql = "select count(*) from pg_stat_activity
        where datname = current_database() and application_name = 'servicebroker'";
    let count: i64 = client.query_one(sql, &[]).unwrap().get(0);
    usize::try_from(count).unwrap()
}

/// Sends all requests at once, and looks how many connections there are until they are answered.
/// Statuses and times, and the most connections.
fn all_at_once(setup: &Setup, ask: impl Fn(usize) -> Answer + Sync) -> (Vec<(u16, Duration)>, usize) {
    let (mut client, mut most) = (setup.database.connect(), 0);
    let answers = std::thread::scope(|scope| {
        let ask = &ask;
        let timed = |number| {
            let began = Instant::now();
            (ask(number).status, began.elapsed())
        };
        let asking: Vec<_> = (0..REQUESTS).map(|number| scope.spawn(move || timed(number))).collect();
        while !asking.iter().all(|it| it.is_finished()) {
            most = most.max(connections(&mut client));
            std::thread::sleep(Duration::from_millis(10)); // between looks: they cost as much as what is looked at
        }
        asking.into_iter().map(|it| it.join().unwrap()).collect()
    });
    (answers, most)
}

#[test]
fn there_are_never_more_connections_than_allowed_and_nobody_waits_long_for_one() {
    let setup = Setup::new()
        .with("STATEMENT_TIMEOUT_SECONDS", &STATEMENT_TIMEOUT.as_secs().to_string())
        .with("DATABASE_CONNECTIONS", &CONNECTIONS.to_string())
        .with("WAIT_SECONDS", "0");
    let api = setup.api(&[]);
    add_available(&setup, "a");
    let allowed = CONNECTIONS + 1; // one listens
    let (answers, most) = all_at_once(&setup, |number| api.provision(&number.to_string(), BASIC));
    eprintln!("limits: {REQUESTS} at once, at most {most} connections of {allowed}");
    assert!(most <= allowed, "{most}");
    assert!(answers.iter().all(|(status, _)| *status == 202), "{answers:?}");
    // Now each that gets a connection keeps it for as long as a statement may take.
    let mut client = setup.database.connect();
    let mut holder = client.transaction().unwrap();
    holder.execute("select 1 from resources where id = 'a' for update", &[]).unwrap();
    let bind = |number: usize| api.put(&binding_at("a", &number.to_string()), &bind_body(BASIC));
    let (answers, most) = all_at_once(&setup, bind);
    let slowest = answers.iter().map(|(_, took)| *took).max().unwrap();
    eprintln!("limits: all connections held, at most {most} of {allowed}, slowest {slowest:?}");
    assert!(most <= allowed, "{most}");
    assert!(answers.iter().all(|(status, _)| *status == 503), "{answers:?}");
    assert!(slowest <= STATEMENT_TIMEOUT + GRACE, "{slowest:?}");
    holder.rollback().unwrap();
    let (answers, most) = all_at_once(&setup, bind);
    assert!(most <= allowed, "{most}");
    assert!(answers.iter().all(|(status, _)| *status == 201), "{answers:?}");
}
