//! The one door out: a call is signed, sent, answered, and sent again where that helps.
//!
//! Not here: which failures are worth another attempt and when (`retry`) or at once (`cure`), what an answer
//! means (the operations, `error`).
//!
//! Invariants
//! - For each attempt the permit is asked first and the signature made afresh.
//! - [`Caller::send`] ends within the call deadline, its retries and pauses included.
//! - URLs, headers and bodies never reach a log or an error: a signed URL is a key for minutes.
//! - An answer is read to its end or its connection is not used again.
//!
//! Sources: IAM User Guide, "AWS Signature Version 4"; ureq 3, `Error` and `Timeouts`.

use std::borrow::Cow;
use std::io;
use std::time::{Duration, Instant};

use ureq::http::header::HeaderMap;

use super::call::{Answer, Call, Signed, Signing};
use super::cure::{Cures, Hints};
use super::error::read_error;
use super::retry::{self, Asked, RetryPolicy};
use super::xml::{self, Element, XmlError};
use super::{AwsError, Caller, Credentials, Signer, query, s3};
use crate::tls;

/// The longest answer that is read. A page of 1,000 versions with the longest keys has 4 MiB.
const ANSWER_BYTES_MAX: u64 = 10 * 1024 * 1024;

/// A failed attempt.
pub(super) struct Failure {
    /// What `send` returns if it does not try again.
    pub(super) error: AwsError,
    /// The pause that the answer asked for.
    asked: Asked,
    /// What else the answer says.
    pub(super) hints: Box<Hints>,
}

impl From<AwsError> for Failure {
    fn from(error: AwsError) -> Failure {
        Failure { error, asked: Asked::Nothing, hints: Box::default() }
    }
}

