//! Requests read from a socket, strictly: what two readers could understand in two ways is refused.
//!
//! Not here: how long reading may take (the socket knows its deadline), what a request means.
//!
//! Invariants
//! - A request that is returned has its whole body, and nothing after it was taken for it.
//! - No more is kept than the limits allow, whatever the peer announces.
//!
//! Sources: RFC 9112 sections 2, 3, 5, 6, 7; RFC 9110 section 10.1.1 (Expect).

use std::io::{self, Read, Write};

use super::large::Allowance;

/// Largest head, in bytes: request line and headers.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Headers of one request.
const HEADERS_MAX: usize = 64;
/// Longest line of a chunk's size: eight hexadecimal digits.
const CHUNK_SIZE_DIGITS_MAX: usize = 8;
/// Read at once, in bytes.
const READ_BYTES: usize = 8 * 1024;

/// A request with its body.
#[derive(PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(super) struct Request {
    /// The method.
    pub(super) method: String,
    /// Path and query as sent.
    pub(super) target: String,
    /// Names in lower case, and values.
    pub(super) headers: Vec<(String, String)>,
    /// The body, without its framing.
    pub(super) body: Vec<u8>,
    /// Whether the peer wants to go on after the answer.
    pub(super) keep_alive: bool,
}

/// Why there is no request.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The peer went away, or said nothing: no answer.
    Gone,
    /// It began a request and did not finish it in time.
    TooSlow,
    /// It sent what cannot be accepted: status and reason.
    Bad(u16, &'static str),
}

impl From<io::Error> for Refusal {
    fn from(err: io::Error) -> Refusal {
        if matches!(err.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) {
            Refusal::TooSlow
        } else {
            Refusal::Gone
        }
    }
}

/// The bytes of one connection that were read and not used yet.
#[derive(Default)]
pub(super) struct Buffer {
    /// Those bytes.
    bytes: Vec<u8>,
}

impl Buffer {
    /// Whether a request has begun.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Reads once; an end of the stream is an error.
    pub(super) fn fill(&mut self, stream: &mut impl Read) -> io::Result<()> {
        let mut chunk = [0; READ_BYTES];
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
        Ok(())
    }

    /// Takes `count` bytes off the front; there are as many.
    fn take(&mut self, count: usize) -> Vec<u8> {
        let rest = self.bytes.split_off(count.min(self.bytes.len()));
        std::mem::replace(&mut self.bytes, rest)
    }

    /// Takes exactly `count` bytes, reading until they are there.
    fn take_exactly(&mut self, count: usize, stream: &mut impl Read) -> Result<Vec<u8>, Refusal> {
        while self.bytes.len() < count {
            self.fill(stream)?;
        }
        Ok(self.take(count))
    }

    /// Takes a line that ends in CRLF, without it.
    fn take_line(&mut self, longest: usize, stream: &mut impl Read) -> Result<Vec<u8>, Refusal> {
        loop {
            if let Some(end) = self.bytes.windows(2).position(|it| it == b"\r\n") {
                let mut line = self.take(end + 2);
                line.truncate(end);
                return Ok(line);
            }
            if self.bytes.len() > longest + 1 {
                return Err(Refusal::Bad(400, "a chunk's size is not one"));
            }
            self.fill(stream)?;
        }
    }

    /// Takes a head, up to and with the empty line.
    fn take_head(&mut self, stream: &mut impl Read) -> Result<Vec<u8>, Refusal> {
        let mut empty_lines = 0;
        loop {
            if empty_lines == 0 && self.bytes.starts_with(b"\r\n") {
                self.take(2); // RFC 9112, 2.2: an empty line before a request is ignored
                empty_lines = 1;
            }
            if let Some(end) = self.bytes.windows(4).position(|it| it == b"\r\n\r\n") {
                if end + 4 > HEAD_BYTES_MAX {
                    break;
                }
                return Ok(self.take(end + 4));
            }
            if self.bytes.len() > HEAD_BYTES_MAX {
                break;
            }
            if has_bare_line_feed(&self.bytes) {
                return Err(Refusal::Bad(400, "lines must end in CRLF"));
            }
            self.fill(stream)?;
        }
        Err(Refusal::Bad(431, "the request's head is too large"))
    }
}

