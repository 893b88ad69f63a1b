//! How the processes start and end: flags, variables, complaints, signals.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::statuses::outage;
use crate::support::*;

/// How soon a process must have ended that has nothing to wait for.
const QUICK: Duration = Duration::from_secs(5);

/// A database that nobody connects to.
const NOWHERE: &str = "postgres://u:hush@127.0.0.1:1/d?sslmode=disable";

/// Settings with which both an api and a worker start.
const RIGHT: [(&str, &str); 7] = [
    ("DATABASE_URL", NOWHERE),
    ("NAME_PREFIX", "tst"),
    ("PORT", "0"),
    ("LISTEN_ADDRESS", "127.0.0.1"),
    ("AWS_REGION", "us-west-2"),
    ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
    ("AWS_SECRET_ACCESS_KEY", "hush"),
];

/// The binary with [`RIGHT`] and these; an empty value takes a variable out.
fn broker(flags: &[&str], variables: &[(&str, &str)]) -> Command {
    named(env!("CARGO_BIN_EXE_servicebroker"), flags, variables)
}

/// The same under another name.
fn named(program: &str, flags: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(program);
    command.args(flags).env_clear().envs(RIGHT);
    for (name, value) in variables {
        if value.is_empty() {
            command.env_remove(name);
        } else {
            command.env(name, value);
        }
    }
    command
}

/// Runs a command that must refuse its settings; the lines in which it says why.
fn complaints(command: &mut Command) -> Vec<String> {
    let mut process = Broker::start(command);
    let code = process.exit_code();
    std::thread::sleep(Duration::from_millis(20)); // the thread that keeps the log reads to its end
    let log = process.log();
    assert_eq!(code, Some(2), "{log}");
    assert!(!log.contains("hush"), "a secret is shown: {log}");
    log.lines().map(str::to_owned).collect()
}

/// What the complaints are about.
fn complained(command: &mut Command) -> Vec<String> {
    let lines = complaints(command);
    let about = lines.iter().map(|it| {
        let rest = it.strip_prefix("servicebroker: ").unwrap_or_else(|| panic!("{lines:?}"));
        let (setting, complaint) = rest.split_once(": ").unwrap_or_else(|| panic!("{lines:?}"));
        assert!(!complaint.is_empty(), "{lines:?}");
        setting.to_owned()
    });
    let mut about: Vec<String> = about.collect();
    about.sort_unstable();
    about
}

/// Starts an api that need not reach its database; also its address.
fn start_api(command: &mut Command) -> (Broker, String) {
    let process = Broker::start(command);
    let address = process.wait_for_log("listening: address=");
    (process, address)
}

/// Sends one request by hand; status and body.
fn ask(address: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|it| it.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, it)| it.to_owned());
    (status.unwrap_or_else(|| panic!("{answer:?}")), body.unwrap())
}

/// Ends a process as its supervisor does; it must succeed, and soon.
fn ends_well(process: &mut Broker) {
    let began = Instant::now();
    assert_eq!(process.terminate(), Some(0), "{}", process.log());
    let took = began.elapsed();
    assert!(took < QUICK, "{took:?}\n{}", process.log());
}

/// A port that somebody listens on, for as long as the listener lives.
fn taken_port() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    (listener, port)
}

#[test]
fn all_problems_are_named_at_once_one_line_each() {
    let wrong = [
        ("DATABASE_URL", "mysql://u:hush@h/d"),
        ("NAME_PREFIX", "Upper_Case"),
        ("PORT", "844e"),
        ("LISTEN_ADDRESS", "localhost"),
        ("WAIT_SECONDS", "51"),
        ("DATABASE_CONNECTIONS", "0"),
        ("STATEMENT_TIMEOUT_SECONDS", "1m"),
        ("MAX_CONNECTIONS", "none"),
        ("MAX_BODY_BYTES", "1"),
        ("BROKER_USERNAME", "u"),
        ("BROKER_PASSWORD_2", "hush"),
        ("WORKER_THREADS", "-1"),
        ("LEASE_SECONDS", "1"),
        ("PROVISION_DEADLINE", "soon"),
        ("IAM_PATH", "osb"),
        ("AWS_REGION", "US West"),
        ("AWS_ACCESS_KEY_ID", ""),
        ("AWS_SECRET_ACCESS_KEY", ""),
    ];
    let about = complained(&mut broker(&["-with-worker", "-nope=hush", "stray"], &wrong));
    let mut expected: Vec<&str> = wrong.iter().map(|(name, _)| *name).collect();
    for (name, other) in [("BROKER_USERNAME", "BROKER_PASSWORD"), ("BROKER_PASSWORD_2", "BROKER_USERNAME_2")]
    {
        *expected.iter_mut().find(|it| **it == name).unwrap() = other; // what is missing is named
    }
    expected.extend(["-nope", "stray"]);
    expected.sort_unstable();
    assert_eq!(about, expected);
}

