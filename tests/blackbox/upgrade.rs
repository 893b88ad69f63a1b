//! The old broker's database and what it made in AWS, taken over as they stand.

use serde_json::json;

use crate::cloud::*;
use crate::support::*;

/// The instances in its dump; the deleted one is not among them.
pub(crate) const OLD: [(&str, &str); 4] = [
    ("22222222-bbbb-4bbb-8bbb-000000000001", BASIC),
    ("22222222-bbbb-4bbb-8bbb-000000000002", VERSIONED),
    ("22222222-bbbb-4bbb-8bbb-000000000003", SHIELD),
    ("22222222-bbbb-4bbb-8bbb-000000000004", SHIELD_VERSIONED),
];

/// What the old broker made for an instance, in its order.
pub(crate) fn make_in_aws(setup: &Setup, id: &str, plan: &str, number: usize) {
    let name = format!("{}-u{:08x}", setup.prefix, 0x4b36_0000 + number);
    let user =
        admin(&["iam", "create-user", "--user-name", &name])["User"]["Arn"].as_str().unwrap().to_owned();
    let key = admin(&["iam", "create-access-key", "--user-name", &name])["AccessKey"].clone();
    let place = format!("LocationConstraint={}", setting("TEST_AWS_REGION"));
    admin(&["s3api", "create-bucket", "--bucket", &name, "--create-bucket-configuration", &place]);
    if plan == VERSIONED || plan == SHIELD_VERSIONED {
        let status = "Status=Enabled";
        admin(&["s3api", "put-bucket-versioning", "--bucket", &name, "--versioning-configuration", status]);
    }
    if plan == SHIELD || plan == SHIELD_VERSIONED {
        let rules =
            json!({ "Rules": [{ "ApplyServerSideEncryptionByDefault": { "SSEAlgorithm": "aws:kms" } }] });
        let rules = rules.to_string();
        let option = "--server-side-encryption-configuration";
        admin(&["s3api", "put-bucket-encryption", "--bucket", &name, option, &rules]);
    }
    let set = "TagSet=[{Key=billingcode,Value=org-1}]";
    admin(&["s3api", "put-bucket-tagging", "--bucket", &name, "--tagging", set]);
    let objects = format!("arn:aws:s3:::{name}/*");
    let statement =
        json!({ "Effect": "Allow", "Principal": { "AWS": user }, "Action": "s3:*", "Resource": objects });
    let document = json!({ "Version": "2012-10-17", "Statement": [statement] }).to_string();
    admin(&["s3api", "put-bucket-policy", "--bucket", &name, "--policy", &document]);
    let resources = [format!("arn:aws:s3:::{name}"), objects];
    let statement = json!({ "Effect": "Allow", "Action": "s3:*", "Resource": resources });
    let document = json!({ "Version": "2012-10-17", "Statement": [statement] }).to_string();
    let policy = admin(&[
        "iam",
        "create-policy",
        "--policy-name",
        &format!("{name}policy"),
        "--policy-document",
        &document,
    ]);
    let policy = policy["Policy"]["Arn"].as_str().unwrap();
    admin(&["iam", "attach-user-policy", "--user-name", &name, "--policy-arn", policy]);
    let (key_id, secret) = (key["AccessKeyId"].as_str().unwrap(), key["SecretAccessKey"].as_str().unwrap());
    let sql = "update resources set name = $2, endpoint = $2, username = $3, password = $4 where id = $1";
    assert_eq!(setup.database.connect().execute(sql, &[&id, &name, &key_id, &secret]).unwrap(), 1);
}

/// The old broker's database, its processes stopped, and what it made.
fn taken_over() -> Setup {
    taken_over_with(&[0, 1, 2, 3])
}

/// The same with some of its instances only: each takes a while to make.
pub(crate) fn taken_over_with(kept: &[usize]) -> Setup {
    let setup = Setup::on(Database::of_the_old_broker());
    for (number, (id, plan)) in OLD.iter().enumerate() {
        if kept.contains(&number) {
            make_in_aws(&setup, id, plan, number);
        } else {
            let sql =
                format!("delete from tasks where resource = '{id}'; delete from resources where id = '{id}'");
            setup.database.connect().batch_execute(&sql).unwrap();
        }
    }
    setup
}