/// Reads one request.
pub(super) fn read_request(
    buffer: &mut Buffer,
    stream: &mut (impl Read + Write),
    allowance: &mut Allowance,
) -> Result<Request, Refusal> {
    let head = buffer.take_head(stream)?;
    let (mut request, framing) = parse_head(&head)?;
    if let Framing::Length(length) = framing {
        allowance.admit(length)?;
    }
    let expects = match request.header("expect") {
        None => false,
        Some(it) if it.eq_ignore_ascii_case("100-continue") => true,
        Some(_) => return Err(Refusal::Bad(417, "the expectation is unknown")),
    };
    if expects && buffer.is_empty() && framing != Framing::Length(0) {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    request.body = match framing {
        Framing::Length(length) => buffer.take_exactly(length, stream)?,
        Framing::Chunked => read_chunks(buffer, stream, allowance)?,
    };
    Ok(request)
}

/// How the end of a body is known.
#[derive(PartialEq, Eq)]
enum Framing {
    /// By its length in bytes.
    Length(usize),
    /// By its last chunk.
    Chunked,
}

impl Request {
    /// The first header of that name, which is in lower case.
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Understands a head, or says what is wrong with it.
fn parse_head(head: &[u8]) -> Result<(Request, Framing), Refusal> {
    let bad = |reason| Refusal::Bad(400, reason);
    let is_odd = |it: &u8| (*it < b' ' && !b"\r\n\t".contains(it)) || *it >= 0x7f;
    if head.iter().any(is_odd) || has_bare_line_feed(head) || has_bare_return(head) {
        return Err(bad("the head holds a character that may not be there"));
    }
    let mut slots = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut slots);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(end)) if end == head.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::Bad(431, "there are too many headers")),
        Err(httparse::Error::Version) => return Err(Refusal::Bad(505, "HTTP/1.1 is spoken here")),
        Ok(_) | Err(_) => return Err(bad("the head is not HTTP")),
    }
    let mut headers = Vec::with_capacity(parsed.headers.len());
    for header in parsed.headers.iter() {
        let value = std::str::from_utf8(header.value).map_err(|_| bad("a header is not ASCII"))?;
        headers.push((header.name.to_ascii_lowercase(), value.to_owned()));
    }
    let is_1_1 = parsed.version == Some(1);
    let target = parsed.path.unwrap_or_default();
    if !target.starts_with('/') {
        return Err(bad("the target must be a path"));
    }
    match headers.iter().filter(|(name, _)| name == "host").count() {
        1 => {}
        0 if !is_1_1 => {}
        _ => return Err(bad("there must be one Host")),
    }
    let framing = framing(&headers, is_1_1)?;
    let connection = |word: &str| {
        let values = headers.iter().filter(|(name, _)| name == "connection");
        values.flat_map(|(_, value)| value.split(',')).any(|it| it.trim().eq_ignore_ascii_case(word))
    };
    let keep_alive = !connection("close") && (is_1_1 || connection("keep-alive"));
    let method = parsed.method.unwrap_or_default().to_owned();
    Ok((Request { method, target: target.to_owned(), headers, body: Vec::new(), keep_alive }, framing))
}

/// One way of knowing where the body ends, and only one.
fn framing(headers: &[(String, String)], is_1_1: bool) -> Result<Framing, Refusal> {
    let bad = |reason| Err(Refusal::Bad(400, reason));
    let all = |wanted: &str| -> Vec<&str> {
        headers.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.as_str()).collect()
    };
    match (all("transfer-encoding").as_slice(), all("content-length").as_slice()) {
        ([], []) => Ok(Framing::Length(0)),
        ([], [length]) if !length.is_empty() && length.bytes().all(|it| it.is_ascii_digit()) => {
            // digits only: what does not fit is too large
            length.parse().map(Framing::Length).map_err(|_| Refusal::Bad(413, "the body is too large"))
        }
        ([], _) => bad("Content-Length must be one number"),
        ([coding], []) if is_1_1 && coding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunked),
        (_, []) => bad("Transfer-Encoding must be chunked and nothing else"),
        (_, _) => bad("Content-Length and Transfer-Encoding exclude each other"),
    }
}

