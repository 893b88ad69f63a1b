//! Sources as they answer, fail and change.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::super::stub::{self, Calls, Reply, Stub};
use super::super::{Aws, Permit};
use super::*;
use crate::config::{SharedFile, WebIdentity};

const LOCATION: &str = "<LocationConstraint>EU</LocationConstraint>";
const GOOD: Reply = Reply::Answer(200, LOCATION);
const EXPIRED: Reply = Reply::Answer(400, "<Error><Code>ExpiredToken</Code></Error>");
const TOKEN: Reply = Reply::Answer(200, "planted-session");
const ROLE: Reply = Reply::Answer(200, "role one\n");

/// Allows everything.
pub(super) struct Always;

impl Permit for Always {
    fn may_call(&self, _operation: &'static str) -> bool {
        true
    }
}

/// A script that lives as long as the tests.
pub(super) fn script(replies: Vec<Reply>) -> &'static [Reply] {
    replies.leak()
}

/// A document with a key that ends so many minutes from now.
fn document(id: &str, minutes: i64) -> Reply {
    let end = Timestamp::now() + SignedDuration::from_mins(minutes);
    let text = format!(
        "{{\"Code\":\"Success\",\"AccessKeyId\":\"{id}\",\"SecretAccessKey\":\"planted-secret\",\
         \"Token\":\"planted-{id}\",\"Expiration\":\"{end}\"}}"
    );
    Reply::Answer(200, text.leak())
}

/// What the metadata answer to one look.
fn look(key: Reply) -> Vec<Reply> {
    vec![TOKEN, ROLE, key]
}

/// AWS at a stub, whose caller finds its key in the metadata at another.
fn with_metadata(aws: &Stub, metadata: &Stub) -> Aws {
    let metadata_endpoint = Some(format!("http://127.0.0.1:{}/", metadata.port));
    let sources = KeySources { metadata_endpoint, ..KeySources::default() };
    stub::aws(Duration::from_millis(2_500), aws.port, sources)
}

/// Makes the next need look again at once.
pub(super) fn forget_the_last_look(aws: &Aws) {
    aws.keyring.state().looked_at = None;
}

/// The key ids in the signatures of S3 requests, in order.
pub(super) fn signers(stub: &Stub) -> Vec<String> {
    let requests = stub.requests();
    let ids = requests.iter().filter_map(|it| it.split("X-Amz-Credential=").nth(1)?.split('%').next());
    ids.map(str::to_owned).collect()
}

/// A file of the test's own, removed at the end.
pub(super) struct File(PathBuf);

impl File {
    /// Makes one that holds `text`.
    pub(super) fn new(text: &str) -> File {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("servicebroker-{}-{}", std::process::id(), COUNT.fetch_add(1, SeqCst));
        let file = File(std::env::temp_dir().join(name));
        file.write(text);
        file
    }

    /// Replaces what it holds.
    fn write(&self, text: &str) {
        std::fs::write(&self.0, text).unwrap();
    }

    /// Where it is.
    pub(super) fn path(&self) -> String {
        self.0.to_str().unwrap().to_owned()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap_or_default();
    }
}

/// A file that is where such files are, or one that somebody chose.
pub(super) fn shared(path: String, is_chosen: bool) -> Option<SharedFile> {
    Some(SharedFile { path, is_chosen })
}

#[test]
fn only_the_id_can_be_printed() {
    let key = Credentials {
        session_token: Some(Secret::new("planted-token")),
        ..Credentials::lasting("AKIDEXAMPLE", &Secret::new("planted-secret"))
    };
    let shown = format!("{key:?}");
    assert!(shown.contains("AKIDEXAMPLE") && !shown.contains("planted"), "{shown}");
}

