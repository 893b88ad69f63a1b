//! What AWS refuses in a call by itself, and engines let pass.
//!
//! Sources: IAM API Reference, CreateUser, PutUserPolicy, `Tag`; IAM User Guide, "Grammar of the IAM JSON policy
//! language"; S3 API Reference, DeleteObjects and the operations in [`NEED_CHECKSUM`]; S3 User Guide, "Bucket naming
//! rules", "Categorizing your bucket with tags"; botocore's service models for lengths and patterns.

use base64::Engine;
use md5::{Digest, Md5};

use super::account::{Account, between};
use super::call::Call;
use super::policy;
use super::refusal::Refusal;
use super::wire::Request;

/// Calls whose body must come with a checksum (`requestChecksumRequired` in the models).
const NEED_CHECKSUM: [&str; 11] = [
    "DeleteObjects",
    "PutBucketAcl",
    "PutBucketCors",
    "PutBucketEncryption",
    "PutBucketLifecycleConfiguration",
    "PutBucketOwnershipControls",
    "PutBucketPolicy",
    "PutBucketTagging",
    "PutBucketVersioning",
    "PutObjectTagging",
    "PutPublicAccessBlock",
];
/// Calls that without a user act on the caller's own.
const NEED_USER: [&str; 12] = [
    "CreateAccessKey",
    "CreateUser",
    "DeleteAccessKey",
    "DeleteUser",
    "DeleteUserPolicy",
    "DetachUserPolicy",
    "GetUser",
    "ListAccessKeys",
    "ListAttachedUserPolicies",
    "ListUserPolicies",
    "PutUserPolicy",
    "UpdateAccessKey",
];
/// Keys in one DeleteObjects.
const OBJECTS_MAX: usize = 1_000;
/// Tags of a user, tags of a bucket.
const TAGS_MAX: usize = 50;

/// Checks a call without asking anybody.
pub(crate) fn check(call: &Call, request: &Request, account: &Account) -> Result<(), Refusal> {
    if !call.is_s3() {
        return check_iam(call);
    }
    check_signed_headers(call, request)?;
    check_checksum(call, request)?;
    let body = String::from_utf8_lossy(&request.body);
    match call.operation.as_str() {
        "CreateBucket" => check_bucket_name(call.bucket.as_deref().unwrap_or_default()),
        "DeleteObjects" => match body.matches("<Object>").count() {
            0 => Err(malformed_xml("DeleteObjects without objects")),
            count if count > OBJECTS_MAX => Err(malformed_xml("more than 1000 objects")),
            _ => Ok(()),
        },
        "PutBucketTagging" => {
            let tags = body.split("<Tag>").skip(1).map(|tag| {
                let part =
                    |name| between(tag, &format!("<{name}>"), &format!("</{name}>")).unwrap_or_default();
                (part("Key").to_owned(), part("Value").to_owned())
            });
            check_tags(&tags.collect::<Vec<_>>()).map_err(|it| Refusal::violation(400, "InvalidTag", it))
        }
        "PutBucketPolicy" => {
            let bucket = call.bucket.as_deref().unwrap_or_default();
            let checked = policy::check_bucket_policy(&body, bucket, account);
            checked.map_err(|it| Refusal::violation(400, "MalformedPolicy", it))
        }
        _ => Ok(()),
    }
}

/// Every header that S3 acts on must be covered by the signature.
fn check_signed_headers(call: &Call, request: &Request) -> Result<(), Refusal> {
    let lines = request.head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    for (name, _) in lines {
        let name = name.to_ascii_lowercase();
        let counts = name.starts_with("x-amz-") || matches!(name.as_str(), "host" | "content-md5");
        if counts && !call.signed_headers.contains(&name) {
            let message = format!("There were headers present in the request which were not signed: {name}");
            return Err(Refusal::violation(403, "AccessDenied", message));
        }
    }
    Ok(())
}

/// The checksum must be there where it is asked for, and right where it is there.
fn check_checksum(call: &Call, request: &Request) -> Result<(), Refusal> {
    let Some(md5) = request.header("content-md5") else {
        let kinds = ["crc32", "crc32c", "crc64nvme", "sha1", "sha256"];
        let other = kinds.iter().any(|kind| request.header(&format!("x-amz-checksum-{kind}")).is_some());
        let is_missing = NEED_CHECKSUM.contains(&call.operation.as_str()) && !other;
        return match is_missing {
            true => Err(Refusal::violation(
                400,
                "InvalidRequest",
                "Missing required header for this request: Content-MD5 OR x-amz-checksum-*",
            )),
            false => Ok(()),
        };
    };
    let own = base64::engine::general_purpose::STANDARD.encode(Md5::digest(&request.body));
    match md5 == own {
        true => Ok(()),
        false => Err(Refusal::violation(
            400,
            "BadDigest",
            "The Content-MD5 you specified did not match what we received.",
        )),
    }
}

