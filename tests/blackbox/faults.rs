//! Answers of AWS that are not what was hoped for, connections that break, buckets that are large, and TLS.

use std::time::{Duration, Instant};

use crate::relay::{Authority, Fault, Options, Point, Relay, When};
use crate::support::*;

/// How a provision and a delete end when AWS gives such an answer once.
#[derive(Clone, Copy, PartialEq)]
enum End {
    /// As if nothing had been.
    Recovers,
    /// The provision fails, and what it made goes.
    Fails,
}

/// Answers, the call that gets them first, and the end.
const ANSWERS: [(&str, &str, End); 20] = [
    ("iam.throttling", "CreateUser", End::Recovers),
    ("iam.throttling", "DeleteAccessKey", End::Recovers),
    ("iam.deleteconflict.keys", "DeleteUser", End::Recovers),
    ("iam.deleteconflict.policies", "DeleteUser", End::Recovers),
    ("iam.nosuchentity.read_after_create", "PutUserPolicy", End::Recovers),
    ("iam.concurrentmodification", "CreateUser", End::Recovers),
    ("iam.servicefailure", "PutUserPolicy", End::Recovers),
    ("iam.limitexceeded.keys", "CreateAccessKey", End::Recovers),
    ("sts.invalidclienttokenid", "GetCallerIdentity", End::Recovers),
    ("s3.invalidaccesskeyid", "GetBucketLocation", End::Recovers),
    ("s3.slowdown", "CreateBucket", End::Recovers),
    ("s3.slowdown", "DeleteObjects", End::Recovers),
    ("s3.operationaborted", "CreateBucket", End::Recovers),
    ("s3.operationaborted", "PutBucketVersioning", End::Recovers),
    ("s3.temporaryredirect", "PutBucketVersioning", End::Recovers),
    ("s3.authheadermalformed.region", "PutBucketVersioning", End::Recovers),
    ("s3.permanentredirect", "PutBucketVersioning", End::Recovers),
    ("s3.permanentredirect", "DeleteObjects", End::Recovers),
    ("s3.mfa", "PutBucketVersioning", End::Fails),
    ("s3.deleteobjects.partial", "DeleteObjects", End::Recovers),
];

/// One life of an instance with something going wrong once.
fn live_with(operation: &str, when: When, fault: Fault, end: End) {
    let about = format!("{operation} {when:?} {fault:?}");
    let relay = relay();
    relay.plan(Point::Named(operation.to_owned(), 1), when, fault);
    let setup = Setup::new().with("LEASE_SECONDS", "4").with("WAIT_SECONDS", "0").through(&relay);
    let (api, _worker) = (setup.api(&[]), setup.worker());
    assert_eq!(api.provision("one", VERSIONED).status, 202);
    if end == End::Fails {
        api.wait_for_state("one", "failed");
        eventually(&format!("{about}: nothing left"), PATIENCE, || {
            setup.left_in_aws().is_empty().then_some(())
        });
    } else {
        api.wait_for_state("one", "succeeded");
        setup.check_one_of_each();
        let name = setup.database.text("select name from resources").unwrap();
        put_object(&name, "k");
        put_object(&name, "k");
        api.remove("one", VERSIONED);
        setup.check_nothing_left();
    }
    assert_eq!(relay.struck(), 1, "{about}: never happened");
}

#[test]
fn answers_of_aws_that_are_no_success_once() {
    for_each(0..ANSWERS.len(), |number| {
        let (name, operation, end) = ANSWERS[number];
        live_with(operation, When::Before, Fault::Replay(name), end);
    });
}

