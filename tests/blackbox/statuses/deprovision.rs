//! DELETE of an instance.

use super::*;

fn delete(api: &Api, instance: &str, query: &str) -> Answer {
    api.delete(&format!("{}?{query}", at(instance)))
}

fn task_status(setup: &Setup, task: &str) -> String {
    let sql = format!("select status::text from tasks where task::text = '{task}'");
    setup.database.text(&sql).unwrap()
}

#[test]
fn an_instance_goes_once() {
    let setup = impatient();
    add_instance(&setup, "a", "available");
    add_deleted(&setup, "deleted");
    let api = setup.api(&[]);
    let operation = operation_of("first", &api.deprovision("a", BASIC));
    for _ in 0..3 {
        assert_eq!(operation_of("again", &api.deprovision("a", BASIC)), operation);
    }
    write(
        &setup,
        "update tasks set status = 'started', worker = 'w', lease_until = now() + interval '1 hour'",
    );
    assert_eq!(operation_of("a worker is at it", &api.deprovision("a", BASIC)), operation);
    assert_eq!(count(&setup, "tasks"), "1");
    write(&setup, "update tasks set status = 'finished'; update resources set deleted = true");
    check_empty("afterwards", &api.deprovision("a", BASIC), 410);
    check_empty("deleted before", &api.deprovision("deleted", BASIC), 410);
    check_empty("never there", &api.deprovision("unknown", BASIC), 410);
    assert_eq!(count(&setup, "tasks"), "1");
}

#[test]
fn the_end_of_an_instance_takes_time_and_the_platform_must_allow_it() {
    let setup = impatient();
    add_instance(&setup, "a", "available");
    add_deleted(&setup, "deleted");
    let api = setup.api(&[]);
    let ids = ids_in_query();
    for query in
        [&ids, "", &format!("{ids}&accepts_incomplete=false"), &format!("{ids}&accepts_incomplete=TRUE")]
    {
        for instance in ["a", "deleted", "unknown"] {
            check_code(&format!("{instance} {query}"), &delete(&api, instance, query), "AsyncRequired");
        }
    }
    let status = setup.database.text("select status from resources where id = 'a'");
    assert_eq!((status.as_deref(), count(&setup, "tasks")), (Some("available"), "0".to_owned()));
}

#[test]
fn a_query_that_names_no_plan_of_ours_is_400_before_anything_else() {
    let setup = impatient();
    add_instance(&setup, "a", "available");
    let nobodys = "11111111-2222-4333-8444-555555555555";
    for flags in [&[][..], &["-strict-osb"]] {
        let api = setup.api(flags);
        for query in [
            format!("service_id={SERVICE}&plan_id={nobodys}"),
            format!("service_id={nobodys}&plan_id={BASIC}"),
            format!("service_id={SERVICE}&plan_id=basic"),
            format!("service_id={SERVICE}&plan_id={BASIC}%00"),
            format!("service_id=%FF&plan_id={BASIC}"),
        ] {
            for instance in ["a", "unknown"] {
                check_error(&query, &delete(&api, instance, &query), 400);
                check_error(
                    &query,
                    &delete(&api, instance, &format!("{query}&accepts_incomplete=true")),
                    400,
                );
            }
        }
    }
    assert_eq!(count(&setup, "tasks"), "0");
}

#[test]
fn a_query_without_ids_is_tolerated_by_default_and_400_in_strict_mode() {
    let setup = impatient();
    let queries = [
        String::new(),
        format!("service_id={SERVICE}"),
        format!("plan_id={BASIC}"),
        format!("service_id=&plan_id={BASIC}"),
        format!("service_id={SERVICE}&plan_id="),
    ];
    for index in 0..queries.len() {
        add_instance(&setup, &format!("i{index}"), "available");
    }
    let (akkeris, strict) = (setup.api(&[]), setup.api(&["-strict-osb"]));
    for (index, query) in queries.iter().enumerate() {
        let (instance, query) = (format!("i{index}"), format!("{query}&accepts_incomplete=true"));
        check_error(&query, &delete(&strict, &instance, &query), 400);
        check_error(&query, &delete(&strict, "unknown", &query), 400);
        operation_of(&query, &delete(&akkeris, &instance, &query));
        check_empty(&query, &delete(&akkeris, "unknown", &query), 410);
    }
    operation_of("in full", &strict.deprovision("i0", BASIC));
}

