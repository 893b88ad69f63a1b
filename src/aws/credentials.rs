//! The key that signs calls, and the keyring that finds and renews the broker's own.
//!
//! Not here: which sources were set (`config`), how each is asked (`local`, `profile`, `sts`), how keys sign
//! (`sigv4`, `s3`), which answers mean that a key is refused (`cure`).
//!
//! Invariants
//! - Nothing in a key but its id can be printed, and no cause of a failure holds a token.
//! - Key, secret, token and expiry are one value and never mixed with those of another.
//! - One thread looks at a time; the others use the old key while it is good, else they wait, and nobody
//!   waits beyond the deadline of the call.
//! - A source that is set and fails is an error. The next one is not tried in its place.
//!
//! Sources: AWS SDKs and Tools Reference Guide, "Credential provider chain"; botocore's
//! `RefreshableCredentials`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use url::Url;

use super::{AwsError, Caller, SettingsError, endpoints};
use crate::config::{KeySources, Secret};

mod local;
mod profile;

/// How long before its end a temporary key is renewed.
const RENEW_BEFORE: SignedDuration = SignedDuration::from_mins(5);
/// How long after a look there is no other, unless AWS refuses what it found.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// An access key, as one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// The id, which every signed request shows.
    pub(crate) access_key_id: String,
    /// What only we and AWS know.
    pub(crate) secret_access_key: Secret,
    /// Comes with temporary keys and is sent along with every call.
    pub(crate) session_token: Option<Secret>,
    /// When a temporary key ends.
    pub(crate) expires: Option<Timestamp>,
}

impl Credentials {
    /// A key of an IAM user.
    pub(crate) fn lasting(id: &str, secret: &Secret) -> Credentials {
        let (access_key_id, secret_access_key) = (id.to_owned(), secret.clone());
        Credentials { access_key_id, secret_access_key, session_token: None, expires: None }
    }

    /// A temporary key from the fields of a document; `None` when one is missing or unreadable.
    pub(super) fn read(text: impl Fn(&str) -> Option<String>, token: &str) -> Option<Credentials> {
        let expires = text("Expiration").map(|it| it.parse().ok());
        Some(Credentials {
            access_key_id: text("AccessKeyId")?,
            secret_access_key: Secret::new(text("SecretAccessKey")?),
            session_token: Some(Secret::new(text(token)?)),
            expires: expires.map_or(Some(None), |it| it.map(Some))?,
        })
    }

    /// Whether it is good for so long from `now`.
    fn lasts(&self, now: Timestamp, span: SignedDuration) -> bool {
        self.expires.is_none_or(|end| end.duration_since(now) > span)
    }
}

/// The broker's own key, looked for when it is needed.
pub(super) struct Keyring {
    /// What was set.
    sources: KeySources,
    /// The container's endpoint, checked.
    container: Option<Url>,
    /// What is known now.
    state: Mutex<State>,
    /// Signalled after each look.
    looked: Condvar,
}

/// What a keyring knows.
#[derive(Default)]
struct State {
    /// The key that was found last.
    held: Option<Credentials>,
    /// When the last look ended.
    looked_at: Option<Instant>,
    /// Why the last look found nothing.
    failure: Option<String>,
    /// Somebody looks now.
    looking: bool,
}

impl Keyring {
    /// Checks the sources' addresses. Nothing is asked yet.
    pub(super) fn new(mut sources: KeySources) -> Result<Keyring, SettingsError> {
        let container = local::choose_container(&sources)?;
        if let Some(url) = &mut sources.metadata_endpoint {
            *url = endpoints::custom("AWS_EC2_METADATA_SERVICE_ENDPOINT", url, "")?.base;
        }
        Ok(Keyring { sources, container, state: Mutex::default(), looked: Condvar::new() })
    }

