//! What becomes of the stock while nobody wants it.

use std::process::Stdio;

use super::*;
use crate::proxy::Proxy;

/// What `servicebroker reconcile` says: exit code and lines.
fn reconcile(setup: &Setup) -> (Option<i32>, String) {
    let output = setup.aws_command(&["reconcile"]).stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn stock_is_kept_as_asked_and_known_to_reconcile() {
    let setup = Setup::new();
    let (api, _workers) = (setup.api(&[]), [setup.worker(), setup.worker()]);
    keep(&setup, BASIC, 3);
    keep(&setup, VERSIONED, 1);
    let stock = wait_for_stock(&setup, 4);
    assert_eq!(setup.left_in_aws().len(), 8);
    let tags = "select distinct organization from resources";
    assert_eq!(setup.database.text(tags).as_deref(), Some("preprovisioned"));
    let tags = admin(&["s3api", "get-bucket-tagging", "--bucket", &stock[0]]).to_string();
    assert!(tags.contains("preprovisioned"), "{tags}");
    assert_eq!(reconcile(&setup).0, Some(0));
    api.provide("one", BASIC);
    wait_for_stock(&setup, 4);
    keep(&setup, BASIC, 1);
    wait_for_stock(&setup, 2);
    assert_eq!(setup.left_in_aws().len(), 6);
    assert_eq!(reconcile(&setup).0, Some(0));
    let mut client = setup.database.connect();
    client.batch_execute(&format!("update plans set deprecated = true where plan = '{BASIC}'")).unwrap();
    wait_for_stock(&setup, 1);
    client.batch_execute("update services set deleted = true").unwrap();
    wait_for_stock(&setup, 0);
    let never_more = "select count(*)::text from resources";
    assert_eq!(
        setup.database.text(never_more).as_deref(),
        Some("5"),
        "no more were made than were asked for"
    );
    api.remove("one", BASIC);
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}

#[test]
fn stock_is_looked_at_and_what_is_broken_is_replaced() {
    let setup = Setup::new();
    let (api, worker) = (setup.api(&[]), setup.worker());
    keep(&setup, BASIC, 4);
    let stock = wait_for_stock(&setup, 4);
    let [keyless, used, tagged, sound] = stock.as_slice() else { panic!("{stock:?}") };
    let tag = |instance: &str| {
        let tag = format!("Tags.member.1.Key=instance&Tags.member.1.Value={instance}");
        ask_iam(&format!("Action=TagUser&Version=2010-05-08&UserName={tagged}&{tag}"));
    };
    tag("another");
    let key = &keys_of(keyless)[0];
    ask_iam(&format!("Action=DeleteAccessKey&Version=2010-05-08&UserName={keyless}&AccessKeyId={key}"));
    put_object(used, "somebodys");
    age_checks_by(&setup, 9);
    wait_for_look(&setup);
    let checks = "select count(*)::text from tasks where action = 'check'";
    assert_eq!(setup.database.text(checks).as_deref(), Some("0"), "not yet");
    age_checks(&setup);
    let state = |name: &str, action: &str| {
        let sql = format!(
            "select concat_ws(' ', t.status, t.retries, t.result) from tasks t join resources i on i.id = t.resource
             where i.name = '{name}' and t.action = '{action}'"
        );
        setup.database.text(&sql).unwrap_or_default()
    };
    for name in [keyless, used, tagged] {
        eventually("it is in doubt", PATIENCE, || {
            state(name, "check").starts_with("pending 1").then_some(())
        });
    }
    eventually("it is sound", PATIENCE, || {
        (state(sound, "check") == "finished 1 can be handed out").then_some(())
    });
    api.provide("first", BASIC);
    assert_eq!(api.bind("first", "b")["S3_BUCKET"].as_str(), Some(sound.as_str()), "what is in doubt stays");
    worker.wait_for_log("stock cannot be handed out and is replaced");
    for (name, why) in
        [(used, "the bucket holds objects"), (tagged, "the user carries the id of another instance")]
    {
        eventually("what somebody has stays", PATIENCE * 2, || {
            state(name, "delete").ends_with(&format!("what nobody was given stays: {why}")).then_some(())
        });
        let row = format!("select status || ' ' || deleted from resources where name = '{name}'");
        assert_eq!(setup.database.text(&row).as_deref(), Some("deprovisioning false"));
    }
    eventually("others are ready", PATIENCE * 2, || {
        let ready = ready(&setup);
        (ready.len() == 4 && ready.iter().all(|it| !stock.contains(it))).then_some(())
    });
    let left = eventually("the broken one is gone", PATIENCE * 2, || {
        Some(setup.left_in_aws()).filter(|it| !it.contains(keyless))
    });
    for name in [used, tagged] {
        assert_eq!(left.iter().filter(|it| *it == name).count(), 2, "{left:?}");
        assert_eq!(keys_of(name).len(), 1);
    }
    keep(&setup, BASIC, 0);
    admin(&["s3api", "delete-object", "--bucket", used, "--key", "somebodys"]);
    tag(&setup.database.text(&format!("select id from resources where name = '{tagged}'")).unwrap());
    setup
        .database
        .connect()
        .batch_execute("update tasks set run_at = now() where action = 'delete'")
        .unwrap();
    api.remove("first", BASIC);
    wait_for_stock(&setup, 0);
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}

#[test]
fn looking_for_ever_fills_no_table() {
    let setup = Setup::new();
    let (_api, _worker) = (setup.api(&[]), setup.worker());
    keep(&setup, VERSIONED, 1);
    let stock = wait_for_stock(&setup, 1);
    let checks = "select string_agg(status || ' ' || result, ',') from tasks where action = 'check'";
    for _ in 0..3 {
        age_checks(&setup);
        eventually("it is looked at", PATIENCE, || {
            let recent =
                "select 'yes' from tasks where action = 'check' and finished > now() - interval '1 minute'";
            setup.database.text(recent)
        });
        assert_eq!(setup.database.text(checks).as_deref(), Some("finished can be handed out"));
    }
    assert_eq!(ready(&setup), stock);
    keep(&setup, VERSIONED, 0);
    wait_for_stock(&setup, 0);
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}

#[test]
fn what_the_old_broker_had_in_stock_is_used_and_what_it_left_is_removed() {
    let setup = Setup::on(Database::of_the_old_broker());
    let (api, mut worker) = (setup.api(&[]), setup.worker());
    keep(&setup, BASIC, 2);
    let stock = wait_for_stock(&setup, 2);
    worker.kill();
    // As the old broker would have written it.
    let rows = format!(
        "delete from tasks where resource in (select id from resources where not claimed);
         update resources set region = null, location = null, s3_endpoint = null, user_arn = null, organization = null,
             key_since = null where not claimed;
         insert into resources (id, name, plan, status, username, password, endpoint, created) values
             ('nameless', '', '{BASIC}', 'provisioning', '', '', '', now() - interval '61 minutes'),
             ('young', '', '{BASIC}', 'provisioning', '', '', '', now() - interval '50 minutes'),
             ('named', '{}-u0000000b', '{BASIC}', 'creating', '', '', '', now() - interval '61 minutes')",
        setup.prefix
    );
    setup.database.connect().batch_execute(&rows).unwrap();
    let _worker = setup.worker();
    // One whose tags are just written is not handed out.
    let looked = "select count(*)::text from tasks t where action = 'check' and result = 'can be handed out'
        and not exists (select 1 from tasks o where o.resource = t.resource and o.status in ('pending', 'started'))";
    eventually("both were looked at", PATIENCE, || (setup.database.text(looked)? == "2").then_some(()));
    api.provide("one", BASIC);
    let credentials = api.bind("one", "b");
    assert!(stock.iter().any(|it| credentials["S3_BUCKET"] == **it), "{credentials} of {stock:?}");
    assert_eq!(credentials["S3_REGION"], setting("TEST_AWS_REGION"));
    let rest = "select string_agg(id || ' ' || deleted, ', ' order by id) from resources
        where id in ('nameless', 'young', 'named')";
    eventually("what is left over goes", PATIENCE, || {
        (setup.database.text(rest)? == "named true, nameless true, young false").then_some(())
    });
    let tasks = "select string_agg(distinct resource || ' ' || action, ', ') from tasks
        where resource in ('nameless', 'young', 'named') and action <> 'sweep'";
    assert_eq!(setup.database.text(tasks).as_deref(), Some("named delete"));
    setup.database.connect().batch_execute("delete from resources where id = 'young'").unwrap();
    keep(&setup, BASIC, 0);
    api.remove("one", BASIC);
    wait_for_stock(&setup, 0);
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}

#[test]
fn while_one_worker_decides_no_other_does() {
    const LOOKS: usize = 3;
    let source = include_str!("../../../src/store/stock.rs");
    let (_, rest) = source.split_once("const ADVISORY_LOCK: i64 = 0x").expect("the lock's number");
    let number = rest.split_once(';').unwrap().0.replace('_', "");
    let number = i64::from_str_radix(&number, 16).unwrap();
    let setup = Setup::new();
    drop(setup.api(&[]));
    let mut decides = setup.database.connect();
    decides.execute("select pg_advisory_lock($1)", &[&number]).unwrap();
    keep(&setup, BASIC, 1);
    let proxy = Proxy::before(setup.database.url());
    let setup = setup.with("DATABASE_URL", proxy.url());
    let _worker = setup.worker();
    eventually("it has looked", PATIENCE, || {
        let looks =
            proxy.points().iter().filter(|it| it.starts_with("select pg_try_advisory_xact_lock")).count();
        (looks >= LOOKS).then_some(())
    });
    assert_eq!(setup.database.text("select 'some' from resources"), None);
    drop(decides);
    wait_for_stock(&setup, 1);
    keep(&setup, BASIC, 0);
    wait_for_stock(&setup, 0);
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}
