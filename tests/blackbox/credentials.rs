//! Where the worker finds its key when its environment holds none.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use crate::support::*;

/// A home directory, removed at the end.
struct Home(PathBuf);

impl Drop for Home {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// One with a profile `broker` in `.aws/credentials`.
fn home() -> Home {
    let home = std::env::temp_dir().join(unique());
    std::fs::create_dir_all(home.join(".aws")).unwrap();
    let (id, secret) = (setting("TEST_AWS_ACCESS_KEY_ID"), setting("TEST_AWS_SECRET_ACCESS_KEY"));
    let text = format!("[broker]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
    std::fs::write(home.join(".aws/credentials"), text).unwrap();
    Home(home)
}

/// A worker's command without a key in its environment.
fn without_key(setup: &Setup) -> Command {
    let mut command = setup.worker_command();
    command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    command
}

/// Metadata of a machine whose role has the broker's key; answers for as long as the tests run.
fn metadata() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let document = format!(
        "{{\"Code\":\"Success\",\"AccessKeyId\":\"{}\",\"SecretAccessKey\":\"{}\",\"Token\":\"t\",\
         \"Expiration\":\"2999-01-01T00:00:00Z\"}}",
        setting("TEST_AWS_ACCESS_KEY_ID"),
        setting("TEST_AWS_SECRET_ACCESS_KEY"),
    );
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, mut head) = (stream.unwrap(), Vec::new());
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            let body = match head.split(' ').nth(1).unwrap() {
                "/latest/api/token" => "token",
                "/latest/meta-data/iam/security-credentials/" => "role",
                _ => &document,
            };
            let length = body.len();
            write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
                .unwrap();
        }
    });
    address
}

#[test]
fn a_worker_with_nothing_but_a_profile_makes_and_removes_an_instance() {
    let home = home();
    let setup = Setup::new();
    let api = setup.api(&[]);
    let worker = Broker::start(without_key(&setup).env("HOME", &home.0).env("AWS_PROFILE", "broker"));
    api.provide("one", VERSIONED);
    setup.check_one_of_each();
    api.remove("one", VERSIONED);
    setup.check_nothing_left();
    let log = worker.log();
    assert!(log.contains(&format!("source=shared files key={}", setting("TEST_AWS_ACCESS_KEY_ID"))), "{log}");
    assert!(!log.contains(&setting("TEST_AWS_SECRET_ACCESS_KEY")), "{log}");
}

#[test]
fn a_worker_without_a_key_says_so_and_waits_until_there_is_one() {
    let home = home();
    let file = home.0.join(".aws/credentials");
    let away = home.0.join("away");
    std::fs::rename(&file, &away).unwrap();
    let setup = Setup::new().with("WAIT_SECONDS", "0");
    let api = setup.api(&[]);
    let mut command = without_key(&setup);
    command.env("HOME", &home.0).env("AWS_PROFILE", "broker");
    let worker = Broker::start(&mut command);
    worker.wait_for_log("not known to AWS, tasks will wait: cause=no credentials");
    assert_eq!(api.provision("one", BASIC).status, 202);
    worker.wait_for_log("task will be retried: ");
    eventually("the platform is told why", PATIENCE, || {
        let answer = api.get("/v2/service_instances/one/last_operation"); // the log says so before the row does
        assert_eq!(answer.json["state"], "in progress", "{}", answer.text);
        (answer.json["description"] == "the broker has no AWS credentials").then_some(())
    });
    std::fs::rename(&away, &file).unwrap();
    api.wait_for_state("one", "succeeded");
    api.remove("one", BASIC);
}

#[test]
fn whose_key_it_is_is_asked_until_aws_has_said_it() {
    let (home, setup) = (home(), Setup::new());
    let (file, away) = (home.0.join(".aws/credentials"), home.0.join("away"));
    std::fs::rename(&file, &away).unwrap();
    let mut command = without_key(&setup);
    command.env("HOME", &home.0).env("AWS_PROFILE", "broker").env("AWS_ACCOUNT_ID", "999999999999");
    let worker = Broker::start(&mut command);
    worker.wait_for_log("not known to AWS, tasks will wait: cause=no credentials");
    std::fs::rename(&away, &file).unwrap();
    worker.wait_for_log("AWS_ACCOUNT_ID is 999999999999, but the keys are of another account");
}

#[test]
fn a_worker_on_a_machine_with_a_role_uses_its_key() {
    if checks_permissions() {
        return; // that emulator wants to have made each session token itself
    }
    let setup = Setup::new();
    let api = setup.api(&[]);
    let mut command = without_key(&setup);
    command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata()).env_remove("AWS_EC2_METADATA_DISABLED");
    let worker = Broker::start(&mut command);
    api.provide("one", BASIC);
    api.remove("one", BASIC);
    worker.wait_for_log("credentials found: source=instance metadata ");
}