/// Names that S3 gives to buckets.
fn check_bucket_name(name: &str) -> Result<(), Refusal> {
    let allowed = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || matches!(it, '-' | '.');
    let inner = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit();
    let is_good = (3..=63).contains(&name.len())
        && name.chars().all(allowed)
        && name.starts_with(inner)
        && name.ends_with(inner)
        && !name.contains("..")
        && !["xn--", "sthree-", "amzn-s3-demo-"].iter().any(|it| name.starts_with(it))
        && !["-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3"].iter().any(|it| name.ends_with(it))
        && name.parse::<std::net::Ipv4Addr>().is_err();
    match is_good {
        true => Ok(()),
        false => Err(Refusal::violation(400, "InvalidBucketName", "The specified bucket is not valid.")),
    }
}

/// Names, sizes and documents of IAM.
fn check_iam(call: &Call) -> Result<(), Refusal> {
    let invalid = |what: &str| Err(Refusal::violation(400, "ValidationError", what));
    let is_name = |text: &str, characters_max: usize| {
        let allowed = |it: char| it.is_ascii_alphanumeric() || "_+=,.@-".contains(it);
        (1..=characters_max).contains(&text.len()) && text.chars().all(allowed)
    };
    let operation = call.operation.as_str();
    match call.parameter("UserName") {
        None if NEED_USER.contains(&operation) => {
            return invalid("no UserName: it would be the caller's own");
        }
        Some(name) if !is_name(name, if operation == "CreateUser" { 64 } else { 128 }) => {
            return invalid("UserName");
        }
        _ => {}
    }
    if let Some(path) = call.parameter("Path")
        && !(path == "/" || is_path(path))
    {
        return invalid("Path");
    }
    if call.parameter("PolicyName").is_some_and(|it| !is_name(it, 128)) {
        return invalid("PolicyName");
    }
    let is_key = |it: &str| {
        (16..=128).contains(&it.len()) && it.chars().all(|it| it.is_ascii_alphanumeric() || it == '_')
    };
    if call.parameter("AccessKeyId").is_some_and(|it| !is_key(it)) {
        return invalid("AccessKeyId");
    }
    let is_arn = |it: &str| (20..=2_048).contains(&it.len()) && it.starts_with("arn:");
    if ["PolicyArn", "PermissionsBoundary"].iter().any(|it| call.parameter(it).is_some_and(|it| !is_arn(it)))
    {
        return invalid("an ARN");
    }
    if let Some(document) = call.parameter("PolicyDocument") {
        policy::check_identity_policy(document)
            .map_err(|it| Refusal::violation(400, "MalformedPolicyDocument", it))?;
    }
    let tag = |number: usize, part: &str| call.parameter(&format!("Tags.member.{number}.{part}"));
    let tags = (1..).map_while(|number| {
        Some((tag(number, "Key")?.to_owned(), tag(number, "Value").unwrap_or_default().to_owned()))
    });
    check_tags(&tags.collect::<Vec<_>>()).map_err(|it| Refusal::violation(400, "InvalidInput", it))
}

/// `/a/`, of printable characters.
fn is_path(path: &str) -> bool {
    (3..=512).contains(&path.len())
        && path.starts_with('/')
        && path.ends_with('/')
        && path.bytes().all(|it| (0x21..=0x7E).contains(&it))
}

/// How many tags, how long, of which characters.
fn check_tags(tags: &[(String, String)]) -> Result<(), String> {
    let allowed = |it: char| it.is_alphanumeric() || it == ' ' || "_.:/=+-@".contains(it);
    if tags.len() > TAGS_MAX {
        return Err("more than 50 tags".to_owned());
    }
    for (number, (key, value)) in tags.iter().enumerate() {
        let (key_length, value_length) = (key.chars().count(), value.chars().count());
        if !(1..=128).contains(&key_length) || value_length > 256 {
            return Err(format!("the tag {key:?} is too long"));
        }
        if !key.chars().chain(value.chars()).all(allowed) || key.to_ascii_lowercase().starts_with("aws:") {
            return Err(format!("the tag {key:?} has characters that are not allowed"));
        }
        if tags.iter().take(number).any(|(other, _)| other.eq_ignore_ascii_case(key)) {
            return Err(format!("the tag {key:?} is there twice"));
        }
    }
    Ok(())
}

/// A body that S3 does not take.
fn malformed_xml(what: &str) -> Refusal {
    Refusal::violation(400, "MalformedXML", what)
}