#[test]
fn what_is_missing_is_named_once() {
    let empty: Vec<(&str, &str)> = RIGHT.iter().map(|(name, _)| (*name, "")).collect();
    assert_eq!(complained(&mut broker(&[], &empty)), ["DATABASE_URL", "NAME_PREFIX"]);
    let worker = ["AWS_ACCESS_KEY_ID", "AWS_REGION", "AWS_SECRET_ACCESS_KEY", "DATABASE_URL", "NAME_PREFIX"];
    for flags in [&["-background-tasks"], &["-with-worker"]] {
        assert_eq!(complained(&mut broker(flags, &empty)), worker, "{flags:?}");
    }
}

#[test]
fn each_setting_has_its_bounds() {
    let mut wrong = Vec::new();
    for (name, values) in [
        ("PORT", &["65536", "-1", "8443.0", "https"][..]),
        ("WAIT_SECONDS", &["-1", "51", "25s"]),
        ("LISTEN_ADDRESS", &["0.0.0.0:80", "[::]", "*"]),
        ("DATABASE_CONNECTIONS", &["0", "65", "many"]),
        ("STATEMENT_TIMEOUT_SECONDS", &["0", "61"]),
        ("MAX_CONNECTIONS", &["0", "65537"]),
        ("MAX_CONNECTIONS_PER_ADDRESS", &["0", "513"]),
        ("MAX_BODY_BYTES", &["1023", "67108865"]),
        ("WORKER_THREADS", &["0", "65"]),
        ("LEASE_SECONDS", &["3", "601"]),
        ("PROVISION_DEADLINE", &["0", "-5m", "25h", "1d"]),
        ("IAM_PATH", &["osb/", "/osb", "/o sb/"]),
        ("AWS_REGION", &["us_west", "evil.example/"]),
        ("AWS_CA_BUNDLE", &["/nonexistent.pem"]),
        ("AWS_ENDPOINT_URL", &["ftp://h", "no url"]),
        ("AWS_ENDPOINT_URL_S3", &["h:9000"]),
        ("AWS_ENDPOINT_URL_IAM", &["h:9000"]),
    ] {
        for value in values {
            let about = complained(&mut broker(&["-with-worker"], &[(name, value)]));
            if about != [name] {
                wrong.push(format!("{name}={value} is said to be {about:?}"));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn flags_that_nobody_knows_are_refused() {
    for (flag, about) in [
        ("-unknown=1", "-unknown"),
        ("--strict-osbs=1", "-strict-osbs"),
        ("-name-prefix", "-name-prefix"),
        ("-port=x", "--port"),
        ("-v=much", "--v"),
        ("-strict-osb=maybe", "--strict-osb"),
        ("-insecure=false", "--insecure"),
        ("serve", "serve"),
    ] {
        assert_eq!(complained(&mut broker(&[flag], &[])), [about], "{flag}");
    }
}

#[test]
fn nothing_listens_and_nothing_connects_before_the_settings_are_right() {
    let (database, database_port) = taken_port();
    let (_port_holder, port) = taken_port();
    database.set_nonblocking(true).unwrap();
    let url = format!("postgres://u:hush@127.0.0.1:{database_port}/d?sslmode=disable");
    let settings = [("DATABASE_URL", url.as_str()), ("PORT", &port), ("WAIT_SECONDS", "x")];
    // The port is taken: had it tried to listen, it would have said so.
    assert_eq!(complained(&mut broker(&[], &settings)), ["WAIT_SECONDS"]);
    assert!(database.accept().is_err(), "it has connected to its database");
}

#[test]
fn name_prefixes_fit_bucket_names() {
    let longest = "p".repeat(45);
    for good in ["a", "0", "prod", "my-company-1", &longest] {
        // Something else is wrong, so that it ends: the prefix is not complained of.
        let settings = [("NAME_PREFIX", good), ("PORT", "x")];
        assert_eq!(complained(&mut broker(&[], &settings)), ["PORT"], "{good}");
    }
    let too_long = "p".repeat(46);
    for bad in [
        "-a",
        "A",
        "a_b",
        "a.b",
        "a b",
        "ä",
        "xn--a",
        "xn-",
        "sthree",
        "sthree-x",
        "amzn-s3-demo",
        "a/b",
        &too_long,
    ] {
        assert_eq!(complained(&mut broker(&[], &[("NAME_PREFIX", bad)])), ["NAME_PREFIX"], "{bad}");
        let flag = format!("-name-prefix={bad}");
        assert_eq!(complained(&mut broker(&[&flag], &[])), ["NAME_PREFIX"], "{bad}");
    }
}

#[test]
fn database_urls_that_cannot_be_meant_are_refused_and_never_shown() {
    for bad in [
        "u:hush@h/d",
        "mysql://u:hush@h/d",
        "host=h user=u password=hush",
        "postgres://u:hush@h:port/d",
        "postgres://u:hush@h:99999/d",
        "postgres://",
        "postgres:///hush?sslmode=disable",
        "postgres://u:hush@h/d?sslmode=maybe",
        "postgres://u:hush@h/d?sslmode=",
        "postgres://u:hush@h/d?sslmode",
        "postgres://u:hush@h/d?sslmode=verify-ca&sslrootcert=/nonexistent-hush.pem",
        "postgres://u:hush@h/d?sslmode=verify-full&sslrootcert=/etc/hostname",
        "postgres://u:hush@h/d?sslcert=/client.pem&sslkey=/client.key",
        "postgres://u:hush@h/d?connect_timeout=soon",
    ] {
        if !bad.contains("nonexistent-hush") {
            assert_eq!(complained(&mut broker(&[], &[("DATABASE_URL", bad)])), ["DATABASE_URL"], "{bad}");
        }
        let flag = format!("-database-url={}", bad.replace("nonexistent-hush", "nonexistent"));
        assert_eq!(complained(&mut broker(&[&flag], &[])), ["DATABASE_URL"], "{flag}");
    }
}

#[test]
fn a_password_is_not_shown_while_the_database_cannot_be_reached() {
    for url in [NOWHERE, "postgres://u:hush@no-such-host.invalid/d"] {
        let (mut process, address) = start_api(&mut broker(&["-v", "2"], &[("DATABASE_URL", url)]));
        process.wait_for_log("database not ready");
        assert_eq!(ask(&address, "GET", "/readyz", "").0, 503);
        ends_well(&mut process);
        assert!(!process.log().contains("hush"), "{}", process.log());
    }
}

/// Standard output of a command that must succeed.
fn printed(flags: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_servicebroker"));
    let output = command.args(flags).env_clear().stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{flags:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{flags:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn version_and_help_need_no_settings() {
    for flags in [&["version"], &["-version"], &["--version"]] {
        let text = printed(flags);
        assert_eq!(text, concat!("servicebroker/", env!("CARGO_PKG_VERSION"), "\n"));
    }
    for flags in [&["help"], &["-help"], &["--help"], &["-h"]] {
        let text = printed(flags);
        for named in [
            "-background-tasks",
            "-with-worker",
            "-database-url",
            "-name-prefix",
            "-port",
            "-insecure",
            "-strict-osb",
            "-v N",
            "DATABASE_URL",
            "NAME_PREFIX",
            "PORT",
        ] {
            assert!(text.contains(named), "{named} is not in: {text}");
        }
    }
}

#[test]
fn the_variable_port_is_stronger_than_the_flag() {
    let (_holder, taken) = taken_port();
    let flag = format!("-port={taken}");
    let (mut process, address) = start_api(&mut broker(&[&flag], &[("PORT", "0")]));
    assert!(!address.ends_with(&format!(":{taken}")), "{address}");
    ends_well(&mut process);
    let (mut process, address) = start_api(&mut broker(&["-port", "0"], &[("PORT", "")]));
    assert_eq!(ask(&address, "GET", "/healthz", "").0, 200, "the flag counts where there is no variable");
    ends_well(&mut process);
}

#[test]
fn a_port_in_use_ends_the_process_with_a_reason() {
    let (_holder, taken) = taken_port();
    let flag = format!("-port={taken}");
    for mut command in [broker(&[], &[("PORT", &taken)]), broker(&[&flag], &[("PORT", "")])] {
        let mut process = Broker::start(&mut command);
        let reason = process.wait_for_log("PORT");
        assert!(reason.contains(&format!("127.0.0.1:{taken}")) && reason.contains("in use"), "{reason}");
        assert!(process.exit_code().is_some_and(|it| it != 0));
    }
}

#[test]
fn the_flag_database_url_is_stronger_than_the_variable() {
    let database = Database::create();
    let (mut process, address) = start_api(&mut broker(&["-database-url", database.url()], &[]));
    eventually("the api is ready", PATIENCE, || (ask(&address, "GET", "/readyz", "").0 == 200).then_some(()));
    ends_well(&mut process);
}

#[test]
fn the_flag_name_prefix_is_stronger_than_the_variable() {
    let database = Database::create();
    let settings = [("DATABASE_URL", database.url()), ("NAME_PREFIX", "variable"), ("WAIT_SECONDS", "0")];
    let (mut process, address) = start_api(&mut broker(&["--name-prefix=flag"], &settings));
    let body = provision_body(BASIC).to_string();
    let path = "/v2/service_instances/a?accepts_incomplete=true";
    eventually("provision", PATIENCE, || (ask(&address, "PUT", path, &body).0 == 202).then_some(()));
    let name = database.text("select name from resources").unwrap();
    assert!(name.starts_with("flag-u"), "{name}");
    ends_well(&mut process);
}

#[test]
fn flags_and_variables_of_glog_are_accepted() {
    let flags =
        ["-logtostderr=1", "-stderrthreshold", "0", "-alsologtostderr", "--vmodule=x=2", "-v=1", "-insecure"];
    let (mut process, address) = start_api(&mut broker(&flags, &[("GLOG_logtostderr", "1")]));
    assert_eq!(ask(&address, "GET", "/healthz", "").0, 200);
    ends_well(&mut process);
    assert!(process.log().contains("DEBUG"), "-v counts: {}", process.log());
}

/// Text of a time before UTF-8.
fn latin_1() -> &'static OsStr {
    OsStr::from_bytes(b"gr\xfc\xdfe")
}

#[test]
fn a_required_variable_that_is_not_utf_8_is_named() {
    for name in ["NAME_PREFIX", "DATABASE_URL"] {
        assert_eq!(complained(broker(&[], &[]).env(name, latin_1())), [name]);
    }
}

#[test]
fn an_optional_variable_that_is_not_utf_8_is_no_unset_one() {
    // Least of all a token: without one everybody is let in.
    for name in ["BROKER_TOKEN", "PORT"] {
        let mut process = Broker::start(broker(&[], &[("WAIT_SECONDS", "x")]).env(name, latin_1()));
        assert_eq!(process.exit_code(), Some(2));
        process.wait_for_log("WAIT_SECONDS");
        assert!(process.log().contains(name), "{name} is not complained of: {}", process.log());
    }
}

#[test]
fn an_argument_that_is_not_utf_8_is_refused_without_a_panic() {
    for argument in [latin_1(), OsStr::from_bytes(b"-name-prefix=gr\xfcn")] {
        let lines = complaints(broker(&[], &[]).arg(argument));
        assert_eq!(lines.len(), 1, "{lines:?}");
    }
}

/// A link to the binary under another name, removed at the end.
struct Link(std::path::PathBuf);

impl Link {
    fn create(name: &str) -> Link {
        let folder = std::env::temp_dir().join(unique());
        std::fs::create_dir(&folder).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_servicebroker"), folder.join(name)).unwrap();
        Link(folder.join(name))
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        std::fs::remove_dir_all(self.0.parent().unwrap()).unwrap();
    }
}

#[test]
fn a_program_called_start_background_sh_is_a_worker() {
    let (link, database) = (Link::create("start-background.sh"), Database::create());
    let keyless = [("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")];
    let about = complained(&mut named(link.path(), &[], &keyless));
    assert_eq!(about, ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]);
    let mut worker = Broker::start(&mut named(link.path(), &[], &[("DATABASE_URL", database.url())]));
    worker.wait_for_log("database ready");
    assert!(worker.log().contains("working: region=us-west-2"), "{}", worker.log());
    ends_well(&mut worker);
    assert!(!worker.log().contains("listening"), "{}", worker.log());
}

#[test]
fn a_program_called_start_sh_is_an_api_and_needs_no_keys() {
    let link = Link::create("start.sh");
    let keyless = [("AWS_REGION", ""), ("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")];
    let (mut api, address) = start_api(&mut named(link.path(), &[], &keyless));
    assert_eq!(ask(&address, "GET", "/healthz", "").0, 200);
    ends_well(&mut api);
    assert!(!api.log().contains("working"), "{}", api.log());
}

#[test]
fn every_kind_of_process_ends_quickly_when_it_is_asked_to() {
    let database = Database::create();
    let here = database.url();
    for (flags, url) in [
        (&[][..], here),
        (&["-background-tasks"], here),
        (&["-with-worker"], here),
        (&[], NOWHERE),
        (&["-background-tasks"], NOWHERE),
        (&["-with-worker"], NOWHERE),
    ] {
        let mut process = Broker::start(&mut broker(flags, &[("DATABASE_URL", url)]));
        process.wait_for_log(if url == NOWHERE { "database not ready" } else { "database ready" });
        if !flags.contains(&"-background-tasks") {
            let address = process.wait_for_log("listening: address=");
            let _idle = TcpStream::connect(address).unwrap();
            ends_well(&mut process);
        } else {
            ends_well(&mut process);
        }
    }
}

#[test]
fn a_request_that_waits_for_its_task_is_answered_before_the_process_ends() {
    let database = Database::create();
    let settings = [("DATABASE_URL", database.url()), ("WAIT_SECONDS", "50")];
    let (mut process, address) = start_api(&mut broker(&[], &settings));
    eventually("the api is ready", PATIENCE, || (ask(&address, "GET", "/readyz", "").0 == 200).then_some(()));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let path = "/v2/service_instances/a?accepts_incomplete=true";
            ask(&address, "PUT", path, &provision_body(BASIC).to_string())
        });
        let operation = eventually("the task is written down", PATIENCE, || {
            database.text("select task::text from tasks")
        });
        assert!(!waiting.is_finished(), "it waits");
        ends_well(&mut process);
        let (status, body) = waiting.join().unwrap();
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, body["operation"].as_str()), (202, Some(operation.as_str())), "{body}");
    });
}

