//! What a worker does beside its tasks: it says who it is, completes rows of the old broker, and keeps the
//! tables small and free of old secrets.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::{POLL_INTERVAL, Shop, stock};
use crate::steps;
use crate::store::{NewTask, Store, StoreError, TaskKind, Transaction};

/// The pauses in which AWS is asked who we are until it answers: the first, and the longest.
const INTRODUCE_PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// The same for buckets of old instances that AWS did not show.
const PLACE_PAUSES: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3_600));
/// How often it is looked whether the old broker has left more of them.
const PLACE_INTERVAL: Duration = Duration::from_secs(10);
/// The tags of old instances are written one after the other, that far apart: thousands at once would hold up what
/// platforms ask for.
const TAG_INTERVAL: Duration = Duration::from_secs(1);
/// How often old tasks are looked for.
const PURGE_INTERVAL: Duration = Duration::from_secs(3_600);

/// Pauses that double up to a limit.
struct Pauses {
    /// The next one.
    next: Duration,
    /// The longest.
    longest: Duration,
}

impl Pauses {
    /// From the first up to the longest.
    fn new((first, longest): (Duration, Duration)) -> Pauses {
        Pauses { next: first, longest }
    }

    /// The next one.
    fn take(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        pause
    }
}

impl Shop {
    /// Says who we are to AWS: wrong keys show before the first customer. Asks until there is an answer.
    pub(super) fn introduce(&self) {
        let mut pauses = Pauses::new(INTRODUCE_PAUSES);
        while !self.stop.is_set() && !self.is_introduced() {
            self.stop.wait(pauses.take());
        }
    }

    /// Asks once who we are; whether AWS has said it.
    fn is_introduced(&self) -> bool {
        let caller = self.aws.caller(self.stop.as_ref());
        match (caller.identity(), &self.settings.account_id) {
            (Err(err), _) => {
                log::warn!("not known to AWS, tasks will wait: cause={err}");
                return false;
            }
            (Ok(us), Some(wanted)) if us.account != *wanted => {
                log::error!(
                    "AWS_ACCOUNT_ID is {wanted}, but the keys are of another account: arn={}",
                    us.arn
                );
            }
            (Ok(us), _) => log::info!("known to AWS: arn={}", us.arn),
        }
        true
    }

    /// Asks AWS where the buckets of the old broker are, and writes it down. Goes on looking when all are known: the old
    /// broker may be stopped later, or be at work once more.
    pub(super) fn place_old_instances(&self) {
        while !self.stop.is_set() && !self.ready.wait(POLL_INTERVAL) {}
        let mut missed: BTreeMap<String, (Instant, Pauses)> = BTreeMap::new();
        while !self.stop.is_set() {
            match self.store.transaction(|tx| tx.unplaced_instances()) {
                Ok(mut unplaced) => {
                    let ids: BTreeSet<&String> = unplaced.iter().map(|(id, _)| id).collect();
                    missed.retain(|id, _| ids.contains(id));
                    unplaced
                        .retain(|(id, _)| missed.get(id).is_none_or(|(again, _)| *again <= Instant::now()));
                    for id in self.place_instances(unplaced) {
                        let (again, pauses) =
                            missed.entry(id).or_insert_with(|| (Instant::now(), Pauses::new(PLACE_PAUSES)));
                        *again = Instant::now() + pauses.take();
                    }
                }
                Err(err) => log::warn!("old instances not looked at: cause={err}"),
            }
            self.stop.wait(PLACE_INTERVAL);
        }
    }

    /// Asks for each of these once; those that AWS has not told of.
    fn place_instances(&self, unplaced: Vec<(String, String)>) -> Vec<String> {
        let mut missed = Vec::new();
        for (number, (id, bucket)) in (0_u32..).zip(unplaced) {
            if self.stop.is_set() {
                break;
            }
            let caller = self.aws.caller(self.stop.as_ref());
            let written = steps::find_bucket(&caller, &self.aws, &bucket).map(|place| {
                let id = id.clone();
                self.store.transaction(move |tx| {
                    let placed = tx.place_instance(&id, &place)?;
                    if placed { enqueue_tags(tx, &id, TAG_INTERVAL * number) } else { Ok(()) }
                })
            });
            let cause = match written {
                Ok(Ok(())) => {
                    log::info!("old instance completed: instance={id:?} bucket={bucket}");
                    continue;
                }
                Ok(Err(err)) => err.to_string(),
                Err(err) => err.to_string(),
            };
            log::warn!("old instance not completed: instance={id:?} cause={cause}");
            missed.push(id);
        }
        missed
    }

    /// Looks for tasks of others and takes old tasks out of sight, now and every hour.
    pub(super) fn keep_house(&self) {
        while !self.stop.is_set() && !self.ready.wait(POLL_INTERVAL) {}
        while !self.stop.is_set() {
            self.look_for_others();
            self.look_for_twins();
            self.purge();
            self.stop.wait(PURGE_INTERVAL);
        }
    }

    /// Warns when the old broker's worker is at work.
    fn look_for_others(&self) {
        match self.store.tasks_of_others() {
            Ok(0) => {}
            Ok(taken) => log::warn!(
                "another broker's worker has taken tasks within the hour; it must be stopped: tasks={taken}"
            ),
            Err(err) => log::warn!("tasks not looked at: cause={err}"),
        }
    }

    /// Tells of instances that the old broker gave the same bucket.
    fn look_for_twins(&self) {
        match self.store.transaction(|tx| tx.shared_names()) {
            Ok(shared) => {
                for (bucket, ids) in shared {
                    log::error!(
                        "instances share a bucket; all but one must be replaced: bucket={bucket} instances={ids:?}"
                    );
                }
            }
            Err(err) => log::warn!("instances not looked at: cause={err}"),
        }
    }

    /// Takes old tasks out of sight, and wipes secrets that nothing needs any more, slice by slice.
    fn purge(&self) {
        for purge in [Store::purge_tasks, Store::forget_webhooks, Store::forget_keys] {
            while !self.stop.is_set() {
                match purge(&self.store) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(err) => {
                        log::warn!("old rows not tidied: cause={err}");
                        break;
                    }
                }
            }
        }
    }
}

/// What the old broker made does not say whose it is: a task writes that into its tags.
pub(super) fn enqueue_tags(
    tx: &mut Transaction<'_>,
    instance: &str,
    delay: Duration,
) -> Result<(), StoreError> {
    tx.enqueue_unless_waiting(&NewTask { delay, ..stock::task(instance, TaskKind::Tag)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut pauses = Pauses::new(PLACE_PAUSES);
        let taken: Vec<u64> = (0..8).map(|_| pauses.take().as_secs()).collect();
        assert_eq!(taken, [60, 120, 240, 480, 960, 1_920, 3_600, 3_600]);
    }
}