#[test]
fn a_delete_takes_over_a_provision_that_runs() {
    let setup = impatient();
    let api = setup.api(&[]);
    let provision = operation_of("provision", &api.provision("a", BASIC));
    let removal = operation_of("deprovision", &api.deprovision("a", BASIC));
    assert_ne!(removal, provision);
    assert_eq!(task_status(&setup, &provision), "failed");
    assert_eq!(task_status(&setup, &removal), "pending");
    assert_eq!(operation_of("again", &api.deprovision("a", BASIC)), removal);
    let state = api.get(&format!("{}/last_operation?operation={provision}", at("a")));
    assert_eq!((state.status, &state.json["state"]), (200, &json!("in progress")));
    check_code("provision again", &api.provision("a", BASIC), "ConcurrencyError");
    check_code("bind", &api.put(&binding_at("a", "b"), &bind_body(BASIC)), "ConcurrencyError");
    let _worker = setup.worker();
    eventually("a is gone", PATIENCE, || {
        let answer = api.get(&format!("{}/last_operation", at("a")));
        (answer.status == 410).then_some(())
    });
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}

#[test]
fn a_delete_takes_over_a_provision_whose_worker_has_it_or_had_it() {
    let setup = impatient();
    let api = setup.api(&[]);
    let provision = operation_of("provision", &api.provision("a", BASIC));
    let started = "update tasks set status = 'started', worker = 'w', started = now()";
    write(&setup, &format!("{started}, lease_until = now() + interval '1 hour'"));
    let removal = operation_of("deprovision", &api.deprovision("a", BASIC));
    assert_eq!(operation_of("again", &api.deprovision("a", BASIC)), removal);
    assert_eq!(task_status(&setup, &removal), "pending");
    check_code("provision again", &api.provision("a", BASIC), "ConcurrencyError");
    write(&setup, "update tasks set lease_until = now() - interval '1 second' where status = 'started'");
    let _worker = setup.worker();
    eventually("a is gone", PATIENCE, || {
        let answer = api.get(&format!("{}/last_operation", at("a")));
        (answer.status == 410).then_some(())
    });
    assert_eq!(task_status(&setup, &provision), "failed");
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}

#[test]
fn a_provision_that_is_taken_over_while_it_is_waited_for_is_202() {
    let setup = waiting("50");
    let api = setup.api(&[]);
    std::thread::scope(|scope| {
        let provision = scope.spawn(|| api.provision("a", BASIC));
        let operation = eventually("the task is written down", PATIENCE, || {
            setup.database.text("select task::text from tasks")
        });
        let removal = scope.spawn(|| api.deprovision("a", BASIC));
        let answer = provision.join().unwrap();
        assert_eq!(operation_of("provision", &answer), operation);
        assert!(!removal.is_finished(), "it waits too");
        let _worker = setup.worker();
        check_empty("deprovision", &removal.join().unwrap(), 200);
    });
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}

#[test]
fn an_instance_that_failed_and_was_cleaned_up_goes_at_once() {
    let setup = impatient();
    add_failed(&setup, "cleaned", "finished");
    add_failed(&setup, "uncollected", "finished");
    let cleaning = add_failed(&setup, "cleaning", "pending");
    let api = setup.api(&[]);
    check_empty("cleaned", &api.deprovision("cleaned", BASIC), 200);
    check_empty("cleaned, again", &api.deprovision("cleaned", BASIC), 410);
    let state = api.get(&format!("{}/last_operation", at("cleaned")));
    check_empty("cleaned, polled", &state, 410);
    assert_eq!(operation_of("cleaning", &api.deprovision("cleaning", BASIC)), cleaning);
    assert_eq!(operation_of("cleaning, again", &api.deprovision("cleaning", BASIC)), cleaning);
    check_code("asynchronous all the same", &delete(&api, "uncollected", &ids_in_query()), "AsyncRequired");
    assert_eq!(count(&setup, "tasks where action = 'delete'"), "3", "none is enqueued twice");
    assert_eq!(count(&setup, "resources where id = 'cleaned' and password is not null"), "0");
}

#[test]
fn a_delete_by_another_plan_of_the_catalog_still_goes_through() {
    // After a change of plan the platform may name either.
    let setup = impatient();
    add_instance(&setup, "a", "available");
    operation_of("other plan", &setup.api(&[]).deprovision("a", SHIELD));
}

#[test]
fn deletes_at_once_make_one_task() {
    let setup = impatient();
    add_instance(&setup, "a", "available");
    let api = setup.api(&[]);
    let operations: std::collections::BTreeSet<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..10).map(|_| scope.spawn(|| api.deprovision("a", BASIC))).collect();
        let answers = threads.into_iter().map(|it| it.join().unwrap());
        answers.map(|it| operation_of("one of ten", &it)).collect()
    });
    assert_eq!((operations.len(), count(&setup, "tasks")), (1, "1".to_owned()));
}
