//! The endpoints: one short function each, from a [`Call`] to a [`Reply`].

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::actions;
use super::auth::Auth;
use super::call::{ACTIONS, Call, Route};
use super::reply::Reply;
use super::waiting::{Ticket, Waiters};
use super::webhook::webhook;
use crate::broker::{self, Bound, BrokerError, CatalogQuery, Fresh, Habits, Outcome};
use crate::config::ApiConfig;
use crate::event::Event;
use crate::metrics::{self, Metrics};
use crate::osb::{BindingResponse, Id, Provisioned};
use crate::store::{Store, StoreError, TaskState};

/// How often the catalog is read anew, so that edits of the tables show.
const CATALOG_INTERVAL: Duration = Duration::from_secs(5);
/// How soon it is tried again while there is none.
const CATALOG_RETRY: Duration = Duration::from_millis(500);

/// What every request may use.
pub(super) struct Desk {
    /// The database.
    pub(super) store: Store,
    /// What the names of buckets begin with.
    name_prefix: String,
    /// Set once the database has its tables.
    ready: Arc<Event>,
    /// The settings.
    config: ApiConfig,
    /// Where Akkeris and the specification part.
    habits: Habits,
    /// Who is let in.
    auth: Auth,
    /// What is counted.
    pub(super) metrics: Arc<Metrics>,
    /// Those who wait.
    waiters: Arc<Waiters>,
    /// The catalog as it goes out.
    catalog: RwLock<Option<Arc<Vec<u8>>>>,
    /// Set once there is one, or nobody need wait for it any more.
    catalog_due: Event,
}

impl Desk {
    /// The desk, without a catalog yet.
    pub(super) fn new(
        store: Store,
        name_prefix: String,
        config: ApiConfig,
        ready: Arc<Event>,
        metrics: Arc<Metrics>,
    ) -> Desk {
        metrics.know_actions(&ACTIONS);
        Desk {
            store,
            ready,
            metrics,
            name_prefix,
            habits: Habits { strict: config.strict_osb },
            auth: Auth::new(&config),
            config,
            waiters: Arc::default(),
            catalog: RwLock::new(None),
            catalog_due: Event::default(),
        }
    }

    /// Whether everyone who reaches the port is let in.
    pub(super) fn is_open(&self) -> bool {
        self.auth.is_open()
    }

    /// Whether a platform that sends no password with its actions cannot use them.
    pub(super) fn closes_actions(&self) -> bool {
        self.auth.closes_actions()
    }

    /// Wakes those who wait for tasks, until the process is to end.
    pub(super) fn watch_tasks(&self, stop: &Event) {
        self.waiters.watch(&self.store, stop);
    }

    /// Sends those who wait away.
    pub(super) fn stop_waiting(&self) {
        self.waiters.stop();
        self.catalog_due.set();
    }

    /// Health and metrics, then authentication, then the version, then everything else.
    pub(super) fn decide(&self, call: &Call) -> Reply {
        match &call.route {
            Route::Healthz => return only("GET", call, || Reply::text(200, "OK")),
            Route::Readyz => return only("GET", call, || self.readyz()),
            Route::Metrics => return only("GET", call, || self.get_metrics()),
            Route::Catalog | Route::Instance(_) | Route::LastOperation(_) | Route::Binding(..) => {}
            Route::Credentials(_) | Route::ActionSchema(_) | Route::BadId(_) | Route::Unknown => {}
        }
        let is_let_in = (call.route.is_action() && self.auth.admits_action(call.token.as_ref()))
            || self.auth.admits(call.header("authorization"));
        if !is_let_in {
            return Reply::error(401, None, "authentication is required")
                .with_header("WWW-Authenticate", "Basic realm=\"servicebroker\", charset=\"UTF-8\"");
        }
        if call.token.as_ref().is_some_and(|it| !self.auth.knows(it)) {
            return Reply::error(404, None, "no such path");
        }
        if let Some(action) = call.action() {
            self.metrics.count_action(action);
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
            (Route::Instance(id), "PATCH") => self.patch_service_instance(id, call),
            (Route::Instance(id), "DELETE") => self.delete_service_instance(id, call),
            (Route::LastOperation(id), "GET") => self.get_last_operation(id, call),
            (Route::Binding(id, binding), "PUT") => self.put_service_binding(id, binding, call),
            (Route::Binding(id, binding), "GET") => self.get_service_binding(id, binding),
            (Route::Binding(id, binding), "DELETE") => self.delete_service_binding(id, binding, call),
            (Route::Credentials(id), "PUT") => self.put_credentials(id),
            (Route::ActionSchema(id), "GET") => Ok(Reply::json(200, &actions::schema(id))),
            (Route::BadId(reason), _) => Err(BrokerError::BadRequest(reason)),
            (Route::Unknown, _) => Ok(Reply::error(404, None, "no such path")),
            (Route::Instance(_), _) => Ok(method_not_allowed("PUT, PATCH, DELETE")),
            (Route::Credentials(_), _) => Ok(method_not_allowed("PUT")),
            (Route::Binding(..), _) => Ok(method_not_allowed("PUT, GET, DELETE")),
            (Route::Catalog | Route::LastOperation(_) | Route::ActionSchema(_), _)
            | (Route::Healthz | Route::Readyz | Route::Metrics, _) => Ok(method_not_allowed("GET")),
        }
    }

