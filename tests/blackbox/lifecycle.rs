//! The main job, as a platform and an app see it, for each plan; read back from AWS by its administrator.

use std::process::Output;

use serde_json::Value;

use crate::support::*;

/// Files of a test, removed at the end.
struct Folder(std::path::PathBuf);

impl Folder {
    fn create() -> Folder {
        let path = std::env::temp_dir().join(unique());
        std::fs::create_dir(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// An app with the credentials of its binding.
struct App<'a>(&'a Value);

impl App<'_> {
    fn bucket(&self) -> &str {
        self.0["S3_BUCKET"].as_str().unwrap()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let text = |name: &str| self.0[name].as_str().unwrap();
        aws(text("S3_ACCESS_KEY"), text("S3_SECRET_KEY"), arguments)
    }

    fn succeeds(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Where the emulator knows whom to refuse.
    fn is_refused(&self, arguments: &[&str]) {
        if !checks_permissions() {
            return;
        }
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        let refused = ["AccessDenied", "Forbidden", "403"].iter().any(|it| errors.contains(it));
        assert!(!output.status.success() && refused, "{arguments:?}: {errors}");
    }
}

/// What the administrator reads of a bucket with one of its settings.
fn read(bucket: &str, question: &str) -> Value {
    let output = try_admin(&["s3api", question, "--bucket", bucket]);
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

/// Sees that AWS holds what the plan promises, and nothing that it does not.
fn check_promises(bucket: &str, versioned: bool, encrypted: bool, broker: &str) {
    let status = &read(bucket, "get-bucket-versioning")["Status"];
    assert_eq!(status == "Enabled", versioned, "{status}");
    let lifecycle = read(bucket, "get-bucket-lifecycle-configuration");
    if versioned {
        let rule = &lifecycle["Rules"][0];
        assert_eq!(rule["Status"], "Enabled");
        assert_eq!(rule["NoncurrentVersionExpiration"]["NoncurrentDays"], 180);
        assert_eq!(rule["NoncurrentVersionTransitions"][0]["StorageClass"], "STANDARD_IA");
        assert_eq!(rule["NoncurrentVersionTransitions"][0]["NoncurrentDays"], 30);
        assert_eq!(rule["Transitions"][0]["Days"], 30);
        assert_eq!(rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"], 7);
    } else {
        assert_eq!(lifecycle["Rules"], Value::Null);
    }
    let encryption = read(bucket, "get-bucket-encryption");
    let rule = &encryption["ServerSideEncryptionConfiguration"]["Rules"][0];
    let algorithm = &rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"];
    assert_eq!(algorithm == "aws:kms", encrypted, "{encryption}");
    assert_eq!(rule["BucketKeyEnabled"] == true, encrypted);
    let block = &read(bucket, "get-public-access-block")["PublicAccessBlockConfiguration"];
    for part in ["BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"] {
        assert_eq!(block[part], true, "{block}");
    }
    let ownership = &read(bucket, "get-bucket-ownership-controls")["OwnershipControls"]["Rules"][0];
    assert_eq!(ownership["ObjectOwnership"], "BucketOwnerEnforced");
    let tags = read(bucket, "get-bucket-tagging")["TagSet"].to_string();
    assert!(tags.contains("billingcode") && tags.contains("our org"), "{tags}");
    let of_user = admin(&["iam", "list-user-tags", "--user-name", bucket])["Tags"].to_string();
    for tags in [tags, of_user] {
        assert!(tags.contains("\"servicebroker\"") && tags.contains(broker), "{tags}");
    }
}

/// The app's whole day with its bucket, and what it may not do with another's.
fn use_bucket(app: &App<'_>, other: &App<'_>) {
    let folder = Folder::create();
    let (sent, got) = (folder.file("sent"), folder.file("got"));
    let bytes: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&sent, &bytes).unwrap();
    let object = format!("s3://{}/a key/with ünicode+&.bin", app.bucket());
    app.succeeds(&["s3", "cp", &sent, &object]);
    app.succeeds(&["s3", "cp", &object, &got]);
    assert!(std::fs::read(&got).unwrap() == bytes, "what was put is not what was got");
    assert!(app.succeeds(&["s3", "ls", "--recursive", app.bucket()]).contains("ünicode+&.bin"));
    let theirs = format!("s3://{}/theirs", other.bucket());
    other.succeeds(&["s3", "cp", &sent, &theirs]);
    app.is_refused(&["s3", "ls", other.bucket()]);
    app.is_refused(&["s3api", "get-object", "--bucket", other.bucket(), "--key", "theirs", &got]);
    app.is_refused(&["s3", "cp", &sent, &format!("s3://{}/mine", other.bucket())]);
    let (copied, own) = (format!("{}/theirs", other.bucket()), app.bucket());
    app.is_refused(&["s3api", "copy-object", "--copy-source", &copied, "--bucket", own, "--key", "stolen"]);
    app.is_refused(&["s3api", "delete-bucket", "--bucket", own]);
    app.is_refused(&[
        "s3api",
        "put-bucket-versioning",
        "--bucket",
        own,
        "--versioning-configuration",
        "Status=Suspended",
    ]);
    app.is_refused(&["s3api", "list-buckets"]);
    app.is_refused(&["iam", "list-access-keys", "--user-name", own]);
    app.succeeds(&["s3", "rm", &object]);
    assert!(!app.succeeds(&["s3", "ls", "--recursive", own]).contains("ünicode"));
}

fn whole_life(plan: &str, versioned: bool, encrypted: bool) {
    let setup = Setup::new();
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("one", plan);
    api.provide("two", BASIC);
    let (one, two) = (api.bind("one", "app-space"), api.bind("two", "app-space"));
    let (app, other) = (App(&one), App(&two));
    assert_eq!(one["S3_REGION"], setting("TEST_AWS_REGION"));
    assert_eq!(one["S3_ENDPOINT"], setting("TEST_AWS_ENDPOINT_URL"));
    assert!(one.as_object().unwrap().values().all(Value::is_string), "Akkeris needs text only");
    let broker = setup.database.text("select id::text from broker").unwrap();
    check_promises(app.bucket(), versioned, encrypted, &broker);
    use_bucket(&app, &other);
    let user = admin(&["iam", "list-access-keys", "--user-name", app.bucket()]);
    assert_eq!(user["AccessKeyMetadata"].as_array().unwrap().len(), 1);
    let unbound = api.delete(&format!(
        "/v2/service_instances/one/service_bindings/app-space?service_id={SERVICE}&plan_id={plan}"
    ));
    assert_eq!((unbound.status, unbound.text.as_str()), (200, "{}"));
    let bucket = app.bucket();
    let upload = ["s3api", "create-multipart-upload", "--bucket", bucket, "--key", "unfinished/ü"];
    admin(&upload);
    api.remove("one", plan);
    api.remove("two", BASIC);
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
    let kept = "select count(*)::text from resources where username is not null or password is not null or not deleted";
    assert_eq!(setup.database.text(kept).as_deref(), Some("0"));
}

#[test]
fn a_basic_bucket_lives_and_dies() {
    whole_life(BASIC, false, false);
}

#[test]
fn a_versioned_bucket_lives_and_dies() {
    whole_life(VERSIONED, true, false);
}

#[test]
fn a_shield_bucket_lives_and_dies() {
    whole_life(SHIELD, false, true);
}

#[test]
fn a_shield_versioned_bucket_lives_and_dies() {
    whole_life(SHIELD_VERSIONED, true, true);
}

#[test]
fn a_named_kms_key_is_the_buckets_and_the_tenant_may_use_it() {
    let key = "arn:aws:kms:us-west-2:123456789012:key/11111111-2222-4333-8444-555555555555";
    let setup = Setup::new().with("AWS_KMS_KEY_ID", key);
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("one", SHIELD);
    let credentials = api.bind("one", "b");
    let bucket = credentials["S3_BUCKET"].as_str().unwrap();
    let encryption = read(bucket, "get-bucket-encryption");
    let rule =
        &encryption["ServerSideEncryptionConfiguration"]["Rules"][0]["ApplyServerSideEncryptionByDefault"];
    assert_eq!(rule["KMSMasterKeyID"], key);
    let policy =
        admin(&["iam", "get-user-policy", "--user-name", bucket, "--policy-name", "bucket"]).to_string();
    assert!(
        policy.contains(key) && policy.contains("kms:Decrypt") && policy.contains("kms:ViaService"),
        "{policy}"
    );
    api.remove("one", SHIELD);
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}

#[test]
fn no_secret_reaches_a_log() {
    let setup = Setup::new();
    let (api, worker) = (setup.api(&["-v", "2"]), setup.worker());
    api.provide("one", BASIC);
    let credentials = api.bind("one", "b");
    api.remove("one", BASIC);
    let tenant = credentials["S3_SECRET_KEY"].as_str().unwrap().to_owned();
    let password = setup.database.url().split(['@', ':']).nth(2).unwrap().to_owned();
    for secret in [tenant, setting("TEST_AWS_SECRET_ACCESS_KEY"), "let-me-in".to_owned(), password] {
        assert!(!secret.is_empty());
        assert!(!api.log().contains(&secret) && !worker.log().contains(&secret), "{secret} was logged");
    }
}
