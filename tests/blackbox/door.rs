//! The front door under attack: what tiny_http alone does not survive, the gate before it must.
//!
//! Each attack runs on the gate and on a bare tiny_http server (`bare`), so that it stays proved that it
//! hurts. Attackers, the client that must be served meanwhile, and the one that looks whether the
//! server is still there have addresses of their own in 127.0.0.0/8.

mod attacks;
mod bare;
mod crowd;
mod end;
mod phases;
mod private;
mod rows;
mod scarce;
mod strict;
mod target;
mod wire;

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

/// Who attacks.
const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// Who wants to be served meanwhile.
const BYSTANDER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
/// Who looks whether the server is still there.
const EXAMINER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 4);

/// Held by a test that needs the machine for itself, or takes it.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Raises this process' soft limit on descriptors, for thousands of clients.
fn raise_descriptor_limit() {
    static RAISED: Once = Once::new();
    RAISED.call_once(|| {
        let pid = std::process::id().to_string();
        let raised = Command::new("prlimit").args(["--pid", &pid, "--nofile=8192:"]).status();
        assert!(raised.is_ok_and(|it| it.success()), "these tests need 8,192 descriptors (prlimit)");
    });
}
