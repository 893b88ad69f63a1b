//! The claim statement as the broker sends it, tried from sessions of the test's own.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use postgres::Client;
use postgres::types::{ToSql, Type};

use crate::relay::{Fault, Point, When};
use crate::support::*;

/// The statement out of the source, so that what is tried is what is shipped.
fn claim_statement() -> &'static str {
    let source = include_str!("../../src/store/tasks.rs");
    let (_, rest) = source.split_once("const CLAIM: &str = \"").expect("the claim statement");
    rest.split_once("\";").expect("its end").0
}

/// A task that was claimed.
#[derive(Debug, PartialEq)]
struct Claimed {
    task: String,
    instance: String,
}

/// Claims as a worker does: once more when another was faster at the last moment.
fn claim(client: &mut Client, worker: &str, lease_s: f64) -> Option<Claimed> {
    claim_in(client, worker, lease_s, false)
}

/// The same in the lane of notices or in that of all other tasks.
fn claim_in(client: &mut Client, worker: &str, lease_s: f64, notices: bool) -> Option<Claimed> {
    let kinds = &["notify-create-service-webhook", "notify-create-binding-webhook"][..];
    let sql = claim_statement();
    let sql = if notices { sql.replace("<> all($3)", "= any($3)") } else { sql.to_owned() };
    for _ in 0..5 {
        let parameters: [(&(dyn ToSql + Sync), Type); 3] =
            [(&worker, Type::TEXT), (&lease_s, Type::FLOAT8), (&kinds, Type::TEXT_ARRAY)];
        match client.query_typed(&sql, &parameters) {
            Ok(rows) => {
                return rows
                    .first()
                    .map(|row| Claimed { task: row.get("task"), instance: row.get("resource") });
            }
            Err(err) if err.code().is_some_and(|it| it.code() == "23505") => {}
            Err(err) => panic!("{err}"),
        }
    }
    None
}

/// A database with instances and no workers.
fn database(instances: &[&str]) -> Database {
    let setup = Setup::new();
    drop(setup.api(&[]));
    let mut client = setup.database.connect();
    for instance in instances {
        let sql = format!(
            "insert into resources (id, name, plan, status, claimed) values ($1, $1, '{BASIC}', 'available', true)"
        );
        client.execute(&sql, &[instance]).unwrap();
    }
    setup.database
}

/// Enqueues a task; `how` are further columns and their values.
fn enqueue(client: &mut Client, instance: &str, how: &[(&str, &str)]) -> String {
    let names: String = how.iter().map(|(name, _)| format!(", {name}")).collect();
    let values: String = how.iter().map(|(_, value)| format!(", {value}")).collect();
    let sql = format!(
        "insert into tasks (task, resource, action{names}) values (gen_random_uuid(), $1, 'noop'{values})
         returning task::text"
    );
    client.query_one(&sql, &[&instance]).unwrap().get(0)
}

