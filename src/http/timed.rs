//! A socket that keeps to a deadline.
//!
//! The standard library's timeouts count for one system call; a peer that sends a byte now and then
//! never meets them.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// A stream that can be given a deadline.
pub(super) trait Deadline: Read + Write {
    /// From now on nothing may take longer than until `deadline`.
    fn set_deadline(&mut self, deadline: Instant);
    /// Says that nothing more will be sent.
    fn finish(&mut self) -> io::Result<()>;
}

/// A socket with one absolute deadline, looked at before each system call: a peer that drips
/// bytes gains nothing.
pub(super) struct Timed {
    /// The socket.
    socket: TcpStream,
    /// When its patience ends.
    deadline: Instant,
}

impl Timed {
    /// A socket whose patience has to be set before it is used.
    pub(super) fn new(socket: TcpStream) -> Timed {
        Timed { socket, deadline: Instant::now() }
    }

    /// What is left of the deadline.
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Read for Timed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.left()?))?;
        self.socket.read(into)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Deadline for Timed {
    fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    fn finish(&mut self) -> io::Result<()> {
        self.socket.shutdown(Shutdown::Write)
    }
}
