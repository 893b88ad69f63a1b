//! PUT and DELETE of a binding.

use super::*;

const KEYS: [&str; 5] = ["S3_ACCESS_KEY", "S3_BUCKET", "S3_LOCATION", "S3_REGION", "S3_SECRET_KEY"];

fn bind(api: &Api, instance: &str, binding: &str, app: &[(&str, Value)]) -> Answer {
    let mut body = bind_body(BASIC);
    for (field, value) in app {
        body[*field] = value.clone();
    }
    api.put(&binding_at(instance, binding), &body)
}

fn unbind(api: &Api, instance: &str, binding: &str, query: &str) -> Answer {
    api.delete(&format!("{}?{query}", binding_at(instance, binding)))
}

/// Credentials are all there, and text, since a platform makes config vars of them.
fn check_credentials(what: &str, answer: &Answer, status: u16, keys: &[&str]) {
    check_json(what, answer, status);
    let credentials = answer.json["credentials"].as_object().unwrap();
    let mut named: Vec<&str> = credentials.keys().map(String::as_str).collect();
    named.sort_unstable();
    assert_eq!(named, keys, "{what}");
    for (name, value) in credentials {
        assert!(value.as_str().is_some_and(|it| !it.is_empty()), "{what}: {name} is {value}");
    }
}

#[test]
fn a_binding_is_made_once() {
    let setup = impatient();
    add_instance(&setup, "a", "available");
    add_instance(&setup, "modifying", "modifying");
    for flags in [&[][..], &["-strict-osb"]] {
        let api = setup.api(flags);
        let binding = format!("b{}", flags.len());
        let first = bind(&api, "a", &binding, &[]);
        check_credentials("first", &first, 201, &KEYS);
        for (name, value) in [
            ("S3_BUCKET", "bucket-a"),
            ("S3_LOCATION", "bucket-a.s3.us-west-2.amazonaws.com"),
            ("S3_ACCESS_KEY", "AKIA-a"),
            ("S3_SECRET_KEY", "secret-a"),
            ("S3_REGION", "us-west-2"),
        ] {
            assert_eq!(first.json["credentials"][name], value);
        }
        let again = bind(&api, "a", &binding, &[("context", json!({"x": 1})), ("parameters", json!({}))]);
        check_credentials("again", &again, 200, &KEYS);
        assert_eq!(again.json, first.json);
        check_credentials("fetched", &api.get(&binding_at("a", &binding)), 200, &KEYS);
        check_credentials("a plan change runs", &bind(&api, "modifying", &binding, &[]), 201, &KEYS);
        let path = format!("{}?accepts_incomplete=true", binding_at("a", &format!("{binding}-async")));
        check_credentials("may be asynchronous", &api.put(&path, &bind_body(BASIC)), 201, &KEYS);
    }
}

#[test]
fn a_bucket_at_an_endpoint_of_its_own_is_bound_with_it() {
    let setup = impatient();
    add_instance(&setup, "a", "available");
    write(&setup, "update resources set s3_endpoint = 'https://s3.example.org'");
    let api = setup.api(&[]);
    let keys = ["S3_ACCESS_KEY", "S3_BUCKET", "S3_ENDPOINT", "S3_LOCATION", "S3_REGION", "S3_SECRET_KEY"];
    let bound = bind(&api, "a", "b", &[]);
    check_credentials("bound", &bound, 201, &keys);
    assert_eq!(bound.json["credentials"]["S3_ENDPOINT"], "https://s3.example.org");
    check_credentials("fetched", &api.get(&binding_at("a", "b")), 200, &keys);
}

#[test]
fn a_binding_of_another_app_is_409() {
    let setup = impatient();
    add_instance(&setup, "a", "available");
    add_instance(&setup, "other", "available");
    let api = setup.api(&[]);
    let (old_form, new_form) = (
        |app: &str| [("app_guid", json!(app))],
        |app: &str| [("bind_resource", json!({ "app_guid": app, "space_guid": "ignored" }))],
    );
    let both = [("app_guid", json!("old")), ("bind_resource", json!({"app_guid": "new"}))];
    check_json("one form", &bind(&api, "a", "one", &old_form("app")), 201);
    check_json("the other form", &bind(&api, "a", "one", &new_form("app")), 200);
    check_json("both forms", &bind(&api, "a", "both", &both), 201);
    check_json("the newer form counts", &bind(&api, "a", "both", &new_form("new")), 200);
    check_json("no app", &bind(&api, "a", "none", &[]), 201);
    check_json("no app in the newer form", &bind(&api, "a", "none", &[("bind_resource", json!({}))]), 200);
    check_json("null is no app", &bind(&api, "a", "none", &[("app_guid", Value::Null)]), 200);
    for (what, answer) in [
        ("another app", bind(&api, "a", "one", &old_form("another"))),
        ("another app in the newer form", bind(&api, "a", "one", &new_form("another"))),
        ("no app any more", bind(&api, "a", "one", &[])),
        ("an app where there was none", bind(&api, "a", "none", &old_form("app"))),
        ("the older form does not count", bind(&api, "a", "both", &old_form("old"))),
    ] {
        check_empty(what, &answer, 409);
    }
    check_json("unchanged by conflicts", &bind(&api, "a", "one", &old_form("app")), 200);
    check_json("ids are of one instance", &bind(&api, "other", "one", &old_form("another")), 201);
    let unbound = unbind(&api, "a", "one", &ids_in_query());
    check_empty("unbind", &unbound, 200);
    check_json("free for another app", &bind(&api, "a", "one", &old_form("another")), 201);
}

