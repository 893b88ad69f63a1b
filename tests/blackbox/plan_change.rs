//! Changes of plan: what the platform is told happens, and what does not happen leaves nothing.

mod seen;

use serde_json::{Value, json};

use crate::cloud::*;
use crate::relay::{Fault, Point, When};
use crate::support::*;

impl Api {
    /// Asks for another plan as Akkeris does.
    pub(crate) fn change(&self, instance: &str, plan: &str) -> Answer {
        self.patch(instance, &json!({ "service_id": SERVICE, "plan_id": plan }))
    }

    /// PATCH of an instance.
    fn patch(&self, instance: &str, body: &Value) -> Answer {
        let path = format!("/v2/service_instances/{instance}?accepts_incomplete=true");
        self.with_header("Content-Type", "application/json").send("PATCH", &path, body.to_string().as_bytes())
    }
}

/// What AWS says of a bucket.
fn promises(bucket: &str) -> (bool, bool, bool) {
    let ask = |word: &str| ask_s3(&format!("/{bucket}?{word}"));
    let versioned = ask("versioning").contains("<Status>Enabled</Status>");
    (versioned, ask("lifecycle").contains("STANDARD_IA"), ask("encryption").contains("aws:kms"))
}

/// The ARN of a KMS key. The emulators take any.
fn kms_key(id: &str) -> String {
    format!("arn:aws:kms:{}:000000000000:key/{id}", setting("TEST_AWS_REGION"))
}

/// What the tenant may do.
fn policy_of(user: &str) -> String {
    ask_iam(&format!("Action=GetUserPolicy&Version=2010-05-08&UserName={user}&PolicyName=bucket"))
}

/// The plan in the row, and its status.
fn row(setup: &Setup) -> String {
    setup.database.text("select plan::text || ' ' || status from resources").unwrap()
}

#[test]
fn every_plan_becomes_every_other() {
    let plans = [BASIC, VERSIONED, SHIELD, SHIELD_VERSIONED];
    let setup = Setup::new().with("AWS_KMS_KEY_ID", &kms_key("1234-abcd"));
    let (api, _worker) = (setup.api(&[]), setup.worker());
    for_each(0..4, |from| {
        for (to, plan) in plans.iter().enumerate().filter(|(to, _)| *to != from) {
            let instance = format!("i-{from}-{to}");
            api.provide(&instance, plans[from]);
            let credentials = api.bind(&instance, "app-space");
            let bucket = credentials["S3_BUCKET"].as_str().unwrap();
            put_object(bucket, "kept");
            let answer = api.change(&instance, plan);
            assert_eq!((answer.status, &*answer.text), (200, "{}"), "{instance}");
            let (versioned, lifecycle, encrypted) = promises(bucket);
            let wanted = (
                *plan == VERSIONED || *plan == SHIELD_VERSIONED,
                *plan == SHIELD || *plan == SHIELD_VERSIONED,
            );
            assert_eq!((versioned, encrypted), wanted, "{instance}");
            assert_eq!(lifecycle, versioned, "{instance}: what is not versioned is not moved away");
            let was_encrypted = plans[from] == SHIELD || plans[from] == SHIELD_VERSIONED;
            let form = format!("Action=GetUserPolicy&Version=2010-05-08&UserName={bucket}&PolicyName=bucket");
            assert_eq!(
                ask_iam(&form).contains("1234-abcd"),
                encrypted || was_encrypted,
                "{instance}: old objects stay readable"
            );
            let read = ["s3api", "get-object", "--bucket", bucket, "--key", "kept", "/dev/null"];
            assert!(tenant(&credentials, &read).status().unwrap().success(), "{instance}");
            assert_eq!(api.bind(&instance, "app-space"), credentials, "{instance}");
            api.remove(&instance, plan);
        }
    });
    setup.check_nothing_left();
}

