//! The relay's own tests: each check refuses a call that is wrong in one way and passes the same call made right, and
//! each fault is what its name says.
//!
//! Behind these relays is no emulator but a server that says yes to everything.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use base64::Engine;
use md5::{Digest, Md5};

use crate::relay::{Fault, Options, Point, Relay, When};
use crate::support::PATIENCE;

/// A key that the account has from the beginning.
const KEY: &str = "AKIAIOSFODNN7EXAMPLE";
/// The account's number.
const ACCOUNT: &str = "111122223333";

/// Says yes to everything, and makes a new key whenever one is asked for.
fn yes_sayer() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for (number, mut stream) in listener.incoming().map_while(Result::ok).enumerate() {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut length = 0;
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if line == "\r\n" || line.is_empty() {
                    break;
                }
            }
            reader.read_exact(&mut vec![0; length]).unwrap();
            let body = format!("<Yes><AccessKeyId>AKIAMADEHERE{number:08}</AccessKeyId></Yes>");
            let length = body.len();
            let answer =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    address
}

/// A strict relay before it.
fn strict_relay() -> Relay {
    let keys = [KEY.to_owned()].into();
    let options =
        Options { engine: yes_sayer(), account: ACCOUNT.into(), keys, is_strict: true, ..Options::default() };
    Relay::start(options).unwrap()
}

/// A call as a right client makes it, to be made wrong in one way.
#[derive(Clone)]
struct Sent {
    line: String,
    headers: Vec<(String, String)>,
    /// Headers that the signature leaves out.
    unsigned: &'static [&'static str],
    key: Option<String>,
    body: String,
}

impl Sent {
    fn new(line: &str, body: &str) -> Sent {
        Sent {
            line: line.to_owned(),
            headers: Vec::new(),
            unsigned: &[],
            key: Some(KEY.to_owned()),
            body: body.to_owned(),
        }
    }

    /// A call of S3 with a checksum.
    fn s3(line: &str, body: &str) -> Sent {
        let md5 = base64::engine::general_purpose::STANDARD.encode(Md5::digest(body));
        Sent::new(line, body).with("content-md5", &md5)
    }

    /// A call of IAM.
    fn iam(parameters: &[(&str, &str)]) -> Sent {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.extend_pairs(parameters);
        Sent::new("POST /", &form.finish())
    }

    fn with(mut self, name: &str, value: &str) -> Sent {
        self.headers.retain(|(key, _)| key != name);
        if !value.is_empty() {
            self.headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    fn by(mut self, key: &str) -> Sent {
        self.key = Some(key.to_owned());
        self
    }

    fn without_signing(mut self, names: &'static [&'static str]) -> Sent {
        self.unsigned = names;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut head =
            format!("{} HTTP/1.1\r\nHost: aws\r\nContent-Length: {}\r\n", self.line, self.body.len());
        let mut signed = vec!["host"];
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
            signed.push(name);
        }
        signed.retain(|it| !self.unsigned.contains(it));
        if let Some(key) = &self.key {
            head.push_str(&format!(
                "Authorization: AWS4-HMAC-SHA256 Credential={key}/20260101/us-east-1/s3/aws4_request, \
                 SignedHeaders={}, Signature=00\r\n",
                signed.join(";")
            ));
        }
        [head.as_bytes(), b"\r\n", self.body.as_bytes()].concat()
    }
}

