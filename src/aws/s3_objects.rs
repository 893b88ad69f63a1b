//! S3: what lies in a bucket, as far as it must be emptied.
//!
//! Not here: objects' contents, which the broker never reads; the loop that empties (`steps`).
//!
//! Invariants
//! - Listings are first pages only. Whoever empties a bucket deletes a page and lists again.
//! - Keys come and go as they are: decoded from listings, escaped in bodies and URLs.
//! - Every call here carries the expected owner when the caller knows it.
//!
//! Sources: S3 API Reference, ListObjectVersions, DeleteObjects, ListMultipartUploads, AbortMultipartUpload.

use percent_encoding::percent_decode_str;
use rusty_s3::Method;

use super::error::none_if;
use super::s3::NAMESPACE;
use super::xml::{self, Element};
use super::{AwsError, Caller};

/// How many keys a page holds and DeleteObjects takes, at most.
const PAGE_MAX: usize = 1_000;
/// The code for "no such bucket".
const GONE: &[&str] = &["NoSuchBucket"];

/// One version of an object, or a delete marker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObjectVersion {
    /// The object's key.
    pub(crate) key: String,
    /// The version's id; the text `null` for one from before versioning.
    pub(crate) version_id: String,
}

/// The first versions and delete markers of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VersionPage {
    /// Versions and markers; empty when the bucket is.
    pub(crate) objects: Vec<ObjectVersion>,
    /// Whether there are more.
    pub(crate) truncated: bool,
}

/// A version that could not be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObjectError {
    /// The object's key.
    pub(crate) key: String,
    /// The version's id.
    pub(crate) version_id: String,
    /// Why, as a code of AWS.
    pub(crate) code: String,
}

/// An unfinished upload in parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Upload {
    /// The key that it would make.
    pub(crate) key: String,
    /// Its id.
    pub(crate) upload_id: String,
}

/// What became of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AbortedUpload {
    /// It is gone.
    Gone,
    /// Its key fits in no URL, so it was left to the bucket's lifecycle.
    Unreachable,
}

/// Reads a key of a listing. Asked for it, S3 encodes keys like a form, so that any key fits in XML;
/// a store that does not says so by leaving out `EncodingType`.
fn read_key(text: &str, encoded: bool) -> Option<String> {
    if !encoded {
        return Some(text.to_owned());
    }
    let text = text.replace('+', " ");
    percent_decode_str(&text).decode_utf8().ok().map(String::from)
}

/// Whether a listing's keys are encoded.
fn is_encoded(root: &Element) -> bool {
    root.find_text(&["EncodingType"]).is_some_and(|text| text.trim() == "url")
}

/// Reads a page of versions; `None` when an item lacks its key.
fn read_versions(root: &Element) -> Option<VersionPage> {
    let encoded = is_encoded(root);
    let items = root.children("Version").chain(root.children("DeleteMarker"));
    let objects = items.map(|item| {
        let version_id = item.find_text(&["VersionId"]).filter(|id| !id.is_empty()).unwrap_or("null");
        Some(ObjectVersion {
            key: read_key(item.find_text(&["Key"])?, encoded)?,
            version_id: version_id.to_owned(),
        })
    });
    Some(VersionPage { objects: objects.collect::<Option<_>>()?, truncated: root.is_true(&["IsTruncated"]) })
}

/// Reads a page of uploads; `None` when an item lacks its key or id.
fn read_uploads(root: &Element) -> Option<Vec<Upload>> {
    let encoded = is_encoded(root);
    let uploads = root.children("Upload").map(|item| {
        Some(Upload {
            key: read_key(item.find_text(&["Key"])?, encoded)?,
            upload_id: item.find_text(&["UploadId"])?.to_owned(),
        })
    });
    uploads.collect()
}

/// The body of DeleteObjects. Quiet: only what went wrong comes back.
fn write_deletion(objects: &[&ObjectVersion]) -> String {
    let objects: String = objects
        .iter()
        .map(|ObjectVersion { key, version_id }| {
            let (key, version_id) = (xml::escape(key), xml::escape(version_id));
            format!("<Object><Key>{key}</Key><VersionId>{version_id}</VersionId></Object>")
        })
        .collect();
    format!("<Delete xmlns=\"{NAMESPACE}\">{objects}<Quiet>true</Quiet></Delete>")
}

