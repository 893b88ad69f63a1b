//! Each phase of a connection has a deadline that no peer can put off, and a refusal can be read.
//!
//! Sources: RFC 9112 sections 9.3 and 9.6; RFC 9110 section 10.1.1.

use std::time::{Duration, Instant};

use super::rows::enlarge_catalog;
use super::target::Target;
use super::wire::{SOON, Wire, get, get_as};
use super::{ATTACKER, BYSTANDER};
use crate::support::*;

/// For a request, from its first byte to its last.
const RECEIVE: Duration = Duration::from_secs(10);
/// Between requests.
const IDLE: Duration = Duration::from_secs(30);
/// For a client to take its answer.
const SEND: Duration = Duration::from_secs(10);

/// Fails when something took less than its deadline, or much longer.
fn assert_took(what: &str, began: Instant, deadline: Duration) {
    let took = began.elapsed();
    eprintln!("{what}: {took:.1?}");
    let range = deadline - Duration::from_millis(200)..deadline + Duration::from_secs(2);
    assert!(range.contains(&took), "{what}: {took:?} instead of {deadline:?}");
}

/// Sends a byte at a time after `beginning`; each byte comes in time, the request does not.
fn drip(target: &Target, beginning: &str) {
    let mut client = target.connect().unwrap();
    let began = Instant::now();
    client.send(beginning).unwrap();
    let answer = loop {
        if let Ok(answer) = client.answer(Duration::from_millis(400)) {
            break answer;
        }
        assert!(began.elapsed() < RECEIVE * 2, "still waiting for the rest of {beginning:?}");
        client.send("a").unwrap();
    };
    assert_took(beginning, began, RECEIVE);
    assert_eq!((answer.status, answer.header("connection")), (408, Some("close")));
    assert_eq!(client.rest(SOON).unwrap(), "");
}

/// Waits for the end of a connection on which nothing happens.
fn stay_idle(target: &Target, first: &str) {
    let mut client = target.connect().unwrap();
    if !first.is_empty() {
        client.send(first).unwrap();
        assert_eq!(client.answer(SOON).unwrap().status, 200);
    }
    let began = Instant::now();
    assert_eq!(client.rest(IDLE + SOON).unwrap(), "");
    assert_took("idle", began, IDLE);
}

/// Asks for more than the system keeps for a peer, reads nothing, and sees the connection end.
fn read_nothing(target: &Target) {
    let mut client = Wire::open_narrow(target.address, ATTACKER).unwrap();
    let began = Instant::now();
    client.send(get_as("/v2/catalog", "unread").repeat(8)).unwrap();
    while client.send("\n").is_ok() {
        assert!(began.elapsed() < SEND * 2, "an answer that nobody reads is still being sent");
        std::thread::sleep(Duration::from_millis(50)); // between looks
    }
    assert_took("unread", began, SEND);
}

#[test]
fn each_phase_ends_at_its_deadline() {
    let setup = Setup::new();
    let target = Target::gate(&setup, "true");
    enlarge_catalog(&setup, &target);
    let before = target.level();
    std::thread::scope(|scope| {
        for beginning in [
            "G",
            "GET /healthz HTTP/1.1\r\nHost: door\r\nX: ",
            "PUT /healthz HTTP/1.1\r\nHost: door\r\nContent-Length: 2000\r\n\r\n",
            "PUT /healthz HTTP/1.1\r\nHost: door\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n",
        ] {
            let target = &target;
            scope.spawn(move || drip(target, beginning));
        }
        scope.spawn(|| stay_idle(&target, ""));
        scope.spawn(|| stay_idle(&target, &get("/healthz")));
        scope.spawn(|| read_nothing(&target));
    });
    target.comes_back_to(before, SOON).unwrap();
}

