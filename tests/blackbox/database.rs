//! What happens when the database misbehaves: it is away, silent, slow, or its connections are cut.

use std::time::{Duration, Instant};

use crate::proxy::{Mood, Proxy};
use crate::support::*;

/// A setup whose broker reaches its database through a proxy, with short limits.
fn behind_proxy() -> (Setup, Proxy) {
    let setup = Setup::new().with("STATEMENT_TIMEOUT_SECONDS", "1").with("WAIT_SECONDS", "0");
    let proxy = Proxy::before(setup.database.url());
    let url = proxy.url().to_owned();
    (setup.with("DATABASE_URL", &url), proxy)
}

#[test]
fn a_silent_database_is_503_and_is_found_again() {
    let (setup, proxy) = behind_proxy();
    let api = setup.api(&[]);
    proxy.turn(Mood::Frozen);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for number in 0..12 {
            let api = &api;
            scope.spawn(move || assert_eq!(api.provision(&number.to_string(), BASIC).status, 503));
        }
    });
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!((api.get("/healthz").status, api.get("/v2/catalog").status), (200, 200));
    proxy.turn(Mood::Open);
    let began = Instant::now();
    eventually("the api is ready again", PATIENCE, || (api.get("/readyz").status == 200).then_some(()));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(setup.database.text("select count(*)::text from resources").as_deref(), Some("0"));
    assert_eq!(api.provision("one", BASIC).status, 202);
}

#[test]
fn what_was_answered_503_is_not_committed_later() {
    let (setup, proxy) = behind_proxy();
    let api = setup.api(&[]);
    proxy.turn(Mood::Held);
    assert_eq!(api.provision("one", BASIC).status, 503);
    proxy.turn(Mood::Open);
    assert_eq!(api.deprovision("one", BASIC).status, 410);
    let busy =
        "select 'busy' from pg_stat_activity where datname = current_database() and xact_start is not null
        and pid <> pg_backend_pid()";
    eventually("all calls have ended", PATIENCE, || setup.database.text(busy).is_none().then_some(()));
    assert_eq!(setup.database.text("select id from resources"), None);
}

#[test]
fn a_worker_ends_although_its_database_is_silent() {
    let (setup, proxy) = behind_proxy();
    let mut worker = setup.worker();
    proxy.turn(Mood::Frozen);
    let began = Instant::now();
    assert_eq!(worker.terminate(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
}
