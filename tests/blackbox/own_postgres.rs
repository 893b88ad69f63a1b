//! A PostgreSQL of a test's own, which can be stopped and started; `tests/own-postgres` runs it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// How long it may take to end with everything that it started.
const END_LIMIT: Duration = Duration::from_secs(60);

/// A running program, removed with its server at the end.
pub(crate) struct OwnPostgres {
    program: Child,
    said: BufReader<ChildStdout>,
    url: String,
}

impl OwnPostgres {
    /// Starts one.
    pub(crate) fn start() -> OwnPostgres {
        let mut program = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/own-postgres"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tests/own-postgres");
        let said = BufReader::new(program.stdout.take().unwrap());
        let mut own = OwnPostgres { program, said, url: String::new() };
        own.url = own.next_line();
        own
    }

    /// Where it is, also after it was started again.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Has it obey `stop`, `crash` or `start`, and waits until that is done.
    pub(crate) fn tell(&mut self, command: &str) {
        self.ask(command);
        assert_eq!(self.next_line(), command);
    }

    /// Starts it again, and returns when it was first seen to take connections.
    pub(crate) fn start_again(&mut self) -> Instant {
        self.ask("start");
        let back = crate::support::eventually("PostgreSQL is back", END_LIMIT, || {
            postgres::Client::connect(&self.url, postgres::NoTls).ok().map(|_| Instant::now())
        });
        assert_eq!(self.next_line(), "start");
        back
    }

    /// All values of a query of one text column.
    pub(crate) fn texts(&self, sql: &str) -> Vec<String> {
        let mut client = postgres::Client::connect(&self.url, postgres::NoTls).expect("PostgreSQL is up");
        client.query(sql, &[]).expect(sql).iter().map(|row| row.get(0)).collect()
    }

    fn ask(&mut self, command: &str) {
        writeln!(self.program.stdin.as_ref().unwrap(), "{command}").unwrap();
    }

    fn next_line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "tests/own-postgres has ended, see its standard error");
        line.trim_end().to_owned()
    }
}

impl Drop for OwnPostgres {
    fn drop(&mut self) {
        drop(self.program.stdin.take()); // the word to end
        let deadline = Instant::now() + END_LIMIT;
        while matches!(self.program.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20)); // between looks, not instead of them
        }
        if matches!(self.program.try_wait(), Ok(None)) {
            drop(self.program.kill()); // its children are told by the kernel
        }
    }
}
