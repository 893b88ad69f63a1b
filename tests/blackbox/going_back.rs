//! Back to the old broker on the same database, and forward again. Its program is not here: these are the statements
//! that it runs, with its columns, and the calls to AWS that it makes.

use serde_json::Value;

use crate::cloud::*;
use crate::support::*;
use crate::upgrade::{OLD, insert_old, make_in_aws, policies, taken_over_with, wait_for_places};

/// What it runs whenever it starts: its triggers are made anew.
const START: &str = "
    create or replace function mark_updated_column() returns trigger language plpgsql as
        'begin NEW.updated = now(); return NEW; end';
    drop trigger if exists services_updated on services;
    create trigger services_updated before update on services for each row execute procedure mark_updated_column();
    drop trigger if exists plans_updated on plans;
    create trigger plans_updated before update on plans for each row execute procedure mark_updated_column();
    drop trigger if exists resources_updated on resources;
    create trigger resources_updated before update on resources for each row execute procedure mark_updated_column();
    drop trigger if exists tasks_updated on tasks;
    create trigger tasks_updated before update on tasks for each row execute procedure mark_updated_column();";

/// The old broker's view of an instance. It reads every column into a text, so a null is an error there.
fn read(client: &mut postgres::Client, id: &str) -> [String; 6] {
    let sql = "select name, plan::text, status, username, password, endpoint from resources
        where id = $1 and deleted = false";
    let row = client.query_one(sql, &[&id]).unwrap();
    std::array::from_fn(|column| row.get(column))
}

/// A task as it enqueues one.
fn enqueue(client: &mut postgres::Client, id: &str, action: &str, metadata: &str) {
    let sql = "insert into tasks (task, resource, action, metadata) values (gen_random_uuid(), $1, $2, $3) returning task";
    client.query_one(sql, &[&id, &action, &metadata]).unwrap();
}

/// It takes the oldest task, whatever it is, fails, and puts it back: its action.
fn try_a_task(client: &mut postgres::Client) -> String {
    let sql = "update tasks set status = 'started', started = now() where task in (
            select task from tasks where status = 'pending' and deleted = false order by updated asc limit 1)
        returning task::text, action, resource, status::text, retries, metadata, result, started, finished";
    let row = client.query_one(sql, &[]).unwrap();
    let (task, action): (String, String) = (row.get(0), row.get(1));
    let sql = "update tasks set status = 'pending', retries = retries + 1, result = 'Cannot', started = coalesce(null, started)
        where task = $1::text::uuid";
    assert_eq!(client.execute(sql, &[&task]).unwrap(), 1);
    action
}

/// It gives an instance of the stock to an id: the row is written anew, and the other one goes.
fn claim(client: &mut postgres::Client, id: &str, plan: &str) {
    let mut tx = client.transaction().unwrap();
    let sql = "select id from resources
        where claimed = false and status = 'available' and deleted = false and id != $1 and plan = $2::text::uuid limit 1";
    let spare: String = tx.query_one(sql, &[&id, &plan]).unwrap().get(0);
    let sql = "insert into resources (id, name, plan, claimed, status, username, password, endpoint)
        select $1, name, plan, true, status, username, password, endpoint from resources where id = $2";
    assert_eq!(tx.execute(sql, &[&id, &spare]).unwrap(), 1);
    tx.execute("update tasks set resource = $2 where resource = $1 and deleted = false", &[&spare, &id])
        .unwrap();
    let sql = "delete from resources where id = $1 and deleted = false and claimed = false";
    assert_eq!(tx.execute(sql, &[&spare]).unwrap(), 1);
    tx.commit().unwrap();
}

/// It writes back what it has read, as it does whenever it is asked how an instance stands.
fn write_back(client: &mut postgres::Client, id: &str) {
    let [name, plan, _, username, password, endpoint] = read(client, id);
    let sql = "update resources set plan = $1::text::uuid, endpoint = $2, status = 'available', username = $3, password = $4,
        name = $5 where id = $6";
    assert_eq!(client.execute(sql, &[&plan, &endpoint, &username, &password, &name, &id]).unwrap(), 1);
}

/// It gives an instance another key; the one before ends at once.
fn rotate(client: &mut postgres::Client, id: &str) {
    let [name, _, _, former, ..] = read(client, id);
    let key = admin(&["iam", "create-access-key", "--user-name", &name])["AccessKey"].clone();
    admin(&["iam", "delete-access-key", "--user-name", &name, "--access-key-id", &former]);
    let (key, secret) = (key["AccessKeyId"].as_str().unwrap(), key["SecretAccessKey"].as_str().unwrap());
    client
        .execute("update resources set username = $1, password = $2 where id = $3", &[&key, &secret, &id])
        .unwrap();
}

/// It removes an instance: the attached policy is the only one that it looks for.
fn remove(client: &mut postgres::Client, id: &str) {
    let [name, _, _, key, ..] = read(client, id);
    admin(&["s3api", "delete-bucket", "--bucket", &name]);
    let attached = admin(&["iam", "list-attached-user-policies", "--user-name", &name]);
    let policy =
        attached["AttachedPolicies"][0]["PolicyArn"].as_str().expect("the old broker ends here").to_owned();
    admin(&["iam", "detach-user-policy", "--user-name", &name, "--policy-arn", &policy]);
    admin(&["iam", "delete-policy", "--policy-arn", &policy]);
    admin(&["iam", "delete-access-key", "--user-name", &name, "--access-key-id", &key]);
    admin(&["iam", "delete-user", "--user-name", &name]);
    client.execute("update tasks set deleted = true where resource = $1", &[&id]).unwrap();
    client.execute("update resources set deleted = true where id = $1", &[&id]).unwrap();
}

