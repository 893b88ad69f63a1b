//! What must be refused, and what must not, over the wire. Which byte makes the difference is tested where it
//! is decided, in `src/http/strict.rs`.
//!
//! Sources: RFC 9112 sections 2.2, 3, 5, 6, 7, 9.3, 9.6; RFC 9110 sections 9.3.2 and 10.1.1.

use super::attacks::Found;
use super::target::Target;
use super::wire::{SOON, get, get_as, identity};

/// Sends each text and counts those that do not get their status, as an answer that can be read, says
/// that the connection ends, and is the last.
fn all_refused(target: &Target, sent: &[(&str, u16, Vec<u8>)]) -> Found {
    let refusal = |status: u16, bytes: &[u8]| -> Found {
        let mut client = target.connect().map_err(|err| err.to_string())?;
        client.send(bytes).map_err(|err| err.to_string())?;
        client.finish().map_err(|err| err.to_string())?;
        let answer = client.answer(SOON)?;
        if answer.status != status {
            return Err(format!("{}", answer.status));
        }
        match (answer.header("connection"), client.rest(SOON)?.as_str()) {
            (Some("close"), "") => Ok(()),
            (header, rest) => Err(format!("Connection is {header:?}, and {rest:?} follows")),
        }
    };
    let wrong: Vec<String> = sent
        .iter()
        .filter_map(|(what, status, bytes)| refusal(*status, bytes).err().map(|err| format!("{what}: {err}")))
        .collect();
    target.is_up()?;
    if wrong.is_empty() {
        return Ok(());
    }
    Err(format!("{} of {} not refused as they should be: {}", wrong.len(), sent.len(), wrong.join("; ")))
}

/// A request with these headers and a body of five bytes that is a request's beginning.
fn with(headers: &str) -> Vec<u8> {
    format!("PUT /healthz HTTP/1.1\r\nHost: door\r\n{headers}\r\n\r\nGET /").into_bytes()
}

/// Two ways to know where a body ends, or none that is clear.
pub(super) fn unclear_length(target: &Target) -> Found {
    let vectors = [
        ("both", 400, with("Content-Length: 5\r\nTransfer-Encoding: chunked")),
        ("both, turned", 400, with("Transfer-Encoding: chunked\r\nContent-Length: 5")),
        ("twice", 400, with("Content-Length: 5\r\nContent-Length: 5")),
        ("twice, different", 400, with("Content-Length: 5\r\nContent-Length: 6")),
        ("a list", 400, with("Content-Length: 5, 5")),
        ("a sign", 400, with("Content-Length: +5")),
        ("negative", 400, with("Content-Length: -1")),
        ("a word", 400, with("Content-Length: abc")),
        ("identity", 400, with("Transfer-Encoding: identity")),
        ("xchunked", 400, with("Transfer-Encoding: xchunked")),
        ("chunked twice", 400, with("Transfer-Encoding: chunked, chunked")),
    ];
    all_refused(target, &vectors)
}

/// More than is taken.
pub(super) fn too_large(target: &Target) -> Found {
    let path = format!("GET /{} HTTP/1.1\r\nHost: door\r\n\r\n", "a".repeat(16 * 1024));
    let vectors = [
        ("one byte more than 1 MiB", 413, with("Content-Length: 1048577")),
        ("2^64", 413, with("Content-Length: 18446744073709551616")),
        ("a chunk of 1 MiB and one", 413, with("Transfer-Encoding: chunked\r\n\r\n100001")),
        ("a path of 16 KiB", 431, path.into_bytes()),
        ("65 headers", 431, with(&["A: b"; 64].join("\r\n"))),
    ];
    all_refused(target, &vectors)
}

/// A line that begins with a space continues the line before (RFC 9112, 5.2), or is a header.
pub(super) fn folded_header(target: &Target) -> Found {
    all_refused(target, &[("obs-fold", 400, with("A: b\r\n Content-Length: 5"))])
}

/// Heads that only some readers understand.
pub(super) fn crooked_heads(target: &Target) -> Found {
    let vectors = [
        ("bare LF ends lines", 400, b"GET /healthz HTTP/1.1\nHost: door\n\n".to_vec()),
        ("LF in a value", 400, with("A: b\nB: c")),
        ("CR in a value", 400, with("A: b\rB: c")),
        ("NUL in a value", 400, with("A: b\0c")),
        ("no name", 400, with(": b")),
        ("no Host", 400, b"GET /healthz HTTP/1.1\r\n\r\n".to_vec()),
        ("two Hosts", 400, with("Host: other")),
        ("absolute URI", 400, b"GET http://door/healthz HTTP/1.1\r\nHost: door\r\n\r\n".to_vec()),
        ("leading space", 400, b" GET /healthz HTTP/1.1\r\nHost: door\r\n\r\n".to_vec()),
    ];
    all_refused(target, &vectors)
}

