//! The figures of the tables: what is counted, by whom, how often.

use super::*;

/// Instances and tasks in states that a worker would not leave them in: there is none.
const ROWS: &str = "
    insert into resources (id, name, plan, claimed, status, username, deleted)
    select 'i' || it, 'n' || it, '1448e0b0-429a-4fa8-92a0-fd0d9e121cae',
        it <> 4, (array['available', 'available', 'deprovisioning', 'available', 'failed', 'odd', 'odd', 'available'])[it],
        case when it <> 7 then 'AKIA' end, it = 8
    from generate_series(1, 8) it;
    insert into tasks (task, resource, action, status, retries, run_at, worker, started, lease_until, finished)
    values
        -- due, and held back by nothing
        (gen_random_uuid(), 'i1', 'provision', 'pending', 0, now() - interval '50 s', null, null, null, null),
        -- longer due, but another task of the instance runs
        (gen_random_uuid(), 'i2', 'tag', 'pending', 0, now() - interval '5000 s', null, null, null, null),
        (gen_random_uuid(), 'i2', 'delete', 'started', 1, now() - interval '9000 s', 'w', now(), now() + interval '1 h', null),
        -- a dead worker's
        (gen_random_uuid(), 'i3', 'delete', 'started', 7, now() - interval '9000 s', 'w', now(), now() - interval '300 s', null),
        -- not due yet
        (gen_random_uuid(), 'i4', 'sweep', 'pending', 6, now() + interval '1 h', null, null, null, null),
        (gen_random_uuid(), 'i4', 'delete', 'pending', 5, now() + interval '1 h', null, null, null, null),
        -- over
        (gen_random_uuid(), 'i5', 'delete', 'failed', 9, now() - interval '1 h', null, null, null, now()),
        (gen_random_uuid(), 'i5', 'hush one', 'finished', 1, now() - interval '1 h', null, null, null, now()),
        (gen_random_uuid(), 'i5', 'hush two', 'finished', 1, now() - interval '1 h', null, null, null, now());
    update census set taken_at = null;";

#[test]
fn tasks_and_instances_are_counted() {
    let setup = with_port();
    let api = setup.api(&[]);
    setup.database.connect().batch_execute(ROWS).unwrap();
    let instances =
        |page: &Page, by: [(&str, &str); 3]| page.value("servicebroker_instances", &by).unwrap_or_default();
    let page =
        wait_for_page("the tables were counted", &api, |page| page.sum("servicebroker_instances", &[]) > 0.0);
    for (status, claimed, count) in [
        ("available", "yes", 3.0), // one of them in a word of the old broker's, with a key
        ("available", "no", 1.0),
        ("deprovisioning", "yes", 1.0),
        ("failed", "yes", 2.0), // one of them in such a word, without
    ] {
        let by = [("plan", "basic"), ("status", status), ("claimed", claimed)];
        assert_eq!(instances(&page, by), count, "{by:?}");
    }
    assert_eq!(page.sum("servicebroker_instances", &[]), 7.0, "a deleted one is not counted");
    for (kind, state, count) in [
        ("provision", "pending", 1.0),
        ("tag", "pending", 1.0),
        ("delete", "started", 2.0),
        ("delete", "pending", 1.0),
        ("delete", "failed", 1.0),
        ("sweep", "pending", 1.0),
        ("unknown", "finished", 2.0),
    ] {
        let by = [("kind", kind), ("state", state)];
        assert_eq!(page.value("servicebroker_tasks", &by), Some(count), "{by:?}");
    }
    assert_eq!(page.value("servicebroker_deletes_stuck", &[]), Some(2.0), "the dead worker's and the sweep");
    let age = page.value("servicebroker_oldest_due_task_age_seconds", &[]).unwrap();
    assert!((300.0..360.0).contains(&age), "the dead worker's lease ended so long ago: {age}");
    let census_age = page.value("servicebroker_census_age_seconds", &[]).unwrap();
    assert!((0.0..60.0).contains(&census_age), "{census_age}");
}

#[test]
fn one_process_counts_for_all_once_a_minute() {
    let setup = with_port();
    let (first, second, third, worker) = (setup.api(&[]), setup.api(&[]), setup.api(&[]), setup.worker());
    let processes = [metrics_of(&first), metrics_of(&second), metrics_of(&third), metrics_of(&worker)];
    let mut client = setup.database.connect();
    let watched = "
        create table counted (at timestamptz);
        create function note() returns trigger language plpgsql as
            $$ begin insert into counted values (now()); return new; end $$;
        create trigger noted after update on census for each row when (new.taken_at is not null)
            execute function note();
        insert into resources (id, name, plan, claimed, status) values ('i', 'n', '1448e0b0-429a-4fa8-92a0-fd0d9e121cae', true, 'failed');
        update census set taken_at = null;";
    client.batch_execute(watched).unwrap();
    for process in &processes {
        wait_for_page("the count shows everywhere", process, |page| {
            page.sum("servicebroker_instances", &[("plan", "basic"), ("status", "failed")]) == 1.0
        });
    }
    let counts = setup.database.text("select count(*)::text from counted").unwrap();
    assert_eq!(counts, "1", "counted for four processes");
    // A minute later it is somebody's turn again, and no more than once.
    let old = "update census set taken_at = now() - interval '61 s'; delete from resources";
    client
        .batch_execute(&format!(
            "alter table census disable trigger noted; {old}; alter table census enable trigger noted"
        ))
        .unwrap();
    for process in &processes {
        wait_for_page("the next count shows everywhere", process, |page| {
            page.sum("servicebroker_instances", &[]) == 0.0
        });
    }
    assert_eq!(setup.database.text("select count(*)::text from counted").unwrap(), "2");
}

#[test]
fn figures_that_nobody_renews_grow_old() {
    let setup = with_port();
    let api = setup.api(&[]);
    let aged = "update census set taken_at = now() - interval '50 s', figures = figures || 'tasks tag pending 7' || chr(10)
            || 'tasks hush' || chr(10) || 'hush hush hush 1' || chr(10)";
    wait_for_page("the tables were counted", &api, |page| {
        page.value("servicebroker_census_age_seconds", &[]).is_some()
    });
    setup.database.connect().batch_execute(aged).unwrap();
    let page = wait_for_page("the row is read", &api, |page| {
        page.value("servicebroker_tasks", &[("kind", "tag"), ("state", "pending")]) == Some(7.0)
    });
    let age = page.value("servicebroker_census_age_seconds", &[]).unwrap();
    assert!((50.0..62.0).contains(&age), "{age}");
    assert!(!api.get("/metrics").text.contains("hush"), "lines of another version are passed over");
}
