//! How the processes start and end: flags, variables, complaints, signals.

mod refused;
mod running;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::*;

/// How soon a process must have ended that has nothing to wait for.
const QUICK: Duration = Duration::from_secs(5);

/// A database that nobody connects to.
const NOWHERE: &str = "postgres://u:hush@127.0.0.1:1/d?sslmode=disable";

/// Settings with which both an api and a worker start.
const RIGHT: [(&str, &str); 8] = [
    ("DATABASE_URL", NOWHERE),
    ("NAME_PREFIX", "tst"),
    ("PORT", "0"),
    ("LISTEN_ADDRESS", "127.0.0.1"),
    ("AWS_REGION", "us-west-2"),
    ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
    ("AWS_SECRET_ACCESS_KEY", "hush"),
    ("AWS_EC2_METADATA_DISABLED", "true"), // no test asks the machine that it runs on for a key
];

/// The binary with [`RIGHT`] and these; an empty value takes a variable out.
fn broker(flags: &[&str], variables: &[(&str, &str)]) -> Command {
    named(env!("CARGO_BIN_EXE_servicebroker"), flags, variables)
}

/// The same under another name.
fn named(program: &str, flags: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(program);
    command.args(flags).env_clear().envs(RIGHT);
    for (name, value) in variables {
        if value.is_empty() {
            command.env_remove(name);
        } else {
            command.env(name, value);
        }
    }
    command
}

/// Runs a command that must refuse its settings; the lines in which it says why.
fn complaints(command: &mut Command) -> Vec<String> {
    let piped = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    let deadline = Instant::now() + QUICK;
    while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5)); // between looks, not instead of them
    }
    let still_runs = child.try_wait().unwrap().is_none();
    if still_runs {
        child.kill().unwrap();
    }
    let output = child.wait_with_output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!still_runs, "it was content with its settings: {log}");
    assert_eq!(output.status.code(), Some(2), "{log}");
    assert!(!log.contains("hush"), "a secret is shown: {log}");
    log.lines().map(str::to_owned).collect()
}

/// What the complaints are about.
fn complained(command: &mut Command) -> Vec<String> {
    let lines = complaints(command);
    let about = lines.iter().map(|it| {
        let rest = it.strip_prefix("servicebroker: ").unwrap_or_else(|| panic!("{lines:?}"));
        let (setting, complaint) = rest.split_once(": ").unwrap_or_else(|| panic!("{lines:?}"));
        assert!(!complaint.is_empty(), "{lines:?}");
        setting.to_owned()
    });
    let mut about: Vec<String> = about.collect();
    about.sort_unstable();
    about
}

/// Starts an api that need not reach its database; also its address.
fn start_api(command: &mut Command) -> (Broker, String) {
    let process = Broker::start(command);
    let address = process.wait_for_log("listening: address=");
    (process, address)
}

/// Sends one request by hand; status and body.
fn ask(address: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|it| it.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, it)| it.to_owned());
    (status.unwrap_or_else(|| panic!("{answer:?}")), body.unwrap())
}

/// Ends a process as its supervisor does; it must succeed, and soon.
fn ends_well(process: &mut Broker) {
    let began = Instant::now();
    assert_eq!(process.terminate(), Some(0), "{}", process.log());
    let took = began.elapsed();
    assert!(took < QUICK, "{took:?}\n{}", process.log());
}

/// A port that somebody listens on, for as long as the listener lives.
fn taken_port() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    (listener, port)
}
