//! `webhook` and `secret` in the query of a PUT: somebody wants to be told how it ends.

use super::call::Call;
use crate::broker::BrokerError;
use crate::config::{Secret, WebhookHost};
use crate::outgoing;
use crate::store::Webhook;

/// Longest secret, in bytes.
const SECRET_BYTES_MAX: usize = 1_024;
/// What the decoding of the query put in the place of bytes that are not UTF-8: it would call another path, and sign as
/// something else.
const NOT_UTF8: char = '\u{fffd}';

/// Whom to tell, if anybody.
pub(super) fn webhook(call: &Call, hosts: &[WebhookHost]) -> Result<Option<Webhook>, BrokerError> {
    let sent = |name| call.query(name).filter(|it| !it.is_empty());
    let (url, secret) = match (sent("webhook"), sent("secret")) {
        (None, None) => return Ok(None),
        (None, Some(_)) => return Err(BrokerError::BadRequest("secret goes with webhook")),
        (url, secret) => (url.unwrap_or_default(), secret),
    };
    if url.contains(NOT_UTF8) {
        return Err(BrokerError::BadRequest("webhook is not UTF-8"));
    }
    let url = outgoing::check_url(url, hosts).map_err(BrokerError::BadRequest)?;
    let secret = secret.ok_or(BrokerError::BadRequest("webhook needs a secret to be signed with"))?;
    if secret.len() > SECRET_BYTES_MAX || secret.contains(|it: char| it.is_control() || it == NOT_UTF8) {
        return Err(BrokerError::BadRequest("secret is too long, not UTF-8, or holds a control character"));
    }
    Ok(Some(Webhook::new(&url, &Secret::new(secret))))
}
