//! STS: who we are, and the temporary key of a role.
//!
//! Not here: when a key is renewed (`credentials`).
//!
//! Sources: STS API Reference, GetCallerIdentity, AssumeRoleWithWebIdentity.

use std::sync::PoisonError;
use std::time::Instant;

use super::query::{self, Form, Service};
use super::{AwsError, Caller, Credentials, Signer};

/// Names our sessions in AWS' logs, unless the settings do.
const SESSION_NAME: &str = "servicebroker";

/// The owner of the key that signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CallerIdentity {
    /// The ARN of the user or of the assumed role.
    pub(crate) arn: String,
    /// The account.
    pub(crate) account: String,
}

impl Caller<'_> {
    /// STS as these calls need it.
    fn sts(&self) -> Service<'_> {
        Service { name: "sts", version: "2011-06-15", endpoint: &self.aws.endpoints.sts }
    }

    /// Whose key signs, asked once for each key.
    pub(crate) fn identity(&self) -> Result<CallerIdentity, AwsError> {
        let deadline = Instant::now() + self.aws.call_deadline;
        let key = self.aws.keyring.current("GetCallerIdentity", self, deadline)?.access_key_id;
        let known = || self.aws.identity.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, identity)) = known().as_ref().filter(|it| it.0 == key) {
            return Ok(identity.clone());
        }
        let identity = self.get_caller_identity()?;
        *known() = Some((key, identity.clone()));
        Ok(identity)
    }

    /// Asks whose key this is. Needs no permission, so only a bad key makes it fail.
    pub(super) fn get_caller_identity(&self) -> Result<CallerIdentity, AwsError> {
        let operation = "GetCallerIdentity";
        let result = self.ask(&self.sts(), &Form::new(operation, &[]))?;
        let text = |name| {
            let text = result.find_text(&[name]).filter(|text| !text.is_empty()).map(str::to_owned);
            text.ok_or(AwsError::Malformed { operation, what: "an identity lacks a field" })
        };
        Ok(CallerIdentity { arn: text("Arn")?, account: text("Account")? })
    }

    /// Assumes a role with a token that somebody else signed. Nothing of ours signs this call.
    pub(super) fn assume_role_with_web_identity(
        &self,
        role_arn: &str,
        session_name: Option<&str>,
        token: &str,
        deadline: Instant,
    ) -> Result<Credentials, AwsError> {
        let session = session_name.unwrap_or(SESSION_NAME);
        let parameters = [("RoleArn", role_arn), ("RoleSessionName", session), ("WebIdentityToken", token)];
        let operation = "AssumeRoleWithWebIdentity";
        let call = Form::new(operation, &parameters).call(&self.sts())?;
        let unsigned = Caller { signer: Signer::Nobody, ..*self };
        let result = query::result(unsigned.send_before(&call, deadline)?)?;
        let field = |name: &str| result.find_text(&["Credentials", name]).map(str::to_owned);
        let key = Credentials::read(field, "SessionToken");
        key.ok_or(AwsError::Malformed { operation, what: "a key lacks a field" })
    }
}