/// The managed policies that are left.
pub(crate) fn policies(setup: &Setup) -> Vec<String> {
    let all = admin(&["iam", "list-policies", "--scope", "Local"]);
    let names =
        all["Policies"].as_array().unwrap().iter().map(|it| it["PolicyName"].as_str().unwrap().to_owned());
    names.filter(|it| it.starts_with(&setup.prefix)).collect()
}

/// Waits until a worker has looked where the buckets are.
pub(crate) fn wait_for_places(setup: &Setup) {
    eventually("the instances are completed", PATIENCE, || {
        setup.database.text(
            "select 'yes' where not exists (select 1 from resources where region is null and not deleted)",
        )
    });
}

#[test]
fn instances_of_the_old_broker_live_on_and_die_completely() {
    let setup = taken_over();
    let before = setup
        .database
        .text("select string_agg(username || password, ',' order by id) from resources where not deleted");
    let (api, _worker) = (setup.api(&[]), setup.worker());
    wait_for_places(&setup);
    let now = setup
        .database
        .text("select string_agg(username || password, ',' order by id) from resources where not deleted");
    assert_eq!(now, before, "nothing was rotated behind anybody's back");
    // What the platform was told long ago, and never happened.
    eventually("the change of plan is done", PATIENCE, || {
        setup.database.text("select 'yes' from tasks where action = 'change-plans' and status = 'finished'")
    });
    let plan = "select plan::text from resources where id = '22222222-bbbb-4bbb-8bbb-000000000001'";
    assert_eq!(setup.database.text(plan).as_deref(), Some(VERSIONED));
    for (id, _) in OLD {
        let old = api.bind(id, "web-default");
        let bucket = old["S3_BUCKET"].as_str().unwrap();
        let put = ["s3api", "put-object", "--bucket", bucket, "--key", "kept"];
        assert!(tenant(&old, &put).status().unwrap().success(), "{id}");
        let rotated = api.send("PUT", &format!("/v2/service_instances/{id}/actions/credentials"), b"");
        assert_eq!(rotated.status, 200, "{id}: {}", rotated.text);
        let new = api.bind(id, "web-default");
        assert_ne!(new["S3_ACCESS_KEY"], old["S3_ACCESS_KEY"], "{id}");
        for key in [&old, &new] {
            let read = ["s3api", "get-object", "--bucket", bucket, "--key", "kept", "/dev/null"];
            assert!(tenant(key, &read).status().unwrap().success(), "{id}: within the grace both keys work");
        }
        eventually("the bucket is tagged", PATIENCE, || {
            let tags = admin(&["s3api", "get-bucket-tagging", "--bucket", bucket]).to_string();
            (tags.contains("web-default") && tags.contains("org-1")).then_some(())
        });
    }
    let (id, _) = OLD[2];
    assert_eq!(api.change(id, BASIC).status, 200);
    let bucket = api.bind(id, "web-default")["S3_BUCKET"].as_str().unwrap().to_owned();
    assert!(!ask_s3(&format!("/{bucket}?encryption")).contains("aws:kms"));
    for (id, plan) in OLD {
        api.remove(id, plan);
    }
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
    assert_eq!(policies(&setup), Vec::<String>::new());
}

