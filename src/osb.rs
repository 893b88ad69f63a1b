//! The vocabulary of the Open Service Broker API as it stands on the wire: ids, requests, answers.
//!
//! No behaviour. What is optional here is what the specification leaves optional; unknown fields
//! are ignored, as it demands.
//!
//! Source: Open Service Broker API 2.17, spec.md; the sections are named at the types.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest id that is taken, in bytes. The specification sets no limit; a URL line does.
const ID_BYTES_MAX: usize = 255;

/// An id that the platform chose: of a service instance or a service binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Id(String);

impl Id {
    /// Takes any text that can be kept and logged.
    pub(crate) fn parse(text: String) -> Result<Id, &'static str> {
        match text.len() {
            0 => Err("an id is empty"),
            1..=ID_BYTES_MAX if text.chars().any(char::is_control) => Err("an id holds a control character"),
            1..=ID_BYTES_MAX => Ok(Id(text)),
            _ => Err("an id is longer than 255 bytes"),
        }
    }

    /// The text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Body of `PUT /v2/service_instances/{instance_id}` ("Provisioning").
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ProvisionRequest {
    /// Mandatory.
    pub(crate) service_id: Option<String>,
    /// Mandatory.
    pub(crate) plan_id: Option<String>,
    /// Mandatory.
    pub(crate) organization_guid: Option<String>,
    /// Mandatory.
    pub(crate) space_guid: Option<String>,
    /// An object.
    pub(crate) parameters: Option<Value>,
    /// What the platform believes to be the plan's.
    pub(crate) maintenance_info: Option<MaintenanceInfo>,
}

/// Body of `PATCH /v2/service_instances/{instance_id}` ("Updating a Service Instance"). What the platform says of the
/// plan before (`previous_values`) is not needed.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct UpdateRequest {
    /// Mandatory.
    pub(crate) service_id: Option<String>,
    /// Without it the plan stays.
    pub(crate) plan_id: Option<String>,
    /// An object.
    pub(crate) parameters: Option<Value>,
    /// What the platform believes to be the plan's.
    pub(crate) maintenance_info: Option<MaintenanceInfo>,
}

/// Body of `PUT …/service_bindings/{binding_id}` ("Binding").
#[derive(Debug, Default, Deserialize)]
pub(crate) struct BindRequest {
    /// Mandatory.
    pub(crate) service_id: Option<String>,
    /// Mandatory.
    pub(crate) plan_id: Option<String>,
    /// Deprecated form of `bind_resource.app_guid`.
    pub(crate) app_guid: Option<String>,
    /// What is bound.
    pub(crate) bind_resource: Option<BindResource>,
    /// An object.
    pub(crate) parameters: Option<Value>,
}

/// What a binding is for.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct BindResource {
    /// The app.
    pub(crate) app_guid: Option<String>,
}

/// "Maintenance Info Object".
#[derive(Debug, Deserialize)]
pub(crate) struct MaintenanceInfo {
    /// The only part that is compared.
    pub(crate) version: Option<String>,
}

/// `GET /v2/catalog`.
#[derive(Debug, Serialize)]
pub(crate) struct Catalog {
    /// What is sold.
    pub(crate) services: Vec<Offering>,
}

/// "Service Offering Object".
#[derive(Debug, Serialize)]
pub(crate) struct Offering {
    /// Never changes.
    pub(crate) id: String,
    /// Unique, for command lines.
    pub(crate) name: String,
    /// Never empty.
    pub(crate) description: String,
    /// Free words.
    pub(crate) tags: Vec<String>,
    /// Whether its instances can be bound.
    pub(crate) bindable: bool,
    /// Whether a binding can be fetched.
    pub(crate) bindings_retrievable: bool,
    /// Whether an instance can change its plan.
    pub(crate) plan_updateable: bool,
    /// At least one.
    pub(crate) plans: Vec<Plan>,
    /// For the platform's user interface.
    pub(crate) metadata: Value,
}

