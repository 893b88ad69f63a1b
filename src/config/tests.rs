//! Settings as a process would get them.

use super::*;

const WORKER: [(&str, &str); 5] = [
    ("DATABASE_URL", "postgres://u:p@h/d"),
    ("NAME_PREFIX", "tst"),
    ("AWS_REGION", "us-west-2"),
    ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
    ("AWS_SECRET_ACCESS_KEY", "hush"),
];

fn run(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> (Option<Config>, Vec<String>) {
    let arguments = arguments.iter().map(|&it| it.to_owned()).collect();
    let variable = |name: &'static str| {
        variables.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    };
    let (command, problems) = parse(program, arguments, variable);
    let problems = problems.iter().map(ToString::to_string).collect();
    match command {
        Command::Run(config) => (Some(*config), problems),
        Command::Version | Command::Help(_) | Command::Reconcile(..) => (None, problems),
    }
}

#[test]
fn the_four_forms_of_a_flag_mean_the_same() {
    for form in [&["-port", "9000"][..], &["--port", "9000"], &["-port=9000"], &["--port=9000"]] {
        let (config, problems) = run("servicebroker", form, &WORKER);
        assert_eq!((config.unwrap().api.unwrap().port, problems), (9000, vec![]), "{form:?}");
    }
}

#[test]
fn roles_follow_flags_and_the_programs_name() {
    let roles = |program: &str, arguments: &[&str]| {
        let (config, problems) = run(program, arguments, &WORKER);
        assert_eq!(problems, Vec::<String>::new());
        let config = config.unwrap();
        (config.api.is_some(), config.worker.is_some())
    };
    assert_eq!(roles("servicebroker", &[]), (true, false));
    assert_eq!(roles("/start.sh", &[]), (true, false));
    assert_eq!(roles("/start-background.sh", &[]), (false, true));
    assert_eq!(roles("servicebroker", &["-background-tasks"]), (false, true));
    assert_eq!(roles("servicebroker", &["-background-tasks=false"]), (true, false));
    assert_eq!(roles("servicebroker", &["--with-worker"]), (true, true));
}

#[test]
fn strength_of_flags_and_variables_is_that_of_the_old_binary() {
    let variables = [WORKER.as_slice(), &[("PORT", "7000")]].concat();
    let flags = ["-port=9000", "-database-url=postgres://flag/", "-name-prefix", "flag"];
    let config = run("servicebroker", &flags, &variables).0.unwrap();
    assert_eq!(config.api.unwrap().port, 7000);
    assert_eq!((config.database_url.expose(), config.name_prefix.as_str()), ("postgres://flag/", "flag"));
}

#[test]
fn glog_flags_are_accepted() {
    let flags = ["-logtostderr=1", "-stderrthreshold", "0", "-alsologtostderr", "-vmodule=x=2", "-v", "2"];
    let (config, problems) = run("servicebroker", &flags, &WORKER);
    assert_eq!((config.unwrap().verbosity, problems), (2, vec![]));
}

#[test]
fn booleans_are_read_as_go_reads_them() {
    let background = |text: &str| {
        let flag = format!("-background-tasks={text}");
        let (config, problems) = run("servicebroker", &[&flag], &WORKER);
        problems.is_empty().then(|| config.unwrap().worker.is_some())
    };
    for yes in ["1", "t", "T", "true", "TRUE", "True"] {
        assert_eq!(background(yes), Some(true), "{yes}");
    }
    for no in ["0", "f", "F", "false", "FALSE", "False"] {
        assert_eq!(background(no), Some(false), "{no}");
    }
    for neither in ["", "yes", "no", "on", "tRUE", "2", "-1", " true"] {
        assert_eq!(background(neither), None, "{neither:?}");
    }
}

