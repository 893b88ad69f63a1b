//! What Akkeris' region-api and controller-api send and need, a test for each call and quirk; and what the old broker
//! answered.

mod recordings;

use serde_json::json;

use crate::proxy::{Mood, Proxy};
use crate::relay::When;
use crate::support::*;

/// What stands in front of the paths of its broker's URL.
const TOKEN: &str = "a-token-of-27-characters--1";

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

/// An installation with one instance, `one`.
fn provided() -> (Setup, [Broker; 2], Api) {
    let setup = Setup::new();
    let ((broker, api), worker) = (region_api(&setup), setup.worker());
    let made = api.put(&at("?accepts_incomplete=true"), &provision_body(BASIC));
    assert_eq!(made.status, 201, "{}", made.text);
    (setup, [broker, worker], api)
}

/// What region-api makes of `last_operation`, asked with the operation of the last 202.
fn state(api: &Api, operation: &str) -> String {
    let query = format!("/last_operation?service_id={SERVICE}&plan_id={BASIC}{operation}");
    let answer = api.get(&at(&query));
    assert_eq!(answer.status, 200, "{operation}: {}", answer.text);
    assert!(answer.json["description"].is_string(), "{}", answer.text);
    answer.json["state"].as_str().unwrap().to_owned()
}

#[test]
fn a_url_with_a_token_alone_is_a_bearer() {
    let setup = Setup::new().with("BROKER_TOKEN", "a token");
    let (_broker, api) = region_api(&setup);
    let plain = api.without_header("Authorization");
    assert_eq!(plain.get(&format!("/{TOKEN}/v2/catalog")).status, 401);
    let bearer = plain.with_header("Authorization", "Bearer a token");
    assert_eq!(bearer.get(&format!("/{TOKEN}/v2/catalog")).status, 200);
}

#[test]
fn the_catalog_is_waited_for_when_a_broker_has_just_started() {
    let setup = Setup::new();
    drop(region_api(&setup)); // the tables are there
    let proxy = Proxy::before(setup.database.url());
    let setup = setup.with("DATABASE_URL", proxy.url());
    proxy.turn(Mood::Down);
    let mut command = setup.api_command(&[]);
    let broker = Broker::start(command.env("PORT", "0"));
    let api = Api::at(&broker.wait_for_log("listening: address="));
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| api.get("/v2/catalog"));
        broker.wait_for_log("database not ready");
        assert!(!asked.is_finished(), "region-api would do without the broker for half an hour");
        proxy.turn(Mood::Open);
        let answer = asked.join().unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text);
    });
}

#[test]
fn a_plan_with_live_instances_stays_in_the_catalog_and_is_not_sold() {
    let (setup, _processes, api) = provided();
    let sql = format!("update plans set deleted = true where plan in ('{BASIC}', '{VERSIONED}')");
    setup.database.connect().batch_execute(&sql).unwrap();
    let plans = || {
        let catalog = api.get(&format!("/{TOKEN}/v2/catalog")).json;
        let plans = catalog["services"][0]["plans"].as_array().unwrap().clone();
        plans.into_iter().map(|it| (it["id"].clone(), it["metadata"]["state"].clone())).collect::<Vec<_>>()
    };
    eventually("the plan without instances vanishes", PATIENCE, || (plans().len() == 3).then_some(()));
    assert!(plans().contains(&(BASIC.into(), "shutdown".into())), "{:?}", plans());
    let query = format!("?accepts_incomplete=true&service_id={SERVICE}&plan_id={BASIC}");
    assert_eq!(api.delete(&at(&query)).status, 200, "what is not sold can be removed");
}

#[test]
fn an_instance_is_made_at_once_or_later() {
    let (setup, _processes, api) = provided();
    let repeated = api.put(&at("?accepts_incomplete=true"), &provision_body(BASIC));
    assert_eq!(repeated.status, 200, "{}", repeated.text);
    assert!(repeated.json.is_object() && repeated.json.get("async").is_none(), "{}", repeated.text);
    let setup = setup.with("WAIT_SECONDS", "0");
    let (_broker, api) = region_api(&setup);
    let path = format!("/{TOKEN}/v2/service_instances/two");
    let made = api.put(&format!("{path}?accepts_incomplete=true"), &provision_body(BASIC));
    assert_eq!(made.status, 202, "{}", made.text);
    let operation = made.json["operation"].as_str().unwrap();
    let query = format!("service_id={SERVICE}&plan_id={BASIC}&operation={operation}");
    eventually("it is there", PATIENCE, || {
        let polled = api.get(&format!("{path}/last_operation?{query}"));
        assert_eq!(polled.status, 200, "{}", polled.text);
        (polled.json["state"] == "succeeded").then_some(())
    });
}

#[test]
fn an_instance_that_could_not_be_made_is_cleaned_up_without_a_delete() {
    let relay = relay();
    let setup = Setup::new().through(&relay);
    relay.plan("CreateBucket".parse().unwrap(), When::Before, access_denied());
    let ((_broker, api), _worker) = (region_api(&setup), setup.worker());
    let made = api.put(&at("?accepts_incomplete=true"), &provision_body(BASIC));
    assert_eq!(made.status, 202, "{}", made.text);
    let operation = format!("&operation={}", made.json["operation"].as_str().unwrap());
    assert_eq!(state(&api, &operation), "failed");
    eventually("nothing is left", PATIENCE, || setup.left_in_aws().is_empty().then_some(()));
    assert_eq!(state(&api, &operation), "failed", "it is known as long as the platform knows it");
}

