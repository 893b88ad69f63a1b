//! The tags of bucket and user: who pays, and which apps are bound.

use serde_json::{Value, json};

use crate::cloud::*;
use crate::relay::{Fault, Point, When};
use crate::support::*;

/// A bucket's tags, sorted, without the broker's id.
fn bucket_tags(bucket: &str) -> Vec<(String, String)> {
    tags(&admin(&["s3api", "get-bucket-tagging", "--bucket", bucket])["TagSet"])
}

/// A user's.
fn user_tags(user: &str) -> Vec<(String, String)> {
    tags(&admin(&["iam", "list-user-tags", "--user-name", user])["Tags"])
}

/// The tags in an answer.
fn tags(list: &Value) -> Vec<(String, String)> {
    let text = |tag: &Value, name: &str| tag[name].as_str().unwrap().to_owned();
    let tags = list.as_array().unwrap().iter().map(|it| (text(it, "Key"), text(it, "Value")));
    let mut tags: Vec<_> = tags.filter(|(key, _)| key != "servicebroker" && key != "instance").collect();
    tags.sort();
    tags
}

/// Waits until bucket and user bear these.
fn wait_for_tags(name: &str, wanted: &[(&str, &str)]) {
    let wanted: Vec<_> = wanted.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let mut found = (vec![], vec![]);
    let limit = std::time::Instant::now() + PATIENCE;
    while std::time::Instant::now() < limit {
        found = (bucket_tags(name), user_tags(name));
        if found == (wanted.clone(), wanted.clone()) {
            return;
        }
    }
    panic!("{found:?} instead of {wanted:?}");
}

#[test]
fn bindings_are_told_by_the_tags_of_bucket_and_user() {
    let setup = Setup::new();
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    let name = setup.database.text("select name from resources").unwrap();
    wait_for_tags(&name, &[("billingcode", "our org")]);
    api.bind("one", "web-prod-east");
    wait_for_tags(
        &name,
        &[("App", "web"), ("Binding", "web-prod-east"), ("Space", "prod-east"), ("billingcode", "our org")],
    );
    api.bind("one", "api--worker-default");
    let path = "/v2/service_instances/one/service_bindings/6f0c1b1e-3b1c-4a53-8c0e-0a1b2c3d4e5f";
    let body = json!({ "service_id": SERVICE, "plan_id": BASIC, "bind_resource": { "app_guid": "shop-1" } });
    assert_eq!(api.put(path, &body).status, 201);
    wait_for_tags(
        &name,
        &[
            ("App", "api shop-1 web"),
            ("Binding", "6f0c1b1e-3b1c-4a53-8c0e-0a1b2c3d4e5f api--worker-default web-prod-east"),
            ("Space", "default prod-east"),
            ("billingcode", "our org"),
        ],
    );
    for binding in ["web-prod-east", "6f0c1b1e-3b1c-4a53-8c0e-0a1b2c3d4e5f"] {
        let query = format!("service_id={SERVICE}&plan_id={BASIC}");
        let path = format!("/v2/service_instances/one/service_bindings/{binding}?{query}");
        assert_eq!(api.delete(&path).status, 200);
    }
    wait_for_tags(
        &name,
        &[
            ("App", "api"),
            ("Binding", "api--worker-default"),
            ("Space", "default"),
            ("billingcode", "our org"),
        ],
    );
    let query = format!("service_id={SERVICE}&plan_id={BASIC}");
    let last = format!("/v2/service_instances/one/service_bindings/api--worker-default?{query}");
    assert_eq!(api.delete(&last).status, 200);
    wait_for_tags(&name, &[("billingcode", "our org")]);
}

#[test]
fn tags_of_others_stay_and_what_one_task_missed_the_next_repairs() {
    let setup = Setup::new();
    let (api, mut worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    assert_eq!(worker.terminate(), Some(0));
    let name = setup.database.text("select name from resources").unwrap();
    let set = r#"{"TagSet":[{"Key":"team","Value":"blue"},{"Key":"billingcode","Value":"old"},{"Key":"App","Value":"gone"}]}"#;
    admin(&["s3api", "put-bucket-tagging", "--bucket", &name, "--tagging", set]);
    setup.database.connect().batch_execute("update resources set organization = null").unwrap();
    for binding in ["a-x", "b-x", "c-x"] {
        api.bind("one", binding);
    }
    let waiting = "select count(*)::text from tasks where action = 'tag' and status = 'pending'";
    assert_eq!(setup.database.text(waiting).as_deref(), Some("1"), "one task tells of them all");
    let _worker = setup.worker();
    let wanted = [
        ("App", "a b c"),
        ("Binding", "a-x b-x c-x"),
        ("Space", "x"),
        ("billingcode", "old"),
        ("team", "blue"),
    ];
    let wanted = wanted.map(|(key, value)| (key.to_owned(), value.to_owned()));
    eventually("the bucket is tagged", PATIENCE, || (bucket_tags(&name) == wanted).then_some(()));
}

#[test]
fn a_store_without_tags_of_buckets_has_those_of_users() {
    for call in ["GetBucketTagging", "PutBucketTagging"] {
        let relay = relay();
        let unknown = "<Error><Code>NotImplemented</Code><Message>not here</Message></Error>".to_owned();
        relay.plan(Point::Every(call.into()), When::Before, Fault::Status(501, unknown));
        let setup = Setup::new().through(&relay);
        let (api, worker) = (setup.api(&[]), setup.worker());
        api.provide("one", BASIC);
        api.bind("one", "web-prod");
        let name = setup.database.text("select name from resources").unwrap();
        let wanted = [("App", "web"), ("Binding", "web-prod"), ("Space", "prod"), ("billingcode", "our org")];
        let wanted = wanted.map(|(key, value)| (key.to_owned(), value.to_owned()));
        eventually("the user is tagged", PATIENCE, || (user_tags(&name) == wanted).then_some(()));
        eventually("the task is done", PATIENCE, || {
            setup.database.text("select 'yes' from tasks where action = 'tag' and status = 'finished'")
        });
        assert!(worker.log().contains(&format!("operation={call}")), "{}", worker.log());
    }
}

#[test]
fn a_bind_does_not_wait_for_tags_that_are_due_later() {
    let setup = Setup::new();
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    let sql = "insert into tasks (task, resource, action, run_at, retries)
        values (gen_random_uuid(), 'one', 'tag', now() + interval '1 hour', 5)";
    setup.database.connect().batch_execute(sql).unwrap();
    api.bind("one", "web-prod");
    let name = setup.database.text("select name from resources").unwrap();
    wait_for_tags(
        &name,
        &[("App", "web"), ("Binding", "web-prod"), ("Space", "prod"), ("billingcode", "our org")],
    );
    api.remove("one", BASIC);
}