#[test]
fn values_are_taken_as_they_stand() {
    let prefix = |flags: &[&str]| {
        let (config, problems) = run("servicebroker", flags, &WORKER);
        (config.unwrap().name_prefix, problems)
    };
    // a shell's variable that is not set leaves nothing behind, or an empty value
    for flags in [
        &["", "-port", "9000"][..],
        &["-name-prefix="],
        &["-name-prefix", ""],
        &["-name-prefix=a", "-name-prefix="],
    ] {
        assert_eq!(prefix(flags), ("tst".to_owned(), vec![]), "{flags:?}");
    }
    assert_eq!(prefix(&["-name-prefix", "a", "--name-prefix=b"]).0, "b", "the last one counts");
    for (flags, given) in [
        (&["-name-prefix", "-port"][..], "-port"),
        (&["-name-prefix=a=b"], "a=b"),
        (&["-name-prefix='x"], "'x"),
        (&["-name-prefix=\"x\""], "\"x\""),
    ] {
        let (taken, problems) = prefix(flags);
        assert_eq!((taken.as_str(), problems.len()), (given, 1), "{flags:?}");
    }
    for flags in [&["--", "-port", "80"][..], &["-port", "80", "--", "version"]] {
        let (command, problems) =
            parse("servicebroker", flags.iter().map(|&it| it.to_owned()).collect(), |_| None);
        let is_version = matches!(command, Command::Version);
        assert!(
            is_version || problems.iter().any(|it| it.setting == "command line"),
            "{flags:?}: {problems:?}"
        );
    }
}

#[test]
fn verbosity_is_that_of_the_flag_or_of_glogs_variable() {
    let level = |flags: &[&str], variable: &'static str| {
        let variables = [WORKER.as_slice(), &[("GLOG_v", variable)]].concat();
        let (config, problems) = run("servicebroker", flags, &variables);
        (config.unwrap().verbosity, problems.len())
    };
    for (flags, variable, expected) in [
        (&[][..], "", (0, 0)),
        (&["-v", "1"], "", (1, 0)),
        (&["-v=9"], "", (2, 0)),
        (&["-v", "-1"], "2", (0, 0)),
        (&[], "2", (2, 0)),
        (&["-v=0"], "2", (0, 0)),
        (&[], "much", (0, 1)),
        (&["-v=much"], "", (0, 1)),
    ] {
        assert_eq!(level(flags, variable), expected, "{flags:?} {variable}");
    }
}

/// What a process is warned of at its start.
fn warnings(flags: &[&str], variables: &[(&str, &str)]) -> Vec<String> {
    let (config, problems) = run("servicebroker", flags, &[WORKER.as_slice(), variables].concat());
    assert_eq!(problems, Vec::<String>::new(), "{flags:?}");
    config.unwrap().warnings
}

#[test]
fn what_has_no_effect_is_told_once() {
    let usual = ["-logtostderr=1", "-stderrthreshold", "0", "-insecure", "-alsologtostderr=false"];
    assert_eq!(warnings(&usual, &[("GLOG_logtostderr", "1")]), Vec::<String>::new());
    let files =
        ["-log_dir=/tmp", "-vmodule", "x=2", "-log_dir=/var", "-log_backtrace_at=a:1", "-alsologtostderr"];
    let said = warnings(&files, &[("GLOG_log_dir", "/tmp")]);
    assert_eq!(said.len(), 1, "{said:?}");
    for name in ["--alsologtostderr", "--vmodule", "--log_dir", "--log_backtrace_at", "GLOG_log_dir"] {
        assert_eq!(said[0].matches(&format!(" {name}")).count(), 1, "{name}: {said:?}");
    }
    let said = warnings(&[], &[("STACKIMPACT", "hush")]);
    assert!(said.len() == 1 && said[0].contains("/metrics") && !said[0].contains("hush"), "{said:?}");
    for pair in [
        ["-tls-cert-file=/c.pem", "-tls-private-key-file=/k.pem"],
        ["-tlsCert=hush", "-tlsKey=hush"],
        ["-kube-config=/k", "-authenticate-k8s-token=false"],
    ] {
        let said = warnings(&pair, &[]);
        assert!(said.len() == 1 && !said[0].contains("hush"), "{pair:?}: {said:?}");
    }
    assert_eq!(warnings(&["-tlsCert=", "-tls-cert-file", ""], &[]), Vec::<String>::new());
}

