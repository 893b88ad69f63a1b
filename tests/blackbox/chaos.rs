//! Many instances through random lives while everything around the broker fails at random: calls to AWS, workers,
//! apis, the database. At the end nothing may be lost, double, left over or stuck.
//!
//! `tests/chaos` runs it for longer than a moment.

mod world;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::cloud::*;
use crate::relay::Weather;
use crate::support::*;
use world::{Random, World};

/// Instances that live and die.
const INSTANCES: usize = 200;
/// Platforms that ask at once.
const CLIENTS: usize = 16;
/// How long it lasts when nobody asks for more.
const SHORT: Duration = Duration::from_secs(10);
/// How long everything may take to come to rest.
const REST: Duration = Duration::from_secs(240);

/// The plans.
const PLANS: [&str; 4] = [BASIC, VERSIONED, SHIELD, SHIELD_VERSIONED];

/// What a platform believes of an instance.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Belief {
    /// It was never asked for, or it is gone.
    Absent,
    /// It was asked for.
    Wanted,
    /// It was told to go.
    Unwanted,
}

/// One step in the life of an instance.
fn step(world: &World, random: &mut Random, id: &str, belief: &mut Belief) {
    let path = format!("/v2/service_instances/{id}");
    match (*belief, random.below(10)) {
        (Belief::Absent, _) => {
            let plan = PLANS[random.below(4)];
            let query = format!("{path}?accepts_incomplete=true");
            match world.ask("PUT", &query, &provision_body(plan).to_string()) {
                Some(200..=202) => *belief = Belief::Wanted,
                // What was answered 503 may have happened: then it is there with another plan, or still going.
                Some(409 | 422) => *belief = Belief::Unwanted,
                _ => {}
            }
        }
        (Belief::Wanted, 0..=2) => {
            world.ask("GET", &format!("{path}/last_operation"), "");
        }
        (Belief::Wanted, 3) => {
            world.ask("PUT", &format!("{path}/actions/credentials"), "");
        }
        (Belief::Wanted, 4) => {
            let query = format!("{path}?accepts_incomplete=true");
            world.ask("PATCH", &query, &bind_body(PLANS[random.below(4)]).to_string());
        }
        (Belief::Wanted, 5..=6) => {
            let binding = format!("{path}/service_bindings/b{}", random.below(3));
            world.ask("PUT", &binding, &bind_body(BASIC).to_string());
        }
        (Belief::Wanted, 7) => {
            let query = format!("service_id={SERVICE}&plan_id={BASIC}");
            world.ask("DELETE", &format!("{path}/service_bindings/b{}?{query}", random.below(3)), "");
        }
        (Belief::Wanted, _) => {
            let query = format!("accepts_incomplete=true&service_id={SERVICE}&plan_id={BASIC}");
            if let Some(200 | 202 | 410) = world.ask("DELETE", &format!("{path}?{query}"), "") {
                *belief = Belief::Unwanted;
            }
        }
        (Belief::Unwanted, _) => {
            let query = format!("accepts_incomplete=true&service_id={SERVICE}&plan_id={BASIC}");
            if world.ask("DELETE", &format!("{path}?{query}"), "") == Some(410) {
                *belief = Belief::Absent;
            }
        }
    }
}

/// Lives of some of the instances, until `enough`.
fn live(world: &World, client: usize, seed: u64, enough: &AtomicBool) {
    let mut random = Random::new(seed.wrapping_add(client as u64 + 1));
    let mut own: Vec<(String, Belief)> =
        (client..INSTANCES).step_by(CLIENTS).map(|number| (format!("c{number}"), Belief::Absent)).collect();
    while !enough.load(Ordering::Relaxed) {
        let number = random.below(own.len());
        let (id, belief) = &mut own[number];
        step(world, &mut random, id, belief);
    }
}