#[test]
fn a_body_of_the_largest_size_is_taken_and_one_byte_more_is_not() {
    let setup = Setup::new();
    let target = Target::gate(&setup, "true");
    let body = |length: usize| {
        let head = format!(
            "PUT /v2/service_instances/one HTTP/1.1\r\nHost: door\r\nContent-Length: {length}\r\n\r\n"
        );
        head + &"a".repeat(length)
    };
    let mut client = target.connect().unwrap();
    client.send(body(1 << 20)).unwrap();
    assert_eq!(client.answer(SOON).unwrap().status, 401); // it was read; a password was missing
    let too_large = body((1 << 20) + 1);
    let (first, second) = too_large.split_at(too_large.len() / 2);
    client.send(first).unwrap();
    client.stream.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(client.stream.peek(&mut [0]).unwrap(), 1, "an answer begins");
    client.send(second).unwrap(); // some read no answer before they have sent all: it must outlive that
    let answer = client.answer(SOON).unwrap();
    assert_eq!((answer.status, answer.header("connection")), (413, Some("close")));
    // a client that waits for leave learns it without sending
    let mut client = target.connect().unwrap();
    let head = "PUT / HTTP/1.1\r\nHost: door\r\nExpect: 100-continue\r\nContent-Length: 1048577\r\n\r\n";
    client.send(head).unwrap();
    assert_eq!(client.answer(SOON).unwrap().status, 413);
    assert_eq!(client.rest(SOON).unwrap(), "");
}

#[test]
fn a_request_inside_a_body_never_runs() {
    let setup = Setup::new().with("WAIT_SECONDS", "0");
    let target = Target::gate(&setup, "true");
    let order = provision_body(BASIC).to_string();
    let path = "/v2/service_instances/hidden?accepts_incomplete=true";
    let hidden = get_as(path, "hidden").replacen("GET", "PUT", 1);
    let hidden = hidden.replace("\r\n\r\n", &format!("\r\nContent-Length: {}\r\n\r\n{order}", order.len()));
    let length = hidden.len();
    for (head, before, after) in [
        ("GET /healthz HTTP/1.1\r\nHost: door", format!("Content-Length: {length}"), ""),
        ("GET /nowhere HTTP/1.1\r\nHost: door", format!("Content-Length: {length}"), ""),
        ("PUT /v2/catalog HTTP/1.1\r\nHost: door", format!("Content-Length: {length}"), ""),
        (
            "PUT /nowhere HTTP/1.1\r\nHost: door",
            format!("Transfer-Encoding: chunked\r\n\r\n{length:x}"),
            "\r\n0\r\n\r\n",
        ),
        (
            "PUT /nowhere HTTP/1.1\r\nHost: door",
            format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"),
            "",
        ),
        ("PUT /nowhere HTTP/1.1\r\nHost: door", "Content-Length: 0, 0".to_owned(), ""),
        ("PUT /nowhere HTTP/1.1\r\nHost: door", "Transfer-Encoding: identity".to_owned(), ""),
        ("PUT /nowhere HTTP/1.1", "A: b".to_owned(), ""),
        ("PRI * HTTP/2.0", "A: b".to_owned(), ""),
    ] {
        let blank = if before.contains("\r\n\r\n") { "\r\n" } else { "\r\n\r\n" };
        let mut client = Wire::open(target.address, BYSTANDER).unwrap();
        client.send(format!("{head}\r\n{before}{blank}{hidden}{after}")).unwrap();
        client.finish().unwrap();
        client.answer(SOON).unwrap();
        assert_eq!(client.rest(SOON).unwrap(), "", "{head} {before}");
    }
    assert_eq!(setup.database.text("select id from resources"), None);
    let mut client = Wire::open(target.address, BYSTANDER).unwrap();
    client.send(&hidden).unwrap(); // it would have run
    assert_eq!(client.answer(SOON).unwrap().status, 202);
    assert_eq!(setup.database.text("select id from resources").as_deref(), Some("hidden"));
}

#[test]
fn an_answer_that_is_too_large_is_not_sent_torn() {
    let setup = Setup::new();
    let target = Target::gate(&setup, "true");
    let mut client = setup.database.connect();
    client.batch_execute("update plans set description = repeat('a', 5000000) where name = 'basic'").unwrap();
    eventually("the catalog is too large", PATIENCE, || {
        let mut client = target.connect().unwrap();
        client.send(get_as("/v2/catalog", "first") + &get("/healthz")).unwrap();
        let answer = client.answer(SOON).unwrap();
        assert!(matches!(answer.status, 200 | 503), "{}", answer.status);
        (answer.status == 503).then(|| assert_eq!(client.rest(SOON).unwrap(), ""))
    });
}
