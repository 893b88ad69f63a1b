//! Series of figures under one name, and their text in Prometheus' exposition format.
//!
//! Invariants
//! - A family holds a bounded number of series, whatever comes. What finds no room is counted as [`OTHER`].
//! - Values of labels are escaped; all else that is written is a constant of this room or a number.
//!
//! Source: Prometheus, "Exposition formats", text format 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Series of a family, but one for the rest. Labels are chosen so that there are far fewer.
const SERIES_MAX: usize = 1_000;
/// What a label says of series that found no room.
const OTHER: &str = "other";
/// Upper bounds of the buckets of a histogram, in seconds: from a look into memory to a request that waits.
const BOUNDS_S: [f64; 13] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// All series of one name.
pub(super) struct Family<T> {
    /// Its name.
    name: &'static str,
    /// What it says, in one line.
    help: &'static str,
    /// The names of its labels.
    labels: &'static [&'static str],
    /// The series by the values of their labels.
    series: Mutex<BTreeMap<Vec<String>, T>>,
}

/// What a series holds.
pub(super) trait Sample: Default {
    /// The word for it in the exposition.
    const KIND: &'static str;

    /// Writes the lines of a series; `labels` is without braces.
    fn write(&self, out: &mut String, name: &str, labels: &str);
}

/// Only ever grows.
#[derive(Default)]
pub(super) struct Counter(pub(super) u64);

/// Stands as it stands.
#[derive(Default)]
pub(super) struct Gauge(pub(super) f64);

/// How long things took.
#[derive(Default)]
pub(super) struct Histogram {
    /// Of each bucket, how many fell into it and no lower one.
    buckets: [u64; BOUNDS_S.len()],
    /// How many there were.
    count: u64,
    /// All of them together, in seconds.
    sum_s: f64,
}

impl<T: Sample> Family<T> {
    /// A family without series.
    pub(super) fn new(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Family<T> {
        Family { name, help, labels, series: Mutex::default() }
    }

    /// Its name.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// How many labels its series have.
    pub(super) fn width(&self) -> usize {
        self.labels.len()
    }

    /// Changes the series with these values of its labels.
    pub(super) fn change(&self, values: &[&str], change: impl FnOnce(&mut T)) {
        let values = values.iter().map(|it| (*it).to_owned()).collect();
        change(place(&mut self.series(), values));
    }

    /// Writes all series, or nothing where there is none.
    pub(super) fn write(&self, out: &mut String) {
        let series = self.series();
        if series.is_empty() {
            return;
        }
        write_head(out, self.name, self.help, T::KIND);
        for (values, sample) in series.iter() {
            let pairs = self.labels.iter().zip(values);
            let pairs: Vec<String> = pairs.map(|(name, value)| pair(name, value)).collect();
            sample.write(out, self.name, &pairs.join(","));
        }
    }

    /// The series. A panic elsewhere cannot leave them half changed.
    fn series(&self) -> MutexGuard<'_, BTreeMap<Vec<String>, T>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The series with these values; that of the rest where there is no room.
fn place<T: Default>(series: &mut BTreeMap<Vec<String>, T>, mut values: Vec<String>) -> &mut T {
    if series.len() >= SERIES_MAX && !series.contains_key(&values) {
        values = vec![OTHER.to_owned(); values.len()];
    }
    series.entry(values).or_default()
}

impl Family<Counter> {
    /// One more.
    pub(super) fn count(&self, values: &[&str]) {
        self.change(values, |it| it.0 += 1);
    }
}

impl Family<Gauge> {
    /// Forgets all series and takes these instead, at once for who reads.
    pub(super) fn replace(&self, entries: impl Iterator<Item = (Vec<String>, f64)>) {
        let mut series = self.series();
        series.clear();
        for (values, value) in entries {
            place(&mut series, values).0 += value;
        }
    }
}

impl Family<Histogram> {
    /// One more, which took so long.
    pub(super) fn observe(&self, values: &[&str], took: Duration) {
        self.change(values, |it| it.observe(took));
    }
}

impl Histogram {
    /// Takes one in.
    fn observe(&mut self, took: Duration) {
        let took_s = took.as_secs_f64();
        let bucket = BOUNDS_S.iter().zip(&mut self.buckets).find(|(bound, _)| took_s <= **bound);
        if let Some((_, bucket)) = bucket {
            *bucket += 1;
        }
        self.count += 1;
        self.sum_s += took_s;
    }
}

impl Sample for Counter {
    const KIND: &'static str = "counter";

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        write_line(out, name, labels, self.0);
    }
}

impl Sample for Gauge {
    const KIND: &'static str = "gauge";

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        write_line(out, name, labels, self.0);
    }
}

