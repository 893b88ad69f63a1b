//! `reconcile` when AWS or the database gives trouble.

use super::removal::{delete, start_removal, with_orphan};
use super::*;
use crate::statuses::outage::set_read_only;

#[test]
fn a_database_that_takes_no_changes_is_not_believed() {
    let (setup, name) = with_orphan();
    set_read_only(&setup.database, true);
    let (code, lines, log) = reconcile(&setup, &[]);
    assert_eq!((code, lines), (Some(70), vec![]), "{log}");
    assert!(log.contains("the database takes no changes"), "{log}");
    let (code, lines, log) = delete(&setup, &name, &["--with-objects"]);
    assert_eq!((code, lines.len()), (Some(70), 1), "{log}");
    assert!(
        lines[0].starts_with(&format!("failed: name={name:?} cause=\"the database takes no")),
        "{lines:?}"
    );
    assert_eq!(setup.left_in_aws(), [name.clone(), name.clone()]);
    set_read_only(&setup.database, false);

    // Nor when it becomes one in the middle.
    let relay = relay();
    relay.plan(Point::Named("DeleteUserPolicy".to_owned(), 1), When::After, Fault::Hold);
    let setup = setup.through(&relay);
    let process = start_removal(&setup, &name);
    relay.wait_until_struck(1, PATIENCE);
    set_read_only(&setup.database, true);
    relay.release();
    let (code, lines, log) = ended(process.wait_with_output().unwrap());
    assert_eq!((code, lines.len()), (Some(70), 2), "{log}");
    assert!(lines[1].contains("cause=\"the database takes no changes"), "{lines:?}");
    assert!(log.contains("call not begun: operation=ListAttachedUserPolicies "), "{log}");
    assert_eq!(setup.left_in_aws(), [name]);
}

#[test]
fn what_is_only_partly_marked_goes_only_when_told() {
    let setup = Setup::new();
    drop(setup.api(&[]));
    let name = format!("{}-u00000000000000aa", setup.prefix);
    make_user(&name, Some(&id_of(&setup)));
    make_bucket(&name, None);
    let (code, lines, log) = delete(&setup, &name, &["--with-objects"]);
    let reason = "not all of it carries our tag (user tag=ours, bucket tag=none), and no --untagged";
    let refused = format!("refused: name={name:?} reason={reason:?}");
    assert_eq!((code, lines), (Some(1), vec![refused]), "{log}");
    assert_eq!(setup.left_in_aws(), [name.clone(), name.clone()]);
    let (code, _, log) = delete(&setup, &name, &["--untagged"]);
    assert_eq!((code, setup.left_in_aws()), (Some(0), vec![]), "{log}");
}

#[test]
fn what_is_older_than_an_hour_goes_without_further_words() {
    let setup = Setup::new();
    drop(setup.api(&[]));
    let (name, relay) = (format!("{}-u00000000000000aa", setup.prefix), relay());
    make_bucket(&name, Some(&id_of(&setup)));
    let made = |time: &str| {
        let bucket = format!("<Bucket><Name>{name}</Name>{time}</Bucket>");
        let list = format!("<ListAllMyBucketsResult><Buckets>{bucket}</Buckets></ListAllMyBucketsResult>");
        relay.calm_down();
        relay.plan(Point::Every("ListBuckets".to_owned()), When::Before, Fault::Status(200, list));
    };
    let setup = setup.through(&relay);
    let ask = || reconcile(&setup, &["--delete", "--yes", &name]);
    made("");
    let (code, lines, _) = ask();
    assert_eq!(code, Some(1));
    assert!(lines[0].contains("reason=\"AWS does not say when it was made"), "{lines:?}");
    made("<CreationDate>2020-01-01T00:00:00Z</CreationDate>");
    let (code, lines, log) = ask();
    assert_eq!((code, lines), (Some(0), vec![format!("removed: kind=bucket name={name}")]), "{log}");
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}

/// What AWS answers once, and to which call of a removal.
const ONCE: [(&str, &str); 11] = [
    ("iam.throttling", "GetUser"),
    ("iam.throttling", "DeleteAccessKey"),
    ("iam.servicefailure", "ListUserPolicies"),
    ("iam.deleteconflict.keys", "DeleteUser"),
    ("iam.deleteconflict.policies", "DeleteUser"),
    ("iam.concurrentmodification", "DeleteUserPolicy"),
    ("s3.slowdown", "ListObjectVersions"),
    ("s3.slowdown", "DeleteObjects"),
    ("s3.deleteobjects.partial", "DeleteObjects"),
    ("s3.operationaborted", "DeleteBucket"),
    ("s3.permanentredirect", "DeleteBucket"),
];

