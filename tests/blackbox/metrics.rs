//! What `/metrics` says, on both ports, and what it never says.

mod exposition;
mod port;
mod readme;
mod tables;

use std::time::{Duration, Instant};

use crate::proxy::{Mood, Proxy};
use crate::relay::{Fault, Point, When};
use crate::support::*;
use exposition::Page;

/// How soon a page must be there whatever else is wrong.
const SOON: Duration = Duration::from_secs(1);

/// The page of an api, or of a port for metrics; without credentials, as scrapers come.
fn scrape(api: &Api) -> Page {
    let answer = api.without_header("Authorization").without_header("X-Broker-API-Version").get("/metrics");
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    Page::parse(&answer.text).unwrap_or_else(|err| panic!("{err}\n{}", answer.text))
}

/// The same; it must be there soon.
fn scrape_soon(api: &Api) -> Page {
    let began = Instant::now();
    let page = scrape(api);
    let took = began.elapsed();
    assert!(took < SOON, "{took:?}");
    page
}

/// Where a process has its port for metrics.
fn metrics_of(broker: &Broker) -> Api {
    Api::at(&broker.wait_for_log("metrics: address="))
}

/// A setup whose processes have a port for metrics alone.
fn with_port() -> Setup {
    Setup::new().with("METRICS_PORT", "0").with("LISTEN_ADDRESS", "127.0.0.1").with("WAIT_SECONDS", "0")
}

/// Waits until a page is as wanted.
fn wait_for_page(what: &str, api: &Api, is_so: impl Fn(&Page) -> bool) -> Page {
    eventually(what, PATIENCE, || Some(scrape(api)).filter(|it| is_so(it)))
}

/// A request, the action that it is, and the route under which it is counted.
const REQUESTS: [(&str, &str, &str, &str); 12] = [
    ("GET", "/v2/catalog", "get_catalog", "catalog"),
    ("PUT", "/v2/service_instances/i", "provision", "instance"),
    ("PATCH", "/v2/service_instances/i", "update", "instance"),
    ("DELETE", "/v2/service_instances/i", "deprovision", "instance"),
    ("GET", "/v2/service_instances/i/last_operation", "last_operation", "last_operation"),
    ("PUT", "/v2/service_instances/i/service_bindings/b", "bind", "binding"),
    ("GET", "/v2/service_instances/i/service_bindings/b", "get_binding", "binding"),
    ("DELETE", "/v2/service_instances/i/service_bindings/b", "unbind", "binding"),
    ("POST", "/v2/service_instances/i", "", "instance"),
    ("GET", "/v2/service_instances/%00", "", "bad_id"),
    ("GET", "/v2/hush", "", "unknown"),
    ("GET", "/healthz", "", "healthz"),
];

#[test]
fn every_action_and_every_request_is_counted() {
    let setup = Setup::new().with("WAIT_SECONDS", "0");
    let api = setup.api(&[]);
    let start = scrape(&api);
    for (_, _, action, _) in REQUESTS.iter().filter(|it| !it.2.is_empty()) {
        assert_eq!(
            start.value("osb_actions_total", &[("action", action)]),
            Some(0.0),
            "{action} from the start"
        );
    }
    let of_old = include_str!("../go-broker/metrics_used.txt").split("action=\"").skip(1);
    for action in of_old.map(|it| it.split('"').next().unwrap()) {
        assert!(REQUESTS.iter().any(|it| it.2 == action), "the old broker counted {action}");
    }
    let mut counted: Vec<(&str, &str, String)> = Vec::new();
    for (index, (method, path, _, route)) in REQUESTS.iter().enumerate() {
        for _ in 0..=index {
            counted.push((method, route, api.send(method, path, b"").status.to_string()));
        }
    }
    let page = scrape(&api);
    for (index, (method, _, action, route)) in REQUESTS.iter().enumerate() {
        let times = index as f64 + 1.0;
        let labels = [("route", *route), ("method", *method)];
        let seconds = "servicebroker_http_request_duration_seconds_count";
        assert_eq!(page.value(seconds, &labels), Some(times), "{labels:?}");
        assert_eq!(page.sum("servicebroker_http_requests_total", &labels), times, "{labels:?}");
        if !action.is_empty() {
            assert_eq!(page.value("osb_actions_total", &[("action", action)]), Some(times), "{action}");
        }
    }
    for one in &counted {
        let labels = [("method", one.0), ("route", one.1), ("status", one.2.as_str())];
        let times = counted.iter().filter(|it| *it == one).count() as f64;
        assert_eq!(page.value("servicebroker_http_requests_total", &labels), Some(times), "{labels:?}");
    }
    let text = api.get("/metrics").text;
    let help =
        "# HELP osb_actions_total Total amount of actions requested.\n# TYPE osb_actions_total counter\n";
    assert!(text.contains(help), "as the old broker said it: {text}");
}

