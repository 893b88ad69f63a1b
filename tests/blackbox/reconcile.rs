//! `servicebroker reconcile`: what it reports, what it leaves alone, what it removes.

mod removal;
mod trouble;

use std::process::{Command, Output, Stdio};

use crate::relay::{Fault, Point, When};
use crate::support::*;

/// Runs the command without a terminal; exit code, lines of standard output, and the log.
fn reconcile(setup: &Setup, arguments: &[&str]) -> (Option<i32>, Vec<String>, String) {
    let flags = [&["reconcile"], arguments].concat();
    ended(setup.aws_command(&flags).stdin(Stdio::null()).output().unwrap())
}

/// How a command ended.
fn ended(output: Output) -> (Option<i32>, Vec<String>, String) {
    let lines = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    (output.status.code(), lines, String::from_utf8(output.stderr).unwrap())
}

/// Sees that it finds these and nothing else; the line that follows them.
fn finds(setup: &Setup, expected: &[String]) -> String {
    let (code, mut lines, log) = reconcile(setup, &[]);
    let last = lines.pop().unwrap_or_else(|| panic!("{log}"));
    let (mut sorted, mut expected) = (lines.clone(), expected.to_vec());
    sorted.sort_unstable();
    expected.sort_unstable();
    assert_eq!(sorted, expected, "{log}");
    assert!(last.starts_with(&format!("reconciled: findings={} ", lines.len())), "{last}");
    assert_eq!(code, Some(if lines.is_empty() { 0 } else { 1 }), "{log}");
    last
}

/// The id that the broker of a setup drew.
fn id_of(setup: &Setup) -> String {
    setup.database.text("select id::text from broker").unwrap()
}

/// Takes an instance out of the database, as if it had been restored from before.
fn forget(setup: &Setup, instance: &str) {
    let sql = format!(
        "delete from tasks where resource = '{instance}'; delete from bindings where resource = '{instance}';
         delete from resources where id = '{instance}'"
    );
    setup.database.connect().batch_execute(&sql).unwrap();
}

/// The name of an instance's bucket and user.
fn name_of(setup: &Setup, instance: &str) -> String {
    setup.database.text(&format!("select name from resources where id = '{instance}'")).unwrap()
}

/// Makes a user, as somebody else would.
fn make_user(name: &str, broker: Option<&str>) {
    let tag = broker.map(|id| format!("&Tags.member.1.Key=servicebroker&Tags.member.1.Value={id}"));
    let answer =
        ask_iam(&format!("Action=CreateUser&Version=2010-05-08&UserName={name}{}", tag.unwrap_or_default()));
    assert!(answer.contains("<Arn>"), "{answer}");
}

/// Makes a bucket, as somebody else would.
fn make_bucket(name: &str, broker: Option<&str>) {
    let place = format!("LocationConstraint={}", setting("TEST_AWS_REGION"));
    admin(&["s3api", "create-bucket", "--bucket", name, "--create-bucket-configuration", &place]);
    if let Some(id) = broker {
        let tags = format!("TagSet=[{{Key=servicebroker,Value={id}}},{{Key=other,Value=x}}]");
        admin(&["s3api", "put-bucket-tagging", "--bucket", name, "--tagging", &tags]);
    }
}

