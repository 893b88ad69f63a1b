//! The platform's listener: takes notices and answers them by a script.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use base64::Engine;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use ring::hmac;
use serde_json::Value;

use crate::support::*;

/// What it does with a notice.
#[derive(Clone, Copy)]
pub(crate) enum Reaction {
    /// A status.
    Answer(u16),
    /// A redirect to another port of this host.
    Redirect(u16),
    /// A success whose body never ends.
    Endless,
    /// Nothing, until the other side hangs up.
    Silence,
}

/// A notice as it came.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    /// Method and target.
    pub(crate) line: String,
    /// Names in lower case, and values.
    headers: Vec<(String, String)>,
    /// What was signed.
    body: Vec<u8>,
}

impl Received {
    /// A header.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    /// State and description, once the signature is right.
    pub(crate) fn told(&self, secret: &str) -> (String, String) {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let signature =
            base64::engine::general_purpose::STANDARD.decode(self.header("x-osb-signature")).unwrap();
        hmac::verify(&key, &self.body, &signature).expect("the signature");
        assert_eq!(self.header("content-type"), "application/json");
        let body: Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(body.as_object().unwrap().len(), 2, "{body}");
        let text = |name: &str| body[name].as_str().unwrap().to_owned();
        (text("state"), text("description"))
    }
}

/// The listener. The last line of its script is for all further notices.
pub(crate) struct Receiver {
    /// Where it listens.
    pub(crate) port: u16,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Receiver {
    /// Starts it; it lives as long as the process.
    pub(crate) fn start(script: &'static [Reaction]) -> Receiver {
        Receiver::listen(script, None)
    }

    /// The same, with TLS.
    pub(crate) fn with_tls(script: &'static [Reaction], tls: Arc<rustls::ServerConfig>) -> Receiver {
        Receiver::listen(script, Some(tls))
    }

    fn listen(script: &'static [Reaction], tls: Option<Arc<rustls::ServerConfig>>) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let receiver = Receiver { port: listener.local_addr().unwrap().port(), received: Arc::default() };
        let received = Arc::clone(&receiver.received);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (received, tls, stream) = (Arc::clone(&received), tls.clone(), stream.unwrap());
                std::thread::spawn(move || match tls {
                    None => serve(stream, script, &received),
                    Some(config) => {
                        let session = rustls::ServerConnection::new(config).unwrap();
                        serve(rustls::StreamOwned::new(session, stream), script, &received);
                    }
                });
            }
        });
        receiver
    }

    /// As an entry of `WEBHOOK_HOSTS`.
    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A URL of it, as it goes into a query.
    pub(crate) fn query(&self, path: &str, secret: &str) -> String {
        query(&format!("http://{}{path}", self.host()), secret)
    }

    /// What came so far.
    pub(crate) fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// Waits until so many have come.
    pub(crate) fn wait_for(&self, count: usize) -> Vec<Received> {
        eventually(&format!("{count} notices"), PATIENCE, || {
            Some(self.received()).filter(|it| it.len() >= count)
        })
    }
}

/// `webhook` and `secret` as they go into a query.
pub(crate) fn query(url: &str, secret: &str) -> String {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    format!("webhook={}&secret={}", encode(url), encode(secret))
}

/// Serves one connection. Errors end it: whoever calls may hang up or be killed.
fn serve<S: Read + Write>(stream: S, script: &[Reaction], received: &Mutex<Vec<Received>>) {
    let mut stream = BufReader::new(stream);
    let Some(notice) = read(&mut stream) else { return };
    let number = {
        let mut received = received.lock().unwrap();
        received.push(notice);
        received.len() - 1
    };
    let stream = stream.get_mut();
    let answer = match script[number.min(script.len() - 1)] {
        Reaction::Answer(status) => format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\nok"),
        Reaction::Redirect(port) => {
            format!("HTTP/1.1 307 X\r\nLocation: http://127.0.0.1:{port}/\r\nContent-Length: 0\r\n\r\n")
        }
        Reaction::Endless => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
        Reaction::Silence => String::new(),
    };
    let mut open = stream.write_all(answer.as_bytes()).and_then(|()| stream.flush()).is_ok();
    while open && matches!(script[number.min(script.len() - 1)], Reaction::Endless) {
        open = stream.write_all(b"5\r\nabcde\r\n").is_ok();
    }
    if open {
        drop(stream.read(&mut [0])); // until the other side hangs up
    }
}

/// Reads a notice; `None` when the connection ends before its end.
fn read(stream: &mut impl BufRead) -> Option<Received> {
    let mut next = || {
        let mut line = String::new();
        stream.read_line(&mut line).ok().filter(|it| *it > 0)?;
        Some(line.trim_end().to_owned())
    };
    let line = next()?;
    let mut headers = Vec::new();
    loop {
        let header = next()?;
        let Some((name, value)) = header.split_once(':') else { break };
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let mut notice = Received { line, headers, body: Vec::new() };
    notice.body = vec![0; notice.header("content-length").parse().ok()?];
    stream.read_exact(&mut notice.body).ok()?;
    Some(notice)
}
