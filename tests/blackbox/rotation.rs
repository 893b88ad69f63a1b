//! Rotation of access keys: no outage, no third key, no secret that nobody holds.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::cloud::*;
use crate::relay::{Fault, Point, Relay, When};
use crate::support::*;

/// Where an instance's keys are rotated.
const ROTATE: &str = "/v2/service_instances/one/actions/credentials";

impl Api {
    /// Rotates the key of `one` as `aka s3:rotate` does: no body, no version.
    fn rotate(&self) -> Answer {
        self.without_header("X-Broker-API-Version").send("PUT", ROTATE, b"")
    }

    /// The key that the binding gives out now.
    fn key_now(&self) -> (String, String) {
        let answer = self.get("/v2/service_instances/one/service_bindings/app-space");
        assert_eq!(answer.status, 200, "{}", answer.text);
        key_of(&answer.json["credentials"])
    }
}

/// Id and secret of credentials.
fn key_of(credentials: &Value) -> (String, String) {
    let text = |name: &str| credentials[name].as_str().unwrap().to_owned();
    (text("S3_ACCESS_KEY"), text("S3_SECRET_KEY"))
}

/// Whether a key opens the bucket.
fn works(bucket: &str, key: &(String, String)) -> bool {
    aws(&key.0, &key.1, &["s3api", "get-bucket-location", "--bucket", bucket]).status.success()
}

/// An instance and its processes.
fn provided(setup: &Setup) -> (Broker, Broker, String) {
    let (api, worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    let name = setup.database.text("select name from resources").unwrap();
    (api, worker, name)
}

/// Lets two minutes go by for the rotation that was last.
fn forget_last_rotation(setup: &Setup) {
    let sql =
        "update tasks set finished = finished - interval '3 minutes' where action = 'rotate-credentials'";
    setup.database.connect().batch_execute(sql).unwrap();
}

#[test]
fn the_old_key_works_until_its_grace_ends() {
    let setup = Setup::new().with("ROTATION_GRACE", "30s"); // the command line takes seconds on a busy machine
    let (api, _worker, name) = provided(&setup);
    let old = api.key_now();
    let answer = api.rotate();
    assert_eq!(answer.status, 200, "{}", answer.text);
    let names: Vec<&String> = answer.json.as_object().unwrap().keys().collect();
    assert_eq!(names, ["ARN", "AccessKeyId", "SecretAccessKey", "UserName"]);
    let new = api.key_now();
    assert_eq!(
        (answer.json["AccessKeyId"].as_str(), answer.json["SecretAccessKey"].as_str()),
        (Some(&*new.0), Some(&*new.1))
    );
    assert_eq!(answer.json["UserName"], name.as_str());
    assert!(answer.json["ARN"].as_str().unwrap().ends_with(&format!("user/{name}")));
    assert!(new != old && works(&name, &new) && works(&name, &old));
    eventually("the grace ends", PATIENCE, || (keys_of(&name) == [new.0.clone()]).then_some(()));
    if checks_permissions() {
        assert!(works(&name, &new) && !works(&name, &old));
    }
    eventually("the row forgets it", PATIENCE, || {
        setup.database.text("select 'yes' from resources where previous_key is null and next_secret is null")
    });
    api.remove("one", BASIC);
    setup.check_nothing_left();
}

#[test]
fn without_grace_the_old_key_ends_at_once() {
    let setup = Setup::new().with("ROTATION_GRACE", "0");
    let (api, _worker, name) = provided(&setup);
    assert_eq!(api.rotate().status, 200);
    let new = api.key_now();
    eventually("the old key is gone", PATIENCE, || (keys_of(&name) == [new.0.clone()]).then_some(()));
}

#[test]
fn a_rotation_that_is_asked_for_again_soon_is_the_same_and_later_is_the_emergency_stop() {
    let setup = Setup::new();
    let (api, _worker, name) = provided(&setup);
    let first = api.key_now();
    let answer = api.rotate();
    assert_eq!(api.rotate().json, answer.json);
    let second = api.key_now();
    assert_eq!(keys_of(&name).len(), 2);
    forget_last_rotation(&setup);
    assert_eq!(api.rotate().status, 200);
    let third = api.key_now();
    let keys: BTreeSet<String> = keys_of(&name).into_iter().collect();
    assert_eq!(keys, BTreeSet::from([second.0, third.0.clone()]), "{first:?} is gone");
    assert!(works(&name, &third));
    // The removal of the first key is still due; it removes nothing else.
    setup
        .database
        .connect()
        .batch_execute("update tasks set run_at = now() where action = 'remove-previous-key'")
        .unwrap();
    eventually("one key is left", PATIENCE, || (keys_of(&name) == [third.0.clone()]).then_some(()));
    api.remove("one", BASIC);
    setup.check_nothing_left();
}

/// Says of the last rotation that it ended so many seconds ago.
fn age_last_rotation(setup: &Setup, seconds: u32) {
    let sql = format!(
        "update tasks set finished = now() - interval '{seconds} seconds' where action = 'rotate-credentials'"
    );
    setup.database.connect().batch_execute(&sql).unwrap();
}

#[test]
fn for_two_minutes_a_rotation_is_the_answer_and_then_no_more() {
    let setup = Setup::new();
    let (api, _worker, _) = provided(&setup);
    let first = api.rotate();
    assert_eq!(first.status, 200, "{}", first.text);
    age_last_rotation(&setup, 110);
    assert_eq!(api.rotate().json, first.json, "within two minutes");
    age_last_rotation(&setup, 130);
    let second = api.rotate();
    assert_eq!(second.status, 200, "{}", second.text);
    assert_ne!(second.json["AccessKeyId"], first.json["AccessKeyId"], "after two minutes");
}

#[test]
fn the_grace_is_an_hour_unless_the_operator_says_otherwise() {
    for (grace, seconds) in [("", "3600"), ("90m", "5400")] {
        let setup = Setup::new().with("ROTATION_GRACE", grace);
        let (api, _worker, _) = provided(&setup);
        let old = api.key_now().0;
        assert_eq!(api.rotate().status, 200);
        // Row, rotation and removal are of one transaction: all go by the same now().
        let sql = "select concat_ws(' ', r.previous_key, extract(epoch from r.previous_key_until - t.finished)::int,
                extract(epoch from d.run_at - t.finished)::int)
            from resources r join tasks t on t.resource = r.id and t.action = 'rotate-credentials'
                join tasks d on d.resource = r.id and d.action = 'remove-previous-key'";
        assert_eq!(setup.database.text(sql), Some(format!("{old} {seconds} {seconds}")), "{grace:?}");
    }
}

