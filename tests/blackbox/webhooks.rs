//! Webhooks: who is told what, how often, and that nobody else learns of it.

pub(crate) mod receiver;
mod way;

use std::time::{Duration, Instant};

use serde_json::json;

use crate::relay::Authority;
use crate::stock::{keep, wait_for_stock};
use crate::support::*;
use receiver::{Reaction, Receiver, query};

/// A secret that must be seen nowhere but in the signature; some of it must be encoded in a query.
const SECRET: &str = "planted secret+&=\"ü";
/// A part of the URL that only the receiver may see.
const PATH: &str = "/planted-path?key=planted-key";

/// A setup whose webhooks may go to this receiver; both processes log all that they can.
fn setup(receiver: &Receiver) -> Setup {
    Setup::new().with("WEBHOOK_HOSTS", &receiver.host()).with("GLOG_v", "2")
}

/// Asks for an instance, with more in the query.
fn provision(api: &Api, instance: &str, query: &str) -> Answer {
    let path = format!("/v2/service_instances/{instance}?accepts_incomplete=true&{query}");
    api.put(&path, &provision_body(BASIC))
}

/// Binds, with more in the query.
fn bind(api: &Api, instance: &str, binding: &str, query: &str) -> Answer {
    let path = format!("/v2/service_instances/{instance}/service_bindings/{binding}?{query}");
    api.put(&path, &bind_body(BASIC))
}

/// The end of an instance's newest notice: its status and what is said of it.
fn end_of_notice(setup: &Setup, instance: &str) -> String {
    let sql = format!(
        "select status || ': ' || result from tasks where resource = '{instance}' and action like 'notify-%'
             and status in ('finished', 'failed') order by created desc limit 1"
    );
    eventually("the notice has ended", PATIENCE, || setup.database.text(&sql))
}

/// No secret is left in a row, and none is in a log.
fn check_secrets(setup: &Setup, processes: &[&Broker]) {
    let open = "select string_agg(t::text, ' ') from tasks t where t::text like '%planted%'";
    eventually("the rows forget", PATIENCE, || setup.database.text(open).is_none().then_some(()));
    let kept = "select string_agg(x, ' ') from (select r::text as x from resources r
        union all select b::text from bindings b) all_rows where x like '%planted%'";
    assert_eq!(setup.database.text(kept), None);
    for process in processes {
        // A worker says little until AWS has told it whose key it has.
        eventually("it says much", PATIENCE, || {
            ["TRACE", "DEBUG"].iter().any(|it| process.log().contains(it)).then_some(())
        });
        assert!(!process.log().contains("planted"), "{}", process.log());
    }
}

fn told(state: &str, description: &str) -> (String, String) {
    (state.to_owned(), description.to_owned())
}

#[test]
fn the_end_of_a_provision_and_a_bind_are_told_once_each() {
    let receiver = Receiver::start(&[Reaction::Answer(204)]);
    let setup = setup(&receiver);
    let (api, worker) = (setup.api(&[]), setup.worker());
    let query = receiver.query(PATH, SECRET);
    assert_eq!(provision(&api, "one", &query).status, 201);
    let first = &receiver.wait_for(1)[0];
    assert_eq!(first.line, format!("POST {PATH} HTTP/1.1"));
    assert_eq!(first.header("host"), receiver.host());
    assert!(first.header("user-agent").starts_with("servicebroker/"));
    assert_eq!(first.told(SECRET), told("succeeded", "available"));
    assert_eq!(end_of_notice(&setup, "one"), "finished: delivered");
    // repeats tell nobody: the next that comes is that of the bind
    assert_eq!(provision(&api, "one", &query).status, 200);
    assert_eq!(bind(&api, "one", "b", &receiver.query("/bound", SECRET)).status, 201);
    assert_eq!(bind(&api, "one", "b", &query).status, 200);
    let last = &receiver.wait_for(2)[1];
    assert_eq!(last.line, "POST /bound HTTP/1.1");
    assert_eq!(last.told(SECRET), told("succeeded", "the binding was made"));
    eventually("all notices have ended", PATIENCE, || {
        let open = "select 'open' from tasks where action like 'notify-%' and status <> 'finished'";
        setup.database.text(open).is_none().then_some(())
    });
    assert_eq!(receiver.received().len(), 2);
    check_secrets(&setup, &[&api, &worker]);
    api.remove("one", BASIC);
}