#[test]
fn what_cannot_be_a_binding_is_400_before_anything_else() {
    let setup = impatient();
    add_instance(&setup, "a", "available");
    add_instance(&setup, "leaving", "deprovisioning");
    let mut bodies: Vec<(String, Vec<u8>)> =
        unreadable_bodies().into_iter().map(|(what, body)| (what.to_owned(), body)).collect();
    let mut add = |field: &str, value: Value| {
        let body = with_field(bind_body(BASIC), field, value.clone());
        bodies.push((format!("{field}: {value}"), body.to_string().into_bytes()));
    };
    for field in ["service_id", "plan_id"] {
        for value in values_that_are_no_text() {
            add(field, value);
        }
        for value in ["nul\u{0}", "11111111-2222-4333-8444-555555555555", "basic", "'"] {
            add(field, json!(value));
        }
    }
    for parameters in [json!({"read_only": true}), json!([]), json!("x"), json!(1)] {
        add("parameters", parameters);
    }
    for app in [json!(""), json!(1), json!("nul\u{0}"), json!({})] {
        add("bind_resource", json!({ "app_guid": app.clone() }));
        add("app_guid", app);
    }
    for resource in [json!("app"), json!([]), json!(1)] {
        add("bind_resource", resource);
    }
    let process = setup.api(&[]);
    let api = process.with_header("Content-Type", "application/json");
    for (what, body) in bodies {
        for instance in ["a", "leaving", "unknown"] {
            let answer = api.send("PUT", &binding_at(instance, "b"), &body);
            check_error(&format!("{what} at {instance}"), &answer, 400);
        }
    }
    assert_eq!(count(&setup, "bindings"), "0");
}

#[test]
fn an_instance_that_cannot_be_bound_says_why() {
    let setup = impatient();
    add_instance(&setup, "provisioning", "provisioning");
    add_task(&setup, "provisioning", "provision", "pending");
    add_instance(&setup, "deprovisioning", "deprovisioning");
    add_task(&setup, "deprovisioning", "delete", "pending");
    add_failed(&setup, "failing", "pending");
    add_failed(&setup, "failed", "finished");
    add_deleted(&setup, "deleted");
    let api = setup.api(&[]);
    for busy in ["provisioning", "deprovisioning"] {
        check_code(busy, &bind(&api, busy, "b", &[]), "ConcurrencyError");
    }
    for failed in ["failing", "failed"] {
        check_error(failed, &bind(&api, failed, "b", &[]), 422);
    }
    for absent in ["deleted", "unknown"] {
        check_error(absent, &bind(&api, absent, "b", &[]), 404);
    }
    assert_eq!(count(&setup, "bindings"), "0", "a refused bind left something");
}

#[test]
fn an_instance_of_the_old_broker_is_503_until_its_region_is_known() {
    let setup = impatient();
    add_instance(&setup, "a", "available");
    write(&setup, "update resources set organization = null, space = null, region = null, location = null");
    let api = setup.api(&[]);
    for answer in [bind(&api, "a", "b", &[]), api.get(&binding_at("a", "b"))] {
        check_error("before", &answer, 503);
        let seconds = answer.header("retry-after").and_then(|it| it.parse::<u32>().ok());
        assert!(seconds.is_some_and(|it| it > 0), "{:?}", answer.headers);
    }
    assert_eq!(count(&setup, "bindings"), "0");
    write(
        &setup,
        "update resources set region = 'us-west-2', location = 'bucket-a.s3.us-west-2.amazonaws.com'",
    );
    check_credentials("after", &bind(&api, "a", "b", &[]), 201, &KEYS);
}

#[test]
fn a_bind_gives_up_waiting_for_a_provision_after_wait_seconds() {
    let setup = waiting("2");
    add_instance(&setup, "a", "provisioning");
    add_task(&setup, "a", "provision", "pending");
    let api = setup.api(&[]);
    let began = std::time::Instant::now();
    check_code("bind", &bind(&api, "a", "b", &[]), "ConcurrencyError");
    let took = began.elapsed().as_secs_f32();
    assert!((2.0..10.0).contains(&took), "{took} s");
}

