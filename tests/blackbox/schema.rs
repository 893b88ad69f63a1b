//! The tables: made by whoever comes first, on an empty database and on the old broker's.

use crate::support::*;

/// Starts ten processes at once on a setup and sees all of them come up.
fn ten_at_once(setup: &Setup) {
    std::thread::scope(|scope| {
        for number in 0..10 {
            scope.spawn(move || {
                let broker = if number % 2 == 0 { setup.api(&[]) } else { setup.worker() };
                assert!(!broker.log().contains("database not ready"), "{}", broker.log());
            });
        }
    });
}

/// Names, types and defaults of all columns, and what else keeps order.
fn shape(database: &Database) -> String {
    let columns = "
        select string_agg(table_name || '.' || column_name || ' ' || udt_name || ' ' || is_nullable || ' '
            || coalesce(column_default, '-'), E'\\n' order by table_name, column_name)
        from information_schema.columns where table_schema = 'public'";
    let indexes =
        "select string_agg(indexdef, E'\\n' order by indexname) from pg_indexes where schemaname = 'public'";
    let triggers =
        "select string_agg(tgname::text, E'\\n' order by tgname) from pg_trigger where not tgisinternal";
    [columns, indexes, triggers].map(|it| database.text(it).unwrap_or_default()).join("\n\n")
}

#[test]
fn ten_processes_start_at_once_on_an_empty_database() {
    let setup = Setup::new();
    ten_at_once(&setup);
    let plans =
        "select string_agg(name || ' ' || plan || ' ' || cost_cents, ',' order by cost_cents) from plans";
    assert_eq!(
        setup.database.text(plans).unwrap(),
        format!(
            "basic {BASIC} 5000,shield {SHIELD} 6000,versioned {VERSIONED} 15000,shield-versioned {SHIELD_VERSIONED} 16000"
        )
    );
}

#[test]
fn ten_processes_start_at_once_on_the_old_brokers_database() {
    let setup = Setup::on(Database::of_the_old_broker());
    ten_at_once(&setup);
    assert_eq!(setup.database.text("select count(*)::text from resources").as_deref(), Some("5"));
    let plan = "select human_name from plans where name = 'basic'";
    assert_eq!(setup.database.text(plan).as_deref(), Some("AWS S3 - Basic"), "the operator's rows stay");
}

#[test]
fn the_brokers_id_is_drawn_once() {
    let (setup, id) = (Setup::new(), "select string_agg(id::text, ' ') from broker");
    ten_at_once(&setup);
    let drawn = setup.database.text(id).unwrap();
    assert_eq!(drawn.len(), 36, "{drawn}");
    // As a database of a version before, and as one that a schema step runs on again.
    for undo in [
        "drop table broker, census; update schema_version set version = 1",
        "drop table census; update schema_version set version = 2",
        "delete from schema_version",
    ] {
        setup.database.connect().batch_execute(undo).unwrap();
        ten_at_once(&setup);
    }
    let again = setup.database.text(id).unwrap();
    assert_eq!(again.len(), 36, "{again}");
    setup.database.connect().batch_execute("delete from schema_version").unwrap();
    ten_at_once(&setup);
    assert_eq!(setup.database.text(id).unwrap(), again);
    assert_ne!(again, drawn);
}

#[test]
fn both_ways_lead_to_the_same_tables() {
    let (new, old) = (Setup::new(), Setup::on(Database::of_the_old_broker()));
    drop((new.api(&[]), old.api(&[])));
    assert_eq!(shape(&new.database), shape(&old.database));
}

#[test]
fn a_database_of_this_version_is_not_touched_and_nothing_waits_for_locks() {
    let setup = Setup::new();
    drop(setup.api(&[]));
    let mut client = setup.database.connect();
    let mut transaction = client.transaction().unwrap();
    // Whoever wanted to change a table would have to wait for these.
    transaction.batch_execute("lock table plans, services, resources, tasks in row exclusive mode").unwrap();
    let api = setup.api(&[]);
    assert!(api.log().contains("database ready: tables_changed=false"), "{}", api.log());
    transaction.rollback().unwrap();
}

#[test]
fn a_database_of_a_later_version_is_served_and_left_alone() {
    let setup = Setup::new();
    drop(setup.api(&[]));
    setup.database.connect().batch_execute("update schema_version set version = 1000").unwrap();
    let api = setup.api(&[]);
    assert!(api.log().contains("tables_changed=false"));
    assert_eq!(setup.database.text("select version::text from schema_version").as_deref(), Some("1000"));
}

#[test]
fn instances_of_the_old_broker_are_known() {
    let setup = Setup::on(Database::of_the_old_broker());
    let api = setup.api(&[]);
    assert!(!api.log().contains("know no instance"), "{}", api.log());
    let of = |number: u32| format!("/v2/service_instances/22222222-bbbb-4bbb-8bbb-00000000000{number}");
    let state = |number: u32| api.get(&format!("{}/last_operation", of(number))).json["state"].clone();
    assert_eq!(
        (state(1), state(2)),
        ("in progress".into(), "succeeded".into()),
        "a change of plan is pending"
    );
    assert_eq!(api.get(&format!("{}/last_operation", of(5))).status, 410);
    // Where its bucket is was never written down: better no answer than a wrong region.
    let binding = api.get(&format!("{}/service_bindings/app-space", of(1)));
    assert_eq!((binding.status, binding.header("retry-after")), (503, Some("5")));
}

#[test]
fn a_worker_completes_the_instances_of_the_old_broker() {
    let setup = Setup::on(Database::of_the_old_broker());
    let bucket = "tst-u4b36b824";
    let region = setting("TEST_AWS_REGION");
    let place = format!("LocationConstraint={region}");
    admin(&["s3api", "create-bucket", "--bucket", bucket, "--create-bucket-configuration", &place]);
    // A status that nobody knows counts as available where there is a key.
    let odd = format!("{}-u0000000d", unique());
    admin(&["s3api", "create-bucket", "--bucket", &odd, "--create-bucket-configuration", &place]);
    let row = format!(
        "insert into resources (id, name, plan, status, username, password, claimed)
         values ('odd', '{odd}', '{BASIC}', 'upgrading', 'AKIAODD', 's', true)"
    );
    setup.database.connect().batch_execute(&row).unwrap();
    let (api, worker) = (setup.api(&[]), setup.worker());
    worker.wait_for_log("old instance completed: instance=\"22222222-");
    worker.wait_for_log("old instance completed: instance=\"odd\"");
    assert_eq!(api.get("/v2/service_instances/odd/service_bindings/app-space").status, 200);
    admin(&["s3api", "delete-bucket", "--bucket", &odd]);
    let path = "/v2/service_instances/22222222-bbbb-4bbb-8bbb-000000000001/service_bindings/app-space";
    let credentials = &api.get(path).json["credentials"];
    assert_eq!((&credentials["S3_BUCKET"], &credentials["S3_REGION"]), (&bucket.into(), &region.into()));
    assert_eq!(credentials["S3_ACCESS_KEY"], "AKIAEXAMPLE000000002");
    admin(&["s3api", "delete-bucket", "--bucket", bucket]);
}