/// Sends bytes and reads until the relay closes, as far as it gets.
fn exchange(relay: &Relay, bytes: &[u8]) -> (String, std::io::Result<()>) {
    let mut stream = TcpStream::connect(relay.endpoint.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    let ended = stream.read_to_end(&mut answer).map(drop);
    (String::from_utf8(answer).unwrap(), ended)
}

/// The code of the relay's refusal, or `passed`.
fn verdict(relay: &Relay, sent: &Sent) -> String {
    let (answer, _) = exchange(relay, &sent.bytes());
    assert!(answer.starts_with("HTTP/1.1 "), "{answer:?}");
    let code = answer.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    code.map_or("passed", |(code, _)| code).to_owned()
}

/// Sees that the right call passes and each wrong one is refused with its code.
fn check(relay: &Relay, right: &Sent, wrong: &[(&str, Sent)]) {
    assert_eq!(verdict(relay, right), "passed", "{} {}", right.line, right.body);
    for (code, sent) in wrong {
        assert_eq!(verdict(relay, sent), *code, "{} {:?} {}", sent.line, sent.headers, sent.body);
    }
}

#[test]
fn checksums_must_be_there_right_and_signed() {
    let relay = strict_relay();
    for line in [
        "PUT /b?versioning",
        "PUT /b?a=b&versioning",
        "PUT /b?lifecycle",
        "PUT /b?encryption",
        "PUT /b?publicAccessBlock",
        "PUT /b?ownershipControls",
        "PUT /b?cors",
        "PUT /b?acl",
        "PUT /b/k?tagging",
    ] {
        let right = Sent::s3(line, "<X/>");
        let wrong = [
            ("InvalidRequest", right.clone().with("content-md5", "")),
            ("BadDigest", right.clone().with("content-md5", "QQFYoy/mRYV9PGZUfFi0Bw==")),
            ("AccessDenied", right.clone().without_signing(&["content-md5"])),
        ];
        check(&relay, &right, &wrong);
    }
    assert_eq!(relay.violations().len(), 27);
    let crc = Sent::new("PUT /b?versioning", "<X/>").with("x-amz-checksum-crc32", "AAAAAA==");
    check(&relay, &crc, &[("AccessDenied", crc.clone().without_signing(&["x-amz-checksum-crc32"]))]);
    let plain = Sent::new("PUT /b/k", "bytes");
    check(&relay, &plain, &[("AccessDenied", plain.clone().without_signing(&["host"]))]);
}

#[test]
fn deletions_have_one_to_a_thousand_objects() {
    let relay = strict_relay();
    let of = |count: usize| {
        Sent::s3(
            "POST /b?delete",
            &format!("<Delete>{}</Delete>", "<Object><Key>k</Key></Object>".repeat(count)),
        )
    };
    check(&relay, &of(1_000), &[("MalformedXML", of(1_001)), ("MalformedXML", of(0))]);
}

#[test]
fn buckets_have_names_and_tags_that_s3_takes() {
    let relay = strict_relay();
    let named = |name: &str| Sent::new(&format!("PUT /{name}"), "");
    let long = "b".repeat(64);
    let wrong = ["ab", "Bucket", "a_b", "a..b", "-ab", "ab-", "192.168.0.1", "xn--a", "a-s3alias", &long];
    check(&relay, &named("a.b-1"), &wrong.map(|it| ("InvalidBucketName", named(it))));
    let tagged = |tags: &[(&str, &str)]| {
        let tag = |(key, value): &(&str, &str)| format!("<Tag><Key>{key}</Key><Value>{value}</Value></Tag>");
        Sent::s3("PUT /b?tagging", &tags.iter().map(tag).collect::<String>())
    };
    let (long_key, long_value) = ("k".repeat(129), "v".repeat(257));
    let many: Vec<String> = (0..51).map(|it| format!("k{it}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|it| (it.as_str(), "v")).collect();
    let wrong: [&[(&str, &str)]; 7] = [
        &[("k", "a,b")],
        &[("k", "v"), ("K", "w")],
        &[("", "v")],
        &[(&long_key, "v")],
        &[("k", &long_value)],
        &[("aws:k", "v")],
        &many,
    ];
    check(&relay, &tagged(&[("k 1", "v+-=._:/@"), ("k2", "")]), &wrong.map(|it| ("InvalidTag", tagged(it))));
}

#[test]
fn bucket_policies_are_about_their_bucket_and_name_users_that_there_are() {
    let relay = strict_relay();
    let policy = |principal: &str, action: &str, resource: &str| {
        let text = format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Deny","Principal":{principal},"Action":"{action}",
            "Resource":["{resource}"],"Condition":{{"Bool":{{"aws:SecureTransport":"false"}}}}}}]}}"#
        );
        Sent::s3("PUT /b?policy", &text)
    };
    let user = r#"{"AWS":"arn:aws:iam::111122223333:user/osb/u"}"#;
    let own = "arn:aws:s3:::b/*";
    let wrong = [
        ("MalformedPolicy", policy(user, "s3:*", own)),
        ("MalformedPolicy", policy("\"everybody\"", "s3:*", own)),
        ("MalformedPolicy", policy("\"*\"", "s3", own)),
        ("MalformedPolicy", policy("\"*\"", "s3:*", "arn:aws:s3:::other/*")),
        ("MalformedPolicy", policy("\"*\"", "s3:*", "*")),
        ("MalformedPolicy", policy("{}", "s3:*", own)),
        ("MalformedPolicy", policy("\"*\"", "ec2:RunInstances", own)),
        ("MalformedPolicy", Sent::s3("PUT /b?policy", "{")),
        ("MalformedPolicy", Sent::s3("PUT /b?policy", &" ".repeat(20_481))),
    ];
    check(&relay, &policy("\"*\"", "s3:*", own), &wrong);
    check(&relay, &Sent::iam(&[("Action", "CreateUser"), ("UserName", "u")]), &[]);
    check(&relay, &policy(user, "s3:*", own), &[]);
}

