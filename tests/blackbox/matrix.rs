//! Every point of every task, and each way in which things can go wrong there.
//!
//! A point is a call to AWS or a statement of a task, by its name and occurrence. They are recorded in a clean run, so
//! that what is added to a task is tried by itself. Whatever happens at a point, the end must be that of the clean run.
//!
//! `tests/matrix` runs all of it, or a part; without it a few points are tried, others each time.

mod kind;
mod scene;

use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::proxy;
use crate::relay;
use crate::support::*;
use kind::Kind;
use scene::Scene;

/// Runs that go on at once.
const SIDE_BY_SIDE: usize = 16;
/// Clean runs that go on at once: few, so that seldom a call takes too long and is repeated.
const CLEAN_SIDE_BY_SIDE: usize = 4;
/// Runs until one is clean.
const CLEAN_TRIES: usize = 5;
/// Cases that are tried when nobody asks for more.
const FEW: usize = 6;

/// Where something goes wrong.
#[derive(Debug, Clone, PartialEq)]
enum Place {
    /// A call to AWS.
    Aws(String),
    /// A statement on a connection of the task.
    Sql(String),
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    /// The worker dies right after it.
    Killed,
    /// AWS did it, and the connection is reset instead of answering.
    Reset,
    /// AWS is busy instead.
    Refused,
    /// The database's connections are cut right after it.
    DatabaseCut,
    /// The worker stands still and gets no answer until its lease is lost and another has taken over; then it goes on.
    TakenOver,
    /// The same, but what it said reaches the database only then.
    Late,
    /// The worker is cut off until its lease is lost and another has even finished the task; then it gets its answer
    /// and goes on. Nothing that it does then is repaired by anybody.
    Outlived,
}

/// One run that is to end like the clean one.
#[derive(Debug, Clone)]
struct Case {
    kind: Kind,
    plan: &'static str,
    place: Place,
    mode: Mode,
}

/// The plans, and what to call them.
const PLANS: [(&str, &str); 4] =
    [("basic", BASIC), ("versioned", VERSIONED), ("shield", SHIELD), ("shield-versioned", SHIELD_VERSIONED)];

/// What can go wrong at a place.
fn modes(place: &Place) -> &'static [Mode] {
    match place {
        Place::Aws(_) => &[Mode::Killed, Mode::Reset, Mode::Refused, Mode::DatabaseCut, Mode::TakenOver],
        // What comes next may be a call to AWS.
        Place::Sql(name) if name.starts_with("commit") => {
            &[Mode::Killed, Mode::DatabaseCut, Mode::TakenOver, Mode::Late, Mode::Outlived]
        }
        Place::Sql(_) => &[Mode::Killed, Mode::DatabaseCut, Mode::TakenOver, Mode::Late],
    }
}

/// The points of a clean run, and its end. One that had to repeat something has points that no other run has, so it is
/// not clean.
fn record(kind: Kind, plan: &str) -> (Vec<Place>, String) {
    for _ in 0..CLEAN_TRIES {
        let mut scene = Scene::prepare(kind, plan);
        scene.begin();
        let mut worker = scene.recorded_worker();
        scene.wait_for_end(kind);
        assert_eq!(worker.terminate(), Some(0));
        match what_was_repeated(&worker.log()) {
            None => return (scene.places(), scene.describe()),
            Some(line) => eprintln!("{kind:?} is recorded anew: {line}"),
        }
    }
    panic!("{kind:?}: no clean run in {CLEAN_TRIES}");
}

/// What a worker's log says when a call, a run or a settling did not do, or when a claim was looked at once more than
/// the calls do.
const SIGNS: [&str; 5] =
    ["task will be retried: ", "task waits: ", "task not settled", " attempt=2", "lease not renewed at once"];

/// The first line of a worker's log with one of [`SIGNS`].
fn what_was_repeated(log: &str) -> Option<&str> {
    log.lines().find(|line| SIGNS.iter().any(|it| line.contains(it)))
}

#[test]
fn signs_are_what_the_worker_says() {
    let sources = [
        include_str!("../../src/aws/send.rs"),
        include_str!("../../src/worker.rs"),
        include_str!("../../src/worker/lease.rs"),
        include_str!("../../src/worker/settle.rs"),
    ];
    for sign in SIGNS {
        let written = sign.replace("=2", "={attempt}");
        assert!(sources.iter().any(|it| it.contains(&written)), "nobody says {sign:?}");
    }
}

/// Runs a case and compares its end with the clean one's.
fn run(case: &Case, clean: &str) {
    let mut scene = Scene::prepare(case.kind, case.plan);
    scene.begin();
    match &case.place {
        Place::Aws(point) => {
            let busy = if is_iam(point) { "iam.throttling" } else { "s3.slowdown" };
            let (when, fault) = match case.mode {
                Mode::Killed => (relay::When::After, relay::Fault::Hang),
                Mode::Reset => (relay::When::After, relay::Fault::Reset),
                Mode::Refused => (relay::When::Before, relay::Fault::Replay(busy)),
                Mode::DatabaseCut | Mode::TakenOver | Mode::Late | Mode::Outlived => {
                    (relay::When::After, relay::Fault::Hold)
                }
            };
            scene.relay.plan(point.parse().unwrap(), when, fault);
        }
        Place::Sql(point) => {
            let fault = match case.mode {
                Mode::Killed => proxy::Fault::Swallow,
                Mode::TakenOver | Mode::Outlived => proxy::Fault::HoldAnswer,
                Mode::Late => proxy::Fault::Hold,
                Mode::Reset | Mode::Refused | Mode::DatabaseCut => proxy::Fault::After,
            };
            scene.proxy.arm(proxy::Point::Name(point.clone()), fault);
        }
    }
    let mut worker = if case.mode == Mode::Outlived { scene.patient_worker() } else { scene.worker() };
    scene.wait_until_struck(&case.place);
    match case.mode {
        Mode::Killed => {
            worker.kill();
            worker = scene.worker();
        }
        Mode::DatabaseCut if matches!(case.place, Place::Aws(_)) => scene.cut_database(),
        Mode::TakenOver | Mode::Late | Mode::Outlived => {
            let other = if case.mode == Mode::Outlived { scene.outlive() } else { scene.take_over(&worker) };
            scene.wait_for_end(case.kind);
            if case.mode == Mode::Outlived {
                worker.wait_for_log(&format!(" kind={} ", case.kind.action())); // it has done what it would do
            }
            assert_eq!(worker.terminate(), Some(0), "{case:?}");
            worker = other;
        }
        Mode::Reset | Mode::Refused | Mode::DatabaseCut => {}
    }
    scene.wait_for_end(case.kind);
    assert_eq!(worker.terminate(), Some(0), "{case:?}");
    assert_eq!(scene.describe(), clean, "{case:?}");
    if case.kind.leaves_instance() {
        scene.remove();
    }
}

