//! The stage of one run: a database of its own, a relay and a proxy around the worker.

use std::process::Command;

use super::Place;
use super::kind::Kind;
use crate::proxy::{Mood, Proxy, steps_of_a_task};
use crate::relay::Relay;
use crate::support::*;
use crate::webhooks::receiver::{Reaction, Receiver};

/// What notices are signed with.
const SECRET: &str = "planted secret";
/// The shortest that can be set.
const LEASE_S: &str = "4";

/// The plan that promises what another does not.
fn opposite(plan: &str) -> &'static str {
    match plan {
        BASIC => SHIELD_VERSIONED,
        VERSIONED => SHIELD,
        SHIELD => VERSIONED,
        _ => BASIC,
    }
}

/// Where one run takes place.
pub(super) struct Scene {
    setup: Setup,
    pub(super) relay: Relay,
    pub(super) proxy: Proxy,
    api: Broker,
    kind: Kind,
    plan: String,
    /// The name of bucket and user.
    name: String,
    /// What the task knew at its beginning.
    metadata: String,
    /// Whom notices are sent to.
    receiver: Option<Receiver>,
}

impl Scene {
    /// A stage on which the next task will be of this kind.
    pub(super) fn prepare(kind: Kind, plan: &str) -> Scene {
        let mut setup = Setup::new()
            .with("WAIT_SECONDS", "0")
            .with("LEASE_SECONDS", LEASE_S)
            .with("STATEMENT_TIMEOUT_SECONDS", "1")
            .with("WORKER_THREADS", "1");
        let receiver = (kind == Kind::Notice).then(|| Receiver::start(&[Reaction::Answer(204)]));
        if let Some(receiver) = &receiver {
            // With such a lease a call may take a second; on a busy machine one may need a second try.
            setup = setup.with("WEBHOOK_HOSTS", &receiver.host()).with("RETRY_WEBHOOKS", "true");
        }
        let (relay, proxy) = (relay(), Proxy::before(setup.database.url()));
        let api = setup.api(&[]);
        let setup = setup.with("DATABASE_URL", proxy.url()).through(&relay);
        let (name, metadata, plan) = (String::new(), String::new(), plan.to_owned());
        let mut scene = Scene { setup, relay, proxy, api, kind, plan, name, metadata, receiver };
        if kind != Kind::Provision {
            let mut worker = scene.worker();
            scene.furnish();
            assert_eq!(worker.terminate(), Some(0));
        }
        scene
    }

    /// Makes the instance, and what else must be there before the task.
    fn furnish(&mut self) {
        if self.kind == Kind::Check {
            // As many as are asked for, so that a worker leaves it alone; nobody has put anything into it.
            self.execute(&format!("update plans set preprovision = 1 where plan = '{}'", self.plan));
            let made = "select name from resources where status = 'available'";
            self.name = eventually("one is in stock", PATIENCE, || self.setup.database.text(made));
            return;
        }
        self.api.provide("one", &self.plan);
        self.name = self.text("select name from resources");
        put_object(&self.name, "a");
        put_object(&self.name, "a");
        if self.kind == Kind::Sweep {
            self.api.remove("one", &self.plan);
        }
        if self.kind == Kind::RemoveUnknownKeys {
            ask_iam(&format!("Action=CreateAccessKey&Version=2010-05-08&UserName={}", self.name));
        }
        if self.kind == Kind::RemovePreviousKey {
            self.rotate();
            let waits = "select 'yes' from tasks where action = 'remove-previous-key'";
            eventually("another key is there", PATIENCE, || self.setup.database.text(waits));
        }
    }

    /// Asks for another access key.
    fn rotate(&self) {
        assert_eq!(self.api.send("PUT", "/v2/service_instances/one/actions/credentials", b"").status, 202);
    }

