//! What a tenant is given out of the stock is what the plan promises and what the operator is paid for, and the
//! stock costs neither more than it should nor other people's time.

use std::time::Duration;

use super::*;
use crate::relay::{Fault, Point, When};

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
fn stock_that_keeps_more_than_its_plan_promises_is_replaced() {
    let key = format!("arn:aws:kms:{}:000000000000:key/first", setting("TEST_AWS_REGION"));
    let cases = [
        (r#"{"versioned": true}"#.to_owned(), r#"{"versioned": false}"#.to_owned()),
        (format!(r#"{{"encrypted": true, "kmsKeyId": "{key}"}}"#), "{}".to_owned()),
        (
            format!(r#"{{"encrypted": true, "kmsKeyId": "{key}"}}"#),
            r#"{"encrypted": true, "kmsKeyId": ""}"#.to_owned(),
        ),
        (
            format!(r#"{{"encrypted": true, "kmsKeyId": "{key}"}}"#),
            r#"{"encrypted": true, "kmsKeyId": "alias/second"}"#.to_owned(),
        ),
    ];
    for_each(0..cases.len(), |number| {
        let (before, after) = &cases[number];
        let setup = Setup::new();
        let (_api, worker) = (setup.api(&[]), setup.worker());
        promise(&setup, BASIC, before);
        keep(&setup, BASIC, 1);
        let stock = wait_for_stock(&setup, 1);
        promise(&setup, BASIC, after);
        eventually("it is replaced", PATIENCE * 2, || {
            let hasten = "update tasks set run_at = now() where action = 'check' and status = 'pending'";
            setup.database.connect().batch_execute(hasten).unwrap();
            Some(ready(&setup)).filter(|it| it.len() == 1 && *it != stock)
        });
        worker.wait_for_log("stock cannot be handed out and is replaced");
        age_checks(&setup);
        let again = "select result from tasks t join resources i on i.id = t.resource
            where t.action = 'check' and t.status = 'finished' and not i.deleted";
        let said = eventually("its successor is looked at", PATIENCE, || setup.database.text(again));
        assert_eq!(said, "can be handed out", "{after}");
        keep(&setup, BASIC, 0);
        wait_for_stock(&setup, 0);
        assert_eq!(setup.left_in_aws(), Vec::<String>::new());
    });
}

#[test]
fn a_store_that_does_not_know_what_is_not_promised_has_stock_all_the_same() {
    let relay = relay();
    let setup = Setup::new().through(&relay);
    let (_api, _worker) = (setup.api(&[]), setup.worker());
    for call in ["GetBucketEncryption", "GetBucketVersioning"] {
        let unknown = Fault::Status(501, "<Error><Code>NotImplemented</Code></Error>".to_owned());
        relay.plan(Point::Every(call.to_owned()), When::Before, unknown);
    }
    keep(&setup, BASIC, 1);
    let stock = wait_for_stock(&setup, 1);
    age_checks(&setup);
    let said = "select result from tasks where action = 'check' and status = 'finished'";
    let said = eventually("it is looked at", PATIENCE, || setup.database.text(said));
    assert_eq!((said.as_str(), ready(&setup)), ("can be handed out", stock));
    keep(&setup, BASIC, 0);
    wait_for_stock(&setup, 0);
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
    eventually("it is tried after many attempts", PATIENCE, || {
        let is_tried = setup.database.text(state)? == "pending true";
        setup.database.connect().batch_execute(now).unwrap(); // the log says so before the row does
        is_tried.then_some(())
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

#[test]
fn what_cannot_be_removed_is_not_replaced_for_ever() {
    const WANTED: usize = 2;
    let setup = Setup::new();
    let (_api, worker) = (setup.api(&[]), setup.worker());
    keep(&setup, BASIC, WANTED);
    let stock = wait_for_stock(&setup, WANTED);
    let all = "select count(*)::text from resources where not deleted";
    let spoil = |names: &[String]| {
        names.iter().for_each(|name| put_object(name, "somebodys"));
        age_checks(&setup);
        for name in names {
            let sql = format!(
                "select 'yes' from tasks t join resources i on i.id = t.resource
                 where i.name = '{name}' and t.action = 'delete' and t.result like 'what nobody was given stays%'"
            );
            eventually("it stays", PATIENCE * 2, || {
                let now = "update tasks set run_at = now() where action = 'check' and status = 'pending'";
                setup.database.connect().batch_execute(now).unwrap();
                setup.database.text(&sql)
            });
        }
    };
    spoil(&stock);
    let next = wait_until_ready(&setup, WANTED);
    spoil(&next);
    wait_for_look(&setup);
    wait_for_look(&setup);
    assert_eq!(
        setup.database.text(all).as_deref(),
        Some("4"),
        "twice as many as were asked for, and no more"
    );
    worker.wait_for_log("stock is not replaced");
    for name in stock.iter().chain(&next) {
        admin(&["s3api", "delete-object", "--bucket", name, "--key", "somebodys"]);
    }
    let now = "update tasks set run_at = now() where action = 'delete'";
    setup.database.connect().batch_execute(now).unwrap();
    wait_for_stock(&setup, WANTED);
    keep(&setup, BASIC, 0);
    wait_for_stock(&setup, 0);
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}

/// Waits until so many can be handed out, whatever is on its way out.
fn wait_until_ready(setup: &Setup, count: usize) -> Vec<String> {
    eventually("others are ready", PATIENCE * 2, || Some(ready(setup)).filter(|it| it.len() == count))
}

#[test]
fn who_asks_does_not_wait_behind_the_stock() {
    const STOCK: usize = 100;
    const WAITING_MAX: usize = 16;
    let relay = relay();
    let setup = Setup::new().with("WAIT_SECONDS", "0").with("WORKER_THREADS", "1").through(&relay);
    let api = setup.api(&[]);
    keep(&setup, BASIC, STOCK);
    for number in 0..STOCK {
        add_ready(&setup, &format!("s{number}"), "");
    }
    age_checks(&setup);
    setup
        .database
        .connect()
        .batch_execute("update resources set name = 'tnone-u' || left(md5(id), 16)")
        .unwrap();
    relay.slow_down(Duration::from_secs(1));
    let _worker = setup.worker();
    let waiting = || {
        let sql = "select count(*)::text from tasks
            where action in ('check', 'delete') and status = 'pending' and run_at <= now()";
        setup.database.text(sql).unwrap().parse::<usize>().unwrap()
    };
    let mut most = 0;
    for _ in 0..4 {
        wait_for_look(&setup);
        most = most.max(waiting());
    }
    keep(&setup, BASIC, 0);
    for _ in 0..4 {
        wait_for_look(&setup);
        most = most.max(waiting());
    }
    eprintln!("{most} tasks of a stock of {STOCK} waited at once");
    assert!((1..=WAITING_MAX).contains(&most), "{most} tasks of the stock wait before that of who asks");
    drop(api);
}

#[test]
fn tags_that_wait_keep_nobody_from_looking() {
    let setup = Setup::new();
    let (_api, mut worker) = (setup.api(&[]), setup.worker());
    keep(&setup, BASIC, 1);
    wait_for_stock(&setup, 1);
    assert_eq!(worker.terminate(), Some(0));
    age_checks(&setup);
    let sql = "insert into tasks (task, resource, action, run_at, retries)
        select gen_random_uuid(), id, 'tag', now() + interval '1 hour', 3 from resources";
    setup.database.connect().batch_execute(sql).unwrap();
    let _worker = setup.worker();
    eventually("it is looked at", PATIENCE, || {
        setup.database.text("select 'yes' from tasks where action = 'check' and status = 'finished'")
    });
    keep(&setup, BASIC, 0);
    wait_for_stock(&setup, 0);
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}
