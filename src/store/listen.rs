//! A connection that waits for notifications. The worker is woken by one when a task is due, the
//! api when a task has ended. Both also poll, so a pooler that swallows notifications costs time
//! and nothing else.

use std::time::Duration;

use postgres::Client;
use postgres::fallible_iterator::FallibleIterator;

use super::StoreError;

/// Channel on which the id of a task is told when it becomes due.
pub(super) const DUE: &str = "servicebroker_due";
/// Channel on which the id of a task is told when it has ended.
pub(super) const ENDED: &str = "servicebroker_ended";

/// Waits for notifications on one channel.
pub(crate) struct Listener(Client);

impl Listener {
    /// Told when a task becomes due.
    pub(crate) const DUE: &str = DUE;
    /// Told when a task has ended.
    pub(crate) const ENDED: &str = ENDED;

    /// Listens on a connection that is there.
    pub(super) fn open(mut client: Client, channel: &'static str) -> Result<Listener, StoreError> {
        client.batch_execute(&format!("listen {channel}"))?;
        Ok(Listener(client))
    }

    /// The payloads that arrive within `limit`: returns as soon as there is one, with all that are there.
    ///
    /// # Errors
    /// The connection broke; open another.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<Vec<String>, StoreError> {
        let mut payloads = Vec::new();
        let first = self.0.notifications().timeout_iter(limit).next()?;
        payloads.extend(first.map(|it| it.payload().to_owned()));
        while let Some(next) = self.0.notifications().iter().next()? {
            payloads.push(next.payload().to_owned());
        }
        if self.0.is_closed() { Err(StoreError::Silent) } else { Ok(payloads) }
    }
}
