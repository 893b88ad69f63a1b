//! `reconcile --delete`: what it refuses and what it removes.

use std::io::{Read, Write};
use std::process::Child;

use super::*;

/// Removes without asking what was made just now.
pub(super) fn delete(setup: &Setup, name: &str, more: &[&str]) -> (Option<i32>, Vec<String>, String) {
    let usual = ["--delete", "--yes", "--younger-than-an-hour", name];
    reconcile(setup, &[&usual, more].concat())
}

/// Sees that a name is refused, why, and that AWS holds as much of it as before.
fn is_refused(setup: &Setup, arguments: &[&str], name: &str, reason: &str) {
    let before = setup.left_in_aws();
    let (code, lines, log) = reconcile(setup, &[arguments, &["--delete", name]].concat());
    assert_eq!(lines, [format!("refused: name={name:?} reason={reason:?}")], "{log}");
    assert_eq!(code, Some(1), "{log}");
    assert_eq!(setup.left_in_aws(), before, "{reason}");
}

/// A setup with an instance that the database has lost; also its name.
pub(super) fn with_orphan() -> (Setup, String) {
    let setup = Setup::new();
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("lost", BASIC);
    let name = name_of(&setup, "lost");
    drop(api);
    forget(&setup, "lost");
    (setup, name)
}

