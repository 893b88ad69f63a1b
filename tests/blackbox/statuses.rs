//! Every status and body that the routes can give, by themselves or in the states that lead there.
//!
//! Most states are written into the tables instead of being waited for; a worker runs only where
//! its work is the point.

mod auth;
mod bindings;
mod catalog;
mod deprovision;
mod fetch;
mod ids;
mod last_operation;
pub(crate) mod outage;
mod paths;
mod provision;
mod repeats;
mod update;
mod version;

use serde_json::{Value, json};

use crate::support::*;

/// Waits this long for a task, on a database that has its tables already.
fn waiting(seconds: &str) -> Setup {
    let setup = Setup::new().with("WAIT_SECONDS", seconds);
    write(&setup, include_str!("../../schema.sql"));
    setup
}

/// Requests wait for no task: what takes a worker is 202 at once.
fn impatient() -> Setup {
    waiting("0")
}

/// The path of an instance.
fn at(instance: &str) -> String {
    format!("/v2/service_instances/{instance}")
}

/// The same, with the word that the platform waits.
fn async_at(instance: &str) -> String {
    format!("/v2/service_instances/{instance}?accepts_incomplete=true")
}

/// The path of a binding.
fn binding_at(instance: &str, binding: &str) -> String {
    format!("/v2/service_instances/{instance}/service_bindings/{binding}")
}

/// The query that every DELETE should have.
fn ids_in_query() -> String {
    format!("service_id={SERVICE}&plan_id={BASIC}")
}

/// `body` with another value for a field; null takes it out.
fn with_field(mut body: Value, field: &str, value: Value) -> Value {
    let map = body.as_object_mut().unwrap();
    if value.is_null() {
        map.remove(field);
    } else {
        map.insert(field.to_owned(), value);
    }
    body
}

/// A provision of plan `basic` with one field changed.
fn changed(field: &str, value: Value) -> Value {
    with_field(provision_body(BASIC), field, value)
}

/// An answer is JSON, says so, and has this status.
fn check_json(what: &str, answer: &Answer, status: u16) {
    assert_eq!(answer.status, status, "{what}: {}", answer.text);
    let media_type = answer.header("content-type").unwrap_or_default();
    assert_eq!(media_type, "application/json", "{what}");
    assert!(answer.json.is_object(), "{what}: {}", answer.text);
}

/// An error says why, in words, and carries no code.
fn check_error(what: &str, answer: &Answer, status: u16) {
    check_json(what, answer, status);
    let description = answer.json["description"].as_str().unwrap_or_default();
    assert!(!description.is_empty(), "{what}: {}", answer.text);
    assert_eq!(answer.json.get("error"), None, "{what}: {}", answer.text);
}

/// A 422 says why, in words and as one of the specification's codes.
fn check_code(what: &str, answer: &Answer, code: &str) {
    check_json(what, answer, 422);
    let description = answer.json["description"].as_str().unwrap_or_default();
    assert!(!description.is_empty(), "{what}: {}", answer.text);
    assert_eq!(answer.json["error"], code, "{what}");
}

/// An answer that is `{}` to the letter.
fn check_empty(what: &str, answer: &Answer, status: u16) {
    check_json(what, answer, status);
    assert_eq!(answer.text, "{}", "{what}");
}

/// The answer to a provision that is done: where the actions are, and nothing else.
fn check_provisioned(what: &str, answer: &Answer, status: u16) {
    check_json(what, answer, status);
    let names: Vec<&String> = answer.json.as_object().unwrap().keys().collect();
    assert_eq!(names, ["extension_apis"], "{what}: {}", answer.text);
    let api = answer.json["extension_apis"][0].as_object().unwrap();
    let (server, page) = (api["server_url"].as_str().unwrap(), api["discovery_url"].as_str().unwrap());
    assert!(
        server.starts_with("/v2/service_instances/") && server.ends_with("/actions/"),
        "{what}: {server}"
    );
    assert_eq!(page, format!("{server}rotate_credentials/schema"), "{what}");
}

/// The operation of a 202.
fn operation_of(what: &str, answer: &Answer) -> String {
    check_json(what, answer, 202);
    let operation = answer.json["operation"].as_str().unwrap_or_default();
    assert!(!operation.is_empty(), "{what}: {}", answer.text);
    operation.to_owned()
}

/// Runs statements in the test's database.
fn write(setup: &Setup, sql: &str) {
    setup.database.connect().batch_execute(sql).expect(sql);
}

/// An instance of plan `basic` in this status, as [`provision_body`] asks for it, with all that its
/// credentials are made of.
fn add_instance(setup: &Setup, id: &str, status: &str) {
    let sql = format!(
        "insert into resources (id, name, plan, claimed, status, username, password, endpoint, organization,
             space, region, location)
         values ('{id}', 'bucket-{id}', '{BASIC}', true, '{status}', 'AKIA-{id}', 'secret-{id}', 'bucket-{id}',
             'our org', '00000000-0000-0000-0000-000000000000', 'us-west-2',
             'bucket-{id}.s3.us-west-2.amazonaws.com')"
    );
    write(setup, &sql);
}

/// A task of an instance; its id.
fn add_task(setup: &Setup, instance: &str, action: &str, status: &str) -> String {
    let sql = format!(
        "insert into tasks (task, resource, action, status, finished)
         values (gen_random_uuid(), '{instance}', '{action}', '{status}',
             case when '{status}' in ('finished', 'failed') then now() end)
         returning task::text"
    );
    setup.database.text(&sql).unwrap()
}

/// An instance whose provision was given up; its removal is in `status`.
fn add_failed(setup: &Setup, id: &str, status: &str) -> String {
    add_instance(setup, id, "failed");
    add_task(setup, id, "provision", "failed");
    add_task(setup, id, "delete", status)
}

/// An instance that was there once.
fn add_deleted(setup: &Setup, id: &str) {
    add_instance(setup, id, "deprovisioning");
    let sql =
        format!("update resources set deleted = true, username = null, password = null where id = '{id}'");
    write(setup, &sql);
}

/// How many rows there are of this kind.
fn count(setup: &Setup, from: &str) -> String {
    setup.database.text(&format!("select count(*)::text from {from}")).unwrap()
}

/// Every error of a body that both PUTs must refuse in the same way.
fn unreadable_bodies() -> Vec<(&'static str, Vec<u8>)> {
    let mut not_utf8 = provision_body(BASIC).to_string().into_bytes();
    not_utf8.insert(2, 0xff);
    vec![
        ("nothing", b"".to_vec()),
        ("white space", b" \n".to_vec()),
        ("half an object", b"{\"service_id\":".to_vec()),
        ("no JSON", b"service_id=1".to_vec()),
        ("an array", b"[]".to_vec()),
        ("an array of what the fields hold", b"[\"a\",\"b\",\"c\",\"d\"]".to_vec()),
        ("null", b"null".to_vec()),
        ("a string", b"\"x\"".to_vec()),
        ("two objects", b"{}{}".to_vec()),
        ("not UTF-8", not_utf8),
        ("an empty object", b"{}".to_vec()),
    ]
}

/// Values that a mandatory field cannot have.
fn values_that_are_no_text() -> Vec<Value> {
    vec![Value::Null, json!(""), json!(1), json!(true), json!(["x"]), json!({"x": "y"})]
}