#[test]
fn whatever_the_old_broker_left_in_its_tables_is_served() {
    let setup = taken_over();
    let other = "33333333-cccc-4ccc-8ccc-000000000001";
    let sql = format!(
        "insert into plans (plan, service, name, human_name, description, version, type, scheme, attributes, provider,
             provider_private_details)
         values ('{other}', '{SERVICE}', 'own', 'Own', 'An operator''s own plan', 'v1', 's3', 's3', '{{}}', 'aws-s3',
             '{{\"versioned\":true}}');
         update resources set plan = '{other}' where id = '{own}';
         update plans set deleted = true where plan = '{SHIELD}';
         insert into tasks (task, resource, action, status, retries, started, finished) values
             (gen_random_uuid(), '{own}', 'resync-from-provider', 'started', 59, now() - interval '3 days', null),
             (gen_random_uuid(), '{own}', 'perform-post-provision', 'failed', 60, now(), now()),
             (gen_random_uuid(), '{own}', 'resync-until-available', 'finished', 1, now(), now()),
             (gen_random_uuid(), '{own}', 'restore-database', 'pending', 0, null, null);",
        own = OLD[1].0,
    );
    setup.database.connect().batch_execute(&sql).unwrap();
    let (api, _worker) = (setup.api(&[]), setup.worker());
    wait_for_places(&setup);
    let catalog = api.get("/v2/catalog").json["services"][0]["plans"].clone();
    let names: Vec<&str> =
        catalog.as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"own") && names.contains(&"basic"), "{names:?}");
    for (id, plan) in OLD {
        let state = api.get(&format!("/v2/service_instances/{id}/last_operation"));
        assert!(state.status == 200 && state.json["state"] != "failed", "{id}: {}", state.text);
        assert_eq!(api.bind(id, "web-default")["S3_REGION"], setting("TEST_AWS_REGION"), "{id} {plan}");
    }
    eventually("its tasks have ended", PATIENCE, || {
        setup.database.text(
            "select 'yes' where not exists (select 1 from tasks where status in ('pending', 'started'))",
        )
    });
    let ended = "select string_agg(action || ' ' || status, ', ' order by action) from tasks where resource = $1 and action <> 'tag'";
    let row = setup.database.connect().query_one(ended, &[&OLD[1].0]).unwrap();
    let ended: String = row.get(0);
    assert_eq!(
        ended,
        "perform-post-provision failed, restore-database failed, resync-from-provider finished, \
         resync-until-available finished"
    );
    for (id, plan) in OLD {
        let plan = if id == OLD[1].0 { other } else { plan };
        api.remove(id, plan);
    }
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
    assert_eq!(policies(&setup), Vec::<String>::new());
}

/// Writes a row as the old broker did when it had made an instance, and nothing else.
pub(crate) fn insert_old(setup: &Setup, id: &str, plan: &str) {
    let sql = format!(
        "insert into resources (id, name, plan, claimed, status, username, password, endpoint)
         values ('{id}', '', '{plan}', true, 'available', null, null, '')"
    );
    setup.database.connect().batch_execute(&sql).unwrap();
}

/// The tenant's key reaches its bucket.
fn check_usable(credentials: &serde_json::Value) {
    let put =
        ["s3api", "put-object", "--bucket", credentials["S3_BUCKET"].as_str().unwrap(), "--key", "kept"];
    assert!(tenant(credentials, &put).status().unwrap().success(), "{credentials}");
}

#[test]
fn instances_are_completed_and_tagged_whenever_the_old_broker_made_them() {
    let setup = taken_over_with(&[1]);
    let (api, _worker) = (setup.api(&[]), setup.worker());
    wait_for_places(&setup);
    let late = "late";
    insert_old(&setup, late, BASIC);
    make_in_aws(&setup, late, BASIC, OLD.len());
    wait_for_places(&setup);
    check_usable(&api.bind(late, "web-default"));
    let broker = setup.database.text("select id::text from broker").unwrap();
    for id in [OLD[1].0, late] {
        let name = setup.database.text(&format!("select name from resources where id = '{id}'")).unwrap();
        eventually("bucket and user say whose they are", PATIENCE, || {
            let bucket = admin(&["s3api", "get-bucket-tagging", "--bucket", &name]).to_string();
            let user = admin(&["iam", "list-user-tags", "--user-name", &name]).to_string();
            let ours = |tags: &str| tags.contains(&broker) && tags.contains(id);
            (ours(&bucket) && bucket.contains("org-1") && ours(&user) && user.contains("org-1")).then_some(())
        });
        let arn = setup.database.text(&format!("select user_arn from resources where id = '{id}'"));
        assert!(arn.is_some_and(|it| it.ends_with(&format!("user/{name}"))), "{id}");
    }
}

