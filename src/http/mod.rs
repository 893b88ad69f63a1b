//! The front desk: HTTP in, a decision of `broker` out. A thread for each request.
//!
//! Not here: how bytes become requests (`gate`, `strict`), what an operation decides (`broker`).
//! This side of the broker speaks to PostgreSQL and to nobody else.
//!
//! Invariants
//! - 401 comes before everything but health.
//! - The catalog is served from memory: complete, or as it was when it last was.
//! - A panic in a request is a 500; the process lives.

mod auth;
mod call;
mod gate;
mod reply;
mod strict;
mod waiting;

use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::broker::{self, Bound, BrokerError, CatalogQuery, Fresh, Habits, Outcome};
use crate::config::ApiConfig;
use crate::event::Event;
use crate::osb::{BindingResponse, Id};
use crate::store::{Store, StoreError, TaskState};

use auth::Auth;
use call::{Call, Route};
use gate::{Gate, Inside, KEY_HEADER, Limits, PEER_HEADER};
use reply::Reply;
use waiting::Waiters;

/// How often the catalog is read anew, so that edits of the tables show.
const CATALOG_INTERVAL: Duration = Duration::from_secs(5);
/// How soon it is tried again while there is none.
const CATALOG_RETRY: Duration = Duration::from_millis(500);
/// From the first byte of a request to its last.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two requests of a connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// What a request may take beside the wait for its task.
const WORK_TIMEOUT: Duration = Duration::from_secs(25);
/// For the peer to take an answer.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Stack of a request's thread, in bytes.
const STACK_BYTES: usize = 256 * 1024;
/// Longest `X-Broker-API-Request-Identity` that is repeated, in bytes.
const IDENTITY_BYTES_MAX: usize = 255;

/// The running front desk.
pub(crate) struct Api {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// The door.
    gate: Arc<Gate>,
    /// Those who wait.
    waiters: waiting::Shared,
}

/// What every request may use.
struct Desk {
    /// The database.
    store: Store,
    /// What the names of buckets begin with.
    name_prefix: String,
    /// The settings.
    config: ApiConfig,
    /// Where Akkeris and the specification part.
    habits: Habits,
    /// Who is let in.
    auth: Auth,
    /// The key that requests from the gate carry.
    key: String,
    /// Those who wait.
    waiters: waiting::Shared,
    /// The catalog as it goes out.
    catalog: RwLock<Option<Arc<Vec<u8>>>>,
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
        stop: &Arc<Event>,
        give_up: impl Fn(&str) + Send + 'static,
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
            work: config.wait + WORK_TIMEOUT,
            send: SEND_TIMEOUT,
        };
        let waiters = Arc::new(Waiters::default());
        let desk = Arc::new(Desk {
            name_prefix,
            habits: Habits {
                strict: config.strict_osb,
            },
            auth: Auth::new(&config),
            config,
            key: inside.key.clone(),
            waiters: Arc::clone(&waiters),
            catalog: RwLock::new(None),
            store,
        });
        if desk.auth.is_open() {
            log::warn!(
                "no BROKER_PASSWORD and no BROKER_TOKEN is set: everyone who reaches the port is let in"
            );
        }
        let gate = Arc::new(Gate::new(limits, inside, Arc::clone(stop)));
        let (door, watched, read) = (Arc::clone(&gate), Arc::clone(&desk), Arc::clone(&desk));
        let (watch_stop, read_stop) = (Arc::clone(stop), Arc::clone(stop));
        spawn("accept", move || door.accept(&listener))?;
        spawn("waiters", move || {
            watched.waiters.watch(&watched.store, &watch_stop)
        })?;
        spawn("catalog", move || read.keep_catalog(&read_stop))?;
        spawn("server", move || give_up(&serve(server, &desk)))?;
        Ok(Api {
            address,
            gate,
            waiters,
        })
    }

    /// Lets requests end, `limit` at most, after the process was told to.
    pub(crate) fn finish(&self, limit: Duration) {
        self.waiters.stop();
        Gate::wake(self.address);
        let deadline = Instant::now() + limit;
        while self.gate.connections() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20)); // bounded: the process ends after this
        }
    }
}

/// Starts a thread that lives as long as the process.
fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let builder = std::thread::Builder::new().name(name.to_owned());
    builder
        .spawn(work)
        .map(drop)
        .map_err(|err| format!("no thread for {name}: {err}"))
}

/// Takes requests from tiny_http until it fails; says why. The server is never dropped: on a
/// socket without a path that panics.
fn serve(server: tiny_http::Server, desk: &Arc<Desk>) -> String {
    let server = std::mem::ManuallyDrop::new(server);
    loop {
        match server.recv() {
            Ok(request) => {
                let desk = Arc::clone(desk);
                // Bounded by the gate: each connection has one request at a time.
                let answer = move || desk.answer(request);
                if let Err(err) = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(answer) {
                    log::error!("request dropped, no thread: cause={err}");
                }
            }
            Err(err) => return format!("the server behind the gate failed: {err}"),
        }
    }
}

