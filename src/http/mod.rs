//! The front desk: HTTP in, a decision of `broker` out. A thread for each request.
//!
//! Not here: how bytes become requests (`gate`, `strict`), what an operation decides (`broker`).
//! This side of the broker speaks to PostgreSQL and to nobody else.
//!
//! Invariants
//! - 401 comes before everything but health and metrics.
//! - The catalog is served from memory: complete, or as it was when it last was.
//! - A panic in a request is a 500; the process lives.

mod actions;
mod auth;
mod call;
mod desk;
mod gate;
mod large;
mod page;
mod reply;
mod strict;
mod timed;
mod waiting;
mod webhook;

use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::ApiConfig;
use crate::event::Event;
use crate::metrics::Metrics;
use crate::osb::Id;
use crate::store::Store;

use call::{Call, Route};
use desk::Desk;
use gate::{Gate, GiveUp, Inside, KEY_HEADER, Limits, PEER_HEADER};
pub(crate) use page::serve_metrics;
use reply::Reply;

/// From the first byte of a request to its last.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two requests of a connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// What a request may take beside its waits.
const WORK_TIMEOUT: Duration = Duration::from_secs(5);
/// For the peer to take an answer.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Stack of a request's thread, in bytes.
const STACK_BYTES: usize = 256 * 1024;
/// Largest body, in bytes, of a request past the gate that still gets its refusal.
const FORGED_BODY_BYTES_MAX: usize = 64 * 1024;
/// Longest `X-Broker-API-Request-Identity` that is repeated, in bytes.
const IDENTITY_BYTES_MAX: usize = 255;

/// The running front desk.
pub(crate) struct Api {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// The door.
    gate: Arc<Gate>,
    /// What the requests share.
    desk: Arc<Desk>,
}

impl Api {
    /// Opens the door and starts serving. `give_up` is called when the process must be restarted.
    ///
    /// # Errors
    /// What stopped it, fit to be shown.
    pub(crate) fn start(
        store: Store,
        name_prefix: String,
        config: ApiConfig,
        ready: &Arc<Event>,
        stop: &Arc<Event>,
        metrics: &Arc<Metrics>,
        give_up: impl Fn(&str) + Send + Sync + 'static,
    ) -> Result<Api, String> {
        let wanted = SocketAddr::from((config.listen_address, config.port));
        let listener =
            TcpListener::bind(wanted).map_err(|err| format!("PORT: cannot listen on {wanted}: {err}"))?;
        let address = listener.local_addr().map_err(|err| err.to_string())?;
        let (inside, private) = Inside::open()?;
        let server = tiny_http::Server::from_listener(private, None).map_err(|err| err.to_string())?;
        let limits = Limits {
            connections_max: config.connections_max,
            per_address_max: config.connections_per_address_max,
            body_bytes_max: config.body_bytes_max,
            receive: RECEIVE_TIMEOUT,
            idle: IDLE_TIMEOUT,
            // a bind asks the database, waits, and asks again
            work: config.wait + store.call_timeout() * 2 + WORK_TIMEOUT,
            send: SEND_TIMEOUT,
        };
        let (key, give_up) = (inside.key.clone(), Arc::new(give_up) as Arc<GiveUp>);
        let desk = Arc::new(Desk::new(store, name_prefix, config, Arc::clone(ready), Arc::clone(metrics)));
        if desk.is_open() {
            log::warn!(
                "no BROKER_PASSWORD and no BROKER_TOKEN is set: everyone who reaches the port is let in"
            );
        }
        if desk.closes_actions() {
            log::info!(
                "actions need the password as well; region-api of Akkeris sends none: see ACTIONS_TOKEN"
            );
        }
        let gate = Gate::new(limits, inside, Arc::clone(stop), Arc::clone(&give_up), Arc::clone(metrics));
        let gate = Arc::new(gate);
        let with_desk = |run: fn(&Desk, &Event)| {
            let (desk, stop) = (Arc::clone(&desk), Arc::clone(stop));
            move || run(&desk, &stop)
        };
        let (door, server_desk) = (Arc::clone(&gate), Arc::clone(&desk));
        spawn("accept", move || door.accept(&listener))?;
        spawn("waiters", with_desk(Desk::watch_tasks))?;
        spawn("catalog", with_desk(Desk::keep_catalog))?;
        spawn("server", move || give_up(&serve(server, &server_desk, &key, &give_up)))?;
        Ok(Api { address, gate, desk })
    }

