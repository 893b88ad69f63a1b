//! PUT of an instance: what is refused, in which order, and what is accepted.

use super::*;

/// Another offering with a plan of its own.
const OTHER_OFFERING: &str = "
    insert into services (service, name, human_name, description)
    values ('9d1b0a3e-0000-4000-8000-000000000001', 'other', 'Other', 'Something else.');
    insert into plans (plan, service, name, human_name, description, version, type, scheme, attributes, provider,
        provider_private_details)
    values ('9d1b0a3e-0000-4000-8000-000000000002', '9d1b0a3e-0000-4000-8000-000000000001', 'plain', 'Plain',
        'A plan.', 'v1', 's3', 's3', '{}', 'aws-s3', '{}')";
const OTHER_SERVICE: &str = "9d1b0a3e-0000-4000-8000-000000000001";
const OTHER_PLAN: &str = "9d1b0a3e-0000-4000-8000-000000000002";
const NOBODYS: &str = "11111111-2222-4333-8444-555555555555";

/// Bodies that must be refused, whatever the query says.
fn bad_requests() -> Vec<(String, Vec<u8>)> {
    let mut bodies: Vec<(String, Vec<u8>)> =
        unreadable_bodies().into_iter().map(|(what, body)| (what.to_owned(), body)).collect();
    let mut add = |field: &str, value: Value| {
        let body = changed(field, value.clone()).to_string().into_bytes();
        bodies.push((format!("{field}: {value}"), body));
    };
    for field in ["service_id", "plan_id", "organization_guid", "space_guid"] {
        for value in values_that_are_no_text() {
            add(field, value);
        }
        add(field, json!("nul\u{0}"));
    }
    for nobodys in [NOBODYS, "basic", "no uuid", &BASIC[1..], "'"] {
        add("plan_id", json!(nobodys));
        add("service_id", json!(nobodys));
    }
    add("plan_id", json!(OTHER_PLAN));
    add("service_id", json!(OTHER_SERVICE));
    for parameters in
        [json!({"versioned": true}), json!({"a": null}), json!([]), json!(["a"]), json!("{}"), json!(1)]
    {
        add("parameters", parameters);
    }
    for info in [json!("1.0.0"), json!(1), json!({"version": 1})] {
        add("maintenance_info", info);
    }
    bodies
}

#[test]
fn what_cannot_be_an_instance_is_400_before_anything_else() {
    let setup = impatient();
    add_instance(&setup, "taken", "available");
    for flags in [&[][..], &["-strict-osb"]] {
        let process = setup.api(flags);
        let api = process.with_header("Content-Type", "application/json");
        if flags.is_empty() {
            write(&setup, OTHER_OFFERING);
        }
        for (what, body) in bad_requests() {
            check_error(&what, &api.send("PUT", &async_at("new"), &body), 400);
            check_error(&what, &api.send("PUT", &async_at("taken"), &body), 400);
            check_error(&what, &api.send("PUT", &at("new"), &body), 400);
        }
    }
    assert_eq!((count(&setup, "resources"), count(&setup, "tasks")), ("1".into(), "0".into()));
}

#[test]
fn what_is_not_for_us_to_read_is_ignored() {
    let setup = impatient();
    let api = setup.api(&["-strict-osb"]);
    for (index, (field, value)) in [
        ("context", json!({"platform": "akkeris", "nested": {"deep": [1, null]}})),
        ("context", json!("nul\u{0}")),
        ("content", json!({"misspelled": true})),
        ("vendor_field", json!([1, 2, 3])),
        ("previous_values", json!({})),
        ("parameters", json!({})),
        ("maintenance_info", json!({})),
        ("maintenance_info", json!({"description": "of a version that is not named"})),
        ("accepts_incomplete", json!(false)),
        ("organization_guid", json!("an organisation's näme")),
    ]
    .into_iter()
    .enumerate()
    {
        let what = format!("{field}: {value}");
        operation_of(&what, &api.put(&async_at(&format!("i{index}")), &changed(field, value)));
    }
    let mut body = provision_body(BASIC);
    for field in ["parameters", "context", "maintenance_info"] {
        body[field] = Value::Null;
    }
    operation_of("null is absent", &api.put(&async_at("nulls"), &body));
    let query = format!("{}&accepts_incomplete=false&unknown=1", async_at("query"));
    operation_of("the first of a name counts", &api.put(&query, &provision_body(BASIC)));
}

