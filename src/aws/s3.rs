//! S3: addresses, signatures in the URL, and buckets as a whole.
//!
//! Not here: a bucket's settings (`s3_configuration`), what lies in it (`s3_objects`).
//!
//! Invariants
//! - A URL names the host and path that were meant; what the URL rules would rewrite is refused.
//! - No bucket has an empty name: a call about it would act on the service.
//! - Query and headers are sorted, as `rusty_s3::signing::sign` requires without checking.
//!
//! Sources: S3 API Reference, "Authenticating Requests: Using Query Parameters"; S3 User Guide, "Virtual hosting of buckets".

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::SystemTime;

use jiff::Timestamp;
use rusty_s3::Method;
use url::Url;

use super::call::{Call, Signed, Signing};
use super::endpoints::Endpoint;
use super::error::none_if;

use super::sigv4;
use super::xml;
use super::{Aws, AwsError, Caller, Credentials};

/// The namespace of all bodies.
pub(super) const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";
/// How long a signed URL is good: long enough for one attempt and a little wrong clock.
const EXPIRES_S: u64 = 300;
/// How many pages of buckets are read.
const PAGES_MAX: usize = 100;
/// How many buckets a page may have.
const BUCKETS_PER_PAGE: &str = "1000";

/// What became of a wish for a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BucketCreation {
    /// It exists and is in our account, new or not.
    Ours,
    /// Somebody else has the name.
    TakenByAnother,
}

/// A bucket of our account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bucket {
    /// Its name.
    pub(crate) name: String,
    /// When it was made, where the store says so.
    pub(crate) created: Option<SystemTime>,
}

impl Aws {
    /// Where tenants find a bucket: host, and path where the endpoint has buckets there. No scheme.
    pub(crate) fn bucket_location(&self, bucket: &str, region: &str) -> String {
        let base = match self.endpoints.s3.custom {
            true => bucket_base(&self.endpoints.s3, bucket),
            false => bucket_base(&Endpoint::of_s3(self.endpoints.partition, region), bucket),
        };
        base.split_once("://").map_or(base.clone(), |(_scheme, rest)| rest.to_owned())
    }
}

/// The URL of a bucket: its name in the host on AWS, in the path elsewhere and for names that a
/// certificate for `*.s3…` would not cover.
fn bucket_base(endpoint: &Endpoint, bucket: &str) -> String {
    let is_label = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '-';
    if endpoint.custom || !bucket.chars().all(is_label) {
        format!("{}/{}", endpoint.base, sigv4::encode(bucket))
    } else {
        format!("https://{bucket}.{}", endpoint.location())
    }
}

/// The URL of a bucket, or of a key in it. `None` when it cannot be written as one: no name, or `.` and
/// `..` between slashes, which every URL library takes out.
fn write_url(endpoint: &Endpoint, bucket: &str, key: Option<&str>) -> Option<Url> {
    if bucket.is_empty() || key.is_some_and(str::is_empty) {
        return None;
    }
    let base = bucket_base(endpoint, bucket);
    let text = match key {
        Some(key) => format!("{base}/{}", key.split('/').map(sigv4::encode).collect::<Vec<_>>().join("/")),
        None if endpoint.custom => base,
        None => format!("{base}/"),
    };
    Url::parse(&text).ok().filter(|url| url.as_str() == text)
}

/// Signs a call in its URL.
pub(super) fn sign(call: &Call<'_>, credentials: &Credentials, now: Timestamp) -> Signed {
    let url = rusty_s3::signing::sign(
        &now,
        call.method,
        call.url.clone(),
        &credentials.access_key_id,
        credentials.secret_access_key.expose(),
        credentials.session_token.as_ref().map(|token| token.expose()),
        &call.region,
        EXPIRES_S,
        call.query.iter().map(|(name, value)| (*name, value.as_str())),
        call.headers.iter().map(|(name, value)| (*name, value.as_str())),
    );
    Signed { url: url.into(), headers: call.headers.clone() }
}