/// Whether a call is one of IAM.
fn is_iam(point: &str) -> bool {
    ["User", "AccessKey", "LoginProfile"].iter().any(|it| point.contains(it))
        || (point.contains("Policy") && !point.contains("Bucket"))
}

/// All cases of a kind and a plan.
fn cases(kind: Kind, plan: &'static str) -> (Vec<Case>, String) {
    let (places, clean) = record(kind, plan);
    let cases = places.iter().flat_map(|place| {
        modes(place).iter().map(move |mode| Case { kind, plan, place: place.clone(), mode: *mode })
    });
    (cases.collect(), clean)
}

/// Does `job` for each of a list, so many at once; what came of them, in their order.
fn side_by_side<T: Sync, R: Send>(list: &[T], count: usize, job: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..count.min(list.len()) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(it) = list.get(number) else { return };
                    let result = job(it);
                    done.lock().unwrap().push((number, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap();
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Whether no word is the name of another kind: a clean run takes seconds.
fn is_asked_for(kind: Kind, only: &str) -> bool {
    !only.split_whitespace().any(|word| Kind::ALL.iter().any(|it| *it != kind && format!("{it:?}") == word))
}

/// Every `step`-th of a list, from a place that the seed gives.
fn choose<T>(list: Vec<T>, count: usize, seed: u64) -> Vec<T> {
    let step = (list.len() / count.max(1)).max(1);
    let first = usize::try_from(seed).unwrap() % step;
    list.into_iter().skip(first).step_by(step).collect()
}

#[test]
fn whatever_goes_wrong_at_any_point_the_end_is_the_same() {
    let extent = std::env::var("TEST_MATRIX").unwrap_or_default();
    let seed = std::env::var("TEST_SEED").ok().and_then(|it| it.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()));
    let only = std::env::var("TEST_MATRIX_ONLY").unwrap_or_default();
    let began = Instant::now();
    let plans = PLANS.iter().filter(|(_, plan)| !extent.is_empty() || *plan == SHIELD_VERSIONED);
    let both = plans.flat_map(|(name, plan)| Kind::ALL.map(|kind| (*name, *plan, kind)));
    let is_tried = |plan: &str, kind: Kind| kind.knows_plans() || plan == SHIELD_VERSIONED;
    let both: Vec<_> =
        both.filter(|(_, plan, kind)| is_tried(plan, *kind) && is_asked_for(*kind, &only)).collect();
    let all = side_by_side(&both, CLEAN_SIDE_BY_SIDE, |(_, plan, kind)| cases(*kind, plan));
    let mut chosen = Vec::new();
    for ((name, plan, kind), (cases, clean)) in both.into_iter().zip(all) {
        let is_wanted =
            |case: &Case| only.split_whitespace().all(|word| format!("{name} {case:?}").contains(word));
        let (all, points) = (cases.len(), cases.iter().filter(|it| it.mode == Mode::Killed).count());
        let cases: Vec<Case> = cases.into_iter().filter(is_wanted).collect();
        let cases = match extent.as_str() {
            "all" => cases,
            "part" if plan == SHIELD_VERSIONED && matches!(kind, Kind::Provision | Kind::Delete) => cases,
            "part" if plan != SHIELD_VERSIONED && matches!(kind, Kind::Check | Kind::Resync) => {
                choose(cases, FEW, seed)
            }
            "part" => choose(cases, 10, seed),
            _ => choose(cases, FEW, seed),
        };
        eprintln!("{name}, {kind:?}: {} of {all} cases, {points} points", cases.len());
        chosen.extend(cases.into_iter().map(|case| (case, clean.clone())));
    }
    let ended =
        side_by_side(&chosen, SIDE_BY_SIDE, |(case, clean)| catch_unwind(|| run(case, clean)).is_ok());
    let wrong: Vec<_> =
        chosen.iter().zip(ended).filter(|(_, ended)| !ended).map(|((case, _), _)| case).collect();
    eprintln!("matrix: {} cases in {:?}, seed {seed}", chosen.len(), began.elapsed());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_step_can_be_run_twice_in_a_row() {
    for_each(0..Kind::ALL.len(), |number| {
        let kind = Kind::ALL[number];
        let (_, clean) = record(kind, SHIELD_VERSIONED);
        let mut scene = Scene::prepare(kind, SHIELD_VERSIONED);
        scene.begin();
        let _worker = scene.worker();
        scene.wait_for_end(kind);
        scene.run_again(kind);
        assert_eq!(scene.describe(), clean, "{kind:?}");
    });
}
