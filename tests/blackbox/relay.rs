//! A test double between the broker and the AWS emulator: names and counts the calls, refuses access
//! keys that are too new, and can swallow the answer to one call.
//!
//! It forwards what it is sent byte for byte, since the emulator checks signatures. One connection
//! carries one request.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::support::setting;

/// A running relay. Its threads end with the test's process.
pub(crate) struct Relay {
    /// Where the broker finds it.
    pub(crate) endpoint: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Names of the calls that were forwarded or refused, in order.
    calls: Vec<String>,
    /// When each access key was made.
    keys: HashMap<String, Instant>,
    /// How long a key is unknown after that.
    refuse_new_keys: Duration,
    /// The number of the call whose answer is never given, counted from 0.
    swallow: Option<usize>,
    /// Whether that call has been carried out.
    swallowed: bool,
    /// Whether the next bucket's name is to be somebody else's.
    refuse_bucket: bool,
}

impl Relay {
    /// Starts one in front of the emulator.
    pub(crate) fn start() -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared::default());
        let accepted = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&accepted);
                std::thread::spawn(move || serve(client, &shared));
            }
        });
        Relay { endpoint, shared }
    }

    /// From now on access keys do not work until they are so old.
    pub(crate) fn refuse_new_keys(&self, age: Duration) {
        self.shared.state.lock().unwrap().refuse_new_keys = age;
    }

    /// The first bucket's name turns out to be somebody else's.
    pub(crate) fn refuse_first_bucket(&self) {
        self.shared.state.lock().unwrap().refuse_bucket = true;
    }

    /// The answer to call `number` is never given, although the call is carried out.
    pub(crate) fn swallow(&self, number: usize) {
        self.shared.state.lock().unwrap().swallow = Some(number);
    }

    /// Waits until that call was carried out.
    pub(crate) fn wait_until_swallowed(&self, limit: Duration) {
        let state = self.shared.state.lock().unwrap();
        let waiting = self.shared.changed.wait_timeout_while(state, limit, |it| !it.swallowed);
        assert!(!waiting.unwrap().1.timed_out(), "the call to swallow never came");
    }

    /// Answers everything again.
    pub(crate) fn calm_down(&self) {
        self.shared.state.lock().unwrap().swallow = None;
    }

    /// Names of all calls so far.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.shared.state.lock().unwrap().calls.clone()
    }
}

/// One connection: one request and its answer.
fn serve(mut client: TcpStream, shared: &Shared) {
    let Some((head, body)) = read_message(&mut client) else {
        return;
    };
    let key = access_key(&head);
    let is_swallowed = {
        let mut state = shared.state.lock().unwrap();
        let number = state.calls.len();
        state.calls.push(name(&head, &body));
        let age = key.and_then(|it| state.keys.get(&it)).map(Instant::elapsed);
        if age.is_some_and(|it| it < state.refuse_new_keys) {
            drop(state);
            return refuse(&mut client, 403, "InvalidAccessKeyId");
        }
        if state.calls[number] == "s3:PUT?" && std::mem::take(&mut state.refuse_bucket) {
            drop(state);
            return refuse(&mut client, 409, "BucketAlreadyExists");
        }
        state.swallow == Some(number)
    };
    let address = setting("TEST_AWS_ENDPOINT_URL");
    let mut engine = TcpStream::connect(address.trim_start_matches("http://")).unwrap();
    // A header that is not signed, so that the emulator's answer ends with its connection.
    let closing = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    engine.write_all(closing.as_bytes()).unwrap();
    engine.write_all(&body).unwrap();
    let mut answer = Vec::new();
    engine.read_to_end(&mut answer).unwrap();
    let text = String::from_utf8_lossy(&answer);
    if body.starts_with(b"Action=CreateAccessKey")
        && let Some(made) = between(&text, "<AccessKeyId>", "</AccessKeyId>")
    {
        shared.state.lock().unwrap().keys.insert(made.to_owned(), Instant::now());
    }
    if is_swallowed {
        shared.state.lock().unwrap().swallowed = true;
        shared.changed.notify_all();
        // Held open until the broker gives up or dies: the worst that a network can do.
        drop(std::io::copy(&mut client, &mut std::io::sink()));
        return;
    }
    // The peer may be dead by now: that is what some tests are about.
    drop(client.write_all(&answer));
    drop(client.shutdown(Shutdown::Both));
}

/// An error as S3 writes it.
fn refuse(client: &mut TcpStream, status: u16, code: &str) {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>Refused.</Message></Error>"
    );
    let head = format!(
        "HTTP/1.1 {status} Refused\r\nContent-Type: application/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    drop(client.write_all(&[head.as_bytes(), body.as_bytes()].concat()));
}

/// Head and body, whose length the broker always tells.
fn read_message(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 8_192]);
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|it| it == b"\r\n\r\n") {
            break end + 4;
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return None,
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
        }
    };
    let mut body = bytes.split_off(end);
    let head = String::from_utf8(bytes).unwrap();
    let length = between(&head.to_ascii_lowercase(), "content-length:", "\r\n")
        .map_or(0, |it| it.trim().parse::<usize>().unwrap());
    while body.len() < length {
        let count = stream.read(&mut chunk).ok().filter(|it| *it > 0)?;
        body.extend_from_slice(&chunk[..count]);
    }
    Some((head, body))
}

/// `CreateUser`, or `s3:PUT?versioning`.
fn name(head: &str, body: &[u8]) -> String {
    let body = String::from_utf8_lossy(body);
    if let Some(form) = body.strip_prefix("Action=") {
        return form.split('&').next().unwrap_or_default().to_owned();
    }
    let mut words = head.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let plain = query.split('&').find(|it| !it.starts_with("X-Amz-")).unwrap_or_default();
    format!("s3:{method}?{}", plain.split('=').next().unwrap_or_default())
}

/// Whose signature a request bears.
fn access_key(head: &str) -> Option<String> {
    let header = between(head, "Credential=", "/").filter(|it| !it.is_empty() && !it.contains('%'));
    let query = between(head, "X-Amz-Credential=", "%2F");
    query.or(header).map(str::to_owned)
}

/// What stands between two texts.
fn between<'t>(text: &'t str, before: &str, after: &str) -> Option<&'t str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(found, _)| found)
}