#[test]
fn what_the_database_names_is_no_finding_whatever_becomes_of_it_now() {
    let setup = Setup::new().with("WAIT_SECONDS", "0");
    let (api, mut worker) = (setup.api(&[]), setup.worker());
    for instance in ["one", "two", "gone"] {
        api.provide(instance, BASIC);
    }
    let gone = name_of(&setup, "gone");
    api.remove("gone", BASIC);
    worker.terminate();
    let line = finds(&setup, &[]);
    assert!(line.contains("instances=2 of_other_brokers=0 untagged_left_out=0"), "{line}");

    // Being made: there already, and only named by a row whose task nobody has taken.
    assert_eq!(api.provision("made", BASIC).status, 202);
    make_user(&name_of(&setup, "made"), Some(&id_of(&setup)));
    // Deleted, and come up again: the sweep that is due will see to it.
    make_user(&gone, Some(&id_of(&setup)));
    // Deleted, and the id used again: only the sweep's note has the name now.
    assert_eq!(api.provision("gone", BASIC).status, 202);
    assert_ne!(name_of(&setup, "gone"), gone);
    // Being deleted: the user is gone, the bucket is not.
    let two = name_of(&setup, "two");
    assert_eq!(api.deprovision("two", BASIC).status, 202);
    setup.database.connect().batch_execute("update resources set password = null where id = 'two'").unwrap();
    admin(&["s3api", "delete-bucket", "--bucket", &two]);
    // At hand, but somebody is about to work on it.
    let one = name_of(&setup, "one");
    admin(&["s3api", "delete-bucket", "--bucket", &one]);
    let task = "insert into tasks (task, resource, action) values (gen_random_uuid(), 'one', 'sweep')";
    setup.database.connect().batch_execute(task).unwrap();
    finds(&setup, &[]);

    // Once no task is open, nobody names it any more.
    let settled = "update tasks set status = 'finished' where action = 'sweep'";
    setup.database.connect().batch_execute(settled).unwrap();
    finds(
        &setup,
        &[
            format!("not in the database: kind=user name={gone} tag=ours"),
            format!("not in AWS: kind=bucket name={one} instance=\"one\""),
        ],
    );
}

#[test]
fn provisions_and_deletes_that_go_on_are_no_findings() {
    let setup = Setup::new().with("WAIT_SECONDS", "0");
    let (api, _worker) = (setup.api(&[]), setup.worker());
    for round in 0..3 {
        let made: Vec<String> = (0..6).map(|number| format!("i{round}-{number}")).collect();
        for instance in &made {
            assert_eq!(api.provision(instance, BASIC).status, 202);
        }
        finds(&setup, &[]);
        for instance in &made {
            assert_eq!(api.deprovision(instance, BASIC).status, 202);
        }
        finds(&setup, &[]);
    }
}

#[test]
fn orphans_are_told_from_what_others_made() {
    let setup = Setup::new();
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("lost", BASIC);
    api.provide("kept", BASIC);
    let (lost, kept, prefix) = (name_of(&setup, "lost"), name_of(&setup, "kept"), &setup.prefix);
    finds(&setup, &[]);
    forget(&setup, "lost");
    let ours = |kind: &str, name: &str| format!("not in the database: kind={kind} name={name} tag=ours");
    let mut expected = vec![ours("bucket", &lost), ours("user", &lost)];
    finds(&setup, &expected);

    let (old, hint) =
        (format!("{prefix}-u4b36b824"), "hint=\"may belong to the old broker or to another installation\"");
    make_bucket(&old, None);
    make_user(&old, None);
    let document = "%7B%22Version%22%3A%222012-10-17%22%2C%22Statement%22%3A%5B%7B%22Effect%22%3A%22Allow%22%2C\
        %22Action%22%3A%22s3%3A%2A%22%2C%22Resource%22%3A%22%2A%22%7D%5D%7D";
    let policy = format!("&PolicyName={old}policy&PolicyDocument={document}");
    ask_iam(&format!("Action=CreatePolicy&Version=2010-05-08{policy}"));
    for kind in ["bucket", "user", "policy"] {
        expected.push(format!("not in the database: kind={kind} name={old} tag=none {hint}"));
    }
    // Another broker's, one of the old form too; what nobody has marked; names that no broker gives.
    make_user(&format!("{prefix}-u1111111111111111"), Some("6d1f0e0c-0000-4000-8000-000000000000"));
    make_bucket(&format!("{prefix}-u11111111"), Some("6d1f0e0c-0000-4000-8000-000000000000"));
    make_user(&format!("{prefix}-u2222222222222222"), None);
    make_user(&format!("{prefix}-uploader"), Some(&id_of(&setup)));
    let line = finds(&setup, &expected);
    assert!(line.contains("instances=1 of_other_brokers=2 untagged_left_out=1"), "{line}");

    // An instance from before the tag: named by the database, so nothing is said of it.
    admin(&["s3api", "delete-bucket-tagging", "--bucket", &kept]);
    let untag = format!("&UserName={kept}&TagKeys.member.1=servicebroker");
    ask_iam(&format!("Action=UntagUser&Version=2010-05-08{untag}"));
    finds(&setup, &expected);
}

