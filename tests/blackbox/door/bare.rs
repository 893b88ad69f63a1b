//! tiny_http as its documentation shows it, without a gate: what the attacks are tried on to see that they
//! hurt. It is a process of its own because some of them end it: this test program, started once more.

use std::io::Read;
use std::process::Command;
use std::sync::Arc;

use tiny_http::{Header, Request, Response, Server};

/// Set for the process that is to be the server: the number of its workers, 0 for a thread for each request.
const WORKERS: &str = "BARE_TINY_HTTP_WORKERS";
/// Largest body that is read, in bytes.
const BODY_BYTES_MAX: u64 = 1 << 20;
/// Size of the large answer, in bytes.
pub(super) const LARGE: usize = 1 << 20;

/// The command of a bare server.
pub(super) fn command(workers: usize) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "door::bare::serves_if_told_to", "--nocapture"]);
    command.env_clear().env(WORKERS, workers.to_string());
    command
}

/// No test: the server, in the process that [`command`] starts.
#[test]
fn serves_if_told_to() {
    let Ok(workers) = std::env::var(WORKERS) else { return };
    let workers: usize = workers.parse().unwrap();
    let server = Arc::new(Server::http("127.0.0.1:0").unwrap());
    eprintln!("listening: address={}", server.server_addr().to_ip().unwrap());
    let threads: Vec<_> = (0..workers.max(1))
        .map(|_| {
            let server = Arc::clone(&server);
            std::thread::spawn(move || serve(&server, workers == 0))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Answers requests, here or each on a thread of its own.
fn serve(server: &Server, thread_for_each: bool) {
    loop {
        match server.recv() {
            Ok(request) if thread_for_each => drop(std::thread::spawn(move || answer(request))),
            Ok(request) => answer(request),
            Err(err) => eprintln!("recv failed: {err}"),
        }
    }
}

/// Answers as a broker would: reads the bodies it wants, names what it answers.
fn answer(mut request: Request) {
    let mut body = Vec::new();
    let wants_body = request.method().as_str() == "PUT";
    let read =
        if wants_body { request.as_reader().take(BODY_BYTES_MAX).read_to_end(&mut body) } else { Ok(0) };
    let identity =
        request.headers().iter().find(|it| it.field.equiv("X-Broker-API-Request-Identity")).cloned();
    let (status, text) = match (read, request.url()) {
        (Err(_), _) => (400, Vec::new()),
        (Ok(_), "/panic") => panic!("as the request wants it"),
        (Ok(_), "/v2/catalog") => (200, vec![b' '; LARGE]),
        (Ok(_), path) => (200, format!("{} {path}", request.method()).into_bytes()),
    };
    let type_ = Header::from_bytes("Content-Type", "text/plain").unwrap();
    let mut response = Response::from_data(text).with_status_code(status).with_header(type_);
    if let Some(identity) = identity {
        response.add_header(identity);
    }
    if let Err(err) = request.respond(response.with_chunked_threshold(usize::MAX)) {
        eprintln!("answer not taken: {err}");
    }
}