#[test]
fn a_bucket_that_is_in_another_region_is_found_and_removed() {
    let setup = Setup::new();
    let (api, worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    let name = setup.database.text("select name from resources").unwrap();
    admin(&["s3api", "delete-bucket", "--bucket", &name]);
    let elsewhere = "LocationConstraint=eu-north-1";
    let make = ["s3api", "create-bucket", "--bucket", &name, "--region", "eu-north-1"];
    admin(&[&make[..], &["--create-bucket-configuration", elsewhere]].concat());
    api.remove("one", BASIC);
    setup.check_nothing_left();
    if checks_permissions() {
        worker.wait_for_log(&format!("bucket is in another region: bucket={name} region=eu-north-1"));
    }
}

#[test]
fn connections_that_break_before_and_after_the_call_was_carried_out() {
    let mut cases = Vec::new();
    for operation in ["CreateUser", "CreateAccessKey", "CreateBucket", "DeleteObjects", "DeleteUser"] {
        for when in [When::Before, When::After] {
            cases.extend([Fault::Fin, Fault::Reset, Fault::HalfBody].map(|fault| (operation, when, fault)));
        }
        cases.push((operation, When::After, Fault::Status(503, String::new())));
        cases.push((operation, When::After, Fault::Hang));
    }
    for_each(0..cases.len(), |number| {
        let (operation, when, fault) = cases[number].clone();
        live_with(operation, when, fault, End::Recovers);
    });
}

#[test]
fn a_bucket_of_100_000_versions_is_emptied_page_by_page() {
    const VERSIONS: u32 = 100_000;
    let relay = relay();
    let setup = Setup::new().with("WAIT_SECONDS", "0").through(&relay);
    let (api, worker) = (setup.api(&[]), setup.worker());
    api.provide("one", VERSIONED);
    let name = setup.database.text("select name from resources").unwrap();
    relay.stuff(&name, VERSIONS);
    let (made, began) = (relay.calls().len(), Instant::now());
    api.remove("one", VERSIONED);
    let took = began.elapsed();
    assert_eq!(relay.stuffing_left(&name), 0);
    setup.check_nothing_left();
    let calls = relay.calls().split_off(made);
    let count = |name: &str| calls.iter().filter(|it| *it == name).count();
    let (lists, deletes) = (count("ListObjectVersions"), count("DeleteObjects"));
    let memory = worker.memory_kb();
    eprintln!("{VERSIONS} versions: {took:?}, {lists} lists, {deletes} deletes, {memory} KB");
    assert_eq!(deletes, 100);
    assert!(lists <= 103, "{lists} lists");
    assert!(memory < 64 * 1024, "the worker holds {memory} KB");
}

#[test]
fn over_tls_the_bucket_refuses_whoever_comes_without() {
    if !checks_permissions() {
        return;
    }
    let authority = Authority::create(&std::env::temp_dir().join(unique()));
    let engine = setting("TEST_AWS_ENDPOINT_URL").trim_start_matches("http://").to_owned();
    let tls = Some(authority.server());
    let relay = Relay::start(Options { engine, tls, ..Options::default() }).unwrap();
    let bundle = authority.bundle().to_str().unwrap().to_owned();
    let setup = Setup::new().with("AWS_CA_BUNDLE", &bundle).with("WAIT_SECONDS", "0").through(&relay);
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("one", SHIELD_VERSIONED);
    assert!(relay.calls().contains(&"PutBucketPolicy".to_owned()));
    let credentials = api.bind("one", "b");
    let text = |name: &str| credentials[name].as_str().unwrap();
    assert_eq!(text("S3_ENDPOINT"), relay.endpoint);
    let put = ["s3api", "put-object", "--bucket", text("S3_BUCKET"), "--key", "k"];
    let with_tls = tenant(&credentials, &put).env("AWS_CA_BUNDLE", &bundle).output().unwrap();
    assert!(with_tls.status.success(), "{}", String::from_utf8_lossy(&with_tls.stderr));
    let untrusting = tenant(&credentials, &put).output().unwrap();
    assert!(String::from_utf8_lossy(&untrusting.stderr).contains("SSL"), "{untrusting:?}");
    let without = aws(text("S3_ACCESS_KEY"), text("S3_SECRET_KEY"), &put);
    assert!(String::from_utf8_lossy(&without.stderr).contains("AccessDenied"), "{without:?}");
    let refused = Fault::Replay("s3.malformedpolicy.principal");
    relay.plan(Point::Named("PutBucketPolicy".to_owned(), 2), When::Before, refused);
    api.provide("two", BASIC);
    assert_eq!(relay.struck(), 1);
    api.remove("two", BASIC);
    api.remove("one", SHIELD_VERSIONED);
    setup.check_nothing_left();
}

#[test]
fn a_slow_aws_is_waited_for_as_long_as_the_platform_waits() {
    let relay = relay();
    relay.slow_down(Duration::from_millis(200));
    let setup = Setup::new().with("WAIT_SECONDS", "1").through(&relay);
    let (api, _worker) = (setup.api(&[]), setup.worker());
    let began = Instant::now();
    assert_eq!(api.provision("one", SHIELD_VERSIONED).status, 202);
    assert!(began.elapsed() >= Duration::from_secs(1) && began.elapsed() < Duration::from_secs(3));
    let answer = api.get("/v2/service_instances/one/last_operation");
    assert_eq!(answer.json["state"], "in progress", "{}", answer.text);
    api.wait_for_state("one", "succeeded");
    relay.calm_down();
    api.remove("one", SHIELD_VERSIONED);
}

#[test]
fn what_cannot_be_deleted_is_named_and_not_looped_over() {
    let relay = relay();
    let locked = "<DeleteResult><Error><Key>locked</Key><VersionId>null</VersionId><Code>AccessDenied</Code>\
         <Message>Access Denied because object protected by object lock.</Message></Error></DeleteResult>";
    let setup = Setup::new().with("WAIT_SECONDS", "0").through(&relay);
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("one", VERSIONED);
    let name = setup.database.text("select name from resources").unwrap();
    put_object(&name, "locked");
    relay.plan(Point::Every("DeleteObjects".to_owned()), When::Before, Fault::Status(200, locked.to_owned()));
    assert_eq!(api.deprovision("one", VERSIONED).status, 202);
    relay.wait_until_struck(3, PATIENCE);
    let answer = api.get("/v2/service_instances/one/last_operation");
    assert_eq!(answer.json["state"], "in progress");
    let said = answer.json["description"].as_str().unwrap();
    assert!(said.contains("\"locked\"") && said.contains("AccessDenied"), "{said}");
    let put_off = "select 'yes' from tasks where action = 'delete' and run_at > now() + interval '3 seconds'";
    eventually("the next try is put off, each time longer", PATIENCE, || setup.database.text(put_off));
    relay.calm_down();
    setup
        .database
        .connect()
        .batch_execute("update tasks set run_at = now() where action = 'delete'")
        .unwrap();
    api.remove("one", VERSIONED);
    setup.check_nothing_left();
}