    /// `X-Broker-API-Version` (OSB 2.17, "API Version Header"): 2.13 or any later 2.x. Akkeris'
    /// own calls may lack it.
    fn check_version(&self, call: &Call) -> Result<(), Reply> {
        match call.header("x-broker-api-version") {
            None if self.habits.strict && !call.route.is_action() => {
                Err(Reply::error(400, None, "X-Broker-API-Version is missing"))
            }
            None => Ok(()),
            Some(version) if is_supported(version) => Ok(()),
            Some(_) => Err(Reply::error(412, None, "X-Broker-API-Version must be 2.13 or a later 2.x")),
        }
    }

    /// `GET /readyz`: whether requests that need the database can be served now.
    fn readyz(&self) -> Reply {
        if !self.ready.is_set() {
            return Reply::text(503, "the database has no tables yet");
        }
        match self.store.transaction(|tx| tx.is_writable()) {
            Ok(false) => Reply::text(503, "the database takes no changes"),
            Ok(true) if self.catalog().is_some() => Reply::text(200, "OK"),
            Ok(true) => Reply::text(503, "the catalog was not read yet"),
            Err(err) => {
                log::debug!("not ready: cause={err}");
                Reply::text(503, "the database is not available")
            }
        }
    }

    /// `GET /metrics`: what this process has counted, and what it knows of the tables.
    fn get_metrics(&self) -> Reply {
        Reply { content_type: metrics::CONTENT_TYPE, ..Reply::text(200, &self.metrics.page()) }
    }

    /// `GET /v2/catalog` (OSB 2.17, "Catalog Management"). Until it was read once it is waited for: Akkeris does without
    /// a broker for half an hour that has once not told what it sells.
    fn get_catalog(&self) -> Reply {
        self.catalog_due.wait(self.config.wait);
        match self.catalog() {
            Some(bytes) => Reply::of_bytes(200, bytes.to_vec()),
            None => Reply::from(BrokerError::Store(StoreError::Busy)),
        }
    }

    /// `PUT /v2/service_instances/{instance_id}` (OSB 2.17, "Provisioning").
    fn put_service_instance(&self, id: &Id, call: &Call) -> Result<Reply, BrokerError> {
        let request = self.body(call)?;
        let webhook = webhook(call, &self.config.webhook_hosts)?;
        let (key, accepts_incomplete) = (id.clone(), call.accepts_incomplete());
        let made = self.await_task(move |store, fresh| {
            store.transaction(move |tx| {
                broker::provision(tx, &key, &request, accepts_incomplete, &fresh, webhook.as_ref())
            })
        })?;
        let (status, operation) = match made {
            (Outcome::Enqueued { .. }, Wait::Ended(TaskState::Finished)) | (Outcome::Claimed, _) => {
                (201, None)
            }
            // A task that failed is told by last_operation: one way, whenever it happens.
            (Outcome::Enqueued { operation } | Outcome::InProgress { operation }, _) => {
                (202, Some(operation))
            }
            (Outcome::Done, _) => (200, None),
        };
        let extension_apis = if self.habits.strict { Vec::new() } else { actions::extension_apis(id) };
        Ok(Reply::json(status, &Provisioned { operation, extension_apis }))
    }

    /// `DELETE /v2/service_instances/{instance_id}` (OSB 2.17, "Deprovisioning").
    fn delete_service_instance(&self, id: &Id, call: &Call) -> Result<Reply, BrokerError> {
        let (key, query, accepts_incomplete) =
            (id.clone(), self.catalog_query(call), call.accepts_incomplete());
        let removed = self.await_task(move |store, fresh| {
            store.transaction(move |tx| broker::deprovision(tx, &key, &query, accepts_incomplete, &fresh))
        })?;
        Ok(match removed {
            (Outcome::Enqueued { .. }, Wait::Ended(TaskState::Finished))
            | (Outcome::Claimed | Outcome::Done, _) => Reply::empty(200),
            (Outcome::Enqueued { operation } | Outcome::InProgress { operation }, _) => {
                Reply::accepted(&operation)
            }
        })
    }

