//! The front door. Every connection ends here; tiny_http sees only whole, plain requests.
//!
//! Why there are two layers: tiny_http alone starves ordinary keep-alive clients, reads without
//! limits, and can be stopped for good by one peer (README, Decision 1). Behind this door it gets
//! one short request for each private connection, rebuilt from what was understood, and none of
//! that can happen.
//!
//! Invariants
//! - Accepting never ends but by the word to end.
//! - A connection holds its place, and its peer's share of places, for as long as it lives, and it
//!   lives no longer than the deadlines of its phases.
//! - What reaches tiny_http was read to its end by `strict` and carries the key of this process.
//!
//! The stream is generic: TLS goes between [`Timed`] and [`Connection`].

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::large::{Allowance, Room};
use super::strict::{self, Buffer, Refusal, Request};
use super::timed::{Deadline, Timed};
use crate::event::Event;
use crate::metrics::Metrics;
use crate::random::{self, NoRandomness};

/// Header that carries the process' key to tiny_http.
pub(super) const KEY_HEADER: &str = "x-gate-key";
/// Header that tells tiny_http's side who the peer is.
pub(super) const PEER_HEADER: &str = "x-gate-peer";

/// Largest answer, in bytes. The catalog is the only one that can grow.
const ANSWER_BYTES_MAX: u64 = 8 << 20;
/// Stack of a connection's thread, in bytes.
const STACK_BYTES: usize = 128 * 1024;
/// How often an idle connection looks whether the process is to end.
const IDLE_LOOK: Duration = Duration::from_millis(500);
/// How long a refused peer may go on sending before the connection is cut.
const LINGER: Duration = Duration::from_secs(1);
/// What a refused peer may still send, in bytes.
const LINGER_BYTES: u64 = 4 << 20;
/// Descriptors that are not for connections.
const DESCRIPTORS_RESERVED: usize = 64;
/// Descriptors that one connection may take: its own, the private one on both sides, a spare.
const DESCRIPTORS_EACH: usize = 4;

/// How much and how long.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    /// Connections at once.
    pub(super) connections_max: usize,
    /// Connections at once from one address.
    pub(super) per_address_max: usize,
    /// Body, in bytes.
    pub(super) body_bytes_max: usize,
    /// From the first byte of a request to its last.
    pub(super) receive: Duration,
    /// Between requests.
    pub(super) idle: Duration,
    /// For the work on a request.
    pub(super) work: Duration,
    /// For the peer to take the answer.
    pub(super) send: Duration,
}

impl Limits {
    /// Fewer connections, of which one address may have the same part as before.
    fn cut(&mut self, connections_max: usize) {
        self.per_address_max = (self.per_address_max * connections_max / self.connections_max).max(1);
        self.connections_max = connections_max;
    }
}

/// Where tiny_http listens, and what opens it.
#[derive(Clone)]
pub(super) struct Inside {
    /// Random name in the abstract namespace.
    name: Vec<u8>,
    /// What others in the same network namespace do not know.
    pub(super) key: String,
}

impl Inside {
    /// Opens the private socket.
    pub(super) fn open() -> Result<(Inside, UnixListener), String> {
        let digits = || random::hex16().map_err(|err: NoRandomness| err.to_string());
        let inside = Inside { name: digits()?.into_bytes(), key: format!("{}{}", digits()?, digits()?) };
        let address = inside.address().map_err(|err| err.to_string())?;
        let listener = UnixListener::bind_addr(&address).map_err(|err| err.to_string())?;
        Ok((inside, listener))
    }

    /// The private socket's address.
    fn address(&self) -> io::Result<UnixAddr> {
        UnixAddr::from_abstract_name(&self.name)
    }
}

/// Called when the process must be restarted, with the reason.
pub(super) type GiveUp = dyn Fn(&str) + Send + Sync;

/// What all connections share.
pub(super) struct Gate {
    /// How much and how long.
    limits: Limits,
    /// Where requests go.
    inside: Inside,
    /// Said when the process is to end.
    stop: Arc<Event>,
    /// Called when there is no server behind the gate any more.
    give_up: Arc<GiveUp>,
    /// Connections of each address.
    places: Mutex<HashMap<IpAddr, usize>>,
    /// Signalled when a connection has ended.
    left: Condvar,
    /// Whether connections are being accepted, or those that wait still are to be.
    accepting: AtomicBool,
    /// For bodies that are large.
    room: Room,
    /// Where refusals are counted.
    metrics: Arc<Metrics>,
}

/// A connection's place, given up when dropped.
struct Place {
    /// Where it was taken.
    gate: Arc<Gate>,
    /// Whose it is.
    address: IpAddr,
}

