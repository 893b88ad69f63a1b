//! What a worker does beside its tasks: it says who it is, completes rows of the old broker, and keeps the
//! tables small.

use std::time::Duration;

use super::{POLL_INTERVAL, Shop};
use crate::steps;

/// How often old instances whose bucket AWS did not show are asked for again.
const PLACE_INTERVAL: Duration = Duration::from_secs(60);
/// How often old tasks are looked for.
const PURGE_INTERVAL: Duration = Duration::from_secs(3_600);

impl Shop {
    /// Says who we are to AWS: wrong keys show at the start, not with the first customer.
    pub(super) fn introduce(&self) {
        let caller = self.aws.caller(self.stop.as_ref());
        match (caller.get_caller_identity(), &self.settings.account_id) {
            (Ok(us), Some(wanted)) if us.account != *wanted => {
                log::error!(
                    "AWS_ACCOUNT_ID is {wanted}, but the keys are of another account: arn={}",
                    us.arn
                );
            }
            (Ok(us), _) => log::info!("known to AWS: arn={}", us.arn),
            (Err(err), _) => log::warn!("not known to AWS, tasks will wait: cause={err}"),
        }
    }

    /// Asks AWS where the buckets of the old broker are, and writes it down, until all are known.
    pub(super) fn place_old_instances(&self) {
        while !self.stop.is_set() && !self.ready.wait(POLL_INTERVAL) {}
        while !self.stop.is_set() {
            match self.store.transaction(|tx| tx.unplaced_instances()) {
                Ok(unplaced) if unplaced.is_empty() => return,
                Ok(unplaced) => self.place_instances(unplaced),
                Err(err) => log::warn!("old instances not looked at: cause={err}"),
            }
            self.stop.wait(PLACE_INTERVAL);
        }
    }

    /// Asks for each of these once.
    fn place_instances(&self, unplaced: Vec<(String, String)>) {
        for (id, bucket) in unplaced {
            let caller = self.aws.caller(self.stop.as_ref());
            let written = steps::find_bucket(&caller, &self.aws, &bucket).map(|place| {
                let id = id.clone();
                self.store.transaction(move |tx| tx.place_instance(&id, &place))
            });
            match written {
                Ok(Ok(())) => log::info!("old instance completed: instance={id:?} bucket={bucket}"),
                Ok(Err(err)) => log::warn!("old instance not completed: instance={id:?} cause={err}"),
                Err(err) => log::warn!("old instance not completed: instance={id:?} cause={err}"),
            }
        }
    }

    /// Takes old tasks out of sight, now and every hour.
    pub(super) fn keep_house(&self) {
        while !self.stop.is_set() && !self.ready.wait(POLL_INTERVAL) {}
        match self.store.tasks_of_others() {
            Ok(0) => {}
            Ok(taken) => log::warn!(
                "another broker's worker has taken tasks within the hour; it must be stopped: tasks={taken}"
            ),
            Err(err) => log::warn!("tasks not looked at: cause={err}"),
        }
        while !self.stop.is_set() {
            match self.store.purge_tasks() {
                Ok(true) => continue,
                Ok(false) => {}
                Err(err) => log::warn!("old tasks not put away: cause={err}"),
            }
            self.stop.wait(PURGE_INTERVAL);
        }
    }
}