    /// `GET …/last_operation` (OSB 2.17, "Polling Last Operation for Service Instances").
    fn get_last_operation(&self, id: &Id, call: &Call) -> Result<Reply, BrokerError> {
        let (id, habits) = (id.clone(), self.habits);
        let operation = call.query("operation").filter(|it| !it.is_empty()).map(str::to_owned);
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
        let webhook = webhook(call, &self.config.webhook_hosts)?;
        let bind = || {
            let (id, binding, request) = (id.clone(), binding.clone(), Arc::clone(&request));
            let webhook = webhook.clone();
            self.store.transaction(move |tx| broker::bind(tx, &id, &binding, &request, webhook.as_ref()))
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
        let credentials =
            self.store.transaction(move |tx| broker::fetch_binding(tx, &id, &binding, habits))?;
        Ok(Reply::json(200, &BindingResponse { credentials }))
    }

    /// `DELETE …/service_bindings/{binding_id}` (OSB 2.17, "Unbinding").
    fn delete_service_binding(&self, id: &Id, binding: &Id, call: &Call) -> Result<Reply, BrokerError> {
        let (id, binding, query) = (id.clone(), binding.clone(), self.catalog_query(call));
        self.store.transaction(move |tx| broker::unbind(tx, &id, &binding, &query))?;
        Ok(Reply::empty(200))
    }

    /// The body; in strict mode only when it says that it is JSON.
    pub(super) fn body<T: serde::de::DeserializeOwned>(&self, call: &Call) -> Result<T, BrokerError> {
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
        CatalogQuery { service_id: sent("service_id"), plan_id: sent("plan_id"), habits: self.habits }
    }

    /// Runs a transaction that may enqueue the task of its names, and waits for that task.
    pub(super) fn await_task(
        &self,
        write: impl FnOnce(&Store, Fresh) -> Result<Outcome, BrokerError>,
    ) -> Result<(Outcome, Wait), BrokerError> {
        let fresh = Fresh::draw(&self.name_prefix)?;
        let ticket = self.waiters.enter(&fresh.task); // before the commit, so that no end is missed
        let outcome = write(&self.store, fresh)?;
        let ticket = ticket.filter(|_| matches!(outcome, Outcome::Enqueued { .. }));
        Ok((outcome, self.wait(ticket)))
    }

    /// Waits for a task that was enqueued before.
    pub(super) fn join(&self, task: &str) -> Wait {
        self.wait(self.waiters.enter(task))
    }

    /// How long requests wait for their tasks, if they do at all.
    pub(super) fn waits(&self) -> Option<Duration> {
        Some(self.config.wait).filter(|it| !it.is_zero())
    }

    /// Waits, if there is a place to.
    fn wait(&self, ticket: Option<Ticket<'_>>) -> Wait {
        let (Some(ticket), Some(wait)) = (ticket, self.waits()) else {
            return Wait::None;
        };
        ticket.wait(wait).map_or(Wait::Over, Wait::Ended)
    }

    /// Keeps the catalog up to date until the process is to end.
    pub(super) fn keep_catalog(&self, stop: &Event) {
        let (mut pause, mut said) = (Duration::ZERO, BTreeSet::new());
        while !stop.wait(pause) {
            pause = match self.store.transaction(broker::catalog) {
                Ok((read, complaints)) => {
                    let complaints: BTreeSet<String> = complaints.into_iter().collect();
                    complaints.difference(&said).for_each(|it| log::error!("{it}"));
                    said = complaints;
                    match serde_json::to_vec(&read) {
                        Ok(bytes) => {
                            let mut catalog = self.catalog.write().unwrap_or_else(PoisonError::into_inner);
                            *catalog = Some(Arc::new(bytes));
                            self.catalog_due.set();
                        }
                        Err(err) => log::error!("catalog not written: cause={err}"),
                    }
                    CATALOG_INTERVAL
                }
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
        self.catalog.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What came of waiting for a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// It was not waited for.
    None,
    /// The time is over and it goes on.
    Over,
    /// It has ended.
    Ended(TaskState),
}

/// Answers if the method is the one that there is.
fn only(method: &'static str, call: &Call, answer: impl FnOnce() -> Reply) -> Reply {
    if call.method == method { answer() } else { method_not_allowed(method) }
}

/// 405 with what is allowed.
fn method_not_allowed(allowed: &'static str) -> Reply {
    Reply::error(405, None, format!("allowed here: {allowed}")).with_header("Allow", allowed)
}

/// 2.13 and later 2.x: nothing was taken away since.
fn is_supported(version: &str) -> bool {
    let minor = version.trim().strip_prefix("2.").and_then(|it| it.parse::<u32>().ok());
    minor.is_some_and(|it| it >= 13)
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