impl Gate {
    /// A gate before `inside`. The number of connections is cut to what descriptors are there for.
    pub(super) fn new(
        mut limits: Limits,
        inside: Inside,
        stop: Arc<Event>,
        give_up: Arc<GiveUp>,
        metrics: Arc<Metrics>,
    ) -> Gate {
        let room = descriptor_limit().map(|it| it.saturating_sub(DESCRIPTORS_RESERVED) / DESCRIPTORS_EACH);
        if let Some(room) = room.filter(|it| *it < limits.connections_max) {
            limits.cut(room.max(1));
            log::warn!("connections cut to the descriptor limit: connections_max={}", limits.connections_max);
        }
        Gate {
            limits,
            inside,
            stop,
            give_up,
            places: Mutex::default(),
            left: Condvar::new(),
            accepting: AtomicBool::new(false),
            room: Room::default(),
            metrics,
        }
    }

    /// Accepts until the process is to end. [`Gate::wake`] makes it look.
    pub(super) fn accept(self: &Arc<Gate>, listener: &TcpListener) {
        self.accepting.store(true, Ordering::Relaxed);
        while !self.stop.is_set() {
            match listener.accept() {
                Ok((socket, peer)) => self.admit(socket, peer),
                Err(err) => {
                    log::warn!("connection not accepted: cause={err}");
                    self.stop.wait(Duration::from_millis(50)); // out of descriptors: others must end first
                }
            }
        }
        // Who connected before the word to end came may have sent a request already.
        let waiting = listener.set_nonblocking(true).map(|()| std::iter::from_fn(|| listener.accept().ok()));
        for (socket, peer) in waiting.into_iter().flatten().take(self.limits.connections_max) {
            if socket.set_nonblocking(false).is_ok() {
                self.admit(socket, peer);
            }
        }
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        self.accepting.store(false, Ordering::Relaxed);
        drop(places);
        self.left.notify_all();
    }

    /// Makes a waiting [`Gate::accept`] look whether the process is to end.
    pub(super) fn wake(address: SocketAddr) {
        let loopback = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
            ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
        };
        if let Err(err) = TcpStream::connect_timeout(&(loopback, address.port()).into(), LINGER) {
            log::debug!("accept not woken: cause={err}");
        }
    }

    /// Waits until all connections have ended, `limit` at most.
    pub(super) fn wait_until_empty(&self, limit: Duration) {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let is_open =
            |places: &mut HashMap<_, _>| !places.is_empty() || self.accepting.load(Ordering::Relaxed);
        let waited = self.left.wait_timeout_while(places, limit, is_open);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Gives a connection a thread, or sends it away.
    fn admit(self: &Arc<Gate>, socket: TcpStream, peer: SocketAddr) {
        let Some(place) = self.take_place(peer.ip()) else {
            self.metrics.count_refusal(503);
            return turn_away(socket);
        };
        let gate = Arc::clone(self);
        let serve = move || {
            let stream = Timed::new(socket);
            Connection { gate: &gate, stream, peer, buffer: Buffer::default() }.serve();
            drop(place);
        };
        if let Err(err) =
            std::thread::Builder::new().name("connection".into()).stack_size(STACK_BYTES).spawn(serve)
        {
            log::warn!("connection dropped, no thread: cause={err}");
        }
    }

    /// A place for one more connection of `address`.
    fn take_place(self: &Arc<Gate>, address: IpAddr) -> Option<Place> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = places.values().sum();
        let own = places.entry(address).or_default();
        if all >= self.limits.connections_max || *own >= self.limits.per_address_max {
            if *own == 0 {
                places.remove(&address);
            }
            return None;
        }
        *own += 1;
        Some(Place { gate: Arc::clone(self), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.gate.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = places.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                places.remove(&self.address);
            }
        }
        self.gate.left.notify_all();
    }
}

/// Says that all places are taken. Must not hold up accepting: one short write into an empty buffer.
fn turn_away(mut socket: TcpStream) {
    let answer = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let sent = socket.set_nonblocking(true).and_then(|()| socket.write_all(answer));
    let closed = socket.shutdown(Shutdown::Write);
    log::debug!("connection turned away: told={} closed={}", sent.is_ok(), closed.is_ok());
}

/// One connection of a client.
struct Connection<'a, S> {
    /// What it shares with others.
    gate: &'a Gate,
    /// Its bytes.
    stream: S,
    /// Who it is.
    peer: SocketAddr,
    /// What was read of the next request.
    buffer: Buffer,
}