#[test]
fn an_instance_takes_time_and_the_platform_must_allow_it() {
    let setup = impatient();
    add_instance(&setup, "taken", "available");
    add_instance(&setup, "leaving", "deprovisioning");
    let api = setup.api(&[]);
    for query in [
        "",
        "?accepts_incomplete=false",
        "?accepts_incomplete=",
        "?accepts_incomplete=TRUE",
        "?accepts_incomplete=1",
    ] {
        for instance in ["new", "taken", "leaving"] {
            for body in [
                provision_body(BASIC),
                provision_body(VERSIONED),
                changed("maintenance_info", json!({"version": "1.0.0"})),
            ] {
                let answer = api.put(&format!("{}{query}", at(instance)), &body);
                check_code(&format!("{instance}{query}"), &answer, "AsyncRequired");
            }
        }
    }
    assert_eq!((count(&setup, "resources"), count(&setup, "tasks")), ("2".into(), "0".into()));
}

#[test]
fn plans_have_no_maintenance_version_so_none_matches() {
    let setup = impatient();
    add_instance(&setup, "taken", "available");
    add_instance(&setup, "leaving", "deprovisioning");
    let api = setup.api(&[]);
    for version in ["1.0.0", "0.0.0", "", "v1"] {
        for (instance, plan) in [("new", BASIC), ("taken", VERSIONED), ("leaving", BASIC)] {
            let body = with_field(provision_body(plan), "maintenance_info", json!({ "version": version }));
            let answer = api.put(&async_at(instance), &body);
            check_code(&format!("{instance} {version}"), &answer, "MaintenanceInfoConflict");
        }
    }
    assert_eq!((count(&setup, "resources"), count(&setup, "tasks")), ("2".into(), "0".into()));
}

#[test]
fn a_new_instance_is_202_with_a_short_operation() {
    let setup = impatient();
    let api = setup.api(&[]);
    for (id, plan) in [("a", BASIC), ("b", VERSIONED), ("c", SHIELD), ("d", SHIELD_VERSIONED)] {
        let operation = operation_of(id, &api.provision(id, plan));
        assert!(operation.len() <= 255, "{operation}");
        let kept = setup.database.text(&format!("select plan::text from resources where id = '{id}'"));
        assert_eq!(kept.as_deref(), Some(plan));
    }
    let names = "(select distinct name from resources where name like '%-u%') as names";
    assert_eq!(count(&setup, names), "4", "each has a bucket's name of its own from the start");
}

#[test]
fn a_plan_that_is_not_sold_any_more_makes_no_new_instances() {
    let setup = impatient();
    let api = setup.api(&[]);
    let running = operation_of("while sold", &api.provision("running", BASIC));
    add_instance(&setup, "ready", "available");
    add_deleted(&setup, "gone");
    for retired in [
        "update plans set deprecated = true where name = 'basic'",
        "update plans set deprecated = false, deleted = true where name = 'basic'",
        "update plans set deleted = false where name = 'basic'; update services set deprecated = true",
        "update services set deprecated = false, deleted = true",
    ] {
        write(&setup, retired);
        check_error(retired, &api.provision("new", BASIC), 400);
        check_error(retired, &api.provision("gone", BASIC), 400);
        check_provisioned(retired, &api.provision("ready", BASIC), 200);
        assert_eq!(operation_of(retired, &api.provision("running", BASIC)), running);
        check_empty(retired, &api.provision("ready", VERSIONED), 409);
        let binding = binding_at("ready", &format!("b{}", retired.len()));
        check_json(retired, &api.put(&binding, &bind_body(BASIC)), 201);
        check_json(retired, &api.get(&binding), 200);
        check_empty(retired, &api.delete(&format!("{binding}?{}", ids_in_query())), 200);
        check_json(retired, &api.get(&format!("{}/last_operation", at("ready"))), 200);
    }
    assert_eq!(count(&setup, "resources"), "3");
    operation_of("deprovision", &api.deprovision("ready", BASIC));
}
