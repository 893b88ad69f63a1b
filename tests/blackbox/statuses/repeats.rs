//! PUT of an instance whose id is taken already, or was.

use super::*;

/// The same request with other attributes.
fn conflicting() -> Vec<(&'static str, Value)> {
    vec![
        ("plan", provision_body(VERSIONED)),
        ("organization", changed("organization_guid", json!("their org"))),
        ("space", changed("space_guid", json!("their space"))),
    ]
}

#[test]
fn a_repeat_while_it_runs_is_202_with_the_same_operation() {
    let setup = impatient();
    let api = setup.api(&[]);
    let operation = operation_of("first", &api.provision("a", BASIC));
    for _ in 0..3 {
        assert_eq!(operation_of("again", &api.provision("a", BASIC)), operation);
    }
    let body = changed("context", json!({"other": "context"}));
    assert_eq!(operation_of("other context", &api.put(&async_at("a"), &body)), operation);
    for (what, body) in conflicting() {
        check_empty(what, &api.put(&async_at("a"), &body), 409);
    }
    assert_eq!(operation_of("after conflicts", &api.provision("a", BASIC)), operation);
    write(
        &setup,
        "update tasks set status = 'started', worker = 'w', lease_until = now() + interval '1 hour'",
    );
    assert_eq!(operation_of("a worker is at it", &api.provision("a", BASIC)), operation);
    check_empty("a worker is at it", &api.provision("a", VERSIONED), 409);
    assert_eq!((count(&setup, "resources"), count(&setup, "tasks")), ("1".into(), "1".into()));
}

#[test]
fn a_repeat_when_it_is_ready_is_200_and_anything_else_is_409() {
    let setup = impatient();
    add_instance(&setup, "a", "available");
    let api = setup.api(&[]);
    check_provisioned("same", &api.provision("a", BASIC), 200);
    for (what, body) in conflicting() {
        check_empty(what, &api.put(&async_at("a"), &body), 409);
    }
    check_provisioned("same after conflicts", &api.provision("a", BASIC), 200);
    assert_eq!(count(&setup, "tasks"), "0");
}

#[test]
fn an_instance_of_the_old_broker_takes_the_first_organization_and_space_that_come() {
    let setup = impatient();
    add_instance(&setup, "a", "available");
    write(&setup, "update resources set organization = null, space = null");
    let api = setup.api(&[]);
    check_empty("other plan", &api.provision("a", VERSIONED), 409);
    check_provisioned("first", &api.provision("a", BASIC), 200);
    check_provisioned("same", &api.provision("a", BASIC), 200);
    let tasks = setup.database.text("select string_agg(action, ' ') from tasks");
    assert_eq!(tasks.as_deref(), Some("tag"), "who pays is told to AWS, once");
    for (what, body) in conflicting() {
        check_empty(what, &api.put(&async_at("a"), &body), 409);
    }
}

#[test]
fn an_id_is_busy_while_its_instance_is_being_removed() {
    let setup = impatient();
    add_instance(&setup, "asked", "available");
    add_failed(&setup, "pending", "pending");
    add_failed(&setup, "started", "started");
    let api = setup.api(&[]);
    operation_of("deprovision", &api.deprovision("asked", BASIC));
    for instance in ["asked", "pending", "started"] {
        for plan in [BASIC, VERSIONED] {
            check_code(instance, &api.provision(instance, plan), "ConcurrencyError");
        }
    }
    assert_eq!(count(&setup, "tasks where action = 'provision' and status <> 'failed'"), "0");
}

#[test]
fn the_id_of_an_instance_that_is_gone_may_be_used_again() {
    let setup = impatient();
    add_instance(&setup, "deleted", "available");
    let api = setup.api(&[]);
    check_json("bind", &api.put(&binding_at("deleted", "b"), &bind_body(BASIC)), 201);
    write(
        &setup,
        "update resources set deleted = true, status = 'deprovisioning', username = null, password = null",
    );
    add_failed(&setup, "failed", "finished");
    for instance in ["deleted", "failed"] {
        let body = with_field(provision_body(SHIELD), "organization_guid", json!("another org"));
        let operation = operation_of(instance, &api.put(&async_at(instance), &body));
        assert_eq!(operation_of(instance, &api.put(&async_at(instance), &body)), operation);
        let state = api.get(&format!("{}/last_operation", at(instance)));
        assert_eq!(state.json["state"], "in progress", "{instance}");
        check_empty(instance, &api.provision(instance, BASIC), 409);
        let name = setup.database.text(&format!("select name from resources where id = '{instance}'"));
        assert_ne!(name, Some(format!("bucket-{instance}")), "a bucket's name is never used again");
    }
    assert_eq!(count(&setup, "bindings"), "0", "the former instance's binding is not the new one's");
}

