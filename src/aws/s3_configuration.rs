//! S3: the settings of a bucket.
//!
//! Not here: which plan wants which (`steps`), the bucket's policy as text (`policy`).
//!
//! Invariants
//! - Every write replaces the whole setting and is safe to repeat.
//! - A setting that was never made reads as `None` or empty.
//!
//! Sources: S3 API Reference, the operations named.

use rusty_s3::Method;

use super::call::Answer;
use super::error::none_if;
use super::s3::NAMESPACE;
use super::xml::{self, Element};
use super::{AwsError, Caller};

/// How old an object, or a version that was replaced, is when it moves to the cheaper class. AWS allows no less.
const TRANSITION_DAYS: u32 = 30;
/// How long a version lives that was replaced or deleted.
const NONCURRENT_EXPIRATION_DAYS: u32 = 180;
/// How long an upload in parts may take.
const UPLOAD_DAYS: u32 = 7;
/// The name of our one lifecycle rule, as the broker before this one called it.
const RULE_ID: &str = "versioned";

/// A bucket's default encryption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Encryption {
    /// `AES256`, `aws:kms` or `aws:kms:dsse`.
    pub(crate) algorithm: String,
    /// The key, unless it is AWS' own.
    pub(crate) kms_key: Option<String>,
}

/// A lifecycle rule, as far as we set it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LifecycleRule {
    /// Its name.
    pub(crate) id: String,
    /// `Enabled` or `Disabled`.
    pub(crate) status: String,
    /// The class that current versions move to.
    pub(crate) transition_class: Option<String>,
    /// How long replaced versions live.
    pub(crate) noncurrent_expiration_days: Option<u32>,
    /// After how many days an unfinished upload is thrown away.
    pub(crate) abort_upload_days: Option<u32>,
}

impl LifecycleRule {
    /// Reads `<Rule>`.
    fn read(rule: &Element) -> LifecycleRule {
        let text = |path: &[&str]| rule.find_text(path).map(str::to_owned);
        let days = |path: &[&str]| rule.find_text(path).and_then(|text| text.trim().parse().ok());
        LifecycleRule {
            id: text(&["ID"]).unwrap_or_default(),
            status: text(&["Status"]).unwrap_or_default(),
            transition_class: text(&["Transition", "StorageClass"]),
            noncurrent_expiration_days: days(&["NoncurrentVersionExpiration", "NoncurrentDays"]),
            abort_upload_days: days(&["AbortIncompleteMultipartUpload", "DaysAfterInitiation"]),
        }
    }
}

/// The lifecycle of a versioned bucket. Without `storage_class` nothing moves.
fn write_lifecycle(storage_class: Option<&str>) -> String {
    let transitions = storage_class.map(xml::escape).map(|class| {
        format!(
            "<Transition><Days>{TRANSITION_DAYS}</Days><StorageClass>{class}</StorageClass></Transition>\
             <NoncurrentVersionTransition><NoncurrentDays>{TRANSITION_DAYS}</NoncurrentDays>\
             <StorageClass>{class}</StorageClass></NoncurrentVersionTransition>"
        )
    });
    format!(
        "<LifecycleConfiguration xmlns=\"{NAMESPACE}\"><Rule><ID>{RULE_ID}</ID><Filter><Prefix></Prefix></Filter>\
         <Status>Enabled</Status>{}<NoncurrentVersionExpiration>\
         <NoncurrentDays>{NONCURRENT_EXPIRATION_DAYS}</NoncurrentDays></NoncurrentVersionExpiration>\
         <AbortIncompleteMultipartUpload><DaysAfterInitiation>{UPLOAD_DAYS}</DaysAfterInitiation>\
         </AbortIncompleteMultipartUpload></Rule></LifecycleConfiguration>",
        transitions.unwrap_or_default()
    )
}