#[test]
fn what_two_rows_share_stays_until_the_last_of_them_is_deleted() {
    let setup = taken_over_with(&[0]);
    // Two of the old broker's replicas gave one bucket to two; a third put it back into the stock.
    let sql = format!(
        "insert into resources (id, name, plan, claimed, status, username, password, endpoint)
             select new.id, name, plan, new.claimed, status, username, password, endpoint
             from resources, (values ('twin', true), ('spare', false)) as new (id, claimed)
             where resources.id = '{}';
         delete from tasks",
        OLD[0].0
    );
    setup.database.connect().batch_execute(&sql).unwrap();
    let (api, worker) = (setup.api(&[]), setup.worker());
    wait_for_places(&setup);
    worker.wait_for_log("instances share a bucket");
    let credentials = api.bind(OLD[0].0, "web-default");
    let is_gone = |id: &str| {
        let sql = format!("select 'yes' from resources where id = '{id}' and deleted");
        eventually("the row is gone", PATIENCE, || setup.database.text(&sql));
    };
    is_gone("spare");
    check_usable(&credentials);
    let rotated = api.send("PUT", "/v2/service_instances/twin/actions/credentials", b"");
    assert_eq!(rotated.status, 502, "{}", rotated.text);
    assert!(rotated.text.contains("another instance has the user too"), "{}", rotated.text);
    api.remove("twin", BASIC);
    check_usable(&credentials);
    let sweeps = "update tasks set run_at = now() where action = 'sweep' and status = 'pending'";
    assert_eq!(setup.database.connect().execute(sweeps, &[]).unwrap(), 2);
    eventually("the sweeps are over", PATIENCE, || {
        setup.database.text(
            "select 'yes' from tasks where action = 'sweep' and status = 'finished' having count(*) = 2",
        )
    });
    check_usable(&credentials);
    api.remove(OLD[0].0, BASIC);
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}

#[test]
fn what_the_stock_has_too_goes_with_the_instance() {
    let setup = taken_over_with(&[0]);
    let sql = format!(
        "insert into resources (id, name, plan, claimed, status, username, password, endpoint)
             select 'spare', name, plan, false, status, username, password, endpoint
             from resources where id = '{}';
         delete from tasks",
        OLD[0].0
    );
    setup.database.connect().batch_execute(&sql).unwrap();
    let api = setup.api(&[]);
    let name = setup.database.text("select name from resources where id = 'spare'").unwrap();
    put_object(&name, "kept");
    assert_eq!(api.deprovision(OLD[0].0, BASIC).status, 202);
    let _worker = setup.worker();
    eventually("both rows are gone", PATIENCE * 4, || {
        let hasten =
            "update tasks set run_at = now() where action in ('check', 'delete') and status = 'pending'";
        setup.database.connect().batch_execute(hasten).unwrap();
        let both = format!(
            "select 'yes' from resources where id in ('spare', '{}') and deleted having count(*) = 2",
            OLD[0].0
        );
        setup.database.text(&both)
    });
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}

#[test]
fn who_is_in_the_database_without_a_name_may_be_the_old_broker() {
    let setup = taken_over_with(&[]);
    let _old = setup.database.connect();
    let api = setup.api(&[]);
    api.wait_for_log("is the old broker stopped? sessions=");
}

#[test]
fn secrets_of_what_is_long_over_go() {
    let setup = Setup::on(Database::of_the_old_broker());
    let sql = format!(
        "insert into tasks (task, resource, action, status, metadata, deleted)
         select gen_random_uuid(), '{}', action, status::task_status, '{{\"url\":\"https://h/\",\"secret\":\"planted\"}}', deleted
         from (values ('finished', false), ('failed', false), ('finished', true)) as ended (status, deleted),
             (values ('notify-create-service-webhook'), ('notify-create-binding-webhook')) as notice (action)",
        OLD[1].0
    );
    setup.database.connect().batch_execute(&sql).unwrap();
    let _worker = setup.worker();
    eventually("the notices have forgotten whom they told", PATIENCE, || {
        setup
            .database
            .text("select 'yes' where not exists (select from tasks where metadata like '%planted%')")
    });
    eventually("rows of deleted instances hold no key", PATIENCE, || {
        let sql =
            "select 'yes' where not exists (select from resources where deleted and password is not null)";
        setup.database.text(sql)
    });
    let kept = "select count(password)::text from resources where not deleted";
    assert_eq!(setup.database.text(kept).as_deref(), Some("4"));
}

