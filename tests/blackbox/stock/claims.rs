//! Who gets an instance of the stock, how fast, and who does not.

use std::collections::HashSet;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use super::*;

#[test]
fn a_claim_does_not_wait_for_aws() {
    const LATENCY: Duration = Duration::from_millis(500);
    const INSTANCES: [&str; 5] = ["one", "two", "three", "four", "five"];
    let relay = relay();
    let setup = Setup::new().with("WAIT_SECONDS", "0").through(&relay);
    let (api, _worker) = (setup.api(&[]), setup.worker());
    keep(&setup, SHIELD_VERSIONED, INSTANCES.len());
    let stock = wait_for_stock(&setup, INSTANCES.len());
    relay.slow_down(LATENCY);
    let mut took = INSTANCES.map(|instance| {
        let began = Instant::now();
        let answer = api.provision(instance, SHIELD_VERSIONED);
        assert_eq!(answer.status, 201, "{}", answer.text);
        began.elapsed()
    });
    took.sort();
    eprintln!("claimed in {took:?}, with {LATENCY:?} for each call to AWS");
    assert!(took[4] < LATENCY && took[2] < Duration::from_millis(100), "{took:?}");
    for (instance, name) in INSTANCES.iter().zip(&stock).take(2) {
        let credentials = api.bind(instance, "b");
        assert_eq!(credentials["S3_BUCKET"].as_str(), Some(name.as_str()));
        let put =
            tenant(&credentials, &["s3api", "put-object", "--bucket", name, "--key", "k"]).output().unwrap();
        assert!(put.status.success(), "{}", String::from_utf8_lossy(&put.stderr));
    }
    let row = setup.database.text(
        "select concat_ws(' ', i.claimed, i.status, i.organization, i.space, t.action)
         from resources i join tasks t on t.resource = i.id where i.id = 'one' and t.action = 'tag' limit 1",
    );
    assert_eq!(row.as_deref(), Some("t available our org 00000000-0000-0000-0000-000000000000 tag"));
    assert_eq!(api.provision("one", SHIELD_VERSIONED).status, 200);
    assert_eq!(api.provision("one", BASIC).status, 409);
    let state = api.get("/v2/service_instances/one/last_operation");
    assert_eq!((state.status, state.json["state"].as_str()), (200, Some("succeeded")));
    relay.calm_down();
    let stock = wait_for_stock(&setup, INSTANCES.len());
    api.remove("one", SHIELD_VERSIONED);
    assert_eq!(
        api.provision("one", SHIELD_VERSIONED).status,
        202,
        "an id that was used before gets a new one"
    );
    api.wait_for_state("one", "succeeded");
    assert_eq!(ready(&setup), stock);
    keep(&setup, SHIELD_VERSIONED, 0);
    INSTANCES.iter().for_each(|instance| api.remove(instance, SHIELD_VERSIONED));
    wait_for_stock(&setup, 0);
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}