#[test]
fn a_provision_that_fails_says_so() {
    let receiver = Receiver::start(&[Reaction::Answer(200)]);
    let setup = setup(&receiver);
    let (api, worker) = (setup.api(&[]), setup.worker());
    let broken = r#"{"encrypted": true, "kmsKeyId": "no key"}"#;
    let sql = format!("update plans set provider_private_details = '{broken}' where name = 'basic'");
    setup.database.connect().batch_execute(&sql).unwrap();
    assert_eq!(provision(&api, "one", &receiver.query(PATH, SECRET)).status, 202);
    let (state, description) = receiver.wait_for(1)[0].told(SECRET);
    assert_eq!(state, "failed");
    assert!(description.starts_with("the plan's KMS key: "), "{description}");
    assert_eq!(api.get("/v2/service_instances/one/last_operation").json["description"], description);
    check_secrets(&setup, &[&api, &worker]);
    assert_eq!(receiver.received().len(), 1, "the delete that cleans up tells nobody");
}

#[test]
fn a_provision_that_the_stock_answers_is_told_too() {
    let receiver = Receiver::start(&[Reaction::Answer(200)]);
    let setup = setup(&receiver);
    let (api, mut maker) = (setup.api(&[]), setup.worker());
    keep(&setup, BASIC, 1);
    let stock = wait_for_stock(&setup, 1);
    assert_eq!(maker.terminate(), Some(0));
    let query = receiver.query(PATH, SECRET);
    assert_eq!(provision(&api, "one", &query).status, 201, "without a worker only the stock can answer so");
    keep(&setup, BASIC, 0);
    let worker = setup.worker();
    assert_eq!(receiver.wait_for(1)[0].told(SECRET), told("succeeded", "available"));
    assert_eq!(end_of_notice(&setup, "one"), "finished: delivered");
    assert_eq!(api.bind("one", "b")["S3_BUCKET"], stock[0].as_str());
    assert_eq!(provision(&api, "one", &query).status, 200);
    api.remove("one", BASIC);
    assert_eq!(receiver.received().len(), 1, "neither the repeat nor the end of it is told");
    check_secrets(&setup, &[&api, &maker, &worker]);
}

#[test]
fn a_provision_that_a_delete_stops_has_failed() {
    let receiver = Receiver::start(&[Reaction::Answer(200)]);
    let relay = relay();
    relay.slow_down(Duration::from_millis(300));
    let setup = setup(&receiver).with("WAIT_SECONDS", "0").through(&relay);
    let api = setup.api(&[]);
    assert_eq!(provision(&api, "waiting", &receiver.query(PATH, SECRET)).status, 202);
    assert_eq!(api.deprovision("waiting", BASIC).status, 202);
    let metadata = "select metadata from tasks where action = 'provision' and resource = 'waiting'";
    assert_eq!(setup.database.text(metadata).as_deref(), Some("{}"), "what has ended forgets at once");
    let worker = setup.worker();
    assert_eq!(receiver.wait_for(1)[0].told(SECRET), told("failed", "stopped by delete"));
    assert_eq!(provision(&api, "running", &receiver.query(PATH, SECRET)).status, 202);
    let runs = "select 'yes' from tasks where action = 'provision' and status = 'started'";
    eventually("it runs", PATIENCE, || setup.database.text(runs));
    assert_eq!(api.deprovision("running", BASIC).status, 202);
    assert_eq!(receiver.wait_for(2)[1].told(SECRET), told("failed", "stopped by delete"));
    relay.calm_down();
    for instance in ["waiting", "running"] {
        eventually("it is gone", PATIENCE, || {
            (api.get(&format!("/v2/service_instances/{instance}/last_operation")).status == 410).then_some(())
        });
    }
    check_secrets(&setup, &[&api, &worker]);
    assert_eq!(receiver.received().len(), 2);
}

