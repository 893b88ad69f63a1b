//! Whom the platform wants told how an operation ended, as it stands in the metadata of tasks.
//!
//! Not here: the telling (`worker::notify`), which URLs may be called (`outgoing`).
//!
//! Invariants
//! - A provision that ends, however it ends, enqueues its notice in the same transaction.
//! - A task that has ended names neither URL nor secret.
//!
//! Source: the old broker's metadata of notices, `{"url", "secret"}`, which are still read.

use std::fmt;

use postgres::types::Type;
use serde::{Deserialize, Serialize};

use super::kinds::TaskKind;
use super::listen::DUE;
use super::{StoreError, Transaction};
use crate::config::Secret;

/// Whom to tell, and by what it knows us. Cannot be printed: receivers put keys into paths.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Webhook {
    /// Where to send to.
    url: String,
    /// What the message is signed with.
    secret: String,
}

/// What a provision's metadata may hold.
#[derive(Serialize, Deserialize)]
struct Wish {
    /// Who wants to be told of its end.
    webhook: Webhook,
}

/// What is told to whom: the metadata of a notice.
#[derive(Serialize, Deserialize)]
pub(crate) struct Notice {
    /// To whom.
    #[serde(flatten)]
    webhook: Webhook,
    /// What; the old broker told of success only.
    #[serde(flatten, default)]
    told: Told,
}

/// The message.
#[derive(Serialize, Deserialize)]
#[serde(default)]
struct Told {
    /// As in `last_operation`.
    state: String,
    /// For people.
    description: String,
}

impl Default for Told {
    fn default() -> Told {
        Told { state: "succeeded".to_owned(), description: "available".to_owned() }
    }
}

/// A task that ends.
pub(super) struct Ended<'a> {
    /// The task's id.
    pub(super) task: &'a str,
    /// The instance that it worked on.
    pub(super) instance: &'a str,
    /// What it was to do.
    pub(super) kind: &'a TaskKind,
    /// What it needed to know.
    pub(super) metadata: &'a str,
    /// Whether it did what it was to do.
    pub(super) succeeded: bool,
    /// What is said of it.
    pub(super) result: &'a str,
}

/// `$1` instance, `$2` action, `$3` metadata.
const ENQUEUE: &str = "
    insert into tasks (task, resource, action, metadata) values (gen_random_uuid(), $1, $2, $3)
    returning task::text";

impl Webhook {
    /// A URL that was checked, and a secret.
    pub(crate) fn new(url: &Secret, secret: &Secret) -> Webhook {
        Webhook { url: url.expose().to_owned(), secret: secret.expose().to_owned() }
    }

    /// As metadata of the provision whose end it is to be told of.
    pub(crate) fn to_metadata(&self) -> Result<String, StoreError> {
        to_json(&Wish { webhook: self.clone() })
    }
}

impl Notice {
    /// From a notice's metadata, if that names anybody.
    pub(crate) fn parse(metadata: &str) -> Option<Notice> {
        serde_json::from_str(metadata).ok()
    }

    /// Where to send to, as it was written down.
    pub(crate) fn url(&self) -> &str {
        &self.webhook.url
    }

    /// What to sign with.
    pub(crate) fn secret(&self) -> Secret {
        Secret::new(&self.webhook.secret)
    }

    /// What to send.
    pub(crate) fn body(&self) -> Result<Vec<u8>, StoreError> {
        to_json(&self.told).map(String::into_bytes)
    }
}

impl Transaction<'_> {
    /// Enqueues the notice that something has ended.
    pub(crate) fn enqueue_notice(
        &mut self,
        instance: &str,
        kind: &TaskKind,
        webhook: &Webhook,
        succeeded: bool,
        description: &str,
    ) -> Result<(), StoreError> {
        let state = if succeeded { "succeeded" } else { "failed" }.to_owned();
        let told = Told { state, description: description.to_owned() };
        let metadata = to_json(&Notice { webhook: webhook.clone(), told })?;
        let parameters: [super::Parameter<'_>; 3] =
            [(&instance, Type::TEXT), (&kind.as_str(), Type::TEXT), (&metadata, Type::TEXT)];
        let task: String = self.query_one(ENQUEUE, &parameters)?.try_get("task")?;
        self.notify(DUE, &task)
    }

    /// A task ends: who wanted to know will be told, and the task itself forgets who that was.
    pub(super) fn settle_webhook(&mut self, ended: &Ended<'_>) -> Result<(), StoreError> {
        if ended.kind.is_notice() {
            return self.remember(ended.task, "{}");
        }
        if *ended.kind != TaskKind::Provision {
            return Ok(());
        }
        let Ok(Wish { webhook }) = serde_json::from_str(ended.metadata) else {
            return Ok(()); // nobody wanted to know
        };
        self.remember(ended.task, "{}")?;
        let kind = TaskKind::NotifyCreateService;
        self.enqueue_notice(ended.instance, &kind, &webhook, ended.succeeded, ended.result)
    }
}

/// As JSON; there is nothing in these types that could not be written.
fn to_json(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|_| StoreError::Unreadable("webhook"))
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Webhook(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook() -> Webhook {
        Webhook::new(&Secret::new("https://h/planted"), &Secret::new("planted \"too\""))
    }

    #[test]
    fn notices_survive_their_metadata_and_those_of_the_old_broker_are_read() {
        let told = Told { state: "failed".to_owned(), description: "no \"room\"".to_owned() };
        let written = to_json(&Notice { webhook: webhook(), told }).unwrap();
        let notice = Notice::parse(&written).unwrap();
        assert!(notice.webhook == webhook());
        let body = String::from_utf8(notice.body().unwrap()).unwrap();
        assert_eq!(body, r#"{"state":"failed","description":"no \"room\""}"#);
        let old = Notice::parse(r#"{"url":"http://h/","secret":"s"}"#).unwrap();
        assert_eq!((old.url(), old.secret().expose()), ("http://h/", "s"));
        assert_eq!(old.body().unwrap(), br#"{"state":"succeeded","description":"available"}"#);
        for nothing in ["", "{}", "[]", r#"{"url":"http://h/"}"#] {
            assert!(Notice::parse(nothing).is_none(), "{nothing}");
        }
    }

    #[test]
    fn a_webhook_cannot_be_printed() {
        assert!(!format!("{:?}", webhook()).contains("planted"));
        assert!(webhook().to_metadata().unwrap().starts_with(r#"{"webhook":{"url":"#));
    }
}
