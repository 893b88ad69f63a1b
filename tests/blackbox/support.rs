//! What all black-box tests use: databases of their own, broker processes, an HTTP client.

mod own_database;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use serde_json::{Value, json};

pub(crate) use crate::cloud::*;
use crate::relay::Relay;
pub(crate) use own_database::Database;

/// The one offering and its plans.
pub(crate) const SERVICE: &str = "0124611d-2971-4533-8e38-a816a7a95ff1";
/// Plan `basic`.
pub(crate) const BASIC: &str = "1448e0b0-429a-4fa8-92a0-fd0d9e121cae";
/// Plan `versioned`.
pub(crate) const VERSIONED: &str = "aaa8e0b0-429a-44a8-32aa-1d119e12feac";
/// Plan `shield`.
pub(crate) const SHIELD: &str = "a448e0b0-529a-5fa8-a2a0-e11d9e121ca3";
/// Plan `shield-versioned`.
pub(crate) const SHIELD_VERSIONED: &str = "faa8e0b0-529a-54a8-42aa-fd219e12fea1";

/// How long anything here may take that should take a moment.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A setting that `tests/with-services` makes.
pub(crate) fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!(
            "{name} is not set. These tests need PostgreSQL and an AWS emulator: \
             `tests/run` installs and starts them; `tests/with-services cargo test` starts them."
        )
    })
}

/// A name that no other test uses. Buckets and users of the tests begin with `t`.
pub(crate) fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("t{}x{count}", std::process::id())
}

/// Tries until there is something, or fails.
pub(crate) fn eventually<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        let took = began.elapsed();
        assert!(took < limit, "after {limit:?} still not: {what}");
        // between looks, not instead of them; what takes long need not be seen at once
        std::thread::sleep((took / 10).clamp(Duration::from_millis(10), Duration::from_millis(100)));
    }
}

/// Provisions and deletes that run side by side.
const SIDE_BY_SIDE: usize = 6;

/// Runs `test` for each number, several at once.
pub(crate) fn for_each(numbers: std::ops::Range<usize>, test: impl Fn(usize) + Sync) {
    let next = std::sync::atomic::AtomicUsize::new(numbers.start);
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if number >= numbers.end {
                        return;
                    }
                    test(number);
                }
            });
        }
    });
}

/// A clean run in which something was repeated counts more steps than there are: with no more than so many left, the
/// work may end without the one that is waited for.
pub(crate) const REPEATED_MAX: usize = 3;

/// Kills a worker when the relay has struck, or the work has ended with few calls `left`, see [`REPEATED_MAX`].
pub(crate) fn kill_when_struck(setup: &Setup, relay: &Relay, worker: &mut Broker, left: usize) {
    let open = "select 'yes' from tasks where status in ('pending', 'started')
        and action not in ('sweep', 'remove-unknown-keys')";
    eventually("the call, or the end", PATIENCE, || {
        (relay.struck() > 0 || setup.database.text(open).is_none()).then_some(())
    });
    let may_end = relay.struck() > 0 || left <= REPEATED_MAX;
    assert!(may_end, "ended without the call, {left} left: {:?}", relay.calls());
    worker.kill();
}

/// How a broker is started: a database, a prefix, and what else the test wants.
pub(crate) struct Setup {
    /// Its database.
    pub(crate) database: Database,
    /// What its names begin with.
    pub(crate) prefix: String,
    /// Where its worker finds AWS.
    pub(crate) endpoint: String,
    /// Variables beside the usual ones; a later one of the same name wins.
    pub(crate) variables: Vec<(&'static str, String)>,
}

impl Setup {
    /// The usual one, on a new database.
    pub(crate) fn new() -> Setup {
        Setup::on(Database::create())
    }

    /// The usual one on this database.
    pub(crate) fn on(database: Database) -> Setup {
        Setup {
            database,
            prefix: unique(),
            endpoint: setting("TEST_AWS_ENDPOINT_URL"),
            variables: Vec::new(),
        }
    }

    /// With one variable more.
    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Setup {
        self.variables.push((name, value.to_owned()));
        self
    }

    /// With a worker that talks to AWS through this relay.
    pub(crate) fn through(mut self, relay: &Relay) -> Setup {
        self.endpoint = relay.endpoint.clone();
        self
    }

