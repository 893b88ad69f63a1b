//! What can go wrong with a call, read from AWS' answer and sorted into classes.
//!
//! Not here: when a call is sent again (`retry`), and what an operation takes for success ("already
//! gone"), which each operation decides.
//!
//! Invariants
//! - No error holds a URL, a header or anything that AWS was sent; of AWS' own text only a short,
//!   cleaned message.
//! - Decisions rest on the code, then on the status; on the message only in [`TELLING_MESSAGES`].
//!
//! Sources: S3 API Reference, "Error responses"; IAM API Reference, "Common Errors"; botocore's `retries/standard.py`.

use std::fmt;

use super::xml;

/// How much of AWS' message is kept, in characters.
const MESSAGE_CHARACTERS_MAX: usize = 200;
/// How much of a code or request id is kept, in characters.
const WORD_CHARACTERS_MAX: usize = 100;

/// Stands with the status behind it for the code that an answer lacks.
const NO_CODE: &str = "Http";

/// Why a call did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AwsError {
    /// AWS said no.
    Refused {
        /// The operation, as AWS writes it.
        operation: &'static str,
        /// AWS' code, or `Http` and the status where the answer held none.
        code: String,
        /// The HTTP status.
        status: u16,
        /// AWS' id of the request, for its support; may be empty.
        request_id: String,
        /// AWS' explanation, cleaned; may be empty.
        message: String,
    },
    /// AWS asks for fewer calls, also after the retries.
    Throttled {
        /// The operation.
        operation: &'static str,
        /// AWS' code.
        code: String,
        /// The HTTP status.
        status: u16,
        /// AWS' id of the request.
        request_id: String,
    },
    /// No complete answer came.
    Unreachable {
        /// The operation.
        operation: &'static str,
        /// A fixed word for the kind of failure.
        cause: &'static str,
    },
    /// The time for the call and its retries was used up. Whether it took effect is not known.
    Deadline {
        /// The operation.
        operation: &'static str,
    },
    /// The answer cannot be understood, or the request cannot be written.
    Malformed {
        /// The operation.
        operation: &'static str,
        /// What is wrong.
        what: &'static str,
    },
    /// The broker has no key to sign with; nothing was sent.
    NoCredentials {
        /// The operation.
        operation: &'static str,
        /// What was found in place of a key.
        cause: String,
    },
    /// The [`Permit`](super::Permit) was withheld; nothing was sent.
    Halted {
        /// The operation.
        operation: &'static str,
    },
}

impl AwsError {
    /// Whether the same call may succeed later without anybody changing the request.
    ///
    /// Refused keys of the broker count as such: they are an outage and say nothing about the request.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            AwsError::Refused { .. } => self.class() != Class::Permanent,
            AwsError::Throttled { .. }
            | AwsError::Unreachable { .. }
            | AwsError::Deadline { .. }
            | AwsError::Malformed { .. }
            | AwsError::NoCredentials { .. }
            | AwsError::Halted { .. } => true,
        }
    }

    /// Whether the store says that it has no such feature.
    pub(crate) fn is_unsupported(&self) -> bool {
        match self {
            AwsError::Refused { code, status, .. } => {
                matches!(status, 405 | 501) || ["NotImplemented", "MethodNotAllowed"].contains(&code.as_str())
            }
            AwsError::Throttled { .. }
            | AwsError::Unreachable { .. }
            | AwsError::Deadline { .. }
            | AwsError::Malformed { .. }
            | AwsError::NoCredentials { .. }
            | AwsError::Halted { .. } => false,
        }
    }

    /// AWS' code, if AWS answered.
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            AwsError::Refused { code, .. } | AwsError::Throttled { code, .. } => Some(code),
            AwsError::Unreachable { .. }
            | AwsError::Deadline { .. }
            | AwsError::Malformed { .. }
            | AwsError::NoCredentials { .. }
            | AwsError::Halted { .. } => None,
        }
    }

    /// One word for those who count: AWS' code, or what came in place of an answer; `None` where none was wanted.
    pub(super) fn word(&self) -> Option<&str> {
        match self {
            AwsError::Refused { code, .. } | AwsError::Throttled { code, .. } => Some(code),
            AwsError::Unreachable { .. } => Some("Unreachable"),
            AwsError::Deadline { .. } => Some("Deadline"),
            AwsError::Malformed { .. } => Some("Malformed"),
            AwsError::NoCredentials { .. } => Some("NoCredentials"),
            AwsError::Halted { .. } => None,
        }
    }

    /// The class that decides about retries.
    pub(super) fn class(&self) -> Class {
        match self {
            AwsError::Refused { code, status, message, .. } => classify(code, *status, message),
            AwsError::Throttled { .. } => Class::Throttle,
            AwsError::Unreachable { .. } => Class::Transient,
            AwsError::Deadline { .. }
            | AwsError::Malformed { .. }
            | AwsError::NoCredentials { .. }
            | AwsError::Halted { .. } => Class::Permanent,
        }
    }
}