/// Encryption with KMS. Bucket keys make it cheap: one call to KMS serves many objects.
fn write_encryption(kms_key: Option<&str>) -> String {
    let key = kms_key.map(|key| format!("<KMSMasterKeyID>{}</KMSMasterKeyID>", xml::escape(key)));
    format!(
        "<ServerSideEncryptionConfiguration xmlns=\"{NAMESPACE}\"><Rule><ApplyServerSideEncryptionByDefault>\
         <SSEAlgorithm>aws:kms</SSEAlgorithm>{}</ApplyServerSideEncryptionByDefault>\
         <BucketKeyEnabled>true</BucketKeyEnabled></Rule></ServerSideEncryptionConfiguration>",
        key.unwrap_or_default()
    )
}

/// Tags of a bucket.
fn write_tags(tags: &[(String, String)]) -> String {
    let tags: String = tags
        .iter()
        .map(|(key, value)| {
            format!("<Tag><Key>{}</Key><Value>{}</Value></Tag>", xml::escape(key), xml::escape(value))
        })
        .collect();
    format!("<Tagging xmlns=\"{NAMESPACE}\"><TagSet>{tags}</TagSet></Tagging>")
}

impl Caller<'_> {
    /// Replaces a setting.
    fn put_setting(
        &self,
        operation: &'static str,
        bucket: &str,
        setting: &'static str,
        body: String,
    ) -> Result<(), AwsError> {
        let call = self.about_bucket(operation, Method::Put, bucket)?;
        self.send(&call.with_query(setting, "").with_body(body)).map(drop)
    }

    /// Reads a setting; `None` when AWS answers with one of `none_codes`.
    fn read_setting(
        &self,
        operation: &'static str,
        bucket: &str,
        setting: &'static str,
        none_codes: &[&str],
    ) -> Result<Option<Element>, AwsError> {
        let call = self.about_bucket(operation, Method::Get, bucket)?;
        let answer = none_if(self.send(&call.with_query(setting, "")), none_codes)?;
        answer.map(Answer::root).transpose()
    }

    /// Shuts out every kind of public access.
    pub(crate) fn put_public_access_block(&self, bucket: &str) -> Result<(), AwsError> {
        let body = format!(
            "<PublicAccessBlockConfiguration xmlns=\"{NAMESPACE}\"><BlockPublicAcls>true</BlockPublicAcls>\
             <IgnorePublicAcls>true</IgnorePublicAcls><BlockPublicPolicy>true</BlockPublicPolicy>\
             <RestrictPublicBuckets>true</RestrictPublicBuckets></PublicAccessBlockConfiguration>"
        );
        self.put_setting("PutPublicAccessBlock", bucket, "publicAccessBlock", body)
    }

    /// Makes the bucket's owner the owner of every object, and ACLs void.
    pub(crate) fn put_bucket_ownership_controls(&self, bucket: &str) -> Result<(), AwsError> {
        let body = format!(
            "<OwnershipControls xmlns=\"{NAMESPACE}\"><Rule><ObjectOwnership>BucketOwnerEnforced\
             </ObjectOwnership></Rule></OwnershipControls>"
        );
        self.put_setting("PutBucketOwnershipControls", bucket, "ownershipControls", body)
    }

    /// Sets the bucket's policy.
    pub(crate) fn put_bucket_policy(&self, bucket: &str, document: &str) -> Result<(), AwsError> {
        self.put_setting("PutBucketPolicy", bucket, "policy", document.to_owned())
    }

    /// Encrypts new objects with KMS: with the given key, else with AWS' own.
    pub(crate) fn put_bucket_encryption(&self, bucket: &str, kms_key: Option<&str>) -> Result<(), AwsError> {
        self.put_setting("PutBucketEncryption", bucket, "encryption", write_encryption(kms_key))
    }

    /// Leaves new objects to the encryption that S3 uses by itself.
    pub(crate) fn delete_bucket_encryption(&self, bucket: &str) -> Result<(), AwsError> {
        let call = self.about_bucket("DeleteBucketEncryption", Method::Delete, bucket)?;
        self.send(&call.with_query("encryption", "")).map(drop)
    }

    /// The bucket's default encryption.
    pub(crate) fn get_bucket_encryption(&self, bucket: &str) -> Result<Option<Encryption>, AwsError> {
        let none_codes = &["ServerSideEncryptionConfigurationNotFoundError"];
        let root = self.read_setting("GetBucketEncryption", bucket, "encryption", none_codes)?;
        Ok(root.and_then(|root| {
            let default = root.find(&["Rule", "ApplyServerSideEncryptionByDefault"])?;
            let kms_key = default.find_text(&["KMSMasterKeyID"]).filter(|key| !key.is_empty());
            Some(Encryption {
                algorithm: default.find_text(&["SSEAlgorithm"])?.to_owned(),
                kms_key: kms_key.map(str::to_owned),
            })
        }))
    }

    /// Keeps replaced and deleted versions from now on, or no longer.
    pub(crate) fn put_bucket_versioning(&self, bucket: &str, enabled: bool) -> Result<(), AwsError> {
        let status = if enabled { "Enabled" } else { "Suspended" };
        let body = format!(
            "<VersioningConfiguration xmlns=\"{NAMESPACE}\"><Status>{status}</Status></VersioningConfiguration>"
        );
        self.put_setting("PutBucketVersioning", bucket, "versioning", body)
    }

    /// `Enabled`, `Suspended`, or `None` where versioning was never on.
    pub(crate) fn get_bucket_versioning(&self, bucket: &str) -> Result<Option<String>, AwsError> {
        let root = self.read_setting("GetBucketVersioning", bucket, "versioning", &[])?;
        let status = root.and_then(|root| root.find_text(&["Status"]).map(|text| text.trim().to_owned()));
        Ok(status.filter(|status| !status.is_empty()))
    }

    /// Sets the lifecycle of a versioned bucket: replaced versions expire, unfinished uploads too, and with
    /// `storage_class` everything moves there before.
    pub(crate) fn put_bucket_lifecycle_configuration(
        &self,
        bucket: &str,
        storage_class: Option<&str>,
    ) -> Result<(), AwsError> {
        let body = write_lifecycle(storage_class);
        self.put_setting("PutBucketLifecycleConfiguration", bucket, "lifecycle", body)
    }

    /// The bucket's lifecycle rules.
    pub(crate) fn get_bucket_lifecycle_configuration(
        &self,
        bucket: &str,
    ) -> Result<Option<Vec<LifecycleRule>>, AwsError> {
        let none_codes = &["NoSuchLifecycleConfiguration"];
        let root = self.read_setting("GetBucketLifecycleConfiguration", bucket, "lifecycle", none_codes)?;
        Ok(root.map(|root| root.children("Rule").map(LifecycleRule::read).collect()))
    }

    /// Replaces all tags of the bucket. There must be some: S3 refuses an empty set.
    pub(crate) fn put_bucket_tagging(&self, bucket: &str, tags: &[(String, String)]) -> Result<(), AwsError> {
        self.put_setting("PutBucketTagging", bucket, "tagging", write_tags(tags))
    }

    /// The tags of the bucket; `None` when there is no such bucket. An answer about something else,
    /// from a store that does not know the question, counts as no tags.
    pub(crate) fn get_bucket_tagging(&self, bucket: &str) -> Result<Option<Vec<(String, String)>>, AwsError> {
        let root = self.read_setting("GetBucketTagging", bucket, "tagging", &["NoSuchTagSet"]);
        let Some(root) = none_if(root, &["NoSuchBucket"])? else {
            return Ok(None);
        };
        let tagging = root.filter(|it| it.name == "Tagging");
        Ok(Some(xml::read_tags(tagging.as_ref().and_then(|it| it.find(&["TagSet"])), "Tag")))
    }
}

