//! Looks that fail, that somebody waits for, that take too long.

use std::sync::atomic::AtomicUsize;

use super::super::stub::{self, Calls, Reply, Stub};
use super::super::{Aws, Permit};
use super::tests::{Always, File, forget_the_last_look, script, signers};
use super::*;
use crate::config::WebIdentity;

const GOOD: Reply = Reply::Answer(200, "<LocationConstraint>EU</LocationConstraint>");
/// The longest that the calls of these tests may take.
const DEADLINE: Duration = Duration::from_millis(1_600);

/// What STS gives: a key that ends so many minutes from now.
fn assumed(id: &str, minutes: i64) -> Reply {
    let end = Timestamp::now() + SignedDuration::from_mins(minutes);
    let text = format!(
        "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
         <AccessKeyId>{id}</AccessKeyId><SecretAccessKey>planted-secret</SecretAccessKey>\
         <SessionToken>planted-token</SessionToken><Expiration>{end}</Expiration></Credentials>\
         </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
    );
    Reply::Answer(200, text.leak())
}

/// STS and S3 at a stub, and the file of the token.
fn with_role(replies: Vec<Reply>) -> (Aws, Stub, File) {
    let (stub, token) = (Stub::start(script(replies)), File::new("planted-jwt"));
    let role_arn = "arn:aws:iam::111122223333:role/r".to_owned();
    let role = WebIdentity { token_file: token.path(), role_arn, session_name: None };
    let sources = KeySources { web_identity: Some(role), ..KeySources::default() };
    (stub::aws(DEADLINE, stub.port, sources), stub, token)
}

/// Says no, and is asked.
struct Never(AtomicUsize);

impl Permit for Never {
    fn may_call(&self, _operation: &'static str) -> bool {
        // The call itself is allowed, what it needs to find a key is not.
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0
    }
}

#[test]
fn a_role_s_key_is_renewed_before_its_end() {
    let (aws, stub, _token) = with_role(vec![assumed("ASIA1", 4), GOOD, assumed("ASIA2", 60), GOOD]);
    aws.caller(&Always).get_bucket_location("b").unwrap();
    forget_the_last_look(&aws);
    aws.caller(&Always).get_bucket_location("b").unwrap();
    aws.caller(&Always).get_bucket_location("b").unwrap();
    assert_eq!(signers(&stub), ["ASIA1", "ASIA2", "ASIA2"]);
}

#[test]
fn a_renewal_that_gets_no_answer_leaves_time_for_the_call() {
    let (aws, stub, _token) = with_role(vec![assumed("ASIA1", 4), GOOD, Reply::Silence, GOOD]);
    aws.caller(&Always).get_bucket_location("b").unwrap();
    forget_the_last_look(&aws);
    aws.caller(&Always).get_bucket_location("b").unwrap();
    aws.caller(&Always).get_bucket_location("b").unwrap(); // and does not look again at once
    assert_eq!((signers(&stub), stub.requests().len()), (vec!["ASIA1".to_owned(); 3], 5));
}

#[test]
fn sts_that_refuses_or_babbles_gives_no_key_and_no_secret_away() {
    const RATE: Reply =
        Reply::Answer(400, "<ErrorResponse><Error><Code>Throttling</Code></Error></ErrorResponse>");
    const DENIED: Reply = Reply::Answer(
        403,
        "<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>",
    );
    let cases = [
        (vec![DENIED], 1, "code=AccessDenied"),
        (vec![Reply::Answer(200, "<html>planted</html>")], 1, "a page in place of an answer"),
        (vec![Reply::Answer(200, "<AssumeRoleWithWebIdentityResponse/>")], 1, "no result"),
        (vec![Reply::HalfAnAnswer], 3, "connection closed"),
        (vec![Reply::Answer(500, "")], 3, "code=Http500"),
    ];
    for (replies, requests, about) in cases {
        let (aws, stub, _token) = with_role(replies);
        for _ in 0..2 {
            let error = aws.caller(&Always).get_bucket_location("b").unwrap_err();
            let shown = error.to_string();
            assert!(shown.starts_with("no credentials") && shown.contains(about), "{about}: {shown}");
            assert!(error.is_transient() && !shown.contains("planted"), "{shown}");
        }
        assert_eq!(stub.requests().len(), requests, "{about}");
    }
    let (aws, stub, _token) = with_role(vec![RATE]);
    aws.caller(&Always).get_bucket_location("b").unwrap_err();
    assert!(stub.requests().iter().all(|it| it.contains("Action=AssumeRoleWithWebIdentity")));
    let (aws, stub, _token) = with_role(vec![RATE, assumed("ASIA1", 60), GOOD]);
    aws.caller(&Always).get_bucket_location("b").unwrap();
    assert_eq!(signers(&stub), ["ASIA1"]);
}

