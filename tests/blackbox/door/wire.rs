//! An HTTP client that sends whatever it is told to, from an address of its choice, and believes only what
//! it reads.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

/// How long an answer may take that is not said to take long.
pub(super) const SOON: Duration = Duration::from_secs(5);

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    /// HTTP status.
    pub(super) status: u16,
    /// Status line and headers.
    head: String,
    /// The body.
    pub(super) body: String,
}

impl Answer {
    /// A header.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let headers = self.head.lines().filter_map(|it| it.split_once(':'));
        headers.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
    }
}

/// A connection of a client.
pub(super) struct Wire {
    /// The connection.
    pub(super) stream: TcpStream,
    /// What was read and belongs to the next answer.
    rest: Vec<u8>,
}

impl Wire {
    /// Connects from an address.
    pub(super) fn open(to: SocketAddr, from: Ipv4Addr) -> io::Result<Wire> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        Wire::connect(socket, to, from)
    }

    /// Connects with a receive buffer so small that the peer notices soon when nothing is read.
    pub(super) fn open_narrow(to: SocketAddr, from: Ipv4Addr) -> io::Result<Wire> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_recv_buffer_size(4_096)?;
        Wire::connect(socket, to, from)
    }

    fn connect(socket: Socket, to: SocketAddr, from: Ipv4Addr) -> io::Result<Wire> {
        socket.bind(&SocketAddr::from((from, 0)).into())?;
        socket.connect_timeout(&to.into(), SOON)?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(SOON))?;
        Ok(Wire { stream, rest: Vec::new() })
    }

    /// Sends.
    pub(super) fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Says that nothing more will be sent.
    pub(super) fn finish(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Ends the connection with a reset.
    pub(super) fn reset(self) -> io::Result<()> {
        Socket::from(self.stream).set_linger(Some(Duration::ZERO))
    }

    /// Reads once; how many bytes came.
    fn fill(&mut self, deadline: Instant) -> Result<usize, String> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!("nothing more came in time, after {:?}", text(&self.rest)));
        }
        self.stream.set_read_timeout(Some(left)).map_err(|err| err.to_string())?;
        let mut bytes = [0; 16_384];
        match self.stream.read(&mut bytes) {
            Ok(count) => {
                self.rest.extend_from_slice(&bytes[..count]);
                Ok(count)
            }
            Err(err) if matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Err(format!("nothing more came in time, after {:?}", text(&self.rest)))
            }
            Err(err) => Err(format!("{err}, after {:?}", text(&self.rest))),
        }
    }

    /// Reads one answer with its body.
    pub(super) fn answer(&mut self, limit: Duration) -> Result<Answer, String> {
        self.read_answer(limit, true)
    }

    /// Reads one answer that has no body whatever its length says: that to HEAD.
    pub(super) fn answer_to_head(&mut self, limit: Duration) -> Result<Answer, String> {
        self.read_answer(limit, false)
    }

    fn read_answer(&mut self, limit: Duration, with_body: bool) -> Result<Answer, String> {
        let deadline = Instant::now() + limit;
        let end = loop {
            if let Some(end) = self.rest.windows(4).position(|it| it == b"\r\n\r\n") {
                break end + 4;
            }
            if self.fill(deadline)? == 0 {
                return Err(format!("closed after {:?}", text(&self.rest)));
            }
        };
        let head: Vec<u8> = self.rest.drain(..end).collect();
        let head = String::from_utf8(head).map_err(|err| err.to_string())?;
        let status = head.strip_prefix("HTTP/1.").and_then(|it| it.get(2..5)?.parse().ok());
        let status = status.ok_or_else(|| format!("no status in {head:?}"))?;
        let mut answer = Answer { status, head, body: String::new() };
        let length = answer.header("content-length").and_then(|it| it.parse().ok());
        let length: usize = length.filter(|_| with_body).unwrap_or(0);
        while self.rest.len() < length {
            if self.fill(deadline)? == 0 {
                return Err("closed in a body".to_owned());
            }
        }
        let body: Vec<u8> = self.rest.drain(..length).collect();
        answer.body = String::from_utf8(body).map_err(|err| err.to_string())?;
        Ok(answer)
    }

    /// Reads to the orderly end of the connection; what came until then.
    pub(super) fn rest(&mut self, limit: Duration) -> Result<String, String> {
        let deadline = Instant::now() + limit;
        while self.fill(deadline)? > 0 {}
        Ok(text(&std::mem::take(&mut self.rest)))
    }
}

/// Bytes to be shown, not all of them if there are many.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(400)]).into_owned()
}

/// A plain GET.
pub(super) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: door\r\n\r\n")
}

/// A GET with the password of the usual setup, named so that its answer can be told from others.
pub(super) fn get_as(path: &str, identity: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: door\r\nX-Broker-API-Version: 2.13\r\nX-Broker-API-Request-Identity: {identity}\r\n\
         Authorization: Basic cGxhdGZvcm06bGV0LW1lLWlu\r\n\r\n"
    )
}

/// Which request an answer is for.
pub(super) fn identity(answer: &Answer) -> &str {
    answer.header("x-broker-api-request-identity").unwrap_or("none")
}