#[test]
fn only_a_success_is_one_and_redirects_are_not_followed() {
    let elsewhere = Receiver::start(&[Reaction::Answer(200)]);
    let port = elsewhere.port;
    let script =
        vec![Reaction::Redirect(port), Reaction::Answer(500), Reaction::Answer(410), Reaction::Endless];
    let receiver = Receiver::start(script.leak());
    let hosts = format!("{},{}", receiver.host(), elsewhere.host());
    let setup = Setup::new().with("WEBHOOK_HOSTS", &hosts).with("GLOG_v", "2");
    let (api, worker) = (setup.api(&[]), setup.worker());
    for (instance, end) in [
        ("redirect", "failed: the webhook's receiver answered 307"),
        ("500", "failed: the webhook's receiver answered 500"),
        ("410", "failed: the webhook's receiver answered 410"),
        ("endless", "finished: delivered"),
    ] {
        let began = Instant::now();
        assert_eq!(provision(&api, instance, &receiver.query(PATH, SECRET)).status, 201);
        assert_eq!(end_of_notice(&setup, instance), end);
        assert!(began.elapsed() < Duration::from_secs(10), "{instance}: {:?}", began.elapsed());
        assert_eq!(
            api.get(&format!("/v2/service_instances/{instance}/last_operation")).json["state"],
            "succeeded"
        );
    }
    assert_eq!((receiver.received().len(), elsewhere.received().len()), (4, 0));
    check_secrets(&setup, &[&api, &worker]);
    for instance in ["redirect", "500", "410", "endless"] {
        api.remove(instance, BASIC);
    }
}

#[test]
fn what_was_not_delivered_is_tried_again_only_where_that_is_wanted() {
    const SCRIPT: &[Reaction] = &[Reaction::Answer(503), Reaction::Answer(200)];
    for (retry, tries, end) in
        [("true", 2, "finished: delivered"), ("false", 1, "failed: the webhook's receiver answered 503")]
    {
        let receiver = Receiver::start(SCRIPT);
        let setup = setup(&receiver).with("RETRY_WEBHOOKS", retry);
        let (api, worker) = (setup.api(&[]), setup.worker());
        assert_eq!(provision(&api, "one", &receiver.query(PATH, SECRET)).status, 201);
        if tries == 2 {
            let waits = "select metadata from tasks where action like 'notify-%' and status = 'pending' and retries = 1";
            let kept = eventually("it will be tried again", PATIENCE, || setup.database.text(waits));
            assert!(kept.contains("planted"), "{kept}");
            let now = "update tasks set run_at = now() where action like 'notify-%'";
            setup.database.connect().batch_execute(now).unwrap();
        }
        assert_eq!(end_of_notice(&setup, "one"), end);
        let received = receiver.received();
        assert_eq!(received.len(), tries, "{retry}");
        assert!(received.iter().all(|it| it.told(SECRET) == told("succeeded", "available")));
        check_secrets(&setup, &[&api, &worker]);
        api.remove("one", BASIC);
    }
}