    /// Spoils all that a resync repairs, and who pays, which stands in the tags.
    fn spoil(&self) {
        let form = "Action=DeleteUserPolicy&Version=2010-05-08&PolicyName=bucket";
        ask_iam(&format!("{form}&UserName={}", self.name));
        self.execute(
            "update resources set user_arn = null, region = 'nowhere', location = 'nowhere',
                s3_endpoint = 'nowhere', organization = 'another org'",
        );
    }

    /// Binds, and wants to be told. The tags are for another time.
    fn bind_with_notice(&self) {
        let query = self.receiver.as_ref().unwrap().query("/", SECRET);
        let path = format!("/v2/service_instances/one/service_bindings/app-space?{query}");
        assert_eq!(self.api.put(&path, &bind_body(BASIC)).status, 201);
        self.execute("update tasks set run_at = now() + interval '1 day' where action = 'tag'");
    }

    /// Asks for the task, and counts from now on.
    pub(super) fn begin(&mut self) {
        match self.kind {
            Kind::Provision => assert_eq!(self.api.provision("one", &self.plan).status, 202),
            Kind::Delete => assert_eq!(self.api.deprovision("one", &self.plan).status, 202),
            Kind::Rotate => self.rotate(),
            Kind::Sweep | Kind::RemovePreviousKey => self
                .execute(&format!("update tasks set run_at = now() where action = '{}'", self.kind.action())),
            Kind::Change => {
                let plan = opposite(&self.plan).to_owned();
                assert_eq!(self.api.change("one", &plan).status, 202);
                self.plan = plan;
            }
            Kind::Tag => drop(self.api.bind("one", "app-space")),
            Kind::Check | Kind::RemoveUnknownKeys => self.enqueue(),
            Kind::Resync => {
                self.spoil();
                self.enqueue();
            }
            Kind::Notice => self.bind_with_notice(),
        }
        self.name = self.text("select name from resources");
        let metadata = format!("select metadata from tasks where action = '{}'", self.kind.action());
        self.metadata = self.text(&metadata);
        self.relay.count_anew();
        self.proxy.count(Some(steps_of_a_task));
    }

    /// Writes a task that no request makes.
    fn enqueue(&self) {
        self.execute(&format!(
            "insert into tasks (task, resource, action) select gen_random_uuid(), id, '{}' from resources",
            self.kind.action()
        ));
    }

    /// A worker behind both.
    pub(super) fn worker(&self) -> Broker {
        self.setup.worker()
    }

    /// One whose run is recorded: it says also which calls it makes, and that a run ends in waiting. It finds its task
    /// once AWS has told it whose key it has: a task that is faster asks that itself, and looks at its claim once more
    /// for it.
    pub(super) fn recorded_worker(&self) -> Broker {
        self.proxy.turn(Mood::Held);
        let worker = Broker::start(self.setup.worker_command().env("GLOG_v", "1"));
        worker.wait_for_log(" known to AWS: ");
        self.proxy.turn(Mood::Open);
        worker
    }

    /// One that waits for the database for longer than its lease holds; it says also how a run ended in waiting.
    pub(super) fn patient_worker(&self) -> Broker {
        Broker::start(self.setup.worker_command().env("STATEMENT_TIMEOUT_SECONDS", "10").env("GLOG_v", "1"))
    }

    /// Waits until the task has ended, and what follows it at once.
    pub(super) fn wait_for_end(&self, kind: Kind) {
        let action = kind.action();
        let sql = format!("select status || ': ' || result from tasks where action = '{action}'");
        let state = eventually(&format!("{kind:?} ends"), PATIENCE * 2, || {
            if kind == Kind::Check {
                // What AWS did not answer is asked a minute later.
                self.execute("update tasks set run_at = now() where action = 'check' and run_at > now()");
            }
            self.setup.database.text(&sql).filter(|it| it.starts_with('f'))
        });
        assert_eq!(state, format!("finished: {}", kind.result()));
        if kind == Kind::Resync {
            let open = "select 'yes' from tasks where action = 'tag' and status in ('pending', 'started')";
            eventually("the tags are written", PATIENCE * 2, || {
                self.setup.database.text(open).is_none().then_some(())
            });
        }
    }

