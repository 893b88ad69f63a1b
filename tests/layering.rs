//! Who may import whom. The table is README's "Architecture"; this test keeps it true.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A room, the rooms that it may import, the crates that only some rooms may name.
const ROOMS: &[(&str, &[&str], &[&str])] = &[
    (
        "main",
        &[
            "aws", "broker", "census", "config", "doctor", "event", "http", "metrics", "osb", "outgoing",
            "random", "steps", "store", "tls", "worker",
        ],
        &["signal_hook", "simple_logger"],
    ),
    ("config", &[], &["pico_args"]),
    ("doctor", &["aws", "config", "steps", "store"], &[]),
    ("census", &["event", "metrics", "store"], &[]),
    ("event", &[], &[]),
    ("metrics", &[], &[]),
    ("random", &[], &["ring"]),
    ("osb", &[], &["serde", "serde_json"]),
    (
        "http",
        &["broker", "config", "event", "metrics", "osb", "outgoing", "random", "store"],
        &["tiny_http", "httparse", "serde", "serde_json", "base64", "ring", "percent_encoding"],
    ),
    ("broker", &["osb", "random", "store"], &["serde", "serde_json"]),
    ("worker", &["aws", "config", "event", "metrics", "outgoing", "random", "steps", "store"], &[]),
    ("steps", &["aws", "random", "store"], &["serde", "serde_json"]),
    (
        "store",
        &["config", "osb", "tls"],
        &["postgres", "tokio", "tokio_rustls", "rustls", "percent_encoding", "serde", "serde_json"],
    ),
    (
        "aws",
        &["config", "tls"],
        &[
            "ureq",
            "rusty_s3",
            "serde_json",
            "ring",
            "quick_xml",
            "base64",
            "md5",
            "percent_encoding",
            "jiff",
            "url",
        ],
    ),
    ("outgoing", &["config", "tls"], &["ureq", "ring", "base64", "url"]),
    ("tls", &[], &["rustls"]),
];

/// What a crate's name must be preceded by to be the name of a crate.
const CRATES: &[&str] = &[
    "tiny_http",
    "postgres",
    "ureq",
    "rusty_s3",
    "serde",
    "serde_json",
    "pico_args",
    "simple_logger",
    "rustls",
    "tokio_rustls",
    "tokio",
    "ring",
    "httparse",
    "quick_xml",
    "base64",
    "md5",
    "percent_encoding",
    "jiff",
    "url",
    "signal_hook",
];

/// All source files below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|it| it.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

/// Code without comments, and without the unit tests at its end.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned();
    text.lines().filter(|it| !it.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The room of a source file: the first part of its path, or its name.
fn room_of(path: &Path) -> String {
    let inside = path.strip_prefix(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap();
    inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

/// Words that directly follow `before` in `code`.
fn words_after(code: &str, before: &str) -> BTreeSet<String> {
    let word =
        |rest: &str| rest.chars().take_while(|it| it.is_alphanumeric() || *it == '_').collect::<String>();
    code.match_indices(before).map(|(at, found)| word(&code[at + found.len()..])).collect()
}

/// Whether `code` names a crate: `name::` that no path leads to.
fn names_crate(code: &str, name: &str) -> bool {
    code.match_indices(&format!("{name}::")).any(|(at, _)| {
        let before = code[..at].chars().next_back().unwrap_or(' ');
        !(before.is_alphanumeric() || before == '_' || before == ':')
    })
}

#[test]
fn every_room_imports_only_what_it_may() {
    let files = sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")));
    assert!(files.len() > 20, "{files:?}");
    for file in files {
        let (room, code) = (room_of(&file), code(&file));
        let Some((_, rooms, crates)) = ROOMS.iter().find(|(name, ..)| *name == room) else {
            panic!("{room} is not in the table");
        };
        for import in words_after(&code, "crate::").iter().filter(|it| **it != room) {
            assert!(rooms.contains(&import.as_str()), "{} must not import crate::{import}", file.display());
        }
        for name in CRATES.iter().filter(|name| names_crate(&code, name)) {
            assert!(crates.contains(name), "{} must not use the crate {name}", file.display());
        }
    }
}

#[test]
fn files_stay_readable() {
    for file in sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))) {
        let lines = std::fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines <= 500, "{} has {lines} lines", file.display());
    }
}

#[test]
fn only_main_reads_the_environment() {
    for file in sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))) {
        let reads = code(&file).contains("env::var") || code(&file).contains("env::args");
        assert!(!reads || room_of(&file) == "main", "{}", file.display());
    }
}
