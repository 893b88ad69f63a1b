//! AWS Signature Version 4 in the `Authorization` header, for IAM and STS.
//!
//! Not here: S3, whose calls are signed in the URL by `rusty_s3::signing::sign` (`s3`).
//!
//! Invariants
//! - Every header that is given is signed, and the body always by its hash.
//! - The signature covers the bytes that are sent: the caller sends path, query and headers as given.
//! - The secret leaves this file only as a signature.
//!
//! Sources: IAM User Guide, "Create a signed AWS API request"; test vectors of aws-c-auth's `aws-signing-test-suite`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ring::{digest, hmac};

use super::credentials::Credentials;

/// Everything that RFC 3986 does not leave unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// `text` percent-encoded as AWS wants it: space is `%20`, hexadecimal digits upper case.
pub(super) fn encode(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// `pairs` as a query string or form, in the given order.
pub(super) fn encode_pairs<'p>(pairs: impl IntoIterator<Item = (&'p str, &'p str)>) -> String {
    let pairs: Vec<String> =
        pairs.into_iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    pairs.join("&")
}

/// A request as far as the signature covers it.
pub(super) struct Unsigned<'r> {
    /// The method, upper case.
    pub(super) method: &'r str,
    /// The path, percent-encoded as it is sent.
    pub(super) path: &'r str,
    /// The query's names and values, not encoded, in any order.
    pub(super) query: &'r [(&'r str, &'r str)],
    /// The headers, names in lower case, with `host`; without those that [`authorize`] adds.
    pub(super) headers: BTreeMap<&'static str, String>,
    /// The body.
    pub(super) body: &'r [u8],
}

/// For whom a signature is good: a region, a service, a day.
pub(super) struct Scope<'s> {
    /// The region.
    pub(super) region: &'s str,
    /// The service, as in its host name.
    pub(super) service: &'s str,
}

/// Adds the headers `x-amz-date`, `x-amz-security-token` and `authorization`; returns all headers to send.
pub(super) fn authorize(
    mut request: Unsigned<'_>,
    scope: &Scope<'_>,
    credentials: &Credentials,
    now: Timestamp,
) -> BTreeMap<&'static str, String> {
    request.headers.insert("x-amz-date", amz_date(now));
    if let Some(token) = &credentials.session_token {
        request.headers.insert("x-amz-security-token", token.expose().to_owned());
    }
    let signed = request.headers.keys().copied().collect::<Vec<_>>().join(";");
    let scope_text = format!("{}/{}/{}/aws4_request", day(now), scope.region, scope.service);
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{}\n{scope_text}\n{}",
        amz_date(now),
        hexadecimal(sha256(canonical_request(&request, &signed).as_bytes()).as_ref()),
    );
    let key = signing_key(credentials, scope, now);
    let signature = hexadecimal(hmac_sha256(key.as_ref(), &to_sign).as_ref());
    let key_id = &credentials.access_key_id;
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={key_id}/{scope_text}, SignedHeaders={signed}, Signature={signature}"
    );
    request.headers.insert("authorization", authorization);
    request.headers
}