#[test]
fn a_silent_receiver_costs_ten_seconds_and_holds_up_nobody() {
    let receiver = Receiver::start(&[Reaction::Silence]);
    let setup = setup(&receiver).with("WORKER_THREADS", "1");
    let (api, worker) = (setup.api(&[]), setup.worker());
    for instance in ["a", "b", "c"] {
        assert_eq!(provision(&api, instance, &receiver.query(PATH, SECRET)).status, 201);
    }
    receiver.wait_for(2);
    let began = Instant::now();
    assert_eq!(api.provision("d", BASIC).status, 201);
    let took = began.elapsed();
    eprintln!("a provision beside silent receivers took {took:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert_eq!(end_of_notice(&setup, "a"), "failed: the webhook's receiver gave no answer: timed out");
    let sql = "select max(extract(epoch from finished - started))::text from tasks
        where resource = 'a' and action like 'notify-%'";
    let cost: f64 = setup.database.text(sql).unwrap().parse().unwrap();
    eprintln!("a silent receiver cost {cost} s");
    assert!((9.0..12.0).contains(&cost), "{cost}");
    assert_eq!(end_of_notice(&setup, "c"), "failed: the webhook's receiver gave no answer: timed out");
    assert_eq!(receiver.received().len(), 3);
    check_secrets(&setup, &[&api, &worker]);
    for instance in ["a", "b", "c", "d"] {
        api.remove(instance, BASIC);
    }
}

#[test]
fn a_notice_whose_worker_is_killed_is_sent_again() {
    const SCRIPT: &[Reaction] = &[Reaction::Silence, Reaction::Answer(200)];
    let receiver = Receiver::start(SCRIPT);
    let setup = setup(&receiver).with("LEASE_SECONDS", "12");
    let (api, mut worker) = (setup.api(&[]), setup.worker());
    assert_eq!(provision(&api, "one", &receiver.query(PATH, SECRET)).status, 201);
    receiver.wait_for(1);
    worker.kill();
    let next = setup.worker();
    assert_eq!(receiver.wait_for(2)[1].told(SECRET), told("succeeded", "available"));
    assert_eq!(end_of_notice(&setup, "one"), "finished: delivered");
    assert_eq!(receiver.received().len(), 2);
    check_secrets(&setup, &[&api, &worker, &next]);
    api.remove("one", BASIC);
}

#[test]
fn a_worker_that_is_told_to_end_waits_for_the_call_and_no_longer() {
    let receiver = Receiver::start(&[Reaction::Silence]);
    let setup = setup(&receiver);
    let (api, mut worker) = (setup.api(&[]), setup.worker());
    assert_eq!(provision(&api, "one", &receiver.query(PATH, SECRET)).status, 201);
    receiver.wait_for(1);
    let began = Instant::now();
    assert_eq!(worker.terminate(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(end_of_notice(&setup, "one"), "failed: the webhook's receiver gave no answer: timed out");
    let _next = setup.worker();
    api.remove("one", BASIC);
}

#[test]
fn hosts_that_nobody_named_are_refused_and_nothing_is_changed() {
    let receiver = Receiver::start(&[Reaction::Answer(200)]);
    let (open, closed) = (setup(&receiver), Setup::new());
    let count = |setup: &Setup| {
        setup.database.text("select (select count(*) from resources) || ' ' || (select count(*) from tasks)")
    };
    let refuses = |setup: &Setup, api: &Api, query: &str, names_setting: bool| {
        for answer in [provision(api, "one", query), bind(api, "one", "b", query)] {
            assert_eq!(answer.status, 400, "{query}: {}", answer.text);
            let description = answer.json["description"].as_str().unwrap();
            assert_eq!(description.contains("WEBHOOK_HOSTS"), names_setting, "{query}: {description}");
            assert!(!description.contains("planted"), "{description}");
        }
        assert_eq!(count(setup).as_deref(), Some("0 0"), "{query}");
    };
    let api = closed.api(&[]);
    refuses(&closed, &api, &receiver.query(PATH, SECRET), true);
    assert!(!api.log().contains("planted"), "{}", api.log());
    let api = open.api(&[]);
    for url in ["https://planted.example/", "http://127.0.0.1/", "http://169.254.169.254/latest/planted"] {
        refuses(&open, &api, &query(url, SECRET), true);
    }
    refuses(&open, &api, &query(&format!("http://localhost:{}/", receiver.port), SECRET), true);
    for url in ["planted", "ftp://127.0.0.1/", &format!("http://u:planted@{}/", receiver.host())] {
        refuses(&open, &api, &query(url, SECRET), false);
    }
    let url = format!("http://{}/", receiver.host());
    for secret in ["", "nul\0", &"s".repeat(1_025)] {
        refuses(&open, &api, &query(&url, secret), false);
    }
    refuses(&open, &api, "webhook=http://h/&secret=%ff", true);
    refuses(&open, &api, &format!("webhook={url}&secret=%ff"), false);
    refuses(&open, &api, &format!("webhook={url}%ff&secret=s"), false);
    refuses(&open, &api, "secret=planted", false);
    assert!(!api.log().contains("planted"), "{}", api.log());
    let plain = api.put("/v2/service_instances/one?webhook=&secret=", &json!({}));
    assert_eq!(plain.status, 400, "{}", plain.text);
    assert_eq!(receiver.received().len(), 0);
}

#[test]
fn the_worker_looks_at_the_host_again() {
    let receiver = Receiver::start(&[Reaction::Answer(200)]);
    let setup = setup(&receiver).with("RETRY_WEBHOOKS", "true");
    let api = setup.api(&[]);
    let mut command = setup.worker_command();
    let worker = Broker::start(command.env("WEBHOOK_HOSTS", "other.example"));
    assert_eq!(provision(&api, "one", &receiver.query(PATH, SECRET)).status, 201);
    let end = "failed: the webhook's host and port are not in WEBHOOK_HOSTS";
    assert_eq!(end_of_notice(&setup, "one"), end);
    assert_eq!(receiver.received().len(), 0);
    check_secrets(&setup, &[&api, &worker]);
    api.remove("one", BASIC);
}

#[test]
fn over_tls_only_receivers_that_the_system_trusts_are_told() {
    let authority = Authority::create(&std::env::temp_dir().join(format!("webhooks-{}", unique())));
    let receiver = Receiver::with_tls(&[Reaction::Answer(200)], authority.server());
    let bundle = authority.bundle().to_str().unwrap().to_owned();
    for (bundle, end) in [
        (bundle.as_str(), "finished: delivered"),
        ("", "failed: the webhook's receiver gave no answer: certificate not trusted"),
    ] {
        let setup = setup(&receiver).with("SSL_CERT_FILE", bundle);
        let (api, worker) = (setup.api(&[]), setup.worker());
        let query = query(&format!("https://{}{PATH}", receiver.host()), SECRET);
        assert_eq!(provision(&api, "one", &query).status, 201);
        assert_eq!(end_of_notice(&setup, "one"), end);
        check_secrets(&setup, &[&api, &worker]);
        api.remove("one", BASIC);
    }
    let received = receiver.received();
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].told(SECRET), told("succeeded", "available"));
}

#[test]
fn notices_of_the_old_broker_are_sent_to_hosts_that_were_named() {
    let receiver = Receiver::start(&[Reaction::Answer(200)]);
    let setup = setup(&receiver);
    let api = setup.api(&[]);
    let metadata = json!({ "url": format!("http://{}/old", receiver.host()), "secret": SECRET });
    let sql = format!(
        "insert into resources (id, name, plan, claimed, status) values ('old', 'n', '{BASIC}', true, 'available');
         insert into tasks (task, resource, action, metadata)
         values (gen_random_uuid(), 'old', 'notify-create-service-webhook', '{metadata}')"
    );
    setup.database.connect().batch_execute(&sql).unwrap();
    let worker = setup.worker();
    assert_eq!(receiver.wait_for(1)[0].told(SECRET), told("succeeded", "available"));
    assert_eq!(end_of_notice(&setup, "old"), "finished: delivered");
    check_secrets(&setup, &[&api, &worker]);
}
