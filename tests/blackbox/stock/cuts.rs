//! The connection of a claim is cut at each of its statements: it has happened altogether, or not at all.

use std::time::Duration;

use super::*;
use crate::proxy::{Fault, Point, Proxy, steps_of_a_request};

/// An api behind a proxy, and one instance in the stock with a check that waits.
fn scene() -> (Setup, Proxy, Broker) {
    let setup = Setup::new().with("STATEMENT_TIMEOUT_SECONDS", "20").with("WAIT_SECONDS", "0");
    let proxy = Proxy::before(setup.database.url());
    let setup = setup.with("DATABASE_URL", proxy.url());
    let api = setup.api(&[]);
    let check = "insert into tasks (task, resource, action) values (gen_random_uuid(), 'stocked', 'check');
        insert into bindings (resource, binding) values ('stocked', 'odd')";
    add_ready(&setup, "stocked", check);
    proxy.count(Some(steps_of_a_request));
    (setup, proxy, api)
}

/// All rows, as far as they matter.
fn state(setup: &Setup) -> String {
    let sql = "select concat_ws(' | ',
        (select string_agg(concat_ws(' ', id, name, claimed, status, organization, space, deleted), ', ' order by id)
             from resources),
        (select string_agg(concat_ws(' ', resource, action, status), ', ' order by action) from tasks),
        (select string_agg(concat_ws(' ', resource, binding), ', ') from bindings))";
    setup.database.text(sql).unwrap()
}

#[test]
fn a_claim_cut_at_any_statement_has_happened_or_not() {
    let (setup, proxy, api) = scene();
    let untouched = state(&setup);
    assert_eq!(api.provision("new", BASIC).status, 201);
    let (points, taken) = (proxy.points(), state(&setup));
    eprintln!("claim: {} statements: {points:?}", points.len());
    assert_eq!(
        taken,
        "new bucket-stocked t available our org 00000000-0000-0000-0000-000000000000 f | \
         new check finished, new provision finished, new tag pending | new odd"
    );
    assert!(points.len() > 6 && points.last().is_some_and(|it| it == "commit#1"), "{points:?}");
    drop((api, proxy, setup));
    for_each(0..points.len() * 2, |number| {
        let fault = if number % 2 == 0 { Fault::Before } else { Fault::After };
        let point = &points[number / 2];
        let case = format!("cut {fault:?} {point}");
        let (setup, proxy, api) = scene();
        proxy.arm(Point::Name(point.clone()), fault);
        let answer = api.provision("new", BASIC);
        proxy.wait_until_struck(Duration::ZERO);
        let happened = fault == Fault::After && point.starts_with("commit");
        assert_eq!(state(&setup), if happened { &*taken } else { &*untouched }, "{case}: {}", answer.status);
        assert!(answer.status == 503 || happened, "{case}: {} {}", answer.status, answer.text);
        let again = api.provision("new", BASIC);
        assert_eq!(again.status, if happened { 200 } else { 201 }, "{case}, again: {}", again.text);
        assert_eq!(state(&setup), taken, "{case}");
    });
}

#[test]
fn an_api_that_is_killed_before_its_commit_has_claimed_nothing() {
    let (setup, proxy, mut api) = scene();
    let untouched = state(&setup);
    proxy.arm(Point::Name("commit#1".to_owned()), Fault::Hold);
    std::thread::scope(|scope| {
        let client = std::ops::Deref::deref(&api).clone();
        let path = "/v2/service_instances/new?accepts_incomplete=true";
        let body = provision_body(BASIC).to_string();
        let asked = scope.spawn(move || client.try_send("PUT", path, body.as_bytes()).is_err());
        proxy.wait_until_struck(PATIENCE);
        api.kill();
        assert!(asked.join().unwrap());
    });
    drop(proxy);
    assert_eq!(state(&setup), untouched);
    let direct = setup.database.url().to_owned();
    let setup = setup.with("DATABASE_URL", &direct);
    assert_eq!(setup.api(&[]).provision("new", BASIC).status, 201);
}

#[test]
fn an_instance_that_a_worker_takes_at_the_last_moment_is_left_to_it() {
    let (setup, proxy, api) = scene();
    proxy.arm(Point::Name("with#1".to_owned()), Fault::Hold);
    let asked = std::thread::scope(|scope| {
        let asked = scope.spawn(|| api.provision("new", BASIC));
        proxy.wait_until_struck(PATIENCE);
        let begun = "update tasks set status = 'started', worker = 'w', started = now(),
            lease_until = now() + interval '1 minute' where action = 'check'";
        setup.database.connect().batch_execute(begun).unwrap();
        proxy.release();
        asked.join().unwrap()
    });
    assert_eq!(asked.status, 202, "{}", asked.text);
    let made = "select concat_ws(' | ',
        (select concat_ws(' ', name, claimed, status) from resources where id = 'stocked'),
        (select concat_ws(' ', name <> 'bucket-stocked', claimed, status) from resources where id = 'new'),
        (select string_agg(concat_ws(' ', resource, action, status), ', ' order by resource, action) from tasks))";
    assert_eq!(
        setup.database.text(made).unwrap(),
        "bucket-stocked f available | t t provisioning | \
         new provision pending, stocked check started, stocked provision finished"
    );
}
