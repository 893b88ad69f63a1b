//! What is not there, and what is there for other methods.

use super::*;

#[test]
fn unknown_paths_are_404_with_a_body() {
    let setup = impatient();
    let api = setup.api(&[]);
    let binding = binding_at("a", "b");
    for path in [
        "/",
        "/v2",
        "/v2/",
        "/v3/catalog",
        "/V2/catalog",
        "/v2/catalog/",
        "/v2/catalogs",
        "//v2/catalog",
        "/v2/service_instances",
        "/v2/service_instances/a/",
        "/v2/service_instances/a/last_operations",
        "/v2/service_instances/a/last_operation/x",
        "/v2/service_instances/a/service_bindings",
        "/v2/service_instances/a/parameters",
        &format!("{binding}/"),
        &format!("{binding}/last_operation"),
        &format!("{binding}/x"),
        "/healthz/",
        "/metrics/x",
        "/favicon.ico",
    ] {
        for method in ["GET", "PUT", "DELETE", "PATCH", "POST"] {
            check_error(&format!("{method} {path}"), &api.send(method, path, b""), 404);
        }
    }
}

#[test]
fn wrong_methods_are_405_and_say_which_are_right() {
    let setup = impatient();
    add_instance(&setup, "a", "available");
    let api = setup.api(&[]);
    let last_operation = format!("{}/last_operation", at("a"));
    let (instance, absent, binding) = (at("a"), at("absent"), binding_at("a", "b"));
    for (path, wrong, allowed) in [
        ("/v2/catalog", &["PUT", "POST", "PATCH", "DELETE"][..], "GET"),
        (&instance, &["POST", "GET"], "PUT, PATCH, DELETE"),
        (&absent, &["POST", "GET"], "PUT, PATCH, DELETE"),
        (&last_operation, &["PUT", "POST", "PATCH", "DELETE"], "GET"),
        (&binding, &["POST", "PATCH"], "PUT, GET, DELETE"),
        ("/healthz", &["PUT", "POST", "PATCH", "DELETE"], "GET"),
        ("/readyz", &["PUT", "POST", "PATCH", "DELETE"], "GET"),
    ] {
        for method in wrong {
            let (what, answer) = (format!("{method} {path}"), api.send(method, path, b"{}"));
            check_error(&what, &answer, 405);
            let mut said: Vec<&str> = answer.header("allow").unwrap_or_default().split(", ").collect();
            let mut right: Vec<&str> = allowed.split(", ").collect();
            said.sort_unstable();
            right.sort_unstable();
            assert_eq!(said, right, "{what}");
        }
    }
    let kept =
        "select status from resources where id = 'a' and plan::text = '1448e0b0-429a-4fa8-92a0-fd0d9e121cae'";
    assert_eq!(setup.database.text(kept).as_deref(), Some("available"));
}

#[test]
fn strict_mode_wants_bodies_that_say_they_are_json() {
    let setup = impatient();
    add_instance(&setup, "a", "available");
    let body = provision_body(BASIC).to_string();
    let strict = setup.api(&["-strict-osb"]);
    for wrong in ["text/plain", "application/x-www-form-urlencoded", "application/xml"] {
        let caller = strict.with_header("Content-Type", wrong);
        check_error(wrong, &caller.send("PUT", &async_at("new"), body.as_bytes()), 400);
        check_error(wrong, &caller.send("PUT", &binding_at("a", "b"), body.as_bytes()), 400);
    }
    for (index, right) in
        ["application/json", "application/json; charset=utf-8", "Application/JSON"].iter().enumerate()
    {
        let caller = strict.with_header("Content-Type", right);
        operation_of(right, &caller.send("PUT", &async_at(&format!("i{index}")), body.as_bytes()));
    }
    let process = setup.api(&[]);
    let akkeris = process.with_header("Content-Type", "text/plain");
    operation_of("default", &akkeris.send("PUT", &async_at("new"), body.as_bytes()));
}