#[test]
fn a_bind_that_comes_while_the_provision_runs_waits_for_it() {
    let setup = waiting("50");
    let api = setup.api(&[]);
    std::thread::scope(|scope| {
        let provision = scope.spawn(|| api.provision("a", BASIC));
        eventually("the instance is written down", PATIENCE, || {
            (count(&setup, "resources where status = 'provisioning'") == "1").then_some(())
        });
        let (bind_now, bind_too) =
            (scope.spawn(|| bind(&api, "a", "now", &[])), scope.spawn(|| bind(&api, "a", "too", &[])));
        std::thread::sleep(std::time::Duration::from_millis(500)); // a refusal would come in this time
        assert!(!bind_now.is_finished() && !bind_too.is_finished(), "both wait");
        let _worker = setup.worker();
        check_provisioned("provision", &provision.join().unwrap(), 201);
        for waited in [bind_now, bind_too] {
            let answer = waited.join().unwrap();
            check_json("bind", &answer, 201);
            let bucket = setup.database.text("select name from resources").unwrap();
            assert_eq!(answer.json["credentials"]["S3_BUCKET"], bucket);
        }
        api.remove("a", BASIC);
    });
}

#[test]
fn a_bind_that_waits_learns_that_it_waits_in_vain() {
    let setup = waiting("50");
    for instance in ["failing", "leaving"] {
        add_instance(&setup, instance, "provisioning");
        add_task(&setup, instance, "provision", "pending");
    }
    let api = setup.api(&[]);
    std::thread::scope(|scope| {
        let failing = scope.spawn(|| bind(&api, "failing", "b", &[]));
        let leaving = scope.spawn(|| bind(&api, "leaving", "b", &[]));
        std::thread::sleep(std::time::Duration::from_millis(300)); // they reach the list of those who wait
        assert!(!failing.is_finished() && !leaving.is_finished(), "both wait");
        for (instance, status) in [("failing", "failed"), ("leaving", "deprovisioning")] {
            let (resource, task) = (
                format!("update resources set status = '{status}' where id = '{instance}'"),
                format!("update tasks set status = 'failed', finished = now() where resource = '{instance}'"),
            );
            write(&setup, &format!("{resource}; {task}"));
        }
        check_error("failing", &failing.join().unwrap(), 422);
        check_code("leaving", &leaving.join().unwrap(), "ConcurrencyError");
    });
}

#[test]
fn a_binding_goes_once() {
    let setup = impatient();
    add_instance(&setup, "a", "available");
    add_instance(&setup, "other", "available");
    add_deleted(&setup, "deleted");
    for flags in [&[][..], &["-strict-osb"]] {
        let api = setup.api(flags);
        let ids = ids_in_query();
        check_json("bind", &bind(&api, "a", "b", &[]), 201);
        check_empty("another instance's", &unbind(&api, "other", "b", &ids), 410);
        check_empty("first", &unbind(&api, "a", "b", &ids), 200);
        check_empty("again", &unbind(&api, "a", "b", &ids), 410);
        check_empty("never bound", &unbind(&api, "a", "unknown", &ids), 410);
        check_empty("deleted instance", &unbind(&api, "deleted", "b", &ids), 410);
        check_empty("unknown instance", &unbind(&api, "unknown", "b", &ids), 410);
        check_json("bound once more", &bind(&api, "a", "b", &[]), 201);
        let path = format!("{ids}&accepts_incomplete=true");
        check_empty("may be asynchronous", &unbind(&api, "a", "b", &path), 200);
    }
}

#[test]
fn an_unbind_names_its_plan_in_strict_mode_and_one_of_ours_in_any() {
    let setup = impatient();
    add_instance(&setup, "a", "available");
    let (akkeris, strict) = (setup.api(&[]), setup.api(&["-strict-osb"]));
    let nobodys = "11111111-2222-4333-8444-555555555555";
    for query in [
        format!("service_id={nobodys}&plan_id={BASIC}"),
        format!("service_id={SERVICE}&plan_id={nobodys}"),
        format!("service_id={SERVICE}&plan_id=basic"),
        format!("service_id={SERVICE}&plan_id=%00"),
    ] {
        check_json("bind", &bind(&akkeris, "a", &format!("b{}", query.len()), &[]), 201);
        for api in [&akkeris, &strict] {
            for (instance, binding) in [("a", format!("b{}", query.len())), ("unknown", "b".into())] {
                check_error(&query, &unbind(api, instance, &binding, &query), 400);
            }
        }
        let path = binding_at("a", &format!("b{}", query.len()));
        check_empty("tidied up", &akkeris.delete(&path), 200);
    }
    for query in [String::new(), format!("service_id={SERVICE}"), format!("plan_id={BASIC}&service_id=")] {
        check_json("bind", &bind(&akkeris, "a", "c", &[]), 201);
        check_error(&query, &unbind(&strict, "a", "c", &query), 400);
        check_error(&query, &unbind(&strict, "unknown", "c", &query), 400);
        check_empty(&query, &unbind(&akkeris, "a", "c", &query), 200);
        check_empty(&query, &unbind(&akkeris, "unknown", "c", &query), 410);
    }
}