#[test]
fn users_are_read_to_the_end_of_the_list() {
    let setup = Setup::new();
    drop(setup.api(&[]));
    for number in 0..105 {
        make_user(&format!("{}-u{number:016x}", setup.prefix), None); // more than a page of the relay
    }
    let last = format!("{}-uffffffffffffffff", setup.prefix);
    make_user(&last, Some(&id_of(&setup)));
    let line = finds(&setup, &[format!("not in the database: kind=user name={last} tag=ours")]);
    assert!(line.ends_with("untagged_left_out=105"), "{line}");
}

#[test]
fn what_instances_lack_is_named() {
    let setup = Setup::new();
    let (api, _worker) = (setup.api(&[]), setup.worker());
    for instance in ["whole", "bucketless", "userless", "keyless"] {
        api.provide(instance, BASIC);
    }
    let key = |instance: &str| {
        let sql = format!("select username from resources where id = '{instance}'");
        (name_of(&setup, instance), setup.database.text(&sql).unwrap())
    };
    let iam = |action: &str, rest: &str| {
        let answer = ask_iam(&format!("Action={action}&Version=2010-05-08{rest}"));
        assert!(!answer.contains("<Error>"), "{answer}");
    };
    let bucketless = name_of(&setup, "bucketless");
    admin(&["s3api", "delete-bucket", "--bucket", &bucketless]);
    let (userless, userless_key) = key("userless");
    iam("DeleteAccessKey", &format!("&UserName={userless}&AccessKeyId={userless_key}"));
    iam("DeleteUserPolicy", &format!("&UserName={userless}&PolicyName=bucket"));
    iam("DeleteUser", &format!("&UserName={userless}"));
    let (keyless, keyless_key) = key("keyless");
    iam("DeleteAccessKey", &format!("&UserName={keyless}&AccessKeyId={keyless_key}"));
    iam("CreateAccessKey", &format!("&UserName={keyless}")); // another one is no substitute
    // They go on for as long as something is missing, and must not hide that.
    let tag = "insert into tasks (task, resource, action, run_at) values
        (gen_random_uuid(), 'bucketless', 'tag', now() + interval '1 hour'),
        (gen_random_uuid(), 'keyless', 'remove-previous-key', now() + interval '1 hour')";
    setup.database.connect().batch_execute(tag).unwrap();
    let line = finds(
        &setup,
        &[
            format!("not in AWS: kind=bucket name={bucketless} instance=\"bucketless\""),
            format!("not in AWS: kind=user name={userless} instance=\"userless\""),
            format!("not in AWS: kind=access_key name={keyless} instance=\"keyless\" key={keyless_key}"),
        ],
    );
    assert!(line.contains("instances=4"), "{line}");
}

#[test]
fn what_came_or_went_while_it_looked_is_no_finding() {
    let setup = Setup::new();
    drop(setup.api(&[]));
    let (came, went) =
        (format!("{}-u00000000000000aa", setup.prefix), format!("{}-u00000000000000bb", setup.prefix));
    let row = |name: &str, status: &str| {
        format!(
            "insert into resources (id, name, plan, status, username) values
             ('{name}', '{name}', '{BASIC}', '{status}', 'AKIA0000000000000000')"
        )
    };
    make_user(&came, Some(&id_of(&setup)));
    make_user(&went, Some(&id_of(&setup)));
    let missing = format!("{}-u00000000000000cc", setup.prefix);
    for (name, status) in [(&went, "deprovisioning"), (&missing, "available")] {
        setup.database.connect().batch_execute(&row(name, status)).unwrap();
    }
    let relay = relay();
    relay.plan(Point::Named("ListUsers".to_owned(), 1), When::After, Fault::Hold);
    let mut command = setup.aws_command(&["reconcile"]);
    command.env("AWS_ENDPOINT_URL", &relay.endpoint).stdin(Stdio::null());
    let process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("it has asked for the users", PATIENCE, || (relay.struck() > 0).then_some(()));
    let mut client = setup.database.connect();
    client.batch_execute(&row(&came, "provisioning")).unwrap();
    client.batch_execute(&format!("delete from resources where id in ('{went}', '{missing}')")).unwrap();
    relay.release();
    let (code, lines, log) = ended(process.wait_with_output().unwrap());
    assert_eq!(code, Some(0), "{lines:?} {log}");
    assert_eq!(lines, ["reconciled: findings=0 instances=0 of_other_brokers=0 untagged_left_out=0"]);
}