#[test]
fn what_would_protect_less_than_it_says_is_refused() {
    for (flags, setting) in [
        (&["-tls-cert-file=/hush"][..], "--tls-private-key-file"),
        (&["-tls-private-key-file", "/hush"], "--tls-cert-file"),
        (&["-tlsCert", "hush"], "--tlsKey"),
        (&["--tlsKey=hush"], "--tlsCert"),
        (&["-authenticate-k8s-token"], "--authenticate-k8s-token"),
        (&["-authenticate-k8s-token=T", "-kube-config", "/k"], "--authenticate-k8s-token"),
        (&["-authenticate-k8s-token=maybe"], "--authenticate-k8s-token"),
        (&["-insecure=f"], "--insecure"),
        (&["-insecure=0", "-tlsCert=hush", "-tlsKey=hush"], "--insecure"),
        (&["-logtostderr=2"], "--logtostderr"),
        (&["-background-tasks", "-tlsKey=hush"], "--tlsCert"),
    ] {
        let (_, problems) = run("servicebroker", flags, &WORKER);
        assert_eq!(problems.len(), 1, "{flags:?}: {problems:?}");
        assert!(
            problems[0].starts_with(&format!("{setting}: ")) && !problems[0].contains("hush"),
            "{problems:?}"
        );
    }
}

#[test]
fn webhooks_are_off_unless_hosts_are_named() {
    let read = |variables: &[(&'static str, &'static str)]| {
        let variables = [WORKER.as_slice(), variables].concat();
        let (config, problems) = run("servicebroker", &["-with-worker"], &variables);
        let config = config.unwrap();
        let (api, worker) = (config.api.unwrap().webhook_hosts, config.worker.unwrap());
        assert_eq!(api, worker.webhook_hosts);
        (api.len(), worker.retry_webhooks, problems.len())
    };
    assert_eq!(read(&[]), (0, false, 0));
    assert_eq!(read(&[("WEBHOOK_HOSTS", "a,b:80"), ("RETRY_WEBHOOKS", "true")]), (2, true, 0));
    assert_eq!(read(&[("WEBHOOK_HOSTS", "*"), ("RETRY_WEBHOOKS", "No")]), (0, false, 1));
    assert_eq!(read(&[("RETRY_WEBHOOKS", "1")]), (0, true, 0));
}