#[test]
fn the_role_of_the_machine_is_asked_for_once_and_signs_with_its_token() {
    let (s3, metadata) = (Stub::start(&[GOOD]), Stub::start(script(look(document("ASIA1", 60)))));
    let aws = with_metadata(&s3, &metadata);
    for _ in 0..3 {
        aws.caller(&Always).get_bucket_location("b").unwrap();
    }
    assert_eq!(signers(&s3), ["ASIA1"; 3]);
    assert!(s3.requests()[0].contains("X-Amz-Security-Token=planted-ASIA1"));
    let asked = metadata.requests();
    assert_eq!(asked.len(), 3);
    assert!(asked[0].starts_with("PUT /latest/api/token HTTP/1.1\r\n"), "{asked:?}");
    assert!(asked[0].contains("x-aws-ec2-metadata-token-ttl-seconds: "));
    assert!(asked[1].starts_with("GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\n"));
    assert!(asked[2].starts_with("GET /latest/meta-data/iam/security-credentials/role%20one HTTP/1.1\r\n"));
    assert!(asked[1..].iter().all(|it| it.contains("x-aws-ec2-metadata-token: planted-session\r\n")));
}

#[test]
fn a_key_is_renewed_before_its_end_and_used_until_then() {
    let mut replies = look(document("ASIA1", 4));
    replies.push(Reply::Close);
    let (s3, metadata) = (Stub::start(&[GOOD]), Stub::start(script(replies)));
    let aws = with_metadata(&s3, &metadata);
    let ask = || aws.caller(&Always).get_bucket_location("b");
    ask().unwrap();
    forget_the_last_look(&aws);
    ask().unwrap(); // the look failed, the key is still good
    assert_eq!(metadata.requests().len(), 4);
    ask().unwrap(); // and the failure is remembered
    assert_eq!((signers(&s3), metadata.requests().len()), (vec!["ASIA1".to_owned(); 3], 4));

    let replies = [look(document("ASIA1", 4)), look(document("ASIA2", 60))].concat();
    let (s3, metadata) = (Stub::start(&[GOOD]), Stub::start(script(replies)));
    let aws = with_metadata(&s3, &metadata);
    aws.caller(&Always).get_bucket_location("b").unwrap();
    forget_the_last_look(&aws);
    aws.caller(&Always).get_bucket_location("b").unwrap();
    assert_eq!(signers(&s3), ["ASIA1", "ASIA2"]);
}

#[test]
fn without_a_key_nothing_is_sent_and_nobody_is_asked_again_and_again() {
    let mut over = look(document("ASIA1", -1));
    over.push(Reply::Answer(500, ""));
    let scripts = [
        vec![Reply::Answer(403, "")],
        vec![TOKEN, Reply::Answer(404, "")],
        vec![TOKEN, Reply::Answer(200, "")],
        look(Reply::Answer(
            200,
            "{\"Code\":\"Failed\",\"AccessKeyId\":\"A\",\"SecretAccessKey\":\"s\",\"Token\":\"t\"}",
        )),
        look(Reply::Answer(200, "{\"AccessKeyId\":\"A\",\"SecretAccessKey\":\"planted-secret\"}")),
        look(Reply::Answer(
            200,
            "{\"AccessKeyId\":\"A\",\"SecretAccessKey\":\"s\",\"Token\":\"t\",\"Expiration\":\"?\"}",
        )),
        look(Reply::Answer(200, "<html>planted-secret")),
        vec![Reply::Close],
    ];
    for replies in scripts {
        let (s3, metadata) = (Stub::start(&[GOOD]), Stub::start(script(replies)));
        let aws = with_metadata(&s3, &metadata);
        for _ in 0..2 {
            let error = aws.caller(&Always).get_bucket_location("b").unwrap_err();
            let shown = error.to_string();
            assert!(shown.starts_with("no credentials operation=GetBucketLocation"), "{shown}");
            assert!(
                error.is_transient() && !shown.contains("planted") && !shown.contains("http:"),
                "{shown}"
            );
        }
        assert!(s3.requests().is_empty());
        assert!(metadata.requests().len() <= 3, "{:?}", metadata.requests());
    }
    let (s3, metadata) = (Stub::start(&[GOOD]), Stub::start(script(over)));
    let aws = with_metadata(&s3, &metadata);
    assert!(aws.caller(&Always).get_bucket_location("b").is_ok()); // the source has reasons
    forget_the_last_look(&aws);
    assert!(aws.caller(&Always).get_bucket_location("b").is_err());
}