#[test]
fn what_is_refused_is_no_action_but_is_counted() {
    let setup = Setup::new().with("WAIT_SECONDS", "0");
    let api = setup.api(&[]);
    let catalog = |status: &'static str| [("route", "catalog"), ("method", "GET"), ("status", status)];
    assert_eq!(api.without_header("Authorization").get("/v2/catalog").status, 401);
    assert_eq!(api.with_header("X-Broker-API-Version", "3.0").get("/v2/catalog").status, 412);
    assert_eq!(api.send("BREW", "/v2/catalog", b"").status, 405);
    assert_eq!(api.with_header("Expect", "tea").get("/v2/catalog").status, 417);
    let page = scrape(&api);
    assert_eq!(page.value("osb_actions_total", &[("action", "get_catalog")]), Some(1.0), "the 412");
    assert_eq!(page.value("servicebroker_http_requests_total", &catalog("401")), Some(1.0));
    assert_eq!(page.value("servicebroker_http_requests_total", &catalog("412")), Some(1.0));
    let other = [("route", "catalog"), ("method", "other"), ("status", "405")];
    assert_eq!(page.value("servicebroker_http_requests_total", &other), Some(1.0));
    assert_eq!(page.value("servicebroker_http_refused_total", &[("status", "417")]), Some(1.0));
    let wrong = api.send("POST", "/metrics", b"");
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("GET")));
}

#[test]
fn both_processes_say_what_they_are_and_what_they_take() {
    let setup = with_port();
    let (api, worker) = (setup.api(&[]), setup.worker());
    for (role, process) in [("api", metrics_of(&api)), ("worker", metrics_of(&worker))] {
        let page = wait_for_page("the database was looked at", &process, |page| {
            page.value("servicebroker_database_up", &[]) == Some(1.0)
        });
        let version = ("version", env!("CARGO_PKG_VERSION"));
        assert_eq!(page.value("servicebroker_build_info", &[version, ("role", role)]), Some(1.0));
        let value = |name: &str| page.value(name, &[]).unwrap_or_else(|| panic!("{role}: no {name}"));
        assert!((1e6..1e8).contains(&value("process_resident_memory_bytes")), "{role}");
        assert!((5.0..60.0).contains(&value("process_threads")), "{role}");
        assert!((5.0..60.0).contains(&value("process_open_fds")), "{role}");
        assert!(value("process_max_fds") >= value("process_open_fds"));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - 120.0..=now).contains(&value("process_start_time_seconds")), "{role}");
    }
    assert!(scrape(&api).len() > 10, "the api's own port shows it too");
}

#[test]
fn calls_to_aws_show_what_came_of_them() {
    let relay = relay();
    let setup = with_port().through(&relay);
    let (api, worker) = (setup.api(&[]), setup.worker());
    let metrics = metrics_of(&worker);
    let given_up = [("kind", "provision"), ("outcome", "given_up")];
    let none = scrape(&metrics).value("servicebroker_task_runs_total", &given_up);
    assert_eq!(none, Some(0.0), "shows from the start, so that the first one is an increase");
    let named = |operation: &str| Point::Named(operation.to_owned(), 1);
    relay.plan(named("CreateUser"), When::Before, Fault::Replay("iam.throttling"));
    relay.plan(named("CreateBucket"), When::Before, Fault::Replay("s3.slowdown"));
    relay.plan(named("PutUserPolicy"), When::Before, Fault::Reset);
    relay.plan(
        named("PutPublicAccessBlock"),
        When::Before,
        Fault::Status(502, "<html>hush</html>".to_owned()),
    );
    api.provide("one", BASIC);
    assert_eq!(relay.struck(), 4);
    api.remove("one", BASIC);
    let page = scrape(&metrics);
    for (service, operation, code) in [
        ("iam", "CreateUser", "Throttling"),
        ("s3", "CreateBucket", "SlowDown"),
        ("iam", "PutUserPolicy", "Unreachable"),
        ("s3", "PutPublicAccessBlock", "Http502"),
    ] {
        let labels = [("service", service), ("operation", operation)];
        let with =
            |code| page.value("servicebroker_aws_calls_total", &[labels[0], labels[1], ("code", code)]);
        assert_eq!((with(code), with("OK")), (Some(1.0), Some(1.0)), "{operation}");
        assert_eq!(page.value("servicebroker_aws_retries_total", &labels), Some(1.0), "{operation}");
        let seconds = "servicebroker_aws_call_duration_seconds_count";
        assert_eq!(page.value(seconds, &labels), Some(2.0), "{operation}");
    }
    // Each call that the relay saw was counted, and no other; those that were reset too.
    let calls = relay.calls();
    for operation in ["CreateUser", "CreateBucket", "DeleteBucket", "DeleteUser", "GetBucketLocation"] {
        let seen = calls.iter().filter(|it| *it == operation).count() as f64;
        assert_eq!(
            page.sum("servicebroker_aws_calls_total", &[("operation", operation)]),
            seen,
            "{operation}"
        );
    }
    for kind in ["provision", "delete"] {
        let runs = [("kind", kind), ("outcome", "finished")];
        assert_eq!(page.value("servicebroker_task_runs_total", &runs), Some(1.0), "{kind}");
        let all = page.sum("servicebroker_task_runs_total", &[("kind", kind)]);
        assert_eq!(page.value("servicebroker_task_run_duration_seconds_count", &runs[..1]), Some(all));
    }
    assert_eq!(page.sum("osb_actions_total", &[]), 0.0, "a worker hears no platform");
}