#[test]
fn keys_must_be_there_and_owners_must_be_right() {
    let relay = strict_relay();
    let list = Sent::new("GET /", "");
    let unsigned = Sent { key: None, ..list.clone() };
    let wrong = [
        ("AccessDenied", unsigned),
        ("InvalidAccessKeyId", list.clone().by("test")),
        ("InvalidAccessKeyId", list.clone().by("testKEY1234567890")),
        ("InvalidAccessKeyId", list.clone().by("111122223333")),
    ];
    check(&relay, &list, &wrong);
    assert_eq!(relay.violations().len(), 4);
    let owned = Sent::new("DELETE /b", "").with("x-amz-expected-bucket-owner", ACCOUNT);
    let wrong = [
        ("AccessDenied", owned.clone().with("x-amz-expected-bucket-owner", "999999999999")),
        ("InvalidAccessKeyId", list.clone().by("AKIAI44QH8DHBEXAMPLE")),
        (
            "InvalidClientTokenId",
            Sent::iam(&[("Action", "GetUser"), ("UserName", "u")]).by("AKIAI44QH8DHBEXAMPLE"),
        ),
    ];
    check(&relay, &owned, &wrong);
    assert_eq!(relay.violations().len(), 4, "an owner or a key that has changed is nobody's fault");
}

#[test]
fn iam_has_its_forms() {
    let relay = strict_relay();
    let long = "u".repeat(65);
    let make =
        |name: &str, path: &str| Sent::iam(&[("Action", "CreateUser"), ("UserName", name), ("Path", path)]);
    let wrong = [
        ("", "/"),
        ("a/b", "/"),
        ("ü", "/"),
        (&long, "/"),
        ("u", "/a"),
        ("u", "a/"),
        ("u", "//"),
        ("u", "/ü/"),
    ];
    check(
        &relay,
        &make("a-b_c@d", "/osb/x/"),
        &wrong.map(|(name, path)| ("ValidationError", make(name, path))),
    );
    for action in
        ["DeleteUser", "ListAccessKeys", "DeleteAccessKey", "GetUser", "ListUserPolicies", "CreateAccessKey"]
    {
        let right = Sent::iam(&[("Action", action), ("UserName", "x")]);
        check(&relay, &right, &[("ValidationError", Sent::iam(&[("Action", action)]))]);
    }
    let late = Sent::iam(&[("Version", "2010-05-08"), ("Action", "CreateUser"), ("UserName", "bad name")]);
    assert_eq!(verdict(&relay, &late), "ValidationError", "the action may stand anywhere");
    let rest = |name: &str, value: &str| {
        Sent::iam(&[("Action", "DeleteAccessKey"), ("UserName", "u"), (name, value)])
    };
    check(&relay, &rest("AccessKeyId", KEY), &[("ValidationError", rest("AccessKeyId", "short"))]);
    check(&relay, &rest("PolicyName", "p"), &[("ValidationError", rest("PolicyName", "p q"))]);
    let arn = "arn:aws:iam::111122223333:policy/p";
    check(
        &relay,
        &rest("PermissionsBoundary", arn),
        &[("ValidationError", rest("PermissionsBoundary", "p"))],
    );
    check(&relay, &rest("Tags.member.1.Key", "k"), &[("InvalidInput", rest("Tags.member.1.Key", "k,"))]);
}

/// PutUserPolicy with one statement.
fn put_policy(user: &str, name: &str, document: &str) -> Sent {
    Sent::iam(&[
        ("Action", "PutUserPolicy"),
        ("UserName", user),
        ("PolicyName", name),
        ("PolicyDocument", document),
    ])
}

