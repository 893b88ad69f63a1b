//! Processes that start, with what they were given, and end when they are asked to.

use serde_json::Value;

use super::*;
use crate::statuses::outage;

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
fn the_old_binarys_command_line_still_starts_and_says_what_has_no_effect() {
    let old = [
        "-logtostderr=1",
        "-stderrthreshold",
        "0",
        "-v",
        "2",
        "-insecure",
        "-port=0",
        "-log_dir=/nonexistent",
        "-vmodule",
        "a=1",
        "-alsologtostderr",
        "-log_backtrace_at=a.go:1",
        "-tls-cert-file=/hush.pem",
        "--tls-private-key-file",
        "/hush.key",
        "-tlsCert=hush",
        "-tlsKey",
        "hush",
        "-kube-config",
        "/hush",
        "-authenticate-k8s-token=false",
        "-name-prefix",
        "",
        "-database-url",
        "",
    ];
    let help = include_str!("../../go-broker/cli_help.txt");
    for flag in help.lines().filter_map(|it| it.strip_prefix("  -")?.split(' ').next()) {
        let is_given = |it: &&str| it.trim_start_matches('-').split('=').next() == Some(flag);
        assert!(old.iter().any(is_given) || flag == "background-tasks", "the old binary knew -{flag}");
    }
    let variables = [("GLOG_logtostderr", "1"), ("GLOG_log_dir", "/hush"), ("STACKIMPACT", "hush")];
    for role in [&[][..], &["-background-tasks"]] {
        let mut process = Broker::start(&mut broker(&[&old[..], role].concat(), &variables));
        process.wait_for_log("database not ready");
        ends_well(&mut process);
        let log = process.log();
        assert!(!log.contains("hush") && log.contains("DEBUG"), "{log}");
        for name in [
            "STACKIMPACT",
            "/metrics",
            "--log_dir",
            "--vmodule",
            "--alsologtostderr",
            "--log_backtrace_at",
            "GLOG_log_dir",
            "--tls-cert-file and",
            "--tlsCert and",
            "--kube-config",
        ] {
            assert_eq!(log.matches(name).count(), 1, "{name}: {log}");
        }
        for name in ["--logtostderr", "stderrthreshold", "GLOG_logtostderr"] {
            assert!(!log.contains(name), "{name}: {log}");
        }
        let told = log.lines().filter(|it| it.contains("effect")).count();
        assert_eq!(told, 5, "{log}");
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
    let about = complained(&mut named(link.path(), &[], &[("AWS_REGION", "")]));
    assert_eq!(about, ["AWS_REGION"]);
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
    let (mut process, address) = start_api(&mut broker(&[], &[("DATABASE_URL", url), ("WAIT_SECONDS", "1")]));
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