#[test]
fn no_task_is_claimed_twice_by_sessions_that_race() {
    const SESSIONS: usize = 8;
    const TASKS: usize = 400;
    let database = database(&["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]);
    let mut client = database.connect();
    for number in 0..TASKS {
        enqueue(&mut client, &"abcdefghij"[number % 10..=number % 10], &[]);
    }
    let (seen, running) = (Mutex::new(HashSet::new()), Mutex::new(HashSet::new()));
    let deadline = Instant::now() + PATIENCE;
    std::thread::scope(|scope| {
        for number in 0..SESSIONS {
            let (database, seen, running) = (&database, &seen, &running);
            scope.spawn(move || {
                let mut client = database.connect();
                while seen.lock().unwrap().len() < TASKS && Instant::now() < deadline {
                    let Some(got) = claim(&mut client, &format!("worker-{number}"), 60.0) else {
                        continue;
                    };
                    assert!(seen.lock().unwrap().insert(got.task.clone()), "{} twice", got.task);
                    assert!(running.lock().unwrap().insert(got.instance.clone()), "two at {}", got.instance);
                    running.lock().unwrap().remove(&got.instance);
                    let done =
                        "update tasks set status = 'finished', worker = null where task = $1::text::uuid";
                    client.execute(done, &[&got.task]).unwrap();
                }
            });
        }
    });
    assert_eq!(seen.into_inner().unwrap().len(), TASKS);
}

#[test]
fn a_held_instance_blocks_no_other() {
    let database = database(&["held", "free"]);
    let (mut holder, mut other) = (database.connect(), database.connect());
    enqueue(&mut holder, "held", &[]);
    let expected = enqueue(&mut holder, "free", &[]);
    let mut transaction = holder.transaction().unwrap();
    transaction.execute("select 1 from resources where id = 'held' for update", &[]).unwrap();
    other.batch_execute("set lock_timeout = '1s'").unwrap();
    assert_eq!(claim(&mut other, "worker", 60.0).map(|it| it.task), Some(expected));
    assert_eq!(claim(&mut other, "worker", 60.0), None);
    transaction.rollback().unwrap();
    assert_eq!(claim(&mut other, "worker", 60.0).map(|it| it.instance).as_deref(), Some("held"));
}

#[test]
fn an_uncommitted_claim_is_passed_over_without_waiting() {
    let database = database(&["one"]);
    let (mut first, mut second) = (database.connect(), database.connect());
    enqueue(&mut first, "one", &[]);
    second.batch_execute("set lock_timeout = '1s'").unwrap();
    first.batch_execute("begin").unwrap();
    assert!(claim(&mut first, "first", 60.0).is_some());
    assert_eq!(claim(&mut second, "second", 60.0), None);
    first.batch_execute("rollback").unwrap();
    assert!(claim(&mut second, "second", 60.0).is_some());
}

#[test]
fn a_running_task_holds_back_the_others_of_its_instance_only() {
    let database = database(&["one", "two"]);
    let mut client = database.connect();
    let first = enqueue(&mut client, "one", &[]);
    enqueue(&mut client, "one", &[]);
    let other = enqueue(&mut client, "two", &[]);
    assert_eq!(claim(&mut client, "worker", 60.0).map(|it| it.task), Some(first));
    assert_eq!(claim(&mut client, "worker", 60.0).map(|it| it.task), Some(other));
    assert_eq!(claim(&mut client, "worker", 60.0), None);
}

#[test]
fn a_dead_workers_task_is_the_first_of_its_instance() {
    let database = database(&["one"]);
    let mut client = database.connect();
    let dead = enqueue(&mut client, "one", &[("run_at", "now() - interval '1 minute'")]);
    enqueue(&mut client, "one", &[("run_at", "now() - interval '1 hour'")]);
    let die = "update tasks set status = 'started', worker = 'dead', started = now() - interval '1 minute',
        lease_until = now() + interval '1 hour' where task = $1::text::uuid";
    client.execute(die, &[&dead]).unwrap();
    assert_eq!(claim(&mut client, "worker", 60.0), None, "its lease still holds");
    let expire = "update tasks set lease_until = now() - interval '1 second' where task = $1::text::uuid";
    client.execute(expire, &[&dead]).unwrap();
    assert_eq!(claim(&mut client, "worker", 60.0).map(|it| it.task), Some(dead));
}

#[test]
fn what_the_old_broker_left_started_is_taken_after_an_hour() {
    let database = database(&["one", "two"]);
    let mut client = database.connect();
    let recent = [("status", "'started'"), ("started", "now() - interval '59 minutes'")];
    let old = [("status", "'started'"), ("started", "now() - interval '61 minutes'")];
    enqueue(&mut client, "one", &recent);
    let left = enqueue(&mut client, "two", &old);
    assert_eq!(claim(&mut client, "worker", 60.0).map(|it| it.task), Some(left));
    assert_eq!(claim(&mut client, "worker", 60.0), None);
}

#[test]
fn tasks_come_in_the_order_in_which_they_are_due_and_none_too_early() {
    let database = database(&["one", "two", "three"]);
    let mut client = database.connect();
    let second = enqueue(&mut client, "one", &[("run_at", "now() - interval '1 minute'")]);
    let first = enqueue(&mut client, "two", &[("run_at", "now() - interval '2 minutes'")]);
    enqueue(&mut client, "three", &[("run_at", "now() + interval '1 minute'")]);
    enqueue(&mut client, "three", &[("deleted", "true")]);
    let mut next = || claim(&mut client, "worker", 60.0).map(|it| it.task);
    assert_eq!([next(), next(), next()], [Some(first), Some(second), None]);
}

#[test]
fn notices_are_claimed_by_those_who_deliver_them_and_by_nobody_else() {
    let database = database(&["one", "two", "three"]);
    let mut client = database.connect();
    let work = enqueue(&mut client, "one", &[]);
    let notices = [("two", "service"), ("three", "binding")].map(|(instance, of)| {
        let notice = enqueue(&mut client, instance, &[]);
        let sql =
            format!("update tasks set action = 'notify-create-{of}-webhook' where task = $1::text::uuid");
        client.execute(&sql, &[&notice]).unwrap();
        notice
    });
    let mut next = |notices| claim_in(&mut client, "worker", 60.0, notices).map(|it| it.task);
    assert_eq!([next(false), next(false)], [Some(work), None]);
    assert_eq!(
        [next(true), next(true), next(true)],
        [Some(notices[0].clone()), Some(notices[1].clone()), None]
    );
}

#[test]
fn two_workers_run_every_task_once() {
    let setup = Setup::new();
    let api = setup.api(&[]);
    let _workers = [setup.worker(), setup.worker()];
    let began = Instant::now();
    std::thread::scope(|scope| {
        for number in 0..12 {
            let api = &api;
            scope.spawn(move || assert_eq!(api.provision(&number.to_string(), BASIC).status, 201));
        }
    });
    let runs =
        "select string_agg(distinct status || ' ' || retries, ',') from tasks where action = 'provision'";
    assert_eq!(setup.database.text(runs).as_deref(), Some("finished 1"), "after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(25));
    for number in 0..12 {
        api.remove(&number.to_string(), BASIC);
    }
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}

/// How long the leases of the tests below last.
const LEASE: Duration = Duration::from_secs(4);

/// Tasks of a kind that this version does not know end at once: what is left is the queue's own work.
fn drain(workers: usize, tasks: usize) -> Duration {
    let setup = Setup::new().with("WORKER_THREADS", "4");
    setup.database.connect().batch_execute(include_str!("../../schema.sql")).unwrap();
    let fill = format!(
        "insert into resources (id, name, plan, status, claimed) select n::text, 'n' || n, '{BASIC}', 'available', true
             from generate_series(1, {tasks}) n;
         insert into tasks (task, resource, action, run_at) select gen_random_uuid(), id, 'nothing', now() + interval '1 day'
             from resources;"
    );
    setup.database.connect().batch_execute(&fill).unwrap();
    let mut running: Vec<Broker> = (0..workers).map(|_| setup.worker()).collect();
    let began = Instant::now();
    setup
        .database
        .connect()
        .batch_execute("update tasks set run_at = now(); notify servicebroker_due")
        .unwrap();
    let left = "select 'some' from tasks where status in ('pending', 'started') limit 1";
    eventually("all tasks have ended", PATIENCE * 2, || setup.database.text(left).is_none().then_some(()));
    let took = began.elapsed();
    let runs = "select string_agg(distinct status || ' ' || retries, ',') from tasks";
    assert_eq!(setup.database.text(runs).as_deref(), Some("failed 1"));
    let mut logged = Vec::new();
    for worker in &mut running {
        assert_eq!(worker.terminate(), Some(0));
        let log = worker.log();
        logged.extend(
            log.lines().filter_map(|it| it.split_once("given up: task=")).map(|it| it.1[..36].to_owned()),
        );
    }
    assert_eq!(logged.len(), tasks);
    logged.sort();
    logged.dedup();
    assert_eq!(logged.len(), tasks, "a task ran twice");
    took
}

#[test]
fn a_thousand_tasks_run_once_each_on_one_worker_and_on_two() {
    for workers in [1, 2] {
        let took = drain(workers, 1_000);
        eprintln!("1,000 tasks, {workers} workers of 4 threads: {:.0} tasks/s", 1_000.0 / took.as_secs_f64());
    }
}

#[test]
fn a_dead_workers_task_runs_again_two_seconds_after_its_lease_at_the_latest() {
    let relay = relay();
    relay.plan(Point::Named("CreateBucket".to_owned(), 1), When::After, Fault::Hang);
    let setup = Setup::new()
        .with("WAIT_SECONDS", "0")
        .with("LEASE_SECONDS", &LEASE.as_secs().to_string())
        .through(&relay);
    let (api, mut worker) = (setup.api(&[]), setup.worker());
    assert_eq!(api.provision("one", BASIC).status, 202);
    relay.wait_until_struck(1, PATIENCE);
    let _other = setup.worker();
    worker.kill();
    let began = Instant::now();
    let again = "select 'yes' from tasks where action = 'provision' and retries = 2";
    eventually("it runs again", PATIENCE, || setup.database.text(again));
    let took = began.elapsed();
    eprintln!("running again {took:?} after kill -9, the lease is {LEASE:?}");
    assert!(took <= LEASE + Duration::from_secs(2), "{took:?}");
    api.wait_for_state("one", "succeeded");
    api.remove("one", BASIC);
}

#[test]
fn a_task_of_a_worker_that_is_told_to_end_runs_again_within_five_seconds() {
    let relay = relay();
    relay.slow_down(Duration::from_millis(300));
    let setup = Setup::new().with("WAIT_SECONDS", "0").through(&relay);
    let (api, mut worker) = (setup.api(&[]), setup.worker());
    assert_eq!(api.provision("one", SHIELD_VERSIONED).status, 202);
    let taken =
        |by: &str| format!("select worker from tasks where action = 'provision' and worker is not null{by}");
    let first = eventually("it is taken", PATIENCE, || setup.database.text(&taken("")));
    let _other = setup.worker();
    let began = Instant::now();
    assert_eq!(worker.terminate(), Some(0));
    let by_another = taken(&format!(" and worker <> '{first}'"));
    eventually("another has it", PATIENCE, || setup.database.text(&by_another));
    let took = began.elapsed();
    eprintln!("running again {took:?} after SIGTERM");
    assert!(took <= Duration::from_secs(5), "{took:?}");
    api.wait_for_state("one", "succeeded");
    relay.calm_down();
    api.remove("one", SHIELD_VERSIONED);
}

#[test]
fn tasks_of_a_month_ago_go_but_what_last_operation_is_answered_from() {
    let setup = Setup::new();
    let database = &setup.database;
    setup.database.connect().batch_execute(include_str!("../../schema.sql")).unwrap();
    let fill = format!(
        "insert into resources (id, name, plan, status, claimed) values ('one', 'n', '{BASIC}', 'available', true);
         insert into tasks (task, resource, action, status, result, finished, created)
             select gen_random_uuid(), 'one', action, state::task_status, action || ' ' || age,
                 now() - make_interval(days => age), now() - make_interval(days => age)
             from unnest(array['provision', 'delete', 'sweep']) action, unnest(array[29, 31, 90]) age,
                 unnest(array['finished']) state;
         insert into tasks (task, resource, action, status, result, created)
             values (gen_random_uuid(), 'one', 'nothing', 'started', 'taken by others', now());
         update tasks set started = now() where status = 'started';
         delete from tasks where result = 'provision 29';"
    );
    database.connect().batch_execute(&fill).unwrap();
    let worker = setup.worker();
    let kept = "select string_agg(result, ', ' order by result) from tasks where not deleted";
    let expected = "delete 29, provision 31, sweep 29, taken by others";
    eventually("old ones go", PATIENCE, || (database.text(kept)? == expected).then_some(()));
    worker.wait_for_log("another broker's worker has taken tasks");
}

#[test]
fn a_row_that_somebody_holds_costs_no_other_task_its_lease() {
    let relay = relay();
    relay.slow_down(Duration::from_millis(450));
    let setup = Setup::new()
        .with("WAIT_SECONDS", "0")
        .with("WORKER_THREADS", "6")
        .with("LEASE_SECONDS", &LEASE.as_secs().to_string())
        .through(&relay);
    let (api, _worker) = (setup.api(&[]), setup.worker());
    let instances = ["held-1", "held-2", "held-3", "held-4", "free"];
    for instance in instances {
        assert_eq!(api.provision(instance, SHIELD_VERSIONED).status, 202);
    }
    let running = "select 'all' from tasks where status = 'started' having count(*) = 5";
    eventually("all run", PATIENCE, || setup.database.text(running));
    let mut holder = setup.database.connect();
    let mut transaction = holder.transaction().unwrap();
    transaction.execute("select 1 from tasks where resource like 'held-%' for update", &[]).unwrap();
    api.wait_for_state("free", "succeeded");
    let claims = "select retries::text from tasks where resource = 'free' and action = 'provision'";
    assert_eq!(setup.database.text(claims).as_deref(), Some("1"));
    transaction.rollback().unwrap();
    relay.calm_down();
    for instance in instances {
        api.wait_for_state(instance, "succeeded");
        api.remove(instance, SHIELD_VERSIONED);
    }
    setup.check_nothing_left();
}
