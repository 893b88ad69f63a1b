//! The tasks of the old broker: each ends, also those that never did anything there.

use crate::cloud::*;
use crate::support::*;

/// What the old broker wrote: no worker, no due time.
fn enqueue(setup: &Setup, action: &str, metadata: &str) {
    let sql =
        "insert into tasks (task, resource, action, metadata) values (gen_random_uuid(), 'one', $1, $2)";
    setup.database.connect().execute(sql, &[&action, &metadata]).unwrap();
}

/// Waits for the end of a task: its state and what it says.
fn end_of(setup: &Setup, action: &str) -> (String, String) {
    let of = |column: &str| {
        setup.database.text(&format!(
            "select {column}::text from tasks where action = '{action}' and status in ('finished', 'failed')"
        ))
    };
    eventually(&format!("{action} ends"), PATIENCE, || Some((of("status")?, of("result")?)))
}

#[test]
fn every_action_of_the_old_broker_ends() {
    let setup = Setup::new();
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    for (action, metadata, state, says) in [
        ("resync-from-provider", "", "finished", "in line"),
        ("resync-until-available", "", "finished", "in line"),
        ("perform-post-provision", "", "finished", "in line"),
        ("change-providers", "{\"plan\":\"x\"}", "failed", "one provider"),
        ("restore-database", "{\"backup\":\"x\"}", "failed", "no database"),
        ("change-plans", &format!("{{\"plan\":\"{VERSIONED}\"}}"), "finished", "changed"),
        ("something-new", "x", "failed", "no such task"),
    ] {
        enqueue(&setup, action, metadata);
        let (ended, said) = end_of(&setup, action);
        assert!(ended == state && said.contains(says), "{action}: {ended} {said}");
    }
    let name = setup.database.text("select name from resources").unwrap();
    assert!(ask_s3(&format!("/{name}?versioning")).contains("Enabled"));
    assert_eq!(setup.database.text("select plan::text from resources").as_deref(), Some(VERSIONED));
    enqueue(&setup, "delete", "");
    assert_eq!(end_of(&setup, "delete").0, "finished");
    setup.check_nothing_left();
}

#[test]
fn each_resync_repairs_row_and_policy() {
    let setup = Setup::new();
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    let place = || setup.database.text("select concat_ws(' ', user_arn, region, location) from resources");
    let (before, name) = (place(), setup.database.text("select name from resources").unwrap());
    let policy = |action: &str| {
        ask_iam(&format!("Action={action}&Version=2010-05-08&UserName={name}&PolicyName=bucket"))
    };
    for action in ["resync-from-provider", "resync-until-available", "perform-post-provision"] {
        policy("DeleteUserPolicy");
        let sql = "update resources set user_arn = null, region = 'nowhere', location = 'nowhere'";
        setup.database.connect().batch_execute(sql).unwrap();
        enqueue(&setup, action, "");
        assert_eq!(end_of(&setup, action).0, "finished", "{action}");
        assert_eq!(place(), before, "{action}");
        assert!(policy("GetUserPolicy").contains("PolicyDocument"), "{action}");
    }
}

#[test]
fn an_action_on_an_instance_that_is_gone_ends() {
    let setup = Setup::new();
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    api.remove("one", BASIC);
    for action in [
        "resync-from-provider",
        "change-plans",
        "rotate-credentials",
        "tag",
        "remove-previous-key",
        "remove-unknown-keys",
    ] {
        enqueue(&setup, action, "{\"plan\":\"x\"}");
        assert_eq!(end_of(&setup, action).0, "failed", "{action}");
    }
    setup.check_nothing_left();
}

#[test]
fn an_action_on_an_instance_that_the_old_broker_deleted_ends() {
    let setup = Setup::new();
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    let name = setup.database.text("select name from resources").unwrap();
    api.remove("one", BASIC);
    // It left everything but one column as it was.
    let sql = "update resources set status = 'available', username = 'AKIAGONE', password = 'gone'";
    setup.database.connect().batch_execute(sql).unwrap();
    for action in [
        "resync-from-provider",
        "resync-until-available",
        "perform-post-provision",
        "change-plans",
        "rotate-credentials",
        "tag",
    ] {
        enqueue(&setup, action, &format!("{{\"plan\":\"{VERSIONED}\"}}"));
        let (ended, said) = end_of(&setup, action);
        assert!(ended == "failed" && said.contains("gone"), "{action}: {ended} {said}");
    }
    assert_eq!(setup.left_in_aws(), Vec::<String>::new(), "{name}");
}

#[test]
fn an_old_delete_takes_what_it_names_and_not_what_bears_the_id_since() {
    let setup = Setup::new();
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    let former = format!("{}-u4b36b824", setup.prefix);
    admin(&["iam", "create-user", "--user-name", &former]);
    enqueue(&setup, "delete", &former);
    assert_eq!(end_of(&setup, "delete"), ("finished".to_owned(), "nothing was left".to_owned()));
    api.wait_for_state("one", "succeeded");
    setup.check_one_of_each();
    api.remove("one", BASIC);
    setup.check_nothing_left();
}

