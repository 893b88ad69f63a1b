//! What is attacked: an api, or a bare tiny_http server. Both are processes that can be looked into.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use super::wire::{Answer, SOON, Wire, get};
use super::{ATTACKER, EXAMINER, bare};
use crate::support::*;

/// A server under attack.
pub(super) struct Target {
    /// Its process.
    pub(super) process: Broker,
    /// Where it listens.
    pub(super) address: SocketAddr,
    /// Its process' number.
    pid: u32,
}

/// Threads and descriptors of a process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Level {
    /// Threads.
    pub(super) threads: usize,
    /// Descriptors.
    pub(super) descriptors: usize,
}

/// A command run by a shell after `limits`, such as `ulimit -n 128`.
fn limited(limits: &str, command: &Command) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(format!("{limits} && exec \"$0\" \"$@\""));
    shell.arg(command.get_program()).args(command.get_args()).env_clear();
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell
}

impl Target {
    /// An api, ready to serve.
    pub(super) fn gate(setup: &Setup, limits: &str) -> Target {
        super::raise_descriptor_limit();
        let target = Target::start(limited(limits, setup.api_command(&[]).env("PORT", "0")));
        let api = Api::at(&target.address.to_string());
        eventually("the api is ready", PATIENCE, || (api.get("/readyz").status == 200).then_some(()));
        target
    }

    /// A bare server; `workers` as in [`bare::command`].
    pub(super) fn bare(workers: usize, limits: &str) -> Target {
        super::raise_descriptor_limit();
        Target::start(limited(limits, &bare::command(workers)))
    }

    fn start(mut command: Command) -> Target {
        let process = Broker::start(&mut command);
        let address = process.wait_for_log("listening: address=").parse().unwrap();
        Target { address, pid: process.pid(), process }
    }

    /// A connection of the attacker's.
    pub(super) fn connect(&self) -> io::Result<Wire> {
        Wire::open(self.address, ATTACKER)
    }

    /// One request on one connection, from an address; how long its answer took.
    pub(super) fn ask_from(&self, from: Ipv4Addr, path: &str) -> Result<(Answer, Duration), String> {
        let began = Instant::now();
        let mut wire = Wire::open(self.address, from).map_err(|err| format!("no connection: {err}"))?;
        wire.send(get(path)).map_err(|err| format!("not sent: {err}"))?;
        Ok((wire.answer(SOON)?, began.elapsed()))
    }

    /// Fails when the server does not answer a stranger any more.
    pub(super) fn is_up(&self) -> Result<(), String> {
        match self.ask_from(EXAMINER, "/healthz") {
            Ok((answer, _)) if answer.status == 200 => Ok(()),
            Ok((answer, _)) => Err(format!("the server is not up: it answers {}", answer.status)),
            Err(err) => Err(format!("the server is not up: {err}")),
        }
    }

    /// What it uses now.
    pub(super) fn level(&self) -> Level {
        let count = |what| std::fs::read_dir(format!("/proc/{}/{what}", self.pid)).map_or(0, Iterator::count);
        Level { threads: count("task"), descriptors: count("fd") }
    }

    /// Fails when threads and descriptors do not come back to where they were. A few more are no leak:
    /// the database's, and threads that tiny_http keeps until they have had nothing to do for five seconds
    /// (util/task_pool.rs). A client that goes on asking gives work to each of those in turn, so nobody may
    /// ask meanwhile.
    pub(super) fn comes_back_to(&self, before: Level, limit: Duration) -> Result<(), String> {
        let deadline = Instant::now() + limit;
        loop {
            let now = self.level();
            if now.threads <= before.threads + 8 && now.descriptors <= before.descriptors + 16 {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("kept {now:?}, before it was {before:?}"));
            }
            std::thread::sleep(Duration::from_millis(50)); // between looks
        }
    }

    /// A line of /proc/PID/status in MiB: `VmRSS` what is used, `VmHWM` the most that ever was.
    pub(super) fn memory(&self, line: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let found = status.lines().find_map(|it| it.strip_prefix(line)?.strip_prefix(':'));
        found.and_then(|it| it.split_whitespace().next()?.parse::<usize>().ok()).map_or(0, |it| it / 1024)
    }

    /// Makes the most that ever was what is used now.
    pub(super) fn forget_peak(&self) -> Result<(), String> {
        std::fs::write(format!("/proc/{}/clear_refs", self.pid), "5").map_err(|err| err.to_string())
    }

    /// Fails when a thread has panicked.
    pub(super) fn has_not_panicked(&self) -> Result<(), String> {
        let log = self.process.log();
        match log.lines().find(|it| it.contains("panicked at")) {
            None => Ok(()),
            Some(line) => Err(format!("a thread panicked: {line}")),
        }
    }
}
