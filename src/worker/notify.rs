//! Notices: a webhook is told how a provision ended, or that a binding was made.
//!
//! Threads of their own do it, so that a receiver that does not answer holds up no work on AWS.
//! A notice may come more than once: a worker that dies after the call leaves it to the next one.

use std::sync::Arc;
use std::time::Duration;

use super::{Shop, Worker, call_deadline};
use crate::aws::{AwsError, Permit};
use crate::outgoing::{self, Outgoing};
use crate::steps::{Ending, StepError};
use crate::store::{Lane, Notice};

/// Receivers that are called at once.
const THREADS: usize = 2;
/// How long a call may take in all.
const LIMIT: Duration = Duration::from_secs(10);
/// What the log calls it.
const OPERATION: &str = "Webhook";

/// What calls of webhooks need.
pub(crate) struct Webhooks {
    /// The way out.
    pub(crate) outgoing: Outgoing,
    /// The hosts that may be called. Looked at again here: the api may have had other settings.
    pub(crate) hosts: Vec<crate::config::WebhookHost>,
    /// Whether what was not delivered is tried again.
    pub(crate) retry: bool,
}

impl Worker {
    /// Starts the threads that call webhooks; their numbers follow those of the others.
    pub(super) fn spawn_notifiers(&mut self, shop: &Arc<Shop>, first: usize) -> Result<(), String> {
        (first..first + THREADS).try_for_each(|number| {
            self.spawn(format!("notice-{number}"), shop, move |shop| shop.work(number, Lane::Notices))
        })
    }
}

impl Shop {
    /// Calls the webhook of a task, once.
    pub(super) fn notify(&self, metadata: &str, permit: &dyn Permit) -> Result<Ending, StepError> {
        let unfit = |why: &str| StepError::Unfixable(why.to_owned());
        let notice = Notice::parse(metadata).ok_or_else(|| unfit("the task names no webhook"))?;
        let url = outgoing::check_url(notice.url(), &self.webhooks.hosts).map_err(unfit)?;
        let (secret, body) = (notice.secret(), notice.body()?);
        if !permit.may_call(OPERATION) {
            return Err(StepError::Aws(AwsError::Halted { operation: OPERATION }));
        }
        let limit = LIMIT.min(call_deadline(self.lease));
        match self.webhooks.outgoing.post(&url, &secret, &body, limit) {
            Ok(()) => Ok(Ending::Told),
            Err(why) if self.webhooks.retry => Err(StepError::Stuck(why.to_string())),
            Err(why) => Err(StepError::Unfixable(why.to_string())),
        }
    }
}
