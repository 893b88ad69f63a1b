//! What the old broker answered, and that this one answers the same: status, media type, members and values. Wherever
//! it does not, a row of README's "Differences" says so.

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;
use crate::stock::{keep, wait_for_stock};

/// Drawn anew each time, or a matter of the place: no two brokers answer the same.
const OWN: &str = "";
// Rows of README's "Differences", or their beginnings.
const ARN: &str = "| `ARN` in a rotation's answer | the managed policy's | the user's |";
const ASYNC: &str = "| `async` in answers | `false` in each | not sent |";
const CODES: &str = "| error codes | not sent | sent |";
const ENDPOINT: &str = "| `S3_ENDPOINT` | never sent | where the endpoint is a custom one |";
const GONE: &str = "| deleting what is not there | 404, and 200 for a binding | 410 |";
const LOCATION: &str = "| `S3_LOCATION` | what AWS answered:";
const NO_SPACE: &str = "| `organization_guid` or `space_guid` missing | accepted | 400 |";
const PLANS: &str = "| plans in the catalog | `created_at` and `updated_at` of the year 1, empty schemas |";
const REPEATED: &str = "| repeated `PUT` | 422 | 200 or 202 if the same, 409 if not |";
const SAME_PLAN: &str = "| change to the plan that it has | 422 | 200, nothing is changed |";
const SCHEMA: &str = "| schema of the action | not JSON | OpenAPI 3 |";
const TEXTS: &str = "| texts of errors, and of `last_operation` in progress | its own | others;";
const UNKNOWN: &str = "| unknown plan or service | 404 | 400 |";

/// What the old broker was asked, and what it answered.
struct Recording {
    name: &'static str,
    text: &'static str,
    /// Where this broker means to answer otherwise: its status, and why.
    status: Option<(u16, &'static str)>,
    /// The parts of the body that differ, and why.
    parts: &'static [(&'static str, &'static str)],
}

/// A recording, in the words of this table.
macro_rules! recorded {
    ($name:literal, $status:expr, $parts:expr) => {
        Recording {
            name: $name,
            text: include_str!(concat!("../../go-broker/answers/", $name, ".txt")),
            status: $status,
            parts: &$parts,
        }
    };
}

/// Credentials of a binding. The emulator is an endpoint of our own, which the old broker did not know of.
#[rustfmt::skip]
macro_rules! credentials {
    ($($more:expr)?) => {
        [("/credentials/S3_ACCESS_KEY", OWN), ("/credentials/S3_BUCKET", OWN), ("/credentials/S3_ENDPOINT: new", ENDPOINT),
         ("/credentials/S3_LOCATION", LOCATION), ("/credentials/S3_SECRET_KEY", OWN), $($more)?]
    };
}

/// All of them, in the order of the old broker's day.
#[rustfmt::skip]
const RECORDINGS: [Recording; 17] = [
    recorded!("healthz", None, []),
    recorded!("catalog_http", None, [
        ("/services/*/plans/*/metadata/created_at", PLANS), ("/services/*/plans/*/metadata/updated_at", PLANS),
        ("/services/*/plans/*/metadata/price/contract: new", PLANS), ("/services/*/plans/*/schemas/service_binding: new", PLANS),
        ("/services/*/plans/*/schemas/service_instance/create/parameters: new", PLANS),
        ("/services/*/plans/*/schemas/service_instance/update: new", PLANS)]),
    recorded!("provision_basic", None, [("/async: gone", ASYNC)]),
    recorded!("last_operation", None, []),
    recorded!("bind", None, credentials![("/async: gone", ASYNC)]),
    recorded!("bind_no_resource", None, credentials![("/async: gone", ASYNC)]),
    recorded!("get_binding", None, credentials![]),
    recorded!("rotate", None, [("/ARN", ARN), ("/AccessKeyId", OWN), ("/SecretAccessKey", OWN), ("/UserName", OWN)]),
    recorded!("schema", None, [(": of another type", SCHEMA)]),
    recorded!("unbind_unknown", Some((410, GONE)), [("/async: gone", ASYNC)]),
    recorded!("err_provision_malformed", None, [("/description", TEXTS)]),
    recorded!("err_provision_no_accepts_incomplete", None, [("/description", TEXTS), ("/error: new", CODES)]),
    recorded!("err_provision_unknown_plan", Some((400, UNKNOWN)), [("/description", TEXTS)]),
    recorded!("err_provision_same_id_same_params", Some((200, REPEATED)),
        [("/description: gone", REPEATED), ("/extension_apis: new", REPEATED)]),
    recorded!("err_patch_same_plan", Some((200, SAME_PLAN)), [("/description: gone", SAME_PLAN)]),
    recorded!("err_delete_unknown", Some((410, GONE)), [("/description: gone", GONE)]),
    recorded!("provision_from_preprovisioned_pool", Some((400, NO_SPACE)),
        [("/async: gone", ASYNC), ("/description: new", NO_SPACE), ("/extension_apis: gone", NO_SPACE)]),
];

/// The request of the last recording, with the space that it lacks.
const CLAIM: Recording = recorded!("provision_from_preprovisioned_pool", None, [("/async: gone", ASYNC)]);

/// A change of plan that the old worker never did.
const PENDING_CHANGE: Recording =
    recorded!("last_operation_while_plan_change_pending", None, [("/description", TEXTS)]);

impl Recording {
    /// Method, path and body of the request, out of the command line of curl.
    fn request(&self) -> (String, String, String) {
        let line = self.text.lines().next().unwrap();
        let plain = line.replace('\\', "");
        let method = plain.split_once("-X ").map_or("GET", |(_, rest)| rest.split(' ').next().unwrap());
        let (_, url) = plain.split_once("http://").unwrap();
        let path = format!("/{}", url.split_once('/').unwrap().1.trim());
        let body = plain.split_once(" -d ").map_or("", |(_, rest)| rest.rsplit_once(" http://").unwrap().0);
        (method.to_owned(), path, body.to_owned())
    }

