//! What Akkeris' region-api and controller-api send and need, and what the old broker answered.

mod recordings;

use serde_json::json;

use crate::proxy::{Mood, Proxy};
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