impl Sample for Histogram {
    const KIND: &'static str = "histogram";

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let (comma, mut below) = (if labels.is_empty() { "" } else { "," }, 0);
        let bucket = format!("{name}_bucket");
        for (bound, count) in BOUNDS_S.iter().zip(self.buckets) {
            below += count;
            write_line(out, &bucket, &format!("{labels}{comma}le=\"{bound}\""), below);
        }
        write_line(out, &bucket, &format!("{labels}{comma}le=\"+Inf\""), self.count);
        write_line(out, &format!("{name}_sum"), labels, self.sum_s);
        write_line(out, &format!("{name}_count"), labels, self.count);
    }
}

/// Writes a figure that has no labels and is not kept.
pub(super) fn write_gauge(out: &mut String, name: &str, help: &str, value: impl std::fmt::Display) {
    write_head(out, name, help, Gauge::KIND);
    write_line(out, name, "", value);
}

/// The two lines before the series of a name.
fn write_head(out: &mut String, name: &str, help: &str, kind: &str) {
    push(out, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
}

/// One line.
fn write_line(out: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    if labels.is_empty() {
        push(out, format_args!("{name} {value}\n"));
    } else {
        push(out, format_args!("{name}{{{labels}}} {value}\n"));
    }
}

/// Adds to a text, which cannot fail.
fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    if out.write_fmt(text).is_err() {
        log::error!("metrics not written");
    }
}

/// A label with its value, escaped.
fn pair(name: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{name}=\"{value}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped_and_series_sorted() {
        let family: Family<Counter> = Family::new("x_total", &["a", "b"], "Xs.");
        let mut text = String::new();
        family.write(&mut text);
        assert_eq!(text, "", "no series, no lines");
        family.count(&["q\"\\\n", "2"]);
        family.count(&["1", "2"]);
        family.count(&["1", "2"]);
        family.write(&mut text);
        assert_eq!(
            text,
            "# HELP x_total Xs.\n# TYPE x_total counter\nx_total{a=\"1\",b=\"2\"} 2\n\
             x_total{a=\"q\\\"\\\\\\n\",b=\"2\"} 1\n"
        );
    }

    #[test]
    fn buckets_hold_what_is_below_them_too() {
        let family: Family<Histogram> = Family::new("x_seconds", &[], "Xs.");
        for took_ms in [1, 5, 300, 90_000] {
            family.observe(&[], Duration::from_millis(took_ms));
        }
        let mut text = String::new();
        family.write(&mut text);
        for line in [
            "x_seconds_bucket{le=\"0.005\"} 2",
            "x_seconds_bucket{le=\"0.25\"} 2",
            "x_seconds_bucket{le=\"0.5\"} 3",
            "x_seconds_bucket{le=\"60\"} 3",
            "x_seconds_bucket{le=\"+Inf\"} 4",
            "x_seconds_sum 90.306",
            "x_seconds_count 4",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is not in:\n{text}");
        }
    }

    #[test]
    fn series_are_bounded() {
        let family: Family<Counter> = Family::new("x_total", &["a", "b"], "Xs.");
        for number in 0..SERIES_MAX + 7 {
            family.count(&[&number.to_string(), "2"]);
        }
        family.count(&["0", "2"]);
        let mut text = String::new();
        family.write(&mut text);
        assert_eq!(text.lines().count(), 2 + SERIES_MAX + 1);
        assert!(text.contains("x_total{a=\"other\",b=\"other\"} 7\n"), "{text}");
        assert!(text.contains("x_total{a=\"0\",b=\"2\"} 2\n"), "{text}");
    }
}