#[test]
fn metadata_that_do_not_answer_are_given_a_second() {
    let (s3, metadata) = (Stub::start(&[GOOD]), Stub::start(&[Reply::Silence]));
    let aws = with_metadata(&s3, &metadata);
    let began = Instant::now();
    let error = aws.caller(&Always).get_bucket_location("b").unwrap_err();
    assert!(matches!(error, AwsError::NoCredentials { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_millis(1_500), "{:?}", began.elapsed());
}

#[test]
fn many_threads_make_one_look() {
    let (s3, metadata) = (Stub::start(&[GOOD]), Stub::start(script(look(document("ASIA1", 60)))));
    let aws = with_metadata(&s3, &metadata);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| aws.caller(&Always).get_bucket_location("b").unwrap());
        }
    });
    assert_eq!((s3.requests().len(), metadata.requests().len()), (16, 3));
}

#[test]
fn who_waits_for_another_s_look_waits_no_longer_than_its_own_call() {
    let metadata = Stub::start(&[Reply::Silence]);
    let (s3, sources) = (Stub::start(&[GOOD]), KeySources::default());
    let metadata_endpoint = Some(format!("http://127.0.0.1:{}", metadata.port));
    let aws = stub::aws(Duration::from_millis(300), s3.port, KeySources { metadata_endpoint, ..sources });
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(aws.caller(&Always).get_bucket_location("b").is_err()));
        }
    });
    assert!(began.elapsed() < Duration::from_millis(600), "{:?}", began.elapsed());
}

#[test]
fn a_key_that_aws_refuses_is_looked_for_again_once() {
    const UNKNOWN: Reply = Reply::Answer(403, "<Error><Code>InvalidAccessKeyId</Code></Error>");
    let (first, second) = (document("ASIA1", 60), document("ASIA2", 60));
    let cases = [
        ([look(first), look(second)].concat(), vec![EXPIRED, GOOD], true, vec!["ASIA1", "ASIA2"]),
        ([look(first), look(second)].concat(), vec![UNKNOWN, GOOD], true, vec!["ASIA1", "ASIA2"]),
        ([look(first), look(second)].concat(), vec![EXPIRED], false, vec!["ASIA1", "ASIA2"]),
        ([look(first), look(first)].concat(), vec![EXPIRED, GOOD], false, vec!["ASIA1"]),
    ];
    for (of_metadata, of_s3, good, expected) in cases {
        let (s3, metadata) = (Stub::start(script(of_s3)), Stub::start(script(of_metadata)));
        let result = with_metadata(&s3, &metadata).caller(&Always).get_bucket_location("b");
        assert_eq!(result.is_ok(), good);
        assert_eq!(signers(&s3), expected);
        assert_eq!(metadata.requests().len(), 6);
        assert!(result.err().is_none_or(|error| error.code() == Some("ExpiredToken")));
    }
}

#[test]
fn a_tenants_key_is_never_replaced() {
    let (s3, metadata) =
        (Stub::start(&[GOOD, EXPIRED, GOOD]), Stub::start(script(look(document("ASIA1", 60)))));
    let aws = with_metadata(&s3, &metadata);
    aws.caller(&Always).get_bucket_location("b").unwrap();
    let tenant = Credentials::lasting("AKIATENANT", &Secret::new("s"));
    assert!(aws.tenant_caller(&tenant, &Always).get_bucket_location("b").is_err());
    assert_eq!(signers(&s3), ["ASIA1", "AKIATENANT"]);
    assert_eq!(metadata.requests().len(), 3);
}

#[test]
fn the_environment_does_not_change_so_a_refusal_stands() {
    let s3 = Stub::start(&[EXPIRED, GOOD]);
    let error = stub::call(s3.port, 9, |caller| caller.get_bucket_location("b")).unwrap_err();
    assert_eq!((error.code(), s3.requests().len()), (Some("ExpiredToken"), 1));
}

