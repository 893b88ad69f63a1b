//! A call as a value: what an operation wants sent, and what came back.
//!
//! Not here: sending (`send`), signing (`s3`, `query`).
//!
//! Invariants
//! - Query and headers are sorted and hold each name once, as signing requires.
//! - A body written by [`Call::with_body`] has its checksum in a header, which is signed like all headers.
//! - None of these can be printed: they hold policies, signatures and secrets.
//!
//! Sources: botocore's S3 model, `requestChecksumRequired`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};
use rusty_s3::Method;
use url::Url;

use super::AwsError;
use super::xml::{Element, XmlError};

/// How a call is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signing {
    /// S3: in the URL, which covers the headers but not the body.
    Url,
    /// IAM and STS: in a header, which covers the body too.
    Header {
        /// The service, as in its host name.
        service: &'static str,
    },
}

impl Signing {
    /// The service that the call is for, as in its host name.
    pub(super) fn service(self) -> &'static str {
        match self {
            Signing::Url => "s3",
            Signing::Header { service } => service,
        }
    }
}

/// A call before it is signed. It has no `Debug`: bodies hold policies, and secrets one day.
#[derive(Clone)]
pub(super) struct Call<'c> {
    /// The operation, as AWS writes it.
    pub(super) operation: &'static str,
    /// The HTTP method.
    pub(super) method: Method,
    /// The URL without a query.
    pub(super) url: Url,
    /// The query, sorted by name, not encoded.
    pub(super) query: BTreeMap<&'static str, String>,
    /// The headers beside `host`, names in lower case. All of them are signed.
    pub(super) headers: BTreeMap<&'static str, String>,
    /// The body; `None` where the method has none.
    pub(super) body: Option<String>,
    /// The region to sign for.
    pub(super) region: Cow<'c, str>,
    /// The bucket that the call follows to its region.
    pub(super) bucket: Option<String>,
    /// How to sign.
    pub(super) signing: Signing,
    /// Whether it may be sent again when it is not known what became of it.
    pub(super) repeatable: bool,
}

/// A request as it goes over the wire. It has no `Debug`: it is as good as the key for a while.
pub(super) struct Signed {
    /// The URL with its query.
    pub(super) url: String,
    /// The headers beside `host`.
    pub(super) headers: BTreeMap<&'static str, String>,
}

/// A success.
pub(super) struct Answer {
    /// The operation, for errors about the answer.
    pub(super) operation: &'static str,
    /// The body's root; most writes are answered by an empty body, which is no XML.
    pub(super) root: Result<Element, XmlError>,
}

impl Answer {
    /// The root of an answer that must have one.
    pub(super) fn root(self) -> Result<Element, AwsError> {
        let operation = self.operation;
        self.root.map_err(|error| AwsError::Malformed { operation, what: error.words() })
    }
}

impl Call<'_> {
    /// Adds a query parameter; a sub-resource is one with an empty value.
    pub(super) fn with_query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.insert(name, value.into());
        self
    }

    /// Adds a header, which will be signed.
    pub(super) fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.insert(name, value.into());
        self
    }

    /// Sets the body and its checksum, in the one form that AWS and older stores all accept.
    pub(super) fn with_body(mut self, body: String) -> Self {
        let checksum = STANDARD.encode(Md5::digest(body.as_bytes()));
        self.body = Some(body);
        self.with_header("content-md5", checksum)
    }
}

#[cfg(test)]
mod tests {
    use super::super::s3::NAMESPACE;
    use super::*;

    #[test]
    fn a_body_brings_its_checksum() {
        let call = Call {
            operation: "PutBucketVersioning",
            method: Method::Put,
            url: Url::parse("https://b.s3.test/").unwrap(),
            query: BTreeMap::new(),
            headers: BTreeMap::new(),
            body: None,
            region: "us-east-1".into(),
            bucket: None,
            signing: Signing::Url,
            repeatable: true,
        };
        let body = format!(
            "<VersioningConfiguration xmlns=\"{NAMESPACE}\"><Status>Enabled</Status></VersioningConfiguration>"
        );
        assert_eq!(call.with_body(body).headers["content-md5"], "QQFYoy/mRYV9PGZUfFi0Bw==");
    }
}
