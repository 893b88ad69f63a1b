//! The policies that the broker writes, as JSON, and the names of KMS keys in them.
//!
//! Not here: sending them (`iam`, `s3_configuration`).
//!
//! Invariants
//! - A tenant's policy is a list of what is allowed, on one bucket; nothing in it is a wish of the tenant.
//! - It fits into what IAM allows for the inline policies of a user, for every name and key.
//! - A key is read, never pasted: no wildcard gets into a policy through its name.
//!
//! Sources: IAM User Guide, "IAM and AWS STS quotas"; S3 User Guide, "Actions for Amazon S3"; KMS Developer Guide, "kms:ViaService".

use std::fmt;

use serde_json::{Value, json};

use super::endpoints;

/// What a tenant may do with the bucket.
const BUCKET_ACTIONS: &[&str] = &[
    "s3:ListBucket",
    "s3:ListBucketVersions",
    "s3:ListBucketMultipartUploads",
    "s3:GetBucketLocation",
    "s3:GetBucketVersioning",
    "s3:GetBucketCORS",
    "s3:PutBucketCORS",
];

/// What a tenant may do with the objects in it.
const OBJECT_ACTIONS: &[&str] = &[
    "s3:GetObject*",
    "s3:PutObject",
    "s3:PutObjectTagging",
    "s3:DeleteObject",
    "s3:DeleteObjectVersion",
    "s3:AbortMultipartUpload",
    "s3:ListMultipartUploadParts",
];

/// What S3 does with the key in a tenant's name: the first to read and to write in parts, the others to write.
const KEY_ACTIONS: &[&str] = &["kms:Decrypt", "kms:GenerateDataKey*"];

/// How long a tag's value may be, in characters.
const TAG_VALUE_CHARACTERS_MAX: usize = 256;
/// How long a key's id, or an alias with its `alias/`, may be.
const KEY_NAME_CHARACTERS_MAX: usize = 256;

/// Why a text names no KMS key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KmsKeyError {
    /// It is neither id nor alias nor the ARN of one.
    Form,
    /// It is in another partition or region than the buckets, where S3 cannot use it.
    Elsewhere,
}

impl fmt::Display for KmsKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KmsKeyError::Form => "not a KMS key id, alias/name, or the ARN of one",
            KmsKeyError::Elsewhere => "the KMS key is in another partition or region than the buckets",
        })
    }
}

impl std::error::Error for KmsKeyError {}

/// A KMS key of the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KmsKey {
    /// What to send as `KMSMasterKeyID`.
    master_key_id: String,
    /// The resource of a policy: the key's ARN, or all keys of the account for an alias.
    resource: String,
    /// The alias, where only that is known. A policy cannot name it as a resource.
    alias: Option<String>,
    /// S3 of the region, as KMS sees it.
    via_service: String,
}

impl KmsKey {
    /// Reads a key's ARN, an alias' ARN, a key's id or `alias/name`.
    ///
    /// Without `account` the last two stand for a key of whichever account asks, which is the broker's.
    pub(crate) fn parse(
        text: &str,
        partition: &str,
        region: &str,
        account: Option<&str>,
    ) -> Result<KmsKey, KmsKeyError> {
        let (account, name) = match text.strip_prefix("arn:") {
            Some(rest) => {
                let fields: Vec<&str> = rest.splitn(5, ':').collect();
                let [its_partition, "kms", its_region, its_account, name] = fields[..] else {
                    return Err(KmsKeyError::Form);
                };
                if (its_partition, its_region) != (partition, region) {
                    return Err(KmsKeyError::Elsewhere);
                }
                (Some(its_account), name)
            }
            None => (account, text),
        };
        let is_word =
            |it: &str| !it.is_empty() && it.chars().all(|it| it.is_ascii_alphanumeric() || it == '-');
        if account.is_some_and(|account| !is_word(account)) || name.len() > KEY_NAME_CHARACTERS_MAX {
            return Err(KmsKeyError::Form);
        }
        let arn = |account: &str, name: &str| format!("arn:{partition}:kms:{region}:{account}:{name}");
        let owner = account.unwrap_or("*");
        let via_service = format!("s3.{region}.{}", endpoints::dns_suffix(partition));
        if let Some(alias) = name.strip_prefix("alias/") {
            if !alias.split(['/', '_']).all(is_word) {
                return Err(KmsKeyError::Form);
            }
            return Ok(KmsKey {
                master_key_id: account.map_or(name.to_owned(), |account| arn(account, name)),
                resource: arn(owner, "key/*"),
                alias: Some(name.to_owned()),
                via_service,
            });
        }
        let id = if text.starts_with("arn:") { name.strip_prefix("key/").unwrap_or_default() } else { name };
        if !is_word(id) {
            return Err(KmsKeyError::Form);
        }
        Ok(KmsKey {
            master_key_id: account.map_or(id.to_owned(), |account| arn(account, &format!("key/{id}"))),
            resource: arn(owner, &format!("key/{id}")),
            alias: None,
            via_service,
        })
    }

