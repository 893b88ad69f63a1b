//! The proxy itself, before the real PostgreSQL.

use std::time::Instant;

use postgres::types::Type;
use postgres::{Client, NoTls};

use super::*;
use crate::support::{Database, PATIENCE, eventually};

/// A database with a table, and a proxy before it.
fn with_table() -> (Database, Proxy) {
    let database = Database::create();
    database.connect().batch_execute("create table tasks (id integer)").unwrap();
    let proxy = Proxy::before(database.url());
    (database, proxy)
}

fn connect(proxy: &Proxy) -> Client {
    Client::connect(proxy.url(), NoTls).unwrap()
}

/// Inserts a row in a transaction.
fn insert(client: &mut Client) -> Result<(), postgres::Error> {
    let mut transaction = client.transaction()?;
    transaction.execute_typed("insert into tasks values ($1)", &[(&1, Type::INT4)])?;
    transaction.commit()
}

fn rows(database: &Database) -> String {
    database.text("select count(*)::text from tasks").unwrap()
}

#[test]
fn a_known_sequence_is_counted_exactly() {
    let (database, proxy) = with_table();
    let (mut first, mut second) = (connect(&proxy), connect(&proxy));
    first.batch_execute("set lock_timeout = 1; set statement_timeout = 0").unwrap();
    insert(&mut first).unwrap();
    let prepared = second.prepare("select id from tasks where id = $1").unwrap();
    for _ in 0..2 {
        assert_eq!(second.query(&prepared, &[&1]).unwrap().len(), 1);
    }
    assert_eq!(second.query("select id from tasks", &[]).unwrap().len(), 1);
    insert(&mut second).unwrap();
    let counted = [
        "set#1",
        "begin#1",
        "insert tasks#1",
        "commit#1",
        "select tasks#1",
        "select tasks#2",
        "select tasks#3",
        "begin#2",
        "insert tasks#2",
        "commit#2",
    ];
    assert_eq!(proxy.points(), counted);
    let connections: Vec<usize> = proxy.statements().iter().map(|it| it.connection).collect();
    assert_eq!(connections, [1, 1, 1, 1, 2, 2, 2, 2, 2, 2]);
    assert_eq!(rows(&database), "2");
}

#[test]
fn with_a_filter_only_steps_and_their_commits_count() {
    let (_database, proxy) = with_table();
    let mut client = connect(&proxy);
    proxy.count(Some(|sql| sql.starts_with("insert")));
    client.batch_execute("begin").unwrap();
    client.batch_execute("select 1").unwrap();
    client.batch_execute("commit").unwrap();
    insert(&mut client).unwrap();
    assert_eq!(proxy.points(), ["insert tasks#1", "commit#1"]);
}

#[test]
fn after_a_commit_it_is_committed_and_before_it_is_not() {
    for (fault, expected) in [(Fault::Before, "1"), (Fault::After, "2")] {
        let (database, proxy) = with_table();
        let mut client = connect(&proxy);
        proxy.arm(Point::Name("commit#2".to_owned()), fault);
        insert(&mut client).unwrap();
        insert(&mut client).unwrap_err();
        proxy.wait_until_struck(PATIENCE);
        assert!(client.is_closed() || client.simple_query("select 1").is_err(), "{fault:?}");
        assert_eq!(rows(&database), expected, "{fault:?}");
        insert(&mut connect(&proxy)).unwrap(); // it strikes once
    }
}

#[test]
fn after_a_statement_of_the_extended_protocol_it_was_carried_out() {
    for (fault, expected) in [(Fault::Before, "0"), (Fault::After, "1")] {
        let (database, proxy) = with_table();
        let mut client = connect(&proxy);
        proxy.arm(Point::Number(1), fault);
        client.execute_typed("insert into tasks values ($1)", &[(&1, Type::INT4)]).unwrap_err();
        proxy.wait_until_struck(PATIENCE);
        assert_eq!(rows(&database), expected, "{fault:?}");
    }
}

#[test]
fn a_delay_holds_up_one_statement_and_slowness_all() {
    const DELAY: Duration = Duration::from_millis(300);
    let (_database, proxy) = with_table();
    let mut client = connect(&proxy);
    proxy.arm(Point::Name("select#2".to_owned()), Fault::Delay(DELAY));
    let mut took = || {
        let began = Instant::now();
        client.batch_execute("select 1").unwrap();
        began.elapsed()
    };
    let [before, delayed, after] = [took(), took(), took()];
    proxy.wait_until_struck(Duration::ZERO);
    assert!(before < DELAY && delayed >= DELAY && after < DELAY, "{before:?} {delayed:?} {after:?}");
    proxy.turn(Mood::Slow(DELAY));
    assert!(took() >= DELAY && took() >= DELAY);
}

#[test]
fn a_hanging_statement_never_reaches_the_server_and_a_swallowed_one_does() {
    for (fault, expected) in [(Fault::Hang, "1"), (Fault::Swallow, "2")] {
        let (database, proxy) = with_table();
        let mut client = connect(&proxy);
        proxy.arm(Point::Name("commit#1".to_owned()), fault);
        let hanging = std::thread::spawn(move || insert(&mut client).is_err());
        proxy.wait_until_struck(PATIENCE);
        insert(&mut connect(&proxy)).unwrap(); // other connections are as before
        assert!(!hanging.is_finished(), "{fault:?}");
        assert_eq!(rows(&database), expected, "{fault:?}");
        drop(proxy);
        assert!(hanging.join().unwrap(), "{fault:?}");
        assert_eq!(rows(&database), expected, "{fault:?}");
    }
}

#[test]
fn while_it_is_down_nobody_gets_through() {
    let (_database, proxy) = with_table();
    let mut client = connect(&proxy);
    insert(&mut client).unwrap();
    proxy.turn(Mood::Down);
    assert!(insert(&mut client).is_err() && Client::connect(proxy.url(), NoTls).is_err());
    eventually("the connections are gone", PATIENCE, || (proxy.connections() == 0).then_some(()));
    proxy.turn(Mood::Open);
    assert!(insert(&mut client).is_err()); // what was cut stays so
    insert(&mut connect(&proxy)).unwrap();
}

#[test]
fn all_its_sockets_end_with_it() {
    let (database, proxy) = with_table();
    proxy.turn(Mood::Frozen);
    // A server process that waits for a start-up message would hold up the end of the database.
    let url = proxy.url().to_owned();
    let stuck = std::thread::spawn(move || Client::connect(&url, NoTls).is_err());
    eventually("it is connected", PATIENCE, || (proxy.connections() == 1).then_some(()));
    let address = proxy.address;
    drop(proxy);
    assert!(stuck.join().unwrap());
    eventually("it does not listen", PATIENCE, || TcpStream::connect(address).is_err().then_some(()));
    let began = Instant::now();
    drop(database);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}
