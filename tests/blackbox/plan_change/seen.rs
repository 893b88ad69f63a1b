//! A plan changes in the row, and for the platform, only when AWS shows that the bucket keeps what it promises.

use super::*;

/// What AWS shows of the encryption.
fn encryption(algorithm: &str) -> String {
    format!(
        "<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>{algorithm}\
         </SSEAlgorithm></ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>"
    )
}

/// What AWS shows of a rule for old versions, and what moves.
fn lifecycle(status: &str, days: u32, class: &str) -> String {
    format!(
        "<LifecycleConfiguration><Rule><ID>versioned</ID><Status>{status}</Status><NoncurrentVersionExpiration>\
         <NoncurrentDays>{days}</NoncurrentDays></NoncurrentVersionExpiration><Transition><Days>30</Days>\
         <StorageClass>{class}</StorageClass></Transition></Rule></LifecycleConfiguration>"
    )
}

/// What AWS shows of the versioning.
fn versioning(status: &str) -> String {
    format!("<VersioningConfiguration><Status>{status}</Status></VersioningConfiguration>")
}

/// AWS has no such setting.
fn none(code: &str) -> Fault {
    Fault::Status(404, format!("<Error><Code>{code}</Code><Message>none</Message></Error>"))
}

#[test]
fn a_change_that_aws_does_not_show_is_not_one() {
    const NO_ENCRYPTION: &str = "ServerSideEncryptionConfigurationNotFoundError";
    let shows = |text: String| Fault::Status(200, text);
    let encrypts = [BASIC, SHIELD, "GetBucketEncryption", "AWS does not show the encryption yet"];
    let keeps = [BASIC, VERSIONED, "GetBucketVersioning", "AWS does not show the versioning yet"];
    let expires =
        [BASIC, VERSIONED, "GetBucketLifecycleConfiguration", "AWS does not show the versioning yet"];
    let still_encrypts = [SHIELD, BASIC, "GetBucketEncryption", "AWS shows the encryption still"];
    let still_keeps = [VERSIONED, BASIC, "GetBucketVersioning", "AWS shows the versioning still"];
    let still_moves = [VERSIONED, BASIC, "GetBucketLifecycleConfiguration", "AWS shows the versioning still"];
    let cases = [
        (encrypts, none(NO_ENCRYPTION)),
        (encrypts, shows(encryption("AES256"))),
        (encrypts, shows(encryption("aws:kms"))), // with AWS' own key, not with the plan's
        (still_encrypts, shows(encryption("aws:kms"))),
        (keeps, shows(versioning("Suspended"))),
        (expires, none("NoSuchLifecycleConfiguration")),
        (expires, shows(lifecycle("Disabled", 180, "STANDARD_IA"))),
        (expires, shows(lifecycle("Enabled", 90, "STANDARD_IA"))),
        (expires, shows(lifecycle("Enabled", 180, "GLACIER"))),
        (still_moves, shows(lifecycle("Enabled", 180, "STANDARD_IA"))),
        (still_keeps, shows(versioning("Enabled"))),
    ];
    for_each(0..cases.len(), |number| {
        let ([from, to, call, says], shown) = &cases[number];
        let (relay, what) = (relay(), format!("{call}: {shown:?}"));
        let key = kms_key("1234-abcd");
        let setup = Setup::new().with("WAIT_SECONDS", "0").with("AWS_KMS_KEY_ID", &key).through(&relay);
        let (api, _worker) = (setup.api(&[]), setup.worker());
        api.provide("one", from);
        relay.plan(Point::Every((*call).to_owned()), When::Before, shown.clone());
        assert_eq!(api.change("one", to).status, 202, "{what}");
        let kept = format!("{from} modifying");
        eventually("AWS was looked at again and again, or the row has changed", PATIENCE, || {
            (relay.struck() >= 3 || row(&setup) != kept).then_some(())
        });
        assert_eq!(row(&setup), kept, "{what}");
        // Three looks may be of one run, which says so only when it ends.
        let expected = json!({ "state": "in progress", "description": says });
        eventually(&format!("{what}: it is told"), PATIENCE, || {
            (api.get("/v2/service_instances/one/last_operation").json == expected).then_some(())
        });
        relay.calm_down();
        api.wait_for_state("one", "succeeded");
        assert_eq!(row(&setup), format!("{to} available"), "{what}");
    });
}

#[test]
fn what_aws_does_not_show_yet_is_put_back_too() {
    let relay = relay();
    let setup = Setup::new().through(&relay);
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    let bucket = setup.database.text("select name from resources").unwrap();
    relay.count_anew();
    relay.plan(Point::Every("PutBucketLifecycleConfiguration".into()), When::Before, access_denied());
    let never_on = Fault::Status(200, "<VersioningConfiguration/>".to_owned());
    relay.plan(Point::Named("GetBucketVersioning".into(), 1), When::Before, never_on);
    let answer = api.change("one", SHIELD_VERSIONED);
    assert_eq!(answer.status, 422, "{}", answer.text);
    assert!(!answer.text.contains("put back"), "{}", answer.text);
    assert_eq!((row(&setup), promises(&bucket)), (format!("{BASIC} available"), (false, false, false)));
}