    /// Lets requests end, `limit` at most, after the process was told to.
    pub(crate) fn finish(&self, limit: Duration) {
        self.desk.stop_waiting();
        Gate::wake(self.address);
        self.gate.wait_until_empty(limit);
    }
}

/// Starts a thread that lives as long as the process.
fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let builder = std::thread::Builder::new().name(name.to_owned());
    builder.spawn(work).map(drop).map_err(|err| format!("no thread for {name}: {err}"))
}

/// Takes requests from tiny_http until it fails; says why. The server is never dropped: on a
/// socket without a path that panics.
fn serve(server: tiny_http::Server, desk: &Arc<Desk>, key: &str, give_up: &Arc<GiveUp>) -> String {
    let server = std::mem::ManuallyDrop::new(server);
    loop {
        match server.recv() {
            Ok(request) => {
                let (desk, key, give_up) = (Arc::clone(desk), key.to_owned(), Arc::clone(give_up));
                // Bounded by the gate: each connection has one request at a time.
                let answer = move || answer(&desk, &key, &*give_up, request);
                if let Err(err) = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(answer) {
                    log::error!("request dropped, no thread: cause={err}");
                }
            }
            Err(err) => return format!("the server behind the gate failed: {err}"),
        }
    }
}

/// Answers one request, if it came through the gate, and logs it.
fn answer(desk: &Desk, key: &str, give_up: &GiveUp, mut request: tiny_http::Request) {
    let header = |name: &'static str| {
        let found = request.headers().iter().find(|it| it.field.equiv(name));
        found.map(|it| it.value.as_str().to_owned())
    };
    if header(KEY_HEADER).as_deref() != Some(key) {
        log::warn!("request refused: it did not come through the gate");
        if request.body_length().is_some_and(|it| it > FORGED_BODY_BYTES_MAX) {
            // Dropped, it would make a buffer as large as the body was said to be, and abort the process
            // where there is no such memory (equal_reader.rs of tiny_http). Kept, it holds a thread.
            std::mem::forget(request);
            return give_up("somebody else announced a large body to the server behind the gate");
        }
        return respond(request, Reply::error(403, None, "forbidden"));
    }
    let (began, peer) = (Instant::now(), header(PEER_HEADER).unwrap_or_default());
    let headers = request.headers().iter();
    let headers =
        headers.map(|it| (it.field.as_str().as_str().to_ascii_lowercase(), it.value.as_str().to_owned()));
    let (headers, mut body) = (headers.collect(), Vec::new());
    if let Err(err) = request.as_reader().read_to_end(&mut body) {
        log::error!("request lost between gate and server: cause={err}");
        return respond(request, Reply::error(500, None, "internal error"));
    }
    let call = Call::new(request.method().as_str(), request.url(), headers, body);
    let mut reply = catch_unwind(AssertUnwindSafe(|| desk.decide(&call))).unwrap_or_else(|_| {
        log::error!("request panicked: method={} route={}", call.method, call.route.name());
        Reply::error(500, None, "internal error")
    });
    let identity = call.header("x-broker-api-request-identity").filter(|it| it.len() <= IDENTITY_BYTES_MAX);
    if let Some(identity) = identity {
        reply = reply.with_header("X-Broker-API-Request-Identity", identity);
    }
    let took = began.elapsed();
    desk.metrics.count_request(call.route.name(), &call.method, reply.status, took);
    log::log!(
        if matches!(call.route, Route::Healthz | Route::Readyz | Route::Metrics) {
            log::Level::Debug
        } else {
            log::Level::Info
        },
        "request answered: method={} route={} instance={:?} status={} took_ms={} peer={peer} identity={:?}",
        call.method,
        call.route.name(),
        call.route.instance().map_or("", Id::as_str),
        reply.status,
        took.as_millis(),
        identity.unwrap_or_default(),
    );
    respond(request, reply);
}

/// Sends an answer through tiny_http.
fn respond(request: tiny_http::Request, reply: Reply) {
    let mut response = tiny_http::Response::from_data(reply.body)
        .with_status_code(reply.status)
        .with_chunked_threshold(usize::MAX); // the gate reads it whole anyway
    let content_type = ("Content-Type", reply.content_type.to_owned());
    for (name, value) in std::iter::once(content_type).chain(reply.headers) {
        match tiny_http::Header::from_bytes(name, value) {
            Ok(header) => response.add_header(header),
            Err(()) => log::error!("header left out: name={name}"),
        }
    }
    if let Err(err) = request.respond(response) {
        log::debug!("answer not taken: cause={err}");
    }
}