#[test]
fn a_role_is_assumed_with_the_token_of_the_moment() {
    const ASSUMED: &str = "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
        <AccessKeyId>ASIA1</AccessKeyId><SecretAccessKey>planted-secret</SecretAccessKey>\
        <SessionToken>planted-token</SessionToken><Expiration>2999-01-01T00:00:00Z</Expiration></Credentials>\
        </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>";
    const AGAIN: &str = "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
        <AccessKeyId>ASIA2</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>\
        <Expiration>2999-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
        </AssumeRoleWithWebIdentityResponse>";
    let stub = Stub::start(&[Reply::Answer(200, ASSUMED), GOOD, EXPIRED, Reply::Answer(200, AGAIN), GOOD]);
    let token_file = File::new("first.token\n");
    let role_arn = "arn:aws:iam::111122223333:role/r".to_owned();
    let role = WebIdentity { token_file: token_file.path(), role_arn, session_name: None };
    let sources = KeySources { web_identity: Some(role), ..KeySources::default() };
    let aws = stub::aws(Duration::from_secs(2), stub.port, sources);
    aws.caller(&Always).get_bucket_location("b").unwrap();
    token_file.write("second.token");
    aws.caller(&Always).get_bucket_location("b").unwrap();
    assert_eq!(signers(&stub), ["ASIA1", "ASIA1", "ASIA2"]);
    let requests = stub.requests();
    for (request, token) in [(&requests[0], "first.token"), (&requests[3], "second.token")] {
        assert!(!request.to_lowercase().contains("authorization"), "{request}");
        let form = format!(
            "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn=arn%3Aaws%3Aiam%3A%3A111122223333%3Arole%2Fr\
             &RoleSessionName=servicebroker&WebIdentityToken={token}"
        );
        assert!(request.ends_with(&form), "{request}");
    }
    drop(token_file);
    aws.keyring.state().held = None;
    forget_the_last_look(&aws);
    let error = aws.caller(&Always).get_bucket_location("b").unwrap_err().to_string();
    assert!(error.contains("cannot be read"), "{error}");
}

#[test]
fn the_container_is_shown_its_token() {
    let (s3, container) = (Stub::start(&[GOOD]), Stub::start(script(vec![document("ASIA1", 60)])));
    let url = Some(format!("http://127.0.0.1:{}/v1/key?id=1", container.port));
    let with = |token: Option<&str>, token_file| KeySources {
        container_full_uri: url.clone(),
        container_token: token.map(Secret::new),
        container_token_file: token_file,
        metadata_endpoint: Some("http://127.0.0.1:1".into()),
        ..KeySources::default()
    };
    let token_file = File::new("planted-file\n");
    for sources in
        [with(None, None), with(Some("planted-text"), None), with(Some("x"), Some(token_file.path()))]
    {
        let aws = stub::aws(Duration::from_secs(1), s3.port, sources);
        aws.caller(&Always).get_bucket_location("b").unwrap();
    }
    let asked = container.requests();
    assert!(asked.iter().all(|it| it.starts_with("GET /v1/key?id=1 HTTP/1.1\r\n")), "{asked:?}");
    assert!(!asked[0].contains("authorization"));
    assert!(asked[1].contains("\r\nauthorization: planted-text\r\n"), "{asked:?}");
    assert!(asked[2].contains("\r\nauthorization: planted-file\r\n"), "{asked:?}");
    let aws = stub::aws(Duration::from_secs(1), s3.port, with(Some("planted\r\nx: y"), None));
    let error = aws.caller(&Always).get_bucket_location("b").unwrap_err().to_string();
    assert!(error.contains("cannot be written") && !error.contains("planted"), "{error}");
}

#[test]
fn a_relative_path_stays_with_the_usual_host() {
    for path in ["/v2/x?y=1", "@evil.test/", ".evil.test/", "3/x", ":80@evil.test", "//evil.test/"] {
        let sources = KeySources { container_relative_uri: Some(path.into()), ..KeySources::default() };
        let url = local::choose_container(&sources).unwrap().unwrap();
        assert_eq!(url.host_str(), Some("169.254.170.2"), "{path}");
    }
}

