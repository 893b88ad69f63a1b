//! What a worker counts: its runs of tasks, and its calls to AWS.

use std::time::{Duration, Instant};

use super::settle::Next;
use crate::aws::Observer;
use crate::metrics::Metrics;
use crate::store::{Claim, TaskKind};

/// How a run may end.
const OUTCOMES: [&str; 6] = [FINISHED, RETRIED, SNOOZED, GIVEN_UP, STOPPED, LOST];
/// The task is done.
const FINISHED: &str = "finished";
/// It has failed and will run again.
const RETRIED: &str = "retried";
/// It waits for AWS, or goes on in slices.
const SNOOZED: &str = "snoozed";
/// It has failed for good.
const GIVEN_UP: &str = "given_up";
/// A delete came.
const STOPPED: &str = "stopped";
/// Another worker has it.
const LOST: &str = "lost";

impl Observer for Metrics {
    fn attempted(&self, service: &'static str, operation: &'static str, code: &str, took: Duration) {
        self.count_aws_call(service, operation, code, took);
    }

    fn repeated(&self, service: &'static str, operation: &'static str) {
        self.count_aws_retry(service, operation);
    }
}

/// Shows from the start what operators watch most.
pub(super) fn begin(metrics: &Metrics) {
    for kind in [TaskKind::Provision, TaskKind::Delete] {
        metrics.know_task_runs(kind.label(), &OUTCOMES);
    }
}

/// Counts a run, whether or not its end can be written down.
pub(super) fn count_run(metrics: &Metrics, claim: &Claim, next: &Next, began: Instant) {
    let outcome = match next {
        Next::End(_) => FINISHED,
        Next::Retry { .. } => RETRIED,
        Next::Snooze { .. } => SNOOZED,
        Next::GiveUp { .. } => GIVEN_UP,
        Next::Stopped => STOPPED,
        Next::Nothing => LOST,
    };
    metrics.count_task_run(claim.kind.label(), outcome, began.elapsed());
}