#[test]
fn two_apis_and_two_workers_hand_out_nothing_twice() {
    const STOCK: usize = 50;
    const CLAIMS: usize = 200;
    let setup = Setup::new();
    let (apis, _workers) = ([setup.api(&[]), setup.api(&[])], [setup.worker(), setup.worker()]);
    keep(&setup, BASIC, STOCK);
    wait_for_stock(&setup, STOCK);
    let began = Instant::now();
    for_each(0..CLAIMS, |number| {
        let (api, instance) = (&apis[number % 2], format!("i{number}"));
        api.provide(&instance, BASIC);
        let credentials = api.bind(&instance, "b");
        assert!(credentials["S3_SECRET_KEY"].is_string(), "{instance}");
    });
    eprintln!("{CLAIMS} provisions of a stock of {STOCK} in {:?}", began.elapsed());
    let stock = wait_for_stock(&setup, STOCK);
    let sql = "select name, username, password from resources where claimed and not deleted";
    let rows = setup.database.connect().query(sql, &[]).unwrap();
    assert_eq!(rows.len(), CLAIMS);
    for column in 0..3 {
        let different: HashSet<String> = rows.iter().map(|row| row.get(column)).collect();
        assert_eq!(different.len(), CLAIMS);
    }
    for row in &rows {
        assert_eq!(keys_of(&row.get::<_, String>(0)), [row.get::<_, String>(1)]);
    }
    assert_eq!(setup.left_in_aws().len(), 2 * (CLAIMS + stock.len()));
    // What was made for the stock is older than its claim.
    let sql = "select count(*)::text from tasks t join resources i on i.id = t.resource
        where i.claimed and t.action = 'provision' and t.created < i.created";
    let claimed = setup.database.text(sql).unwrap();
    eprintln!("{claimed} of {CLAIMS} were claimed, the others made");
    assert!(claimed.parse::<usize>().unwrap() >= STOCK);
    for instance in ["i0", "i100", "i199"] {
        let credentials = apis[0].bind(instance, "b");
        let bucket = credentials["S3_BUCKET"].as_str().unwrap();
        let put = tenant(&credentials, &["s3api", "put-object", "--bucket", bucket, "--key", "k"])
            .output()
            .unwrap();
        assert!(put.status.success(), "{}", String::from_utf8_lossy(&put.stderr));
    }
    keep(&setup, BASIC, 0);
    for_each(0..CLAIMS, |number| apis[number % 2].remove(&format!("i{number}"), BASIC));
    wait_for_stock(&setup, 0);
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}