    /// Status, media type and body of the answer.
    fn answer(&self) -> (u16, String, Value) {
        let text = self.text.replace('\r', ""); // not all of them kept it
        let (head, body) = text.split_once("\n\n").unwrap();
        let status = head.lines().nth(1).unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let media_type = head.lines().find_map(|it| it.strip_prefix("Content-Type: ")).unwrap();
        (status, media_type.to_owned(), read(body.rsplit_once("\n[curl").unwrap().0))
    }

    /// This broker answers the same, but for what the table says.
    fn check(&self, answer: &Answer) {
        let (recorded, media_type, body) = self.answer();
        let status = self.status.map_or(recorded, |it| it.0);
        assert_eq!(answer.status, status, "{}: {}", self.name, answer.text);
        assert_eq!(answer.header("content-type"), Some(&*media_type), "{}", self.name);
        let mut found = BTreeSet::new();
        part(&body, &read(&answer.text), "", &mut found);
        let meant: BTreeSet<String> = self.parts.iter().map(|(at, _)| (*at).to_owned()).collect();
        assert_eq!(found, meant, "{}: {}", self.name, answer.text);
        let differences = differences();
        for row in self.parts.iter().map(|it| it.1).chain(self.status.map(|it| it.1)) {
            let is_told = differences.lines().any(|it| it.starts_with(row));
            assert!(is_told, "{}: README lacks {row}", self.name);
        }
    }
}

/// A body as a value; one that is no JSON as a text.
fn read(body: &str) -> Value {
    serde_json::from_str(body).unwrap_or_else(|_| body.trim_end().into())
}

/// README's list.
fn differences() -> &'static str {
    let readme = include_str!("../../../README.md");
    let (_, rest) = readme.split_once("## Differences from the old broker").unwrap();
    rest.split_once("\n## ").unwrap().0
}

/// Where the second body parts from the first: members that came or went, values that differ. The items of an array
/// share a path.
fn part(one: &Value, other: &Value, at: &str, found: &mut BTreeSet<String>) {
    match (one, other) {
        (Value::Object(of_one), Value::Object(of_other)) => {
            for name in of_one.keys().chain(of_other.keys()) {
                let at = format!("{at}/{name}");
                match (of_one.get(name), of_other.get(name)) {
                    (Some(one), Some(other)) => part(one, other, &at, found),
                    (Some(_), None) => found.extend([format!("{at}: gone")]),
                    _ => found.extend([format!("{at}: new")]),
                }
            }
        }
        (Value::Array(of_one), Value::Array(of_other)) if of_one.len() == of_other.len() => {
            for (one, other) in of_one.iter().zip(of_other) {
                part(one, other, &format!("{at}/*"), found);
            }
        }
        _ if one == other => {}
        _ if std::mem::discriminant(one) == std::mem::discriminant(other) => found.extend([at.to_owned()]),
        _ => found.extend([format!("{at}: of another type")]),
    }
}

#[test]
fn the_old_brokers_answers_are_given_but_for_what_the_readme_says() {
    let setup = Setup::on(Database::of_the_old_broker());
    // Its plans are those of the recordings; its instances are in another AWS.
    setup.database.connect().batch_execute("delete from tasks; delete from resources").unwrap();
    let (api, mut worker) = (setup.api(&[]), setup.worker());
    for recording in &RECORDINGS {
        let (method, path, body) = recording.request();
        recording.check(&api.send(&method, &path, body.as_bytes()));
    }
    keep(&setup, BASIC, 1);
    wait_for_stock(&setup, 1);
    assert_eq!(worker.terminate(), Some(0)); // from now on only the stock can answer 201
    let (method, path, body) = CLAIM.request();
    let mut body: Value = serde_json::from_str(&body).unwrap();
    body["space_guid"] = "space-77".into();
    CLAIM.check(&api.send(&method, &path, body.to_string().as_bytes()));
}

#[test]
fn a_pending_change_of_plan_is_in_progress_as_it_was() {
    let setup = Setup::on(Database::of_the_old_broker());
    let (method, path, body) = PENDING_CHANGE.request();
    PENDING_CHANGE.check(&setup.api(&[]).send(&method, &path, body.as_bytes()));
}
