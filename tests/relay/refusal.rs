//! Errors as AWS writes them.
//!
//! Sources: IAM API Reference, "Common Errors"; S3 API Reference, "Error responses".

use super::call::Call;
use super::wire::Answer;

/// An answer of AWS to a call that it does not carry out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// HTTP status.
    pub(crate) status: u16,
    /// The error's code.
    pub(crate) code: &'static str,
    /// Its text.
    pub(crate) message: String,
    /// Whether no right client would ever get it.
    pub(crate) is_violation: bool,
}

impl Refusal {
    /// What even a right client may meet.
    pub(crate) fn fair(status: u16, code: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { status, code, message: message.into(), is_violation: false }
    }

    /// What only a wrong client meets.
    pub(crate) fn violation(status: u16, code: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { status, code, message: message.into(), is_violation: true }
    }

    /// The answer to `call`.
    pub(crate) fn to_answer(&self, call: &Call) -> Answer {
        let (code, message) = (self.code, self.message.replace('<', "&lt;"));
        let body = match call.is_s3() {
            true => format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message>\
                 <RequestId>RELAY</RequestId><HostId>relay</HostId></Error>"
            ),
            false => format!(
                "<ErrorResponse xmlns=\"https://iam.amazonaws.com/doc/2010-05-08/\"><Error><Type>Sender</Type>\
                 <Code>{code}</Code><Message>{message}</Message></Error><RequestId>RELAY</RequestId></ErrorResponse>"
            ),
        };
        let content_type = if call.is_s3() { "application/xml" } else { "text/xml" };
        Answer::new(self.status, &[("Content-Type", content_type), ("x-amz-request-id", "RELAY")], body)
    }
}