    /// The points of the run so far. What a worker asks AWS at its start is none.
    pub(super) fn places(&self) -> Vec<Place> {
        let mut counts = std::collections::HashMap::new();
        let calls = self.relay.calls();
        let calls = calls.into_iter().filter(|it| it != "GetCallerIdentity").map(|call| {
            let count: &mut usize = counts.entry(call.clone()).or_default();
            *count += 1;
            Place::Aws(format!("{call}#{count}"))
        });
        let (mut calls, mut statements): (Vec<Place>, _) = (calls.collect(), self.proxy.points());
        if self.kind == Kind::Resync {
            // The tags that follow it are tried by themselves.
            calls.retain(
                |it| !matches!(it, Place::Aws(call) if call.contains("Tag") || call.contains("tagUser")),
            );
            let enqueued = statements.iter().position(|it| it == "insert tasks#1").unwrap();
            let after = statements[enqueued..].iter().position(|it| it.starts_with("commit")).unwrap();
            statements.truncate(enqueued + after + 1);
        }
        calls.into_iter().chain(statements.into_iter().map(Place::Sql)).collect()
    }

    /// Waits until the fault at this place has happened. On a busy machine a call before it may be out of time, and the
    /// stock is then looked at again after a minute.
    pub(super) fn wait_until_struck(&self, place: &Place) {
        match place {
            Place::Aws(_) => self.relay.wait_until_struck(1, PATIENCE * 2),
            Place::Sql(_) => self.proxy.wait_until_struck(PATIENCE * 2),
        }
    }

    /// Cuts all connections to the database, and lets AWS' answer come after that.
    pub(super) fn cut_database(&self) {
        self.proxy.turn(Mood::Down);
        self.relay.release();
        self.proxy.turn(Mood::Open);
    }

    /// Stops the worker's process until another has the task, or has ended it.
    pub(super) fn take_over(&self, worker: &Broker) -> Broker {
        signal(worker, "STOP");
        let other = self.worker();
        let taken = "select 'yes' from tasks t where (retries > 1 or status = 'finished')
            and created = (select max(created) from tasks where run_at <= now())";
        eventually("another worker has it", PATIENCE, || self.setup.database.text(taken));
        self.relay.release();
        self.proxy.release();
        signal(worker, "CONT");
        other
    }

    /// Cuts the worker off from the database until another, which goes another way, has ended the task.
    pub(super) fn outlive(&self) -> Broker {
        self.proxy.turn(Mood::Held);
        let url = self.setup.database.url();
        let other = Broker::start(self.setup.worker_command().env("DATABASE_URL", url));
        self.wait_for_end(self.kind);
        self.proxy.turn(Mood::Open);
        self.proxy.release();
        other
    }

