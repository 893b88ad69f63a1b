//! The attacks. Each says what was wrong with the server, in words that the table of `rows` knows.
//!
//! Sources: RFC 9112; src/client.rs, src/request.rs, src/lib.rs and src/util of tiny_http 0.12.

use std::time::{Duration, Instant};

use super::target::Target;
use super::wire::{SOON, Wire, get, get_as, identity};
use super::{ATTACKER, bare};

/// What an attack found wrong.
pub(super) type Found = Result<(), String>;

/// Connections of one attack, opened one after the other.
fn connections(target: &Target, count: usize) -> Result<Vec<Wire>, String> {
    (0..count).map(|number| target.connect().map_err(|err| format!("connection {number}: {err}"))).collect()
}

/// Fails when the server does not answer a stranger for as long as its workers may take to meet the attack.
fn stays_up(target: &Target, time: Duration) -> Found {
    let deadline = Instant::now() + time;
    while Instant::now() < deadline {
        target.is_up()?;
    }
    Ok(())
}

/// Ordinary clients that connect at about the same time and keep their connections. tiny_http counts a
/// waiting thread for each of them until it wakes (util/task_pool.rs), so some have none.
pub(super) fn burst_of_clients(target: &Target) -> Found {
    for count in [64, 128, 128, 128] {
        let mut clients = connections(target, count)?;
        for client in &mut clients {
            client.send(get("/healthz")).map_err(|err| err.to_string())?;
        }
        let deadline = Instant::now() + SOON;
        let answered = clients.iter_mut().filter_map(|it| {
            let left = deadline.saturating_duration_since(Instant::now());
            it.answer(left.max(Duration::from_millis(1))).ok().filter(|answer| answer.status == 200)
        });
        let answered = answered.count();
        if answered < count {
            return Err(format!("starved: {answered} of {count} were answered"));
        }
    }
    Ok(())
}

/// Bodies that are announced and do not come. tiny_http makes a buffer for what was not read
/// (util/equal_reader.rs, `drop`).
pub(super) fn announced_body(target: &Target) -> Found {
    for length in ["10000000000", "1000000000000", "18446744073709551615"] {
        let mut client = target.connect().map_err(|err| err.to_string())?;
        let head = format!("POST /healthz HTTP/1.1\r\nHost: door\r\nContent-Length: {length}\r\n\r\n");
        client.send(head + &"a".repeat(100)).map_err(|err| err.to_string())?;
        client.finish().map_err(|err| err.to_string())?;
        drop(client.rest(SOON)); // what it says is another test's; here it must live
        target.is_up().map_err(|err| format!("{length} bytes announced: {err}"))?;
    }
    target.has_not_panicked()
}

/// The first line of HTTP/2, from clients that go away. tiny_http's answer waits for itself
/// (client.rs, `next`).
pub(super) fn preface_of_http_2(target: &Target) -> Found {
    for client in &mut connections(target, 200)? {
        client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").map_err(|err| err.to_string())?;
    }
    target.is_up()
}

/// Clients that reset the connection at once. tiny_http unwraps the address of a peer that is gone
/// (client.rs, `read`).
pub(super) fn reset_at_once(target: &Target) -> Found {
    for _ in 0..300 {
        let mut client = target.connect().map_err(|err| err.to_string())?;
        client.send(get("/healthz")).and_then(|()| client.reset()).map_err(|err| err.to_string())?;
    }
    let up = target.is_up();
    target.has_not_panicked()?; // which may also be why it is not up
    up
}

/// More connections than there are descriptors, held and then let go. tiny_http ends its loop at the first
/// error of accept (lib.rs), or panics where it duplicates the descriptor (util/refined_tcp_stream.rs).
pub(super) fn out_of_descriptors(target: &Target) -> Found {
    let mut clients = Vec::new();
    for _ in 0..200 {
        if let Ok(mut client) = target.connect() {
            drop(client.send("GET /healthz HTTP/1.1\r\n")); // it may have been sent away
            clients.push(client);
        }
    }
    drop(clients);
    let began = Instant::now();
    while let Err(err) = target.is_up() {
        if began.elapsed() > SOON {
            let (panicked, log) = (target.has_not_panicked().err(), target.process.log());
            return Err(format!("{err}; {panicked:?}; last words: {:?}", log.lines().last()));
        }
        std::thread::sleep(Duration::from_millis(50)); // between looks
    }
    target.has_not_panicked()
}

/// Clients that send half a head and wait. tiny_http knows no deadline.
pub(super) fn slow_heads(target: &Target) -> Found {
    let before = target.level();
    let mut clients = connections(target, 500)?;
    for client in &mut clients {
        drop(client.send("GET /healthz HTTP/1.1\r\n")); // it may have been sent away
    }
    let deadline = Instant::now() + Duration::from_secs(12); // 10 s for a request to arrive, then a word
    for (number, client) in clients.iter_mut().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        if client.rest(left).is_err_and(|err| err.contains("nothing more came in time")) {
            return Err(format!(
                "never closed: {number} of 500 were; {:?}, before {before:?}",
                target.level()
            ));
        }
    }
    target.is_up()
}

