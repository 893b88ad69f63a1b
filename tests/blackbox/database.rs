//! What happens when the database misbehaves: it is away, silent, slow, or its connections are cut.

mod cuts;
mod limits;
mod restart;
mod silence;

use std::time::{Duration, Instant};

use crate::proxy::{Mood, Proxy};
use crate::support::*;

/// The shortest limit of a statement that can be set.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(1);
/// How much longer than a statement a request may take before it is 503.
const GRACE: Duration = Duration::from_secs(6);

/// A setup whose broker reaches its database through a proxy, with short limits and these variables.
fn behind_proxy(variables: &[(&'static str, &str)]) -> (Setup, Proxy) {
    let seconds = STATEMENT_TIMEOUT.as_secs().to_string();
    let setup = Setup::new().with("STATEMENT_TIMEOUT_SECONDS", &seconds).with("WAIT_SECONDS", "0");
    let proxy = Proxy::before(setup.database.url());
    let setup = setup.with("DATABASE_URL", proxy.url());
    (variables.iter().fold(setup, |setup, (name, value)| setup.with(name, value)), proxy)
}

/// Adds an instance that can be bound, without AWS.
fn add_available(setup: &Setup, id: &str) {
    let sql = format!(
        "insert into resources (id, name, plan, claimed, status, username, password, endpoint, organization,
             space, region, location)
         values ('{id}', 'bucket-{id}', '{BASIC}', true, 'available', 'AKIA', 'secret', 'bucket-{id}',
             'our org', '00000000-0000-0000-0000-000000000000', 'us-west-2', 'bucket-{id}.example')"
    );
    setup.database.connect().batch_execute(&sql).unwrap();
}

fn binding_at(instance: &str, binding: &str) -> String {
    format!("/v2/service_instances/{instance}/service_bindings/{binding}")
}

/// Waits until `/readyz` says so; how long that took.
fn wait_until_ready(api: &Api) -> Duration {
    let began = Instant::now();
    eventually("the api is ready", PATIENCE, || (api.get("/readyz").status == 200).then_some(()));
    began.elapsed()
}

#[test]
fn a_database_that_is_away_at_the_start_is_waited_for() {
    let (setup, proxy) = behind_proxy(&[]);
    proxy.turn(Mood::Down);
    let broker = Broker::start(setup.api_command(&[]).env("PORT", "0"));
    let api = Api::at(&broker.wait_for_log("listening: address="));
    let worker = Broker::start(&mut setup.worker_command());
    worker.wait_for_log("database not ready");
    let is_away = |catalog: u16| {
        assert_eq!((api.get("/healthz").status, api.get("/readyz").status), (200, 503));
        assert_eq!(api.get("/v2/catalog").status, catalog);
        for answer in [
            api.provision("early", BASIC),
            api.deprovision("early", BASIC),
            api.get("/v2/service_instances/early/last_operation"),
            api.put(&binding_at("early", "b"), &bind_body(BASIC)),
            api.get(&binding_at("early", "b")),
        ] {
            assert_eq!(answer.status, 503, "{}", answer.text);
            assert_eq!(answer.json["description"], "the broker's database is not available");
        }
    };
    is_away(503);
    proxy.turn(Mood::Open);
    let took = wait_until_ready(&api);
    eprintln!("away at the start: ready {took:?} after it came");
    assert!(took < Duration::from_secs(3), "{took:?}");
    worker.wait_for_log("database ready: ");
    api.provide("one", BASIC);
    let catalog = api.get("/v2/catalog").text;
    proxy.turn(Mood::Down);
    is_away(200);
    assert_eq!(api.get("/v2/catalog").text, catalog);
    proxy.turn(Mood::Open);
    let took = wait_until_ready(&api);
    eprintln!("away for a while: ready {took:?} after it came back");
    assert!(took < Duration::from_secs(2), "{took:?}");
    api.provide("two", BASIC);
    for instance in ["one", "two"] {
        api.remove(instance, BASIC);
    }
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}

#[test]
fn a_slow_database_is_slow_and_no_more() {
    let (setup, proxy) = behind_proxy(&[]);
    let api = setup.api(&[]);
    add_available(&setup, "a");
    let timed = |what: &str, allowed: &[u16], ask: &dyn Fn() -> Answer| {
        let began = Instant::now();
        let answer = ask();
        let took = began.elapsed();
        eprintln!("slow: {what} {} in {took:?}", answer.status);
        assert!(allowed.contains(&answer.status), "{what}: {} {}", answer.status, answer.text);
        assert!(took < STATEMENT_TIMEOUT + GRACE, "{what}: {took:?}");
    };
    proxy.turn(Mood::Slow(Duration::from_millis(200)));
    timed("provision", &[202], &|| api.provision("b", BASIC));
    timed("last_operation", &[200], &|| api.get("/v2/service_instances/b/last_operation"));
    timed("bind", &[201], &|| api.put(&binding_at("a", "b"), &bind_body(BASIC)));
    timed("fetch", &[200], &|| api.get(&binding_at("a", "b")));
    timed("deprovision", &[202], &|| api.deprovision("b", BASIC));
    // Each statement takes longer than a statement may.
    proxy.turn(Mood::Slow(STATEMENT_TIMEOUT.mul_f32(1.5)));
    std::thread::scope(|scope| {
        scope.spawn(|| timed("provision, too slow", &[503], &|| api.provision("c", BASIC)));
        scope
            .spawn(|| timed("bind, too slow", &[503], &|| api.put(&binding_at("a", "c"), &bind_body(BASIC))));
    });
    proxy.turn(Mood::Open);
    wait_until_ready(&api);
    // The server itself is slow: somebody else holds the row.
    let mut client = setup.database.connect();
    let mut holder = client.transaction().unwrap();
    holder.execute("select 1 from resources where id = 'a' for update", &[]).unwrap();
    timed("bind, locked", &[503], &|| api.put(&binding_at("a", "d"), &bind_body(BASIC)));
    holder.rollback().unwrap();
    timed("bind, let go", &[201], &|| api.put(&binding_at("a", "d"), &bind_body(BASIC)));
}
