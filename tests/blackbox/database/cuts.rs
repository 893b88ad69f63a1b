//! A connection is cut at each single statement of a request or of a task.

use super::*;
use crate::proxy::{Fault, Filter, Point, steps_of_a_request, steps_of_a_task};

/// Nothing here waits for a limit; a machine with much else to do shall not meet one.
const NO_HURRY: (&str, &str) = ("STATEMENT_TIMEOUT_SECONDS", "20");

/// What the database holds, as far as two runs of the same must agree.
fn state(setup: &Setup) -> String {
    let sql = "select concat_ws(' | ',
        (select string_agg(concat_ws(' ', id, status, deleted), ', ' order by id) from resources),
        (select string_agg(concat_ws(' ', resource, action, status, retries), ', ' order by resource, action)
             from tasks),
        (select string_agg(concat_ws(' ', resource, binding, deleted), ', ' order by binding) from bindings))";
    setup.database.text(sql).unwrap_or_default()
}

/// A request that changes something, and the statuses that it may have when it is sent again.
struct Request {
    name: &'static str,
    send: fn(&Api) -> Answer,
    first: u16,
    again: &'static [u16],
}

const REQUESTS: [Request; 3] = [
    Request { name: "provision", send: |api| api.provision("new", BASIC), first: 202, again: &[202] },
    Request {
        name: "bind",
        send: |api| api.put(&binding_at("old", "b"), &bind_body(BASIC)),
        first: 201,
        again: &[200, 201],
    },
    Request { name: "deprovision", send: |api| api.deprovision("old", BASIC), first: 202, again: &[202] },
];

/// A ready api behind a proxy that counts the statements of requests, with an instance `old`.
fn ready() -> (Setup, Proxy, Broker) {
    let (setup, proxy) = behind_proxy(&[NO_HURRY]);
    let api = setup.api(&[]);
    add_available(&setup, "old");
    count(&proxy, steps_of_a_request);
    (setup, proxy, api)
}

fn count(proxy: &Proxy, filter: Filter) {
    proxy.count(Some(filter));
}

/// A request cut at each of its statements, before it or after it.
fn cut_everywhere(request: &Request) {
    let (setup, proxy, api) = ready();
    let untouched = state(&setup);
    assert_eq!((request.send)(&api).status, request.first);
    let (points, clean) = (proxy.points(), state(&setup));
    eprintln!("{}: {} statements: {points:?}", request.name, points.len());
    assert!(points.len() > 3 && points.last().is_some_and(|it| it == "commit#1"), "{points:?}");
    drop((api, proxy, setup));
    for_each(0..points.len() * 2, |number| {
        let fault = if number % 2 == 0 { Fault::Before } else { Fault::After };
        let point = &points[number / 2];
        let case = format!("{} cut {fault:?} {point}", request.name);
        let (setup, proxy, api) = ready();
        proxy.arm(Point::Name(point.clone()), fault);
        let answer = (request.send)(&api);
        proxy.wait_until_struck(Duration::ZERO);
        assert!(matches!(answer.status, 200..=299 | 503), "{case}: {} {}", answer.status, answer.text);
        // A commit whose answer was cut is the one thing that nobody knows: 503, and it happened.
        let happened = fault == Fault::After && point.starts_with("commit");
        assert_eq!(state(&setup), if happened { &*clean } else { &*untouched }, "{case}: {}", answer.status);
        assert!(happened || answer.status == 503, "{case}: {} and lost", answer.status);
        let again = (request.send)(&api);
        assert!(request.again.contains(&again.status), "{case}, again: {} {}", again.status, again.text);
        assert_eq!(state(&setup), clean, "{case}");
    });
}

#[test]
fn a_provision_request_cut_at_any_statement_can_be_sent_again() {
    cut_everywhere(&REQUESTS[0]);
}

#[test]
fn a_bind_request_cut_at_any_statement_can_be_sent_again() {
    cut_everywhere(&REQUESTS[1]);
}

#[test]
fn a_deprovision_request_cut_at_any_statement_can_be_sent_again() {
    cut_everywhere(&REQUESTS[2]);
}

/// A setup whose worker alone reaches its database through a proxy that counts the steps of tasks.
fn worker_behind_proxy() -> (Setup, Proxy, Broker) {
    let (setup, proxy) = behind_proxy(&[NO_HURRY, ("LEASE_SECONDS", "4"), ("WORKER_THREADS", "1")]);
    let direct = setup.database.url().to_owned();
    let setup = setup.with("DATABASE_URL", &direct);
    let api = setup.api(&[]);
    let setup = setup.with("DATABASE_URL", proxy.url());
    count(&proxy, steps_of_a_task);
    (setup, proxy, api)
}

/// Whether the worker has settled a task.
const FINISHED: &str = "select 'yes' from tasks where status = 'finished'";

/// Cuts the worker of a provision after each of these of its statements; it may end without the last few, see
/// [`REPEATED_MAX`].
fn cut_worker_after(points: &[String], chosen: impl Fn(usize) -> bool + Sync) {
    for_each(1..points.len() + 1, |number| {
        if !chosen(number) {
            return;
        }
        let case = format!("cut after {}, number {number}", points[number - 1]);
        let (setup, proxy, api) = worker_behind_proxy();
        proxy.arm(Point::Number(number), Fault::After);
        let worker = setup.worker();
        assert_eq!(api.provision("one", BASIC).status, 202, "{case}");
        eventually("the cut, or the end", PATIENCE, || {
            (proxy.has_struck() || setup.database.text(FINISHED).is_some()).then_some(())
        });
        let left = points.len() + 1 - number;
        assert!(proxy.has_struck() || left <= REPEATED_MAX, "{case}: ended without it");
        api.wait_for_state("one", "succeeded");
        drop((worker, api, proxy));
        setup.check_one_of_each();
    });
}

#[test]
fn a_worker_cut_after_any_statement_of_a_provision_goes_on() {
    /// One of so many is tried, another each time.
    const EVERY: usize = 3;
    let points = {
        let (setup, proxy, api) = worker_behind_proxy();
        let _worker = setup.worker();
        api.provide("one", BASIC);
        eventually("it is settled", PATIENCE, || setup.database.text(FINISHED));
        proxy.points()
    };
    let seed = std::process::id() as usize % EVERY;
    eprintln!("provision task: {} statements, every {EVERY}rd from {seed} on: {points:?}", points.len());
    assert!(points.len() > 20, "{points:?}");
    cut_worker_after(&points, |number| number % EVERY == seed);
}

#[test]
fn a_claim_that_was_cut_after_its_commit_is_taken_again_when_its_lease_has_run_out() {
    let (setup, proxy, api) = worker_behind_proxy();
    assert_eq!(api.provision("one", BASIC).status, 202);
    count(&proxy, |sql| sql.contains("set status = 'started'") && sql.contains("<> all"));
    proxy.arm(Point::Name("commit#1".to_owned()), Fault::After);
    let worker = setup.worker();
    proxy.wait_until_struck(PATIENCE);
    let claimed = "select status::text || ' ' || retries from tasks where action = 'provision'";
    assert_eq!(setup.database.text(claimed).as_deref(), Some("started 1"));
    api.wait_for_state("one", "succeeded");
    assert_eq!(setup.database.text(claimed).as_deref(), Some("finished 2"));
    drop((worker, api, proxy));
    setup.check_one_of_each();
}
