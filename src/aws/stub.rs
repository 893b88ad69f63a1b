//! For tests: an AWS on the loopback that answers by a script and remembers what it was asked.
//!
//! Not here: any behaviour of AWS; emulators are for that.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Aws, Caller, Permit, Settings};
use crate::config::{KeySources, Secret};

/// What the stub does with a request.
#[derive(Clone, Copy)]
pub(super) enum Reply {
    /// A status and a body.
    Answer(u16, &'static str),
    /// A status, a header line and a body.
    With(u16, &'static str, &'static str),
    /// A body that ends early.
    HalfAnAnswer,
    /// A redirect to where nobody is.
    Redirect,
    /// The connection ends.
    Close,
    /// Nothing comes, longer than any call waits.
    Silence,
}

/// The server. Its last line of script is for all further requests.
pub(super) struct Stub {
    /// Where it listens.
    pub(super) port: u16,
    /// Head and body of each request.
    requests: Arc<Mutex<Vec<String>>>,
    /// How often it was connected to.
    connections: Arc<AtomicUsize>,
}

impl Stub {
    /// Starts the server; it lives as long as the process.
    pub(super) fn start(script: &'static [Reply]) -> Stub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stub = Stub { port, requests: Arc::default(), connections: Arc::default() };
        let (requests, connections) = (Arc::clone(&stub.requests), Arc::clone(&stub.connections));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                connections.fetch_add(1, SeqCst);
                let requests = Arc::clone(&requests);
                std::thread::spawn(move || serve(&stream.unwrap(), script, &requests));
            }
        });
        stub
    }

    /// What was asked so far.
    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    /// How often it was connected to.
    pub(super) fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }
}

/// Serves one connection.
fn serve(mut stream: &TcpStream, script: &[Reply], requests: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader) {
        let number = {
            let mut requests = requests.lock().unwrap();
            requests.push(request);
            requests.len() - 1
        };
        let (text, goes_on) = match script[number.min(script.len() - 1)] {
            Reply::Answer(status, body) => {
                (format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len()), true)
            }
            Reply::With(status, header, body) => {
                let length = body.len();
                (format!("HTTP/1.1 {status} X\r\n{header}\r\nContent-Length: {length}\r\n\r\n{body}"), true)
            }
            Reply::HalfAnAnswer => ("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n<Location".into(), false),
            Reply::Redirect => {
                ("HTTP/1.1 307 X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n".into(), true)
            }
            Reply::Close => (String::new(), false),
            Reply::Silence => {
                std::thread::sleep(Duration::from_secs(3));
                (String::new(), false)
            }
        };
        if stream.write_all(text.as_bytes()).is_err() || !goes_on {
            return;
        }
    }
}

/// Reads a request; `None` at the connection's end.
fn read_request(reader: &mut impl BufRead) -> Option<String> {
    let mut request = String::new();
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return None;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        request.push_str(&line);
        if line == "\r\n" {
            break;
        }
    }
    reader.take(length).read_to_string(&mut request).unwrap();
    Some(request)
}

/// Allows so many calls.
pub(super) struct Calls(pub(super) AtomicUsize);

impl Permit for Calls {
    fn may_call(&self, _operation: &'static str) -> bool {
        self.0.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok()
    }
}

/// Runs `operation` with a caller that reaches `port` and may make `permits` calls.
pub(super) fn call<T>(port: u16, permits: usize, operation: impl Fn(Caller<'_>) -> T) -> T {
    call_for(Duration::from_millis(600), port, permits, operation)
}

/// The same, where a call may take so long.
pub(super) fn call_for<T>(
    call_deadline: Duration,
    port: u16,
    permits: usize,
    operation: impl Fn(Caller<'_>) -> T,
) -> T {
    let sources = KeySources {
        key: Some(("AKIDEXAMPLE".into(), Secret::new("planted-secret"))),
        session_token: Some(Secret::new("planted-token")),
        ..KeySources::default()
    };
    operation(aws(call_deadline, port, sources).caller(&Calls(AtomicUsize::new(permits))))
}

/// AWS at `port`, with these sources of the broker's key.
pub(super) fn aws(call_deadline: Duration, port: u16, key_sources: KeySources) -> Aws {
    Aws::new(Settings {
        region: "eu-west-1".into(),
        endpoint_url: Some(format!("http://127.0.0.1:{port}")),
        endpoint_url_s3: None,
        endpoint_url_iam: None,
        endpoint_url_sts: None,
        roots: Vec::new(),
        call_deadline,
        max_idle_per_host: 2,
        key_sources,
    })
    .unwrap()
}