/// The key opens the bucket.
fn check_usable(credentials: &Value) {
    let bucket = credentials["S3_BUCKET"].as_str().unwrap();
    let put = ["s3api", "put-object", "--bucket", bucket, "--key", "kept"];
    assert!(tenant(credentials, &put).status().unwrap().success(), "{credentials}");
}

/// Waits until nothing is to be done but looks at what may have been left, and ends both processes.
fn stop(setup: &Setup, mut processes: [Broker; 2]) {
    eventually("open tasks have ended", PATIENCE, || {
        setup.database.text(
            "select 'yes' where not exists (
                select from tasks where status in ('pending', 'started') and not deleted
                    and action not in ('sweep', 'remove-unknown-keys'))",
        )
    });
    for process in &mut processes {
        assert_eq!(process.terminate(), Some(0));
    }
}

#[test]
fn the_old_broker_works_on_the_tables_and_what_it_does_is_served_later() {
    let setup = taken_over_with(&[0, 1]);
    let (api, worker) = (setup.api(&[]), setup.worker());
    wait_for_places(&setup);
    let keep = |count: u8| {
        let sql = format!("update plans set preprovision = {count} where plan = '{BASIC}'");
        setup.database.connect().batch_execute(&sql).unwrap();
    };
    keep(1);
    api.provide("made-here", VERSIONED);
    api.bind(OLD[0].0, "web-default");
    let ready = "select 'yes' from resources where not claimed and status = 'available'";
    eventually("there is a stock", PATIENCE, || setup.database.text(ready));
    stop(&setup, [api, worker]);
    keep(0);

    let mut client = setup.database.connect();
    client.batch_execute(START).unwrap();
    let (rotated, deleted, changed, given_up) = (OLD[0].0, OLD[1].0, "made-there", "made-here");
    for id in [rotated, deleted, given_up] {
        assert!(read(&mut client, id).iter().all(|it| !it.is_empty()), "{id}");
    }
    insert_old(&setup, changed, BASIC);
    make_in_aws(&setup, changed, BASIC, OLD.len());
    claim(&mut client, "claimed-there", BASIC);
    for id in [rotated, changed, "claimed-there", given_up] {
        write_back(&mut client, id);
    }
    rotate(&mut client, rotated);
    client.execute("update tasks set deleted = true where action = 'sweep'", &[]).unwrap();
    enqueue(&mut client, changed, "change-plans", &format!("{{\"plan\":\"{VERSIONED}\"}}"));
    enqueue(&mut client, given_up, "delete", "its name");
    let tried = [try_a_task(&mut client), try_a_task(&mut client)];
    assert!(
        tried.iter().any(|it| it == "change-plans") && tried.iter().any(|it| it == "delete"),
        "{tried:?}"
    );
    remove(&mut client, deleted);

    let (api, _worker) = (setup.api(&[]), setup.worker());
    wait_for_places(&setup);
    for id in [rotated, changed, "claimed-there"] {
        let credentials = api.bind(id, "late-default");
        check_usable(&credentials);
        let [name, _, _, key, ..] = read(&mut client, id);
        assert_eq!(
            (&credentials["S3_BUCKET"], &credentials["S3_ACCESS_KEY"]),
            (&name.into(), &key.into()),
            "{id}"
        );
    }
    eventually("the change of plan is done", PATIENCE, || {
        (read(&mut client, changed)[1] == VERSIONED).then_some(())
    });
    for id in [deleted, given_up] {
        eventually("it is gone", PATIENCE, || {
            let answer = api.get(&format!("/v2/service_instances/{id}/last_operation"));
            (answer.status == 410).then_some(())
        });
    }
    for id in [rotated, changed, "claimed-there"] {
        let answer = api.send("PUT", &format!("/v2/service_instances/{id}/actions/credentials"), b"");
        assert_eq!(answer.status, 200, "{id}: {}", answer.text);
        api.remove(id, BASIC);
    }
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
    assert_eq!(policies(&setup), Vec::<String>::new());
}

#[test]
fn an_instance_made_here_can_be_given_the_policy_that_the_old_broker_looks_for() {
    let setup = Setup::new();
    let (api, worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    let credentials = api.bind("one", "web-default");
    stop(&setup, [api, worker]);

    // What the README says for each of these instances.
    let name = credentials["S3_BUCKET"].as_str().unwrap();
    let inline = ["--user-name", name, "--policy-name", "bucket"];
    let document =
        admin(&[&["iam", "get-user-policy"], inline.as_slice()].concat())["PolicyDocument"].to_string();
    let managed = format!("{name}policy");
    let made = admin(&["iam", "create-policy", "--policy-name", &managed, "--policy-document", &document]);
    let arn = made["Policy"]["Arn"].as_str().unwrap();
    admin(&["iam", "attach-user-policy", "--user-name", name, "--policy-arn", arn]);
    admin(&[&["iam", "delete-user-policy"], inline.as_slice()].concat());

    check_usable(&credentials);
    admin(&["s3api", "delete-object", "--bucket", name, "--key", "kept"]);
    let mut client = setup.database.connect();
    rotate(&mut client, "one");
    remove(&mut client, "one");
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}
