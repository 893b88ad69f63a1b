//! The key that signs calls.
//!
//! Not here: where keys come from (`config`), how they sign (`sigv4`, `s3`).
//!
//! Invariants
//! - Nothing in this type but the key's id can be printed.

use crate::config::Secret;

/// An access key, as one triple: key, secret and token are never mixed with those of another.
#[derive(Debug, Clone)]
pub(crate) struct Credentials {
    /// The id, which every signed request shows.
    pub(crate) access_key_id: String,
    /// What only we and AWS know.
    pub(crate) secret_access_key: Secret,
    /// Comes with temporary keys and is sent along with every call.
    pub(crate) session_token: Option<Secret>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_id_can_be_printed() {
        let credentials = Credentials {
            access_key_id: "AKIDEXAMPLE".into(),
            secret_access_key: Secret::new("planted-secret"),
            session_token: Some(Secret::new("planted-token")),
        };
        let shown = format!("{credentials:?}");
        assert!(shown.contains("AKIDEXAMPLE"), "{shown}");
        assert!(!shown.contains("planted"), "{shown}");
    }
}