impl<'a> Caller<'a> {
    /// A call about a bucket, without query, headers and body.
    pub(super) fn about_bucket(
        &self,
        operation: &'static str,
        method: Method,
        bucket: &str,
    ) -> Result<Call<'a>, AwsError> {
        let url = write_url(&self.aws.endpoints.s3, bucket, None)
            .ok_or(AwsError::Malformed { operation, what: "the bucket's name fits in no URL" })?;
        Ok(Call { bucket: Some(bucket.to_owned()), ..self.about(operation, method, url) })
    }

    /// A call about a key; `None` when the key fits in no URL.
    pub(super) fn about_key(
        &self,
        operation: &'static str,
        method: Method,
        bucket: &str,
        key: &str,
    ) -> Option<Call<'a>> {
        let url = write_url(&self.aws.endpoints.s3, bucket, Some(key))?;
        Some(Call { bucket: Some(bucket.to_owned()), ..self.about(operation, method, url) })
    }

    /// A call to S3.
    fn about(&self, operation: &'static str, method: Method, url: Url) -> Call<'a> {
        Call {
            operation,
            method,
            url,
            query: BTreeMap::new(),
            headers: BTreeMap::new(),
            body: None,
            region: Cow::Borrowed(&self.aws.endpoints.s3.region),
            bucket: None,
            signing: Signing::Url,
            repeatable: true,
        }
    }

    /// Makes a bucket in the configured region.
    pub(crate) fn create_bucket(&self, bucket: &str) -> Result<BucketCreation, AwsError> {
        let call = self.about_bucket("CreateBucket", Method::Put, bucket)?;
        let body = match self.aws.region() {
            "us-east-1" => String::new(), // where naming the region is an error
            region => format!(
                "<CreateBucketConfiguration xmlns=\"{NAMESPACE}\"><LocationConstraint>{region}\
                 </LocationConstraint></CreateBucketConfiguration>"
            ),
        };
        let call = Call { body: Some(body), bucket: None, ..call }; // whatever an answer says, it is made here
        let created = none_if(self.send(&call), &["BucketAlreadyOwnedByYou"]);
        Ok(match none_if(created, &["BucketAlreadyExists"])? {
            Some(_made_or_ours_before) => BucketCreation::Ours,
            None => BucketCreation::TakenByAnother,
        })
    }

    /// Deletes an empty bucket.
    pub(crate) fn delete_bucket(&self, bucket: &str) -> Result<(), AwsError> {
        let call = self.about_bucket("DeleteBucket", Method::Delete, bucket)?;
        none_if(self.send(&self.guard(call)), &["NoSuchBucket"]).map(drop)
    }

    /// The region of a bucket, also under its two old names.
    pub(crate) fn get_bucket_location(&self, bucket: &str) -> Result<String, AwsError> {
        let call = self.about_bucket("GetBucketLocation", Method::Get, bucket)?;
        let root = self.send(&call.with_query("location", ""))?.root()?;
        // Some stores wrap the element in another of the same name.
        let text = root.find_text(&["LocationConstraint"]).unwrap_or(&root.text);
        Ok(match text.trim() {
            "" => "us-east-1",
            "EU" => "eu-west-1",
            region => region,
        }
        .to_owned())
    }

    /// Whether a bucket is among those of our account.
    pub(crate) fn owns_bucket(&self, bucket: &str) -> Result<bool, AwsError> {
        Ok(self.list_buckets(bucket)?.iter().any(|it| it.name == bucket))
    }

    /// The buckets of our account whose names begin with `prefix`.
    ///
    /// Stores that know neither `prefix` nor pages answer with all buckets at once, which is as good.
    pub(crate) fn list_buckets(&self, prefix: &str) -> Result<Vec<Bucket>, AwsError> {
        let operation = "ListBuckets";
        let url = Url::parse(&format!("{}/", self.aws.endpoints.s3.base))
            .map_err(|_| AwsError::Malformed { operation, what: "the endpoint is not a URL" })?;
        let (mut buckets, mut next) = (Vec::new(), None);
        for _ in 0..PAGES_MAX {
            let mut call = self
                .about(operation, Method::Get, url.clone())
                .with_query("max-buckets", BUCKETS_PER_PAGE)
                .with_query("prefix", prefix);
            if let Some(token) = next {
                call = call.with_query("continuation-token", token);
            }
            let root = self.send(&call)?.root()?;
            if root.name != "ListAllMyBucketsResult" {
                return Err(AwsError::Malformed { operation, what: "not a list of buckets" });
            }
            for bucket in root.find(&["Buckets"]).into_iter().flat_map(|list| list.children("Bucket")) {
                let name = bucket.find_text(&["Name"]).unwrap_or_default().to_owned();
                let created = xml::read_time(bucket.find_text(&["CreationDate"]));
                buckets.extend(name.starts_with(prefix).then_some(Bucket { name, created }));
            }
            match root.find_text(&["ContinuationToken"]).filter(|token| !token.is_empty()) {
                Some(token) => next = Some(token.to_owned()),
                None => return Ok(buckets),
            }
        }
        Err(AwsError::Malformed { operation, what: "the list does not end" })
    }

    /// Adds the account that the bucket must belong to, if the caller knows it.
    pub(super) fn guard(&self, call: Call<'a>) -> Call<'a> {
        match self.owner {
            Some(account) => call.with_header("x-amz-expected-bucket-owner", account),
            None => call,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::stub::{Reply, Stub, call};
    use super::*;
    use crate::config::Secret;

    fn endpoint(base: &str, custom: bool) -> Endpoint {
        Endpoint { base: base.into(), region: "us-east-1".into(), custom }
    }

    #[test]
    fn urls_name_what_was_meant() {
        let aws = endpoint("https://s3.eu-central-1.amazonaws.com", false);
        let own = endpoint("http://127.0.0.1:9000", true);
        let prefixed = endpoint("https://store.test/s3", true);
        #[rustfmt::skip]
        let cases: [(&Endpoint, &str, Option<&str>, Option<&str>); 19] = [
            (&aws, "b-1", None, Some("https://b-1.s3.eu-central-1.amazonaws.com/")),
            (&aws, "b.1", None, Some("https://s3.eu-central-1.amazonaws.com/b.1/")),
            (&aws, "b.1", Some("k"), Some("https://s3.eu-central-1.amazonaws.com/b.1/k")),
            (&aws, "evil.test/x", None, Some("https://s3.eu-central-1.amazonaws.com/evil.test%2Fx/")),
            (&aws, "b@evil.test", None, Some("https://s3.eu-central-1.amazonaws.com/b%40evil.test/")),
            (&aws, "", None, None),
            (&own, "b-1", None, Some("http://127.0.0.1:9000/b-1")),
            (&own, "b-1", Some("a/b"), Some("http://127.0.0.1:9000/b-1/a/b")),
            (&own, "..", None, None),
            (&prefixed, "b-1", Some("k"), Some("https://store.test/s3/b-1/k")),
            (&own, "b", Some("//evil.test/x"), Some("http://127.0.0.1:9000/b///evil.test/x")),
            (&own, "b", Some("/abs"), Some("http://127.0.0.1:9000/b//abs")),
            (&own, "b", Some("ü ?#%&+\n"), Some("http://127.0.0.1:9000/b/%C3%BC%20%3F%23%25%26%2B%0A")),
            (&own, "b", Some("http://x/"), Some("http://127.0.0.1:9000/b/http%3A//x/")),
            (&own, "b", Some("a/../b"), None),
            (&own, "b", Some("./x"), None),
            (&own, "b", Some(".."), None),
            (&own, "b", Some("a..b/.c"), Some("http://127.0.0.1:9000/b/a..b/.c")),
            (&own, "b", Some(""), None),
        ];
        for (endpoint, bucket, key, expected) in cases {
            let url = write_url(endpoint, bucket, key);
            assert_eq!(url.as_ref().map(Url::as_str), expected, "{bucket} {key:?}");
        }
    }

    #[test]
    fn signed_urls_equal_independent_ones() {
        let vector = |method,
                      url: &str,
                      token: Option<&str>,
                      query: &[(&'static str, &str)],
                      headers: &[(&'static str, &str)]| {
            let owned = |pairs: &[(&'static str, &str)]| -> BTreeMap<&'static str, String> {
                pairs.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
            };
            let call = Call {
                operation: "Test",
                method,
                url: Url::parse(url).unwrap(),
                query: owned(query),
                headers: owned(headers),
                body: None,
                region: "us-east-1".into(),
                bucket: None,
                signing: Signing::Url,
                repeatable: true,
            };
            let credentials = Credentials {
                access_key_id: "AKIAIOSFODNN7EXAMPLE".into(),
                secret_access_key: Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
                session_token: token.map(Secret::new),
                expires: None,
            };
            let signed = sign(&call, &credentials, "2013-05-24T00:00:00Z".parse().unwrap());
            assert_eq!(signed.headers, owned(headers));
            signed.url.rsplit_once("&X-Amz-Signature=").unwrap().1.to_owned()
        };
        let host = "https://examplebucket.s3.amazonaws.com/";
        let md5 = ("content-md5", "rL0Y20zC+Fzt72VPzMSk2A==");
        let owner = ("x-amz-expected-bucket-owner", "111122223333");
        let versions = [
            ("versions", ""),
            ("version-id-marker", "v1"),
            ("max-keys", "1000"),
            ("key-marker", "a b/c+d"),
            ("encoding-type", "url"),
        ];
        let xml = ("content-type", "application/xml");
        let ownership = ("x-amz-object-ownership", "BucketOwnerEnforced");
        #[rustfmt::skip]
        let cases = [
            (vector(Method::Get, host, None, &[("versioning", "")], &[]), "71c5fae1b225ae81024ce89c0f6ac9ca6192dd6998b9154bb343b3d7aee28b88"),
            (vector(Method::Put, host, None, &[("lifecycle", "")], &[md5]), "0c327ffb88c3331edfc6ce5bc962e4ab45d6c5767806ea5e39da7ab2bbe8238d"),
            (vector(Method::Put, host, None, &[("ownershipControls", "")], &[owner, md5]), "002c79863cd876c86ac1a18274adcf8f5619f1c3f8fd53621294e91bd1dcdd3d"),
            (vector(Method::Get, host, Some("to/k+en=="), &versions, &[]), "e1e8bee86329f2e7265e53b44bc980d3ef2bec62ea09128715aa6c38ee8e18f2"),
            (vector(Method::Post, host, None, &[("delete", "")], &[md5, xml]), "b7f2babcedff98d28e28f19520f5942c214de7fb48dd369f09f3a270bc474c3e"),
            (vector(Method::Put, host, None, &[], &[ownership]), "46b246c109a63d14ab9083c8cd92c4ca39f2aa6832d07d426900566ade50f81c"),
            (vector(Method::Get, "http://127.0.0.1:5000/my-bucket/", None, &[("location", "")], &[]), "94ef7e847343dc9fbd0176ebd61df0f1d6340c46bede6ca544f84621638bd04a"),
        ];
        for (number, (signature, expected)) in cases.iter().enumerate() {
            assert_eq!(signature, expected, "row {number}");
        }
    }

    #[test]
    fn a_bucket_is_ours_or_taken() {
        const OURS: Reply = Reply::Answer(409, "<Error><Code>BucketAlreadyOwnedByYou</Code></Error>");
        const TAKEN: Reply = Reply::Answer(409, "<Error><Code>BucketAlreadyExists</Code></Error>");
        let cases: [(&'static [Reply], BucketCreation); 3] = [
            (&[Reply::Answer(200, "")], BucketCreation::Ours),
            (&[OURS], BucketCreation::Ours),
            (&[TAKEN], BucketCreation::TakenByAnother),
        ];
        for (script, expected) in cases {
            let stub = Stub::start(script);
            assert_eq!(call(stub.port, 9, |caller| caller.create_bucket("b")).unwrap(), expected);
            let body = "<LocationConstraint>eu-west-1</LocationConstraint></CreateBucketConfiguration>";
            assert!(stub.requests().remove(0).ends_with(body));
        }
    }

    #[test]
    fn the_expected_owner_is_sent_and_signed_where_it_guards() {
        let stub = Stub::start(&[Reply::Answer(404, "<Error><Code>NoSuchBucket</Code></Error>")]);
        call(stub.port, 9, |caller| {
            let caller = caller.expecting_owner(Some("111122223333"));
            caller.delete_bucket("b").unwrap();
            assert_eq!(caller.list_object_versions("b").unwrap(), None);
            assert_eq!(caller.list_multipart_uploads("b").unwrap(), None);
        });
        let requests = stub.requests();
        assert_eq!(requests.len(), 3);
        for request in requests {
            assert!(request.contains("\r\nx-amz-expected-bucket-owner: 111122223333\r\n"), "{request}");
            assert!(request.contains("X-Amz-SignedHeaders=host%3Bx-amz-expected-bucket-owner"), "{request}");
        }
    }

    #[test]
    fn buckets_are_looked_for_on_all_pages() {
        const FIRST: Reply = Reply::Answer(
            200,
            "<ListAllMyBucketsResult><Buckets><Bucket><Name>b-1</Name></Bucket></Buckets>\
             <ContinuationToken>t/1</ContinuationToken></ListAllMyBucketsResult>",
        );
        const LAST: Reply = Reply::Answer(
            200,
            "<ListAllMyBucketsResult><Buckets><Bucket><Name>b-2</Name></Bucket></Buckets></ListAllMyBucketsResult>",
        );
        for (bucket, owned) in [("b-1", true), ("b-2", true), ("b", false)] {
            let stub = Stub::start(&[FIRST, LAST]);
            assert_eq!(call(stub.port, 9, |caller| caller.owns_bucket(bucket)).unwrap(), owned);
            assert_eq!(stub.requests().len(), 2);
        }
    }
}