#[cfg(test)]
mod tests {
    use super::super::stub::{Reply, Stub, call};
    use super::*;

    #[test]
    fn bodies_are_those_that_aws_documents() {
        let start = "<LifecycleConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Rule>\
            <ID>versioned</ID><Filter><Prefix></Prefix></Filter><Status>Enabled</Status>";
        let moves = "<Transition><Days>30</Days><StorageClass>STANDARD_IA</StorageClass></Transition>\
            <NoncurrentVersionTransition><NoncurrentDays>30</NoncurrentDays>\
            <StorageClass>STANDARD_IA</StorageClass></NoncurrentVersionTransition>";
        let end = "<NoncurrentVersionExpiration><NoncurrentDays>180</NoncurrentDays></NoncurrentVersionExpiration>\
            <AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation>\
            </AbortIncompleteMultipartUpload></Rule></LifecycleConfiguration>";
        assert_eq!(write_lifecycle(Some("STANDARD_IA")), format!("{start}{moves}{end}"));
        assert_eq!(write_lifecycle(None), format!("{start}{end}"));
        let encryption = |key: &str| {
            format!(
                "<ServerSideEncryptionConfiguration xmlns=\"{NAMESPACE}\"><Rule>\
                 <ApplyServerSideEncryptionByDefault><SSEAlgorithm>aws:kms</SSEAlgorithm>{key}\
                 </ApplyServerSideEncryptionByDefault><BucketKeyEnabled>true</BucketKeyEnabled></Rule>\
                 </ServerSideEncryptionConfiguration>"
            )
        };
        assert_eq!(write_encryption(None), encryption(""));
        let key = "<KMSMasterKeyID>alias/a&amp;b</KMSMasterKeyID>";
        assert_eq!(write_encryption(Some("alias/a&b")), encryption(key));
        let tags = write_tags(&[("k<1>".into(), "v".into()), ("k2".into(), String::new())]);
        assert!(tags.ends_with(
            "<TagSet><Tag><Key>k&lt;1&gt;</Key><Value>v</Value></Tag><Tag><Key>k2</Key><Value></Value></Tag></TagSet></Tagging>"
        ));
    }