#[test]
fn no_secret_and_no_id_is_on_a_page() {
    let setup = with_port().with("BROKER_TOKEN", "hush-token");
    let (api, worker) = (setup.api(&[]), setup.worker());
    api.provide("hush-instance", SHIELD_VERSIONED);
    let credentials = api.bind("hush-instance", "hush-binding");
    assert_eq!(
        api.with_header("Authorization", "Bearer hush-wrong").get("/v2/hush-path?hush-query").status,
        401
    );
    assert_eq!(api.get("/v2/service_instances/hush-other/last_operation").status, 404);
    let task = setup.database.text("select task::text from tasks limit 1").unwrap();
    let mut never: Vec<String> = ["S3_BUCKET", "S3_ACCESS_KEY", "S3_SECRET_KEY", "S3_LOCATION"]
        .map(|it| credentials[it].as_str().unwrap().to_owned())
        .into();
    never.extend([task, "hush".into(), "let-me-in".into(), "platform".into(), "our org".into()]);
    never.extend([
        setup.prefix.clone(),
        setting("TEST_AWS_SECRET_ACCESS_KEY"),
        setup.database.url().to_owned(),
    ]);
    api.remove("hush-instance", SHIELD_VERSIONED);
    for process in [metrics_of(&api), metrics_of(&worker)] {
        wait_for_page("the tables were counted", &process, |page| {
            page.value("servicebroker_census_age_seconds", &[]).is_some()
        });
        let text = process.get("/metrics").text;
        for secret in &never {
            assert!(!text.contains(secret.as_str()), "{secret} is in:\n{text}");
        }
    }
}

#[test]
fn a_database_that_is_away_or_silent_holds_up_no_page() {
    let setup = with_port().with("STATEMENT_TIMEOUT_SECONDS", "1");
    let proxy = Proxy::before(setup.database.url());
    let setup = setup.with("DATABASE_URL", proxy.url());
    proxy.turn(Mood::Down);
    let api = Broker::start(setup.api_command(&[]).env("PORT", "0"));
    let worker = Broker::start(&mut setup.worker_command());
    let pages = [Api::at(&api.wait_for_log("listening: address=")), metrics_of(&api), metrics_of(&worker)];
    let up = |page: &Page| page.value("servicebroker_database_up", &[]);
    for process in &pages {
        assert_eq!(up(&scrape_soon(process)), Some(0.0), "away from the start");
    }
    proxy.turn(Mood::Open);
    let age = |page: &Page| page.value("servicebroker_oldest_due_task_age_seconds", &[]);
    for process in &pages {
        wait_for_page("the tables are seen", process, |page| up(page) == Some(1.0) && age(page).is_some());
    }
    for mood in [Mood::Down, Mood::Frozen] {
        proxy.turn(mood);
        for process in &pages {
            scrape_soon(process);
            let page =
                wait_for_page("it is seen that the database is gone", process, |page| up(page) == Some(0.0));
            assert!(age(&page).is_some(), "what was known stays");
            scrape_soon(process);
        }
        proxy.turn(Mood::Open);
        for process in &pages {
            wait_for_page("the database is seen again", process, |page| up(page) == Some(1.0));
        }
    }
}
