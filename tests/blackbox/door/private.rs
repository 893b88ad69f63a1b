//! The socket between the gate and tiny_http. It is in the abstract namespace, so others in the same network
//! namespace can connect to it: they must learn nothing there, and what they break must end the process
//! with the code that has it started again.

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::{Duration, Instant};

use super::target::Target;
use super::wire::{SOON, get, get_as};
use crate::support::*;

/// Ended, and to be started again.
pub(super) const EXIT_BROKEN: i32 = 70;

/// The private socket of an api, found as a neighbour would find it: in /proc/net/unix.
pub(super) fn private_socket(target: &Target) -> SocketAddr {
    let links = std::fs::read_dir(format!("/proc/{}/fd", target.process.pid())).unwrap();
    let links = links.filter_map(|it| std::fs::read_link(it.ok()?.path()).ok());
    let own: Vec<String> = links
        .filter_map(|it| Some(it.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned()))
        .collect();
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    let named = table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let name = words.get(7)?.strip_prefix('@')?;
        own.iter().any(|it| it == words[6]).then(|| name.to_owned())
    });
    SocketAddr::from_abstract_name(named.expect("a socket in the abstract namespace")).unwrap()
}

/// Sends to the private socket and reads what comes back.
fn knock(address: &SocketAddr, sent: &str) -> String {
    let mut stream = UnixStream::connect_addr(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(sent.as_bytes()).unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).unwrap();
    String::from_utf8(heard).unwrap()
}

#[test]
fn who_goes_past_the_gate_is_refused() {
    let setup = Setup::new();
    let target = Target::gate(&setup, "true");
    let address = private_socket(&target);
    for headers in [
        "",
        "x-gate-key: \r\n",
        "x-gate-key: 00000000000000000000000000000000\r\nx-gate-peer: 127.0.0.1:1\r\n",
        "Authorization: Basic cGxhdGZvcm06bGV0LW1lLWlu\r\nX-Broker-API-Version: 2.13\r\n",
    ] {
        for path in ["/healthz", "/v2/catalog"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n{headers}\r\n");
            let heard = knock(&address, &request);
            assert!(heard.starts_with("HTTP/1.1 403 "), "{headers:?}: {heard}");
        }
    }
    // nor is the key believed when it comes through the gate
    let mut client = target.connect().unwrap();
    let forged = get("/v2/catalog").replace("\r\n\r\n", "\r\nx-gate-key: forged\r\n\r\n");
    client.send(forged).unwrap();
    assert_eq!(client.answer(SOON).unwrap().status, 401);
    client.send(get_as("/v2/catalog", "after")).unwrap();
    assert_eq!(client.answer(SOON).unwrap().status, 200);
}

/// Connects until nothing more is let in, and keeps all of it.
fn hold_connections(address: &SocketAddr, sent: &str, count_max: usize) -> Vec<UnixStream> {
    let mut held = Vec::new();
    while held.len() < count_max
        && let Ok(mut stream) = UnixStream::connect_addr(address)
    {
        drop(stream.write_all(sent.as_bytes())); // it may be gone already
        held.push(stream);
    }
    held
}

#[test]
fn a_server_that_is_broken_from_the_side_ends_the_process() {
    let preface = "PRI * HTTP/2.0\r\n\r\n";
    let announced = "POST / HTTP/1.1\r\nContent-Length: 1000000000000\r\n\r\n";
    for (sent, count_max, limits) in [
        ("", 400, "ulimit -n 256"),
        ("", 400, "ulimit -n 257"), // tiny_http fails elsewhere when the last descriptor is an odd one
        (preface, 400, "ulimit -n 256"),
        (preface, 400, "ulimit -n 257"),
        (announced, 1, "true"),
    ] {
        let setup = Setup::new();
        let mut target = Target::gate(&setup, limits);
        let address = private_socket(&target);
        let began = Instant::now();
        let held = hold_connections(&address, sent, count_max);
        eventually("the process ends", Duration::from_secs(25), || {
            drop(target.is_up()); // the door finds out when somebody asks
            target.process.has_ended().then_some(())
        });
        eprintln!("{sent:?} ({limits}): ended after {:.1?}, {} held", began.elapsed(), held.len());
        assert_eq!(target.process.exit_code(), Some(EXIT_BROKEN), "{sent:?}");
    }
}

#[test]
fn a_neighbour_with_few_connections_breaks_nothing() {
    let setup = Setup::new();
    let target = Target::gate(&setup, "true");
    let address = private_socket(&target);
    for length in ["5", "1025", "65536"] {
        for _ in 0..10 {
            let mut stream = UnixStream::connect_addr(&address).unwrap();
            write!(stream, "POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n").unwrap();
            drop(stream);
            target.is_up().unwrap();
        }
    }
    // These hold threads of tiny_http's for good, and a request may wait for a thread until the next one comes.
    for _ in 0..50 {
        UnixStream::connect_addr(&address).unwrap().write_all(b"PRI * HTTP/2.0\r\n\r\n").unwrap();
    }
    eventually("it answers again", SOON * 2, || target.is_up().ok());
    target.is_up().unwrap();
    target.has_not_panicked().unwrap();
}