/// Versions that are not spoken, and a line of four words, whose third is not the last.
pub(super) fn other_versions(target: &Target) -> Found {
    let vectors = [
        ("four words", 400, b"GET /healthz HTTP/1.1 HTTP/1.1\r\nHost: door\r\n\r\n".to_vec()),
        ("HTTP/0.9", 505, b"GET /healthz HTTP/0.9\r\nHost: door\r\n\r\n".to_vec()),
    ];
    all_refused(target, &vectors)
}

/// Bytes that are not ASCII get an answer and not just an end.
pub(super) fn not_ascii(target: &Target) -> Found {
    let vectors = [
        ("path", 400, "GET /h\u{e9} HTTP/1.1\r\nHost: door\r\n\r\n".as_bytes().to_vec()),
        ("header", 400, with("A: b\u{e9}")),
    ];
    all_refused(target, &vectors)
}

/// A space before the colon could hide a header from one of two readers (RFC 9112, 5.1).
pub(super) fn space_before_colon(target: &Target) -> Found {
    all_refused(
        target,
        &[("space", 400, with("Content-Length : 5")), ("tab", 400, with("Content-Length\t: 5"))],
    )
}

/// Extensions and trailers of chunks.
pub(super) fn chunks_with_more(target: &Target) -> Found {
    let vectors = [
        ("extension", 400, with("Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nabcde\r\n0\r\n")),
        ("trailer", 400, with("Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\nA: b\r\n")),
    ];
    all_refused(target, &vectors)
}

/// Requests that were sent without waiting are answered in their order.
pub(super) fn pipeline_in_order(target: &Target) -> Found {
    let mut client = target.connect().map_err(|err| err.to_string())?;
    let all: Vec<String> = (0..50).map(|number| number.to_string()).collect();
    client
        .send(all.iter().map(|it| get_as("/healthz", it)).collect::<String>())
        .map_err(|err| err.to_string())?;
    for sent in &all {
        let answer = client.answer(SOON)?;
        if identity(&answer) != sent {
            return Err(format!("{} instead of {sent}", identity(&answer)));
        }
    }
    Ok(())
}

/// HEAD has GET's head and no body; what follows is the next answer.
pub(super) fn head_has_no_body(target: &Target) -> Found {
    let mut client = target.connect().map_err(|err| err.to_string())?;
    client
        .send(get_as("/healthz", "first").replacen("GET", "HEAD", 1) + &get_as("/healthz", "second"))
        .map_err(|err| err.to_string())?;
    let (first, second) = (client.answer_to_head(SOON)?, client.answer(SOON)?);
    if (identity(&first), identity(&second)) == ("first", "second") {
        return Ok(());
    }
    Err(format!("{} and {}", identity(&first), identity(&second)))
}

/// HTTP/1.0: one answer and the end, unless the client asks to go on.
pub(super) fn http_1_0(target: &Target) -> Found {
    let mut client = target.connect().map_err(|err| err.to_string())?;
    let request = |headers: &str| format!("GET /healthz HTTP/1.0\r\n{headers}\r\n");
    client.send(request("Connection: keep-alive\r\n")).map_err(|err| err.to_string())?;
    let first = client.answer(SOON)?;
    client.send(request("")).map_err(|err| err.to_string())?;
    let (second, rest) = (client.answer(SOON)?, client.rest(SOON)?);
    if (first.status, second.status, rest.as_str()) == (200, 200, "") {
        return Ok(());
    }
    Err(format!("{} {} {rest:?}", first.status, second.status))
}

/// A client that waits for leave to send its body gets it; an expectation that nobody knows is refused.
pub(super) fn expectations(target: &Target) -> Found {
    let mut client = target.connect().map_err(|err| err.to_string())?;
    let head = "PUT /healthz HTTP/1.1\r\nHost: door\r\nContent-Length: 5\r\n";
    client.send(format!("{head}Expect: 100-continue\r\n\r\n")).map_err(|err| err.to_string())?;
    let leave = client.answer(SOON)?;
    client.send("abcde".to_owned() + &get("/healthz")).map_err(|err| err.to_string())?;
    let (own, next) = (client.answer(SOON)?, client.answer(SOON)?);
    if leave.status != 100 || own.status == 100 || next.status != 200 {
        return Err(format!("{} {} {}", leave.status, own.status, next.status));
    }
    let mut client = target.connect().map_err(|err| err.to_string())?;
    client.send(format!("{head}Expect: miracles\r\n\r\n")).map_err(|err| err.to_string())?;
    match client.answer(SOON)?.status {
        417 => Ok(()),
        other => Err(format!("{other} to an expectation that is unknown")),
    }
}

/// A last request and its answer, which says that it is the last.
pub(super) fn last_answer_says_so(target: &Target) -> Found {
    let mut client = target.connect().map_err(|err| err.to_string())?;
    let last = get("/healthz").replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    client.send(get("/healthz") + &last).map_err(|err| err.to_string())?;
    let (first, second, rest) = (client.answer(SOON)?, client.answer(SOON)?, client.rest(SOON)?);
    match (first.header("connection"), second.header("connection"), rest.as_str()) {
        (Some("keep-alive") | None, Some("close"), "") => Ok(()),
        other => Err(format!("{other:?}")),
    }
}
