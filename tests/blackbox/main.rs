//! Black-box tests: the real binary, a real PostgreSQL, an AWS emulator that checks signatures, and
//! AWS' own command line as the tenant. `tests/with-services` starts what they need.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test that cannot go on fails, and reads its environment itself"
)]

mod chaos;
mod cloud;
mod contract;
mod crash;
mod credentials;
mod database;
mod door;
mod faults;
mod going_back;
mod hardship;
mod lifecycle;
mod matrix;
mod metrics;
mod mishaps;
mod old_tasks;
mod own_postgres;
mod plan_change;
mod proxy;
mod queue;
mod reconcile;
#[path = "../relay/mod.rs"]
mod relay;
mod rotation;
mod schema;
mod settings;
mod statuses;
mod stock;
mod strictness;
mod support;
mod tags;
mod upgrade;
mod webhooks;
