//! Many clients at once: those that want to be served, and those that only hold a place.

use std::net::Ipv4Addr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::target::Target;
use super::wire::{SOON, Wire, get, get_as};
use super::{ATTACKER, BYSTANDER, alone};
use crate::support::*;

/// How long the clients of a crowd ask.
const ROUND: Duration = Duration::from_secs(5);
/// What each of them must have been answered in that time.
const ANSWERS_MIN: usize = 50;
/// Clients that connect and send no whole request.
const HALF_OPEN: usize = 2_000;
/// What a client of another address may wait at the median meanwhile.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// One client that keeps its connection: how many answers it got while the round lasted.
fn ask_for_a_round(target: &Target, from: Ipv4Addr, start: &Barrier) -> Result<usize, String> {
    let opened = Wire::open(target.address, from).map_err(|err| err.to_string());
    start.wait();
    let (mut client, mut count, began) = (opened?, 0, Instant::now());
    while began.elapsed() < ROUND {
        let request =
            if count % 2 == 0 { get("/healthz") } else { get_as("/v2/catalog", &count.to_string()) };
        client.send(request).map_err(|err| err.to_string())?;
        let answer = client.answer(SOON)?;
        if answer.status != 200 || answer.header("connection") != Some("keep-alive") {
            return Err(format!("{} {:?}", answer.status, answer.header("connection")));
        }
        count += 1;
    }
    Ok(count)
}

#[test]
fn keep_alive_clients_are_all_served() {
    let _alone = alone();
    let setup = Setup::new();
    let target = Target::gate(&setup, "true");
    for (round, clients) in [(0, 8), (1, 64), (2, 256)] {
        let (start, from) = (Barrier::new(clients), Ipv4Addr::new(127, 0, 1, round));
        let mut counts: Vec<usize> = std::thread::scope(|scope| {
            let ask = || ask_for_a_round(&target, from, &start);
            let running: Vec<_> = (0..clients).map(|_| scope.spawn(ask)).collect();
            running.into_iter().map(|it| it.join().unwrap().unwrap()).collect()
        });
        counts.sort_unstable();
        let (least, median) = (counts[0], counts[clients / 2]);
        eprintln!("{clients} clients for {ROUND:?}: least {least} answers, median {median}");
        assert!(least >= ANSWERS_MIN, "{clients} clients: one got {least} answers, the median is {median}");
    }
}

#[test]
fn half_open_connections_of_one_address_hold_up_no_other() {
    let _alone = alone();
    for limits in ["true", "ulimit -n 1024"] {
        let setup = Setup::new();
        let target = Target::gate(&setup, limits);
        let (is_full, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
        let (held, mut took) = std::thread::scope(|scope| {
            let attack = scope.spawn(|| {
                let mut clients: Vec<Wire> = Vec::new();
                for number in 0..HALF_OPEN {
                    let mut client = Wire::open(target.address, ATTACKER).unwrap();
                    if number % 2 == 0 {
                        drop(client.send("GET /healthz HTTP/1.1\r\n")); // it may have been sent away
                    }
                    clients.push(client);
                }
                is_full.store(true, Ordering::Relaxed);
                while !is_over.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(20)); // they are held until the test is over
                }
                let held = clients.iter_mut().filter_map(|it| it.rest(Duration::from_millis(1)).err());
                held.filter(|err| err.contains("nothing more came in time, after \"\"")).count()
            });
            let (mut took, mut since_full, mut failure) = (Vec::new(), 0, None);
            while since_full < 200 && failure.is_none() {
                match target.ask_from(BYSTANDER, "/healthz") {
                    Ok((answer, time)) if answer.status == 200 => took.push(time),
                    other => failure = Some(other),
                }
                since_full += usize::from(is_full.load(Ordering::Relaxed));
            }
            is_over.store(true, Ordering::Relaxed);
            let held = attack.join().unwrap();
            assert!(failure.is_none(), "after {} answers: {failure:?}", took.len());
            (held, took)
        });
        took.sort_unstable();
        let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
        eprintln!(
            "{HALF_OPEN} half open, {held} held ({limits}): {} answers, median {median:.1?}, worst {worst:.1?}",
            took.len()
        );
        assert!(held > 0, "no connection was held");
        assert!(median < WAIT_MAX, "the median is {median:?}");
    }
}

/// Bodies as large as they may be, whose last byte does not come.
fn hold_large_bodies(target: &Target, count: usize, from: Ipv4Addr) -> Vec<Wire> {
    let body = "a".repeat((1 << 20) - 1);
    let head = "PUT /v2/x HTTP/1.1\r\nHost: door\r\nContent-Length: 1048576\r\n\r\n";
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = Wire::open(target.address, from).unwrap();
        if client.send(head).and_then(|()| client.send(&body)).is_ok() {
            clients.push(client); // the others were sent away while they were sending
        }
    }
    clients
}

#[test]
fn large_bodies_of_many_clients_do_not_fill_the_memory() {
    let _alone = alone();
    let setup = Setup::new();
    let target = Target::gate(&setup, "true");
    let before = target.level();
    for from in [ATTACKER, Ipv4Addr::new(127, 0, 0, 9)] {
        let mut clients = hold_large_bodies(&target, 200, from);
        target.is_up().unwrap();
        let mut counts = [0, 0];
        for client in &mut clients {
            let sent = client.send("a");
            match client.answer(SOON).map(|it| it.status) {
                Ok(401) => counts[0] += 1,
                Ok(503) => counts[1] += 1,
                other => assert!(sent.is_err() || other.is_err(), "{other:?}"),
            }
        }
        let (rss, peak) = (target.memory("VmRSS"), target.memory("VmHWM"));
        eprintln!("200 large bodies: {counts:?} were 401 and 503; VmRSS {rss} VmHWM {peak} MiB");
        assert!(counts[0] > 0 && counts[1] > 0, "{counts:?}");
        assert!(peak < 64, "{peak} MiB");
    }
    target.comes_back_to(before, Duration::from_secs(20)).unwrap();
}
