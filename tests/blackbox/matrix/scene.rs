//! The stage of one run: a database of its own, a relay and a proxy around the worker.

use std::process::Command;

use super::Place;
use crate::proxy::{Mood, Proxy, steps_of_a_task};
use crate::relay::Relay;
use crate::support::*;

/// The shortest that can be set.
const LEASE_S: &str = "4";

/// What a worker does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// Makes an instance.
    Provision,
    /// Removes it.
    Delete,
    /// Looks at its name once more.
    Sweep,
    /// Makes another access key.
    Rotate,
    /// Makes it what the plan opposite promises.
    Change,
    /// Writes its tags anew.
    Tag,
}

impl Kind {
    /// All of them.
    pub(super) const ALL: [Kind; 6] =
        [Kind::Provision, Kind::Delete, Kind::Sweep, Kind::Rotate, Kind::Change, Kind::Tag];

    /// The text in the table.
    fn action(self) -> &'static str {
        match self {
            Kind::Provision => "provision",
            Kind::Delete => "delete",
            Kind::Sweep => "sweep",
            Kind::Rotate => "rotate-credentials",
            Kind::Change => "change-plans",
            Kind::Tag => "tag",
        }
    }
}

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
}

impl Scene {
    /// A stage on which the next task will be of this kind.
    pub(super) fn prepare(kind: Kind, plan: &str) -> Scene {
        let setup = Setup::new()
            .with("WAIT_SECONDS", "0")
            .with("LEASE_SECONDS", LEASE_S)
            .with("STATEMENT_TIMEOUT_SECONDS", "1")
            .with("WORKER_THREADS", "1");
        let (relay, proxy) = (relay(), Proxy::before(setup.database.url()));
        let api = setup.api(&[]);
        let setup = setup.with("DATABASE_URL", proxy.url()).through(&relay);
        let mut scene = Scene { setup, relay, proxy, api, kind, plan: plan.to_owned(), name: String::new() };
        if kind != Kind::Provision {
            let mut worker = scene.worker();
            scene.api.provide("one", plan);
            scene.name = scene.text("select name from resources");
            put_object(&scene.name, "a");
            put_object(&scene.name, "a");
            if kind == Kind::Sweep {
                scene.api.remove("one", plan);
            }
            assert_eq!(worker.terminate(), Some(0));
        }
        scene
    }

    /// Asks for the task, and counts from now on.
    pub(super) fn begin(&mut self) {
        match self.kind {
            Kind::Provision => assert_eq!(self.api.provision("one", &self.plan).status, 202),
            Kind::Delete => assert_eq!(self.api.deprovision("one", &self.plan).status, 202),
            Kind::Sweep => self.execute("update tasks set run_at = now() where action = 'sweep'"),
            Kind::Rotate => {
                let path = "/v2/service_instances/one/actions/credentials";
                assert_eq!(self.api.send("PUT", path, b"").status, 202);
            }
            Kind::Change => {
                let plan = opposite(&self.plan).to_owned();
                assert_eq!(self.api.change("one", &plan).status, 202);
                self.plan = plan;
            }
            Kind::Tag => drop(self.api.bind("one", "app-space")),
        }
        self.name = self.text("select name from resources");
        self.relay.count_anew();
        self.proxy.count(Some(steps_of_a_task));
    }

    /// A worker behind both.
    pub(super) fn worker(&self) -> Broker {
        self.setup.worker()
    }

    /// One that waits for the database for longer than its lease holds.
    pub(super) fn patient_worker(&self) -> Broker {
        Broker::start(self.setup.worker_command().env("STATEMENT_TIMEOUT_SECONDS", "10"))
    }

    /// Waits until the task has ended.
    pub(super) fn wait_for_end(&self, kind: Kind) {
        let sql = format!("select status::text from tasks where action = '{}'", kind.action());
        let state = eventually(&format!("{kind:?} ends"), PATIENCE * 2, || {
            self.setup.database.text(&sql).filter(|it| it == "finished" || it == "failed")
        });
        assert_eq!(state, "finished");
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
        let calls: Vec<Place> = calls.collect();
        calls.into_iter().chain(self.proxy.points().into_iter().map(Place::Sql)).collect()
    }

    /// Waits until the fault at this place has happened.
    pub(super) fn wait_until_struck(&self, place: &Place) {
        match place {
            Place::Aws(_) => self.relay.wait_until_struck(1, PATIENCE),
            Place::Sql(_) => self.proxy.wait_until_struck(PATIENCE),
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
                'endpoint', 'user_arn', 'location', 'previous_key', 'previous_key_until'])::text || ' key ' || (username is not null)::text || ' secret '
                || (password is not null)::text from resources r",
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
        let mut text = format!("{row}\nkeys {keys:?}\nleft {:?}\n", self.setup.left_in_aws());
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
        let text = text.replace(&name, "NAME").replace(&self.setup.prefix, "PREFIX");
        let broker = self.text("select id::text from broker");
        let text = text.replace(&self.relay.endpoint, "ENDPOINT").replace(&broker, "BROKER");
        ["RequestId", "HostId", "UserId", "CreateDate", "ID"]
            .iter()
            .fold(text, |text, name| without(&text, name))
    }

    /// Removes the instance; nothing may be left.
    pub(super) fn remove(&self) {
        let _worker = self.worker();
        self.api.remove("one", &self.plan);
        self.setup.check_nothing_left();
    }

    /// Has the task that has ended run once more, from its first step.
    pub(super) fn run_again(&self, kind: Kind) {
        let status = match kind {
            Kind::Provision => "provisioning",
            Kind::Delete | Kind::Sweep => "deprovisioning",
            Kind::Rotate | Kind::Change | Kind::Tag => "available",
        };
        let calls = self.relay.calls().len();
        if kind != Kind::Sweep {
            self.execute(&format!("update resources set status = '{status}', deleted = false"));
        }
        self.execute(&format!(
            "update tasks set status = 'pending', run_at = now(),
                metadata = case action when 'provision' then '' else metadata end where action = '{}'",
            kind.action()
        ));
        self.wait_for_end(kind);
        assert!(self.relay.calls().len() > calls + 1, "it did not run again");
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