#[test]
fn the_same_plan_or_none_changes_nothing() {
    let setup = Setup::new();
    let (api, mut worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    assert_eq!(worker.terminate(), Some(0));
    for body in [
        json!({ "service_id": SERVICE, "plan_id": BASIC }),
        json!({ "service_id": SERVICE }),
        json!({ "service_id": SERVICE, "plan_id": BASIC, "previous_values": null, "parameters": {}, "context": {} }),
    ] {
        let answer = api.patch("one", &body);
        assert_eq!((answer.status, &*answer.text), (200, "{}"), "{body}");
    }
    assert_eq!(
        setup.database.text("select count(*)::text from tasks where action = 'change-plans'").as_deref(),
        Some("0")
    );
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let setup = Setup::new().with("WAIT_SECONDS", "0");
    let (api, mut worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    assert_eq!(worker.terminate(), Some(0));
    let sql = format!(
        "update plans set deprecated = true where plan = '{SHIELD}'; update plans set deleted = true where plan = '{VERSIONED}'"
    );
    setup.database.connect().batch_execute(&sql).unwrap();
    let with = |name: &str, value: Value| {
        let mut body = json!({ "service_id": SERVICE, "plan_id": SHIELD_VERSIONED });
        body[name] = value;
        body
    };
    for (body, status) in [
        (json!({ "plan_id": SHIELD_VERSIONED }), 400),
        (json!({ "service_id": "x" }), 400),
        (with("service_id", json!("x")), 400),
        (with("plan_id", json!("x")), 400),
        (with("plan_id", json!("")), 400),
        (with("plan_id", json!(SHIELD)), 422),
        (with("plan_id", json!(VERSIONED)), 422),
        (with("parameters", json!({ "versioned": true })), 400),
        (with("parameters", json!([])), 400),
        (with("maintenance_info", json!({ "version": "1.0.0" })), 422),
        (json!([]), 400),
    ] {
        assert_eq!(api.patch("one", &body).status, status, "{body}");
    }
    let path = "/v2/service_instances/one";
    let body = json!({ "service_id": SERVICE, "plan_id": SHIELD_VERSIONED }).to_string();
    let answer = api.with_header("Content-Type", "application/json").send("PATCH", path, body.as_bytes());
    assert_eq!((answer.status, answer.json["error"].as_str()), (422, Some("AsyncRequired")));
    assert_eq!(api.change("two", SHIELD_VERSIONED).status, 404);
    assert_eq!(row(&setup), format!("{BASIC} available"));
    assert_eq!(
        setup.database.text("select count(*)::text from tasks where action = 'change-plans'").as_deref(),
        Some("0")
    );
}

#[test]
fn a_change_that_no_worker_begins_is_withdrawn() {
    let setup = Setup::new().with("WAIT_SECONDS", "2");
    let (api, mut worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    assert_eq!(worker.terminate(), Some(0));
    let (first, second) = std::thread::scope(|scope| {
        let first = scope.spawn(|| api.change("one", VERSIONED));
        eventually("the first waits", PATIENCE, || {
            (row(&setup) == format!("{BASIC} modifying")).then_some(())
        });
        let state = api.get("/v2/service_instances/one/last_operation").json;
        assert_eq!(
            (state["state"].as_str(), state["description"].as_str()),
            (Some("in progress"), Some("waits for a worker"))
        );
        assert_eq!(api.change("one", SHIELD).status, 422);
        (first.join().unwrap(), api.change("one", VERSIONED))
    });
    for answer in [first, second] {
        assert_eq!(answer.status, 503, "{}", answer.text);
        assert!(answer.header("retry-after").is_some());
    }
    assert_eq!(row(&setup), format!("{BASIC} available"));
    let _worker = setup.worker();
    let bucket = setup.database.text("select name from resources").unwrap();
    assert_eq!(api.change("one", VERSIONED).status, 200);
    assert_eq!((row(&setup), promises(&bucket).0), (format!("{VERSIONED} available"), true));
}

#[test]
fn a_change_that_takes_longer_is_told_by_last_operation() {
    let relay = relay();
    let setup = Setup::new().with("WAIT_SECONDS", "1").through(&relay);
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    relay.count_anew();
    relay.plan(Point::Named("PutBucketVersioning".into(), 1), When::Before, Fault::Hold);
    let answer = api.change("one", VERSIONED);
    assert_eq!(answer.status, 202, "{}", answer.text);
    let again = api.change("one", VERSIONED);
    assert_eq!((again.status, &again.json), (202, &answer.json), "the same operation");
    assert_eq!(
        api.bind("one", "app-space")["S3_REGION"],
        setting("TEST_AWS_REGION"),
        "it can be used meanwhile"
    );
    assert_eq!(api.get("/v2/service_instances/one/last_operation").json["state"], "in progress");
    relay.release();
    api.wait_for_state("one", "succeeded");
    assert_eq!(row(&setup), format!("{VERSIONED} available"));
}

#[test]
fn what_aws_refuses_is_put_back() {
    for (call, plan) in [("PutBucketLifecycleConfiguration", VERSIONED), ("PutBucketEncryption", SHIELD)] {
        let relay = relay();
        let setup = Setup::new().through(&relay);
        let (api, _worker) = (setup.api(&[]), setup.worker());
        api.provide("one", BASIC);
        let bucket = setup.database.text("select name from resources").unwrap();
        let before = promises(&bucket);
        relay.count_anew();
        relay.plan(Point::Named(call.into(), 1), When::Before, access_denied());
        let answer = api.change("one", plan);
        assert_eq!(answer.status, 422, "{}", answer.text);
        assert!(answer.json["description"].as_str().unwrap().contains("AccessDenied"), "{}", answer.text);
        assert_eq!((row(&setup), promises(&bucket)), (format!("{BASIC} available"), before), "{call}");
        assert_eq!(api.get("/v2/service_instances/one/last_operation").json["state"], "succeeded");
        assert_eq!(api.change("one", plan).status, 200, "{call}: once AWS agrees");
        api.remove("one", plan);
        setup.check_nothing_left();
    }
}

#[test]
fn what_aws_refuses_for_good_leaves_all_as_it_was() {
    let cases = [
        ("PutBucketVersioning", VERSIONED, BASIC),
        ("PutBucketLifecycleConfiguration", VERSIONED, BASIC),
        ("DeleteBucketEncryption", SHIELD, BASIC),
        ("PutBucketEncryption", BASIC, SHIELD),
        ("PutUserPolicy", BASIC, SHIELD_VERSIONED),
    ];
    for_each(0..cases.len(), |number| {
        let (call, from, to) = cases[number];
        let relay = relay();
        let setup = Setup::new().through(&relay);
        let (api, worker) = (setup.api(&[]), setup.worker());
        api.provide("one", from);
        let bucket = setup.database.text("select name from resources").unwrap();
        let before = promises(&bucket);
        relay.plan(Point::Every(call.into()), When::Before, access_denied());
        let answer = api.change("one", to);
        assert_eq!(answer.status, 422, "{call}: {}", answer.text);
        assert!(!answer.text.contains("put back"), "{call}: {}", answer.text);
        assert!(!worker.log().contains("not put back"), "{call}");
        assert_eq!((promises(&bucket), row(&setup)), (before, format!("{from} available")), "{call}");
        relay.calm_down();
        assert_eq!(api.change("one", to).status, 200, "{call}: once AWS agrees");
        api.remove("one", to);
        setup.check_nothing_left();
    });
}

#[test]
fn objects_of_another_kms_key_keep_their_plan() {
    let setup = Setup::new().with("AWS_KMS_KEY_ID", &kms_key("first"));
    let (api, mut worker) = (setup.api(&[]), setup.worker());
    api.provide("one", SHIELD);
    assert_eq!(worker.terminate(), Some(0));
    let setup = setup.with("AWS_KMS_KEY_ID", &kms_key("second"));
    let _worker = setup.worker();
    let answer = api.change("one", SHIELD_VERSIONED);
    assert_eq!(answer.status, 422, "{}", answer.text);
    assert!(answer.text.contains("another KMS key"), "{}", answer.text);
    assert!(!answer.text.contains("put back"), "nothing was changed: {}", answer.text);
    let bucket = setup.database.text("select name from resources").unwrap();
    assert!(ask_s3(&format!("/{bucket}?encryption")).contains("first"));
}

#[test]
fn a_delete_stops_a_change_of_plan() {
    let relay = relay();
    let setup = Setup::new().with("WAIT_SECONDS", "0").through(&relay);
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    relay.count_anew();
    relay.plan(Point::Named("PutBucketVersioning".into(), 1), When::After, Fault::Hold);
    assert_eq!(api.change("one", VERSIONED).status, 202);
    relay.wait_until_struck(1, PATIENCE);
    assert_eq!(api.deprovision("one", BASIC).status, 202);
    relay.release();
    eventually("it is gone", PATIENCE, || {
        (api.get("/v2/service_instances/one/last_operation").status == 410).then_some(())
    });
    setup.check_nothing_left();
}

#[test]
fn a_change_that_waits_for_aws_is_not_taken_back() {
    let relay = relay();
    let setup = Setup::new().with("WAIT_SECONDS", "2").through(&relay);
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    let blind = Fault::Status(200, "<VersioningConfiguration/>".to_owned());
    relay.plan(Point::Every("GetBucketVersioning".into()), When::Before, blind);
    let answer = api.change("one", VERSIONED);
    assert_eq!(answer.status, 202, "AWS has it, but does not show it yet: {}", answer.text);
    assert_eq!(row(&setup), format!("{BASIC} modifying"));
    relay.calm_down();
    api.wait_for_state("one", "succeeded");
    assert_eq!(row(&setup), format!("{VERSIONED} available"));
}

#[test]
fn a_change_that_a_delete_stops_is_told_so() {
    let setup = Setup::new().with("WAIT_SECONDS", "5");
    let (api, mut worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    assert_eq!(worker.terminate(), Some(0));
    let answer = std::thread::scope(|scope| {
        let change = scope.spawn(|| api.change("one", VERSIONED));
        eventually("it waits", PATIENCE, || (row(&setup) == format!("{BASIC} modifying")).then_some(()));
        assert_eq!(api.deprovision("one", BASIC).status, 202);
        change.join().unwrap()
    });
    let told = (answer.status, answer.json["error"].as_str());
    assert_eq!(told, (422, Some("ConcurrencyError")), "{}", answer.text);
}

#[test]
fn a_plan_whose_row_is_broken_is_refused_at_once() {
    let setup = Setup::new().with("WAIT_SECONDS", "0");
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    let sql = format!(
        "update plans set provider_private_details = '{{\"versioned\":\"yes\"}}' where plan = '{SHIELD}'"
    );
    setup.database.connect().batch_execute(&sql).unwrap();
    let answer = api.change("one", SHIELD);
    assert_eq!(answer.status, 422, "{}", answer.text);
    assert_eq!(row(&setup), format!("{BASIC} available"));
}

#[test]
fn a_bucket_is_put_back_to_the_kms_key_that_it_had() {
    let relay = relay();
    let setup = Setup::new().with("AWS_KMS_KEY_ID", &kms_key("first")).through(&relay);
    let (api, mut worker) = (setup.api(&[]), setup.worker());
    api.provide("one", SHIELD);
    assert_eq!(worker.terminate(), Some(0));
    let setup = setup.with("AWS_KMS_KEY_ID", &kms_key("second"));
    let _worker = setup.worker();
    relay.count_anew();
    relay.plan(Point::Named("PutBucketVersioning".into(), 1), When::Before, access_denied());
    let answer = api.change("one", VERSIONED);
    assert_eq!(answer.status, 422, "{}", answer.text);
    assert!(!answer.text.contains("put back"), "{}", answer.text);
    let bucket = setup.database.text("select name from resources").unwrap();
    let found = ask_s3(&format!("/{bucket}?encryption"));
    assert!(found.contains("key/first"), "{found}");
    assert!(policy_of(&bucket).contains("first"), "the tenant reads what is there");
}

#[test]
fn an_alias_is_not_taken_for_any_key() {
    let setup = Setup::new().with("AWS_KMS_KEY_ID", &kms_key("first"));
    let (api, _worker) = (setup.api(&[]), setup.worker());
    let archive = "33333333-cccc-4ccc-8ccc-000000000002";
    let sql = format!(
        "insert into plans (plan, service, name, human_name, description, version, type, scheme, attributes, provider,
             provider_private_details)
         values ('{archive}', '{SERVICE}', 'archive', 'Archive', 'With a key of its own', 'v1', 's3', 's3', '{{}}',
             'aws-s3', '{{\"versioned\":true, \"encrypted\":true, \"kmsKeyId\":\"alias/archive\"}}')"
    );
    setup.database.connect().batch_execute(&sql).unwrap();
    api.provide("one", SHIELD);
    let answer = api.change("one", archive);
    assert_eq!(answer.status, 422, "{}", answer.text);
    assert!(answer.text.contains("another KMS key"), "{}", answer.text);
    let bucket = setup.database.text("select name from resources").unwrap();
    assert!(policy_of(&bucket).contains("first"), "the tenant reads what is there");
    api.provide("two", archive);
    assert_eq!(api.change("two", BASIC).status, 200);
    assert_eq!(api.change("two", archive).status, 200, "its own alias");
}

#[test]
fn a_change_of_what_is_not_there_any_more_ends() {
    let setup = Setup::new().with("WAIT_SECONDS", "0");
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    let bucket = setup.database.text("select name from resources").unwrap();
    admin(&["s3api", "delete-bucket", "--bucket", &bucket]);
    assert_eq!(api.change("one", VERSIONED).status, 202);
    let sql =
        "update tasks set retries = 20, run_at = now() where action = 'change-plans' and status = 'pending'";
    eventually("it is given up", PATIENCE, || {
        setup.database.connect().batch_execute(sql).unwrap();
        (row(&setup) == format!("{BASIC} available")).then_some(())
    });
    api.remove("one", BASIC);
    setup.check_nothing_left();
}