/// A removal under way.
pub(super) fn start_removal(setup: &Setup, name: &str) -> std::process::Child {
    let mut command = setup.aws_command(&["reconcile", "--delete", name, "--yes", "--younger-than-an-hour"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn what_must_stay_is_refused() {
    let setup = Setup::new();
    let (api, worker) = (setup.api(&[]), setup.worker());
    api.provide("kept", BASIC);
    let (kept, prefix) = (name_of(&setup, "kept"), setup.prefix.clone());
    drop((api, worker));
    let all = ["--yes", "--younger-than-an-hour", "--with-objects"];
    let refuse = |name: &str, reason: &str| is_refused(&setup, &all, name, reason);
    refuse(&kept, "the database names it");

    for name in [prefix.as_str(), &format!("{prefix}-uploads"), &format!("{prefix}-u*"), &format!("x{kept}")]
    {
        refuse(name, "not a name that this broker gives");
    }
    refuse(&format!("{prefix}-u0000000000000000"), "AWS holds nothing of that name");

    let other = Some("6d1f0e0c-0000-4000-8000-000000000000");
    let (user, bucket, both) =
        (format!("{prefix}-u0000000000000001"), format!("{prefix}-u00000002"), format!("{prefix}-u00000003"));
    make_user(&user, other);
    make_bucket(&bucket, other);
    make_user(&both, Some(&id_of(&setup)));
    make_bucket(&both, other);
    for name in [&user, &bucket, &both] {
        refuse(name, "it carries the id of another broker");
    }

    // Its row is gone, but a sweep that is due still names it.
    let swept = format!(
        "update resources set name = 'x', deleted = true where id = 'kept';
         update tasks set status = 'pending', action = 'sweep', metadata = '{{\"name\":\"{kept}\"}}'"
    );
    setup.database.connect().batch_execute(&swept).unwrap();
    refuse(&kept, "the database names it");
}

#[test]
fn what_is_young_or_not_agreed_to_or_full_is_refused() {
    let (setup, name) = with_orphan();
    is_refused(&setup, &["--yes"], &name, "younger than an hour");
    is_refused(&setup, &["--yes", "--with-objects"], &name, "younger than an hour");
    put_object(&name, "k");
    is_refused(&setup, &["--yes", "--younger-than-an-hour"], &name, "the bucket is not empty");
    admin(&["s3api", "delete-object", "--bucket", &name, "--key", "k"]);
    admin(&["s3api", "create-multipart-upload", "--bucket", &name, "--key", "unfinished"]);
    is_refused(&setup, &["--yes", "--younger-than-an-hour"], &name, "the bucket is not empty");

    let before = setup.left_in_aws();
    let (code, lines, _) =
        reconcile(&setup, &["--delete", &name, "--younger-than-an-hour", "--with-objects"]);
    assert_eq!(
        (code, lines),
        (Some(1), vec!["refused: reason=\"there is no terminal to ask on, and no --yes\"".into()])
    );
    assert_eq!(setup.left_in_aws(), before);
}

#[test]
fn an_empty_orphan_goes_and_a_full_one_only_when_told() {
    let (setup, name) = with_orphan();
    let (code, lines, log) = delete(&setup, &name, &[]);
    let removed = |kind: &str| format!("removed: kind={kind} name={name}");
    assert_eq!((code, lines), (Some(0), vec![removed("bucket"), removed("user")]), "{log}");
    setup.check_nothing_left();
    finds(&setup, &[]);
    let (code, lines, _) = delete(&setup, &name, &[]);
    assert_eq!((code, lines.len()), (Some(1), 1), "{lines:?}");

    let (setup, name) = with_orphan();
    let on = "Status=Enabled";
    admin(&["s3api", "put-bucket-versioning", "--bucket", &name, "--versioning-configuration", on]);
    for number in 0..60 {
        put_object(&name, &format!("k{}", number % 55)); // more than a page of the relay
    }
    admin(&["s3api", "delete-object", "--bucket", &name, "--key", "k0"]);
    admin(&["s3api", "create-multipart-upload", "--bucket", &name, "--key", "unfinished"]);
    // One that is refused does not keep the others.
    let stranger = format!("{}-u0000000000000000", setup.prefix);
    let (code, lines, log) = delete(&setup, &stranger, &["--with-objects", &name]);
    assert_eq!(code, Some(1), "{log}");
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(
        lines[0].starts_with("refused: ") && lines[2] == format!("removed: kind=bucket name={name}"),
        "{lines:?}"
    );
    setup.check_nothing_left();
}

#[test]
fn what_the_old_broker_left_goes_with_its_policy() {
    let setup = Setup::new();
    drop(setup.api(&[]));
    let name = format!("{}-u4b36b824", setup.prefix);
    make_bucket(&name, None);
    make_user(&name, None);
    ask_iam(&format!("Action=CreateAccessKey&Version=2010-05-08&UserName={name}"));
    let document = "%7B%22Version%22%3A%222012-10-17%22%2C%22Statement%22%3A%5B%7B%22Effect%22%3A%22Allow%22%2C\
        %22Action%22%3A%22s3%3A%2A%22%2C%22Resource%22%3A%22%2A%22%7D%5D%7D";
    let policy = format!("&PolicyName={name}policy&PolicyDocument={document}");
    ask_iam(&format!("Action=CreatePolicy&Version=2010-05-08{policy}"));
    let arn = format!("arn:aws:iam::{}:policy/{name}policy", setting("TEST_AWS_ACCOUNT_ID"));
    ask_iam(&format!("Action=AttachUserPolicy&Version=2010-05-08&UserName={name}&PolicyArn={arn}"));
    let reason =
        "not all of it carries our tag (user tag=none, policy tag=none, bucket tag=none), and no --untagged";
    is_refused(&setup, &["--yes", "--younger-than-an-hour", "--with-objects"], &name, reason);
    let (code, lines, log) = delete(&setup, &name, &["--untagged"]);
    let expected = ["bucket", "user", "policy"].map(|kind| format!("removed: kind={kind} name={name}"));
    assert_eq!((code, lines.as_slice()), (Some(0), expected.as_slice()), "{log}");
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}

#[test]
fn nothing_more_is_called_once_the_database_names_it() {
    let (setup, name) = with_orphan();
    let relay = relay();
    relay.plan(Point::Named("DeleteUserPolicy".to_owned(), 1), When::After, Fault::Hold);
    let setup = setup.through(&relay);
    let process = start_removal(&setup, &name);
    eventually("it is removing", PATIENCE, || (relay.struck() > 0).then_some(()));
    let row = format!("insert into resources (id, name, plan) values ('back', '{name}', '{BASIC}')");
    setup.database.connect().batch_execute(&row).unwrap();
    relay.release();
    let (code, lines, log) = ended(process.wait_with_output().unwrap());
    let expected = [
        format!("removed: kind=bucket name={name}"),
        format!("failed: name={name:?} cause=\"the database names it now\""),
    ];
    assert_eq!((code, lines.as_slice()), (Some(70), expected.as_slice()), "{log}");
    assert!(log.contains("call not begun: operation=ListAttachedUserPolicies "), "{log}");
    assert_eq!(setup.left_in_aws(), [name]);
}

/// Starts a removal that asks. script(1) gives it a terminal, and passes on what is typed and its exit code.
fn on_a_terminal(setup: &Setup, name: &str) -> Child {
    let binary = env!("CARGO_BIN_EXE_servicebroker");
    let line = format!("{binary} reconcile --delete --younger-than-an-hour {name}");
    let broker = setup.aws_command(&[]);
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).env("PATH", std::env::var("PATH").unwrap());
    script.envs(broker.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let piped = script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    piped.spawn().expect("script(1), of the package bsdutils")
}

#[test]
fn what_was_written_before_the_answer_keeps_bucket_user_and_key() {
    let (setup, name) = with_orphan();
    let keys = keys_of(&name);
    let mut process = on_a_terminal(&setup, &name);
    let (mut typed, mut screen) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
    let mut shown = Vec::new();
    while !String::from_utf8_lossy(&shown).contains("Type yes: ") {
        let mut byte = [0];
        screen.read_exact(&mut byte).unwrap();
        shown.push(byte[0]);
    }
    put_object(&name, "k");
    typed.write_all(b"yes\n").unwrap();
    screen.read_to_end(&mut shown).unwrap();
    let screen = String::from_utf8_lossy(&shown);
    assert_eq!(process.wait().unwrap().code(), Some(1), "{screen}");
    assert!(screen.contains("reason=\"the bucket is not empty\""), "{screen}");
    assert_eq!((setup.left_in_aws(), keys_of(&name)), (vec![name.clone(), name.clone()], keys));
}

#[test]
fn what_was_written_after_the_last_look_keeps_bucket_user_and_key() {
    let (setup, name) = with_orphan();
    let (keys, relay) = (keys_of(&name), relay());
    relay.plan(Point::Named("DeleteBucket".to_owned(), 1), When::Before, Fault::Hold);
    let setup = setup.through(&relay);
    let process = start_removal(&setup, &name);
    relay.wait_until_struck(1, PATIENCE);
    put_object(&name, "k");
    relay.release();
    let (code, lines, log) = ended(process.wait_with_output().unwrap());
    let refused = format!("refused: name={name:?} reason=\"the bucket is not empty\"");
    assert_eq!((code, lines), (Some(1), vec![refused]), "{log}");
    assert_eq!((setup.left_in_aws(), keys_of(&name)), (vec![name.clone(), name.clone()], keys));
}

#[test]
fn on_a_terminal_each_name_is_asked_for() {
    let (setup, name) = with_orphan();
    for (answer, code) in [("no\n", 1), ("\n", 1), ("yes\n", 0)] {
        let mut process = on_a_terminal(&setup, &name);
        let mut typed = process.stdin.take().unwrap();
        typed.write_all(answer.as_bytes()).unwrap();
        let output = process.wait_with_output().unwrap();
        let screen = String::from_utf8_lossy(&output.stdout).into_owned();
        let question = format!("Remove {name} from AWS (user tag=ours, bucket tag=ours)? Type yes: ");
        assert!(screen.contains(&question), "{screen}");
        assert_eq!(output.status.code(), Some(code), "{screen}");
        assert_eq!(screen.contains("removed: kind=bucket"), code == 0, "{screen}");
        assert_eq!(screen.contains("reason=\"not confirmed\""), code == 1, "{screen}");
    }
    setup.check_nothing_left();
}
