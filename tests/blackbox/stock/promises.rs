//! What a tenant is given out of the stock is what the plan promises and what the operator is paid for.

use super::*;
use crate::relay::{Point, When};

/// Edits a plan's promise, as an operator does.
fn promise(setup: &Setup, plan: &str, details: &str) {
    let sql = format!("update plans set provider_private_details = '{details}' where plan = '{plan}'");
    setup.database.connect().batch_execute(&sql).unwrap();
}

#[test]
fn what_was_made_for_an_older_promise_is_not_handed_out() {
    let setup = Setup::new().with("WAIT_SECONDS", "0");
    let (api, mut worker) = (setup.api(&[]), setup.worker());
    keep(&setup, BASIC, 2);
    let stock = wait_for_stock(&setup, 2);
    assert_eq!(worker.terminate(), Some(0));
    promise(&setup, BASIC, r#"{"versioned": true}"#);
    assert_eq!(api.provision("one", BASIC).status, 202, "the stock is not what the plan promises now");
    let worker = setup.worker();
    api.wait_for_state("one", "succeeded");
    let bucket = api.bind("one", "b")["S3_BUCKET"].as_str().unwrap().to_owned();
    assert!(ask_s3(&format!("/{bucket}?versioning")).contains("<Status>Enabled</Status>"));
    worker.wait_for_log("stock cannot be handed out and is replaced");
    let renewed = eventually("the stock is renewed", PATIENCE * 2, || {
        Some(ready(&setup)).filter(|it| it.len() == 2 && it.iter().all(|name| !stock.contains(name)))
    });
    assert_eq!(api.provision("two", BASIC).status, 201);
    assert!(ask_s3(&format!("/{}?versioning", renewed[0])).contains("<Status>Enabled</Status>"));
    keep(&setup, BASIC, 0);
    api.remove("one", BASIC);
    api.remove("two", BASIC);
    wait_for_stock(&setup, 0);
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}

#[test]
fn stock_that_another_kms_key_encrypts_is_replaced() {
    let key = |id: &str| format!("arn:aws:kms:{}:000000000000:key/{id}", setting("TEST_AWS_REGION"));
    let setup = Setup::new().with("AWS_KMS_KEY_ID", &key("first"));
    let (api, mut worker) = (setup.api(&[]), setup.worker());
    keep(&setup, SHIELD, 1);
    let stock = wait_for_stock(&setup, 1);
    assert_eq!(worker.terminate(), Some(0));
    age_checks(&setup);
    let setup = setup.with("AWS_KMS_KEY_ID", &key("second"));
    let worker = setup.worker();
    worker.wait_for_log("stock cannot be handed out and is replaced");
    let renewed = eventually("the stock is renewed", PATIENCE * 2, || {
        Some(ready(&setup)).filter(|it| it.len() == 1 && *it != stock)
    });
    assert!(ask_s3(&format!("/{}?encryption", renewed[0])).contains("second"));
    keep(&setup, SHIELD, 0);
    wait_for_stock(&setup, 0);
    drop(api);
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}

#[test]
fn stock_whose_user_may_do_anything_as_the_old_brokers_is_replaced() {
    let setup = Setup::new();
    let (_api, worker) = (setup.api(&[]), setup.worker());
    keep(&setup, BASIC, 1);
    let stock = wait_for_stock(&setup, 1);
    let name = &stock[0];
    let all = format!(
        r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Action":"s3:*","Resource":["arn:aws:s3:::{name}","arn:aws:s3:::{name}/*"]}}]}}"#
    );
    let policy = format!("{name}policy");
    let made = admin(&["iam", "create-policy", "--policy-name", &policy, "--policy-document", &all]);
    let arn = made["Policy"]["Arn"].as_str().unwrap();
    admin(&["iam", "attach-user-policy", "--user-name", name, "--policy-arn", arn]);
    age_checks(&setup);
    worker.wait_for_log("stock cannot be handed out and is replaced");
    eventually("another is ready", PATIENCE * 2, || {
        Some(ready(&setup)).filter(|it| it.len() == 1 && *it != stock)
    });
    keep(&setup, BASIC, 0);
    wait_for_stock(&setup, 0);
    admin(&["iam", "delete-policy", "--policy-arn", arn]);
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}

#[test]
fn who_pays_is_written_however_long_aws_refuses() {
    let relay = relay();
    let setup = Setup::new().through(&relay);
    let (api, mut worker) = (setup.api(&[]), setup.worker());
    keep(&setup, BASIC, 1);
    let stock = wait_for_stock(&setup, 1);
    assert_eq!(worker.terminate(), Some(0));
    assert_eq!(api.provision("one", BASIC).status, 201);
    keep(&setup, BASIC, 0);
    relay.plan(Point::Every("PutBucketTagging".to_owned()), When::Before, access_denied());
    let worker = setup.worker();
    worker.wait_for_log("kind=tag instance=\"one\" attempt=1");
    let now = "update tasks set run_at = now(), retries = 40 where action = 'tag' and status = 'pending'";
    let state = "select status || ' ' || (retries > 40) from tasks where action = 'tag'";
    eventually("it is tried again", PATIENCE, || {
        setup.database.connect().batch_execute(now).unwrap();
        (setup.database.text("select status::text from tasks where action = 'tag'")? != "failed")
            .then_some(())
    });
    eventually("it is tried after many attempts", PATIENCE, || {
        (setup.database.text(state)? == "pending true").then_some(())
    });
    relay.calm_down();
    setup.database.connect().batch_execute(now).unwrap();
    eventually("it is written who pays", PATIENCE, || {
        let tags = admin(&["s3api", "get-bucket-tagging", "--bucket", &stock[0]]).to_string();
        tags.contains("our org").then_some(())
    });
    api.remove("one", BASIC);
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}