impl<S: Deadline> Connection<'_, S> {
    /// Serves request after request until one side has had enough.
    fn serve(&mut self) {
        while self.wait_for_request() {
            self.stream.set_deadline(Instant::now() + self.gate.limits.receive);
            let mut allowance = Allowance::new(self.gate.limits.body_bytes_max, &self.gate.room);
            let request = strict::read_request(&mut self.buffer, &mut self.stream, &mut allowance);
            let request = match request {
                Ok(request) => request,
                Err(Refusal::Gone) => return,
                Err(Refusal::TooSlow) => return self.refuse(408, "the request took too long to arrive"),
                Err(Refusal::Bad(status, reason)) => return self.refuse(status, reason),
            };
            let (answer, keep_alive) = match self.forward(&request) {
                Ok(answer) => answer,
                Err(err) => {
                    log::error!("request lost between gate and server: cause={err}");
                    return self.refuse(503, "the server did not answer in time");
                }
            };
            drop((request, allowance));
            self.stream.set_deadline(Instant::now() + self.gate.limits.send);
            if self.stream.write_all(&answer).is_err() || !keep_alive {
                return;
            }
        }
    }

    /// Waits for the first byte of a request; false when none comes, or none is wanted any more.
    fn wait_for_request(&mut self) -> bool {
        let deadline = Instant::now() + self.gate.limits.idle;
        while self.buffer.is_empty() {
            let is_last = self.gate.stop.is_set(); // one more look: a request may be on its way
            self.stream.set_deadline(deadline.min(Instant::now() + IDLE_LOOK));
            match self.buffer.fill(&mut self.stream) {
                Ok(()) => {}
                Err(err) if matches!(err.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => {
                    if is_last || Instant::now() >= deadline {
                        return false;
                    }
                }
                Err(_) => return false,
            }
        }
        true
    }

    /// Hands a request to tiny_http and brings its whole answer back, so that a peer that reads
    /// slowly holds up this thread alone. Also says whether the connection goes on after it.
    fn forward(&self, request: &Request) -> io::Result<(Vec<u8>, bool)> {
        let mut inside = UnixStream::connect_addr(&self.gate.inside.address()?).inspect_err(|err| {
            if err.kind() == io::ErrorKind::ConnectionRefused {
                (self.gate.give_up)("the server behind the gate is gone"); // it closed its socket: it panicked
            }
        })?;
        inside.set_write_timeout(Some(self.gate.limits.work))?;
        inside.set_read_timeout(Some(self.gate.limits.work))?;
        inside.write_all(rebuild_head(request, &self.gate.inside.key, self.peer).as_bytes())?;
        inside.write_all(&request.body)?;
        let mut answer = Vec::new();
        if inside.take(ANSWER_BYTES_MAX + 1).read_to_end(&mut answer)? as u64 > ANSWER_BYTES_MAX {
            return Err(io::Error::other("the answer is too large")); // a torn one would swallow the next
        }
        let keep_alive = request.keep_alive && !self.gate.stop.is_set(); // asked last: the work may be long
        own_connection_header(&mut answer, keep_alive)?;
        Ok((answer, keep_alive))
    }

    /// Answers what never reached a handler, and ends the connection so that the peer sees it.
    fn refuse(&mut self, status: u16, reason: &str) {
        self.gate.metrics.count_refusal(status);
        log::info!("request refused: status={status} peer={} reason={reason:?}", self.peer.ip());
        let body = format!("{{\"description\":\"{reason}\"}}");
        let retry = if status == 503 { "Retry-After: 1\r\n" } else { "" };
        let answer = format!(
            "HTTP/1.1 {status} Refused\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{retry}Connection: close\r\n\r\n{body}",
            body.len()
        );
        self.stream.set_deadline(Instant::now() + LINGER);
        if self.stream.write_all(answer.as_bytes()).is_err() || self.stream.finish().is_err() {
            return;
        }
        // Closing with unread bytes would reset the connection and with it the answer.
        let drained = io::copy(&mut (&mut self.stream).take(LINGER_BYTES), &mut io::sink());
        log::trace!("refused peer: drained={drained:?}");
    }
}

/// Headers that are between a client and this door, and our own.
fn is_left_out(name: &str) -> bool {
    name.starts_with("x-gate-")
        || matches!(
            name,
            "connection"
                | "keep-alive"
                | "proxy-connection"
                | "te"
                | "trailer"
                | "transfer-encoding"
                | "upgrade"
                | "content-length"
                | "expect"
                | "host"
        )
}