#[test]
fn a_bind_right_behind_a_provision_waits_for_it() {
    let setup = Setup::new();
    let (broker, api) = region_api(&setup);
    let early = setup.with("WAIT_SECONDS", "0");
    let (_other, impatient) = region_api(&early);
    let made = impatient.put(&at("?accepts_incomplete=true"), &provision_body(BASIC));
    assert_eq!(made.status, 202, "{}", made.text);
    std::thread::scope(|scope| {
        let bound = scope.spawn(|| api.put(&at("/service_bindings/web-default"), &bind_body(BASIC)));
        let _worker = early.worker();
        // Sent once, and never again.
        let bound = bound.join().unwrap();
        assert_eq!(bound.status, 201, "{} {}", bound.text, broker.log());
        assert!(bound.json["credentials"].is_object(), "{}", bound.text);
    });
}

#[test]
fn the_last_operation_is_the_instances_state_whatever_it_is_asked_with() {
    let (_setup, _processes, api) = provided();
    for operation in
        ["", "&operation=", "&operation=1d71dfe4-0000-4000-8000-000000000000", "&operation=of+old"]
    {
        assert_eq!(state(&api, operation), "succeeded", "{operation}");
    }
}

#[test]
fn a_binding_that_was_never_put_has_credentials_of_texts() {
    let (_setup, _processes, api) = provided();
    for name in ["web-default", "web--worker-default", "web-job-1-default", "never-put"] {
        let fetched = api.get(&at(&format!("/service_bindings/{name}")));
        assert_eq!(fetched.status, 200, "{name}: {}", fetched.text);
        let credentials = fetched.json["credentials"].as_object().unwrap();
        assert!(credentials.values().all(|it| it.as_str().is_some_and(|it| !it.is_empty())), "{name}");
        for wanted in ["S3_BUCKET", "S3_LOCATION", "S3_ACCESS_KEY", "S3_SECRET_KEY", "S3_REGION"] {
            assert!(credentials.contains_key(wanted), "{name}: {wanted}");
        }
    }
}

#[test]
fn a_change_of_plan_is_done_or_refused_within_the_request() {
    let (_setup, _processes, api) = provided();
    let json = api.with_header("Content-Type", "application/json");
    let change = |plan: &str| {
        let body = json!({ "service_id": SERVICE, "plan_id": plan }).to_string();
        json.send("PATCH", &at("?accepts_incomplete=true"), body.as_bytes())
    };
    let refused = change("1d71dfe4-0000-4000-8000-000000000000");
    assert!((400..500).contains(&refused.status), "{}", refused.text);
    let changed = change(VERSIONED);
    assert!(changed.status == 200 && changed.json.is_object(), "{} {}", changed.status, changed.text);
    assert_eq!(state(&api, ""), "succeeded");
}

#[test]
fn an_unbind_is_answered_with_a_body_twice() {
    let (_setup, _processes, api) = provided();
    let path = at("/service_bindings/web-default");
    assert_eq!(api.put(&path, &bind_body(BASIC)).status, 201);
    for status in [200, 410] {
        let unbound = api.delete(&format!("{path}?service_id={SERVICE}&plan_id={BASIC}"));
        assert_eq!((unbound.status, &unbound.json), (status, &json!({})), "{}", unbound.text);
    }
}

#[test]
fn a_delete_is_done_at_once_or_later_and_then_gone() {
    let (setup, [_broker, mut worker], api) = provided();
    let query = at(&format!("?accepts_incomplete=true&service_id={SERVICE}&plan_id={BASIC}"));
    let removed = api.delete(&query);
    assert!(removed.status == 200 && removed.json.is_object(), "{} {}", removed.status, removed.text);
    assert_eq!(api.put(&at("?accepts_incomplete=true"), &provision_body(BASIC)).status, 201);
    assert_eq!(worker.terminate(), Some(0));
    let setup = setup.with("WAIT_SECONDS", "0");
    let (_broker, api) = region_api(&setup);
    let removed = api.delete(&query);
    assert!(removed.status == 202 && removed.json["operation"].is_string(), "{}", removed.text);
    let _worker = setup.worker();
    eventually("a delete of what is gone is 410, never 404", PATIENCE, || {
        let again = api.delete(&query);
        assert!(matches!(again.status, 202 | 410), "{}", again.text);
        (again.status == 410).then_some(())
    });
    setup.check_nothing_left();
}

/// `aka s3:rotate`: neither password nor version, no body, no media type.
#[test]
fn an_action_needs_nothing_but_the_path_of_the_url() {
    let (_setup, _processes, api) = provided();
    let user = api.without_header("Authorization").without_header("X-Broker-API-Version");
    let rotated = user.send("PUT", &at("/actions/credentials"), b"");
    assert_eq!(rotated.status, 200, "{}", rotated.text);
    for name in ["ARN", "UserName", "AccessKeyId", "SecretAccessKey"] {
        assert!(rotated.json[name].is_string(), "{name}");
    }
    assert_eq!(user.get(&at("/actions/rotate_credentials/schema")).status, 200);
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
