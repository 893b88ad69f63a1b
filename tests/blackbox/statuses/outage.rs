//! The database goes away and comes back: what is still answered, and how.

use std::time::{Duration, Instant};

use super::*;

/// Sends statements past the test's database to its server, one after the other: some of them
/// must not share a transaction.
fn tell_server(statements: &[String]) {
    let mut client = postgres::Client::connect(&setting("TEST_DATABASE_URL"), postgres::NoTls).unwrap();
    for statement in statements {
        client.batch_execute(statement).expect(statement);
    }
}

/// The name in a database's URL.
fn name_of(database: &Database) -> &str {
    let path = database.url().split('?').next().unwrap();
    path.rsplit('/').next().unwrap()
}

fn cut_connections(name: &str) -> String {
    format!(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}' and usename = current_user"
    )
}

/// Makes it like a standby, or ends that.
pub(crate) fn set_read_only(database: &Database, is_read_only: bool) {
    let name = name_of(database);
    let set = format!("alter database {name} set default_transaction_read_only = {is_read_only}");
    tell_server(&[set, cut_connections(name)]);
}

/// Lets nobody in any more.
pub(crate) fn close(database: &Database) {
    let name = name_of(database);
    let closed = format!("alter database {name} with allow_connections false");
    tell_server(&[closed, cut_connections(name)]);
}

/// Lets everybody in again.
pub(crate) fn open(database: &Database) {
    tell_server(&[format!("alter database {} with allow_connections true", name_of(database))]);
}

/// Everything that needs the database is 503 meanwhile, what does not is as ever, and all comes back.
fn outlives(cut: impl Fn(&str) -> Vec<String>, mend: impl Fn(&str) -> Vec<String>) {
    let setup = impatient();
    add_instance(&setup, "a", "available");
    let api = setup.api(&[]);
    let name = name_of(&setup.database).to_owned();
    let (before, path) = (api.get("/v2/catalog"), binding_at("a", "b"));
    tell_server(&cut(&name));
    for _ in 0..2 {
        let query = ids_in_query();
        for (what, answer) in [
            ("provision", api.provision("new", BASIC)),
            ("last_operation", api.get(&format!("{}/last_operation", at("a")))),
            ("bind", api.put(&path, &bind_body(BASIC))),
            ("fetch", api.get(&path)),
            ("unbind", api.delete(&format!("{path}?{query}"))),
            ("deprovision", api.deprovision("a", BASIC)),
        ] {
            check_error(what, &answer, 503);
            let seconds = answer.header("retry-after").and_then(|it| it.parse::<u32>().ok());
            assert!(seconds.is_some_and(|it| it > 0), "{what}: {:?}", answer.headers);
            let said = answer.text.to_ascii_lowercase();
            assert!(!said.contains("postgres") && !said.contains(&name), "internals shown: {said}");
        }
        let catalog = api.get("/v2/catalog");
        check_json("catalog", &catalog, 200);
        assert_eq!(catalog.text, before.text, "complete, as it was");
        assert_eq!(api.get("/healthz").status, 200);
        assert_eq!(api.get("/readyz").status, 503);
        check_error("malformed", &api.send("PUT", &async_at("new"), b"{"), 400);
        check_error("unknown path", &api.get("/v2/nothing"), 404);
        check_error("stranger", &api.without_header("Authorization").provision("new", BASIC), 401);
    }
    tell_server(&mend(&name));
    eventually("the api is ready again", PATIENCE, || (api.get("/readyz").status == 200).then_some(()));
    operation_of("provision", &api.provision("new", BASIC));
    check_json("bind", &api.put(&path, &bind_body(BASIC)), 201);
    let state = api.get(&format!("{}/last_operation", at("a")));
    assert_eq!(state.json["state"], "succeeded", "the deprovision that was refused did nothing");
    write(&setup, "update plans set description = 'Edited.'");
    eventually("edits show again", Duration::from_secs(10), || {
        api.get("/v2/catalog").text.contains("Edited.").then_some(())
    });
}

#[test]
fn a_database_that_accepts_no_connections() {
    outlives(
        |name| vec![format!("alter database {name} with allow_connections false"), cut_connections(name)],
        |name| vec![format!("alter database {name} with allow_connections true")],
    );
}

#[test]
fn a_database_that_accepts_no_more_connections() {
    outlives(
        |name| vec![format!("alter database {name} with connection limit 0"), cut_connections(name)],
        |name| vec![format!("alter database {name} with connection limit -1")],
    );
}

#[test]
fn a_database_that_is_renamed() {
    outlives(
        |name| {
            vec![
                format!("alter database {name} with allow_connections false"),
                cut_connections(name),
                format!("alter database {name} rename to {name}_away"),
                format!("alter database {name}_away with allow_connections true"),
            ]
        },
        |name| vec![format!("alter database {name}_away rename to {name}")],
    );
}

#[test]
fn the_catalog_stays_however_often_it_cannot_be_read_anew() {
    let setup = impatient();
    let api = setup.api(&[]);
    let before = api.get("/v2/catalog").text;
    close(&setup.database);
    let end = Instant::now() + Duration::from_secs(11); // edits show within ten, so it was tried by then
    while Instant::now() < end {
        let answer = api.get("/v2/catalog");
        check_json("catalog", &answer, 200);
        assert_eq!(answer.text, before);
        std::thread::sleep(Duration::from_millis(100)); // between looks, not instead of them
    }
    open(&setup.database);
}

#[test]
fn connections_that_break_are_made_anew_without_a_word() {
    let setup = impatient();
    add_instance(&setup, "a", "available");
    let api = setup.api(&[]);
    for round in 0..3 {
        operation_of("before", &api.provision(&format!("before-{round}"), BASIC));
        tell_server(&[cut_connections(name_of(&setup.database))]);
        eventually("requests are served again", Duration::from_secs(10), || {
            let answer = api.get(&binding_at("a", "b"));
            assert!(matches!(answer.status, 200 | 503), "{} {}", answer.status, answer.text);
            (answer.status == 200).then_some(())
        });
    }
}

#[test]
fn a_database_that_takes_no_changes() {
    let setup = impatient();
    add_instance(&setup, "a", "available");
    let api = setup.api(&[]);
    set_read_only(&setup.database, true);
    for (what, answer) in [
        ("provision", api.provision("new", BASIC)),
        ("bind", api.put(&binding_at("a", "b"), &bind_body(BASIC))),
        ("deprovision", api.deprovision("a", BASIC)),
    ] {
        check_error(what, &answer, 503);
    }
    assert_eq!(api.get("/readyz").status, 503);
    set_read_only(&setup.database, false);
    eventually("it is ready again", PATIENCE, || (api.get("/readyz").status == 200).then_some(()));
    assert_eq!(api.provision("new", BASIC).status, 202);
}