    /// What to send as `KMSMasterKeyID`: the full ARN where the account is known, as S3 recommends.
    pub(crate) fn master_key_id(&self) -> &str {
        &self.master_key_id
    }

    /// Whether both are known to be the same key. Which key an alias stands for only KMS knows, so it is the same as
    /// itself and nothing else.
    pub(crate) fn is(&self, other: &KmsKey) -> bool {
        let name = |it: &KmsKey| {
            let last = it.master_key_id.rsplit(':').next().unwrap_or_default();
            last.strip_prefix("key/").unwrap_or(last).to_owned()
        };
        let is_whole = |it: &KmsKey| it.master_key_id.starts_with("arn:");
        match is_whole(self) && is_whole(other) {
            true => self.master_key_id == other.master_key_id,
            false => name(self) == name(other), // of one of them the account is not known
        }
    }

    /// The statement that lets a tenant use the key, through S3 only.
    fn statement(&self) -> Value {
        let mut condition = json!({ "StringEquals": { "kms:ViaService": self.via_service } });
        if let (Some(alias), Some(conditions)) = (&self.alias, condition.as_object_mut()) {
            conditions.insert("ForAnyValue:StringEquals".into(), json!({ "kms:ResourceAliases": alias }));
        }
        json!({ "Effect": "Allow", "Action": KEY_ACTIONS, "Resource": self.resource, "Condition": condition })
    }
}

/// The inline policy of a tenant's user: use of one bucket, and of the key that encrypts it.
pub(crate) fn tenant_policy(partition: &str, bucket: &str, key: Option<&KmsKey>) -> String {
    let bucket = format!("arn:{partition}:s3:::{bucket}");
    let objects = format!("{bucket}/*");
    let mut statements = vec![
        json!({ "Effect": "Allow", "Action": BUCKET_ACTIONS, "Resource": bucket }),
        json!({ "Effect": "Allow", "Action": OBJECT_ACTIONS, "Resource": objects }),
    ];
    statements.extend(key.map(KmsKey::statement));
    json!({ "Version": "2012-10-17", "Statement": statements }).to_string()
}

/// The policy of a bucket that refuses everybody without TLS and allows nothing.
pub(crate) fn tls_only_bucket_policy(partition: &str, bucket: &str) -> String {
    let bucket = format!("arn:{partition}:s3:::{bucket}");
    let objects = format!("{bucket}/*");
    let statement = json!({
        "Sid": "DenyInsecureTransport",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": [bucket, objects],
        "Condition": { "Bool": { "aws:SecureTransport": "false" } },
    });
    json!({ "Version": "2012-10-17", "Statement": [statement] }).to_string()
}

