//! Lists in small pages: engines give everything at once, AWS does not.
//!
//! An IAM list ends with a marker of ours, since the engines know none. Listings of S3 end between two keys, so that
//! their markers mean the same to the engine.
//!
//! Sources: IAM API Reference, "Marker" and "IsTruncated" of the lists; S3 API Reference, ListObjectVersions,
//! ListMultipartUploads, ListBuckets.

use super::account::between;
use super::call::Call;
use super::wire::Answer;

/// Entries of a list about one user or policy.
const OF_USER: usize = 1;
/// Entries of a list about the account.
const OF_ACCOUNT: usize = 100;
/// Keys, or uploads, of a listing of a bucket.
const OF_BUCKET: usize = 50;
/// What our markers begin with.
const MARKER: &str = "relay-page-";

/// Shortens the answer to a list.
pub(crate) fn shorten(call: &Call, answer: &mut Answer) {
    if answer.status != 200 {
        return;
    }
    let Ok(text) = std::str::from_utf8(&answer.body) else {
        return;
    };
    let shorter = match call.operation.as_str() {
        "ListUsers" | "ListPolicies" => shorten_members(call, text, OF_ACCOUNT),
        "ListAccessKeys" | "ListUserPolicies" | "ListAttachedUserPolicies" | "ListPolicyVersions" => {
            shorten_members(call, text, OF_USER)
        }
        "ListBuckets" if call.query("max-buckets").is_some() => shorten_buckets(call, text),
        _ if call.query("delimiter").is_some() => None, // common prefixes are not cut
        "ListObjectVersions" => shorten_listing(text, &["Version", "DeleteMarker"], "NextKeyMarker"),
        "ListMultipartUploads" => shorten_listing(text, &["Upload"], "NextKeyMarker"),
        _ => None,
    };
    if let Some(shorter) = shorter {
        answer.body = shorter.into_bytes();
    }
}

/// Where the page that is asked for begins.
fn offset(marker: Option<&str>) -> usize {
    marker.and_then(|it| it.strip_prefix(MARKER)?.parse().ok()).unwrap_or(0)
}

/// An IAM list: `<X><member>…</member></X><IsTruncated>false</IsTruncated>`.
fn shorten_members(call: &Call, text: &str, page: usize) -> Option<String> {
    let offset = offset(call.parameter("Marker"));
    let entries = elements(text, "member");
    if offset == 0 && entries.len() <= page {
        return None;
    }
    let kept = offset..(offset + page).min(entries.len());
    let is_last = kept.end >= entries.len();
    let marker = format!("{MARKER}{}", kept.end);
    let text = keep(text, &entries, |number| kept.contains(&number));
    let end = match is_last {
        true => "<IsTruncated>false</IsTruncated>".to_owned(),
        false => format!("<IsTruncated>true</IsTruncated><Marker>{marker}</Marker>"),
    };
    let result = format!("</{}Result>", call.operation);
    Some(without(&without(&text, "IsTruncated"), "Marker").replace(&result, &format!("{end}{result}")))
}

/// The list of buckets, for those who can read pages.
fn shorten_buckets(call: &Call, text: &str) -> Option<String> {
    let offset = offset(call.query("continuation-token"));
    let entries = elements(text, "Bucket");
    if offset == 0 && entries.len() <= OF_ACCOUNT {
        return None;
    }
    let kept = offset..(offset + OF_ACCOUNT).min(entries.len());
    let token = match kept.end >= entries.len() {
        true => String::new(),
        false => format!("<ContinuationToken>{MARKER}{}</ContinuationToken>", kept.end),
    };
    let text = without(&keep(text, &entries, |number| kept.contains(&number)), "ContinuationToken");
    let end = "</ListAllMyBucketsResult>";
    Some(text.replace(end, &format!("{token}{end}")))
}

