//! Calls go straight to whom they are for, whatever the environment says of proxies: one in between would see tenants'
//! keys, and could be sent where no webhook may go.

use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use super::*;

/// The names under which clients of HTTP look for a proxy.
const NAMES: [&str; 6] = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];

/// A port that counts who comes, and hangs up. It lives as long as the process.
fn trap() -> (u16, Arc<Mutex<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, callers) = (listener.local_addr().unwrap().port(), Arc::new(Mutex::new(0)));
    let counted = Arc::clone(&callers);
    std::thread::spawn(move || {
        for caller in listener.incoming() {
            *counted.lock().unwrap() += 1;
            drop(caller);
        }
    });
    (port, callers)
}

#[test]
fn no_call_takes_a_proxy() {
    let receiver = Receiver::start(&[Reaction::Answer(204)]);
    let (port, callers) = trap();
    let proxy = format!("http://127.0.0.1:{port}");
    let setup = NAMES.iter().fold(setup(&receiver), |setup, name| setup.with(name, &proxy));
    let (api, _worker) = (setup.api(&[]), setup.worker());
    // 201: AWS was reached too
    assert_eq!(provision(&api, "one", &receiver.query(PATH, SECRET)).status, 201);
    assert_eq!(end_of_notice(&setup, "one"), "finished: delivered");
    assert_eq!(receiver.received()[0].told(SECRET), told("succeeded", "available"));
    api.remove("one", BASIC);
    assert_eq!(*callers.lock().unwrap(), 0);
}
