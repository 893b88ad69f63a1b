//! GET of the last operation: of the instance for Akkeris, of the operation in strict mode.

use super::*;

fn poll(api: &Api, instance: &str, query: &str) -> Answer {
    api.get(&format!("{}/last_operation{query}", at(instance)))
}

/// A 200 with this state, and words for people.
fn check_state(what: &str, answer: &Answer, state: &str) {
    check_json(what, answer, 200);
    assert_eq!(answer.json["state"], state, "{what}: {}", answer.text);
    let description = answer.json["description"].as_str().unwrap_or_default();
    assert!(!description.is_empty(), "{what}: {}", answer.text);
    for only_elsewhere in ["instance_usable", "update_repeatable", "error"] {
        assert_eq!(answer.json.get(only_elsewhere), None, "{what}");
    }
}

/// One instance in each state, named after it.
fn add_all(setup: &Setup) {
    add_instance(setup, "provisioning", "provisioning");
    add_task(setup, "provisioning", "provision", "pending");
    add_instance(setup, "being-made", "provisioning");
    add_task(setup, "being-made", "provision", "started");
    add_instance(setup, "available", "available");
    add_task(setup, "available", "provision", "finished");
    add_instance(setup, "modifying", "modifying");
    add_instance(setup, "deprovisioning", "deprovisioning");
    add_task(setup, "deprovisioning", "delete", "pending");
    add_failed(setup, "failing", "pending");
    add_failed(setup, "failed", "finished");
    add_deleted(setup, "deleted");
}

const STATES: [(&str, &str); 7] = [
    ("provisioning", "in progress"),
    ("being-made", "in progress"),
    ("available", "succeeded"),
    ("modifying", "in progress"),
    ("deprovisioning", "in progress"),
    ("failing", "failed"),
    ("failed", "failed"),
];

#[test]
fn every_state_of_an_instance_is_told() {
    let setup = impatient();
    add_all(&setup);
    for flags in [&[][..], &["-strict-osb"]] {
        let api = setup.api(flags);
        for (instance, state) in STATES {
            check_state(instance, &poll(&api, instance, ""), state);
            let query = format!("?{}&operation=", ids_in_query());
            check_state(instance, &poll(&api, instance, &query), state);
        }
        check_error("unknown", &poll(&api, "unknown", ""), 404);
        check_empty("deleted", &poll(&api, "deleted", ""), 410);
    }
}

#[test]
fn by_default_no_query_of_akkeris_is_an_error() {
    let setup = impatient();
    add_all(&setup);
    let api = setup.api(&[]);
    let foreign = add_task(&setup, "available", "delete", "failed");
    for query in [
        "?operation=unknown".to_owned(),
        "?operation=11111111-2222-4333-8444-555555555555".to_owned(),
        "?operation=%27%3B%20--".to_owned(),
        format!("?operation={}", "x".repeat(8_000)),
        format!("?operation={foreign}"),
        format!("?service_id={SERVICE}&plan_id={SHIELD}&operation=old"),
        "?service_id=unknown&plan_id=unknown".to_owned(),
        "?service_id&plan_id&operation".to_owned(),
    ] {
        for (instance, state) in STATES {
            let what = format!("{instance}{}", &query[..query.len().min(80)]);
            check_state(&what, &poll(&api, instance, &query), state);
        }
        check_error("unknown", &poll(&api, "unknown", &query), 404);
        check_empty("deleted", &poll(&api, "deleted", &query), 410);
    }
}

#[test]
fn in_strict_mode_the_named_operation_is_told() {
    let setup = impatient();
    let api = setup.api(&["-strict-osb"]);
    let provision = operation_of("provision", &api.provision("a", BASIC));
    let of = |operation: &str| poll(&api, "a", &format!("?operation={operation}"));
    check_state("pending", &of(&provision), "in progress");
    write(
        &setup,
        "update tasks set status = 'finished', finished = now(); update resources set status = 'available', username = 'AKIA'",
    );
    check_state("finished", &of(&provision), "succeeded");
    let update = add_task(&setup, "a", "change-plans", "failed");
    check_state("a failed operation of a usable instance", &of(&update), "failed");
    check_state("the instance itself", &poll(&api, "a", ""), "succeeded");
    let delete = operation_of("deprovision", &api.deprovision("a", BASIC));
    check_state("delete", &of(&delete), "in progress");
    check_state("an older operation", &of(&provision), "succeeded");
    write(&setup, "update tasks set status = 'finished'; update resources set deleted = true");
    check_empty("deleted", &of(&delete), 410);
    check_empty("deleted, without its name", &poll(&api, "a", ""), 410);
}

#[test]
fn in_strict_mode_an_operation_must_be_one_of_the_instance() {
    let setup = impatient();
    add_all(&setup);
    let foreign = add_task(&setup, "available", "provision", "finished");
    let api = setup.api(&["-strict-osb"]);
    for operation in ["unknown", "11111111-2222-4333-8444-555555555555", "%27", &foreign] {
        let query = format!("?operation={operation}");
        check_error(operation, &poll(&api, "provisioning", &query), 400);
        check_error(operation, &poll(&api, "unknown", &query), 404);
    }
    check_error("NUL", &poll(&api, "provisioning", "?operation=%00"), 400);
}

#[test]
fn a_provision_that_a_delete_took_over_has_failed_in_strict_mode() {
    let setup = impatient();
    let api = setup.api(&["-strict-osb"]);
    let provision = operation_of("provision", &api.provision("a", BASIC));
    let delete = operation_of("deprovision", &api.deprovision("a", BASIC));
    check_state("provision", &poll(&api, "a", &format!("?operation={provision}")), "failed");
    check_state("delete", &poll(&api, "a", &format!("?operation={delete}")), "in progress");
    check_state("instance", &poll(&api, "a", ""), "in progress");
}
