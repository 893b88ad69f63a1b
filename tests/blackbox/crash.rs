//! What is left when a worker dies, and how long slow keys hold things up.

use std::time::{Duration, Instant};

use crate::relay::{Fault, Point, Relay, When};
use crate::support::*;

/// So that a dead worker's task is taken over soon.
const LEASE_S: &str = "4";

/// A setup whose worker talks through a relay, with a short lease.
fn behind_relay() -> (Setup, Relay) {
    let relay = relay();
    (Setup::new().with("LEASE_SECONDS", LEASE_S).with("WAIT_SECONDS", "0").through(&relay), relay)
}

/// The answer to this call, counted from 0, is never given, although AWS has carried it out.
fn swallow(relay: &Relay, number: usize) {
    relay.plan(Point::Number(number + 1), When::After, Fault::Hang);
}

/// The calls that a provision and a delete make when nothing goes wrong.
fn clean_run(plan: &str) -> (usize, usize) {
    let (setup, relay) = behind_relay();
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("one", plan);
    let to_provision = relay.calls().len();
    api.remove("one", plan);
    (to_provision, relay.calls().len() - to_provision)
}

#[test]
fn a_worker_killed_after_any_call_of_a_provision_loses_nothing() {
    let (calls, _) = clean_run(SHIELD_VERSIONED);
    assert!(calls > 10, "a provision makes {calls} calls");
    for_each(0..calls, |number| {
        let (setup, relay) = behind_relay();
        swallow(&relay, number);
        let (api, mut worker) = (setup.api(&[]), setup.worker());
        assert_eq!(api.provision("one", SHIELD_VERSIONED).status, 202);
        kill_when_struck(&setup, &relay, &mut worker, calls - number);
        relay.calm_down();
        let _worker = setup.worker();
        api.wait_for_state("one", "succeeded");
        setup.check_one_of_each();
        api.remove("one", SHIELD_VERSIONED);
        setup.check_nothing_left();
    });
}

#[test]
fn a_delete_sent_while_the_worker_was_down_leaves_nothing() {
    let (calls, _) = clean_run(BASIC);
    for_each(0..calls, |number| {
        let (setup, relay) = behind_relay();
        swallow(&relay, number);
        let (api, mut worker) = (setup.api(&[]), setup.worker());
        assert_eq!(api.provision("one", BASIC).status, 202);
        kill_when_struck(&setup, &relay, &mut worker, calls - number);
        relay.calm_down();
        assert_eq!(api.deprovision("one", BASIC).status, 202);
        let _worker = setup.worker();
        api.remove("one", BASIC);
        setup.check_nothing_left();
    });
}

#[test]
fn a_worker_killed_after_any_call_of_a_delete_finishes_it_later() {
    let (_, calls) = clean_run(VERSIONED);
    for_each(0..calls, |number| {
        let (setup, relay) = behind_relay();
        let (api, mut worker) = (setup.api(&[]), setup.worker());
        api.provide("one", VERSIONED);
        swallow(&relay, relay.calls().len() + number);
        assert_eq!(api.deprovision("one", VERSIONED).status, 202);
        kill_when_struck(&setup, &relay, &mut worker, calls - number);
        relay.calm_down();
        let _worker = setup.worker();
        api.remove("one", VERSIONED);
        setup.check_nothing_left();
    });
}

#[test]
fn new_keys_that_are_refused_for_ten_seconds_hold_up_nobody_longer() {
    const REFUSED: Duration = Duration::from_secs(10);
    const INSTANCES: usize = 20;
    let provide_all = |refused: Duration| {
        let relay = relay();
        relay.refuse_new_keys(refused);
        let setup = Setup::new().through(&relay);
        let (api, _worker) = (setup.api(&[]), setup.worker());
        let began = Instant::now();
        std::thread::scope(|scope| {
            for number in 0..INSTANCES {
                let api = &api;
                scope.spawn(move || assert_eq!(api.provision(&number.to_string(), BASIC).status, 201));
            }
        });
        let took = began.elapsed();
        for number in 0..INSTANCES {
            api.remove(&number.to_string(), BASIC);
        }
        setup.check_nothing_left();
        took
    };
    let calls = provide_all(Duration::ZERO);
    let took = provide_all(REFUSED);
    let limit = (REFUSED + calls).mul_f64(1.5);
    eprintln!("{INSTANCES} provisions: {calls:?} alone, {took:?} with keys refused for {REFUSED:?}");
    assert!(took >= REFUSED && took <= limit, "took {took:?}, limit {limit:?}, calls alone {calls:?}");
}

#[test]
fn a_key_that_never_works_does_not_outlive_the_deadline() {
    let relay = relay();
    relay.refuse_new_keys(PATIENCE * 10);
    let setup = Setup::new().with("PROVISION_DEADLINE", "3s").through(&relay);
    let (api, _worker) = (setup.api(&[]), setup.worker());
    let answer = api.with_header("X-Broker-API-Version", "2.17").provision("one", BASIC);
    assert_eq!(answer.status, 202, "{}", answer.text);
    api.wait_for_state("one", "failed");
    eventually("the failed one is cleaned up", PATIENCE, || setup.left_in_aws().is_empty().then_some(()));
    let cleaned = "select 'yes' from tasks where action = 'delete' and status = 'finished'";
    eventually("its cleaning is settled", PATIENCE, || setup.database.text(cleaned));
    api.wait_for_state("one", "failed");
    assert_eq!(api.deprovision("one", BASIC).status, 200);
    assert_eq!(api.deprovision("one", BASIC).status, 410);
}

#[test]
fn a_worker_that_is_told_to_end_gives_its_task_to_another() {
    let relay = relay();
    relay.refuse_new_keys(Duration::from_secs(3));
    let setup = Setup::new().with("WAIT_SECONDS", "0").through(&relay);
    let (api, mut worker) = (setup.api(&[]), setup.worker());
    assert_eq!(api.provision("one", BASIC).status, 202);
    eventually("the key is being tried", PATIENCE, || {
        relay.calls().contains(&"GetBucketLocation".to_owned()).then_some(())
    });
    assert_eq!(worker.terminate(), Some(0));
    let _other = setup.worker();
    let began = Instant::now();
    api.wait_for_state("one", "succeeded");
    assert!(began.elapsed() < Duration::from_secs(20), "the lease was waited for: {:?}", began.elapsed());
    setup.check_one_of_each();
    api.remove("one", BASIC);
}
