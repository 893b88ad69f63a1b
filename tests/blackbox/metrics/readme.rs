//! README's table of the metrics is what the pages show, and nothing in README is named that they do not show.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// What operators read.
const README: &str = include_str!("../../../README.md");

/// Type and labels of a metric.
type Shape = (String, BTreeSet<String>);

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The table: by name.
fn table() -> BTreeMap<String, Shape> {
    let (_, rest) = README.split_once("\n| metric | type | labels | what it says |\n").unwrap();
    let rows = rest.lines().skip(1).take_while(|it| it.starts_with('|'));
    let mut found = BTreeMap::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let labels: BTreeSet<String> = quoted(cells[3]).map(str::to_owned).collect();
        for name in quoted(cells[1]) {
            let before = found.insert(name.to_owned(), (cells[2].to_owned(), labels.clone()));
            assert_eq!(before, None, "{name} comes twice");
        }
    }
    found
}

/// Words of README that begin as the names of metrics do.
fn mentioned() -> BTreeSet<&'static str> {
    let words = README.split(|it: char| !(it.is_ascii_lowercase() || it == '_'));
    let prefixes = ["servicebroker_", "osb_", "process_"];
    words.filter(|word| prefixes.iter().any(|it| word.starts_with(it)) && !word.ends_with('_')).collect()
}

#[test]
fn the_readme_names_what_the_pages_show() {
    let relay = relay();
    let setup = with_port().through(&relay);
    let (api, worker) = (setup.api(&[]), setup.worker());
    // Something of each kind: a repeated call, a request that the door refuses.
    let busy = Fault::Replay("iam.throttling");
    relay.plan(Point::Named("CreateUser".to_owned(), 1), When::Before, busy);
    api.provide("one", BASIC);
    assert_eq!(api.with_header("Expect", "tea").get("/v2/catalog").status, 417);
    setup.database.connect().batch_execute("update census set taken_at = null").unwrap();
    let mut shown = BTreeMap::new();
    for process in [&api, &worker] {
        let page = wait_for_page("the tables were counted", &metrics_of(process), |page| {
            page.sum("servicebroker_instances", &[]) > 0.0 && page.sum("servicebroker_tasks", &[]) > 0.0
        });
        for (name, kind, labels) in page.families() {
            let (_, known) = shown.entry(name).or_insert((kind, BTreeSet::new()));
            known.extend(labels);
        }
    }
    let table = table();
    assert!(table.len() > 15, "{table:?}");
    assert_eq!(shown, table);
    for word in mentioned() {
        let suffixes = ["", "_bucket", "_sum", "_count"];
        let is_shown = suffixes.iter().any(|it| {
            word.strip_suffix(it)
                .and_then(|name| table.get(name))
                .is_some_and(|(kind, _)| it.is_empty() || kind == "histogram")
        });
        assert!(is_shown, "{word} is not on a page");
    }
}