/// Kills and restarts at random, until `enough`.
fn disturb(world: &World, seed: u64, enough: &AtomicBool) {
    let mut random = Random::new(seed);
    let mut restart_due = Instant::now() + Duration::from_secs(4);
    while !enough.load(Ordering::Relaxed) {
        match random.below(4) {
            0 => world.replace_api(random.below(2)),
            1 => world.replace_worker(random.below(2), false),
            _ => world.replace_worker(random.below(2), true),
        }
        if Instant::now() > restart_due {
            world.restart_database(random.below(2) == 0);
            restart_due = Instant::now() + Duration::from_secs(10 + random.below(10) as u64);
        }
        std::thread::sleep(Duration::from_millis(200 + random.below(1_500) as u64)); // the pace of disaster
    }
}

/// What there is in the end: rows, buckets, users and keys agree.
fn check(world: &World) {
    let texts = |sql: &str| world.texts(sql);
    let odd = texts(
        "select id || ' is ' || status from resources where not deleted and status not in ('available', 'failed')",
    );
    assert_eq!(odd, Vec::<String>::new(), "instances that are neither available nor failed");
    let stuck = texts(
        "select resource || ' ' || action || ' ' || status from tasks where status in ('pending', 'started')",
    );
    assert_eq!(stuck, Vec::<String>::new(), "tasks that are stuck");
    let secrets = texts(
        "select id from resources where (deleted or status = 'failed') and (username is not null or password is not null
            or next_secret is not null)",
    );
    assert_eq!(secrets, Vec::<String>::new(), "secrets of instances that are gone");
    let names = texts("select name from resources where status = 'available' and not deleted");
    let keys = texts("select username from resources where status = 'available' and not deleted");
    for list in [&names, &keys] {
        let different: BTreeSet<&String> = list.iter().collect();
        assert_eq!(different.len(), list.len(), "two instances share a bucket or a key");
    }
    let mut expected: Vec<String> = names.iter().chain(&names).cloned().collect();
    let mut left = world.setup.left_in_aws();
    expected.sort();
    left.sort();
    assert_eq!(left, expected, "buckets and users in AWS are those of the available instances");
    for name in &names {
        let key = texts(&format!("select username from resources where name = '{name}'"));
        assert_eq!(keys_of(name), key, "{name} has one key, the row's");
        let plan = texts(&format!("select plan::text from resources where name = '{name}'"));
        let is_one_of = |plans: [&str; 2]| plans.contains(&plan[0].as_str());
        let shows = |word: &str, text: &str| ask_s3(&format!("/{name}?{word}")).contains(text);
        let kept = (shows("versioning", "Enabled"), shows("encryption", "aws:kms"));
        let promised = (is_one_of([VERSIONED, SHIELD_VERSIONED]), is_one_of([SHIELD, SHIELD_VERSIONED]));
        assert_eq!(kept, promised, "{name} is what its plan promises");
    }
    let (failed, gone) = (
        texts("select id from resources where status = 'failed' and not deleted").len(),
        texts("select task::text from tasks where action = 'delete'").len(),
    );
    eprintln!("chaos: {} available, {failed} failed and clean, {gone} deletes", names.len());
}

#[test]
fn nothing_is_lost_whatever_happens() {
    let number = |name: &str| std::env::var(name).ok().and_then(|it| it.parse::<u64>().ok());
    let length = number("TEST_CHAOS_SECONDS").map_or(SHORT, Duration::from_secs);
    let seed = number("TEST_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("chaos: {length:?}, seed {seed}");
    let world = World::start();
    world.relay.turn(Weather {
        failing_per_mille: 50,
        refused_per_mille: 2,
        latency: (Duration::from_millis(20), Duration::from_millis(200)),
        seed: seed | 1,
    });
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (world, enough) = (&world, &enough);
            scope.spawn(move || live(world, client, seed, enough));
        }
        scope.spawn(|| disturb(&world, seed, &enough));
        std::thread::sleep(length); // how long the storm lasts
        enough.store(true, Ordering::Relaxed);
    });
    world.relay.calm_down();
    world.come_to_rest(REST);
    check(&world);
    world.report();
}