/// The api is there without its database, says so, and serves as soon as `mend` has let it in.
fn starts_without(url: &str, mend: impl FnOnce()) {
    let (mut process, address) = start_api(&mut broker(&[], &[("DATABASE_URL", url)]));
    assert_eq!(ask(&address, "GET", "/healthz", ""), (200, "OK".to_owned()));
    assert_eq!(ask(&address, "GET", "/readyz", "").0, 503);
    for path in ["/v2/catalog", "/v2/service_instances/a/last_operation"] {
        let (status, body) = ask(&address, "GET", path, "");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert!(body["description"].is_string(), "{path}: {body}");
        assert_eq!(status, 503, "{path}: {body}");
    }
    mend();
    eventually("the api is ready", PATIENCE, || (ask(&address, "GET", "/readyz", "").0 == 200).then_some(()));
    assert_eq!(ask(&address, "GET", "/v2/catalog", "").0, 200);
    assert_eq!(ask(&address, "GET", "/v2/service_instances/a/last_operation", "").0, 404);
    ends_well(&mut process);
}

#[test]
fn an_api_starts_while_its_database_lets_nobody_in() {
    let database = Database::create();
    outage::close(&database);
    starts_without(database.url(), || outage::open(&database));
}

#[test]
fn an_api_starts_while_its_database_is_not_there() {
    let (server, database) = (setting("TEST_DATABASE_URL"), Database::create());
    let sql = |statement: String| {
        let mut client = postgres::Client::connect(&server, postgres::NoTls).unwrap();
        client.batch_execute(&statement).expect(&statement);
    };
    let path = database.url().split('?').next().unwrap();
    let name = path.rsplit('/').next().unwrap().to_owned();
    sql(format!("alter database {name} rename to {name}_later"));
    starts_without(database.url(), || sql(format!("alter database {name}_later rename to {name}")));
}

#[test]
fn an_api_answers_health_while_its_database_is_silent() {
    let (_silent, port) = taken_port();
    let url = format!("postgres://u:hush@127.0.0.1:{port}/d?sslmode=disable");
    let (mut process, address) = start_api(&mut broker(&[], &[("DATABASE_URL", &url)]));
    std::thread::scope(|scope| {
        let asked = Instant::now();
        let slow = scope.spawn(|| ask(&address, "GET", "/v2/service_instances/a/last_operation", "").0);
        for _ in 0..5 {
            assert_eq!(ask(&address, "GET", "/healthz", "").0, 200);
        }
        assert_eq!(slow.join().unwrap(), 503);
        assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
    });
    ends_well(&mut process);
}