#[test]
fn policies_of_users_are_policies() {
    let relay = strict_relay();
    let document = |statement: &str| format!(r#"{{"Version":"2012-10-17","Statement":[{{{statement}}}]}}"#);
    let good = r#""Effect":"Allow","Action":"s3:Get*","Resource":"arn:aws:s3:::b/*""#;
    let wrong = [
        "{".to_owned(),
        r#"{"Version":"2012-10-17","Statement":[]}"#.to_owned(),
        document(good).replace("2012", "2013"),
        document(&good.replace("Allow", "Perhaps")),
        document(&good.replace("s3:Get*", "Get*")),
        document(&good.replace("arn:aws:s3:::b/*", "b/*")),
        document(&good.replace("\"Action\"", "\"Actions\"")),
        document(&format!("{good},\"Principal\":\"*\"")),
        document(&format!("{good},\"Sid\":\"a b\"")),
        document(&format!("{good},\"Condition\":{{\"Equals\":{{}}}}")),
        document(r#""Effect":"Allow","Action":"s3:Get*""#),
        document(&format!("{good},\"Sid\":\"a\"}},{{{good},\"Sid\":\"a\"")),
        document(&format!("{good},\"Condition\":{{\"StringEquals\":{{\"username\":\"a\"}}}}")),
        document(&good.replace("arn:aws", "arn:foo")),
        document(&good.replace("b/*", "€/*")),
    ];
    let wrong = wrong.map(|it| ("MalformedPolicyDocument", put_policy("u", "p", &it)));
    check(&relay, &put_policy("u", "p", &document(good)), &wrong);
}

#[test]
fn users_have_limits_and_go_when_nothing_hangs_on_them() {
    let relay = strict_relay();
    let of_user = |action: &str| Sent::iam(&[("Action", action), ("UserName", "u")]);
    let arn = "arn:aws:iam::111122223333:policy/p";
    let with_policy = |action: &str| Sent::iam(&[("Action", action), ("UserName", "u"), ("PolicyArn", arn)]);
    let document = |length: usize| {
        let resource = format!("arn:aws:s3:::{}", "b".repeat(length));
        format!(
            r#"{{ "Version": "2012-10-17", "Statement": {{ "Effect": "Allow", "Action": "s3:*", "Resource": "{resource}" }} }}"#
        )
    };
    check(&relay, &of_user("CreateUser"), &[]);
    check(&relay, &of_user("CreateAccessKey"), &[]);
    check(&relay, &of_user("CreateAccessKey"), &[("LimitExceeded", of_user("CreateAccessKey"))]);
    check(
        &relay,
        &put_policy("u", "one", &document(1_000)),
        &[
            ("LimitExceeded", put_policy("u", "two", &document(1_000))),
            ("LimitExceeded", put_policy("u", "one", &document(2_000))),
        ],
    );
    check(&relay, &put_policy("u", "one", &document(900)), &[("DeleteConflict", of_user("DeleteUser"))]);
    check(&relay, &with_policy("AttachUserPolicy"), &[("DeleteConflict", with_policy("DeletePolicy"))]);
    let made = relay.calls().len(); // the two keys were the second and third call
    assert!(made > 3);
    for number in [1, 2] {
        let id = format!("AKIAMADEHERE{number:08}");
        let list = Sent::new("GET /", "").by(&id);
        check(&relay, &list, &[("DeleteConflict", of_user("DeleteUser"))]);
        check(
            &relay,
            &Sent::iam(&[("Action", "DeleteAccessKey"), ("UserName", "u"), ("AccessKeyId", &id)]),
            &[("InvalidAccessKeyId", list), ("DeleteConflict", of_user("DeleteUser"))],
        );
    }
    check(&relay, &with_policy("DetachUserPolicy"), &[("DeleteConflict", of_user("DeleteUser"))]);
    let inline = Sent::iam(&[("Action", "DeleteUserPolicy"), ("UserName", "u"), ("PolicyName", "one")]);
    check(&relay, &inline, &[]);
    check(&relay, &with_policy("DeletePolicy"), &[]);
    check(&relay, &of_user("DeleteUser"), &[]);
    assert_eq!(relay.violations().len(), 2, "only policies that are too long are anybody's fault");
}

#[test]
fn calls_are_counted_by_name() {
    let relay = strict_relay();
    for line in
        ["GET /", "PUT /bkt", "PUT /bkt/k", "GET /bkt?versions&max-keys=9", "DELETE /bkt/k?uploadId=1"]
    {
        check(&relay, &Sent::new(line, ""), &[]);
    }
    check(&relay, &Sent::iam(&[("Action", "GetUser"), ("UserName", "u")]), &[]);
    check(&relay, &Sent::new("GET /bkt?X-Amz-Expires=9&location", ""), &[]);
    check(&relay, &Sent::new("GET /bkt?analytics", ""), &[]);
    let names = [
        "ListBuckets",
        "CreateBucket",
        "PutObject",
        "ListObjectVersions",
        "AbortMultipartUpload",
        "GetUser",
        "GetBucketLocation",
        "s3:GET?analytics",
    ];
    assert_eq!(relay.calls(), names);
}

#[test]
fn faults_are_what_their_names_say() {
    let list = Sent::new("GET /", "").bytes();
    let struck = |when: When, fault: Fault| {
        let relay = strict_relay();
        relay.plan("ListBuckets#2".parse().unwrap(), when, fault);
        assert!(exchange(&relay, &list).0.contains("<Yes>"));
        let began = Instant::now();
        let (answer, ended) = exchange(&relay, &list);
        assert_eq!(relay.struck(), 1);
        let took = began.elapsed();
        assert!(exchange(&relay, &list).0.contains("<Yes>"));
        (answer, ended.map_err(|it| it.kind()), took)
    };
    for when in [When::Before, When::After] {
        let (answer, ended, _) = struck(when, Fault::Fin);
        assert_eq!((answer.as_str(), ended), ("", Ok(())));
        let (answer, ended, _) = struck(when, Fault::Reset);
        assert_eq!((answer.as_str(), ended), ("", Err(std::io::ErrorKind::ConnectionReset)));
        let (answer, ended, _) = struck(when, Fault::HalfBody);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let length = head.split_once("Content-Length: ").unwrap().1.lines().next().unwrap();
        assert!(!body.is_empty() && body.len() < length.parse().unwrap(), "{answer}");
        assert_eq!(ended, Ok(()));
        let (answer, _, took) = struck(when, Fault::Delay(Duration::from_millis(150)));
        assert!(answer.contains("<Yes>") && took >= Duration::from_millis(150), "{answer} {took:?}");
        let (answer, ..) = struck(when, Fault::Status(503, "busy".into()));
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("busy"), "{answer}");
        for name in crate::relay::names() {
            let (answer, ..) = struck(when, Fault::Replay(name));
            let status = answer.split(' ').nth(1).unwrap();
            assert_eq!(status == "200", name == "s3.deleteobjects.partial", "{name}: {answer}");
            assert!(answer.contains("<Code>") && !answer.contains('{'), "{name}: {answer}");
        }
    }
}

#[test]
fn a_hanging_call_hangs_until_its_client_leaves() {
    let relay = strict_relay();
    relay.plan(Point::Number(1), When::After, Fault::Hang);
    let mut stream = TcpStream::connect(relay.endpoint.trim_start_matches("http://")).unwrap();
    stream.write_all(&Sent::new("GET /", "").bytes()).unwrap();
    relay.wait_until_struck(1, PATIENCE);
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let kind = stream.read(&mut [0]).unwrap_err().kind();
    assert!(matches!(kind, std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut), "{kind:?}");
    relay.calm_down();
    assert!(exchange(&relay, &Sent::new("GET /", "").bytes()).0.contains("<Yes>"));
}

#[test]
fn latency_and_new_keys_take_their_time() {
    let relay = strict_relay();
    let make = Sent::iam(&[("Action", "CreateAccessKey"), ("UserName", "u")]);
    check(&relay, &make, &[]);
    let list = Sent::new("GET /", "").by("AKIAMADEHERE00000000");
    relay.refuse_new_keys(PATIENCE);
    assert_eq!(verdict(&relay, &list), "InvalidAccessKeyId");
    relay.calm_down();
    relay.slow_down(Duration::from_millis(120));
    let began = Instant::now();
    assert_eq!(verdict(&relay, &list), "passed");
    assert!(began.elapsed() >= Duration::from_millis(120));
}
