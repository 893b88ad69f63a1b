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

/// What tells an entry from the others of its list.
fn name_of(entry: &str) -> &str {
    let names = ["Name", "AccessKeyId", "VersionId", "PolicyName", "UserName", "member"];
    let inside = |name: &&str| between(entry, &format!("<{name}>"), &format!("</{name}>"));
    names.iter().find_map(inside).unwrap_or_default()
}

/// The names of the entries on the page that is asked for, and the marker of the next if there is one. A page ends
/// between two names: what comes or goes elsewhere in the list moves nothing over its end.
fn page<'t>(
    text: &'t str,
    entries: &[(usize, usize)],
    marker: Option<&str>,
    count: usize,
) -> (Vec<&'t str>, Option<String>) {
    let after = marker.and_then(|it| it.strip_prefix(MARKER)).unwrap_or_default();
    let names = entries.iter().map(|(from, to)| name_of(&text[*from..*to]));
    let mut names: Vec<&str> = names.filter(|it| *it > after).collect();
    names.sort_unstable();
    let is_last = names.len() <= count;
    names.truncate(count);
    let next = names.last().filter(|_| !is_last).map(|it| format!("{MARKER}{it}"));
    (names, next)
}

/// The text with the entries of these names.
fn keep_named(text: &str, entries: &[(usize, usize)], names: &[&str]) -> String {
    let name = |number: usize| name_of(&text[entries[number].0..entries[number].1]);
    keep(text, entries, |number| names.contains(&name(number)))
}

/// An IAM list: `<X><member>…</member></X><IsTruncated>false</IsTruncated>`.
fn shorten_members(call: &Call, text: &str, count: usize) -> Option<String> {
    let (entries, marker) = (elements(text, "member"), call.parameter("Marker"));
    let (names, next) = page(text, &entries, marker, count);
    let end = match next {
        None if marker.is_none() => return None,
        None => "<IsTruncated>false</IsTruncated>".to_owned(),
        Some(next) => format!("<IsTruncated>true</IsTruncated><Marker>{next}</Marker>"),
    };
    let text = keep_named(text, &entries, &names);
    let result = format!("</{}Result>", call.operation);
    Some(without(&without(&text, "IsTruncated"), "Marker").replace(&result, &format!("{end}{result}")))
}

/// The list of buckets, for those who can read pages.
fn shorten_buckets(call: &Call, text: &str) -> Option<String> {
    let (entries, marker) = (elements(text, "Bucket"), call.query("continuation-token"));
    let (names, next) = page(text, &entries, marker, OF_ACCOUNT);
    let token = match next {
        None if marker.is_none() => return None,
        None => String::new(),
        Some(next) => format!("<ContinuationToken>{next}</ContinuationToken>"),
    };
    let text = without(&keep_named(text, &entries, &names), "ContinuationToken");
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
        let key = |id: &str| {
            format!(
                "<member><B><member>x</member></B><UserName>u</UserName><AccessKeyId>{id}</AccessKeyId></member>"
            )
        };
        let list = |keys: &[&str], end: &str| {
            let keys: String = keys.iter().map(|it| key(it)).collect();
            format!("<ListAccessKeysResult><A>{keys}</A>{end}</ListAccessKeysResult>")
        };
        let last = "<IsTruncated>false</IsTruncated>";
        let more = "<IsTruncated>true</IsTruncated><Marker>relay-page-k1</Marker>";
        assert_eq!(shortened("ListAccessKeys", &[], &list(&["k2", "k1"], last)), list(&["k1"], more));
        let asked = [("Marker", "relay-page-k1")];
        assert_eq!(shortened("ListAccessKeys", &asked, &list(&["k2", "k1"], last)), list(&["k2"], last));
        assert_eq!(
            shortened("ListAccessKeys", &asked, &list(&["k2"], last)),
            list(&["k2"], last),
            "one went"
        );
    }

    #[test]
    fn what_comes_and_goes_moves_nothing_over_the_end_of_a_page() {
        let list = |numbers: std::ops::Range<usize>| {
            let buckets = numbers.map(|it| format!("<Bucket><Name>b{it:03}</Name></Bucket>"));
            format!("<ListAllMyBucketsResult>{}</ListAllMyBucketsResult>", buckets.collect::<String>())
        };
        let first = shortened("ListBuckets", &[("max-buckets", "1000")], &list(0..150));
        let token = between(&first, "<ContinuationToken>", "</ContinuationToken>").unwrap();
        let asked = [("max-buckets", "1000"), ("continuation-token", token)];
        assert_eq!(shortened("ListBuckets", &asked, &list(50..150)), list(100..150));
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
