//! STS: who we are.
//!
//! Not here: temporary credentials; the broker signs with a key of its own.
//!
//! Sources: STS API Reference, GetCallerIdentity.

use super::query::{Form, Service};
use super::{AwsError, Caller};

/// The owner of the key that signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CallerIdentity {
    /// The ARN of the user or of the assumed role.
    pub(crate) arn: String,
    /// The account.
    pub(crate) account: String,
}

impl Caller<'_> {
    /// Asks whose key this is. Needs no permission, so only a bad key makes it fail.
    pub(crate) fn get_caller_identity(&self) -> Result<CallerIdentity, AwsError> {
        let operation = "GetCallerIdentity";
        let service = Service { name: "sts", version: "2011-06-15", endpoint: &self.aws.endpoints.sts };
        let result = self.ask(&service, &Form::new(operation, &[]))?;
        let text = |name| {
            let text = result.find_text(&[name]).filter(|text| !text.is_empty()).map(str::to_owned);
            text.ok_or(AwsError::Malformed { operation, what: "an identity lacks a field" })
        };
        Ok(CallerIdentity { arn: text("Arn")?, account: text("Account")? })
    }
}
