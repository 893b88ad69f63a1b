//! Answers, and the one place where a failure becomes an HTTP status.

use serde::Serialize;

use crate::broker::BrokerError;
use crate::osb;

/// How long to wait before asking again when the database is away, in seconds.
const RETRY_AFTER_S: u32 = 5;

/// What goes back.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    /// HTTP status.
    pub(super) status: u16,
    /// `Content-Type`.
    pub(super) content_type: &'static str,
    /// Further headers.
    pub(super) headers: Vec<(&'static str, String)>,
    /// The body.
    pub(super) body: Vec<u8>,
}

impl Reply {
    /// A JSON answer.
    pub(super) fn json(status: u16, value: &impl Serialize) -> Reply {
        let body = serde_json::to_vec(value).unwrap_or_else(|err| {
            log::error!("answer not written: cause={err}");
            b"{}".to_vec()
        });
        Reply::of_bytes(status, body)
    }

    /// A JSON answer that was written before.
    pub(super) fn of_bytes(status: u16, body: Vec<u8>) -> Reply {
        Reply { status, content_type: "application/json", headers: Vec::new(), body }
    }

    /// A plain text answer.
    pub(super) fn text(status: u16, text: &str) -> Reply {
        let body = text.as_bytes().to_vec();
        Reply { status, content_type: "text/plain; charset=utf-8", headers: Vec::new(), body }
    }

    /// An empty object.
    pub(super) fn empty(status: u16) -> Reply {
        Reply::json(status, &osb::Empty {})
    }

    /// An error in words.
    pub(super) fn error(status: u16, code: Option<&'static str>, description: impl Into<String>) -> Reply {
        Reply::json(status, &osb::ErrorBody { error: code, description: description.into() })
    }

    /// Work goes on.
    pub(super) fn accepted(operation: &str) -> Reply {
        Reply::json(202, &osb::Accepted { operation })
    }

    /// Adds a header.
    pub(super) fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }
}

impl From<BrokerError> for Reply {
    /// No wildcard arm: a new error does not compile until someone has chosen its status.
    fn from(err: BrokerError) -> Reply {
        let (status, code, description) = match err {
            BrokerError::AsyncRequired => {
                (422, Some("AsyncRequired"), "this operation is asynchronous; send accepts_incomplete=true")
            }
            BrokerError::Busy(what) => (422, Some("ConcurrencyError"), what),
            BrokerError::MaintenanceInfoConflict => {
                (422, Some("MaintenanceInfoConflict"), "the plan has no maintenance_info.version")
            }
            BrokerError::InstanceUnknown => (404, None, "no such service instance"),
            BrokerError::BindingUnknown => (404, None, "no such service binding"),
            BrokerError::InstanceGone | BrokerError::BindingGone => return Reply::empty(410),
            BrokerError::InstanceConflict | BrokerError::BindingConflict => return Reply::empty(409),
            BrokerError::InstanceFailed => {
                (422, None, "the service instance could not be created; delete it")
            }
            BrokerError::ChangeRefused(reason) => (422, None, reason),
            BrokerError::BadRequest(reason) => (400, None, reason),
            BrokerError::NotYetKnown => {
                (503, None, "what is known of the bucket is not complete yet; a worker will complete it")
            }
            BrokerError::NoWorker => (503, None, "no worker came to do it; nothing was changed"),
            BrokerError::Store(err) if err.is_unavailable() => {
                log::warn!("request not served: cause={err}");
                (503, None, "the broker's database is not available")
            }
            BrokerError::Store(err) => {
                log::error!("request failed: cause={err}");
                (500, None, "internal error")
            }
            BrokerError::NoRandomness(err) => {
                log::error!("request failed: cause={err}");
                (500, None, "internal error")
            }
        };
        let reply = Reply::error(status, code, description);
        if status == 503 { reply.with_header("Retry-After", RETRY_AFTER_S.to_string()) } else { reply }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreError;

    #[test]
    fn every_error_has_its_status_and_code() {
        for (err, status, body) in [
            (BrokerError::AsyncRequired, 422, "\"error\":\"AsyncRequired\""),
            (BrokerError::Busy("x"), 422, "{\"error\":\"ConcurrencyError\",\"description\":\"x\"}"),
            (BrokerError::MaintenanceInfoConflict, 422, "\"error\":\"MaintenanceInfoConflict\""),
            (BrokerError::InstanceUnknown, 404, "\"description\""),
            (BrokerError::BindingUnknown, 404, "\"description\""),
            (BrokerError::InstanceGone, 410, "{}"),
            (BrokerError::BindingGone, 410, "{}"),
            (BrokerError::InstanceConflict, 409, "{}"),
            (BrokerError::BindingConflict, 409, "{}"),
            (BrokerError::InstanceFailed, 422, "\"description\""),
            (BrokerError::BadRequest("x"), 400, "{\"description\":\"x\"}"),
            (BrokerError::ChangeRefused("x"), 422, "{\"description\":\"x\"}"),
            (BrokerError::NotYetKnown, 503, "\"description\""),
            (BrokerError::NoWorker, 503, "nothing was changed"),
            (BrokerError::Store(StoreError::Silent), 503, "\"description\""),
            (BrokerError::Store(StoreError::Busy), 503, "\"description\""),
            (BrokerError::Store(StoreError::Unreadable("x")), 500, "{\"description\":\"internal error\"}"),
        ] {
            let name = format!("{err:?}");
            let reply = Reply::from(err);
            let text = String::from_utf8(reply.body).unwrap();
            assert!(reply.status == status && text.contains(body), "{name}: {} {text}", reply.status);
            assert_eq!(status == 503, !reply.headers.is_empty(), "{name}");
        }
    }
}
