//! The key that signs calls, and the keyring that finds and renews the broker's own.
//!
//! Not here: which sources were set (`config`), how each is asked (`local`, `profile`, `sts`), how keys sign
//! (`sigv4`, `s3`), which answers mean that a key is refused (`cure`).
//!
//! Invariants
//! - Nothing in a key but its id can be printed, and no cause of a failure holds a token.
//! - Key, secret, token and expiry are one value and never mixed with those of another.
//! - One thread looks at a time; the others use the old key while it is good, else they wait, and nobody
//!   waits beyond the deadline of the call. While the old key is good, who looks keeps time for its call.
//! - What failed because of who looked (its time, its permit) says nothing to the others.
//! - A source that is set and fails is an error. The next one is not tried in its place.
//!
//! Sources: AWS SDKs and Tools Reference Guide, "Credential provider chain"; botocore's
//! `RefreshableCredentials`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use url::Url;

use super::{AwsError, Caller, SettingsError};
use crate::config::{KeySources, Secret};

mod local;
mod profile;

/// How long before its end a temporary key is renewed.
const RENEW_BEFORE: SignedDuration = SignedDuration::from_mins(5);
/// How long after a look there is no other, unless AWS refuses what it found.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How long the look for another key may take while the one at hand is good.
const RENEWAL_LIMIT: Duration = Duration::from_secs(2);

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

/// Why a look found nothing.
enum Failure {
    /// Who looked may not make calls any more.
    Halted(AwsError),
    /// The source, in words.
    Source(String),
}

impl From<String> for Failure {
    fn from(cause: String) -> Failure {
        Failure::Source(cause)
    }
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
            *url = local::check_metadata(url)?;
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
            let is_good = |it: &Credentials| it.lasts(now, SignedDuration::ZERO);
            state = match state.held.as_ref().is_some_and(is_good) {
                _ if state.looking => self.wait(state, deadline),
                true => self.look(state, caller, Instant::now() + span_of_renewal(deadline), true)?,
                false => self.look(state, caller, deadline, false)?,
            };
        }
    }

    /// Looks for another key than the one that AWS refused; whether there is one.
    pub(super) fn replace(&self, refused: &Credentials, caller: &Caller<'_>, deadline: Instant) -> bool {
        let mut state = self.state();
        if state.held.as_ref() == Some(refused) && !state.looking {
            match self.look(state, caller, deadline, false) {
                Ok(looked) => state = looked,
                Err(_) => return false,
            }
        }
        while state.looking && Instant::now() < deadline {
            state = self.wait(state, deadline);
        }
        state.held.as_ref().is_some_and(|it| it != refused)
    }

    /// Waits for a look to end; it may also return before.
    fn wait<'k>(&'k self, state: MutexGuard<'k, State>, deadline: Instant) -> MutexGuard<'k, State> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.looked.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Looks at the sources. Without a key that is good it is everybody's failure only if there was time.
    ///
    /// # Errors
    /// The permit was withheld.
    fn look<'k>(
        &'k self,
        mut state: MutexGuard<'k, State>,
        caller: &Caller<'_>,
        deadline: Instant,
        has_good_key: bool,
    ) -> Result<MutexGuard<'k, State>, AwsError> {
        state.looking = true;
        drop(state);
        let found = catch_unwind(AssertUnwindSafe(|| self.find(caller, deadline)));
        let found = found.unwrap_or_else(|_| Err("the broker failed while it looked".to_owned().into()));
        let mut state = self.state();
        state.looking = false;
        self.looked.notify_all();
        let now = Instant::now();
        match found {
            Ok((source, key)) => {
                if state.held.as_ref() != Some(&key) {
                    let ends = key.expires.map_or("never".to_owned(), |it| it.to_string());
                    log::info!("credentials found: source={source} key={} ends={ends}", key.access_key_id);
                }
                (state.held, state.failure, state.looked_at) = (Some(key), None, Some(now));
            }
            Err(Failure::Halted(err)) => return Err(err),
            Err(Failure::Source(cause)) => {
                log::warn!("no credentials found: cause={cause:?}");
                if has_good_key || now < deadline {
                    (state.failure, state.looked_at) = (Some(cause), Some(now));
                }
            }
        }
        Ok(state)
    }

    /// The first key there is, and the name of its source.
    fn find(&self, caller: &Caller<'_>, deadline: Instant) -> Result<(&'static str, Credentials), Failure> {
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
            return match assumed {
                Ok(key) => Ok(("web identity", key)),
                Err(err @ AwsError::Halted { .. }) => Err(Failure::Halted(err)),
                Err(err) => Err(err.to_string().into()),
            };
        }
        if let Some(key) = profile::find(sources)? {
            return Ok(("shared files", key));
        }
        if let Some(url) = &self.container {
            return Ok(("container", local::ask_container(url, sources, caller, deadline)?));
        }
        match &sources.metadata_endpoint {
            Some(base) => Ok(("instance metadata", local::ask_metadata(base, caller, deadline)?)),
            None => Err("none in the shared files, and no other source is set".to_owned().into()),
        }
    }

    /// What is known now. A panic elsewhere cannot leave it half changed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a look may take for a call that has a key and must end by then: the call needs time too.
fn span_of_renewal(deadline: Instant) -> Duration {
    RENEWAL_LIMIT.min(deadline.saturating_duration_since(Instant::now()) / 2)
}

/// A file that must be there. The cause names it: it is the operator's to repair.
fn read_file(path: &str) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|err| format!("{path} cannot be read: {}", err.kind()))
}

#[cfg(test)]
mod looks;
#[cfg(test)]
mod tests;
