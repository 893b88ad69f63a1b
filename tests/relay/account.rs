//! What AWS would know of an account after the calls that went by: users, their keys and policies. From it come the
//! refusals that one or the other engine forgets.
//!
//! Sources: IAM API Reference, CreateAccessKey, DeleteUser, DeletePolicy, PutUserPolicy; IAM User Guide, "IAM and
//! AWS STS quotas"; S3 User Guide, "Verifying bucket ownership with bucket owner condition".

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::call::Call;
use super::refusal::Refusal;
use super::wire::{Answer, Request};

/// Access keys that a user may have.
const KEYS_MAX: usize = 2;
/// Inline policies of a user together, in characters other than white space.
const INLINE_CHARACTERS_MAX: usize = 2_048;

/// An account as far as it was seen.
#[derive(Default)]
pub(crate) struct Account {
    /// Its number; unknown when empty, and then no owner is checked.
    pub(crate) id: String,
    /// Keys that were there before; when none is given, unknown keys are let through to the engine.
    first_keys: HashSet<String>,
    /// All keys that were ever made.
    keys: HashMap<String, Key>,
    /// The users that there are.
    users: HashMap<String, User>,
}

/// An access key.
struct Key {
    /// Whose.
    user: String,
    /// When it was seen to be made.
    made: Instant,
    /// Whether it is gone.
    is_deleted: bool,
}

/// An IAM user.
#[derive(Default)]
struct User {
    /// Inline policies and how long they are.
    inline: HashMap<String, usize>,
    /// ARNs of attached policies.
    attached: HashSet<String>,
}

impl Account {
    /// An account with these keys in it.
    pub(crate) fn new(id: String, first_keys: HashSet<String>) -> Account {
        Account { id, first_keys, ..Account::default() }
    }

    /// Takes note of a call that was carried out.
    pub(crate) fn learn(&mut self, call: &Call, answer: &Answer) {
        if !(200..300).contains(&answer.status) {
            return;
        }
        let text = |name: &str| call.parameter(name).unwrap_or_default().to_owned();
        let name = call.user().to_owned();
        match call.operation.as_str() {
            "CreateUser" => drop(self.users.insert(name, User::default())),
            "DeleteUser" => drop(self.users.remove(&name)),
            "CreateAccessKey" => {
                let body = String::from_utf8_lossy(&answer.body);
                if let Some(id) = between(&body, "<AccessKeyId>", "</AccessKeyId>") {
                    let key = Key { user: name, made: Instant::now(), is_deleted: false };
                    self.keys.insert(id.to_owned(), key);
                }
            }
            "DeleteAccessKey" => {
                if let Some(key) = self.keys.get_mut(&text("AccessKeyId")) {
                    key.is_deleted = true;
                }
            }
            "PutUserPolicy" => {
                let length = inline_length(&text("PolicyDocument"));
                self.users.entry(name).or_default().inline.insert(text("PolicyName"), length);
            }
            "DeleteUserPolicy" => {
                self.users.entry(name).or_default().inline.remove(&text("PolicyName"));
            }
            "AttachUserPolicy" => {
                self.users.entry(name).or_default().attached.insert(text("PolicyArn"));
            }
            "DetachUserPolicy" => {
                self.users.entry(name).or_default().attached.remove(&text("PolicyArn"));
            }
            _ => {}
        }
    }

    /// How old a key is that was made here.
    pub(crate) fn age(&self, key: &str) -> Option<Duration> {
        self.keys.get(key).map(|it| it.made.elapsed())
    }

    /// Whether there is such a user.
    pub(crate) fn has_user(&self, name: &str) -> bool {
        self.users.contains_key(name)
    }

    /// What AWS would refuse in the state that it is in.
    pub(crate) fn check(&self, call: &Call, request: &Request) -> Result<(), Refusal> {
        self.check_key(call)?;
        let owner = request.header("x-amz-expected-bucket-owner");
        if owner.is_some_and(|it| it != self.id && !self.id.is_empty()) {
            return Err(Refusal::fair(403, "AccessDenied", "Access Denied"));
        }
        let none = User::default();
        let user = self.users.get(call.user()).unwrap_or(&none);
        let keys = self.keys.values().filter(|it| it.user == call.user() && !it.is_deleted).count();
        match call.operation.as_str() {
            "CreateAccessKey" if keys >= KEYS_MAX => {
                Err(Refusal::fair(409, "LimitExceeded", "Cannot exceed quota for AccessKeysPerUser: 2"))
            }
            "DeleteUser" if keys > 0 => Err(conflict("must delete access keys first.")),
            "DeleteUser" if !user.attached.is_empty() => Err(conflict("must detach all policies first.")),
            "DeleteUser" if !user.inline.is_empty() => Err(conflict("must delete policies first.")),
            "DeletePolicy" => {
                let arn = call.parameter("PolicyArn").unwrap_or_default();
                match self.users.values().any(|it| it.attached.contains(arn)) {
                    true => Err(conflict("must detach it from all entities first.")),
                    false => Ok(()),
                }
            }
            "PutUserPolicy" => {
                let name = call.parameter("PolicyName").unwrap_or_default();
                let others = user.inline.iter().filter(|(other, _)| *other != name);
                let all: usize = others.map(|(_, length)| length).sum();
                let own = inline_length(call.parameter("PolicyDocument").unwrap_or_default());
                match all + own > INLINE_CHARACTERS_MAX {
                    true => Err(Refusal::violation(
                        409,
                        "LimitExceeded",
                        format!("Maximum policy size of 2048 bytes exceeded for user {}", call.user()),
                    )),
                    false => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// Refuses calls without a key, with one that an engine takes on trust, and with one that is not there.
    fn check_key(&self, call: &Call) -> Result<(), Refusal> {
        let Some(key) = &call.access_key else {
            return Err(Refusal::violation(403, "AccessDenied", "the call bears no signature"));
        };
        let is_account = key.len() == 12 && key.bytes().all(|it| it.is_ascii_digit());
        if is_account || key.to_ascii_lowercase().starts_with("test") {
            let message = "no such key: emulators take it for their own";
            return Err(Refusal::violation(403, unknown_key(call), message));
        }
        let is_known = self.first_keys.contains(key) || self.keys.get(key).is_some_and(|it| !it.is_deleted);
        match is_known || self.first_keys.is_empty() {
            true => Ok(()),
            false => Err(Refusal::fair(403, unknown_key(call), "The AWS Access Key Id does not exist.")),
        }
    }
}

/// How S3 and the others call a key that they do not know.
pub(crate) fn unknown_key(call: &Call) -> &'static str {
    if call.is_s3() { "InvalidAccessKeyId" } else { "InvalidClientTokenId" }
}

/// What still hangs on an entity.
fn conflict(rest: &str) -> Refusal {
    Refusal::fair(409, "DeleteConflict", format!("Cannot delete entity, {rest}"))
}

/// How long IAM says a policy is.
fn inline_length(document: &str) -> usize {
    document.chars().filter(|it| !it.is_whitespace()).count()
}

/// What stands between two texts.
pub(crate) fn between<'t>(text: &'t str, before: &str, after: &str) -> Option<&'t str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(found, _)| found)
}
