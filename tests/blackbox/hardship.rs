//! What happens when the surroundings misbehave: a database that falls silent, a log that nobody reads,
//! a bucket name that is somebody else's.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::relay::{Fault, Point, When};
use crate::support::*;

/// What a pipe does with bytes.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    /// Passes them on.
    Open,
    /// Keeps them until it is open again.
    Held,
    /// Swallows them; the connection stays silent for ever.
    Frozen,
}

/// Stands before PostgreSQL. All its connections end with it.
struct Pipe {
    url: String,
    shared: Arc<Shared>,
}

struct Shared {
    mood: Mutex<Mood>,
    changed: Condvar,
    sockets: Mutex<Vec<TcpStream>>,
}

impl Pipe {
    fn before(database: &Database) -> Pipe {
        let (user, place) = database.url().split_once('@').unwrap();
        let (host, rest) = place.split_once('/').unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("{user}@{}/{rest}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            mood: Mutex::new(Mood::Open),
            changed: Condvar::new(),
            sockets: Mutex::default(),
        });
        let (target, of_thread) = (host.to_owned(), Arc::clone(&shared));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect(&target).unwrap();
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let shared = Arc::clone(&of_thread);
                    std::thread::spawn(move || forward(from, to, &shared));
                }
                of_thread.sockets.lock().unwrap().extend([client, server]);
            }
        });
        Pipe { url, shared }
    }

    fn turn(&self, mood: Mood) {
        *self.shared.mood.lock().unwrap() = mood;
        self.shared.changed.notify_all();
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        for socket in self.shared.sockets.lock().unwrap().iter() {
            drop(socket.shutdown(Shutdown::Both)); // it may have ended before
        }
        self.turn(Mood::Open);
    }
}

/// Passes bytes on as the pipe's mood is when they come.
fn forward(mut from: TcpStream, mut to: TcpStream, shared: &Shared) {
    let (mut silent, mut bytes) = (false, [0; 8_192]);
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let mood = shared.changed.wait_while(shared.mood.lock().unwrap(), |it| *it == Mood::Held).unwrap();
        silent |= *mood == Mood::Frozen;
        drop(mood);
        if !silent && to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    if !silent {
        drop(to.shutdown(Shutdown::Both)); // it may have ended before
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
    pipe.turn(Mood::Frozen);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for number in 0..12 {
            let api = &api;
            scope.spawn(move || assert_eq!(api.provision(&number.to_string(), BASIC).status, 503));
        }
    });
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!((api.get("/healthz").status, api.get("/v2/catalog").status), (200, 200));
    pipe.turn(Mood::Open);
    let began = Instant::now();
    eventually("the api is ready again", PATIENCE, || (api.get("/readyz").status == 200).then_some(()));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(setup.database.text("select count(*)::text from resources").as_deref(), Some("0"));
    assert_eq!(api.provision("one", BASIC).status, 202);
}

#[test]
fn what_was_answered_503_is_not_committed_later() {
    let (setup, pipe) = behind_pipe();
    let api = setup.api(&[]);
    pipe.turn(Mood::Held);
    assert_eq!(api.provision("one", BASIC).status, 503);
    pipe.turn(Mood::Open);
    assert_eq!(api.deprovision("one", BASIC).status, 410);
    let busy =
        "select 'busy' from pg_stat_activity where datname = current_database() and xact_start is not null
        and pid <> pg_backend_pid()";
    eventually("all calls have ended", PATIENCE, || setup.database.text(busy).is_none().then_some(()));
    assert_eq!(setup.database.text("select id from resources"), None);
}

#[test]
fn a_worker_ends_although_its_database_is_silent() {
    let (setup, pipe) = behind_pipe();
    let mut worker = setup.worker();
    pipe.turn(Mood::Frozen);
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
    let relay = relay();
    let taken = Fault::Status(409, "<Error><Code>BucketAlreadyExists</Code></Error>".to_owned());
    relay.plan(Point::Named("CreateBucket".to_owned(), 1), When::Before, taken);
    let setup = Setup::new().with("AWS_ACCOUNT_ID", &setting("TEST_AWS_ACCOUNT_ID")).through(&relay);
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
