//! What a request must hold before anything is looked up for it.

use serde_json::Value;

use super::{BrokerError, Habits};
use crate::store::{PlanRow, Transaction};

/// `service_id` and `plan_id` of a DELETE. Mandatory for the specification, not for Akkeris.
#[derive(Debug, Clone)]
pub(crate) struct CatalogQuery {
    /// As sent.
    pub(crate) service_id: Option<String>,
    /// As sent.
    pub(crate) plan_id: Option<String>,
    /// Whether they may be left out.
    pub(crate) habits: Habits,
}

impl CatalogQuery {
    /// Refuses what is missing, and what no plan of ours ever was.
    pub(super) fn check(&self, tx: &mut Transaction<'_>) -> Result<(), BrokerError> {
        let sent = |it: &Option<String>| it.as_deref().is_some_and(|it| !it.is_empty());
        if sent(&self.service_id) && sent(&self.plan_id) {
            let (offering, plan) = catalog_ids(&self.service_id, &self.plan_id)?;
            return known_plan(tx, offering, plan).map(drop);
        }
        if self.habits.strict { catalog_ids(&self.service_id, &self.plan_id).map(drop) } else { Ok(()) }
    }
}

/// Both ids of a request, or what is missing.
pub(super) fn catalog_ids<'a>(
    service_id: &'a Option<String>,
    plan_id: &'a Option<String>,
) -> Result<(&'a str, &'a str), BrokerError> {
    let offering = mandatory(service_id, "service_id is missing or empty")?;
    Ok((offering, mandatory(plan_id, "plan_id is missing or empty")?))
}

/// Text that must be there, and that PostgreSQL can keep.
pub(super) fn mandatory<'a>(
    sent: &'a Option<String>,
    complaint: &'static str,
) -> Result<&'a str, BrokerError> {
    match sent.as_deref() {
        None | Some("") => Err(BrokerError::BadRequest(complaint)),
        Some(text) if text.contains('\0') => Err(BrokerError::BadRequest("a field holds a NUL")),
        Some(text) if text.len() > FIELD_BYTES_MAX => Err(BrokerError::BadRequest("a field is too long")),
        Some(text) => Ok(text),
    }
}

/// Longest mandatory field, in bytes.
const FIELD_BYTES_MAX: usize = 1_024;

/// The plan, sold or not: live instances outlive it.
pub(super) fn known_plan(
    tx: &mut Transaction<'_>,
    offering: &str,
    plan: &str,
) -> Result<PlanRow, BrokerError> {
    let found = tx.find_plan(plan)?.ok_or(BrokerError::BadRequest("plan_id is not in the catalog"))?;
    if found.offering == offering {
        Ok(found)
    } else {
        Err(BrokerError::BadRequest("service_id is not in the catalog, or the plan is not one of its plans"))
    }
}

/// Plans say what an instance is; there are no parameters, and none is ignored in silence.
pub(super) fn refuse_parameters(parameters: Option<&Value>) -> Result<(), BrokerError> {
    match parameters {
        None => Ok(()),
        Some(Value::Object(map)) if map.is_empty() => Ok(()),
        Some(Value::Object(_)) => {
            Err(BrokerError::BadRequest("this offering takes no parameters; choose a plan"))
        }
        Some(_) => Err(BrokerError::BadRequest("parameters must be an object")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parameters_are_never_ignored_in_silence() {
        for fine in [None, Some(json!({}))] {
            assert!(refuse_parameters(fine.as_ref()).is_ok());
        }
        for bad in [json!({"versioned": true}), json!([]), json!("x"), json!(1)] {
            assert!(refuse_parameters(Some(&bad)).is_err(), "{bad}");
        }
    }
}