#[test]
fn a_containers_token_goes_only_where_aws_says() {
    let full = |url: &str| KeySources { container_full_uri: Some(url.into()), ..KeySources::default() };
    let cases = [
        (full("https://anybody.test/x"), true),
        (full("http://localhost:1/x"), true),
        (full("http://127.0.0.2/x"), true),
        (full("http://[::1]/x"), true),
        (full("http://169.254.170.23/v1/credentials"), true),
        (full("http://[fd00:ec2::23]/v1/credentials"), true),
        (full("http://169.254.169.254/"), false),
        (full("http://anybody.test/"), false),
        (full("http://localhost.evil.test/"), false),
        (full("http://localhost@evil.test/"), false),
        (full("file:///etc/passwd"), false),
        (full("nonsense"), false),
    ];
    for (sources, good) in cases {
        let about = format!("{sources:?}");
        let result = Keyring::new(sources);
        assert_eq!(result.is_ok(), good, "{about}");
        assert!(result.err().is_none_or(|it| it.variable().starts_with("AWS_CONTAINER_CREDENTIALS_")));
    }
    let metadata_endpoint = Some("ftp://x".to_owned());
    let error = Keyring::new(KeySources { metadata_endpoint, ..KeySources::default() }).err().unwrap();
    assert_eq!(error.variable(), "AWS_EC2_METADATA_SERVICE_ENDPOINT");
    for (url, good) in [
        ("http://169.254.169.254", true),
        ("http://[fd00:ec2::254]/", true),
        ("http://127.0.0.1:1/", true),
        ("http://localhost:1", true),
        ("https://anybody.test/x", true),
        ("http://169.254.170.2", false),
        ("http://anybody.test", false),
        ("http://169.254.169.254.evil.test", false),
    ] {
        let sources = KeySources { metadata_endpoint: Some(url.to_owned()), ..KeySources::default() };
        assert_eq!(Keyring::new(sources).is_ok(), good, "{url}");
    }
}

#[test]
fn files_are_read_again_when_aws_refuses_what_they_held() {
    let s3 = Stub::start(&[EXPIRED, GOOD]);
    let file = File::new("[default]\naws_access_key_id=AKIA1\naws_secret_access_key=s");
    let sources = KeySources { credentials_file: shared(file.path(), true), ..KeySources::default() };
    let aws = stub::aws(Duration::from_secs(1), s3.port, sources);
    let permit = Calls(AtomicUsize::new(9));
    aws.keyring.current("x", &aws.caller(&permit), Instant::now() + Duration::from_secs(1)).unwrap();
    file.write("[default]\naws_access_key_id=AKIA2\naws_secret_access_key=s");
    aws.caller(&permit).get_bucket_location("b").unwrap();
    assert_eq!(signers(&s3), ["AKIA1", "AKIA2"]);
}

#[test]
fn the_first_source_that_is_set_counts_also_when_it_fails() {
    let s3 = Stub::start(&[GOOD]);
    let metadata = Stub::start(script(look(document("ASIA1", 60))));
    let metadata_endpoint = Some(format!("http://127.0.0.1:{}", metadata.port));
    let file = File::new("[default]\naws_access_key_id=AKIAFILE\naws_secret_access_key=s");
    let all = KeySources {
        credentials_file: shared(file.path(), false),
        container_full_uri: Some("http://127.0.0.1:1/".into()),
        metadata_endpoint,
        ..KeySources::default()
    };
    let signer = |sources: &KeySources| {
        let aws = stub::aws(Duration::from_secs(1), s3.port, sources.clone());
        aws.caller(&Always).get_bucket_location("b").map(|_| signers(&s3).pop().unwrap())
    };
    let key = Some(("AKIAENV".to_owned(), Secret::new("s")));
    assert_eq!(signer(&KeySources { key, ..all.clone() }).unwrap(), "AKIAENV");
    assert_eq!(signer(&all).unwrap(), "AKIAFILE");
    let without_file = KeySources { credentials_file: None, ..all };
    let error = signer(&without_file).unwrap_err().to_string();
    assert!(error.contains("container credentials"), "{error}");
    assert_eq!(signer(&KeySources { container_full_uri: None, ..without_file }).unwrap(), "ASIA1");
}
