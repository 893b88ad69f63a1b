//! Keeps the figures of the tables in sight: looks at them now and then, and counts them anew when that is due.
//!
//! Not here: who counts (`store` lets one process of all count, once a minute), how figures are shown (`metrics`).

use std::time::Duration;

use crate::event::Event;
use crate::metrics::{Figure, Metrics};
use crate::store::Store;

/// How often each process looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Looks until the process is to end.
pub(crate) fn keep(store: &Store, metrics: &Metrics, ready: &Event, stop: &Event) {
    while !stop.is_set() && !ready.wait(LOOK_INTERVAL) {}
    let mut was_missed = false;
    while !stop.is_set() {
        match store.census() {
            Ok(Some(census)) => {
                let figures = census.figures.into_iter();
                let figures: Vec<Figure> =
                    figures.map(|it| Figure { what: it.what, by: it.by, value: it.value }).collect();
                metrics.show_tables(census.age, &figures);
                was_missed = false;
            }
            Ok(None) => metrics.show_no_tables(),
            Err(err) => {
                metrics.miss_tables();
                if !std::mem::replace(&mut was_missed, true) {
                    log::warn!("figures of the tables stay as they were: cause={err}");
                }
            }
        }
        stop.wait(LOOK_INTERVAL);
    }
}
