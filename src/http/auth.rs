//! Who is let in: Basic or Bearer, compared in constant time.
//!
//! Source: OSB 2.17, "Platform to Service Broker Authentication"; RFC 7617, RFC 6750.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};

use crate::config::{ApiConfig, Secret};

/// What is accepted: digests, so that lengths do not show in the time of a comparison.
pub(super) struct Auth {
    /// Of `name:password`.
    basic: Vec<[u8; 32]>,
    /// Of tokens.
    bearer: Vec<[u8; 32]>,
    /// Of the token in a path that opens the actions.
    path: Vec<[u8; 32]>,
    /// Whether the actions are open to everyone.
    open_actions: bool,
}

impl Auth {
    /// Takes the credentials of the configuration.
    pub(super) fn new(config: &ApiConfig) -> Auth {
        let pair =
            |(name, password): &(String, Secret)| hash(format!("{name}:{}", password.expose()).as_bytes());
        Auth {
            basic: config.basic.iter().map(pair).collect(),
            bearer: config.tokens.iter().map(|it| hash(it.expose().as_bytes())).collect(),
            path: config.actions_token.iter().map(|it| hash(it.expose().as_bytes())).collect(),
            open_actions: config.open_actions,
        }
    }

    /// Whether everyone is let in because nothing was configured.
    pub(super) fn is_open(&self) -> bool {
        self.basic.is_empty() && self.bearer.is_empty()
    }

    /// Whether a token in front of the path is the one that opens the actions.
    pub(super) fn knows(&self, token: &Secret) -> bool {
        is_one_of(&self.path, &hash(token.expose().as_bytes()))
    }

    /// Whether an action may be asked for without an `Authorization` header.
    pub(super) fn admits_action(&self, token: Option<&Secret>) -> bool {
        self.open_actions || token.is_some_and(|it| self.knows(it))
    }

    /// Whether a platform that sends no password with its actions cannot use them.
    pub(super) fn closes_actions(&self) -> bool {
        !self.is_open() && !self.open_actions && self.path.is_empty()
    }

    /// Whether the `Authorization` header opens.
    pub(super) fn admits(&self, header: Option<&str>) -> bool {
        if self.is_open() {
            return true;
        }
        let Some((scheme, rest)) = header.and_then(|it| it.trim().split_once(' ')) else {
            return false;
        };
        if scheme.eq_ignore_ascii_case("basic") {
            STANDARD.decode(rest.trim()).is_ok_and(|it| is_one_of(&self.basic, &hash(&it)))
        } else if scheme.eq_ignore_ascii_case("bearer") {
            is_one_of(&self.bearer, &hash(rest.trim().as_bytes()))
        } else {
            false
        }
    }
}

/// SHA-256 of `text`.
fn hash(text: &[u8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, text).as_ref());
    bytes
}

/// Compares with all of them, and all bytes of each, whatever is found on the way.
fn is_one_of(accepted: &[[u8; 32]], given: &[u8; 32]) -> bool {
    accepted.iter().fold(false, |found, it| {
        let difference = it.iter().zip(given).fold(0, |sum, (one, other)| sum | (one ^ other));
        found | (difference == 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth() -> Auth {
        let of = |it: &str| hash(it.as_bytes());
        Auth {
            basic: vec![of("u:p"), of("u2:p:2")],
            bearer: vec![of("token"), of("token2")],
            path: vec![of("path")],
            open_actions: false,
        }
    }

    #[test]
    fn the_right_ones_are_let_in() {
        let basic = |it: &str| format!("Basic {}", STANDARD.encode(it));
        for header in [basic("u:p"), basic("u2:p:2"), "Bearer token".into(), "bearer  token2".into()] {
            assert!(auth().admits(Some(&header)), "{header}");
        }
    }

    #[test]
    fn all_others_are_not() {
        let basic = |it: &str| format!("Basic {}", STANDARD.encode(it));
        for header in [
            basic("u:"),
            basic("u:p "),
            basic(":"),
            basic("token"),
            "Basic".into(),
            "Basic !".into(),
            "Basic ".into(),
            "Bearer".into(),
            "Bearer ".into(),
            "Bearer u:p".into(),
            "Digest token".into(),
            String::new(),
        ] {
            assert!(!auth().admits(Some(&header)), "{header}");
        }
        assert!(!auth().admits(None));
    }

    #[test]
    fn actions_have_a_token_of_their_own() {
        let secret = |it: &str| Some(Secret::new(it));
        assert!(auth().admits_action(secret("path").as_ref()) && !auth().closes_actions());
        for token in [None, secret(""), secret("token"), secret("path/")] {
            assert!(!auth().admits_action(token.as_ref()), "{:?}", token.map(|it| it.expose().to_owned()));
        }
        assert!(!auth().admits(Some("Bearer path")));
        assert!(Auth { open_actions: true, ..auth() }.admits_action(None));
        assert!(Auth { path: vec![], ..auth() }.closes_actions());
    }

    #[test]
    fn without_credentials_everyone_is_let_in() {
        let open = Auth { basic: vec![], bearer: vec![], path: vec![], open_actions: false };
        assert!(open.is_open() && open.admits(None));
    }
}