/// "Service Plan Object".
#[derive(Debug, Serialize)]
pub(crate) struct Plan {
    /// Never changes.
    pub(crate) id: String,
    /// Unique within the offering.
    pub(crate) name: String,
    /// Never empty.
    pub(crate) description: String,
    /// Whether it costs nothing.
    pub(crate) free: bool,
    /// For the platform's user interface; Akkeris reads most of what it knows from here.
    pub(crate) metadata: Value,
    /// What parameters are understood.
    pub(crate) schemas: Value,
}

/// Where the actions of an instance are; an extension that Akkeris knows.
#[derive(Debug, Serialize)]
pub(crate) struct ExtensionApi {
    /// Describes an action.
    pub(crate) discovery_url: String,
    /// What the actions' paths begin with.
    pub(crate) server_url: String,
}

/// Body of the answer to a provision.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Provisioned {
    /// In a 202: the task's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) operation: Option<String>,
    /// For Akkeris: where the actions are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) extension_apis: Vec<ExtensionApi>,
}

/// What the action `rotate_credentials` answers. Holds a secret: not to be logged.
#[derive(Serialize)]
pub(crate) struct AccessKey {
    /// The user's ARN.
    #[serde(rename = "ARN")]
    pub(crate) arn: String,
    /// The user.
    #[serde(rename = "UserName")]
    pub(crate) user_name: String,
    /// The new key's id.
    #[serde(rename = "AccessKeyId")]
    pub(crate) access_key_id: String,
    /// Its secret.
    #[serde(rename = "SecretAccessKey")]
    pub(crate) secret_access_key: String,
}

/// An empty object, where the specification wants just that.
#[derive(Debug, Serialize)]
pub(crate) struct Empty {}

/// Body of a 202.
#[derive(Debug, Serialize)]
pub(crate) struct Accepted<'a> {
    /// Given back by the platform when it polls; the task's id.
    pub(crate) operation: &'a str,
}

/// `GET …/last_operation` ("Polling Last Operation").
#[derive(Debug, Serialize)]
pub(crate) struct LastOperation {
    /// How it stands.
    pub(crate) state: OperationState,
    /// For people; never empty.
    pub(crate) description: String,
}

/// States of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum OperationState {
    /// Poll again.
    #[serde(rename = "in progress")]
    InProgress,
    /// Done.
    #[serde(rename = "succeeded")]
    Succeeded,
    /// Over, in vain.
    #[serde(rename = "failed")]
    Failed,
}

/// Body of a binding. Flat, all values text: Akkeris makes config vars of it.
#[derive(Debug, Serialize)]
pub(crate) struct BindingResponse {
    /// What the app needs to reach its bucket. Holds a secret: not to be logged.
    pub(crate) credentials: Credentials,
}

/// Names and values of config vars.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Credentials(pub(crate) BTreeMap<&'static str, String>);

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// Body of an error ("Broker Errors").
#[derive(Debug, Serialize)]
pub(crate) struct ErrorBody {
    /// One of the specification's codes, where it wants one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<&'static str>,
    /// For people; never empty.
    pub(crate) description: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_any_text_that_can_be_kept() {
        for good in ["a", "550e8400-e29b-41d4-a716-446655440000", "with/slash and ünicode", &"x".repeat(255)]
        {
            assert!(Id::parse(good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["", "nul\0", "line\nfeed", "\u{7f}", &"x".repeat(256)] {
            assert!(Id::parse(bad.to_owned()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn unknown_fields_are_ignored_and_null_is_absent() {
        let text = r#"{"service_id":"s","plan_id":null,"vendor":{"x":[1]},"context":{},"parameters":null}"#;
        let request: ProvisionRequest = serde_json::from_str(text).unwrap();
        assert_eq!((request.service_id.as_deref(), request.plan_id), (Some("s"), None));
        assert!(request.parameters.is_none());
    }

    #[test]
    fn states_are_spelled_as_the_specification_does() {
        let states = [OperationState::InProgress, OperationState::Succeeded, OperationState::Failed];
        assert_eq!(serde_json::to_string(&states).unwrap(), r#"["in progress","succeeded","failed"]"#);
    }

    #[test]
    fn credentials_cannot_be_printed() {
        let credentials = Credentials([("S3_SECRET_KEY", "hush".to_owned())].into());
        assert!(!format!("{:?}", BindingResponse { credentials }).contains("hush"));
    }
}