#[test]
fn a_task_that_was_left_started_without_a_time_is_taken_over() {
    let setup = Setup::new();
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    let sql = "insert into tasks (task, resource, action, status, updated)
        values (gen_random_uuid(), 'one', 'resync-from-provider', 'started', now() - interval '2 hours')";
    setup.database.connect().batch_execute(sql).unwrap();
    assert_eq!(end_of(&setup, "resync-from-provider").0, "finished");
}

#[test]
fn another_delete_of_what_was_deleted_does_not_bring_it_back() {
    let setup = Setup::new();
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    api.remove("one", BASIC);
    // The old broker's rows keep their status, and it may enqueue two deletes.
    let sql = "update resources set status = 'available'; delete from tasks where action = 'delete'";
    setup.database.connect().batch_execute(sql).unwrap();
    enqueue(&setup, "delete", "");
    assert_eq!(end_of(&setup, "delete").0, "finished");
    assert_eq!(setup.database.text("select deleted::text from resources").as_deref(), Some("true"));
    assert_eq!(api.get("/v2/service_instances/one/last_operation").status, 410);
}

#[test]
fn an_id_is_not_used_again_while_a_delete_of_it_is_to_come() {
    let setup = Setup::new();
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    api.remove("one", BASIC);
    let again =
        "update tasks set status = 'pending', run_at = now() + interval '1 hour' where action = 'delete'";
    setup.database.connect().batch_execute(again).unwrap();
    enqueue(&setup, "resync-from-provider", ""); // of the former instance
    let later = "update tasks set run_at = now() + interval '1 hour' where action = 'resync-from-provider'";
    setup.database.connect().batch_execute(later).unwrap();
    let answer = api.provision("one", BASIC);
    let told = (answer.status, answer.json["error"].as_str());
    assert_eq!(told, (422, Some("ConcurrencyError")), "{}", answer.text);
    setup
        .database
        .connect()
        .batch_execute("update tasks set run_at = now() where action = 'delete'")
        .unwrap();
    assert_eq!(end_of(&setup, "delete").0, "finished");
    api.provide("one", BASIC);
    assert_eq!(end_of(&setup, "resync-from-provider"), ("failed".to_owned(), "stopped by delete".to_owned()));
    check_there(&setup);
    api.remove("one", BASIC);
    setup.check_nothing_left();
}

/// The instance has its bucket.
fn check_there(setup: &Setup) {
    let name = setup.database.text("select name from resources").unwrap();
    assert!(setup.left_in_aws().contains(&name), "{name}");
}

#[test]
fn what_no_broker_named_is_not_touched() {
    let setup = Setup::new();
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    let name = setup.database.text("select name from resources").unwrap();
    // The worker's policy would allow it; the name of no instance looks like that.
    let foreign = format!("{}-users", setup.prefix);
    admin(&["iam", "create-user", "--user-name", &foreign]);
    admin(&["iam", "create-access-key", "--user-name", &foreign]);
    let rename = |to: &str| {
        let sql = format!("update resources set name = '{to}'");
        setup.database.connect().batch_execute(&sql).unwrap();
    };
    let held = keys_of(&foreign);
    let key = &held[0];
    rename(&foreign);
    for action in ["rotate-credentials", "resync-from-provider", "change-plans", "tag"] {
        enqueue(&setup, action, &format!("{{\"plan\":\"{VERSIONED}\"}}"));
    }
    for (action, name) in [("remove-previous-key", &foreign), ("sweep", &foreign)] {
        enqueue(&setup, action, &format!("{{\"name\":\"{name}\",\"key\":\"{key}\"}}"));
    }
    enqueue(&setup, "delete", "");
    let refused = "select count(distinct action)::text from tasks
        where result like '%none that a broker gives%' and status = case action when 'delete' then 'pending' else 'failed' end::task_status";
    eventually("all are refused", PATIENCE, || (setup.database.text(refused)? == "7").then_some(()));
    assert_eq!(keys_of(&foreign), held);
    assert!(!ask_iam(&format!("Action=GetUser&Version=2010-05-08&UserName={foreign}")).contains("<Error>"));
    rename(&name);
    setup.database.connect().batch_execute("delete from tasks where action <> 'delete'").unwrap();
    setup.database.connect().batch_execute("update tasks set run_at = now()").unwrap();
    assert_eq!(end_of(&setup, "delete").0, "finished");
    admin(&["iam", "delete-access-key", "--user-name", &foreign, "--access-key-id", key]);
    admin(&["iam", "delete-user", "--user-name", &foreign]);
    setup.check_nothing_left();
}