#[test]
fn every_problem_is_named_and_no_value_is_shown() {
    let variables = [
        ("NAME_PREFIX", "Upper_Case"),
        ("PORT", "844e"),
        ("WAIT_SECONDS", "51"),
        ("BROKER_USERNAME", "u"),
        ("BROKER_PASSWORD_2", "hush"),
        ("LISTEN_ADDRESS", "localhost"),
        ("PROVISION_DEADLINE", "soon"),
        ("IAM_PATH", "osb"),
        ("AWS_SECRET_ACCESS_KEY", "hush"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/hush"),
        ("AWS_EC2_METADATA_DISABLED", "hush"),
    ];
    let (_, problems) = run("servicebroker", &["-with-worker", "-nope=hush", "stray"], &variables);
    let settings: Vec<&str> = problems.iter().map(|it| it.split(':').next().unwrap()).collect();
    for setting in [
        "DATABASE_URL",
        "NAME_PREFIX",
        "PORT",
        "WAIT_SECONDS",
        "BROKER_PASSWORD",
        "BROKER_USERNAME_2",
        "LISTEN_ADDRESS",
        "PROVISION_DEADLINE",
        "IAM_PATH",
        "AWS_REGION",
        "AWS_ACCESS_KEY_ID",
        "AWS_ROLE_ARN",
        "AWS_EC2_METADATA_DISABLED",
        "-nope",
        "command line",
    ] {
        assert!(settings.contains(&setting), "{setting} is missing in {problems:?}");
    }
    assert_eq!(settings.len(), 15, "{problems:?}");
    assert!(!format!("{problems:?}").contains("hush"));
}

#[test]
fn the_worker_needs_no_key_and_reads_where_to_find_one() {
    let sources = |more: &[(&str, &str)]| {
        let variables = [&WORKER[..3], more].concat();
        let (config, problems) = run("servicebroker", &["-background-tasks"], &variables);
        assert_eq!(problems, Vec::<String>::new());
        config.unwrap().worker.unwrap().key_sources
    };
    let none = sources(&[]);
    assert!(none.key.is_none() && none.credentials_file.is_none() && none.web_identity.is_none());
    assert_eq!(none.metadata_endpoint.as_deref(), Some("http://169.254.169.254"));
    let home = sources(&[("HOME", "/h"), ("AWS_CONFIG_FILE", "/c"), ("AWS_PROFILE", "p")]);
    let file = |path: &str, is_chosen| Some(SharedFile { path: path.to_owned(), is_chosen });
    assert_eq!(home.credentials_file, file("/h/.aws/credentials", false));
    assert_eq!((home.config_file, home.profile.as_deref()), (file("/c", true), Some("p")));
    for (value, asked) in [("TRUE", false), ("true", false), ("false", true)] {
        let sources = sources(&[("AWS_EC2_METADATA_DISABLED", value)]);
        assert_eq!(sources.metadata_endpoint.is_some(), asked, "{value}");
    }
    let role =
        sources(&[("AWS_WEB_IDENTITY_TOKEN_FILE", "/t"), ("AWS_ROLE_ARN", "arn")]).web_identity.unwrap();
    assert_eq!((role.token_file.as_str(), role.role_arn.as_str(), role.session_name), ("/t", "arn", None));
    assert!(sources(&[("AWS_ROLE_ARN", "arn")]).web_identity.is_none());
}

#[test]
fn commands_are_read_before_flags_and_unknown_ones_are_refused() {
    let command = |arguments: &[&str]| {
        let arguments = arguments.iter().map(|&it| it.to_owned()).collect();
        let (command, problems) =
            parse("/start.sh", arguments, |name| Some(WORKER.iter().find(|(key, _)| *key == name)?.1.into()));
        (command, problems.iter().map(ToString::to_string).collect::<Vec<String>>())
    };
    for words in [&["reconcile", "--help"][..], &["--help", "reconcile"], &["help", "reconcile"]] {
        let (Command::Help(text), _) = command(words) else { panic!("{words:?}") };
        assert!(text.contains("--with-objects"), "{words:?}");
    }
    for words in [&["help"][..], &["-h"], &["--help", "-with-worker"]] {
        let (Command::Help(text), _) = command(words) else { panic!("{words:?}") };
        assert!(text.contains("-with-worker"), "{words:?}");
    }
    for words in [&["reconsile"][..], &["serve", "-v", "2"], &["postgres://u:hush@h/d", "reconcile"]] {
        let problems = command(words).1.join("\n");
        assert!(problems.contains("known are reconcile, version and help"), "{words:?}: {problems}");
        assert!(!problems.contains("hush"), "{problems}");
    }
}

#[test]
fn reconcile_has_the_settings_of_a_worker_and_names_to_remove() {
    let run = |arguments: &[&str]| {
        let arguments = arguments.iter().map(|&it| it.to_owned()).collect();
        // a port that no api could have: what only an api needs is not looked at
        let variable = |name: &'static str| match name {
            "PORT" => Some("x".to_owned()),
            _ => Some(WORKER.iter().find(|(key, _)| *key == name)?.1.to_owned()),
        };
        let (command, problems) = parse("servicebroker", arguments, variable);
        let Command::Reconcile(config, errand) = command else { panic!("{command:?}") };
        assert!(config.api.is_none() && config.worker.is_some());
        (errand, problems.iter().map(|it| it.setting.clone()).collect::<Vec<String>>())
    };
    let (only_reports, problems) = run(&["reconcile", "-logtostderr=1", "-v", "1"]);
    assert_eq!((only_reports.remove, problems), (vec![], vec![]));
    let (errand, problems) =
        run(&["-logtostderr", "reconcile", "--delete", "a", "--yes", "b", "--with-objects"]);
    assert_eq!(problems, Vec::<String>::new());
    let remove = vec!["a".to_owned(), "b".to_owned()];
    assert_eq!(errand, Errand { remove, with_objects: true, yes: true, young: false, untagged: false });
    assert!(run(&["reconcile", "--delete", "a", "--younger-than-an-hour"]).0.young);
    assert!(run(&["reconcile", "--delete", "a", "--untagged"]).0.untagged);
    for (wrong, setting) in [
        (&["reconcile", "--delete"][..], "--delete"),
        (&["reconcile", "--delete=a"], "--delete"),
        (&["reconcile", "a"], "reconcile"),
        (&["reconcile", "--yes"], "reconcile"),
        (&["reconcile", "--with-objects"], "reconcile"),
        (&["reconcile", "--untagged"], "reconcile"),
        (&["reconcile", "--all"], "--all"),
        (&["reconcile", "-port=80"], "-port"),
    ] {
        let (_, problems) = run(wrong);
        assert!(
            problems.iter().any(|it| it.trim_start_matches('-') == setting.trim_start_matches('-')),
            "{wrong:?}: {problems:?}"
        );
    }
}

