//! HTTP/1.1 as far as a relay needs it: requests kept as they came, answers read whole.
//!
//! Source: RFC 9112, sections 2, 6 and 7.

use std::io::{self, BufRead, Read, Write};

/// Longest head of a message, and longest line of one, in bytes.
const HEAD_BYTES_MAX: u64 = 64 * 1024;
/// Longest body, in bytes: a part of an upload has 8 MiB.
const BODY_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A request: its head and body byte for byte, since signatures cover them.
pub(crate) struct Request {
    /// From the request line to the empty line.
    pub(crate) head: String,
    /// As it was sent, chunks and all.
    pub(crate) body: Vec<u8>,
}

/// An answer, with its body freed of chunks.
#[derive(Clone)]
pub(crate) struct Answer {
    /// HTTP status.
    pub(crate) status: u16,
    /// All but those that say how the message is framed.
    pub(crate) headers: Vec<(String, String)>,
    /// The body.
    pub(crate) body: Vec<u8>,
    /// What `Content-Length` says where there is no body: answers to HEAD.
    length: Option<u64>,
}

impl Request {
    /// The next request of a connection; `None` at its end. Tells a peer that waits for it to go on.
    pub(crate) fn read(stream: &mut (impl BufRead + Write)) -> io::Result<Option<Request>> {
        let Some(mut head) = read_head(stream)? else {
            return Ok(None);
        };
        if find_header(&head, "expect").is_some() {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            head = without_header(&head, "expect");
        }
        let length = find_header(&head, "content-length").and_then(|it| it.parse().ok()).unwrap_or(0);
        let body = match find_header(&head, "transfer-encoding") {
            Some(_) => read_chunks(stream)?.0,
            None => read_exactly(stream, length)?,
        };
        Ok(Some(Request { head, body }))
    }

    /// GET, PUT and so on.
    pub(crate) fn method(&self) -> &str {
        self.head.split(' ').next().unwrap_or_default()
    }

    /// Path and query as they were sent.
    pub(crate) fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        find_header(&self.head, name)
    }

    /// Writes the request with headers that no signature covers, and without those of the connection.
    pub(crate) fn write(&self, stream: &mut impl Write, more: &[(&str, &str)]) -> io::Result<()> {
        let mut head = without_header(&self.head, "connection");
        head.truncate(head.len() - 2); // the empty line
        for (name, value) in more {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("Connection: close\r\n\r\n");
        stream.write_all(&[head.as_bytes(), &self.body].concat())
    }
}

impl Answer {
    /// One of our own.
    pub(crate) fn new(status: u16, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Answer {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Answer { status, headers: headers.collect(), body: body.into(), length: None }
    }

    /// The final answer to a request with `method`.
    pub(crate) fn read(stream: &mut impl BufRead, method: &str) -> io::Result<Answer> {
        let mut head = String::new();
        let mut status = 100;
        while (100..200).contains(&status) {
            head = read_head(stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let word = head.split(' ').nth(1).unwrap_or_default();
            status = word.parse().map_err(|_| io::Error::other("an answer without a status"))?;
        }
        let length = find_header(&head, "content-length").and_then(|it| it.parse().ok());
        let is_empty = method == "HEAD" || matches!(status, 204 | 304);
        let body = match (is_empty, find_header(&head, "transfer-encoding"), length) {
            (true, _, _) => Vec::new(),
            (false, Some(_), _) => read_chunks(stream)?.1,
            (false, None, Some(length)) => read_exactly(stream, length)?,
            (false, None, None) => {
                let mut body = Vec::new();
                stream.take(BODY_BYTES_MAX).read_to_end(&mut body)?;
                body
            }
        };
        let framing = ["connection", "keep-alive", "transfer-encoding", "content-length"];
        let headers = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
        let headers = headers.filter(|(name, _)| !framing.contains(&name.to_ascii_lowercase().as_str()));
        Ok(Answer { status, headers: headers.collect(), body, length: length.filter(|_| method == "HEAD") })
    }

    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The answer to a request with `method`, as it is sent to a peer that may send more.
    pub(crate) fn to_bytes(&self, method: &str) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} Relayed\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !matches!(self.status, 204 | 304) {
            let length = self.length.unwrap_or(self.body.len() as u64);
            head.push_str(&format!("Content-Length: {length}\r\n"));
        }
        let body: &[u8] = if method == "HEAD" { b"" } else { &self.body };
        [head.as_bytes(), b"\r\n", body].concat()
    }
}

/// A line with its end.
fn read_line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    stream.take(HEAD_BYTES_MAX).read_line(&mut line)?;
    if line.ends_with("\r\n") { Ok(line) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Everything to the empty line; `None` when the peer has left before it began.
fn read_head(stream: &mut impl BufRead) -> io::Result<Option<String>> {
    if stream.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        head.push_str(&read_line(stream)?);
        if head.len() as u64 > HEAD_BYTES_MAX {
            return Err(io::Error::other("a head without end"));
        }
    }
    Ok(Some(head))
}

/// So many bytes.
fn read_exactly(stream: &mut impl Read, length: u64) -> io::Result<Vec<u8>> {
    if length > BODY_BYTES_MAX {
        return Err(io::Error::other("a body too large for a test"));
    }
    let mut body = Vec::new();
    stream.take(length).read_to_end(&mut body)?;
    if body.len() as u64 == length { Ok(body) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// A chunked body: as it was sent, and what it says.
fn read_chunks(stream: &mut impl BufRead) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let (mut raw, mut body) = (Vec::new(), Vec::new());
    loop {
        let line = read_line(stream)?;
        let size = line.trim_end().split(';').next().unwrap_or_default();
        let size = u64::from_str_radix(size, 16).map_err(|_| io::Error::other("a chunk without size"))?;
        raw.extend_from_slice(line.as_bytes());
        if size == 0 {
            break;
        }
        let chunk = read_exactly(stream, size)?;
        body.extend_from_slice(&chunk);
        raw.extend_from_slice(&chunk);
        raw.extend_from_slice(read_line(stream)?.as_bytes());
    }
    loop {
        let line = read_line(stream)?;
        raw.extend_from_slice(line.as_bytes());
        if line == "\r\n" {
            return Ok((raw, body));
        }
    }
}

/// A header's value in a head.
fn find_header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let lines = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
}

/// A head without one of its headers.
fn without_header(head: &str, name: &str) -> String {
    let is_kept = |line: &&str| !line.split_once(':').is_some_and(|(key, _)| key.eq_ignore_ascii_case(name));
    head.split_inclusive("\r\n").filter(is_kept).collect()
}