/// A listing of a bucket: whole keys only, in the order of their bytes.
fn shorten_listing(text: &str, names: &[&str], marker: &str) -> Option<String> {
    let mut entries: Vec<(usize, usize)> = names.iter().flat_map(|it| elements(text, it)).collect();
    entries.sort_unstable();
    let key_of = |(from, to): (usize, usize)| between(&text[from..to], "<Key>", "</Key>").unwrap_or_default();
    let mut keys: Vec<&str> = entries.iter().map(|it| key_of(*it)).collect();
    keys.sort_by_cached_key(|key| percent_encoding::percent_decode_str(key).collect::<Vec<u8>>());
    keys.dedup();
    if keys.len() <= OF_BUCKET {
        return None;
    }
    let kept = &keys[..OF_BUCKET];
    let short = keep(text, &entries, |number| kept.contains(&key_of(entries[number])));
    let plain = ["IsTruncated", "NextKeyMarker", "NextVersionIdMarker", "NextUploadIdMarker"]
        .iter()
        .fold(short, |text, name| without(&text, name));
    let end = plain.rfind("</")?;
    let last = kept[OF_BUCKET - 1];
    let more = format!("<IsTruncated>true</IsTruncated><{marker}>{last}</{marker}>");
    Some(format!("{}{more}{}", &plain[..end], &plain[end..]))
}

/// Where the outermost elements of a name begin and end.
fn elements(text: &str, name: &str) -> Vec<(usize, usize)> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let (mut found, mut depth, mut begin, mut at) = (Vec::new(), 0, 0, 0);
    while let Some(next) = text[at..].find('<').map(|it| it + at) {
        if text[next..].starts_with(&open) {
            if depth == 0 {
                begin = next;
            }
            depth += 1;
        } else if text[next..].starts_with(&close) {
            depth -= 1;
            if depth == 0 {
                found.push((begin, next + close.len()));
            }
        }
        at = next + 1;
    }
    found
}

/// The text with those of the elements that are wanted.
fn keep(text: &str, elements: &[(usize, usize)], is_kept: impl Fn(usize) -> bool) -> String {
    let (mut kept, mut at) = (String::new(), 0);
    for (number, (from, to)) in elements.iter().enumerate() {
        kept.push_str(&text[at..*from]);
        if is_kept(number) {
            kept.push_str(&text[*from..*to]);
        }
        at = *to;
    }
    kept + &text[at..]
}

/// The text without the elements of a name.
fn without(text: &str, name: &str) -> String {
    let empty = format!("<{name}/>");
    keep(text, &elements(text, name), |_| false).replace(&empty, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shortened(operation: &str, parameters: &[(&str, &str)], body: &str) -> String {
        let pairs: Vec<(String, String)> =
            parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let call =
            Call { operation: operation.to_owned(), form: pairs.clone(), query: pairs, ..Call::default() };
        let mut answer = Answer::new(200, &[], body);
        shorten(&call, &mut answer);
        String::from_utf8(answer.body).unwrap()
    }

    #[test]
    fn members_come_one_by_one() {
        let body = "<ListAccessKeysResult><A><member><B><member>1</member></B></member><member>2</member></A>\
            <IsTruncated>false</IsTruncated></ListAccessKeysResult>";
        assert_eq!(
            shortened("ListAccessKeys", &[], body),
            "<ListAccessKeysResult><A><member><B><member>1</member></B></member></A>\
             <IsTruncated>true</IsTruncated><Marker>relay-page-1</Marker></ListAccessKeysResult>"
        );
        assert_eq!(
            shortened("ListAccessKeys", &[("Marker", "relay-page-1")], body),
            "<ListAccessKeysResult><A><member>2</member></A><IsTruncated>false</IsTruncated></ListAccessKeysResult>"
        );
    }

    #[test]
    fn listings_end_between_keys() {
        let entry = |number: usize| format!("<Version><Key>k{number:03}</Key></Version>");
        let entries: String = (0..60).map(entry).collect();
        let body = format!(
            "<ListVersionsResult><IsTruncated>false</IsTruncated>{entries}<DeleteMarker><Key>k000</Key></DeleteMarker>\
             <DeleteMarker><Key>k055</Key></DeleteMarker></ListVersionsResult>"
        );
        let kept: String = (0..50).map(entry).collect();
        assert_eq!(
            shortened("ListObjectVersions", &[], &body),
            format!(
                "<ListVersionsResult>{kept}<DeleteMarker><Key>k000</Key></DeleteMarker><IsTruncated>true</IsTruncated>\
                 <NextKeyMarker>k049</NextKeyMarker></ListVersionsResult>"
            )
        );
    }
}