#[test]
fn a_store_without_tags_has_marked_nothing() {
    let setup = Setup::new();
    drop(setup.api(&[]));
    let (new, old) = (format!("{}-u00000000000000aa", setup.prefix), format!("{}-u0000000b", setup.prefix));
    make_user(&new, None);
    make_bucket(&old, None);
    let relay = relay();
    let answer = "<Error><Code>NotImplemented</Code><Message>no</Message></Error>".to_owned();
    for (call, status) in [("GetBucketTagging", 501), ("ListPolicies", 405)] {
        relay.plan(Point::Every(call.to_owned()), When::Before, Fault::Status(status, answer.clone()));
    }
    let setup = setup.through(&relay);
    let (code, lines, log) = reconcile(&setup, &[]);
    assert_eq!((code, lines.len()), (Some(1), 2), "{lines:?} {log}");
    assert!(
        lines[0].starts_with(&format!("not in the database: kind=bucket name={old} tag=none")),
        "{lines:?}"
    );
    assert!(lines[1].ends_with("of_other_brokers=0 untagged_left_out=1"), "{lines:?}");
}

#[test]
fn what_cannot_be_looked_at_is_not_called_clean() {
    let setup = Setup::new();
    let nothing_said = |variables: &[(&str, &str)]| {
        let mut command = setup.aws_command(&["reconcile"]);
        let (code, lines, log) = ended(command.envs(variables.iter().copied()).output().unwrap());
        assert_eq!((code, lines), (Some(70), vec![]), "{log}");
        assert!(log.contains("process ends: cause="), "{log}");
    };
    nothing_said(&[]); // no broker has made the tables yet
    drop(setup.api(&[]));
    finds(&setup, &[]);
    nothing_said(&[("DATABASE_URL", "postgres://u:hush@127.0.0.1:1/d?sslmode=disable")]);
    nothing_said(&[("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")]);
    nothing_said(&[("AWS_ENDPOINT_URL_IAM", "http://127.0.0.1:1")]);
    let relay = relay();
    make_user(&format!("{}-u00000000000000aa", setup.prefix), Some(&id_of(&setup)));
    relay.plan(Point::Every("GetUser".to_owned()), When::Before, Fault::Status(403, String::new()));
    nothing_said(&[("AWS_ENDPOINT_URL", &relay.endpoint)]);
}

#[test]
fn wrong_usage_ends_with_two_and_help_is_given() {
    let setup = Setup::new();
    for (arguments, about) in [
        (&["reconcile", "--delete"][..], "--delete: needs names"),
        (&["reconcile", "some-name"], "reconcile: "),
        (&["reconcile", "--everything"], "-everything: "),
        (&["reconsile"], "known are reconcile, version and help"),
    ] {
        let (code, lines, log) = ended(setup.aws_command(arguments).output().unwrap());
        assert_eq!((code, lines.len()), (Some(2), 0), "{arguments:?} {log}");
        assert!(log.contains(about), "{arguments:?} {log}");
    }
    let mut missing = setup.aws_command(&["reconcile"]);
    let (code, _, log) = ended(missing.env_remove("AWS_REGION").env_remove("NAME_PREFIX").output().unwrap());
    assert_eq!(code, Some(2));
    assert!(log.contains("AWS_REGION: is missing") && log.contains("NAME_PREFIX: is missing"), "{log}");
    let bare =
        Command::new(env!("CARGO_BIN_EXE_servicebroker")).args(["reconcile", "--help"]).env_clear().output();
    let (code, lines, _) = ended(bare.unwrap());
    assert_eq!(code, Some(0));
    assert!(lines.join("\n").contains("--younger-than-an-hour"));
}