#[test]
fn twenty_rotations_at_once_make_one_key_while_a_thousand_reads_never_see_one_that_does_not_work() {
    let relay = relay();
    relay.refuse_new_keys(std::time::Duration::from_secs(2));
    let setup = Setup::new().through(&relay);
    let (api, _worker, name) = provided(&setup);
    let api_two = setup.api(&[]);
    let made_before = relay.calls().iter().filter(|it| *it == "CreateAccessKey").count();
    let seen: Mutex<BTreeSet<(String, String)>> = Mutex::default();
    let stop = AtomicBool::new(false);
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        for number in 0..4 {
            let (api, seen, stop) = (if number % 2 == 0 { &api } else { &api_two }, &seen, &stop);
            scope.spawn(move || {
                let mut count = 0;
                while count < 250 || !stop.load(Ordering::Relaxed) {
                    seen.lock().unwrap().insert(api.key_now());
                    count += 1;
                }
            });
        }
        let rotations: Vec<_> = (0..20)
            .map(|number| {
                let api = if number % 2 == 0 { &api } else { &api_two };
                scope.spawn(move || api.rotate())
            })
            .collect();
        let answers = rotations.into_iter().map(|it| it.join().unwrap()).collect();
        stop.store(true, Ordering::Relaxed);
        answers
    });
    let made: BTreeSet<String> =
        answers.iter().map(|it| format!("{} {}", it.status, it.json["AccessKeyId"])).collect();
    assert_eq!(made.len(), 1, "{made:?}");
    assert_eq!(answers[0].status, 200, "{}", answers[0].text);
    let calls = relay.calls();
    assert_eq!(calls.iter().filter(|it| *it == "CreateAccessKey").count() - made_before, 1);
    let seen = seen.into_inner().unwrap();
    assert_eq!(seen.len(), 2, "{seen:?}");
    for key in &seen {
        assert!(works(&name, key), "within the grace all that were given out work: {}", key.0);
    }
    assert_eq!(keys_of(&name).len(), 2);
}