    /// Everything that there is of the instance, with what differs from run to run taken out.
    pub(super) fn describe(&self) -> String {
        let name = self.text("select name from resources");
        let row = self.text(
            "select (to_jsonb(r) - array['created', 'updated', 'key_since', 'username', 'password', 'name',
                'endpoint', 'previous_key', 'previous_key_until'])::text || ' key ' || (username is not null)::text
                || ' secret ' || (password is not null)::text || ' previous ' || (previous_key is not null)::text
                from resources r",
        );
        let of_row = |column: &str| self.setup.database.text(&format!("select {column} from resources"));
        let (held, previous) = (of_row("username"), of_row("previous_key"));
        let name_key = |it: &String| match Some(it) {
            it if it == held.as_ref() => "held",
            it if it == previous.as_ref() => "previous",
            _ => "unknown",
        };
        let mut keys: Vec<&str> = keys_of(&name).iter().map(name_key).collect();
        keys.sort_unstable();
        // The clean run too may leave none.
        assert!(!keys.contains(&"unknown"), "a key that the row does not name: {keys:?}");
        let mut text = format!("{row}\nkeys {keys:?}\nleft {:?}\n", self.setup.left_in_aws());
        text.push_str(&self.describe_notices());
        for word in [
            "versioning",
            "lifecycle",
            "encryption",
            "tagging",
            "publicAccessBlock",
            "ownershipControls",
            "policy",
        ] {
            text.push_str(&format!("{word}: {}\n", ask_s3(&format!("/{}?{word}", name))));
        }
        for action in ["GetUser", "GetUserPolicy"] {
            let form = format!("Action={action}&Version=2010-05-08&UserName={}&PolicyName=bucket", name);
            text.push_str(&format!("{action}: {}\n", ask_iam(&form)));
        }
        let (endpoint, id) = (&self.relay.endpoint, self.text("select id from resources"));
        let (_, host) = endpoint.split_once("://").unwrap();
        let broker = self.text("select id::text from broker");
        // An instance of the stock has an id of its own.
        let text = [
            (&*name, "NAME"),
            (&*self.setup.prefix, "PREFIX"),
            (host, "HOST"),
            (&*broker, "BROKER"),
            (&*id, "one"),
        ]
        .iter()
        .fold(text, |text, (from, to)| text.replace(from, to));
        ["RequestId", "HostId", "UserId", "CreateDate", "ID"]
            .iter()
            .fold(text, |text, name| without(&text, name))
    }

    /// What the receiver was told, once or more often, where there is one.
    fn describe_notices(&self) -> String {
        let Some(receiver) = &self.receiver else { return String::new() };
        let mut told: Vec<_> = receiver.received().iter().map(|it| it.told(SECRET)).collect();
        assert!(!told.is_empty(), "nobody was told");
        told.dedup();
        let keeps = self.text("select 'yes' from tasks where metadata like '%planted%'");
        format!("told {told:?}, keeps the secret {keeps:?}\n")
    }

    /// Removes the instance; nothing may be left.
    pub(super) fn remove(&self) {
        if self.kind == Kind::Check {
            // It is given out as it is, and nobody asks for another.
            assert_eq!(self.api.provision("one", &self.plan).status, 201);
            self.execute("update plans set preprovision = 0");
        }
        let _worker = self.worker();
        self.api.remove("one", &self.plan);
        self.setup.check_nothing_left();
    }

    /// Has the task that has ended run once more, from its first step.
    pub(super) fn run_again(&self, kind: Kind) {
        let status = match kind {
            Kind::Provision => "provisioning",
            Kind::Delete | Kind::Sweep => "deprovisioning",
            Kind::Rotate
            | Kind::RemovePreviousKey
            | Kind::RemoveUnknownKeys
            | Kind::Change
            | Kind::Tag
            | Kind::Check
            | Kind::Resync
            | Kind::Notice => "available",
        };
        let (calls, notices) = (self.relay.calls().len(), self.notices());
        if kind != Kind::Sweep {
            self.execute(&format!("update resources set status = '{status}', deleted = false"));
        }
        let again = "update tasks set status = 'pending', run_at = now(), result = '', metadata = $1 where action = $2";
        let mut client = self.setup.database.connect();
        client.execute(again, &[&self.metadata, &kind.action()]).unwrap();
        self.wait_for_end(kind);
        assert!(self.relay.calls().len() >= calls + kind.calls_min(), "it did not run again");
        assert_eq!(self.notices() > notices, kind == Kind::Notice);
    }

    /// How many notices came so far.
    fn notices(&self) -> usize {
        self.receiver.as_ref().map_or(0, |it| it.received().len())
    }

    fn text(&self, sql: &str) -> String {
        self.setup.database.text(sql).unwrap_or_default()
    }

    fn execute(&self, sql: &str) {
        self.setup.database.connect().batch_execute(sql).unwrap();
    }
}

/// Sends a signal to a worker.
fn signal(worker: &Broker, name: &str) {
    let status = Command::new("kill").args(["-s", name, &worker.pid().to_string()]).status();
    assert!(status.unwrap().success());
}

/// The text without the elements of a name.
fn without(text: &str, name: &str) -> String {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut parts = text.split(&open);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once(&close).map_or(part, |(_, rest)| rest))
}
