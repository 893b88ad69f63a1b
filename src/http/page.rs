//! A port with one page, that of metrics: for a worker, which has no door, or for scrapers that must not reach the
//! api's.
//!
//! Not here: what the page says (`metrics`).
//!
//! Invariants
//! - A few connections at once, each for one request; more are closed at once.
//! - Each phase of a connection has a deadline, and a request is as small as a head without a body.
//! - Whatever is sent, the page is read and nothing else happens.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::large::{Allowance, Room};
use super::spawn;
use super::strict::{self, Buffer, Refusal, Request};
use super::timed::{Deadline, Timed};
use crate::metrics::{CONTENT_TYPE, Metrics};

/// Connections at once.
const CONNECTIONS_MAX: usize = 4;
/// From the start of a connection to the end of its request.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// For the peer to take the page.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a refused peer may go on sending before the connection is cut.
const LINGER: Duration = Duration::from_secs(1);
/// What a refused peer may still send, in bytes.
const LINGER_BYTES: u64 = 64 * 1024;
/// How soon it is tried again when no connection can be accepted.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// Stack of a connection's thread, in bytes.
const STACK_BYTES: usize = 128 * 1024;

/// A connection's place, given up when dropped.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Opens the port and serves the page there for as long as the process lives; says where.
///
/// # Errors
/// What stopped it, fit to be shown.
pub(crate) fn serve_metrics(wanted: SocketAddr, metrics: Arc<Metrics>) -> Result<SocketAddr, String> {
    let listener =
        TcpListener::bind(wanted).map_err(|err| format!("METRICS_PORT: cannot listen on {wanted}: {err}"))?;
    let address = listener.local_addr().map_err(|err| err.to_string())?;
    spawn("metrics", move || accept(&listener, &metrics))?;
    Ok(address)
}

/// Accepts for ever.
fn accept(listener: &TcpListener, metrics: &Arc<Metrics>) {
    let places = Arc::new(AtomicUsize::new(0));
    loop {
        match listener.accept() {
            Ok((socket, _)) => admit(socket, &places, metrics),
            Err(err) => {
                log::warn!("connection to the metrics not accepted: cause={err}");
                std::thread::sleep(ACCEPT_RETRY); // out of descriptors: others must end first
            }
        }
    }
}

/// Gives a connection a thread, or closes it.
fn admit(socket: TcpStream, places: &Arc<AtomicUsize>, metrics: &Arc<Metrics>) {
    let one_more = |taken| (taken < CONNECTIONS_MAX).then_some(taken + 1);
    if places.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_err() {
        return;
    }
    let (place, metrics) = (Place(Arc::clone(places)), Arc::clone(metrics));
    let serve = move || {
        let mut stream = Timed::new(socket);
        if let Err(err) = answer(&mut stream, &metrics) {
            log::debug!("metrics not taken: cause={err}");
        }
        drop(place);
    };
    let builder = std::thread::Builder::new().name("page".to_owned()).stack_size(STACK_BYTES);
    if let Err(err) = builder.spawn(serve) {
        log::warn!("connection to the metrics dropped, no thread: cause={err}");
    }
}

/// Reads one request and answers it.
fn answer(stream: &mut Timed, metrics: &Metrics) -> io::Result<()> {
    stream.set_deadline(Instant::now() + RECEIVE_TIMEOUT);
    let (mut buffer, room) = (Buffer::default(), Room::default());
    let request = strict::read_request(&mut buffer, stream, &mut Allowance::new(0, &room));
    let (status, content_type, body) = match &request {
        Ok(request) => page(request, metrics),
        Err(Refusal::Gone) => return Ok(()),
        Err(Refusal::TooSlow) => refusal(408),
        Err(Refusal::Bad(status, _)) => refusal(*status),
    };
    let allow = if status == 405 { "Allow: GET\r\n" } else { "" };
    let head = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n",
        if status == 200 { "OK" } else { "Refused" },
        body.len()
    );
    stream.set_deadline(Instant::now() + SEND_TIMEOUT);
    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat())?;
    stream.finish()?;
    if request.is_err() {
        // Closing with unread bytes would reset the connection and with it the answer.
        stream.set_deadline(Instant::now() + LINGER);
        io::copy(&mut stream.take(LINGER_BYTES), &mut io::sink())?;
    }
    Ok(())
}

/// Status, type and body for a request.
fn page(request: &Request, metrics: &Metrics) -> (u16, &'static str, String) {
    let path = request.target.split('?').next().unwrap_or_default();
    match (request.method.as_str(), path) {
        ("GET", "/metrics") => (200, CONTENT_TYPE, metrics.page()),
        (_, "/metrics") => refusal(405),
        _ => refusal(404),
    }
}

/// The same for what is not served.
fn refusal(status: u16) -> (u16, &'static str, String) {
    (status, "text/plain; charset=utf-8", "only GET /metrics is served here\n".to_owned())
}