#[test]
fn a_removal_has_the_patience_of_a_task() {
    for_each(0..ONCE.len() + 2, |number| {
        let (setup, name) = with_orphan();
        let relay = relay();
        let (operation, fault) = match ONCE.get(number) {
            Some((answer, operation)) => (*operation, Fault::Replay(answer)),
            None if number == ONCE.len() => ("DeleteUser", Fault::Reset),
            None => ("DeleteBucket", Fault::Status(409, "<Error><Code>BucketNotEmpty</Code></Error>".into())),
        };
        relay.plan(Point::Named(operation.to_owned(), 1), When::Before, fault.clone());
        let setup = setup.through(&relay);
        put_object(&name, "k");
        let (code, lines, log) = delete(&setup, &name, &["--with-objects"]);
        assert_eq!((code, lines.len()), (Some(0), 2), "{operation} {fault:?}: {lines:?} {log}");
        assert_eq!(relay.struck(), 1, "{operation}");
        setup.check_nothing_left();
    });
}

#[test]
fn what_cannot_be_removed_is_said_and_the_next_name_is_taken() {
    let (setup, name) = with_orphan();
    let (next, relay) = (format!("{}-u00000000000000aa", setup.prefix), relay());
    make_user(&next, Some(&id_of(&setup)));
    put_object(&name, "locked");
    let locked = "<DeleteResult><Error><Key>locked</Key><VersionId>null</VersionId><Code>AccessDenied</Code>\
         <Message>protected</Message></Error></DeleteResult>";
    relay.plan(Point::Every("DeleteObjects".to_owned()), When::Before, Fault::Status(200, locked.to_owned()));
    let setup = setup.through(&relay);
    let (code, lines, log) = delete(&setup, &name, &["--with-objects", &next]);
    assert_eq!((code, lines.len()), (Some(1), 3), "{lines:?} {log}");
    assert_eq!(lines[0], format!("removed: kind=user name={name}"));
    assert!(lines[1].contains("1 objects cannot be deleted") && lines[1].contains("locked"), "{lines:?}");
    assert_eq!(lines[2], format!("removed: kind=user name={next}"));

    // Of one that fails the rest stays, and the others are seen to as well.
    relay.calm_down();
    make_user(&next, Some(&id_of(&setup)));
    let denied = "<Error><Code>AccessDenied</Code><Message>no</Message></Error>".to_owned();
    relay.plan(Point::Every("ListObjectVersions".to_owned()), When::Before, Fault::Status(403, denied));
    let (code, lines, log) = delete(&setup, &name, &[&next]);
    assert_eq!((code, lines.len()), (Some(70), 2), "{lines:?} {log}");
    assert!(lines[0].starts_with(&format!("failed: name={name:?} cause=\"refused ")), "{lines:?}");
    assert_eq!(lines[1], format!("removed: kind=user name={next}"));
}

#[test]
fn lists_that_come_late_and_calls_that_fail_once_are_no_findings() {
    let setup = Setup::new();
    let (api, worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    drop((api, worker));
    let name = name_of(&setup, "one");
    // More than a call endures by itself.
    let relay = relay();
    for (call, count) in [("ListUsers", 3), ("ListAccessKeys", 3), ("ListBuckets", 3), ("ListPolicies", 3)] {
        for number in 1..=count {
            let broken = Fault::Status(500, String::new());
            relay.plan(Point::Named(call.to_owned(), number), When::Before, broken);
        }
    }
    let setup = setup.through(&relay);
    finds(&setup, &[]);
    relay.calm_down();
    relay.count_anew();
    let nobody = "<ListUsersResponse><ListUsersResult><Users/></ListUsersResult></ListUsersResponse>";
    let late = Fault::Status(200, nobody.to_owned());
    relay.plan(Point::Named("ListUsers".to_owned(), 1), When::Before, late.clone());
    finds(&setup, &[]);
    assert!(relay.calls().iter().filter(|it| *it == "ListUsers").count() >= 2);
    relay.plan(Point::Every("ListUsers".to_owned()), When::Before, late);
    finds(&setup, &[format!("not in AWS: kind=user name={name} instance=\"one\"")]);
    relay.calm_down();

    // A key that was switched off opens nothing.
    let key = keys_of(&name).remove(0);
    ask_iam(&format!(
        "Action=UpdateAccessKey&Version=2010-05-08&UserName={name}&AccessKeyId={key}&Status=Inactive"
    ));
    finds(&setup, &[format!("not in AWS: kind=access_key name={name} instance=\"one\" key={key}")]);
}

#[test]
fn buckets_of_a_former_prefix_are_listed_once() {
    let mut setup = Setup::new();
    let (api, worker) = (setup.api(&[]), setup.worker());
    for instance in ["one", "two", "three", "four", "five", "six"] {
        api.provide(instance, BASIC);
    }
    drop((api, worker));
    setup.prefix = unique();
    let relay = relay();
    let setup = setup.through(&relay);
    finds(&setup, &[]);
    // Not once for each instance; a busy emulator may be asked again.
    assert!(relay.calls().iter().filter(|it| *it == "ListBuckets").count() < 6);
}
