//! What operators do to a broker: another account's key, an old backup, a worker that dies again and again. Nothing
//! that somebody uses goes by it, and nothing is forgotten.

use std::time::Duration;

use crate::support::*;

/// What was said last of the delete that there is.
fn said_of_the_delete(setup: &Setup) -> String {
    setup.database.text("select result from tasks where action = 'delete'").unwrap_or_default()
}

fn bucket(setup: &Setup) -> String {
    setup.database.text("select name from resources").unwrap()
}

fn run(setup: &Setup, sql: &str) {
    setup.database.connect().batch_execute(sql).unwrap();
}

#[test]
fn what_a_key_of_another_account_does_not_see_is_not_gone() {
    let setup = Setup::new().with("WAIT_SECONDS", "0");
    let (api, _worker) = (setup.api(&[]), setup.worker());
    assert_eq!(api.provision("one", BASIC).status, 202);
    api.wait_for_state("one", "succeeded");
    // as seen by a worker whose key has been replaced
    run(&setup, "update resources set user_arn = regexp_replace(user_arn, '::[0-9]*:', '::999999999999:')");
    assert_eq!(api.deprovision("one", BASIC).status, 202);
    eventually("the delete waits", PATIENCE, || {
        (said_of_the_delete(&setup) == "the broker's AWS key is of another account").then_some(())
    });
    setup.check_one_of_each();
    assert_eq!(keys_of(&bucket(&setup)).len(), 1);
    let ours = admin(&["sts", "get-caller-identity"])["Account"].as_str().unwrap().to_owned();
    let sql = format!(
        "update resources set user_arn = replace(user_arn, '999999999999', '{ours}'); update tasks set run_at = now()"
    );
    run(&setup, &sql);
    eventually("it is gone", PATIENCE, || {
        (api.get("/v2/service_instances/one/last_operation").status == 410).then_some(())
    });
    setup.check_nothing_left();
}

#[test]
fn an_account_that_only_the_settings_know_is_waited_for_too() {
    let setup = Setup::new().with("WAIT_SECONDS", "0");
    let (api, mut worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    assert_eq!(worker.terminate(), Some(0));
    run(&setup, "update resources set user_arn = null"); // as the old broker left it
    assert_eq!(api.deprovision("one", BASIC).status, 202);
    let mut worker = Broker::start(setup.worker_command().env("AWS_ACCOUNT_ID", "999999999999"));
    eventually("the delete waits", PATIENCE, || {
        (said_of_the_delete(&setup) == "the broker's AWS key is of another account").then_some(())
    });
    setup.check_one_of_each();
    assert_eq!(worker.terminate(), Some(0));
    let _worker = setup.worker();
    run(&setup, "update tasks set run_at = now()");
    eventually("it is gone", PATIENCE, || {
        (api.get("/v2/service_instances/one/last_operation").status == 410).then_some(())
    });
    setup.check_nothing_left();
}

#[test]
fn a_provision_out_of_an_old_backup_takes_no_objects_with_it() {
    let setup = Setup::new();
    let (api, mut worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    let credentials = api.bind("one", "app-space");
    put_object(&bucket(&setup), "kept");
    assert_eq!(worker.terminate(), Some(0));
    run(
        &setup,
        "update resources set status = 'provisioning', created = created - interval '1 day';
         update tasks set status = 'pending', finished = null, run_at = now() where action = 'provision'",
    );
    let _worker = setup.worker();
    eventually("what cleans up stops", PATIENCE, || {
        said_of_the_delete(&setup).ends_with("the bucket holds objects").then_some(())
    });
    api.wait_for_state("one", "failed");
    let read = ["s3api", "get-object", "--bucket", &bucket(&setup), "--key", "kept", "/dev/null"];
    assert!(tenant(&credentials, &read).status().unwrap().success());
    api.remove("one", BASIC); // somebody asks for it
    setup.check_nothing_left();
}

#[test]
fn a_task_that_ends_its_worker_each_time_runs_out_of_attempts() {
    let setup = Setup::new();
    let (api, mut worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    assert_eq!(worker.terminate(), Some(0));
    run(
        &setup,
        "insert into tasks (task, resource, action, status, retries, worker, started, begun, lease_until, created)
         values (gen_random_uuid(), 'one', 'resync-from-provider', 'started', 12, 'dead', now(), now(), now(), '-infinity')",
    );
    let _worker = setup.worker();
    let ended = "select status || ': ' || result from tasks where action = 'resync-from-provider' and finished is not null";
    let ended = eventually("it ends", PATIENCE, || setup.database.text(ended));
    assert_eq!(ended, "failed: its worker died each time");
    api.remove("one", BASIC);
}

/// Finds a change that is older than its request waits.
const LATE: &str =
    "select 'yes' from tasks where action = 'change-plans' and created < now() - interval '2 s'";

/// Asks for another plan and kills the api before it can answer.
fn ask_and_kill(setup: &Setup, api: &mut Broker) {
    std::thread::scope(|scope| {
        let patch = r#"{"service_id":"SERVICE","plan_id":"PLAN"}"#;
        let patch = patch.replace("SERVICE", SERVICE).replace("PLAN", VERSIONED);
        let asker = api.with_header("Content-Type", "application/json");
        scope.spawn(move || {
            let path = "/v2/service_instances/one?accepts_incomplete=true";
            assert!(asker.try_send("PATCH", path, patch.as_bytes()).is_err(), "nobody is there to answer");
        });
        let status = "select 'yes' from resources where status = 'modifying'";
        eventually("the change is asked for", PATIENCE, || setup.database.text(status));
        api.kill();
    });
}

#[test]
fn a_change_of_plan_that_was_answered_without_the_database_does_not_come_later() {
    let setup = Setup::new().with("WAIT_SECONDS", "2");
    let (mut api, mut worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    assert_eq!(worker.terminate(), Some(0));
    ask_and_kill(&setup, &mut api);
    eventually("nobody waits any more", Duration::from_secs(10), || setup.database.text(LATE));
    let _worker = setup.worker();
    let ended =
        "select status || ': ' || result from tasks where action = 'change-plans' and finished is not null";
    let ended = eventually("it ends", PATIENCE, || setup.database.text(ended));
    assert_eq!(ended, "failed: no worker came in time");
    let row = setup.database.text("select plan::text || ' ' || status from resources");
    assert_eq!(row, Some(format!("{BASIC} available")));
    let api = setup.api(&[]);
    assert_eq!(api.change("one", VERSIONED).status, 200);
    api.remove("one", VERSIONED);
}

#[test]
fn a_change_of_plan_that_was_said_to_go_on_comes_however_late() {
    let setup = Setup::new().with("WAIT_SECONDS", "2");
    let (mut api, mut worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    assert_eq!(worker.terminate(), Some(0));
    ask_and_kill(&setup, &mut api);
    let setup = setup.with("WAIT_SECONDS", "0");
    let api = setup.api(&[]);
    assert_eq!(api.change("one", VERSIONED).status, 202);
    eventually("nobody waits any more", Duration::from_secs(10), || setup.database.text(LATE));
    let _worker = setup.worker();
    api.wait_for_state("one", "succeeded");
    let row = setup.database.text("select plan::text || ' ' || status from resources");
    assert_eq!(row, Some(format!("{VERSIONED} available")));
    api.remove("one", VERSIONED);
}