impl fmt::Display for AwsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AwsError::Refused { operation, code, status, request_id, message } => write!(
                f,
                "refused operation={operation} code={code} status={status} request_id={request_id} \
                 message={message:?}"
            ),
            AwsError::Throttled { operation, code, status, request_id } => {
                write!(
                    f,
                    "throttled operation={operation} code={code} status={status} request_id={request_id}"
                )
            }
            AwsError::Unreachable { operation, cause } => {
                write!(f, "unreachable operation={operation} cause={cause:?}")
            }
            AwsError::Deadline { operation } => write!(f, "out of time operation={operation}"),
            AwsError::Malformed { operation, what } => {
                write!(f, "malformed operation={operation} what={what:?}")
            }
            AwsError::NoCredentials { operation, cause } => {
                write!(f, "no credentials operation={operation} cause={cause:?}")
            }
            AwsError::Halted { operation } => write!(f, "halted operation={operation}"),
        }
    }
}

impl std::error::Error for AwsError {}

/// What helps against an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Sending it again at once.
    Transient,
    /// Sending it again after a real pause.
    Throttle,
    /// Waiting: until AWS has spread an earlier change, or something in between lets calls through again.
    /// Seconds or minutes, so not within a call.
    Wait,
    /// The right time or another key (`cure`), else an operator who repairs the broker's.
    Credentials,
    /// Nothing: the request itself will not do.
    Permanent,
}

/// Codes by class. A code that is not here goes by the status of its answer.
#[rustfmt::skip]
const CODES: &[(Class, &[&str])] = &[
    (Class::Transient, &[
        "BadDigest", "IDPCommunicationError", "InternalError", "InternalFailure", "PolicyEvaluation",
        "RequestTimeout", "RequestTimeoutException", "ServiceFailure", "ServiceUnavailable",
    ]),
    (Class::Throttle, &[
        "BandwidthLimitExceeded", "EC2ThrottledException", "LimitExceededException",
        "PriorRequestNotComplete", "ProvisionedThroughputExceededException", "RequestLimitExceeded",
        "RequestThrottled", "RequestThrottledException", "SlowDown", "ThrottledException", "Throttling",
        "ThrottlingException", "TooManyRequestsException", "TransactionInProgressException",
    ]),
    (Class::Wait, &[
        "BucketNotEmpty", "ConcurrentModification", "DeleteConflict", "EntityTemporarilyUnmodifiable",
        "NoSuchBucket", "NoSuchEntity", "OperationAborted", "PermanentRedirect", "TemporaryRedirect",
    ]),
    (Class::Credentials, &[
        "ExpiredToken", "ExpiredTokenException", "IncompleteSignature", "InvalidAccessKeyId",
        "InvalidClientTokenId", "InvalidToken", "MissingAuthenticationToken", "RequestExpired",
        "RequestTimeTooSkewed", "SignatureDoesNotMatch",
    ]),
    (Class::Permanent, &[
        "AccessDenied", "AccessDeniedException", "BucketAlreadyExists", "EntityAlreadyExists",
        "InvalidBucketName", "InvalidInput", "InvalidTag", "LimitExceeded", "MalformedPolicy",
        "MalformedPolicyDocument", "MalformedXML", "MethodNotAllowed", "NotImplemented", "TooManyBuckets",
        "ValidationError",
    ]),
];