/// Sends all of these at the same moment; the answers in order.
fn at_once(api: &Api, instance: &str, bodies: &[Value]) -> Vec<Answer> {
    let barrier = std::sync::Barrier::new(bodies.len());
    std::thread::scope(|scope| {
        let send = |body| {
            let (barrier, path) = (&barrier, async_at(instance));
            scope.spawn(move || {
                barrier.wait();
                api.put(&path, body)
            })
        };
        let threads: Vec<_> = bodies.iter().map(send).collect();
        threads.into_iter().map(|it| it.join().unwrap()).collect()
    })
}

#[test]
fn twenty_equal_requests_at_once_make_one_instance() {
    let setup = Setup::new();
    let (api, _worker) = (setup.api(&[]), setup.worker());
    let answers = at_once(&api, "a", &vec![provision_body(BASIC); 20]);
    for answer in &answers {
        assert!(matches!(answer.status, 200..=202), "{} {}", answer.status, answer.text);
        check_json("one of twenty", answer, answer.status);
    }
    assert!(answers.iter().filter(|it| it.status == 201).count() <= 1, "one request makes it");
    api.wait_for_state("a", "succeeded");
    let made = (count(&setup, "resources"), count(&setup, "tasks where action = 'provision'"));
    assert_eq!(made, ("1".into(), "1".into()));
    let bucket = setup.database.text("select name from resources").unwrap();
    assert_eq!(setup.left_in_aws(), [bucket.clone(), bucket], "one bucket, one user");
    api.remove("a", BASIC);
}

#[test]
fn of_unequal_requests_at_once_one_kind_wins() {
    let setup = impatient();
    let api = setup.api(&[]);
    for round in 0..5 {
        let instance = format!("a{round}");
        let bodies: Vec<Value> =
            (0..10).map(|it| provision_body(if it % 2 == 0 { BASIC } else { VERSIONED })).collect();
        let answers = at_once(&api, &instance, &bodies);
        let kept = setup.database.text(&format!("select plan::text from resources where id = '{instance}'"));
        let operations: std::collections::BTreeSet<String> = bodies
            .iter()
            .zip(&answers)
            .filter_map(|(body, answer)| {
                if body["plan_id"].as_str() == kept.as_deref() {
                    return Some(operation_of("the winning kind", answer));
                }
                check_empty("the other kind", answer, 409);
                None
            })
            .collect();
        assert_eq!(operations.len(), 1, "{operations:?}");
    }
    assert_eq!((count(&setup, "resources"), count(&setup, "tasks")), ("5".into(), "5".into()));
}

#[test]
fn with_a_worker_at_hand_answers_are_final() {
    let setup = Setup::new();
    let (api, _worker) = (setup.api(&[]), setup.worker());
    for _ in 0..2 {
        check_provisioned("provision", &api.provision("a", BASIC), 201);
        check_provisioned("again", &api.provision("a", BASIC), 200);
        check_empty("other plan", &api.provision("a", SHIELD), 409);
        let state = api.get(&format!("{}/last_operation", at("a")));
        assert_eq!(state.json["state"], "succeeded", "at once");
        let credentials = api.bind("a", "b");
        assert_eq!(credentials["S3_BUCKET"], setup.database.text("select name from resources").unwrap());
        check_empty("deprovision", &api.deprovision("a", BASIC), 200);
        check_empty("again", &api.deprovision("a", BASIC), 410);
        let state = api.get(&format!("{}/last_operation", at("a")));
        check_empty("last_operation", &state, 410);
    }
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}
