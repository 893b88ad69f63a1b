//! GET of a binding: Akkeris asks for bindings that it never made.

use super::*;

#[test]
fn a_binding_that_was_never_made_exists_by_default_and_not_in_strict_mode() {
    let setup = impatient();
    add_instance(&setup, "a", "available");
    add_instance(&setup, "modifying", "modifying");
    let (akkeris, strict) = (setup.api(&[]), setup.api(&["-strict-osb"]));
    for instance in ["a", "modifying"] {
        for binding in ["app-space", "app--worker-space", "cron-job_1", "anything%20at%20all"] {
            let path = binding_at(instance, binding);
            let answer = akkeris.get(&path);
            check_json(&path, &answer, 200);
            assert_eq!(answer.json["credentials"]["S3_SECRET_KEY"], format!("secret-{instance}"));
            assert!(answer.json["credentials"].as_object().unwrap().values().all(Value::is_string));
            check_error(&path, &strict.get(&path), 404);
        }
    }
    assert_eq!(count(&setup, "bindings"), "0", "asking makes none");
}

#[test]
fn a_binding_that_was_made_is_fetched_until_it_is_unbound() {
    let setup = impatient();
    add_instance(&setup, "a", "available");
    add_instance(&setup, "other", "available");
    for flags in [&[][..], &["-strict-osb"]] {
        let api = setup.api(flags);
        let path = binding_at("a", "b");
        let bound = api.put(&path, &bind_body(BASIC));
        check_json("bind", &bound, 201);
        let fetched = api.get(&format!("{path}?{}", ids_in_query()));
        check_json("fetch", &fetched, 200);
        assert_eq!(fetched.json["credentials"], bound.json["credentials"]);
        check_json("without a query", &api.get(&path), 200);
        check_json("with an unknown query", &api.get(&format!("{path}?service_id=x&plan_id=y")), 200);
        check_empty("unbind", &api.delete(&format!("{path}?{}", ids_in_query())), 200);
        let if_not_bound = if flags.is_empty() { 200 } else { 404 };
        assert_eq!(api.get(&path).status, if_not_bound, "after the unbind");
        let elsewhere = api.get(&binding_at("other", "b")).status;
        assert_eq!(elsewhere, if_not_bound, "an id is of one instance");
    }
}

#[test]
fn no_binding_is_fetched_of_an_instance_that_cannot_be_used() {
    let setup = impatient();
    for (instance, status) in
        [("provisioning", "provisioning"), ("deprovisioning", "deprovisioning"), ("failed", "failed")]
    {
        add_instance(&setup, instance, status);
    }
    add_deleted(&setup, "deleted");
    write(&setup, "insert into bindings (resource, binding) select id, 'bound' from resources");
    for flags in [&[][..], &["-strict-osb"]] {
        let api = setup.api(flags);
        for instance in ["provisioning", "deprovisioning", "failed", "deleted", "unknown"] {
            for binding in ["bound", "never-bound"] {
                let path = binding_at(instance, binding);
                let answer = api.get(&path);
                check_error(&path, &answer, 404);
                assert_eq!(answer.json.get("credentials"), None, "{path}");
            }
        }
    }
}