impl Desk {
    /// Answers one request and logs it.
    fn answer(&self, mut request: tiny_http::Request) {
        let header = |name: &'static str| {
            let found = request.headers().iter().find(|it| it.field.equiv(name));
            found.map(|it| it.value.as_str().to_owned())
        };
        if header(KEY_HEADER).as_deref() != Some(self.key.as_str()) {
            log::warn!("request refused: it did not come through the gate");
            return respond(request, Reply::error(403, None, "forbidden"));
        }
        let (began, peer) = (Instant::now(), header(PEER_HEADER).unwrap_or_default());
        let headers = request.headers().iter();
        let headers = headers.map(|it| {
            (
                it.field.as_str().as_str().to_ascii_lowercase(),
                it.value.as_str().to_owned(),
            )
        });
        let (headers, mut body) = (headers.collect(), Vec::new());
        if let Err(err) = request.as_reader().read_to_end(&mut body) {
            log::error!("request lost between gate and server: cause={err}");
            return respond(request, Reply::error(500, None, "internal error"));
        }
        let call = Call::new(request.method().as_str(), request.url(), headers, body);
        let mut reply = catch_unwind(AssertUnwindSafe(|| self.decide(&call))).unwrap_or_else(|_| {
            log::error!(
                "request panicked: method={} route={}",
                call.method,
                call.route.name()
            );
            Reply::error(500, None, "internal error")
        });
        let identity = call
            .header("x-broker-api-request-identity")
            .filter(|it| it.len() <= IDENTITY_BYTES_MAX);
        if let Some(identity) = identity {
            reply = reply.with_header("X-Broker-API-Request-Identity", identity);
        }
        log::log!(
            if matches!(call.route, Route::Healthz | Route::Readyz) {
                log::Level::Debug
            } else {
                log::Level::Info
            },
            "request answered: method={} route={} instance={:?} status={} took_ms={} peer={peer} identity={:?}",
            call.method,
            call.route.name(),
            call.route.instance().map_or("", Id::as_str),
            reply.status,
            began.elapsed().as_millis(),
            identity.unwrap_or_default(),
        );
        respond(request, reply);
    }

    /// Health, then authentication, then the version, then everything else.
    fn decide(&self, call: &Call) -> Reply {
        match &call.route {
            Route::Healthz => return only("GET", call, || Reply::text(200, "OK")),
            Route::Readyz => return only("GET", call, || self.readyz()),
            _ if !self.auth.admits(call.header("authorization")) => {
                return Reply::error(401, None, "authentication is required").with_header(
                    "WWW-Authenticate",
                    "Basic realm=\"servicebroker\", charset=\"UTF-8\"",
                );
            }
            _ => {}
        }
        if let Err(reply) = self.check_version(call) {
            return reply;
        }
        self.route(call).unwrap_or_else(Reply::from)
    }

    /// One line for each endpoint.
    fn route(&self, call: &Call) -> Result<Reply, BrokerError> {
        match (&call.route, call.method.as_str()) {
            (Route::Catalog, "GET") => Ok(self.get_catalog()),
            (Route::Instance(id), "PUT") => self.put_service_instance(id, call),
            (Route::Instance(id), "DELETE") => self.delete_service_instance(id, call),
            (Route::LastOperation(id), "GET") => self.get_last_operation(id, call),
            (Route::Binding(id, binding), "PUT") => self.put_service_binding(id, binding, call),
            (Route::Binding(id, binding), "GET") => self.get_service_binding(id, binding),
            (Route::Binding(id, binding), "DELETE") => self.delete_service_binding(id, binding, call),
            (Route::BadId(reason), _) => Err(BrokerError::BadRequest(reason)),
            (Route::Unknown, _) => Ok(Reply::error(404, None, "no such path")),
            (Route::Instance(_), _) => Ok(method_not_allowed("PUT, DELETE")),
            (Route::Binding(..), _) => Ok(method_not_allowed("PUT, GET, DELETE")),
            (Route::Catalog | Route::LastOperation(_) | Route::Healthz | Route::Readyz, _) => {
                Ok(method_not_allowed("GET"))
            }
        }
    }

    /// `X-Broker-API-Version` (OSB 2.17, "API Version Header"): 2.13 or any later 2.x. Akkeris'
    /// own calls may lack it.
    fn check_version(&self, call: &Call) -> Result<(), Reply> {
        match call.header("x-broker-api-version") {
            None if self.habits.strict => Err(Reply::error(400, None, "X-Broker-API-Version is missing")),
            None => Ok(()),
            Some(version) if is_supported(version) => Ok(()),
            Some(_) => Err(Reply::error(
                412,
                None,
                "X-Broker-API-Version must be 2.13 or a later 2.x",
            )),
        }
    }

    /// `GET /readyz`: whether requests that need the database can be served now.
    fn readyz(&self) -> Reply {
        let asked = self.store.transaction(|tx| tx.ping());
        match asked {
            Ok(()) if self.catalog().is_some() => Reply::text(200, "OK"),
            Ok(()) => Reply::text(503, "the catalog was not read yet"),
            Err(err) => {
                log::debug!("not ready: cause={err}");
                Reply::text(503, "the database is not available")
            }
        }
    }

    /// `GET /v2/catalog` (OSB 2.17, "Catalog Management").
    fn get_catalog(&self) -> Reply {
        match self.catalog() {
            Some(bytes) => Reply::of_bytes(200, bytes.to_vec()),
            None => Reply::from(BrokerError::Store(StoreError::Busy)),
        }
    }

    /// `PUT /v2/service_instances/{instance_id}` (OSB 2.17, "Provisioning").
    fn put_service_instance(&self, id: &Id, call: &Call) -> Result<Reply, BrokerError> {
        let request = self.body(call)?;
        let (key, accepts_incomplete) = (id.clone(), call.accepts_incomplete());
        let fresh = Fresh::draw(&self.name_prefix)?;
        let names = fresh.clone();
        let outcome = self.await_task(&fresh, move |store| {
            store.transaction(move |tx| broker::provision(tx, &key, &request, accepts_incomplete, &names))
        })?;
        Ok(match outcome {
            Waited::Now(Outcome::Enqueued { .. }) => Reply::empty(201),
            Waited::Now(Outcome::InProgress { operation }) | Waited::Later(operation) => {
                Reply::accepted(&operation)
            }
            Waited::Now(Outcome::Done) => Reply::empty(200),
        })
    }

    /// `DELETE /v2/service_instances/{instance_id}` (OSB 2.17, "Deprovisioning").
    fn delete_service_instance(&self, id: &Id, call: &Call) -> Result<Reply, BrokerError> {
        let (key, query, accepts_incomplete) =
            (id.clone(), self.catalog_query(call), call.accepts_incomplete());
        let fresh = Fresh::draw(&self.name_prefix)?;
        let names = fresh.clone();
        let outcome = self.await_task(&fresh, move |store| {
            store.transaction(move |tx| broker::deprovision(tx, &key, &query, accepts_incomplete, &names))
        })?;
        Ok(match outcome {
            Waited::Now(Outcome::Enqueued { .. } | Outcome::Done) => Reply::empty(200),
            Waited::Now(Outcome::InProgress { operation }) | Waited::Later(operation) => {
                Reply::accepted(&operation)
            }
        })
    }

    /// `GET …/last_operation` (OSB 2.17, "Polling Last Operation for Service Instances").
    fn get_last_operation(&self, id: &Id, call: &Call) -> Result<Reply, BrokerError> {
        let (id, habits) = (id.clone(), self.habits);
        let operation = call
            .query("operation")
            .filter(|it| !it.is_empty())
            .map(str::to_owned);
        if operation.as_deref().is_some_and(|it| it.contains('\0')) {
            return Err(BrokerError::BadRequest("operation holds a NUL"));
        }
        let answer = self
            .store
            .transaction(move |tx| broker::last_operation(tx, &id, operation.as_deref(), habits))?;
        Ok(Reply::json(200, &answer))
    }

    /// `PUT …/service_bindings/{binding_id}` (OSB 2.17, "Binding"). A bind that comes while the
    /// instance is being made waits for it: Akkeris binds once, at once, and never again.
    fn put_service_binding(&self, id: &Id, binding: &Id, call: &Call) -> Result<Reply, BrokerError> {
        let request = Arc::new(self.body(call)?);
        let bind = || {
            let (id, binding, request) = (id.clone(), binding.clone(), Arc::clone(&request));
            self.store
                .transaction(move |tx| broker::bind(tx, &id, &binding, &request))
        };
        let mut bound = bind()?;
        if let Bound::After { operation } = &bound
            && let Some(ticket) = self.waiters.enter(operation)
        {
            ticket.wait(self.config.wait);
            bound = bind()?;
        }
        match bound {
            Bound::New(credentials) => Ok(Reply::json(201, &BindingResponse { credentials })),
            Bound::Before(credentials) => Ok(Reply::json(200, &BindingResponse { credentials })),
            Bound::After { .. } => Err(BrokerError::Busy("the instance is being created")),
        }
    }

    /// `GET …/service_bindings/{binding_id}` (OSB 2.17, "Fetching a Service Binding").
    fn get_service_binding(&self, id: &Id, binding: &Id) -> Result<Reply, BrokerError> {
        let (id, binding, habits) = (id.clone(), binding.clone(), self.habits);
        let credentials = self
            .store
            .transaction(move |tx| broker::fetch_binding(tx, &id, &binding, habits))?;
        Ok(Reply::json(200, &BindingResponse { credentials }))
    }

    /// `DELETE …/service_bindings/{binding_id}` (OSB 2.17, "Unbinding").
    fn delete_service_binding(&self, id: &Id, binding: &Id, call: &Call) -> Result<Reply, BrokerError> {
        let (id, binding, query) = (id.clone(), binding.clone(), self.catalog_query(call));
        self.store
            .transaction(move |tx| broker::unbind(tx, &id, &binding, &query))?;
        Ok(Reply::empty(200))
    }

    /// The body; in strict mode only when it says that it is JSON.
    fn body<T: serde::de::DeserializeOwned>(&self, call: &Call) -> Result<T, BrokerError> {
        let media_type = call.header("content-type").unwrap_or("application/json");
        let media_type = media_type.split(';').next().unwrap_or_default().trim();
        if self.habits.strict && !media_type.eq_ignore_ascii_case("application/json") {
            return Err(BrokerError::BadRequest("Content-Type must be application/json"));
        }
        call.json()
    }

    /// The ids in the query of a DELETE.
    fn catalog_query(&self, call: &Call) -> CatalogQuery {
        let sent = |name: &str| call.query(name).map(str::to_owned);
        CatalogQuery {
            service_id: sent("service_id"),
            plan_id: sent("plan_id"),
            habits: self.habits,
        }
    }

    /// Runs a transaction that may enqueue the task of `fresh`, and waits for it.
    fn await_task(
        &self,
        fresh: &Fresh,
        write: impl FnOnce(&Store) -> Result<Outcome, BrokerError>,
    ) -> Result<Waited, BrokerError> {
        let ticket = self.waiters.enter(&fresh.task); // before the commit, so that no end is missed
        let outcome = write(&self.store)?;
        let Outcome::Enqueued { operation } = &outcome else {
            return Ok(Waited::Now(outcome));
        };
        let ended = ticket.and_then(|it| it.wait(self.config.wait));
        // A task that failed is told by last_operation: one way, whenever it happens.
        if ended == Some(TaskState::Finished) {
            Ok(Waited::Now(outcome))
        } else {
            Ok(Waited::Later(operation.clone()))
        }
    }

    /// Keeps the catalog up to date until the process is to end.
    fn keep_catalog(&self, stop: &Event) {
        let mut pause = Duration::ZERO;
        while !stop.wait(pause) {
            pause = match self.store.transaction(broker::catalog) {
                Ok(read) => match serde_json::to_vec(&read) {
                    Ok(bytes) => {
                        *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(bytes));
                        CATALOG_INTERVAL
                    }
                    Err(err) => {
                        log::error!("catalog not written: cause={err}");
                        CATALOG_INTERVAL
                    }
                },
                Err(err) if self.catalog().is_some() => {
                    log::warn!("catalog stays as it was: cause={err}");
                    CATALOG_INTERVAL
                }
                Err(err) => {
                    log::debug!("no catalog yet: cause={err}");
                    CATALOG_RETRY
                }
            };
        }
    }

    /// The catalog, once it was read.
    fn catalog(&self) -> Option<Arc<Vec<u8>>> {
        self.catalog
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// What came of an operation that may take longer than a request waits.
enum Waited {
    /// It is over.
    Now(Outcome),
    /// It goes on as this task.
    Later(String),
}

/// Answers if the method is the one that there is.
fn only(method: &'static str, call: &Call, answer: impl FnOnce() -> Reply) -> Reply {
    if call.method == method {
        answer()
    } else {
        method_not_allowed(method)
    }
}

/// 405 with what is allowed.
fn method_not_allowed(allowed: &'static str) -> Reply {
    Reply::error(405, None, format!("allowed here: {allowed}")).with_header("Allow", allowed)
}

/// 2.13 and later 2.x: nothing was taken away since.
fn is_supported(version: &str) -> bool {
    let minor = version
        .trim()
        .strip_prefix("2.")
        .and_then(|it| it.parse::<u32>().ok());
    minor.is_some_and(|it| it >= 13)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_from_2_13_on_are_supported() {
        for good in ["2.13", "2.17", " 2.14 ", "2.100"] {
            assert!(is_supported(good), "{good}");
        }
        for bad in ["2.12", "2", "3.0", "1.13", "2.x", "2.13.1", "", "2.-1", "02.13"] {
            assert!(!is_supported(bad), "{bad}");
        }
    }
}