#[test]
fn a_slow_rotation_says_where_its_key_will_appear() {
    let setup = Setup::new().with("WAIT_SECONDS", "0");
    let (api, worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    let old = api.key_now();
    drop(worker);
    let answer = api.rotate();
    assert_eq!(answer.status, 202, "{}", answer.text);
    assert!(answer.json["description"].as_str().unwrap().contains("service bindings"), "{}", answer.text);
    assert_eq!(api.key_now(), old);
    let _worker = setup.worker();
    eventually("the new key is given out", PATIENCE, || (api.key_now() != old).then_some(()));
}

#[test]
fn a_refused_rotation_leaves_the_key_and_can_be_tried_again() {
    let relay = relay();
    let setup = Setup::new().through(&relay);
    let (api, _worker, name) = provided(&setup);
    let old = api.key_now();
    relay.plan(Point::Named("CreateAccessKey".into(), 2), When::Before, access_denied());
    let answer = api.rotate();
    assert_eq!(answer.status, 502, "{}", answer.text);
    assert!(api.key_now() == old && works(&name, &old));
    assert_eq!(api.rotate().status, 200);
    assert_ne!(api.key_now(), old);
}

#[test]
fn a_rotation_that_is_given_up_leaves_no_key_that_nobody_knows() {
    for is_lost in [true, false] {
        let relay = relay();
        let setup = Setup::new().through(&relay);
        let (api, _worker, name) = provided(&setup);
        let old = api.key_now();
        relay.count_anew();
        if is_lost {
            relay.plan("CreateAccessKey#1".parse().unwrap(), When::After, Fault::Reset);
        }
        // By the run after that, or when the key has been proven.
        relay.plan("ListAccessKeys#2".parse().unwrap(), When::Before, access_denied());
        let answer = api.rotate();
        assert_eq!(answer.status, 502, "{}", answer.text);
        assert_eq!(keys_of(&name).len(), 2, "lost {is_lost}: it is left to a task that looks later");
        let due = "update tasks set run_at = now() where action = 'remove-unknown-keys'";
        assert_eq!(setup.database.connect().execute(due, &[]).unwrap(), 1);
        eventually("it goes", PATIENCE, || (keys_of(&name) == [old.0.clone()]).then_some(()));
        assert_eq!(setup.database.text("select coalesce(next_key, next_secret) from resources"), None);
        assert_eq!(api.key_now(), old);
    }
}

#[test]
fn a_key_that_comes_up_behind_a_run_that_went_wrong_is_removed() {
    let relay = relay();
    let setup = Setup::new().through(&relay);
    relay.plan("CreateAccessKey#1".parse().unwrap(), When::After, Fault::Reset);
    let (api, _worker, name) = provided(&setup);
    relay.plan("CreateAccessKey#3".parse().unwrap(), When::After, Fault::Reset);
    assert_eq!(api.rotate().status, 200);
    let looks = "update tasks set run_at = now() where action = 'remove-unknown-keys'";
    assert_eq!(relay.struck(), 2);
    let keys = || keys_of(&name).into_iter().collect::<BTreeSet<_>>();
    let (known, now) = (keys(), api.key_now());
    assert!(known.len() == 2 && known.contains(&now.0), "{known:?}");
    let previous = known.iter().find(|it| **it != now.0).unwrap();
    let form = "Action=DeleteAccessKey&Version=2010-05-08";
    ask_iam(&format!("{form}&UserName={name}&AccessKeyId={previous}")); // IAM takes no third
    ask_iam(&format!("Action=CreateAccessKey&Version=2010-05-08&UserName={name}"));
    assert_eq!(setup.database.connect().execute(looks, &[]).unwrap(), 2, "after provision and rotation");
    eventually("only the row's are left", PATIENCE, || {
        (keys() == BTreeSet::from([now.0.clone()])).then_some(())
    });
    api.remove("one", BASIC);
    setup.check_nothing_left();
}

#[test]
fn only_a_usable_instance_has_a_key_to_rotate() {
    let setup = Setup::new().with("WAIT_SECONDS", "0");
    let api = setup.api(&[]);
    assert_eq!(api.rotate().status, 404);
    assert_eq!(api.provision("one", BASIC).status, 202);
    let answer = api.rotate();
    assert_eq!((answer.status, answer.json["error"].as_str()), (422, Some("ConcurrencyError")));
    assert_eq!(api.send("POST", ROTATE, b"").status, 405);
    assert_eq!(
        setup.database.text("select count(*)::text from tasks where action <> 'provision'").as_deref(),
        Some("0")
    );
}

#[test]
fn actions_have_a_door_of_their_own() {
    let token = "a-token-of-27-characters--1";
    let setup = Setup::new().with("WAIT_SECONDS", "0");
    let schema = "/v2/service_instances/one/actions/rotate_credentials/schema";
    let api = setup.api(&[]);
    let stranger = api.without_header("Authorization");
    assert_eq!((stranger.rotate().status, stranger.get(schema).status), (401, 401));
    assert_eq!(api.get(schema).status, 200);
    assert_eq!(api.get(&format!("/{token}{schema}")).status, 404, "no token is set");

    let setup = setup.with("ACTIONS_TOKEN", token);
    let mut command = setup.api_command(&[]);
    let api = Broker::start(command.env("PORT", "0").env("ACTIONS_TOKEN", token));
    let open = Api::at(&api.wait_for_log("listening: address="));
    eventually("the api is ready", PATIENCE, || (open.get("/readyz").status == 200).then_some(()));
    let stranger = open.without_header("Authorization");
    assert_eq!(stranger.rotate().status, 401);
    assert_eq!(stranger.get(&format!("/{token}{schema}")).status, 200);
    assert_eq!(stranger.send("PUT", &format!("/{token}{ROTATE}"), b"").status, 404, "no such instance");
    assert_eq!(stranger.send("PUT", &format!("/{token}x{ROTATE}"), b"").status, 401);
    assert_eq!(stranger.get(&format!("/{token}/v2/catalog")).status, 401, "it opens nothing else");
    assert_eq!(open.get(&format!("/{token}/v2/catalog")).status, 200);
    assert!(!api.log().contains(token), "{}", api.log());
}

#[test]
fn the_schema_of_the_action_is_openapi() {
    let setup = Setup::new();
    let api = setup.api(&[]);
    let page = api.get("/v2/service_instances/a%2Fb/actions/rotate_credentials/schema").json;
    assert_eq!(page["openapi"], "3.0.3");
    assert!(page["info"]["title"].is_string() && page["info"]["version"].is_string());
    let server = page["servers"][0]["url"].as_str().unwrap();
    let (path, item) = page["paths"].as_object().unwrap().iter().next().unwrap();
    assert_eq!(format!("{server}{path}"), "/v2/service_instances/a%2Fb/actions/credentials");
    for (status, response) in item["put"]["responses"].as_object().unwrap() {
        assert!(status.parse::<u16>().is_ok() && response["description"].is_string(), "{status}");
        let schema = &response["content"]["application/json"]["schema"];
        assert_eq!(schema["type"], "object", "{status}");
        let properties = schema["properties"].as_object().unwrap();
        assert!(!properties.is_empty() && properties.values().all(|it| it["type"] == "string"), "{status}");
    }
}

/// Kills the worker after each call of a rotation.
#[test]
fn a_worker_killed_after_any_call_of_a_rotation_loses_no_key() {
    let with = |relay: &Relay| {
        Setup::new()
            .with("LEASE_SECONDS", "4")
            .with("WAIT_SECONDS", "0")
            .with("ROTATION_GRACE", "0")
            .through(relay)
    };
    let ready = |relay: &Relay| {
        let setup = with(relay);
        let (api, mut worker) = (setup.api(&[]), setup.worker());
        api.provide("one", BASIC);
        assert_eq!(worker.terminate(), Some(0));
        relay.count_anew();
        assert_eq!(api.rotate().status, 202);
        (setup, api)
    };
    let is_done =
        "select 'yes' from resources r where previous_key is null and next_key is null and not exists
        (select 1 from tasks t where t.resource = r.id and status not in ('finished', 'failed')
            and action <> 'remove-unknown-keys')";
    let clean = relay();
    let (setup, _api) = ready(&clean);
    let _worker = setup.worker();
    eventually("the rotation ends", PATIENCE, || setup.database.text(is_done));
    let calls: Vec<String> = clean.calls();
    assert!(calls.len() >= 5, "{calls:?}");
    for_each(0..calls.len(), |number| {
        let relay = relay();
        let (setup, api) = ready(&relay);
        let (old, name) = (api.key_now(), setup.database.text("select name from resources").unwrap());
        relay.plan(Point::Number(number + 1), When::After, Fault::Hang);
        let mut worker = setup.worker();
        kill_when_struck(&setup, &relay, &mut worker, calls.len() - number);
        relay.calm_down();
        let _worker = setup.worker();
        eventually("the rotation ends", PATIENCE, || setup.database.text(is_done));
        let new = api.key_now();
        assert_ne!(new, old, "{}", calls[number]);
        assert_eq!(keys_of(&name), std::slice::from_ref(&new.0), "{}", calls[number]);
        assert!(works(&name, &new));
    });
}

#[test]
fn a_rotation_that_a_delete_stops_is_told_so() {
    let setup = Setup::new().with("WAIT_SECONDS", "5");
    let (api, mut worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    assert_eq!(worker.terminate(), Some(0));
    let answer = std::thread::scope(|scope| {
        let rotation = scope.spawn(|| api.rotate());
        eventually("it waits", PATIENCE, || {
            setup.database.text("select 'yes' from tasks where action = 'rotate-credentials'")
        });
        assert_eq!(api.deprovision("one", BASIC).status, 202);
        rotation.join().unwrap()
    });
    let told = (answer.status, answer.json["error"].as_str());
    assert_eq!(told, (422, Some("ConcurrencyError")), "{}", answer.text);
}

#[test]
fn a_rotation_whose_keys_never_work_ends_and_leaves_the_present_one() {
    let relay = relay();
    let setup = Setup::new().with("WAIT_SECONDS", "0").through(&relay);
    let (api, _worker, name) = provided(&setup);
    let old = api.key_now();
    relay.refuse_new_keys(std::time::Duration::from_secs(3_600));
    assert_eq!(api.rotate().status, 202);
    let sql = "update resources set next_key_since = now() - interval '3 minutes' where next_key is not null";
    eventually("it is given up", PATIENCE, || {
        setup.database.connect().batch_execute(sql).unwrap();
        setup
            .database
            .text("select result from tasks where action = 'rotate-credentials' and status = 'failed'")
    });
    assert_eq!((api.key_now(), keys_of(&name)), (old.clone(), vec![old.0]));
    assert_eq!(setup.database.text("select coalesce(next_key, next_secret) from resources"), None);
}

#[test]
fn only_a_rotation_of_the_last_two_minutes_is_repeated() {
    let setup = Setup::new();
    let (api, _worker, _) = provided(&setup);
    assert_eq!(api.rotate().status, 200);
    let second = api.key_now();
    // As after a clock that was set back.
    let sql = "update tasks set finished = finished + interval '1 hour' where action = 'rotate-credentials'";
    setup.database.connect().batch_execute(sql).unwrap();
    assert_eq!(api.rotate().status, 200);
    assert_ne!(api.key_now(), second);
    api.remove("one", BASIC);
    api.provide("one", BASIC);
    let first = api.key_now();
    assert_eq!(api.rotate().status, 200);
    assert_ne!(api.key_now(), first, "what was rotated was another instance of that id");
}

#[test]
fn a_rotation_that_goes_on_is_joined_also_after_a_clock_was_set_back() {
    let setup = Setup::new().with("WAIT_SECONDS", "0");
    let (api, mut worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    assert_eq!(api.rotate().status, 202);
    let ended = "select 'yes' from tasks where action = 'rotate-credentials' and status = 'finished'";
    eventually("the rotation ends", PATIENCE, || setup.database.text(ended));
    assert_eq!(worker.terminate(), Some(0));
    forget_last_rotation(&setup);
    let sql = "update tasks set created = created + interval '1 hour'";
    setup.database.connect().batch_execute(sql).unwrap();
    assert_eq!((api.rotate().status, api.rotate().status), (202, 202));
    let open = "select count(*)::text from tasks where action = 'rotate-credentials' and status = 'pending'";
    assert_eq!(setup.database.text(open).as_deref(), Some("1"));
}