#[test]
fn what_the_old_worker_gave_up_can_be_asked_for_again() {
    let setup = taken_over_with(&[2, 3]);
    let sql = format!(
        "insert into tasks (task, resource, action, status, retries, metadata, finished) values
             (gen_random_uuid(), '{}', 'change-plans', 'failed', 60, '{{\"plan\":\"{VERSIONED}\"}}', now()),
             (gen_random_uuid(), '{}', 'delete', 'failed', 10, 'its name', now())",
        OLD[2].0, OLD[3].0
    );
    setup.database.connect().batch_execute(&sql).unwrap();
    let (api, _worker) = (setup.api(&[]), setup.worker());
    wait_for_places(&setup);
    let again = "update tasks set status = 'pending', run_at = now(), retries = 0, finished = null
        where action in ('delete', 'change-plans') and status = 'failed'";
    assert_eq!(setup.database.connect().execute(again, &[]).unwrap(), 2);
    eventually("the instance is gone", PATIENCE, || {
        let answer = api.get(&format!("/v2/service_instances/{}/last_operation", OLD[3].0));
        (answer.status == 410).then_some(())
    });
    let plan = format!("select plan::text from resources where id = '{}'", OLD[2].0);
    eventually("the plan is changed", PATIENCE, || setup.database.text(&plan).filter(|it| it == VERSIONED));
}

#[test]
fn buckets_become_what_their_plans_promise_when_asked() {
    let setup = taken_over_with(&[1, 2]);
    let name_of =
        |id: &str| setup.database.text(&format!("select name from resources where id = '{id}'")).unwrap();
    let (versioned, encrypted) = (name_of(OLD[1].0), name_of(OLD[2].0));
    admin(&["s3api", "delete-bucket-encryption", "--bucket", &encrypted]);
    let suspended = "Status=Suspended";
    admin(&[
        "s3api",
        "put-bucket-versioning",
        "--bucket",
        &versioned,
        "--versioning-configuration",
        suspended,
    ]);
    let _worker = setup.worker();
    wait_for_places(&setup);
    let sql = "insert into tasks (task, resource, action, metadata)
        select gen_random_uuid(), id, 'change-plans', json_build_object('plan', plan)::text from resources
        where claimed and not deleted and status = 'available' and name ~ '-u[0-9a-f]{8}$'
            and plan in (select plan from plans where 'true' in
                (provider_private_details->>'versioned', provider_private_details->>'encrypted'))";
    assert_eq!(setup.database.connect().execute(sql, &[]).unwrap(), 2);
    eventually("all is as promised", PATIENCE, || {
        setup.database.text(
            "select 'yes' from tasks where action = 'change-plans' and status = 'finished' having count(*) = 2",
        )
    });
    assert!(ask_s3(&format!("/{encrypted}?encryption")).contains("aws:kms"));
    assert!(ask_s3(&format!("/{versioned}?versioning")).contains("Enabled"));
}

#[test]
fn a_delete_that_alone_knows_a_name_removes_what_bears_it() {
    let setup = taken_over_with(&[]);
    insert_old(&setup, "lost", BASIC);
    make_in_aws(&setup, "lost", BASIC, OLD.len());
    // the old broker makes two in advance, and fails to write down the one, and to remove it
    insert_old(&setup, "never made", BASIC);
    let sql = "
        insert into tasks (task, resource, action, metadata)
            select gen_random_uuid(), id, 'delete', name from resources;
        update resources set name = '', username = null, password = null, claimed = false, status = 'provisioning'";
    setup.database.connect().batch_execute(sql).unwrap();
    assert_ne!(setup.left_in_aws(), Vec::<String>::new());
    let _worker = setup.worker();
    let gone = "select 'yes' where not exists (select from resources where not deleted)";
    eventually("all are gone", PATIENCE, || setup.database.text(gone));
    assert_eq!((setup.left_in_aws(), policies(&setup)), (Vec::new(), Vec::new()));
}
