//! What Akkeris' region-api and controller-api send and need, and what the old broker answered.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::proxy::{Mood, Proxy};
use crate::support::*;

/// What stands in front of the paths of its broker's URL.
const TOKEN: &str = "a-token-of-27-characters--1";

/// What the old broker was asked, and what it answered.
struct Recording {
    name: &'static str,
    text: &'static str,
    /// Where this broker means to answer otherwise: its status, and the row of README's "Differences" that says so.
    differs: Option<(u16, &'static str)>,
}

/// A recording, in the words of this table.
macro_rules! recorded {
    ($name:literal) => {
        Recording { differs: None, ..recorded!($name, 0, "") }
    };
    ($name:literal, $status:literal, $row:literal) => {
        Recording {
            name: $name,
            text: include_str!(concat!("../go-broker/answers/", $name, ".txt")),
            differs: Some(($status, $row)),
        }
    };
}

/// All of them, in the order of the old broker's day.
#[rustfmt::skip]
const RECORDINGS: [Recording; 17] = [
    recorded!("healthz"),
    recorded!("catalog_http"),
    recorded!("provision_basic"),
    recorded!("last_operation"),
    recorded!("bind"),
    recorded!("bind_no_resource"),
    recorded!("get_binding"),
    recorded!("rotate"),
    recorded!("schema"),
    recorded!("unbind_unknown", 410, "| deleting what is not there | 404, and 200 for a binding | 410 |"),
    recorded!("err_provision_malformed"),
    recorded!("err_provision_no_accepts_incomplete"),
    recorded!("err_provision_unknown_plan", 400, "| unknown plan or service | 404 | 400 |"),
    recorded!("err_provision_same_id_same_params", 200, "| repeated `PUT` | 422 | 200 or 202 if the same, 409 if not |"),
    recorded!("err_patch_same_plan", 200, "| change to the plan that it has | 422 | 200, nothing is changed |"),
    recorded!("err_delete_unknown", 410, "| deleting what is not there | 404, and 200 for a binding | 410 |"),
    recorded!("provision_from_preprovisioned_pool", 400, "| `organization_guid` or `space_guid` missing | accepted | 400 |"),
];

impl Recording {
    /// Method, path and body of the request, out of the command line of curl.
    fn request(&self) -> (String, String, String) {
        let line = self.text.lines().next().unwrap();
        let plain = line.replace('\\', "");
        let method = plain.split_once("-X ").map_or("GET", |(_, rest)| rest.split(' ').next().unwrap());
        let (_, url) = plain.split_once("http://").unwrap();
        let path = format!("/{}", url.split_once('/').unwrap().1.trim());
        let body = plain.split_once(" -d ").map_or("", |(_, rest)| rest.rsplit_once(" http://").unwrap().0);
        (method.to_owned(), path, body.to_owned())
    }

