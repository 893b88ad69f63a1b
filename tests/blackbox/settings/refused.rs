//! Settings with which no process starts.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::*;

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
        ("METRICS_PORT", "metrics"),
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
        ("AWS_EC2_METADATA_DISABLED", "perhaps"),
        ("WEBHOOK_HOSTS", "*"),
    ];
    let about = complained(&mut broker(&["-with-worker", "-nope=hush", "stray"], &wrong));
    let mut expected: Vec<&str> = wrong.iter().map(|(name, _)| *name).collect();
    for (name, other) in [("BROKER_USERNAME", "BROKER_PASSWORD"), ("BROKER_PASSWORD_2", "BROKER_USERNAME_2")]
    {
        *expected.iter_mut().find(|it| **it == name).unwrap() = other; // what is missing is named
    }
    expected.extend(["-nope", "command line"]);
    expected.sort_unstable();
    assert_eq!(about, expected);
}

#[test]
fn what_is_missing_is_named_once() {
    let empty: Vec<(&str, &str)> = RIGHT.iter().map(|(name, _)| (*name, "")).collect();
    assert_eq!(complained(&mut broker(&[], &empty)), ["DATABASE_URL", "NAME_PREFIX"]);
    let worker = ["AWS_REGION", "DATABASE_URL", "NAME_PREFIX"];
    for flags in [&["-background-tasks"], &["-with-worker"]] {
        assert_eq!(complained(&mut broker(flags, &empty)), worker, "{flags:?}");
    }
}

#[test]
fn each_setting_has_its_bounds() {
    let mut wrong = Vec::new();
    for (name, values) in [
        ("PORT", &["65536", "-1", "8443.0", "https"][..]),
        ("METRICS_PORT", &["65536", "-1", "/metrics"]),
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
        ("AWS_EC2_METADATA_DISABLED", &["1", "yes"]),
        ("WEBHOOK_HOSTS", &["*.example", "https://h", "a,,b", "h:99999", "h/"]),
        ("GLOG_v", &["much"]),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &["h:80", "http://h/", "http://169.254.169.254/"]),
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
fn half_a_source_of_credentials_names_the_other_half() {
    let whole = ("AWS_SECRET_ACCESS_KEY", "hush");
    for (variables, about) in [
        (&[("AWS_ACCESS_KEY_ID", ""), whole][..], "AWS_ACCESS_KEY_ID"),
        (&[("AWS_SECRET_ACCESS_KEY", "")], "AWS_SECRET_ACCESS_KEY"),
        (&[("AWS_WEB_IDENTITY_TOKEN_FILE", "/token")], "AWS_ROLE_ARN"),
    ] {
        assert_eq!(complained(&mut broker(&["-background-tasks"], variables)), [about]);
    }
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
        ("-insecure=F", "--insecure"),
        ("-logtostderr=maybe", "--logtostderr"),
        ("-tlsCert=hush", "--tlsKey"),
        ("-tlsKey=hush", "--tlsCert"),
        ("-tls-cert-file=/hush", "--tls-private-key-file"),
        ("-tls-private-key-file=/hush", "--tls-cert-file"),
        ("-authenticate-k8s-token", "--authenticate-k8s-token"),
        ("serve", "command line"),
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
        assert_eq!(complained(broker(&[], &[]).env(name, latin_1())), [name]);
    }
}

#[test]
fn an_argument_that_is_not_utf_8_is_refused_without_a_panic() {
    for argument in [latin_1(), OsStr::from_bytes(b"-name-prefix=gr\xfcn")] {
        let lines = complaints(broker(&[], &[]).arg(argument));
        assert_eq!(lines.len(), 1, "{lines:?}");
    }
}