/// Codes that mean something else when AWS' message begins so.
const TELLING_MESSAGES: &[(&str, &str, Class)] = &[
    ("MalformedPolicy", "Invalid principal in policy", Class::Wait), // a new user, not known to S3 yet
    ("AccessDenied", "Request has expired", Class::Credentials),     // a clock that is slow
    ("AccessDenied", "Request is not yet valid", Class::Credentials), // a clock that is fast
];

/// The class of an answer.
fn classify(code: &str, status: u16, message: &str) -> Class {
    let told = TELLING_MESSAGES.iter().find(|(of, start, _)| *of == code && message.starts_with(start));
    if let Some((_, _, class)) = told {
        return *class;
    }
    if let Some((class, _)) = CODES.iter().find(|(_, codes)| codes.contains(&code)) {
        return *class;
    }
    match status {
        429 | 509 => Class::Throttle,
        // A success that holds an error is S3's way of failing late.
        200..=299 | 408 | 500 | 502..=504 => Class::Transient,
        307 => Class::Wait,
        // AWS gives these with a code; without one they are a proxy's.
        401 | 403 | 404 | 407 if code.starts_with(NO_CODE) => Class::Wait,
        _ => Class::Permanent,
    }
}

/// The error in an answer, whatever its body is.
///
/// `request_id` is the one of the headers. A body that is not AWS' XML, such as a proxy's page, is
/// ignored: then the status decides.
pub(super) fn read_error(
    operation: &'static str,
    status: u16,
    request_id: Option<&str>,
    body: &[u8],
) -> AwsError {
    let root = xml::read(body).ok();
    let error = root.as_ref().and_then(|root| match root.name.as_str() {
        "Error" => Some(root),
        _ => root.find(&["Error"]),
    });
    let text = |name: &str| error.and_then(|it| it.find_text(&[name])).unwrap_or_default();
    let in_body = root.as_ref().and_then(|root| root.find_text(&["RequestId"])).unwrap_or_default();
    let code = match clean_word(text("Code")) {
        code if code.is_empty() => format!("{NO_CODE}{status}"),
        code => code,
    };
    let request_id = clean_word(request_id.unwrap_or(in_body));
    match classify(&code, status, text("Message")) {
        Class::Throttle => AwsError::Throttled { operation, code, status, request_id },
        Class::Transient | Class::Wait | Class::Credentials | Class::Permanent => {
            let message = clean_message(&code, text("Message"));
            AwsError::Refused { operation, code, status, request_id, message }
        }
    }
}

/// A code or id: letters, digits and the few signs that occur in them.
fn clean_word(text: &str) -> String {
    let allowed =
        |it: &char| it.is_ascii_alphanumeric() || matches!(it, '.' | ':' | '-' | '_' | '/' | '+' | '=');
    text.trim().chars().filter(allowed).take(WORD_CHARACTERS_MAX).collect()
}

/// AWS' message as it may be logged.
///
/// Complaints about a signature quote the request that was signed, so they are replaced, save for the
/// one thing that an operator must know: that the clock is wrong.
fn clean_message(code: &str, message: &str) -> String {
    let message = message.trim();
    if matches!(code, "SignatureDoesNotMatch" | "IncompleteSignature") {
        let clock = ["Signature expired", "Signature not yet current"];
        let is_clock = clock.iter().any(|start| message.starts_with(start));
        return if is_clock { "the clock differs from AWS' clock" } else { "the signature was not accepted" }
            .into();
    }
    let quotes_request = ["AWS4-HMAC", "X-Amz-Signature", "X-Amz-Security-Token", "Authorization"];
    if quotes_request.iter().any(|it| message.contains(it)) {
        return "the message quotes the request and was left out".into();
    }
    let visible = |it: char| if it.is_control() { ' ' } else { it };
    message.chars().take(MESSAGE_CHARACTERS_MAX).map(visible).collect()
}