/// Reads a chunked body. Extensions and trailers are refused: nobody needs them here.
fn read_chunks(
    buffer: &mut Buffer,
    stream: &mut impl Read,
    allowance: &mut Allowance,
) -> Result<Vec<u8>, Refusal> {
    let mut body = Vec::new();
    loop {
        let line = buffer.take_line(CHUNK_SIZE_DIGITS_MAX, stream)?;
        let digits = std::str::from_utf8(&line).unwrap_or_default();
        let plain = (1..=CHUNK_SIZE_DIGITS_MAX).contains(&digits.len())
            && digits.bytes().all(|it| it.is_ascii_hexdigit());
        let size = usize::from_str_radix(digits, 16).ok().filter(|_| plain);
        let size = size.ok_or(Refusal::Bad(400, "a chunk's size is not one"))?;
        allowance.admit(body.len() + size)?;
        body.extend(buffer.take_exactly(size, stream)?);
        if buffer.take_exactly(2, stream)? != b"\r\n" {
            return Err(Refusal::Bad(400, "a chunk does not end where it should"));
        }
        if size == 0 {
            return Ok(body);
        }
    }
}

/// Whether a line feed stands without its carriage return.
fn has_bare_line_feed(bytes: &[u8]) -> bool {
    let mut before = 0;
    bytes.iter().any(|&it| {
        it == b'\n' && std::mem::replace(&mut before, it) != b'\r' || {
            before = it;
            false
        }
    })
}