/// A header line of many megabytes, and headers without end. tiny_http keeps all of it (client.rs, `read`).
pub(super) fn endless_head(target: &Target) -> Found {
    for (what, piece, count) in [("line", "a".repeat(1 << 20), 24), ("list", "A: b\r\n".repeat(50_000), 8)] {
        target.forget_peak()?;
        let before = target.memory("VmRSS");
        let mut client = target.connect().map_err(|err| err.to_string())?;
        client.send("GET /healthz HTTP/1.1\r\nHost: door\r\nX: ").map_err(|err| err.to_string())?;
        let sent = (0..count).try_for_each(|_| client.send(&piece)).and_then(|()| client.send("\r\n\r\n"));
        let answered = client.answer(SOON).map(|it| it.status);
        let grown = target.memory("VmHWM").saturating_sub(before);
        if grown > 8 {
            return Err(format!("head kept: {what}, {grown} MiB more, sent {sent:?}, answer {answered:?}"));
        }
    }
    target.is_up()
}

/// Requests one after the other from a client that never reads. tiny_http queues them all, and its workers
/// wait for their turn to write.
pub(super) fn pipeline_unread(target: &Target) -> Found {
    let before = target.memory("VmRSS");
    let mut client = Wire::open_narrow(target.address, ATTACKER).map_err(|err| err.to_string())?;
    client.stream.set_write_timeout(Some(Duration::from_secs(1))).map_err(|err| err.to_string())?;
    let hundred = get("/healthz").repeat(100);
    let sent = (0..1_000).take_while(|_| client.send(&hundred).is_ok()).count() * 100;
    stays_up(target, SOON).map_err(|err| format!("{sent} requests sent and no answer read: {err}"))?;
    let grown = target.memory("VmRSS").saturating_sub(before);
    if grown > 8 { Err(format!("requests kept: {grown} MiB more")) } else { Ok(()) }
}

/// As many clients as there are workers, asking for more than the system keeps for a peer, and not reading it.
pub(super) fn answers_unread(target: &Target) -> Found {
    let mut clients = Vec::new();
    for number in 0..4 {
        let mut client = Wire::open_narrow(target.address, ATTACKER).map_err(|err| err.to_string())?;
        let request = get_as("/v2/catalog", &number.to_string());
        client.send(request.repeat(8)).map_err(|err| err.to_string())?;
        clients.push(client);
    }
    stays_up(target, SOON).map_err(|err| format!("4 clients do not read: {err}"))
}

/// As many clients as there are workers, whose bodies do not come to their end.
pub(super) fn bodies_unfinished(target: &Target) -> Found {
    let mut clients = connections(target, 4)?;
    for client in &mut clients {
        let head = "PUT /healthz HTTP/1.1\r\nHost: door\r\nContent-Length: 2000\r\n\r\nabc";
        client.send(head).map_err(|err| err.to_string())?;
    }
    target.is_up().map_err(|err| format!("4 bodies do not end: {err}"))
}

/// A body that nobody reads, made to look like a request (RFC 9112, 7.1 and 11.2). tiny_http reads on behind
/// the head (request.rs, util/fused_reader.rs).
pub(super) fn hidden_request(target: &Target) -> Found {
    let chunk = "X-Broker-API-Request-Identity: hidden\r\nHost: door\r\n\r\n";
    for (what, framing, body) in [
        (
            "in a chunk's size",
            "Transfer-Encoding: chunked",
            format!("{:x};a /healthz HTTP/1.1\r\n{chunk}\r\n0\r\n\r\n", chunk.len()),
        ),
        ("behind a length that is none", "Content-Length: 5, 5", get_as("/healthz", "hidden")),
    ] {
        let mut client = target.connect().map_err(|err| err.to_string())?;
        let head = format!("GET /healthz HTTP/1.1\r\nHost: door\r\n{framing}\r\n\r\n");
        client.send(head + &body).map_err(|err| err.to_string())?;
        client.finish().map_err(|err| err.to_string())?;
        while let Ok(answer) = client.answer(SOON) {
            if identity(&answer) == "hidden" {
                return Err(format!("the hidden request ran: {what}"));
            }
        }
    }
    target.is_up()
}

/// A client that resets the connection in the middle of a large answer.
pub(super) fn reset_in_answer(target: &Target) -> Found {
    for _ in 0..10 {
        let mut client = target.connect().map_err(|err| err.to_string())?;
        client.send(get_as("/v2/catalog", "reset")).map_err(|err| err.to_string())?;
        client.stream.set_read_timeout(Some(SOON)).map_err(|err| err.to_string())?;
        client.stream.peek(&mut [0; 1]).map_err(|err| format!("no answer begins: {err}"))?;
        client.reset().map_err(|err| err.to_string())?;
    }
    target.has_not_panicked()?;
    target.is_up()
}

/// The large answer is as large as it should be, on both servers.
pub(super) fn answer_is_large(target: &Target) -> Found {
    let mut client = target.connect().map_err(|err| err.to_string())?;
    client.send(get_as("/v2/catalog", "large")).map_err(|err| err.to_string())?;
    let size = client.answer(SOON)?.body.len();
    if size >= bare::LARGE { Ok(()) } else { Err(format!("the large answer has {size} bytes")) }
}
