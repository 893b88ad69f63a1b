//! A bucket with more in it than an engine can hold, counted instead of stored.
//!
//! Source: S3 API Reference, ListObjectVersions, DeleteObjects.

use std::collections::BTreeSet;

use super::call::Call;
use super::refusal::Refusal;
use super::wire::Answer;

/// Versions of one key.
const PER_KEY: u32 = 10;
/// Entries of a page.
const PAGE: usize = 1_000;

/// Versions and delete markers that a bucket seems to have.
pub(crate) struct Stuffing(BTreeSet<u32>);

impl Stuffing {
    /// So many.
    pub(crate) fn new(versions: u32) -> Stuffing {
        Stuffing((0..versions).collect())
    }

    /// How many are left.
    pub(crate) fn left(&self) -> usize {
        self.0.len()
    }

    /// The answer to calls that see what lies in the bucket; `None` for others, and once it is empty.
    pub(crate) fn answer(&mut self, call: &Call, body: &[u8]) -> Option<Answer> {
        if self.0.is_empty() {
            return None;
        }
        match call.operation.as_str() {
            "ListObjectVersions" => Some(xml(self.list(call))),
            "DeleteObjects" => {
                for id in String::from_utf8_lossy(body).split("<VersionId>v").skip(1) {
                    if let Some(number) = id.split('<').next().and_then(|it| it.parse().ok()) {
                        self.0.remove(&number);
                    }
                }
                Some(xml("<DeleteResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"/>".to_owned()))
            }
            "DeleteBucket" => {
                let message = "The bucket you tried to delete is not empty";
                Some(Refusal::fair(409, "BucketNotEmpty", message).to_answer(call))
            }
            _ => None,
        }
    }

    /// A page of them.
    fn list(&self, call: &Call) -> String {
        let after = call.query("version-id-marker").and_then(|it| it.strip_prefix('v')?.parse::<u32>().ok());
        let from = after.map_or(0, |it| it + 1);
        let wanted = call.query("max-keys").and_then(|it| it.parse().ok()).unwrap_or(PAGE).min(PAGE);
        let entries: Vec<u32> = self.0.range(from..).take(wanted).copied().collect();
        let is_truncated = self.0.range(from..).nth(wanted).is_some();
        let mut text = format!(
            "<ListVersionsResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><EncodingType>url</EncodingType>\
             <IsTruncated>{is_truncated}</IsTruncated>"
        );
        for number in &entries {
            let kind = if number % PER_KEY == 0 { "DeleteMarker" } else { "Version" };
            text.push_str(&format!(
                "<{kind}><Key>stuffing%2F{:06}</Key><VersionId>v{number:08}</VersionId></{kind}>",
                number / PER_KEY
            ));
        }
        if let Some(last) = entries.last().filter(|_| is_truncated) {
            text.push_str(&format!(
                "<NextKeyMarker>stuffing%2F{:06}</NextKeyMarker><NextVersionIdMarker>v{last:08}</NextVersionIdMarker>",
                last / PER_KEY
            ));
        }
        text + "</ListVersionsResult>"
    }
}

/// An answer of S3.
fn xml(body: String) -> Answer {
    Answer::new(200, &[("Content-Type", "application/xml")], body)
}