/// The request as tiny_http gets it: one plain form, whatever the peer's was.
fn rebuild_head(request: &Request, key: &str, peer: SocketAddr) -> String {
    let mut head = format!("{} {} HTTP/1.1\r\nHost: gate\r\n", request.method, request.target);
    for (name, value) in request.headers.iter().filter(|(name, _)| !is_left_out(name)) {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let length = request.body.len();
    head.push_str(&format!(
        "Content-Length: {length}\r\nConnection: close\r\n{KEY_HEADER}: {key}\r\n{PEER_HEADER}: {peer}\r\n\r\n"
    ));
    head
}

/// Makes an answer's `Connection` header say what this connection will do.
fn own_connection_header(answer: &mut Vec<u8>, keep_alive: bool) -> io::Result<()> {
    let end = answer.windows(4).position(|it| it == b"\r\n\r\n").map(|it| it + 2);
    let (end, head) =
        end.and_then(|end| Some((end, answer.get(..end)?))).ok_or(io::ErrorKind::UnexpectedEof)?;
    let head = std::str::from_utf8(head).map_err(io::Error::other)?;
    let lines = head.split_inclusive("\r\n");
    let mut own: String = lines.filter(|it| !it.to_ascii_lowercase().starts_with("connection:")).collect();
    own.push_str(if keep_alive { "Connection: keep-alive\r\n" } else { "Connection: close\r\n" });
    answer.splice(..end, own.into_bytes()).for_each(drop);
    Ok(())
}

/// The soft limit on open files, where the system tells it.
fn descriptor_limit() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    limits.lines().find_map(|it| it.strip_prefix("Max open files"))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_rebuilt_without_what_is_not_for_the_server() {
        let headers =
            [("host", "x"), ("x-gate-key", "forged"), ("connection", "close"), ("authorization", "a")];
        let request = Request {
            method: "PUT".into(),
            target: "/v2".into(),
            headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            body: b"{}".to_vec(),
            keep_alive: true,
        };
        let text = rebuild_head(&request, "key", "127.0.0.1:9".parse().unwrap());
        assert_eq!(
            text,
            "PUT /v2 HTTP/1.1\r\nHost: gate\r\nauthorization: a\r\nContent-Length: 2\r\nConnection: close\r\n\
             x-gate-key: key\r\nx-gate-peer: 127.0.0.1:9\r\n\r\n"
        );
    }

    #[test]
    fn answers_say_what_the_connection_does() {
        let mut answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\nA: b\r\n\r\nConnection: body".to_vec();
        let outside = b"HTTP/1.1 200 OK\r\nA: b\r\nConnection: keep-alive\r\n\r\nConnection: body";
        own_connection_header(&mut answer, true).unwrap();
        assert_eq!(answer, outside);
        assert!(own_connection_header(&mut b"HTTP/1.1 200 OK\r\n".to_vec(), true).is_err());
    }

    fn limits() -> Limits {
        let none = Duration::ZERO;
        Limits {
            connections_max: 3,
            per_address_max: 2,
            body_bytes_max: 1,
            receive: none,
            idle: none,
            work: none,
            send: none,
        }
    }

    #[test]
    fn places_are_bounded_for_all_and_for_each() {
        let inside = Inside { name: Vec::new(), key: String::new() };
        let metrics = Arc::new(Metrics::new("api"));
        let gate = Arc::new(Gate::new(limits(), inside, Arc::default(), Arc::new(|_| {}), metrics));
        let [one, other, third] = [1, 2, 3].map(|it| IpAddr::from([127, 0, 0, it]));
        let first = gate.take_place(one).unwrap();
        let second = gate.take_place(one).unwrap();
        assert!(gate.take_place(one).is_none());
        let third_place = gate.take_place(other).unwrap();
        assert!(gate.take_place(third).is_none());
        drop(first);
        assert!(gate.take_place(third).is_some());
        let began = Instant::now();
        gate.wait_until_empty(Duration::from_millis(30)); // two are still there
        assert!(began.elapsed() >= Duration::from_millis(30));
        drop((second, third_place));
        gate.wait_until_empty(Duration::from_secs(60));
        assert!(began.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn fewer_places_are_shared_as_before() {
        for (per_address_max, cut) in [(256, 120), (512, 240), (1, 1)] {
            let mut limits = Limits { connections_max: 512, per_address_max, ..limits() };
            limits.cut(240);
            assert_eq!((limits.connections_max, limits.per_address_max), (240, cut));
        }
    }

    #[test]
    fn this_system_tells_its_descriptor_limit() {
        assert!(descriptor_limit().is_some_and(|it| it > 0));
    }
}