/// `text` as the value of a tag: what AWS does not allow there becomes `_`.
///
/// Of letters and digits only those of ASCII stay. AWS takes more, but draws the line elsewhere than Rust
/// (combining marks), other stores take fewer, and one refused character would fail the whole provision.
pub(crate) fn tag_value(text: &str) -> String {
    let allowed = |it: char| it.is_ascii_alphanumeric() || " +-=._:/@".contains(it);
    text.chars().take(TAG_VALUE_CHARACTERS_MAX).map(|it| if allowed(it) { it } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What IAM allows for all inline policies of a user, white space not counted.
    const INLINE_POLICY_CHARACTERS_MAX: usize = 2_048;

    #[test]
    fn the_longest_policy_fits() {
        let bucket = "b".repeat(63);
        let account = "RGW12345678901234567"; // longer than an account of AWS
        let names = ["mrk-1234567890abcdef1234567890abcdef".to_owned(), format!("alias/{}", "a".repeat(250))];
        let places =
            [("aws-iso-f", "us-isof-south-1"), ("aws-iso-b", "us-isob-east-1"), ("aws-cn", "cn-northwest-1")];
        for (partition, region) in places {
            for name in &names {
                for account in [None, Some(account)] {
                    let key = KmsKey::parse(name, partition, region, account).unwrap();
                    let policy = tenant_policy(partition, &bucket, Some(&key));
                    assert!(policy.len() < INLINE_POLICY_CHARACTERS_MAX, "{}: {policy}", policy.len());
                    assert!(!policy.contains(['\n', ' ']), "{policy}");
                }
            }
        }
    }

    #[test]
    fn a_tenant_may_use_one_bucket_and_change_nothing_of_it() {
        let policy: Value = serde_json::from_str(&tenant_policy("aws-us-gov", "osb-u1", None)).unwrap();
        let statements = policy["Statement"].as_array().unwrap();
        assert_eq!(statements.len(), 2);
        assert_eq!(statements[0]["Resource"], "arn:aws-us-gov:s3:::osb-u1");
        assert_eq!(statements[1]["Resource"], "arn:aws-us-gov:s3:::osb-u1/*");
        for statement in statements {
            assert_eq!(statement["Effect"], "Allow");
            for action in statement["Action"].as_array().unwrap() {
                let action = action.as_str().unwrap();
                let wide = [
                    "s3:*",
                    "s3:Put*",
                    "s3:DeleteBucket",
                    "s3:PutBucketPolicy",
                    "s3:PutEncryptionConfiguration",
                ];
                assert!(!wide.contains(&action) && !action.contains("Acl"), "{action}");
            }
        }
    }

    #[test]
    fn keys_are_named_in_four_ways() {
        let key = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab";
        let any = "arn:aws:kms:eu-central-1:*:key/*";
        let all = "arn:aws:kms:eu-central-1:111122223333:key/*";
        let alias = "arn:aws:kms:eu-central-1:111122223333:alias/a_b/c";
        let mine = Some("111122223333");
        let cases = [
            (key, None, key, key, None),
            (key, Some("444455556666"), key, key, None),
            ("1234abcd-12ab", mine, key, key, None),
            ("1234abcd-12ab", None, "1234abcd-12ab", "arn:aws:kms:eu-central-1:*:key/1234abcd-12ab", None),
            (alias, None, alias, all, Some("alias/a_b/c")),
            ("alias/a_b/c", mine, alias, all, Some("alias/a_b/c")),
            ("alias/a_b/c", None, "alias/a_b/c", any, Some("alias/a_b/c")),
        ];
        for (text, account, sent, resource, alias) in cases {
            let key = KmsKey::parse(text, "aws", "eu-central-1", account).unwrap();
            assert_eq!((key.master_key_id(), key.resource.as_str()), (sent, resource), "{text}");
            let policy: Value = serde_json::from_str(&tenant_policy("aws", "b", Some(&key))).unwrap();
            let statement = &policy["Statement"][2];
            assert_eq!(statement["Resource"], resource);
            let condition = &statement["Condition"];
            assert_eq!(condition["StringEquals"]["kms:ViaService"], "s3.eu-central-1.amazonaws.com");
            let aliases = &condition["ForAnyValue:StringEquals"]["kms:ResourceAliases"];
            assert_eq!(aliases.as_str(), alias, "{text}");
        }
    }

    #[test]
    fn only_the_same_key_is_the_same() {
        let key = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab";
        let alias = "arn:aws:kms:eu-central-1:111122223333:alias/a";
        for (one, other, same) in [
            (key, key, true),
            (key, "1234abcd-12ab", true),
            (key, "1234abcd-12ac", false),
            (key, "arn:aws:kms:eu-central-1:444455556666:key/1234abcd-12ab", false),
            (key, alias, false),
            ("1234abcd-12ab", "alias/a", false),
            (alias, "alias/a", true),
            (alias, "alias/b", false),
        ] {
            let read = |text: &str| KmsKey::parse(text, "aws", "eu-central-1", None).unwrap();
            assert_eq!(read(one).is(&read(other)), same, "{one} {other}");
            assert_eq!(read(other).is(&read(one)), same, "{other} {one}");
        }
    }

    #[test]
    fn what_names_no_key_here_is_refused() {
        let long = format!("alias/{}", "a".repeat(300));
        let cases = [
            ("", KmsKeyError::Form),
            ("*", KmsKeyError::Form),
            ("key/*", KmsKeyError::Form),
            ("alias/", KmsKeyError::Form),
            ("alias/*", KmsKeyError::Form),
            ("alias/a\"b", KmsKeyError::Form),
            (&long, KmsKeyError::Form),
            ("arn:aws:kms:eu-central-1:111122223333:key/*", KmsKeyError::Form),
            ("arn:aws:kms:eu-central-1:111122223333:1234", KmsKeyError::Form),
            ("arn:aws:kms:eu-central-1:*:key/1234", KmsKeyError::Form),
            ("arn:aws:s3:::b", KmsKeyError::Form),
            ("arn:aws:kms:us-east-1:111122223333:key/1234", KmsKeyError::Elsewhere),
            ("arn:aws-cn:kms:eu-central-1:111122223333:key/1234", KmsKeyError::Elsewhere),
        ];
        for (text, error) in cases {
            assert_eq!(KmsKey::parse(text, "aws", "eu-central-1", None), Err(error), "{text}");
        }
    }

    #[test]
    fn the_bucket_policy_only_denies() {
        let policy: Value = serde_json::from_str(&tls_only_bucket_policy("aws-cn", "b")).unwrap();
        let statement = &policy["Statement"][0];
        assert_eq!(statement["Effect"], "Deny");
        assert_eq!(statement["Resource"], json!(["arn:aws-cn:s3:::b", "arn:aws-cn:s3:::b/*"]));
        assert_eq!(statement["Condition"]["Bool"]["aws:SecureTransport"], "false");
        assert_eq!(policy["Statement"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn tag_values_are_made_to_fit() {
        let cases =
            [("a b+-=._:/@9", "a b+-=._:/@9"), ("<x>\n\"&;,", "_x______"), ("Zürich", "Z_rich"), ("", "")];
        for (text, expected) in cases {
            assert_eq!(tag_value(text), expected);
        }
        assert_eq!(tag_value(&"é".repeat(300)).chars().count(), TAG_VALUE_CHARACTERS_MAX);
    }
}
