//! Stock that cannot be made: it is tried less and less, and nothing is left of the tries.

use super::*;
use crate::relay::{Fault, Point, Relay, When};

fn refuse(relay: &Relay, call: &str) {
    let refusal = Fault::Status(403, "<Error><Code>AccessDenied</Code></Error>".to_owned());
    relay.plan(Point::Every(call.to_owned()), When::Before, refusal);
}

/// How often a call was made.
fn calls(relay: &Relay, call: &str) -> usize {
    relay.calls().iter().filter(|it| *it == call).count()
}

/// Waits for so many failures in a row; how long it is waited now, in seconds.
fn wait_for_failures(setup: &Setup, failures: usize) -> f64 {
    let sql = format!(
        "select extract(epoch from not_before - now())::text from stock_failures where failures = {failures}"
    );
    eventually("it has failed", PATIENCE, || setup.database.text(&sql)).parse().unwrap()
}

/// Waits until all rows of tries are deleted.
fn wait_until_cleaned(setup: &Setup) {
    let left = "select 'some' from resources where not deleted limit 1";
    eventually("the tries are cleaned up", PATIENCE, || setup.database.text(left).is_none().then_some(()));
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}

/// Ends the pause.
fn try_now(setup: &Setup) {
    setup.database.connect().batch_execute("update stock_failures set not_before = now()").unwrap();
}

fn backs_off(refused: &str) {
    let relay = relay();
    refuse(&relay, refused);
    let setup = Setup::new().through(&relay);
    let (api, worker) = (setup.api(&[]), setup.worker());
    keep(&setup, BASIC, 3);
    let pause = wait_for_failures(&setup, 1);
    assert!((1.0..=60.0).contains(&pause), "{pause}");
    worker.wait_for_log(&format!("stock waits after a failure: plan={BASIC} failures=1 next_in_s="));
    wait_until_cleaned(&setup);
    let first = calls(&relay, refused);
    assert!((1..=3).contains(&first), "{first}");
    for failures in 2..=4 {
        wait_for_look(&setup);
        assert_eq!(calls(&relay, refused), first + failures - 2, "nothing is tried during the pause");
        try_now(&setup);
        let pause = wait_for_failures(&setup, failures);
        let longest = 60.0 * f64::from(1 << (failures - 1));
        assert!((longest - 30.0..=longest).contains(&pause), "{failures}: {pause}");
        wait_until_cleaned(&setup);
        assert_eq!(calls(&relay, refused), first + failures - 1, "one is tried at a time");
    }
    setup.database.connect().batch_execute("update stock_failures set failures = 20").unwrap();
    try_now(&setup);
    let pause = wait_for_failures(&setup, 21);
    assert!((14_300.0..=14_400.0).contains(&pause), "{pause}");
    wait_until_cleaned(&setup);
    assert!(matches!(api.provision("one", BASIC).status, 201 | 202), "who asks is not made to wait");
    api.wait_for_state("one", "failed");
    relay.calm_down();
    try_now(&setup);
    wait_for_stock(&setup, 3);
    assert_eq!(setup.database.text("select 'some' from stock_failures"), None);
    keep(&setup, BASIC, 0);
    api.remove("one", BASIC);
    wait_for_stock(&setup, 0);
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}

#[test]
fn stock_whose_user_is_refused_is_tried_less_and_less() {
    backs_off("CreateUser");
}

#[test]
fn stock_whose_bucket_is_refused_leaves_no_user() {
    backs_off("CreateBucket");
}

#[test]
fn what_aws_does_not_answer_is_held_against_nobody() {
    let relay = relay();
    let setup = Setup::new().with("WAIT_SECONDS", "0").with("LEASE_SECONDS", "8").through(&relay);
    let (api, worker) = (setup.api(&[]), setup.worker());
    keep(&setup, BASIC, 1);
    let stock = wait_for_stock(&setup, 1);
    relay.plan(Point::Every("GetBucketLocation".to_owned()), When::Before, Fault::Replay("s3.slowdown"));
    age_checks(&setup);
    worker.wait_for_log("stock not looked at: instance=");
    let check = "select concat_ws(' ', status, retries) from tasks where action = 'check'";
    eventually("it waits", PATIENCE, || (setup.database.text(check)? == "pending 0").then_some(()));
    assert_eq!(api.provision("one", BASIC).status, 201);
    assert_eq!(api.bind("one", "b")["S3_BUCKET"].as_str(), Some(stock[0].as_str()));
    assert_eq!(setup.database.text(check).as_deref(), Some("finished 0"));
    relay.calm_down();
    keep(&setup, BASIC, 0);
    api.remove("one", BASIC);
    wait_for_stock(&setup, 0);
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}