    /// Status and body of the answer.
    fn answer(&self) -> (u16, Value) {
        let status = self.text.lines().nth(1).unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let body =
            self.text.split_once("\n\n").map_or("", |(_, body)| body.rsplit_once("\n[curl").unwrap().0);
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }
}

/// The names of an object's members, and of its credentials. The old broker's `async` is left out on purpose: clients
/// take it into the result (README, "Differences").
fn names(body: &Value) -> BTreeSet<String> {
    let of = |value: &Value| {
        value.as_object().map(|it| it.keys().cloned().collect::<Vec<_>>()).unwrap_or_default()
    };
    let inner = of(&body["credentials"]).into_iter().map(|it| format!("credentials.{it}"));
    of(body).into_iter().filter(|it| it != "async").chain(inner).collect()
}

#[test]
fn the_old_brokers_answers_are_given_but_for_what_the_readme_says() {
    let readme = include_str!("../../README.md");
    let differences = readme.split_once("## Differences from the old broker").unwrap().1;
    let differences = differences.split_once("\n## ").unwrap().0;
    assert!(differences.contains("| `async` in answers |"));
    let setup = Setup::new();
    let (api, _worker) = (setup.api(&[]), setup.worker());
    for recording in &RECORDINGS {
        let (method, path, body) = recording.request();
        let answer = api.send(&method, &path, body.as_bytes());
        let (status, wanted) = recording.answer();
        match recording.differs {
            None => {
                assert_eq!(answer.status, status, "{}: {}", recording.name, answer.text);
                let missing: Vec<_> = names(&wanted).difference(&names(&answer.json)).cloned().collect();
                assert_eq!(missing, Vec::<String>::new(), "{}: {}", recording.name, answer.text);
            }
            Some((other, row)) => {
                assert_eq!(answer.status, other, "{}: {}", recording.name, answer.text);
                assert!(differences.contains(row), "{}: README lacks {row}", recording.name);
            }
        }
    }
}

#[test]
fn a_pending_change_of_plan_is_in_progress_as_it_was() {
    let setup = Setup::on(Database::of_the_old_broker());
    let api = setup.api(&[]);
    let recorded = include_str!("../go-broker/answers/last_operation_while_plan_change_pending.txt");
    assert!(recorded.contains("\"in progress\""));
    let state = api.get("/v2/service_instances/22222222-bbbb-4bbb-8bbb-000000000001/last_operation");
    assert_eq!((state.status, state.json["state"].as_str()), (200, Some("in progress")), "{}", state.text);
}

/// region-api as it talks to a broker: version 2.13, a password, no originating identity, a path that is kept.
fn region_api(setup: &Setup) -> (Broker, Api) {
    let mut command = setup.api_command(&[]);
    let broker = Broker::start(command.env("PORT", "0").env("ACTIONS_TOKEN", TOKEN));
    let api = Api::at(&broker.wait_for_log("listening: address="));
    eventually("the api is ready", PATIENCE, || (api.get("/readyz").status == 200).then_some(()));
    (broker, api)
}

/// A path of the broker behind the path of its URL.
fn at(path: &str) -> String {
    format!("/{TOKEN}/v2/service_instances/one{path}")
}

#[test]
fn a_day_of_region_api_goes_as_it_needs() {
    let setup = Setup::new();
    let ((_broker, api), _worker) = (region_api(&setup), setup.worker());
    let made = api.put(&at("?accepts_incomplete=true"), &provision_body(BASIC));
    assert!(matches!(made.status, 201 | 202), "{}", made.text);
    assert!(made.json.is_object() && made.json.get("async").is_none(), "{}", made.text);
    // At once, whatever the answer was, and never again.
    let bound = api.put(&at("/service_bindings/web-default"), &bind_body(BASIC));
    assert_eq!(bound.status, 201, "{}", bound.text);
    let state = |operation: &str| {
        let query = format!("/last_operation?service_id={SERVICE}&plan_id={BASIC}{operation}");
        let answer = api.get(&at(&query));
        assert_eq!(answer.status, 200, "{operation}: {}", answer.text);
        answer.json["state"].as_str().unwrap().to_owned()
    };
    for operation in
        ["", "&operation=", "&operation=1d71dfe4-0000-4000-8000-000000000000", "&operation=of+old"]
    {
        assert_eq!(state(operation), "succeeded", "{operation}");
    }
    for name in ["web-default", "web--worker-default", "web-job-1-default", "never-put"] {
        let fetched = api.get(&at(&format!("/service_bindings/{name}")));
        assert_eq!(fetched.status, 200, "{name}: {}", fetched.text);
        let credentials = fetched.json["credentials"].as_object().unwrap();
        assert!(credentials.values().all(|it| it.as_str().is_some_and(|it| !it.is_empty())), "{name}");
        for wanted in ["S3_BUCKET", "S3_LOCATION", "S3_ACCESS_KEY", "S3_SECRET_KEY", "S3_REGION"] {
            assert!(credentials.contains_key(wanted), "{name}: {wanted}");
        }
    }
    // `aka s3:rotate`: neither password nor version, no body, no media type.
    let user = api.without_header("Authorization").without_header("X-Broker-API-Version");
    let rotated = user.send("PUT", &at("/actions/credentials"), b"");
    assert!((200..300).contains(&rotated.status), "{}", rotated.text);
    for name in ["ARN", "UserName", "AccessKeyId", "SecretAccessKey"] {
        assert!(rotated.json[name].is_string(), "{name}");
    }
    assert_eq!(user.get(&at("/actions/rotate_credentials/schema")).status, 200);
    let body = json!({ "service_id": SERVICE, "plan_id": VERSIONED }).to_string();
    let json = api.with_header("Content-Type", "application/json");
    let changed = json.send("PATCH", &at("?accepts_incomplete=true"), body.as_bytes());
    assert!(matches!(changed.status, 200 | 202) && changed.json.is_object(), "{}", changed.text);
    api.wait_for_state("one", "succeeded");
    // The client reads a body of both answers.
    let query = format!("service_id={SERVICE}&plan_id={VERSIONED}");
    for status in [200, 410] {
        let unbound = api.delete(&at(&format!("/service_bindings/web-default?{query}")));
        assert_eq!((unbound.status, &unbound.json), (status, &json!({})), "{}", unbound.text);
    }
    let removed = api.delete(&at(&format!("?accepts_incomplete=true&{query}")));
    assert!(matches!(removed.status, 200 | 202) && removed.json.is_object(), "{}", removed.text);
    eventually("a delete of what is gone is 410, never 404", PATIENCE, || {
        let again = api.delete(&at(&format!("?accepts_incomplete=true&{query}")));
        assert!(matches!(again.status, 202 | 410), "{}", again.text);
        (again.status == 410).then_some(())
    });
    setup.check_nothing_left();
}

#[test]
fn the_catalog_is_complete_and_outlives_the_database() {
    let setup = Setup::new();
    let proxy = Proxy::before(setup.database.url());
    let setup = setup.with("DATABASE_URL", proxy.url());
    let (_broker, api) = region_api(&setup);
    proxy.turn(Mood::Down);
    let catalog = api.get(&format!("/{TOKEN}/v2/catalog"));
    assert_eq!(catalog.status, 200, "{}", catalog.text);
    let service = &catalog.json["services"][0];
    assert_eq!(service["name"], "akkeris-s3");
    for name in ["id", "name", "description"] {
        assert!(service[name].as_str().is_some_and(|it| !it.is_empty()), "{name}");
    }
    assert!(service["bindable"] == true && service["plan_updateable"] == true);
    assert!(service["metadata"]["name"].is_string() && service["metadata"]["image"].is_string());
    let plans = service["plans"].as_array().unwrap();
    assert_eq!(plans.len(), 4);
    for plan in plans {
        let metadata = &plan["metadata"];
        assert!(["id", "name", "description"].iter().all(|it| plan[it].is_string()), "{plan}");
        assert!(
            metadata["human_name"].is_string() && metadata["installable_inside_private_network"].is_boolean()
        );
        let price = &metadata["price"];
        assert!(
            price["cents"].is_number() && price["unit"].is_string() && price["contract"].is_boolean(),
            "{plan}"
        );
        assert!(metadata["compliance"].is_array() && metadata["space_default"].is_boolean());
        assert!(metadata["attributes"].is_object() && metadata["state"] == "ga", "{plan}");
    }
    let refused = api.get(&at("/last_operation"));
    assert_eq!((refused.status, refused.json["description"].is_string()), (503, true), "{}", refused.text);
}