impl Caller<'_> {
    /// Sends a call, and again where that is safe and may help, until the call deadline.
    pub(super) fn send(&self, call: &Call<'_>) -> Result<Answer, AwsError> {
        self.send_before(call, Instant::now() + self.aws.call_deadline)
    }

    /// The same until another deadline: for a call within a call.
    pub(super) fn send_before(&self, call: &Call<'_>, deadline: Instant) -> Result<Answer, AwsError> {
        let mut call = self.aws.address(call);
        let (mut attempt, mut cures) = (0, Cures::default());
        loop {
            if !self.permit.may_call(call.operation) {
                return Err(AwsError::Halted { operation: call.operation });
            }
            attempt += 1;
            if let Some(observer) = self.aws.observer.as_ref().filter(|_| attempt > 1) {
                observer.repeated(call.signing.service(), call.operation);
            }
            let began = Instant::now();
            let key = self.key(call.operation, deadline);
            let key = key.inspect_err(|error| self.tell(&call, error.word(), began.elapsed()))?;
            let failure = match self.attempt(&call, key.as_deref(), deadline, attempt) {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            if self.cure(&mut call, key.as_deref(), &failure, &mut cures, deadline) {
                continue;
            }
            let pause = RetryPolicy::of(failure.error.class(), call.repeatable)
                .and_then(|policy| policy.delay_after(attempt, failure.asked, retry::random()))
                .filter(|pause| Instant::now() + *pause < deadline);
            let Some(pause) = pause else {
                return Err(failure.error);
            };
            // Sleeping holds up this worker's thread alone, and the deadline, which is shorter than the
            // lease and the time that a shutdown waits, bounds it.
            std::thread::sleep(pause);
        }
    }

    /// The key to sign with, if the call is to be signed.
    fn key(
        &self,
        operation: &'static str,
        deadline: Instant,
    ) -> Result<Option<Cow<'_, Credentials>>, AwsError> {
        Ok(match self.signer {
            Signer::Broker => Some(Cow::Owned(self.aws.keyring.current(operation, self, deadline)?)),
            Signer::Tenant(key) => Some(Cow::Borrowed(key)),
            Signer::Nobody => None,
        })
    }

    /// Sends a call once and logs how it went.
    fn attempt(
        &self,
        call: &Call<'_>,
        key: Option<&Credentials>,
        deadline: Instant,
        attempt: u32,
    ) -> Result<Answer, Failure> {
        let started = Instant::now();
        let result = self.exchange(call, key, deadline.saturating_duration_since(started));
        let (operation, took) = (call.operation, started.elapsed());
        self.tell(call, result.as_ref().map_or_else(|failure| failure.error.word(), |_| Some("OK")), took);
        let took_ms = took.as_millis();
        match &result {
            Ok((status, _)) => log::debug!(
                "aws call done: operation={operation} status={status} took_ms={took_ms} attempt={attempt}"
            ),
            Err(Failure { error, .. }) => {
                log::debug!("aws call failed: took_ms={took_ms} attempt={attempt} cause={error}");
            }
        }
        result.map(|(_, answer)| answer)
    }

    /// Tells the observer how an attempt went.
    fn tell(&self, call: &Call<'_>, word: Option<&str>, took: Duration) {
        if let (Some(observer), Some(word)) = (&self.aws.observer, word) {
            observer.attempted(call.signing.service(), call.operation, word, took);
        }
    }

    /// One request and its answer, read to its end so that the connection can be used again.
    fn exchange(
        &self,
        call: &Call<'_>,
        key: Option<&Credentials>,
        remaining: Duration,
    ) -> Result<(u16, Answer), Failure> {
        let operation = call.operation;
        if remaining.is_zero() {
            return Err(AwsError::Deadline { operation }.into());
        }
        let signed_at = self.aws.clock.now();
        let signed = match (key, call.signing) {
            (None, _) => Signed { url: call.url.to_string(), headers: call.headers.clone() },
            (Some(key), Signing::Url) => s3::sign(call, key, signed_at),
            (Some(key), Signing::Header { service }) => query::sign(call, service, key, signed_at),
        };
        let response =
            self.transmit(call, signed, remaining).map_err(|error| describe_transport(operation, &error))?;
        let status = response.status().as_u16();
        let (parts, body) = response.into_parts();
        let body = body
            .into_with_config()
            .limit(ANSWER_BYTES_MAX)
            .read_to_vec()
            .map_err(|error| describe_transport(operation, &error))?;
        let root = xml::read(&body);
        let failed_late = root.as_ref().is_ok_and(|root| root.name == "Error");
        if (200..300).contains(&status) && !failed_late {
            check_success(operation, &root, &body)?;
            return Ok((status, Answer { operation, root }));
        }
        let header = |name| text_header(&parts.headers, name);
        let request_id = header("x-amz-request-id").or_else(|| header("x-amzn-requestid"));
        Err(Failure {
            error: read_error(operation, status, request_id, &body),
            asked: Asked::read(status, header("x-amz-retry-after"), header("retry-after")),
            hints: Box::new(Hints::read(signed_at, status, header, root.as_ref().ok())),
        })
    }

    /// Hands a signed call to the agent.
    fn transmit(
        &self,
        call: &Call<'_>,
        signed: Signed,
        remaining: Duration,
    ) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let mut request =
            ureq::http::Request::builder().method(call.method.to_str()).uri(signed.url.as_str());
        for (name, value) in &signed.headers {
            request = request.header(*name, value.as_str());
        }
        let agent = &self.aws.agent;
        match &call.body {
            Some(body) => {
                let request = agent.configure_request(request.body(body.as_bytes())?);
                agent.run(request.timeout_global(Some(remaining)).build())
            }
            None => {
                let request = agent.configure_request(request.body(())?);
                agent.run(request.timeout_global(Some(remaining)).build())
            }
        }
    }
}

/// Refuses the page of a proxy that stands in for AWS: a success is XML or has no body at all.
fn check_success(
    operation: &'static str,
    root: &Result<Element, XmlError>,
    body: &[u8],
) -> Result<(), AwsError> {
    let what = match root {
        Ok(root) if root.name.eq_ignore_ascii_case("html") => "a page in place of an answer",
        Err(error) if !body.trim_ascii().is_empty() => error.words(),
        Ok(_) | Err(_) => return Ok(()),
    };
    Err(AwsError::Malformed { operation, what })
}