    /// The key to sign with now.
    pub(super) fn current(
        &self,
        operation: &'static str,
        caller: &Caller<'_>,
        deadline: Instant,
    ) -> Result<Credentials, AwsError> {
        let mut state = self.state();
        loop {
            let now = caller.aws.clock.now();
            let recent = state.looked_at.is_some_and(|at| at.elapsed() < LOOK_INTERVAL);
            // A source that gives a key whose time is over has reasons; AWS decides.
            let believed = recent && state.failure.is_none();
            let usable = |it: &&Credentials| {
                let good = it.lasts(now, SignedDuration::ZERO) && (recent || state.looking);
                it.lasts(now, RENEW_BEFORE) || good || believed
            };
            if let Some(key) = state.held.as_ref().filter(usable) {
                return Ok(key.clone());
            }
            if let Some(cause) = state.failure.as_ref().filter(|_| recent) {
                return Err(AwsError::NoCredentials { operation, cause: cause.clone() });
            }
            if Instant::now() >= deadline {
                return Err(AwsError::Deadline { operation });
            }
            state = self.look(state, caller, deadline);
        }
    }

    /// Looks for another key than the one that AWS refused; whether there is one.
    pub(super) fn replace(&self, refused: &Credentials, caller: &Caller<'_>, deadline: Instant) -> bool {
        let mut state = self.state();
        if state.held.as_ref() == Some(refused) {
            state = self.look(state, caller, deadline);
        }
        state.held.as_ref().is_some_and(|it| it != refused)
    }

    /// Looks at the sources, or waits for the one who does.
    fn look<'k>(
        &'k self,
        mut state: MutexGuard<'k, State>,
        caller: &Caller<'_>,
        deadline: Instant,
    ) -> MutexGuard<'k, State> {
        if state.looking {
            let left = deadline.saturating_duration_since(Instant::now());
            return self.looked.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.looking = true;
        drop(state);
        let found = catch_unwind(AssertUnwindSafe(|| self.find(caller, deadline)));
        let found = found.unwrap_or_else(|_| Err("the broker failed while it looked".to_owned()));
        let mut state = self.state();
        state.looking = false;
        state.looked_at = Some(Instant::now());
        match found {
            Ok((source, key)) => {
                if state.held.as_ref() != Some(&key) {
                    let ends = key.expires.map_or("never".to_owned(), |it| it.to_string());
                    log::info!("credentials found: source={source} key={} ends={ends}", key.access_key_id);
                }
                (state.held, state.failure) = (Some(key), None);
            }
            Err(cause) => {
                log::warn!("no credentials found: cause={cause:?}");
                state.failure = Some(cause);
            }
        }
        self.looked.notify_all();
        state
    }

    /// The first key there is, and the name of its source.
    fn find(&self, caller: &Caller<'_>, deadline: Instant) -> Result<(&'static str, Credentials), String> {
        let sources = &self.sources;
        if let Some((id, secret)) = &sources.key {
            let session_token = sources.session_token.clone();
            return Ok(("environment", Credentials { session_token, ..Credentials::lasting(id, secret) }));
        }
        if let Some(role) = &sources.web_identity {
            let token = read_file(&role.token_file)?;
            let session = role.session_name.as_deref();
            let assumed =
                caller.assume_role_with_web_identity(&role.role_arn, session, token.trim(), deadline);
            return assumed.map(|key| ("web identity", key)).map_err(|err| err.to_string());
        }
        if let Some(key) = profile::find(sources)? {
            return Ok(("shared files", key));
        }
        if let Some(url) = &self.container {
            return local::ask_container(url, sources, caller, deadline).map(|key| ("container", key));
        }
        match &sources.metadata_endpoint {
            Some(base) => local::ask_metadata(base, caller, deadline).map(|key| ("instance metadata", key)),
            None => Err("none in the shared files, and no other source is set".to_owned()),
        }
    }

    /// What is known now. A panic elsewhere cannot leave it half changed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file that must be there. The cause names it: it is the operator's to repair.
fn read_file(path: &str) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|err| format!("{path} cannot be read: {}", err.kind()))
}

#[cfg(test)]
mod tests;
