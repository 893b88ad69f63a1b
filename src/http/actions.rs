//! Changes of plan and the actions of an instance: what waits for a task and then says how it went.

use serde_json::{Value, json};

use super::call::Call;
use super::desk::{Desk, Wait};
use super::reply::Reply;
use crate::broker::{self, BrokerError, Outcome, Update};
use crate::osb::{ExtensionApi, Id};
use crate::store::TaskState;

/// What is said of a rotation that goes on.
const KEY_TO_COME: &str =
    "the new access key is being made; the service bindings give it out as soon as it works";

impl Desk {
    /// `PATCH /v2/service_instances/{instance_id}` (OSB 2.17, "Updating a Service Instance").
    pub(super) fn patch_service_instance(&self, id: &Id, call: &Call) -> Result<Reply, BrokerError> {
        let request = self.body(call)?;
        let (key, accepts_incomplete, wait) = (id.clone(), call.accepts_incomplete(), self.waits());
        let (outcome, _) = self.await_task(move |store, fresh| {
            store.transaction(move |tx| broker::update(tx, &key, &request, accepts_incomplete, wait, &fresh))
        })?;
        let is_joined = matches!(outcome, Outcome::InProgress { .. });
        let (Outcome::Enqueued { operation } | Outcome::InProgress { operation }) = outcome else {
            return Ok(Reply::empty(200));
        };
        if wait.is_none() {
            return Ok(Reply::accepted(&operation)); // no worker had a chance to begin it
        }
        if is_joined && self.join(&operation) == Wait::None {
            return Err(BrokerError::Busy("the plan is being changed")); // what another asked for is not withdrawn
        }
        let (key, of) = (id.clone(), operation.clone());
        match self.store.transaction(move |tx| broker::conclude_update(tx, &key, &of))? {
            Update::Applied => Ok(Reply::empty(200)),
            Update::Running => Ok(Reply::accepted(&operation)),
            Update::Withdrawn => Err(BrokerError::NoWorker),
            Update::Refused(reason) => Ok(Reply::error(422, None, format!("the plan stays: {reason}"))),
        }
    }

    /// `PUT …/actions/credentials`: the action `rotate_credentials`.
    pub(super) fn put_credentials(&self, id: &Id) -> Result<Reply, BrokerError> {
        let key = id.clone();
        let (outcome, mut wait) = self
            .await_task(move |store, fresh| store.transaction(move |tx| broker::rotate(tx, &key, &fresh)))?;
        let operation = match outcome {
            Outcome::Done | Outcome::Claimed => {
                wait = Wait::Ended(TaskState::Finished);
                String::new()
            }
            Outcome::InProgress { operation } => {
                wait = self.join(&operation);
                operation
            }
            Outcome::Enqueued { operation } => operation,
        };
        let key = id.clone();
        match wait {
            Wait::Ended(TaskState::Finished) => {
                let made = self.store.transaction(move |tx| broker::rotated(tx, &key))?;
                Ok(Reply::json(200, &made))
            }
            Wait::Ended(_) => {
                let why = self.store.transaction(move |tx| broker::not_rotated(tx, &key, &operation))?;
                Ok(Reply::error(502, None, format!("the access key stays: {why}")))
            }
            Wait::None | Wait::Over => Ok(Reply::json(202, &json!({ "description": KEY_TO_COME }))),
        }
    }
}

/// Where the actions of an instance are.
pub(super) fn extension_apis(id: &Id) -> Vec<ExtensionApi> {
    let server_url = format!("{}/actions/", path_of(id));
    vec![ExtensionApi { discovery_url: format!("{server_url}rotate_credentials/schema"), server_url }]
}

/// `GET …/actions/rotate_credentials/schema`: an OpenAPI 3 description of the action.
pub(super) fn schema(id: &Id) -> Value {
    let text = json!({ "type": "string" });
    let object = |description: &str, properties: Value| {
        json!({ "description": description, "content": { "application/json": {
            "schema": { "type": "object", "properties": properties },
        }}})
    };
    let failure = |description: &str| object(description, json!({ "error": text, "description": text }));
    let mut paths = serde_json::Map::new();
    let action = json!({ "put": {
        "tags": ["rotate_credentials"],
        "operationId": "rotate_credentials",
        "summary": "Make a new access key",
        "description": "Makes a new access key for the bucket's user. The one before works on for a while.",
        "responses": {
            "200": object("The new access key", json!({
                "ARN": text, "UserName": text, "AccessKeyId": text, "SecretAccessKey": text,
            })),
            "202": object("The new access key is being made", json!({ "description": text })),
            "401": failure("Authentication is required"),
            "404": failure("There is no such service instance"),
            "422": failure("The service instance is being made or removed, or cannot be used"),
            "502": failure("AWS refused; the present access key stays"),
            "503": failure("The broker's database is not available"),
        },
    }});
    paths.insert("/credentials".to_owned(), action);
    json!({
        "openapi": "3.0.3",
        "info": { "title": "rotate_credentials", "version": "1.0.0", "description": "Actions of a service instance" },
        "servers": [{ "url": format!("{}/actions", path_of(id)), "description": "The service instance" }],
        "paths": paths,
    })
}

/// An instance's path, with its id as it must stand there.
fn path_of(id: &Id) -> String {
    let encoded = percent_encoding::utf8_percent_encode(id.as_str(), UNSAFE);
    format!("/v2/service_instances/{encoded}")
}

/// All but the unreserved characters of RFC 3986.
const UNSAFE: &percent_encoding::AsciiSet =
    &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_encoded_in_paths() {
        let id = Id::parse("a/b \"é".to_owned()).unwrap();
        let apis = extension_apis(&id);
        assert_eq!(apis[0].server_url, "/v2/service_instances/a%2Fb%20%22%C3%A9/actions/");
        assert!(apis[0].discovery_url.ends_with("/actions/rotate_credentials/schema"));
        assert!(schema(&id)["servers"][0]["url"].as_str().unwrap().ends_with("%C3%A9/actions"));
    }
}