/// A header's value, if it is text.
fn text_header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// A failure of the connection in fixed words. The library's own text may hold the URL.
pub(super) fn describe_transport(operation: &'static str, error: &ureq::Error) -> AwsError {
    if matches!(error, ureq::Error::Timeout(ureq::Timeout::Global)) {
        return AwsError::Deadline { operation };
    }
    if matches!(error, ureq::Error::BodyExceedsLimit(_)) {
        return AwsError::Malformed { operation, what: "the answer is too long" };
    }
    if matches!(error, ureq::Error::Http(_) | ureq::Error::BadUri(_)) {
        return AwsError::Malformed { operation, what: "the request cannot be written" };
    }
    let cause = if let ureq::Error::Io(error) = error {
        describe_io(error)
    } else if matches!(error, ureq::Error::Timeout(_)) {
        "timed out"
    } else if matches!(error, ureq::Error::HostNotFound) {
        "host not found"
    } else if matches!(error, ureq::Error::Tls(_) | ureq::Error::Rustls(_)) {
        "TLS failed"
    } else if matches!(error, ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..)) {
        "not an HTTP answer"
    } else {
        "connection failed"
    };
    AwsError::Unreachable { operation, cause }
}

/// A failure of the socket, or of TLS upon it, in fixed words.
fn describe_io(error: &io::Error) -> &'static str {
    if let Some(words) = tls::describe_failure(error) {
        return words;
    }
    let words = [
        (io::ErrorKind::ConnectionRefused, "connection refused"),
        (io::ErrorKind::ConnectionReset, "connection closed"),
        (io::ErrorKind::ConnectionAborted, "connection closed"),
        (io::ErrorKind::BrokenPipe, "connection closed"),
        (io::ErrorKind::UnexpectedEof, "connection closed"),
        (io::ErrorKind::TimedOut, "timed out"),
        (io::ErrorKind::HostUnreachable, "host unreachable"),
        (io::ErrorKind::NetworkUnreachable, "network unreachable"),
    ];
    words.iter().find(|(kind, _)| *kind == error.kind()).map_or("connection failed", |(_, words)| words)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::stub::{Reply, Stub, call, call_for};
    use super::*;

    const LOCATION: &str = "<LocationConstraint>EU</LocationConstraint>";
    const KEY: &str = "<CreateAccessKeyResponse><CreateAccessKeyResult><AccessKey><AccessKeyId>A</AccessKeyId>\
        <SecretAccessKey>planted-new</SecretAccessKey></AccessKey></CreateAccessKeyResult></CreateAccessKeyResponse>";

    /// A script, how many calls are allowed and made, and the region or the beginning of the error.
    type Case = (&'static [Reply], usize, usize, Result<&'static str, &'static str>);

    const GOOD: Reply = Reply::Answer(200, LOCATION);
    const LATE: Reply = Reply::Answer(200, "<Error><Code>InternalError</Code></Error>");
    const DENIED: Reply = Reply::Answer(403, "<Error><Code>AccessDenied</Code><Message>no</Message></Error>");
    const BUSY: Reply = Reply::Answer(500, "");

    #[rustfmt::skip]
    const CASES: &[Case] = &[
        (&[GOOD], 9, 1, Ok("eu-west-1")),
        (&[BUSY, Reply::Answer(502, "<html>"), GOOD], 9, 3, Ok("eu-west-1")),
        (&[BUSY], 9, 3, Err("refused operation=GetBucketLocation code=Http500")),
        (&[Reply::Close, GOOD], 9, 2, Ok("eu-west-1")),
        (&[Reply::HalfAnAnswer, GOOD], 9, 2, Ok("eu-west-1")),
        (&[LATE, GOOD], 9, 2, Ok("eu-west-1")),
        (&[DENIED], 9, 1, Err("refused operation=GetBucketLocation code=AccessDenied")),
        (&[Reply::Redirect], 9, 1, Err("refused operation=GetBucketLocation code=Http307")),
        (&[Reply::Silence], 9, 1, Err("out of time operation=GetBucketLocation")),
        (&[Reply::Close], 2, 2, Err("halted operation=GetBucketLocation")),
        (&[Reply::Answer(200, "")], 9, 1, Err("malformed operation=GetBucketLocation")),
    ];

    #[test]
    fn calls_are_repeated_where_it_helps_and_end_in_time() {
        for (row, (script, permits, requests, expected)) in CASES.iter().enumerate() {
            let stub = Stub::start(script);
            let started = Instant::now();
            let result = call(stub.port, *permits, |caller| caller.get_bucket_location("b"));
            assert!(started.elapsed() < Duration::from_secs(2), "row {row}: {:?}", started.elapsed());
            assert_eq!(stub.requests().len(), *requests, "row {row}");
            match (result, expected) {
                (Ok(region), Ok(expected)) => assert_eq!(region, *expected, "row {row}"),
                (Err(error), Err(expected)) => {
                    let shown = format!("{error} {error:?}");
                    assert!(shown.starts_with(expected), "row {row}: {shown}");
                    assert!(!shown.contains("planted") && !shown.contains("http:"), "row {row}: {shown}");
                }
                (result, _) => panic!("row {row}: {result:?}"),
            }
        }
    }

    #[test]
    fn a_page_of_somebody_in_between_is_no_success() {
        for page in
            ["<!DOCTYPE html><p>login", "<html><body>ok</body></html>", "OK", "{\"ok\":true}", "<Half>"]
        {
            let stub = Stub::start(vec![Reply::Answer(200, page)].leak());
            call(stub.port, 9, |caller| {
                let answers = [
                    caller.put_bucket_versioning("b", true),
                    caller.delete_bucket("b"),
                    caller.create_bucket("b").map(drop),
                    caller.get_bucket_location("b").map(drop),
                    caller.put_user_policy("u", "p", "{}"),
                    caller.delete_user("u"),
                ];
                for answer in answers {
                    let error = answer.unwrap_err();
                    assert!(
                        error.is_transient() && error.to_string().starts_with("malformed"),
                        "{page}: {error}"
                    );
                }
            });
        }
    }

    #[test]
    fn a_change_in_iam_counts_only_when_iam_says_so() {
        const OTHER: Reply =
            Reply::Answer(200, "<ErrorResponse><Error><Code>X</Code></Error></ErrorResponse>");
        const DONE: Reply = Reply::Answer(200, "<DeleteAccessKeyResponse/>");
        for (reply, done) in [(Reply::Answer(200, ""), false), (OTHER, false), (DONE, true)] {
            let stub = Stub::start(vec![reply].leak());
            let result = call(stub.port, 9, |caller| caller.delete_access_key("u", "A"));
            assert_eq!(result.is_ok(), done, "{result:?}");
            assert!(result.err().is_none_or(|error| error.is_transient()));
        }
    }

    #[test]
    fn a_storm_of_throttling_ends_in_time_as_one_error() {
        const SLOW: Reply = Reply::Answer(503, "<Error><Code>SlowDown</Code></Error>");
        const RATE: Reply =
            Reply::Answer(400, "<ErrorResponse><Error><Code>Throttling</Code></Error></ErrorResponse>");
        for script in [&[SLOW], &[RATE]] {
            let stub = Stub::start(script);
            let (started, limit) = (Instant::now(), Duration::from_secs(4));
            let error = call_for(limit, stub.port, 9, |caller| caller.create_access_key("u")).unwrap_err();
            assert!(started.elapsed() < limit, "{:?}", started.elapsed());
            assert!(matches!(error, AwsError::Throttled { .. }), "{error}");
            assert!((2..=6).contains(&stub.requests().len()), "{}", stub.requests().len());
        }
    }

    #[test]
    fn a_key_is_made_once_only() {
        let scripts: [&'static [Reply]; 3] =
            [&[Reply::Answer(500, "")], &[Reply::Close], &[Reply::HalfAnAnswer]];
        for script in scripts {
            let stub = Stub::start(script);
            assert!(call(stub.port, 9, |caller| caller.create_access_key("u")).is_err());
            assert_eq!(stub.requests().len(), 1);
        }
        let stub = Stub::start(&[Reply::Answer(200, KEY)]);
        let key = call(stub.port, 9, |caller| caller.create_access_key("u")).unwrap();
        assert_eq!((key.id.as_str(), key.secret.expose()), ("A", "planted-new"));
        assert!(!format!("{key:?}").contains("planted"));
    }

    #[test]
    fn one_connection_serves_many_calls() {
        let stub = Stub::start(&[Reply::Answer(200, LOCATION)]);
        call(stub.port, 9, |caller| {
            for _ in 0..5 {
                assert!(caller.get_bucket_location("b").is_ok());
            }
        });
        assert_eq!((stub.requests().len(), stub.connections()), (5, 1));
    }

    #[test]
    fn a_closed_port_is_said_in_fixed_words() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let error = call(port, 9, |caller| caller.get_caller_identity()).unwrap_err();
        let expected = AwsError::Unreachable { operation: "GetCallerIdentity", cause: "connection refused" };
        assert_eq!(error, expected);
    }
}
