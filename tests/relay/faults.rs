//! What can go wrong with a call, when, and with which one.
//!
//! Each answer of AWS in `aws-faults.json` tells where its form was seen.

use std::str::FromStr;
use std::time::Duration;

use super::account::between;
use super::call::Call;
use super::wire::Answer;

/// Answers to replay, by name.
const FAULTS: &str = include_str!("aws-faults.json");

/// One call, or all of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Point {
    /// By its place among all calls, counted from 1.
    Number(usize),
    /// `CreateUser#2`: the second of that name.
    Named(String, usize),
    /// `CreateUser`: each of that name.
    Every(String),
}

/// Whether AWS carries out the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// It never hears of it.
    Before,
    /// It has.
    After,
}

/// What happens instead of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An answer of `aws-faults.json`.
    Replay(&'static str),
    /// An answer with this status and body.
    Status(u16, String),
    /// The answer comes later.
    Delay(Duration),
    /// The connection ends.
    Fin,
    /// The connection is reset.
    Reset,
    /// The connection ends in the middle of the answer's body.
    HalfBody,
    /// Nothing, for as long as the peer waits.
    Hang,
    /// The answer comes when [`super::Relay::release`] says so.
    Hold,
}

impl Point {
    /// Whether this call is meant: the n-th of all, the n-th of its name.
    pub(crate) fn is(&self, operation: &str, number: usize, occurrence: usize) -> bool {
        match self {
            Point::Number(wanted) => *wanted == number,
            Point::Named(name, wanted) => name == operation && *wanted == occurrence,
            Point::Every(name) => name == operation,
        }
    }
}

impl FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Point, String> {
        let count = |it: &str| it.parse().ok().filter(|it| *it > 0);
        if text.starts_with(|it: char| it.is_ascii_digit()) {
            return count(text).map(Point::Number).ok_or(format!("{text}: calls are counted from 1"));
        }
        let (name, occurrence) = text.split_once('#').unwrap_or((text, "1"));
        let occurrence = count(occurrence).ok_or(format!("{text}: calls are counted from 1"))?;
        let is_name = name.starts_with("s3:") || name.chars().all(|it| it.is_ascii_alphanumeric());
        match text.contains('#') {
            _ if name.is_empty() || !is_name => Err(format!("{text}: not the name of a call")),
            true => Ok(Point::Named(name.to_owned(), occurrence)),
            false => Ok(Point::Every(name.to_owned())),
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Fault, String> {
        let number =
            |it: &str| it.parse::<u64>().map_err(|_| format!("{text}: not a number after the colon"));
        Ok(match text.split_once(':').unwrap_or((text, "")) {
            ("fin", "") => Fault::Fin,
            ("reset", "") => Fault::Reset,
            ("half-body", "") => Fault::HalfBody,
            ("hang", "") => Fault::Hang,
            ("delay", ms) => Fault::Delay(Duration::from_millis(number(ms)?)),
            ("status", status) => {
                let status = status.parse().ok().filter(|it| (200..600).contains(it));
                let status = status.ok_or(format!("{text}: not a status from 200 to 599"))?;
                Fault::Status(status, String::new())
            }
            (name, "") => Fault::Replay(
                names().into_iter().find(|it| *it == name).ok_or(format!("{text}: no such fault"))?,
            ),
            _ => return Err(format!("{text}: no such fault")),
        })
    }
}

/// The names of the answers to replay.
pub(crate) fn names() -> Vec<&'static str> {
    let words = FAULTS.lines().filter_map(|line| line.trim().strip_prefix('"')?.split('"').next());
    words.filter(|it| !it.starts_with('_')).collect()
}

/// An answer of AWS, filled in for a call.
pub(crate) fn replay(name: &str, call: &Call, body: &[u8]) -> Answer {
    let all: serde_json::Value = serde_json::from_str(FAULTS).unwrap();
    let fault = &all[name];
    let body = String::from_utf8_lossy(body);
    let fill = |text: &str| {
        let of_body = |name: &str| between(&body, &format!("<{name}>"), &format!("</{name}>")).unwrap_or("?");
        [
            ("{RID}", "4442587FB7D0A2F9"),
            ("{HID}", "vlR7PnpV2Ce81l0PRw6jlUpck7Jo5ZsQjryTjKlc5aLWGVHPZLj5NeC6qMa0emYBDXOo6QBU0Wo="),
            ("{BUCKET}", call.bucket.as_deref().unwrap_or_default()),
            ("{USER}", call.user()),
            ("{AKID}", call.access_key.as_deref().unwrap_or_default()),
            ("{REGION}", "eu-central-1"),
            ("{ARN}", "arn:aws:iam::123456789012:user/nobody"),
            ("{PATH}", "/"),
            ("{KEY}", of_body("Key")),
            ("{VID}", of_body("VersionId")),
        ]
        .iter()
        .fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
    };
    let headers = fault["headers"].as_object().unwrap();
    let headers: Vec<(&str, String)> =
        headers.iter().map(|(key, value)| (key.as_str(), fill(value.as_str().unwrap()))).collect();
    let mut headers: Vec<(&str, &str)> = headers.iter().map(|(key, value)| (*key, value.as_str())).collect();
    headers.push(match call.is_s3() {
        true => ("x-amz-request-id", "4442587FB7D0A2F9"),
        false => ("x-amzn-RequestId", "4442587FB7D0A2F9"),
    });
    let status = u16::try_from(fault["status"].as_u64().unwrap()).unwrap();
    Answer::new(status, &headers, fill(fault["body"].as_str().unwrap()))
}
