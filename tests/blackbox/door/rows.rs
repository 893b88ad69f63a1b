//! The table of attacks, run on the gate, where they must do nothing, and on bare tiny_http, where they must
//! do what they do.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::attacks::{self, Found};
use super::target::Target;
use super::{BYSTANDER, alone, bare, strict};
use crate::support::*;

/// What bare tiny_http makes of an attack.
enum Bare {
    /// It fails, and this is in what is said of it. `workers` as in [`bare::command`].
    Fails { workers: usize, with: &'static str },
    /// It passes too.
    Passes,
}

/// An attack.
struct Row {
    /// Its name.
    name: &'static str,
    /// The attack.
    attack: fn(&Target) -> Found,
    /// What bare tiny_http makes of it.
    bare: Bare,
    /// What the process may use, as the shell says it; empty: what it has.
    limits: &'static str,
}

/// A row whose attack bare tiny_http, with a thread for each request, does not pass.
const fn row(name: &'static str, attack: fn(&Target) -> Found, with: &'static str) -> Row {
    Row { name, attack, bare: Bare::Fails { workers: 0, with }, limits: "" }
}

/// The same, where tiny_http has four workers.
const fn with_workers(name: &'static str, attack: fn(&Target) -> Found, with: &'static str) -> Row {
    Row { name, attack, bare: Bare::Fails { workers: 4, with }, limits: "" }
}

/// A row that bare tiny_http passes as well.
const fn both(name: &'static str, attack: fn(&Target) -> Found) -> Row {
    Row { name, attack, bare: Bare::Passes, limits: "" }
}

/// The attacks.
#[rustfmt::skip]
const ROWS: &[Row] = &[
    row("1 burst of keep-alive clients", attacks::burst_of_clients, "starved"),
    Row { limits: "ulimit -v 33554432", ..row("2 announced body", attacks::announced_body, "the server is not up") },
    row("3 preface of HTTP/2", attacks::preface_of_http_2, "kept Level"),
    row("4 reset at once", attacks::reset_at_once, "client.rs"),
    Row { limits: "ulimit -n 128", ..row("5 out of descriptors", attacks::out_of_descriptors, "recv failed: Too many open files") },
    Row { limits: "ulimit -n 129", ..row("6 out of descriptors, odd", attacks::out_of_descriptors, "refined_tcp_stream.rs") },
    row("7 slow heads", attacks::slow_heads, "never closed"),
    row("8 endless head", attacks::endless_head, "head kept"),
    with_workers("9 pipeline unread", attacks::pipeline_unread, "the server is not up"),
    with_workers("10 answers unread", attacks::answers_unread, "the server is not up"),
    with_workers("10 bodies unfinished", attacks::bodies_unfinished, "the server is not up"),
    row("11 hidden request", attacks::hidden_request, "the hidden request ran"),
    row("12 unclear length", strict::unclear_length, "11 of 11 not refused"),
    row("12 too large", strict::too_large, "5 of 5 not refused"),
    row("13 folded header", strict::folded_header, "1 of 1 not refused"),
    row("14 crooked heads", strict::crooked_heads, "9 of 9 not refused"),
    row("14 other versions", strict::other_versions, "2 of 2 not refused"),
    row("15 not ASCII", strict::not_ascii, "2 of 2 not refused"),
    row("- space before a colon", strict::space_before_colon, "2 of 2 not refused"),
    row("- chunks with more", strict::chunks_with_more, "2 of 2 not refused"),
    row("- last answer", strict::last_answer_says_so, "None"),
    both("expectations", strict::expectations),
    both("HTTP/1.0", strict::http_1_0),
    both("pipeline in order", strict::pipeline_in_order),
    both("HEAD", strict::head_has_no_body),
    both("large answer", attacks::answer_is_large),
    both("reset in an answer", attacks::reset_in_answer),
];

/// Makes the catalog of an api as large as an answer may well be. It holds each description twice.
pub(super) fn enlarge_catalog(setup: &Setup, target: &Target) {
    let mut client = setup.database.connect();
    let changed = client.execute(
        "update plans set description = repeat('a', $1) where name = 'basic'",
        &[&i32::try_from(bare::LARGE / 2).unwrap()],
    );
    assert_eq!(changed.unwrap(), 1);
    eventually("the catalog is large", PATIENCE, || attacks::answer_is_large(target).ok());
}

/// Asks from an address of its own until told to stop: how often, the worst and the median, and failures.
fn stand_by(target: &Target, stop: &AtomicBool) -> (usize, Duration, Duration, Vec<String>) {
    let (mut took, mut failures) = (Vec::new(), Vec::new());
    while !stop.load(Ordering::Relaxed) {
        match target.ask_from(BYSTANDER, "/healthz") {
            Ok((answer, time)) if answer.status == 200 => took.push(time),
            Ok((answer, _)) => failures.push(answer.status.to_string()),
            Err(err) => failures.push(err),
        }
        std::thread::sleep(Duration::from_millis(10)); // a client, not an attack
    }
    took.sort_unstable();
    let median = took.get(took.len() / 2).copied().unwrap_or_default();
    (took.len(), took.last().copied().unwrap_or_default(), median, failures)
}

/// How long what an attack has taken may be kept.
const KEPT: Duration = Duration::from_secs(8);

/// Runs one attack on the gate while a bystander asks; a line of the report, and whether all was well.
fn at_the_gate(row: &Row, target: &Target) -> Result<(), String> {
    let before = target.level();
    let (stop, began) = (AtomicBool::new(false), Instant::now());
    let (found, (count, worst, median, failures)) = std::thread::scope(|scope| {
        let bystander = scope.spawn(|| stand_by(target, &stop));
        let found = (row.attack)(target);
        stop.store(true, Ordering::Relaxed);
        (found, bystander.join().unwrap())
    });
    eprintln!(
        "gate {:<28} {:>5.1} s  bystander: {count} answers, median {median:.1?}, worst {worst:.1?}; VmRSS {} VmHWM {} MiB",
        row.name,
        began.elapsed().as_secs_f64(),
        target.memory("VmRSS"),
        target.memory("VmHWM"),
    );
    found.and_then(|()| target.comes_back_to(before, KEPT)).map_err(|err| format!("{}: {err}", row.name))?;
    if failures.is_empty() { Ok(()) } else { Err(format!("{}: bystander: {failures:?}", row.name)) }
}

#[test]
fn no_attack_hurts_the_gate() {
    let _alone = alone();
    let setup = Setup::new();
    let target = Target::gate(&setup, "true");
    enlarge_catalog(&setup, &target);
    let before = target.level();
    let (mut wrong, mut peak) = (Vec::new(), 0);
    for row in ROWS {
        peak = peak.max(target.memory("VmHWM")); // the attack may set it back
        let result = if row.limits.is_empty() {
            at_the_gate(row, &target)
        } else {
            let setup = Setup::new();
            at_the_gate(row, &Target::gate(&setup, row.limits))
        };
        wrong.extend(result.err());
    }
    wrong.extend(target.comes_back_to(before, Duration::from_secs(20)).err());
    wrong.extend(target.has_not_panicked().err());
    let (rss, peak) = (target.memory("VmRSS"), peak.max(target.memory("VmHWM")));
    eprintln!("after all attacks: VmRSS {rss} MiB, VmHWM {peak} MiB");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(rss < 64, "{rss} MiB are used after all attacks");
}

/// How often an attack may be tried until it hurts: some are races.
const BARE_TRIES: usize = 3;

/// Runs one attack on servers of its own; what is not as the table says.
fn at_bare_tiny_http(row: &Row) -> Option<String> {
    let tries = if matches!(row.bare, Bare::Passes) { 1 } else { BARE_TRIES };
    let mut wrong = None;
    for _ in 0..tries {
        wrong = Some(try_at_bare_tiny_http(row)?);
    }
    wrong
}

/// Runs it on one server.
fn try_at_bare_tiny_http(row: &Row) -> Option<String> {
    let (workers, wanted) = match row.bare {
        Bare::Fails { workers, with } => (workers, Some(with)),
        Bare::Passes => (0, None),
    };
    let limits = if row.limits.is_empty() { "true" } else { row.limits };
    let target = Target::bare(workers, limits);
    let before = target.level();
    let found = (row.attack)(&target).and_then(|()| target.comes_back_to(before, KEPT));
    eprintln!("bare {:<28} {found:?}", row.name);
    match (found, wanted) {
        (Err(found), Some(wanted)) if found.contains(wanted) => None,
        (Ok(()), None) => None,
        (found, wanted) => Some(format!("{}: {found:?}, should be {wanted:?}", row.name)),
    }
}

#[test]
fn the_attacks_hurt_bare_tiny_http() {
    let _alone = alone();
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let running: Vec<_> = ROWS.iter().map(|row| scope.spawn(|| at_bare_tiny_http(row))).collect();
        running.into_iter().filter_map(|it| it.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{wrong:#?}");
}