/// Whether a carriage return stands without its line feed.
fn has_bare_return(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|it| matches!(it, [b'\r', next] if *next != b'\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer that has sent everything already, in pieces of `step` bytes.
    struct Peer<'a> {
        sent: &'a [u8],
        step: usize,
        told: Vec<u8>,
    }

    impl Read for Peer<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let count = self.step.min(self.sent.len()).min(into.len());
            into[..count].copy_from_slice(&self.sent[..count]);
            self.sent = &self.sent[count..];
            Ok(count)
        }
    }

    impl Write for Peer<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.told.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn up_to(bytes_max: usize) -> Allowance {
        Allowance::new(bytes_max, &super::super::large::Room::default())
    }

    fn read(sent: &str) -> Result<Request, String> {
        let mut results = [1, 7, 8_192].map(|step| {
            let mut peer = Peer { sent: sent.as_bytes(), step, told: vec![] };
            read_request(&mut Buffer::default(), &mut peer, &mut up_to(1_000)).map_err(|err| match err {
                Refusal::Bad(status, _) => status.to_string(),
                other @ (Refusal::Gone | Refusal::TooSlow) => format!("{other:?}"),
            })
        });
        assert_eq!(results[0], results[1], "{sent:?}");
        assert_eq!(results[0], results[2], "{sent:?}");
        std::mem::replace(&mut results[0], Err(String::new()))
    }

    #[test]
    fn plain_requests_are_read() {
        let request = read("GET /a?b HTTP/1.1\r\nHost: x\r\nA: b c\r\n\r\n").unwrap();
        assert_eq!((request.method.as_str(), request.target.as_str()), ("GET", "/a?b"));
        assert_eq!(request.header("a"), Some("b c"));
        assert!(request.keep_alive && request.body.is_empty());
        assert_eq!(
            read("\r\nPUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc").unwrap().body,
            b"abc"
        );
        let chunked = "PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n00A\r\n0123456789\r\n0\r\n\r\n";
        assert_eq!(read(chunked).unwrap().body, b"abc0123456789");
    }

    #[test]
    fn keep_alive_is_what_the_version_and_the_header_say() {
        for (head, kept) in [
            ("GET / HTTP/1.1\r\nHost: x\r\nConnection: foo, Close\r\n\r\n", false),
            ("GET / HTTP/1.0\r\n\r\n", false),
            ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true),
        ] {
            assert_eq!(read(head).unwrap().keep_alive, kept, "{head}");
        }
    }

    #[test]
    fn what_two_readers_could_understand_in_two_ways_is_refused() {
        let with = |headers: &str| format!("PUT / HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\nabc");
        for (sent, status) in [
            (with("Content-Length: 3\r\nTransfer-Encoding: chunked"), "400"),
            (with("Content-Length: 3\r\nContent-Length: 3"), "400"),
            (with("Content-Length: 3, 3"), "400"),
            (with("Content-Length: +3"), "400"),
            (with("Content-Length: -1"), "400"),
            (with("Content-Length: 0x3"), "400"),
            (with("Content-Length: "), "400"),
            (with("Content-Length: 1001"), "413"),
            (with("Content-Length: 99999999999999999999999"), "413"),
            (with("Transfer-Encoding: identity"), "400"),
            (with("Transfer-Encoding: gzip, chunked"), "400"),
            (with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), "400"),
            (with("A: b\r\n Content-Length: 3"), "400"),
            (with("A : b"), "400"),
            (with(": b"), "400"),
            (with("A: b\nB: c"), "400"),
            (with("A: b\rB: c"), "400"),
            (with("A: b\0"), "400"),
            (with("A: b\u{e9}"), "400"),
            (with("Host: y"), "400"),
            ("GET / HTTP/1.1\r\n\r\n".into(), "400"),
            ("GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n".into(), "400"),
            ("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n".into(), "400"),
            ("GET /\u{e9} HTTP/1.1\r\nHost: x\r\n\r\n".into(), "400"),
            ("GET / x HTTP/1.1\r\nHost: x\r\n\r\n".into(), "505"),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), "505"),
            ("GET / HTTP/1.1\nHost: x\n\n".into(), "400"),
            ("PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(), "400"),
            (with("Expect: miracles"), "417"),
        ] {
            assert_eq!(read(&sent).map(|it| it.target), Err(status.to_owned()), "{sent:?}");
        }
    }

    #[test]
    fn chunks_are_read_to_the_letter() {
        let chunked =
            |body: &str| format!("PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        for (body, status) in [
            ("3;a=b\r\nabc\r\n0\r\n\r\n", "400"),
            ("3 \r\nabc\r\n0\r\n\r\n", "400"),
            ("+3\r\nabc\r\n0\r\n\r\n", "400"),
            ("\r\nabc\r\n0\r\n\r\n", "400"),
            ("000000003\r\nabc\r\n0\r\n\r\n", "400"),
            ("3\r\nabcd\r\n0\r\n\r\n", "400"),
            ("0\r\nTrailer: x\r\n\r\n", "400"),
            ("fffff\r\n", "413"),
            ("3\r\nab", "Gone"),
        ] {
            assert_eq!(read(&chunked(body)).map(|it| it.target), Err(status.to_owned()), "{body:?}");
        }
    }

    #[test]
    fn heads_are_bounded() {
        let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(HEAD_BYTES_MAX));
        let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(HEADERS_MAX));
        for sent in [long, many] {
            assert_eq!(read(&sent).map(|it| it.target), Err("431".to_owned()));
        }
    }

    #[test]
    fn what_follows_a_request_stays_for_the_next() {
        let sent =
            b"PUT /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\naGET /2 HTTP/1.1\r\nHost: x\r\n\r\n";
        let (mut buffer, mut peer) = (Buffer::default(), Peer { sent, step: 8_192, told: vec![] });
        assert_eq!(read_request(&mut buffer, &mut peer, &mut up_to(9)).unwrap().target, "/1");
        assert_eq!(read_request(&mut buffer, &mut peer, &mut up_to(9)).unwrap().target, "/2");
        assert!(buffer.is_empty());
    }

    #[test]
    fn continue_is_said_to_those_who_wait_for_it() {
        let head = b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n";
        let mut peer = Peer { sent: head, step: 8_192, told: vec![] };
        assert!(read_request(&mut Buffer::default(), &mut peer, &mut up_to(9)).is_err()); // no body follows
        assert_eq!(peer.told, b"HTTP/1.1 100 Continue\r\n\r\n");
    }
}