/// Reads what DeleteObjects could not delete.
fn read_object_errors(root: &Element) -> Vec<ObjectError> {
    let text = |error: &Element, name| error.find_text(&[name]).unwrap_or_default().to_owned();
    let errors = root.children("Error").map(|error| ObjectError {
        key: text(error, "Key"),
        version_id: text(error, "VersionId"),
        code: text(error, "Code"),
    });
    errors.collect()
}

impl Caller<'_> {
    /// The first page of a listing; `None` when there is no such bucket.
    fn list_in_bucket(
        &self,
        operation: &'static str,
        bucket: &str,
        (listing, limit): (&'static str, &'static str),
        root_name: &str,
    ) -> Result<Option<Element>, AwsError> {
        let call = self
            .about_bucket(operation, Method::Get, bucket)?
            .with_query(listing, "")
            .with_query(limit, PAGE_MAX.to_string())
            .with_query("encoding-type", "url");
        let Some(answer) = none_if(self.send(&self.guard(call)), GONE)? else {
            return Ok(None);
        };
        let root = answer.root()?;
        // A store that does not know the listing answers with another one; "empty" would be wrong.
        match root.name == root_name {
            true => Ok(Some(root)),
            false => Err(AwsError::Malformed { operation, what: "not the listing that was asked for" }),
        }
    }

    /// The first versions and delete markers of a bucket, versioned or not; `None` when there is no such
    /// bucket.
    pub(crate) fn list_object_versions(&self, bucket: &str) -> Result<Option<VersionPage>, AwsError> {
        let operation = "ListObjectVersions";
        let root = self.list_in_bucket(operation, bucket, ("versions", "max-keys"), "ListVersionsResult")?;
        let broken = AwsError::Malformed { operation, what: "a version lacks a readable key" };
        root.map(|root| read_versions(&root).ok_or(broken)).transpose()
    }

    /// Deletes up to a page of versions; returns those that are still there. What was gone before counts
    /// as deleted.
    ///
    /// One key that XML cannot hold would make S3 refuse the whole page, so such keys go one by one.
    pub(crate) fn delete_objects(
        &self,
        bucket: &str,
        objects: &[ObjectVersion],
    ) -> Result<Vec<ObjectError>, AwsError> {
        if objects.len() > PAGE_MAX {
            let what = "more objects than S3 takes";
            return Err(AwsError::Malformed { operation: "DeleteObjects", what });
        }
        let (together, alone): (Vec<&ObjectVersion>, Vec<&ObjectVersion>) =
            objects.iter().partition(|object| xml::can_hold(&object.key));
        let mut errors = match together.is_empty() {
            true => Vec::new(), // S3 calls an empty list malformed
            false => self.delete_together(bucket, &together)?,
        };
        for object in alone {
            if let Some(code) = self.delete_alone(bucket, object)? {
                let ObjectVersion { key, version_id } = object.clone();
                errors.push(ObjectError { key, version_id, code });
            }
        }
        Ok(errors)
    }

    /// One DeleteObjects.
    fn delete_together(
        &self,
        bucket: &str,
        objects: &[&ObjectVersion],
    ) -> Result<Vec<ObjectError>, AwsError> {
        let call = self
            .about_bucket("DeleteObjects", Method::Post, bucket)?
            .with_query("delete", "")
            .with_body(write_deletion(objects));
        // Errors of single objects come in an answer that is else a success.
        Ok(read_object_errors(&self.send(&self.guard(call))?.root()?))
    }

    /// One DeleteObject; returns the code when S3 refuses.
    fn delete_alone(&self, bucket: &str, object: &ObjectVersion) -> Result<Option<String>, AwsError> {
        let Some(call) = self.about_key("DeleteObject", Method::Delete, bucket, &object.key) else {
            return Ok(Some("KeyFitsInNoRequest".into()));
        };
        let call = self.guard(call.with_query("versionId", object.version_id.as_str()));
        match self.send(&call) {
            Ok(_) => Ok(None),
            Err(error) if error.is_transient() => Err(error),
            Err(error) => Ok(error.code().filter(|code| *code != "NoSuchVersion").map(str::to_owned)),
        }
    }

    /// The first unfinished uploads of a bucket; `None` when there is no such bucket.
    pub(crate) fn list_multipart_uploads(&self, bucket: &str) -> Result<Option<Vec<Upload>>, AwsError> {
        let operation = "ListMultipartUploads";
        let root_name = "ListMultipartUploadsResult";
        let root = self.list_in_bucket(operation, bucket, ("uploads", "max-uploads"), root_name)?;
        let broken = AwsError::Malformed { operation, what: "an upload lacks a readable key" };
        root.map(|root| read_uploads(&root).ok_or(broken)).transpose()
    }

    /// Throws an unfinished upload away.
    pub(crate) fn abort_multipart_upload(
        &self,
        bucket: &str,
        upload: &Upload,
    ) -> Result<AbortedUpload, AwsError> {
        let operation = "AbortMultipartUpload";
        let Some(call) = self.about_key(operation, Method::Delete, bucket, &upload.key) else {
            return Ok(AbortedUpload::Unreachable);
        };
        let call = self.guard(call.with_query("uploadId", upload.upload_id.as_str()));
        none_if(self.send(&call), &["NoSuchUpload", "NoSuchBucket"])?;
        Ok(AbortedUpload::Gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(key: &str, version_id: &str) -> ObjectVersion {
        ObjectVersion { key: key.into(), version_id: version_id.into() }
    }

    #[test]
    fn keys_are_decoded_only_when_encoded() {
        let cases = [
            ("a%20b+c%2Bd", true, Some("a b c+d")),
            ("a%20b+c", false, Some("a%20b+c")),
            ("%E1%88%B4%0D%01", true, Some("ሴ\r\u{1}")),
            ("100%", true, Some("100%")),
            ("%FF", true, None),
        ];
        for (text, encoded, expected) in cases {
            assert_eq!(read_key(text, encoded).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_page_holds_versions_and_markers() {
        let page = "<ListVersionsResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>b</Name>\
            <EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>\
            <Version><Key>a%2Bb</Key><VersionId>v1</VersionId></Version>\
            <DeleteMarker><Key>c</Key><VersionId>m1</VersionId></DeleteMarker>\
            <Version><Key>d</Key></Version></ListVersionsResult>";
        let page = read_versions(&xml::read(page.as_bytes()).unwrap()).unwrap();
        assert!(page.truncated);
        assert_eq!(page.objects, [version("a+b", "v1"), version("d", "null"), version("c", "m1")]);

        let empty =
            xml::read(b"<ListVersionsResult><IsTruncated>false</IsTruncated></ListVersionsResult>").unwrap();
        assert_eq!(read_versions(&empty), Some(VersionPage { objects: vec![], truncated: false }));
        let broken = xml::read(b"<ListVersionsResult><Version/></ListVersionsResult>").unwrap();
        assert_eq!(read_versions(&broken), None);
    }

    #[test]
    fn uploads_need_key_and_id() {
        let cases: [(&str, Option<Vec<Upload>>); 3] = [
            ("<R/>", Some(vec![])),
            (
                "<R><Upload><Key>a/b</Key><UploadId>u</UploadId></Upload></R>",
                Some(vec![Upload { key: "a/b".into(), upload_id: "u".into() }]),
            ),
            ("<R><Upload><Key>a</Key></Upload></R>", None),
        ];
        for (text, expected) in cases {
            assert_eq!(read_uploads(&xml::read(text.as_bytes()).unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn what_is_deleted_is_what_was_listed() {
        let objects = [version("a&b\r\n", "null"), version("x", "3sL4k")];
        assert_eq!(
            write_deletion(&[&objects[0], &objects[1]]),
            "<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
             <Object><Key>a&amp;b&#13;&#10;</Key><VersionId>null</VersionId></Object>\
             <Object><Key>x</Key><VersionId>3sL4k</VersionId></Object><Quiet>true</Quiet></Delete>"
        );
        let answer = "<DeleteResult><Error><Key>k</Key><VersionId>v</VersionId><Code>InternalError</Code>\
            <Message>We encountered an internal error. Please try again.</Message></Error></DeleteResult>";
        let error = ObjectError { key: "k".into(), version_id: "v".into(), code: "InternalError".into() };
        assert_eq!(read_object_errors(&xml::read(answer.as_bytes()).unwrap()), [error]);
    }
}
