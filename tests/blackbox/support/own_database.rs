//! A database for one test.

use std::sync::{Mutex, PoisonError};

use super::{setting, unique};

/// A database of its own, dropped at the end.
pub(crate) struct Database {
    name: String,
    url: String,
    /// Looks again and again must not cost a process of PostgreSQL each.
    session: Mutex<Option<postgres::Client>>,
}

impl Database {
    /// An empty one.
    pub(crate) fn create() -> Database {
        let (base, name) = (setting("TEST_DATABASE_URL"), unique());
        let mut client = postgres::Client::connect(&base, postgres::NoTls).expect("PostgreSQL of the tests");
        client.batch_execute(&format!("create database {name}")).expect("create database");
        let (server, query) = base.split_once('?').unwrap_or((&base, ""));
        let server = server.rsplit_once('/').expect("a database in the URL").0;
        Database { url: format!("{server}/{name}?{query}"), name, session: Mutex::default() }
    }

    /// One as the old broker left it.
    pub(crate) fn of_the_old_broker() -> Database {
        let database = Database::create();
        let dump =
            [include_str!("../../go-broker/schema.sql"), include_str!("../../go-broker/data.sql")].concat();
        // What only a superuser may, and the emptied search_path that pg_dump leaves behind.
        let allowed = |line: &&str| {
            !line.contains("OWNER TO")
                && !line.contains("EXTENSION")
                && !line.contains("set_config('search_path'")
        };
        let script: Vec<&str> = dump.lines().filter(allowed).collect();
        database.connect().batch_execute(&script.join("\n")).expect("the old broker's dump");
        database
    }

    /// Where it is.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A connection of the test's own.
    pub(crate) fn connect(&self) -> postgres::Client {
        postgres::Client::connect(&self.url, postgres::NoTls).expect("database of the test")
    }

    /// One value as text, `None` for null or no row.
    pub(crate) fn text(&self, sql: &str) -> Option<String> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let row = match session.as_mut().map(|it| it.query_opt(sql, &[])) {
            Some(Ok(row)) => row,
            // there is none yet, or its server has ended it
            Some(Err(_)) | None => {
                let mut config: postgres::Config = self.url.parse().unwrap();
                let client = config.application_name("test").connect(postgres::NoTls);
                session.insert(client.expect("database of the test")).query_opt(sql, &[]).expect(sql)
            }
        };
        row?.get(0)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let mut client = postgres::Client::connect(&setting("TEST_DATABASE_URL"), postgres::NoTls).unwrap();
        client.batch_execute(&format!("drop database if exists {} with (force)", self.name)).unwrap();
    }
}
