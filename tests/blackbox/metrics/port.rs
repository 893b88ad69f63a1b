//! The port for metrics alone: what it refuses, and that it is no way to hurt a worker.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::*;

/// Sends bytes by hand, and reads to the end of the connection.
fn exchange(address: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent = stream.write_all(bytes);
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer); // a reset after the answer is as good as an end
    assert!(sent.is_ok() || read.is_ok() || !answer.is_empty(), "{sent:?} {read:?}");
    String::from_utf8(answer).unwrap()
}

#[test]
fn it_serves_one_page_and_nothing_else() {
    let setup = with_port();
    let worker = setup.worker();
    let address = worker.wait_for_log("metrics: address=");
    let long = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "x".repeat(20_000));
    for (request, status) in [
        ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "200"),
        ("GET /metrics?a=b HTTP/1.1\r\nHost: x\r\n\r\n", "200"),
        ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "405"),
        ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx", "413"),
        ("GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", "413"),
        ("GET /v2/catalog HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        ("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        ("\0\0\0\0\r\n\r\n", "400"),
        ("GET /metrics\n\n", "400"),
        (&long, "431"),
    ] {
        // The places of those before may not be free yet; who finds none is closed without a word.
        let answer = eventually("there is a place", PATIENCE, || {
            Some(exchange(&address, request.as_bytes())).filter(|it| !it.is_empty())
        });
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:.60}: {answer}");
        assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
        assert_eq!(answer.contains("\r\nAllow: GET\r\n"), status == "405", "{answer}");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    }
    let slow = exchange(&address, b"GET /met");
    assert!(slow.starts_with("HTTP/1.1 408 "), "{slow}");
}

#[test]
fn connections_that_do_nothing_hold_up_no_worker_and_end() {
    let setup = with_port();
    let (api, worker) = (setup.api(&[]), setup.worker());
    let (metrics, address) = (metrics_of(&worker), worker.wait_for_log("metrics: address="));
    let threads = |page: &Page| page.value("process_threads", &[]).unwrap();
    let before = threads(&scrape(&metrics));
    let idle: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let count = std::fs::read_dir(format!("/proc/{}/task", worker.pid())).unwrap().count() as f64;
    assert!(count <= before + 8.0, "{count} threads, {before} before");
    api.provide("one", BASIC);
    api.remove("one", BASIC);
    let page = eventually("the page is there again", PATIENCE, || {
        let answer = metrics.try_send("GET", "/metrics", b"").ok()?;
        (answer.status == 200).then(|| Page::parse(&answer.text).unwrap())
    });
    assert!(threads(&page) <= before + 8.0);
    drop(idle);
    setup.check_nothing_left();
}

#[test]
fn a_taken_port_ends_the_process_with_a_reason() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    let port = taken.rsplit(':').next().unwrap();
    let setup = with_port().with("METRICS_PORT", port);
    for mut command in [setup.worker_command(), setup.api_command(&[])] {
        let mut process = Broker::start(command.env("PORT", "0"));
        let reason = process.wait_for_log("METRICS_PORT: ");
        assert!(reason.contains(&taken) && reason.contains("in use"), "{reason}");
        assert_eq!(process.exit_code(), Some(70));
    }
}
