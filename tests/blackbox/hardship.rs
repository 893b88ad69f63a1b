//! What happens when the surroundings misbehave: a database that falls silent, a log that nobody reads,
//! a bucket name that is somebody else's.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::relay::Relay;
use crate::support::*;

/// Stands before PostgreSQL. Connections that it has while it is frozen stay silent for ever.
struct Pipe {
    url: String,
    frozen: Arc<AtomicBool>,
}

impl Pipe {
    fn before(database: &Database) -> Pipe {
        let url = database.url();
        let (host, rest) = url.split_once('@').unwrap().1.split_once('/').unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap();
        let frozen = Arc::new(AtomicBool::new(false));
        let (target, of_thread) = (host.to_owned(), Arc::clone(&frozen));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect(&target).unwrap();
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let ends = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let frozen = Arc::clone(&of_thread);
                    std::thread::spawn(move || forward(ends.0, ends.1, &frozen));
                }
            }
        });
        Pipe { url: format!("{}@{own}/{rest}", url.split_once('@').unwrap().0), frozen }
    }

    fn freeze(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::Relaxed);
    }
}

/// Passes bytes on; what it holds when the pipe is frozen is swallowed, and all that follows.
fn forward(mut from: TcpStream, mut to: TcpStream, frozen: &AtomicBool) {
    let (mut silent, mut bytes) = (false, [0; 8_192]);
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        silent |= frozen.load(Ordering::Relaxed);
        if !silent && to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    if !silent {
        drop(to.shutdown(std::net::Shutdown::Both));
    }
}

/// A setup whose broker reaches its database through a pipe, with short limits.
fn behind_pipe() -> (Setup, Pipe) {
    let setup = Setup::new().with("STATEMENT_TIMEOUT_SECONDS", "1").with("WAIT_SECONDS", "0");
    let pipe = Pipe::before(&setup.database);
    let url = pipe.url.clone();
    (setup.with("DATABASE_URL", &url), pipe)
}

#[test]
fn a_silent_database_is_503_and_is_found_again() {
    let (setup, pipe) = behind_pipe();
    let api = setup.api(&[]);
    pipe.freeze(true);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for number in 0..12 {
            let api = &api;
            scope.spawn(move || assert_eq!(api.provision(&number.to_string(), BASIC).status, 503));
        }
    });
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!((api.get("/healthz").status, api.get("/v2/catalog").status), (200, 200));
    pipe.freeze(false);
    let began = Instant::now();
    eventually("the api is ready again", PATIENCE, || (api.get("/readyz").status == 200).then_some(()));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(setup.database.text("select count(*)::text from resources").as_deref(), Some("0"));
    assert_eq!(api.provision("one", BASIC).status, 202);
}

#[test]
fn what_was_answered_503_is_not_committed_later() {
    let (setup, _pipe) = behind_pipe();
    let api = setup.api(&[]);
    let mut holder = setup.database.connect();
    let mut transaction = holder.transaction().unwrap();
    transaction.batch_execute("lock table tasks in exclusive mode").unwrap();
    assert_eq!(api.provision("one", BASIC).status, 503);
    transaction.rollback().unwrap();
    assert_eq!(api.deprovision("one", BASIC).status, 410);
    assert_eq!(setup.database.text("select id from resources"), None);
}

#[test]
fn a_worker_ends_although_its_database_is_silent() {
    let (setup, pipe) = behind_pipe();
    let mut worker = setup.worker();
    pipe.freeze(true);
    let began = Instant::now();
    assert_eq!(worker.terminate(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
}

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let setup = Setup::new();
    let mut api = setup.api_command(&[]).env("PORT", "0").stderr(Stdio::piped()).spawn().unwrap();
    let mut log = std::io::BufReader::new(api.stderr.take().unwrap());
    let address = loop {
        let mut line = String::new();
        assert!(std::io::BufRead::read_line(&mut log, &mut line).unwrap() > 0);
        if let Some((_, address)) = line.split_once("listening: address=") {
            break address.trim().to_owned();
        }
    };
    drop(log);
    let client = Api::at(&address);
    eventually("it is ready", PATIENCE, || (client.get("/readyz").status == 200).then_some(()));
    for _ in 0..3 {
        assert_eq!(client.without_header("Authorization").get("/v2/catalog").status, 401);
        assert_eq!(client.get("/v2/catalog").status, 200);
    }
    assert!(std::process::Command::new("kill").arg(api.id().to_string()).status().unwrap().success());
    assert_eq!(eventually("it ends", PATIENCE, || api.try_wait().unwrap()).code(), Some(0));
}

#[test]
fn a_name_that_is_somebody_elses_is_given_up_and_leaves_nothing() {
    let relay = Relay::start();
    relay.refuse_first_bucket();
    let mut setup = Setup::new().with("AWS_ACCOUNT_ID", &setting("TEST_AWS_ACCOUNT_ID"));
    setup.endpoint = relay.endpoint.clone();
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    let name = setup.database.text("select name from resources").unwrap();
    assert_eq!(api.bind("one", "b")["S3_BUCKET"].as_str(), Some(name.as_str()));
    let mut client = setup.database.connect();
    client.batch_execute("update tasks set run_at = now() where action = 'sweep'").unwrap();
    eventually("only the new name is left", PATIENCE, || {
        (setup.left_in_aws() == [name.clone(), name.clone()]).then_some(())
    });
    api.remove("one", BASIC);
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}
