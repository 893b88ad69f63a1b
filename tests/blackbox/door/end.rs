//! The api ends when it is told to, and nobody who was being served notices more than that.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::target::Target;
use super::wire::{SOON, Wire, get, get_as};
use super::{ATTACKER, BYSTANDER};
use crate::support::*;

/// How long a process may take to end.
const END: Duration = Duration::from_secs(25);
/// Clients that ask without a pause while the api ends.
const BUSY: usize = 20;
/// Clients whose requests wait for a task that nobody does.
const WAITING: usize = 10;

/// Asks without a pause until an answer says that it is the last; how many there were. Nothing else may end
/// the connection.
fn ask_to_the_end(target: &Target, begun: &AtomicUsize) -> Result<usize, String> {
    let mut client = Wire::open(target.address, ATTACKER).map_err(|err| err.to_string())?;
    let (mut count, began) = (0, Instant::now());
    while began.elapsed() < END {
        let request =
            if count % 2 == 0 { get("/healthz") } else { get_as("/v2/catalog", &count.to_string()) };
        client.send(request).map_err(|err| format!("request {count} not sent: {err}"))?;
        let answer = client.answer(END).map_err(|err| format!("request {count} not answered: {err}"))?;
        if count == 0 {
            begun.fetch_add(1, Ordering::Relaxed);
        }
        count += 1;
        match (answer.status, answer.header("connection")) {
            (200, Some("close")) => return client.rest(SOON).map(|_| count),
            (200, Some("keep-alive")) => {}
            other => return Err(format!("{other:?}")),
        }
    }
    Err(format!("{count} answers and none of them the last"))
}

/// Orders an instance that no worker makes; the answer says that it is the last.
fn wait_to_the_end(target: &Target, number: usize) -> Result<(), String> {
    let body = provision_body(BASIC).to_string();
    let path = format!("/v2/service_instances/{number}?accepts_incomplete=true");
    let head = get_as(&path, "waiting").replacen("GET", "PUT", 1);
    let mut client = Wire::open(target.address, BYSTANDER).map_err(|err| err.to_string())?;
    let request = head.replace("\r\n\r\n", &format!("\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    client.send(request).map_err(|err| err.to_string())?;
    let answer = client.answer(END)?;
    match (answer.status, answer.header("connection")) {
        (202, Some("close")) => client.rest(SOON).map(drop),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn requests_in_flight_are_answered_before_the_end() {
    let setup = Setup::new().with("WAIT_SECONDS", "50");
    let mut target = Target::gate(&setup, "true");
    let pid = target.process.pid().to_string();
    let begun = AtomicUsize::new(0);
    let (counts, took) = std::thread::scope(|scope| {
        let target = &target;
        let waiting: Vec<_> =
            (0..WAITING).map(|number| scope.spawn(move || wait_to_the_end(target, number))).collect();
        eventually("all instances are ordered", PATIENCE, || {
            let count = setup.database.text("select count(*)::text from tasks where status = 'pending'");
            (count == Some(WAITING.to_string())).then_some(())
        });
        let busy: Vec<_> = (0..BUSY).map(|_| scope.spawn(|| ask_to_the_end(target, &begun))).collect();
        eventually("all are being served", PATIENCE, || {
            (begun.load(Ordering::Relaxed) == BUSY).then_some(())
        });
        let began = Instant::now();
        assert!(std::process::Command::new("kill").arg(&pid).status().unwrap().success());
        let counts: Vec<_> = busy.into_iter().map(|it| it.join().unwrap()).collect();
        for it in waiting {
            it.join().unwrap().unwrap();
        }
        (counts, began.elapsed())
    });
    assert_eq!(target.process.exit_code(), Some(0));
    eprintln!(
        "{BUSY} busy and {WAITING} waiting clients had ended after {took:.1?}, with {counts:?} answers"
    );
    assert!(counts.iter().all(Result::is_ok), "{counts:?}");
    assert!(took < END, "{took:?}");
}

#[test]
fn who_was_waiting_at_the_door_when_the_word_came_is_answered_too() {
    let setup = Setup::new();
    let mut target = Target::gate(&setup, "true");
    let pid = target.process.pid().to_string();
    let signal = |name: &str| {
        let sent = std::process::Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.unwrap().success());
    };
    signal("STOP");
    let mut clients: Vec<Wire> =
        (0..BUSY * 3).map(|_| Wire::open(target.address, ATTACKER).unwrap()).collect();
    for client in &mut clients {
        client.send(get("/healthz")).unwrap();
    }
    signal("TERM");
    signal("CONT");
    let answers: Vec<_> = clients.iter_mut().map(|it| it.answer(END).map(|it| it.status)).collect();
    assert!(answers.iter().all(|it| *it == Ok(200)), "{answers:?}");
    assert_eq!(target.process.exit_code(), Some(0));
}