    /// Starts an api. It gets no AWS variable at all.
    pub(crate) fn api(&self, flags: &[&str]) -> Broker {
        let mut broker = Broker::start(self.api_command(flags).env("PORT", "0"));
        let ready = Api::at(&broker.wait_for_log("listening: address="));
        eventually("the api is ready", PATIENCE, || (ready.get("/readyz").status == 200).then_some(()));
        broker.api = Some(ready);
        broker
    }

    /// The command of an api, not started.
    pub(crate) fn api_command(&self, flags: &[&str]) -> Command {
        let mut command = self.command(flags);
        command.env("LISTEN_ADDRESS", "127.0.0.1");
        command
    }

    /// Starts a worker.
    pub(crate) fn worker(&self) -> Broker {
        let broker = Broker::start(&mut self.worker_command());
        broker.wait_for_log("database ready: ");
        broker
    }

    /// The command of a worker, not started.
    pub(crate) fn worker_command(&self) -> Command {
        self.aws_command(&["-background-tasks"])
    }

    /// The binary with what a worker gets.
    pub(crate) fn aws_command(&self, flags: &[&str]) -> Command {
        let mut command = self.command(flags);
        command
            .env("AWS_REGION", setting("TEST_AWS_REGION"))
            .env("AWS_ENDPOINT_URL", &self.endpoint)
            .env("AWS_ACCESS_KEY_ID", setting("TEST_AWS_ACCESS_KEY_ID"))
            .env("AWS_SECRET_ACCESS_KEY", setting("TEST_AWS_SECRET_ACCESS_KEY"))
            .env("AWS_EC2_METADATA_DISABLED", "true") // no test asks the machine that it runs on for a key
            .envs(self.variables.iter().map(|(name, value)| (*name, value.as_str())));
        command
    }

    /// The binary with what both processes get.
    fn command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_servicebroker"));
        command
            .args(flags)
            .env_clear()
            .env("DATABASE_URL", self.database.url())
            .env("NAME_PREFIX", &self.prefix)
            .env("BROKER_USERNAME", "platform")
            .env("BROKER_PASSWORD", "let-me-in")
            .envs(self.variables.iter().map(|(name, value)| (*name, value.as_str())));
        command
    }
}

/// A running process of the broker, killed at the end.
pub(crate) struct Broker {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    api: Option<Api>,
}

impl Broker {
    /// Starts a command and keeps what it logs.
    pub(crate) fn start(command: &mut Command) -> Broker {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, kept) = (BufReader::new(child.stderr.take().unwrap()).lines(), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                kept.lock().unwrap().push(line);
            }
        });
        Broker { child, log, api: None }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// What was logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// Waits for a line with `text` and returns what follows it there.
    pub(crate) fn wait_for_log(&self, text: &str) -> String {
        eventually(&format!("{text:?} is logged"), PATIENCE, || {
            let log = self.log.lock().unwrap();
            log.iter().find_map(|line| line.split_once(text)).map(|(_, rest)| rest.to_owned())
        })
    }

    /// Ends it as a crash would: SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it as a supervisor would, and returns its exit code.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        self.exit_code()
    }

    /// What it holds of the machine's memory.
    pub(crate) fn memory_kb(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Waits for its end.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let child = &mut self.child;
        eventually("the process ends", PATIENCE, || child.try_wait().unwrap()).code()
    }
}

impl std::ops::Deref for Broker {
    type Target = Api;

    fn deref(&self) -> &Api {
        self.api.as_ref().expect("only an api answers")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
        }
        if std::thread::panicking() {
            eprintln!("--- log of a broker process\n{}", self.log());
        }
    }
}

/// The address of an api, and what to send with each request.
#[derive(Clone)]
pub(crate) struct Api {
    base: String,
    /// Sent with each request.
    pub(crate) headers: Vec<(String, String)>,
}

/// What Akkeris sends, and the password of [`Setup`].
fn usual_headers() -> Vec<(String, String)> {
    let password = base64::engine::general_purpose::STANDARD.encode("platform:let-me-in");
    [("X-Broker-API-Version", "2.13".to_owned()), ("Authorization", format!("Basic {password}"))]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// HTTP status.
    pub(crate) status: u16,
    /// Names in lower case, and values.
    pub(crate) headers: Vec<(String, String)>,
    /// The body; null when it is no JSON.
    pub(crate) json: Value,
    /// The body as it came.
    pub(crate) text: String,
}

impl Answer {
    /// A header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

impl Api {
    /// The api at `host:port`, asked as Akkeris asks.
    pub(crate) fn at(address: &str) -> Api {
        Api { base: format!("http://{address}"), headers: usual_headers() }
    }