/// Step 2: the request in the one form that both sides agree on.
fn canonical_request(request: &Unsigned<'_>, signed: &str) -> String {
    let mut query: Vec<(String, String)> =
        request.query.iter().map(|(name, value)| (encode(name), encode(value))).collect();
    query.sort();
    let query: Vec<String> = query.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    let headers: String = request
        .headers
        .iter()
        .map(|(name, value)| format!("{name}:{}\n", value.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect();
    let hash = hexadecimal(sha256(request.body).as_ref());
    let (method, path, query) = (request.method, request.path, query.join("&"));
    format!("{method}\n{path}\n{query}\n{headers}\n{signed}\n{hash}")
}

/// Step 4: the key of the day, made from the secret.
fn signing_key(credentials: &Credentials, scope: &Scope<'_>, now: Timestamp) -> hmac::Tag {
    let secret = format!("AWS4{}", credentials.secret_access_key.expose());
    let of_day = hmac_sha256(secret.as_bytes(), &day(now));
    let of_region = hmac_sha256(of_day.as_ref(), scope.region);
    let of_service = hmac_sha256(of_region.as_ref(), scope.service);
    hmac_sha256(of_service.as_ref(), "aws4_request")
}

/// HMAC with SHA-256.
fn hmac_sha256(key: &[u8], text: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
}

/// SHA-256.
fn sha256(bytes: &[u8]) -> digest::Digest {
    digest::digest(&digest::SHA256, bytes)
}

/// `bytes` as lower-case hexadecimal digits.
fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The moment as AWS writes it, in UTC.
fn amz_date(now: Timestamp) -> String {
    now.strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// The day as AWS writes it, in UTC.
fn day(now: Timestamp) -> String {
    now.strftime("%Y%m%d").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    /// One row of the vector table; `header` are the signed headers beside host and date.
    struct Vector {
        name: &'static str,
        method: &'static str,
        path: &'static str,
        query: &'static [(&'static str, &'static str)],
        headers: &'static [(&'static str, &'static str)],
        token: Option<&'static str>,
        body: &'static str,
        canonical_hash: &'static str,
        signature: &'static str,
    }

    const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";
    const FORM_HASH: &str = "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e";

    const PLAIN: Vector = Vector {
        name: "V1",
        method: "GET",
        path: "/",
        query: &[],
        headers: &[],
        token: None,
        body: "",
        canonical_hash: "bb579772317eb040ac9ed261061d46c1f17a8133879d6129b6e1c25292927e63",
        signature: "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
    };

    #[rustfmt::skip]
    const SUITE: &[Vector] = &[
        PLAIN,
        Vector { name: "V2", query: &[("Param2", "value2"), ("Param1", "value1")],
            canonical_hash: "816cd5b414d056048ba4f7c5386d6e0533120fb1fcfa93762cf0fc39e2cf19e0",
            signature: "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500", ..PLAIN },
        Vector { name: "V3", token: Some("6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267"),
            canonical_hash: "067b36aa60031588cea4a4cde1f21215227a047690c72247f1d70b32fbbfad2b",
            signature: "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8", ..PLAIN },
        Vector { name: "V4", method: "POST",
            canonical_hash: "553f88c9e4d10fc9e109e2aeb65f030801b70c2f6468faca261d401ae622fc87",
            signature: "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b", ..PLAIN },
        Vector { name: "V5", method: "POST", body: "Param1=value1",
            headers: &[("content-length", "13"), ("content-type", "application/x-www-form-urlencoded"), ("x-amz-content-sha256", FORM_HASH)],
            canonical_hash: "b1edd1d03544c25390e32085d55b57acc9a3961bb59415ff86c45c3d89d16cfb",
            signature: "d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b", ..PLAIN },
        Vector { name: "V6", method: "POST", body: "Param1=value1",
            headers: &[("content-length", "13"), ("content-type", FORM), ("x-amz-content-sha256", FORM_HASH)],
            canonical_hash: "a89f1a5b53e37702ee6363ce1da3ce8f54386f3c8f352ae652153c2982a0bc4d",
            signature: "328d1b9eaadca9f5818ef05e8392801e091653bafec24fcab71e7344e7f51422", ..PLAIN },
        Vector { name: "V7", path: "/%E1%88%B4",
            canonical_hash: "2a0a97d02205e45ce2e994789806b19270cfbbb0921b278ccf58f5249ac42102",
            signature: "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85", ..PLAIN },
        Vector { name: "V8", headers: &[("my-header1", " value1"), ("my-header2", " \"a   b   c\"")],
            canonical_hash: "a726db9b0df21c14f559d0a978e563112acb1b9e05476f0a6a1c7d68f28605c7",
            signature: "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736", ..PLAIN },
    ];

    #[rustfmt::skip]
    const IAM: &[Vector] = &[
        Vector { name: "V9", query: &[("Action", "ListUsers"), ("Version", "2010-05-08")], headers: &[("content-type", FORM)],
            canonical_hash: "f536975d06c0309214f805bb90ccff089219ecd68b2577efef23edd43b7e1a59",
            signature: "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7", ..PLAIN },
        Vector { name: "V10", method: "POST", body: "Action=ListUsers&Version=2010-05-08", headers: &[("content-type", FORM)],
            canonical_hash: "b9ae437b48385ce1aea147c5febf7c0cc705d1f8c7ce1ef0db4cd33a3439eb8c",
            signature: "5d76d0de3e0ffe5a7a23cfce21b99d6f4e5060aad86bd9dc7c617f224e5b492a", ..PLAIN },
        Vector { name: "V11", method: "POST", token: Some("AQoDYXdzEXAMPLETOKEN/+="), headers: &[("content-type", FORM)],
            body: "Action=CreateUser&Version=2010-05-08&UserName=u%20x&Tags.member.1.Key=k%2F1&Tags.member.1.Value=",
            canonical_hash: "f20b67271c6dbec929b7e829f4be8580c2bf326db8ca2eb77ef1dff815cb37ae",
            signature: "32fb688c2fdba613703e6e609d71c746b044461545fee180942fc2c342f66117", ..PLAIN },
    ];

    fn credentials(token: Option<&str>) -> Credentials {
        Credentials {
            access_key_id: "AKIDEXAMPLE".into(),
            secret_access_key: Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
            session_token: token.map(Secret::new),
            expires: None,
        }
    }

    fn check(vector: &Vector, host: &str, service: &str) {
        let mut headers: BTreeMap<&str, String> =
            vector.headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        headers.insert("host", host.to_owned());
        let request = Unsigned {
            method: vector.method,
            path: vector.path,
            query: vector.query,
            headers,
            body: vector.body.as_bytes(),
        };
        let now: Timestamp = "2015-08-30T12:36:00Z".parse().unwrap();
        let scope = Scope { region: "us-east-1", service };
        let sent = authorize(request, &scope, &credentials(vector.token), now);
        let authorization = &sent["authorization"];
        assert!(
            authorization.ends_with(&format!("Signature={}", vector.signature)),
            "{}: {authorization}",
            vector.name
        );

        let headers: BTreeMap<&str, String> =
            sent.iter().filter(|(name, _)| **name != "authorization").map(|(n, v)| (*n, v.clone())).collect();
        let signed = headers.keys().copied().collect::<Vec<_>>().join(";");
        let again = Unsigned {
            method: vector.method,
            path: vector.path,
            query: vector.query,
            headers,
            body: vector.body.as_bytes(),
        };
        let hash = hexadecimal(sha256(canonical_request(&again, &signed).as_bytes()).as_ref());
        assert_eq!(hash, vector.canonical_hash, "{}", vector.name);
    }

    #[test]
    fn signatures_equal_those_of_the_published_suite() {
        SUITE.iter().for_each(|vector| check(vector, "example.amazonaws.com", "service"));
        IAM.iter().for_each(|vector| check(vector, "iam.amazonaws.com", "iam"));
    }

    #[test]
    fn the_signing_key_of_a_day_is_the_documented_one() {
        let now: Timestamp = "2015-08-30T12:36:00Z".parse().unwrap();
        let key = signing_key(&credentials(None), &Scope { region: "us-east-1", service: "iam" }, now);
        let expected = "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9";
        assert_eq!(hexadecimal(key.as_ref()), expected);
    }

    #[test]
    fn pairs_are_encoded_once_and_keep_their_order() {
        let pairs = [("UserName", "u x"), ("Tags.member.1.Key", "k/1"), ("Tags.member.1.Value", "ü~&=+")];
        assert_eq!(
            encode_pairs(pairs),
            "UserName=u%20x&Tags.member.1.Key=k%2F1&Tags.member.1.Value=%C3%BC~%26%3D%2B"
        );
    }
}