    #[test]
    fn tags_are_read_and_their_absence_is_no_error() {
        const NONE: Reply = Reply::Answer(404, "<Error><Code>NoSuchTagSet</Code></Error>");
        const GONE: Reply = Reply::Answer(404, "<Error><Code>NoSuchBucket</Code></Error>");
        const LISTING: Reply = Reply::Answer(200, "<ListBucketResult><Tag/></ListBucketResult>");
        const SOME: Reply =
            Reply::Answer(200, "<Tagging><TagSet><Tag><Key>k</Key><Value>v</Value></Tag></TagSet></Tagging>");
        let some = vec![("k".to_owned(), "v".to_owned())];
        let read = |script: &'static [Reply]| {
            call(Stub::start(script).port, 9, |caller| caller.get_bucket_tagging("b")).unwrap()
        };
        assert_eq!(read(&[NONE]), Some(vec![]));
        assert_eq!(read(&[GONE]), None);
        assert_eq!(read(&[LISTING]), Some(vec![]));
        assert_eq!(read(&[SOME]), Some(some));
    }

    #[test]
    fn what_is_written_reads_back() {
        for (class, moves_to) in [(Some("STANDARD_IA"), Some("STANDARD_IA".to_owned())), (None, None)] {
            let root = xml::read(write_lifecycle(class).as_bytes()).unwrap();
            let rules: Vec<LifecycleRule> = root.children("Rule").map(LifecycleRule::read).collect();
            let expected = LifecycleRule {
                id: RULE_ID.into(),
                status: "Enabled".into(),
                transition_class: moves_to,
                noncurrent_expiration_days: Some(NONCURRENT_EXPIRATION_DAYS),
                abort_upload_days: Some(UPLOAD_DAYS),
            };
            assert_eq!(rules, [expected]);
        }
    }
}