#[test]
fn who_may_not_look_or_has_no_time_spoils_nothing_for_the_others() {
    let (aws, stub, _token) = with_role(vec![assumed("ASIA1", 60), GOOD]);
    let halted = aws.caller(&Never(AtomicUsize::new(0))).get_bucket_location("b").unwrap_err();
    assert!(matches!(halted, AwsError::Halted { .. }), "{halted}");
    assert!(stub.requests().is_empty());
    aws.caller(&Always).get_bucket_location("b").unwrap();

    let (aws, stub, _token) = with_role(vec![Reply::Silence, assumed("ASIA1", 60), GOOD]);
    let soon = Instant::now() + Duration::from_millis(50);
    let late = aws.keyring.current("X", &aws.caller(&Always), soon).unwrap_err();
    assert!(matches!(late, AwsError::Deadline { .. }), "{late}");
    aws.caller(&Always).get_bucket_location("b").unwrap();
    assert_eq!(signers(&stub), ["ASIA1"]);
}

#[test]
fn who_is_woken_before_the_look_has_ended_goes_on_waiting() {
    let (aws, _stub, _token) = with_role(vec![GOOD]);
    let key = |id| Credentials::lasting(id, &Secret::new("s"));
    let (refused, ring) = (key("AKIA1"), &aws.keyring);
    ring.state().held = Some(refused.clone());
    ring.state().looking = true;
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let caller = aws.caller(&Always);
            ring.replace(&refused, &caller, Instant::now() + Duration::from_secs(60))
        });
        for _ in 0..50 {
            ring.looked.notify_all(); // as a system may do for no reason
            std::thread::sleep(Duration::from_millis(2)); // the more often it has the chance to wake
        }
        assert!(!waits.is_finished());
        let mut state = ring.state();
        (state.held, state.looking) = (Some(key("AKIA2")), false);
        drop(state);
        ring.looked.notify_all();
        assert!(waits.join().unwrap());
    });
}

#[test]
fn services_beside_the_process_that_babble_give_no_key() {
    let long = "x".repeat(64 * 1024 + 1).leak();
    let cases = [
        (Reply::HalfAnAnswer, "connection closed"),
        (Reply::Answer(200, long), "the answer is too long"),
        (Reply::Answer(403, "{\"message\":\"planted\"}"), "answered 403"),
        (Reply::Answer(500, ""), "answered 500"),
        (Reply::Redirect, "answered 307"),
        (Reply::Answer(200, "{\"AccessKeyId\":\"planted\""), "the answer holds no key"),
    ];
    for (reply, about) in cases {
        for is_container in [true, false] {
            let stub = Stub::start(script(vec![reply]));
            let url = Some(format!("http://127.0.0.1:{}/", stub.port));
            let sources = match is_container {
                true => KeySources { container_full_uri: url, ..KeySources::default() },
                false => KeySources { metadata_endpoint: url, ..KeySources::default() },
            };
            let aws = stub::aws(DEADLINE, 1, sources);
            let permit = Calls(AtomicUsize::new(9));
            let shown = aws.caller(&permit).get_bucket_location("b").unwrap_err().to_string();
            // What is no document may still be a token or the name of a role.
            let fits = shown.contains(about) || (!is_container && about.ends_with("no key"));
            assert!(fits && shown.starts_with("no credentials"), "{about}: {shown}");
            assert!(!shown.contains("planted") && !shown.contains("http:"), "{shown}");
        }
    }
}
