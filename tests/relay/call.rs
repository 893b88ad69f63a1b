//! What a request asks of AWS: its operation by AWS' name, whose it is, what it is about.

use std::borrow::Cow;

use super::wire::Request;

/// A call of IAM, STS or S3.
#[derive(Debug, Clone, Default)]
pub(crate) struct Call {
    /// `CreateUser`, `PutBucketVersioning`; `s3:PUT?analytics` where the name is not known here.
    pub(crate) operation: String,
    /// The parameters of an IAM or STS call.
    pub(crate) form: Vec<(String, String)>,
    /// What S3 is asked about: the bucket, and the key in it.
    pub(crate) bucket: Option<String>,
    /// The key in the bucket.
    pub(crate) key: Option<String>,
    /// The query of an S3 call.
    pub(crate) query: Vec<(String, String)>,
    /// Whose signature it bears; `None` when it bears none.
    pub(crate) access_key: Option<String>,
    /// Names of the headers that the signature covers, in lower case.
    pub(crate) signed_headers: Vec<String>,
}

impl Call {
    /// Understands a request.
    pub(crate) fn read(request: &Request) -> Call {
        let (path, query) = request.target().split_once('?').unwrap_or((request.target(), ""));
        let query = pairs(query.as_bytes());
        let mut call = Call { query, ..Call::default() };
        call.read_signature(request);
        let path = path.trim_start_matches('/');
        if path.is_empty() && request.method() == "POST" {
            call.form = pairs(&request.body);
            call.operation = call.parameter("Action").unwrap_or("no action").to_owned();
            return call;
        }
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        call.bucket = Some(decoded(bucket)).filter(|it| !it.is_empty());
        call.key = Some(decoded(key)).filter(|it| !it.is_empty());
        call.operation = call.name_s3(request);
        call
    }

    /// Whether S3 is asked, and not IAM or STS.
    pub(crate) fn is_s3(&self) -> bool {
        self.form.is_empty()
    }

    /// A parameter of an IAM call.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.form.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A parameter of an S3 call.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The IAM user that the call is about.
    pub(crate) fn user(&self) -> &str {
        self.parameter("UserName").unwrap_or_default()
    }

    /// Reads `Credential` and `SignedHeaders` from the header or from the URL.
    fn read_signature(&mut self, request: &Request) {
        let header = request.header("authorization").unwrap_or_default().to_owned();
        let of_header = |name: &str| {
            let (_, rest) = header.split_once(&format!("{name}="))?;
            rest.split([',', ' ']).next().map(str::to_owned)
        };
        let credential = of_header("Credential").or(self.query("X-Amz-Credential").map(str::to_owned));
        let signed = of_header("SignedHeaders").or(self.query("X-Amz-SignedHeaders").map(str::to_owned));
        self.access_key = credential.as_deref().and_then(|it| it.split('/').next()).map(str::to_owned);
        self.signed_headers = signed.unwrap_or_default().split(';').map(str::to_owned).collect();
    }

    /// S3 API Reference: the operation is in method, path and one word of the query.
    fn name_s3(&self, request: &Request) -> String {
        let has = |name: &str| self.query(name).is_some();
        let method = request.method();
        let words = || self.query.iter().map(|(name, _)| name.as_str());
        let words = || words().filter(|it| !it.starts_with("X-Amz-") && *it != "x-id");
        // What S3 goes by may stand anywhere in the query.
        let known = words().find(|it| !put_bucket(it).is_empty() || *it == "delete" || *it == "location");
        let word = known.or(words().next()).unwrap_or_default();
        let known = match (method, &self.bucket, &self.key) {
            ("GET", None, _) => "ListBuckets",
            (_, Some(_), None) => match (method, word) {
                ("PUT", "") => "CreateBucket",
                ("PUT", _) => put_bucket(word),
                ("DELETE", "") => "DeleteBucket",
                ("DELETE", "encryption") => "DeleteBucketEncryption",
                ("HEAD", _) => "HeadBucket",
                ("POST", "delete") => "DeleteObjects",
                ("GET", _) if has("versions") => "ListObjectVersions",
                ("GET", _) if has("uploads") => "ListMultipartUploads",
                ("GET", _) if has("list-type") => "ListObjectsV2",
                ("GET", _) => get_bucket(word),
                _ => "",
            },
            (_, Some(_), Some(_)) => match method {
                "PUT" if has("uploadId") => "UploadPart",
                "PUT" if has("tagging") => "PutObjectTagging",
                "PUT" if request.header("x-amz-copy-source").is_some() => "CopyObject",
                "PUT" => "PutObject",
                "GET" if has("uploadId") => "ListParts",
                "GET" => "GetObject",
                "HEAD" => "HeadObject",
                "DELETE" if has("uploadId") => "AbortMultipartUpload",
                "DELETE" => "DeleteObject",
                "POST" if has("uploads") => "CreateMultipartUpload",
                "POST" if has("uploadId") => "CompleteMultipartUpload",
                _ => "",
            },
            _ => "",
        };
        if known.is_empty() { format!("s3:{method}?{word}") } else { known.to_owned() }
    }
}

/// Settings of a bucket that can be written.
fn put_bucket(word: &str) -> &'static str {
    match word {
        "acl" => "PutBucketAcl",
        "cors" => "PutBucketCors",
        "encryption" => "PutBucketEncryption",
        "lifecycle" => "PutBucketLifecycleConfiguration",
        "object-lock" => "PutObjectLockConfiguration",
        "ownershipControls" => "PutBucketOwnershipControls",
        "policy" => "PutBucketPolicy",
        "publicAccessBlock" => "PutPublicAccessBlock",
        "tagging" => "PutBucketTagging",
        "versioning" => "PutBucketVersioning",
        _ => "",
    }
}

/// Settings of a bucket that can be read.
fn get_bucket(word: &str) -> &'static str {
    match word {
        "" => "ListObjects",
        "cors" => "GetBucketCors",
        "encryption" => "GetBucketEncryption",
        "lifecycle" => "GetBucketLifecycleConfiguration",
        "location" => "GetBucketLocation",
        "ownershipControls" => "GetBucketOwnershipControls",
        "policy" => "GetBucketPolicy",
        "publicAccessBlock" => "GetPublicAccessBlock",
        "tagging" => "GetBucketTagging",
        "versioning" => "GetBucketVersioning",
        _ => "",
    }
}

/// Names and values of a form or a query.
fn pairs(text: &[u8]) -> Vec<(String, String)> {
    url::form_urlencoded::parse(text).map(|(name, value)| (name.into_owned(), value.into_owned())).collect()
}

/// A part of a path.
fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8().map_or(text.to_owned(), Cow::into_owned)
}