    /// With one header more, or another value for it.
    pub(crate) fn with_header(&self, name: &str, value: &str) -> Api {
        let mut other = self.without_header(name);
        other.headers.push((name.to_owned(), value.to_owned()));
        other
    }

    /// Without a header.
    pub(crate) fn without_header(&self, name: &str) -> Api {
        let mut other = self.clone();
        other.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
        other
    }

    /// Sends a request with these bytes as its body.
    pub(crate) fn send(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        self.try_send(method, path, body).unwrap_or_else(|err| panic!("{method} {path}: {err}"))
    }

    /// The same, where an api that is gone is to be expected.
    pub(crate) fn try_send(&self, method: &str, path: &str, body: &[u8]) -> Result<Answer, ureq::Error> {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .timeout_global(Some(Duration::from_secs(90)))
            .proxy(None)
            .build()
            .into();
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(body).unwrap();
        let mut response = agent.run(request)?;
        let text = response.body_mut().read_to_string()?;
        Ok(Answer {
            status: response.status().as_u16(),
            headers: response
                .headers()
                .iter()
                .map(|(name, value)| (name.as_str().to_owned(), value.to_str().unwrap().to_owned()))
                .collect(),
            json: serde_json::from_str(&text).unwrap_or(Value::Null),
            text,
        })
    }

    /// GET.
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send("GET", path, b"")
    }

    /// PUT of a JSON body.
    pub(crate) fn put(&self, path: &str, body: &Value) -> Answer {
        self.with_header("Content-Type", "application/json").send("PUT", path, body.to_string().as_bytes())
    }

    /// DELETE.
    pub(crate) fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, b"")
    }

    /// Asks for an instance as Akkeris does.
    pub(crate) fn provision(&self, instance: &str, plan: &str) -> Answer {
        self.put(&format!("/v2/service_instances/{instance}?accepts_incomplete=true"), &provision_body(plan))
    }

    /// Asks for an instance and waits until it can be used.
    pub(crate) fn provide(&self, instance: &str, plan: &str) {
        let answer = self.provision(instance, plan);
        match answer.status {
            201 => {}
            202 => self.wait_for_state(instance, "succeeded"),
            other => panic!("provision of {instance}: {other} {}", answer.text),
        }
    }

    /// Waits for a state of last_operation.
    pub(crate) fn wait_for_state(&self, instance: &str, state: &str) {
        eventually(&format!("{instance} {state}"), PATIENCE, || {
            let answer = self.get(&format!("/v2/service_instances/{instance}/last_operation"));
            assert_eq!(answer.status, 200, "{}", answer.text);
            (answer.json["state"] == state).then_some(())
        });
    }

    /// Binds and returns the credentials.
    pub(crate) fn bind(&self, instance: &str, binding: &str) -> Value {
        let path = format!("/v2/service_instances/{instance}/service_bindings/{binding}");
        let answer = self.put(&path, &bind_body(BASIC));
        assert!(matches!(answer.status, 200 | 201), "{} {}", answer.status, answer.text);
        answer.json["credentials"].clone()
    }

    /// Asks for the end of an instance.
    pub(crate) fn deprovision(&self, instance: &str, plan: &str) -> Answer {
        let query = format!("accepts_incomplete=true&service_id={SERVICE}&plan_id={plan}");
        self.delete(&format!("/v2/service_instances/{instance}?{query}"))
    }

    /// Asks for the end of an instance and waits until it is gone.
    pub(crate) fn remove(&self, instance: &str, plan: &str) {
        let answer = self.deprovision(instance, plan);
        assert!(matches!(answer.status, 200 | 202), "{} {}", answer.status, answer.text);
        eventually(&format!("{instance} is gone"), PATIENCE, || {
            let answer = self.get(&format!("/v2/service_instances/{instance}/last_operation"));
            (answer.status == 410).then_some(())
        });
    }
}

/// What Akkeris sends to provision.
pub(crate) fn provision_body(plan: &str) -> Value {
    json!({
        "service_id": SERVICE, "plan_id": plan, "organization_guid": "our org",
        "space_guid": "00000000-0000-0000-0000-000000000000",
    })
}

/// What Akkeris sends to bind.
pub(crate) fn bind_body(plan: &str) -> Value {
    json!({ "service_id": SERVICE, "plan_id": plan })
}
