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
    let inside = private_socket(&target); // through the gate each would take threads of the gate's, too
    let (before, mut held) = (target.level().threads, Vec::new());
    eventually("all waiting threads of tiny_http are taken", PATIENCE, || {
        held.push(UnixStream::connect_addr(&inside).unwrap());
        (target.level().threads >= before + 10).then_some(())
    });
    let limit_memory = |limit: String| {
        let pid = target.process.pid().to_string();
        let limited = Command::new("prlimit").args(["--pid", &pid, &format!("--as={limit}:")]).status();
        assert!(limited.unwrap().success());
    };
    limit_memory(((target.memory("VmSize") + 1) << 20).to_string()); // a thread of tiny_http's takes 2 MiB
    held.push(UnixStream::connect_addr(&inside).unwrap());
    target.process.wait_for_log("failed to spawn thread");
    limit_memory("unlimited".to_owned()); // the memory is back, tiny_http is not
    eventually("the process ends", Duration::from_secs(25), || {
        drop(target.is_up()); // the door finds out when somebody asks
        target.process.has_ended().then_some(())
    });
    assert_eq!(target.process.exit_code(), Some(EXIT_BROKEN));
}