#[test]
fn the_api_does_not_read_aws_keys() {
    let variable = |name: &'static str| {
        assert!(!name.starts_with("AWS_") && name != "HOME", "{name} was read");
        WORKER.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    };
    let (_, problems) = parse("servicebroker", Vec::new(), variable);
    assert_eq!(problems, Vec::new());
}

#[test]
fn name_prefixes_fit_bucket_names() {
    for good in ["a", "prod", "my-company-1", &"p".repeat(45)] {
        assert_eq!(check_name_prefix(good), Ok(()), "{good}");
    }
    for bad in ["-a", "A", "a_b", "a.b", "xn--a", "sthree", "amzn-s3-demo", "ä", &"p".repeat(46)] {
        assert!(check_name_prefix(bad).is_err(), "{bad}");
    }
}

#[test]
fn spans_have_units() {
    for (text, seconds) in [("90s", 90), ("20m", 1_200), ("1h", 3_600), ("45", 45)] {
        let variables = [WORKER.as_slice(), &[("PROVISION_DEADLINE", text)]].concat();
        let config = run("servicebroker", &["-background-tasks"], &variables).0.unwrap();
        assert_eq!(config.worker.unwrap().provision_deadline, Duration::from_secs(seconds), "{text}");
    }
}

#[test]
fn secrets_cannot_be_printed() {
    let config = run("servicebroker", &["-with-worker"], &WORKER).0.unwrap();
    let printed = format!("{config:?}");
    assert!(!printed.contains("hush") && !printed.contains("u:p@h"), "{printed}");
}

#[test]
fn metrics_have_a_port_of_their_own_where_one_is_set() {
    let address = |flags: &[&str], more: &[(&str, &str)]| {
        let variables = [WORKER.as_slice(), more].concat();
        let (config, problems) = run("servicebroker", flags, &variables);
        (config.unwrap().metrics_address.map(|it| it.to_string()), problems)
    };
    let here = ("LISTEN_ADDRESS", "127.0.0.1");
    assert_eq!(address(&["-background-tasks"], &[here]), (None, vec![]));
    for flags in [&["-background-tasks"][..], &["-with-worker"], &[]] {
        let expected = (Some("127.0.0.1:9090".to_owned()), vec![]);
        assert_eq!(address(flags, &[here, ("METRICS_PORT", "9090")]), expected, "{flags:?}");
    }
    let both = [("METRICS_PORT", "9090"), ("PORT", "9090")];
    assert_eq!(address(&["-background-tasks"], &both).1, Vec::<String>::new(), "a worker has no other port");
    assert_eq!(address(&[], &both).1, ["METRICS_PORT: must be another port than PORT"]);
    let free = [("METRICS_PORT", "0"), ("PORT", "0")];
    assert_eq!(address(&[], &free), (Some("0.0.0.0:0".to_owned()), vec![]));
    let nowhere = [("METRICS_PORT", "9090"), ("LISTEN_ADDRESS", "localhost")];
    assert_eq!(address(&["-with-worker"], &nowhere).1.len(), 1, "named once");
}