#[test]
fn only_what_is_ready_and_vouched_for_is_handed_out() {
    let setup = Setup::new().with("WAIT_SECONDS", "0");
    let api = setup.api(&[]);
    let check = |columns: &str, values: &str| {
        format!(
            "insert into tasks (task, resource, action, {columns}) values (gen_random_uuid(), 'x', 'check', {values})"
        )
    };
    let row = |change: &str| format!("update resources set {change} where id = 'x'");
    let vouched = |change: &str| format!("update tasks set {change} where resource = 'x'");
    let started = "status, worker, started, lease_until";
    for (number, (spoiled, claimed)) in [
        (String::new(), true),
        (row("status = 'provisioning'"), false),
        (row("status = 'failed'"), false),
        (row("status = 'deprovisioning'"), false),
        (row("deleted = true"), false),
        (row("claimed = true"), false),
        (row("region = null"), false),
        (row("location = null"), false),
        (row("username = null"), false),
        (row("password = ''"), false),
        (row("name = ''"), false),
        (row(&format!("plan = '{SHIELD}'")), false),
        (check("status", "'pending'"), true),
        (check("status, retries", "'pending', 1"), false),
        (check(started, "'started', 'w', now(), now() + interval '1 minute'"), false),
        (check(started, "'started', 'dead', now() - interval '1 hour', now() - interval '1 hour'"), false),
        (check("status", "'failed'"), true),
        (vouched("finished = now() - interval '61 minutes'"), false),
        (vouched("status = 'failed'"), false),
        (vouched("deleted = true"), false),
        (vouched("finished = null"), false),
        (vouched("finished = now() + interval '10 minutes'"), false), // the clock was set back since
        (
            [
                vouched("finished = now() - interval '2 hours'"),
                check("status, finished", "'finished', now()"),
            ]
            .join("; "),
            true,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        add_ready(&setup, "x", &spoiled);
        let instance = format!("i{number}");
        assert_eq!(api.provision(&instance, BASIC).status, if claimed { 201 } else { 202 }, "{spoiled}");
        let name = setup.database.text(&format!("select name from resources where id = '{instance}'"));
        assert_eq!(name.as_deref() == Some("bucket-x"), claimed, "{spoiled}");
        let open = format!("select action from tasks where resource = '{instance}' and status = 'pending'");
        assert_eq!(
            setup.database.text(&open).as_deref(),
            Some(if claimed { "tag" } else { "provision" }),
            "{spoiled}"
        );
        setup.database.connect().batch_execute("delete from tasks; delete from resources").unwrap();
    }
}

#[test]
fn racing_requests_share_the_stock_and_one_id_takes_one() {
    const ROUNDS: usize = 20;
    let setup = Setup::new().with("WAIT_SECONDS", "0");
    let apis = [setup.api(&[]), setup.api(&[])];
    let race = |ids: &[String]| {
        let start = Barrier::new(ids.len());
        let mut statuses: Vec<u16> = std::thread::scope(|scope| {
            let asked = ids.iter().enumerate().map(|(number, id)| {
                let (api, start) = (&apis[number % 2], &start);
                scope.spawn(move || {
                    start.wait();
                    api.provision(id, BASIC).status
                })
            });
            let asked: Vec<_> = asked.collect();
            asked.into_iter().map(|it| it.join().unwrap()).collect()
        });
        statuses.sort_unstable();
        statuses
    };
    for round in 0..ROUNDS {
        for number in 0..4 {
            add_ready(&setup, &format!("s{number}"), "");
        }
        let ids: Vec<String> = (0..8).map(|number| format!("i{number}")).collect();
        assert_eq!(race(&ids), [201, 201, 201, 201, 202, 202, 202, 202], "round {round}");
        let names = "select count(distinct name)::text || ' ' || count(*) || ' ' || count(*) filter (where not claimed)
            from resources";
        assert_eq!(setup.database.text(names).as_deref(), Some("8 8 0"), "round {round}");
        for number in 0..2 {
            add_ready(&setup, &format!("s{number}"), "");
        }
        assert_eq!(race(&vec!["same".to_owned(); 6]), [200, 200, 200, 200, 200, 201], "round {round}");
        assert_eq!(ready(&setup).len(), 1, "round {round}");
        setup.database.connect().batch_execute("delete from tasks; delete from resources").unwrap();
    }
}

#[test]
fn nobody_reaches_an_instance_of_the_stock_by_guessing_its_id() {
    let setup = Setup::new().with("WAIT_SECONDS", "0");
    let api = setup.api(&[]);
    add_ready(&setup, "guessed", "");
    let all = "select concat_ws(' | ', (select string_agg(r::text, ',') from resources r),
        (select string_agg(t::text, ',') from tasks t), (select string_agg(b::text, ',') from bindings b))";
    let before = setup.database.text(all);
    let at = "/v2/service_instances/guessed";
    let query = format!("service_id={SERVICE}&plan_id={BASIC}");
    for (answer, status) in [
        (api.get(&format!("{at}/last_operation")), 404),
        (api.get(&format!("{at}/service_bindings/b")), 404),
        (api.put(&format!("{at}/service_bindings/b"), &bind_body(BASIC)), 404),
        (api.delete(&format!("{at}/service_bindings/b?{query}")), 410),
        (api.deprovision("guessed", BASIC), 410),
        (api.provision("guessed", BASIC), 409),
    ] {
        assert_eq!(answer.status, status, "{}", answer.text);
        assert!(!answer.text.contains("secret") && !answer.text.contains("bucket-"), "{}", answer.text);
    }
    assert_eq!(setup.database.text(all), before);
}

#[test]
fn an_instance_that_is_being_looked_at_stands_in_nobodys_way() {
    let setup = Setup::new().with("WAIT_SECONDS", "0");
    let api = setup.api(&[]);
    let running = "insert into tasks (task, resource, action, status, worker, started, lease_until) values
        (gen_random_uuid(), 'older', 'check', 'started', 'w', now(), now() + interval '1 minute');
        update resources set created = now() - interval '1 day'";
    add_ready(&setup, "older", running);
    add_ready(&setup, "younger", "");
    assert_eq!(api.provision("one", BASIC).status, 201);
    let name = setup.database.text("select name from resources where id = 'one'");
    assert_eq!(name.as_deref(), Some("bucket-younger"));
}
