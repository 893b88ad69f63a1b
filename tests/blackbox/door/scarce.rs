//! What happens when the system has no more to give: descriptors, room for threads.

use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use super::private::{EXIT_BROKEN, private_socket};
use super::target::Target;
use super::wire::{SOON, Wire, get};
use crate::support::*;

/// Connections from four addresses, each with a whole request and half of one.
fn flood(target: &Target) -> Vec<Wire> {
    let mut clients = Vec::new();
    for number in (0..=3).cycle().take(600) {
        let from = Ipv4Addr::new(127, 0, 2, number);
        if let Ok(mut client) = Wire::open(target.address, from) {
            drop(client.send(get("/healthz") + "GET / HTTP/1.1\r\n")); // it may have been sent away
            clients.push(client);
        }
    }
    clients
}

#[test]
fn a_flood_beyond_the_descriptors_leaves_no_trace() {
    for limits in ["ulimit -n 128", "ulimit -n 129", "ulimit -n 64"] {
        let setup = Setup::new();
        let mut target = Target::gate(&setup, limits);
        let before = target.level();
        for _ in 0..3 {
            let mut clients = flood(&target);
            let answers = clients.iter_mut().filter_map(|it| it.answer(SOON).ok());
            let served = answers.filter(|it| it.status == 200).count();
            eprintln!("{limits}: {served} of {} were served in the flood", clients.len());
            drop(clients);
            eventually("it answers again", SOON, || target.is_up().ok());
        }
        target.comes_back_to(before, Duration::from_secs(8)).unwrap();
        target.has_not_panicked().unwrap();
        assert!(!target.process.has_ended());
    }
}

#[test]
fn a_server_without_room_for_its_threads_ends_the_process() {
    let setup = Setup::new();
    let mut target = Target::gate(&setup, "true");
    // less than a thread of tiny_http's takes, enough for a few of the gate's own
    let bytes = (target.memory("VmSize") + 2) << 20;
    let (pid, limit) = (target.process.pid().to_string(), format!("--as={bytes}"));
    assert!(Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap().success());
    let inside = private_socket(&target); // through the gate this would take threads of the gate's, too
    let held: Vec<_> = (0..40).map_while(|_| UnixStream::connect_addr(&inside).ok()).collect();
    eventually("the process ends", Duration::from_secs(25), || {
        drop(target.is_up()); // the door finds out when somebody asks
        target.process.has_ended().then_some(())
    });
    eprintln!("ended with {} connections to tiny_http", held.len());
    assert_eq!(target.process.exit_code(), Some(EXIT_BROKEN));
}