/// `None` in place of an error with one of `codes`: for what is content when nothing is there.
pub(super) fn none_if<T>(result: Result<T, AwsError>, codes: &[&str]) -> Result<Option<T>, AwsError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.code().is_some_and(|code| codes.contains(&code)) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers as recorded from AWS: status and body, and the code and class that we read from them.
    #[rustfmt::skip]
    const RECORDED: &[(u16, &str, &str, Class)] = &[
        (400, "<ErrorResponse xmlns=\"https://iam.amazonaws.com/doc/2010-05-08/\">\n  <Error>\n    <Type>Sender</Type>\n    <Code>Throttling</Code>\n    <Message>Rate exceeded</Message>\n  </Error>\n  <RequestId>R1</RequestId>\n</ErrorResponse>\n", "Throttling", Class::Throttle),
        (409, "<ErrorResponse xmlns=\"https://iam.amazonaws.com/doc/2010-05-08/\">\n  <Error>\n    <Type>Sender</Type>\n    <Code>DeleteConflict</Code>\n    <Message>Cannot delete entity, must delete access keys first.</Message>\n  </Error>\n  <RequestId>R1</RequestId>\n</ErrorResponse>\n", "DeleteConflict", Class::Wait),
        (404, "<ErrorResponse><Error><Type>Sender</Type><Code>NoSuchEntity</Code><Message>The user with name u1 cannot be found.</Message></Error><RequestId>R1</RequestId></ErrorResponse>", "NoSuchEntity", Class::Wait),
        (409, "<ErrorResponse><Error><Type>Sender</Type><Code>ConcurrentModification</Code><Message>Multiple requests</Message></Error><RequestId>R1</RequestId></ErrorResponse>", "ConcurrentModification", Class::Wait),
        (500, "<ErrorResponse><Error><Type>Receiver</Type><Code>ServiceFailure</Code><Message>unknown</Message></Error><RequestId>R1</RequestId></ErrorResponse>", "ServiceFailure", Class::Transient),
        (409, "<ErrorResponse><Error><Type>Sender</Type><Code>LimitExceeded</Code><Message>Cannot exceed quota for AccessKeysPerUser: 2</Message></Error><RequestId>R1</RequestId></ErrorResponse>", "LimitExceeded", Class::Permanent),
        (403, "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type><Code>InvalidClientTokenId</Code><Message>The security token included in the request is invalid.</Message></Error><RequestId>R1</RequestId></ErrorResponse>", "InvalidClientTokenId", Class::Credentials),
        (400, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>MalformedPolicy</Code><Message>Invalid principal in policy</Message><Detail>arn</Detail><RequestId>R1</RequestId></Error>", "MalformedPolicy", Class::Wait),
        (400, "<Error><Code>MalformedPolicy</Code><Message>Policy has invalid resource</Message><RequestId>R1</RequestId></Error>", "MalformedPolicy", Class::Permanent),
        (403, "<Error><Code>InvalidAccessKeyId</Code><Message>The AWS Access Key Id you provided does not exist in our records.</Message><AWSAccessKeyId>A</AWSAccessKeyId><RequestId>R1</RequestId></Error>", "InvalidAccessKeyId", Class::Credentials),
        (503, "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message><RequestId>R1</RequestId></Error>", "SlowDown", Class::Throttle),
        (409, "<Error><Code>OperationAborted</Code><Message>A conflicting conditional operation</Message><RequestId>R1</RequestId></Error>", "OperationAborted", Class::Wait),
        (301, "<Error><Code>PermanentRedirect</Code><Message>The bucket you are attempting</Message><Endpoint>b.s3</Endpoint><RequestId>R1</RequestId></Error>", "PermanentRedirect", Class::Wait),
        (307, "<Error><Code>TemporaryRedirect</Code><Message>Please re-send</Message><RequestId>R1</RequestId></Error>", "TemporaryRedirect", Class::Wait),
        (400, "<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region 'us-east-1' is wrong</Message><RequestId>R1</RequestId></Error>", "AuthorizationHeaderMalformed", Class::Permanent),
        (403, "<Error><Code>AccessDenied</Code><Message>Mfa Authentication must be used for this request</Message><RequestId>R1</RequestId></Error>", "AccessDenied", Class::Permanent),
        (403, "<Error><Code>AccessDenied</Code><Message>Request has expired</Message><RequestId>R1</RequestId></Error>", "AccessDenied", Class::Credentials),
        (403, "<Error><Code>RequestTimeTooSkewed</Code><Message>The difference</Message><RequestId>R1</RequestId></Error>", "RequestTimeTooSkewed", Class::Credentials),
        (200, "<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message><RequestId>R1</RequestId></Error>", "InternalError", Class::Transient),
        (501, "<Error><Code>NotImplemented</Code><RequestId>R1</RequestId></Error>", "NotImplemented", Class::Permanent),
    ];

    #[test]
    fn recorded_answers_fall_into_their_classes() {
        for (status, body, code, class) in RECORDED {
            let error = read_error("PutBucketPolicy", *status, None, body.as_bytes());
            assert_eq!(error.code(), Some(*code), "{body}");
            assert_eq!(error.class(), *class, "{body}");
            assert_eq!(error.is_transient(), *class != Class::Permanent, "{body}");
            assert_eq!(matches!(error, AwsError::Throttled { .. }), *class == Class::Throttle);
            let shown = error.to_string();
            let start = format!("operation=PutBucketPolicy code={code} status={status} request_id=R1");
            assert!(shown.contains(&start) && !shown.contains('\n'), "{shown}");
        }
    }

    #[test]
    fn without_a_code_the_status_decides() {
        let cases: [(u16, &str, &str, bool); 10] = [
            (502, "<html><body>Bad gateway</body></html>", "Http502", true),
            (503, "", "Http503", true),
            (429, "{\"error\":1}", "Http429", true),
            (500, "<Error><Code>", "Http500", true),
            (200, "<Error/>", "Http200", true),
            (501, "", "Http501", false),
            (403, "<!DOCTYPE html><p>no", "Http403", true),
            (404, "default backend", "Http404", true),
            (405, "", "Http405", false),
            (302, "", "Http302", false),
        ];
        for (status, body, code, transient) in cases {
            let error = read_error("ListBuckets", status, Some("from-header"), body.as_bytes());
            assert_eq!((error.code(), error.is_transient()), (Some(code), transient), "{status} {body}");
            assert!(error.to_string().contains("request_id=from-header"));
        }
    }

    #[test]
    fn messages_that_quote_the_request_are_left_out() {
        let long = "x".repeat(1_000);
        let cases = [
            (
                "SignatureDoesNotMatch",
                "The request signature we calculated planted",
                "the signature was not accepted",
            ),
            ("SignatureDoesNotMatch", "Signature expired: planted", "the clock differs from AWS' clock"),
            (
                "SignatureDoesNotMatch",
                "Signature not yet current: planted",
                "the clock differs from AWS' clock",
            ),
            ("IncompleteSignature", "planted", "the signature was not accepted"),
            ("Other", "GET /?X-Amz-Signature=planted", "the message quotes the request and was left out"),
            ("Other", "a\r\nb\u{1b}[31m", "a  b [31m"),
            ("Other", &long, &long[..MESSAGE_CHARACTERS_MAX]),
        ];
        for (code, message, expected) in cases {
            let body =
                format!("<Error><Code>{code}</Code><Message>{}</Message></Error>", xml::escape(message));
            let AwsError::Refused { message, .. } = read_error("CreateUser", 403, None, body.as_bytes())
            else {
                panic!("{code}");
            };
            assert_eq!(message, expected);
        }
        let planted =
            read_error("CreateUser", 400, Some("a b\r\n<c>"), b"<Error><Code>A\nB {x}</Code></Error>");
        assert!(
            planted
                .to_string()
                .starts_with("refused operation=CreateUser code=ABx status=400 request_id=abc ")
        );
    }

    #[test]
    fn what_never_reached_aws_may_be_tried_again() {
        let operation = "GetUser";
        for error in [
            AwsError::Unreachable { operation, cause: "connection refused" },
            AwsError::Deadline { operation },
            AwsError::Malformed { operation, what: "XML is broken" },
            AwsError::NoCredentials { operation, cause: "no role".into() },
            AwsError::Halted { operation },
        ] {
            assert!(error.is_transient() && error.code().is_none());
            assert!(error.to_string().contains("operation=GetUser"));
            assert_eq!(none_if::<()>(Err(error.clone()), &["NoSuchEntity"]), Err(error));
        }
        let gone = read_error(
            operation,
            404,
            None,
            b"<ErrorResponse><Error><Code>NoSuchEntity</Code></Error></ErrorResponse>",
        );
        assert_eq!(none_if::<()>(Err(gone), &["NoSuchEntity"]), Ok(None));
    }
}
