//! Rows of `services` and `plans`: what is sold. Operators edit them.

use std::collections::HashSet;

use postgres::Row;
use postgres::types::Type;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{StoreError, Transaction};

/// A row of `services`.
#[derive(Debug, Clone)]
pub(crate) struct OfferingRow {
    /// Its id.
    pub(crate) id: String,
    /// Its name in the platform's commands.
    pub(crate) name: String,
    /// What it is.
    pub(crate) description: String,
    /// Tags, separated by commas.
    pub(crate) categories: String,
    /// An icon: a URL, usually a `data:` one.
    pub(crate) image: String,
    /// Its name for people.
    pub(crate) human_name: String,
    /// Not sold any more; live instances go on.
    pub(crate) deprecated: bool,
    /// Taken out of the catalog; live instances go on.
    pub(crate) deleted: bool,
}

/// A row of `plans`.
#[derive(Debug, Clone)]
pub(crate) struct PlanRow {
    /// Its id.
    pub(crate) id: String,
    /// The offering that it belongs to.
    pub(crate) offering: String,
    /// Its name in the platform's commands.
    pub(crate) name: String,
    /// Its name for people.
    pub(crate) human_name: String,
    /// What it is.
    pub(crate) description: String,
    /// Version of what is sold.
    pub(crate) version: String,
    /// Kind of what is sold.
    pub(crate) engine: String,
    /// Price in hundredths.
    pub(crate) cost_cents: i32,
    /// What the price is paid for.
    pub(crate) cost_unit: String,
    /// What is shown of it, JSON text.
    pub(crate) attributes: String,
    /// What a worker makes of it, JSON text.
    pub(crate) details: String,
    /// Whether private networks may have it.
    pub(crate) inside_private_network: bool,
    /// Whether others may have it.
    pub(crate) outside_private_network: bool,
    /// Not yet for everyone.
    pub(crate) beta: bool,
    /// Not sold any more; live instances go on.
    pub(crate) deprecated: bool,
    /// Taken out of the catalog; live instances go on.
    pub(crate) deleted: bool,
    /// When it was added, RFC 3339.
    pub(crate) created: String,
    /// When it was changed last, RFC 3339.
    pub(crate) updated: String,
}

/// What a plan's `provider_private_details` promise.
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
pub(crate) struct Promise {
    /// Overwritten and deleted objects are kept.
    #[serde(default)]
    pub(crate) versioned: bool,
    /// Objects are encrypted with a KMS key.
    #[serde(default)]
    pub(crate) encrypted: bool,
    /// The key; `${AWS_KMS_KEY_ID}` stands for the worker's setting.
    #[serde(default, rename = "kmskeyid")]
    pub(crate) kms_key_id: Option<String>,
}

/// All offerings, sold or not, the oldest first.
const OFFERINGS: &str = "
    select service::text, name::text, human_name, description, categories, image, deprecated, deleted
    from services order by created, service";

/// All columns that a [`PlanRow`] is read from; two selects share it.
macro_rules! select_plan {
    ($tail:literal) => {
        concat!(
            "select p.plan::text, p.service::text, p.name::text, p.human_name, p.description, p.version,
                p.type::text as engine, p.cost_cents::integer, p.cost_unit::text, p.attributes::text,
                p.provider_private_details::text as details, p.installable_inside_private_network,
                p.installable_outside_private_network, p.beta or s.beta as beta,
                p.deprecated or s.deprecated as deprecated, p.deleted or s.deleted as deleted,
                coalesce(to_char(p.created at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), '') as created,
                coalesce(to_char(p.updated at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), '') as updated
            from plans p join services s on s.service = p.service where ",
            $tail
        )
    };
}

/// All plans, sold or not, the oldest first.
const PLANS: &str = select_plan!("true order by p.created, p.plan");
/// Of the plans `$1`, those that have instances which a platform knows of.
const PLANS_IN_USE: &str = "
    select distinct plan::text from resources
    where claimed and not deleted and plan = any($1::text[]::uuid[])";
/// One plan, sold or not. Compared as text: a platform's id need not be a UUID.
const FIND_PLAN: &str = select_plan!("p.plan::text = $1");

impl Transaction<'_> {
    /// Lets all that is read be of one moment. Only before anything is read.
    pub(crate) fn read_one_moment(&mut self) -> Result<(), StoreError> {
        self.batch("set transaction isolation level repeatable read")
    }

    /// All offerings, the oldest first.
    pub(crate) fn offerings(&mut self) -> Result<Vec<OfferingRow>, StoreError> {
        let rows = self.query(OFFERINGS, &[])?;
        rows.iter()
            .map(|row| {
                Ok(OfferingRow {
                    id: row.try_get("service")?,
                    name: row.try_get("name")?,
                    description: row.try_get("description")?,
                    categories: row.try_get("categories")?,
                    image: row.try_get("image")?,
                    human_name: row.try_get("human_name")?,
                    deprecated: row.try_get("deprecated")?,
                    deleted: row.try_get("deleted")?,
                })
            })
            .collect()
    }

    /// All plans, the oldest first.
    pub(crate) fn plans(&mut self) -> Result<Vec<PlanRow>, StoreError> {
        self.query(PLANS, &[])?.iter().map(PlanRow::read).collect()
    }

    /// Of these plans, those that have instances.
    pub(crate) fn plans_in_use(&mut self, plans: &[&str]) -> Result<HashSet<String>, StoreError> {
        let rows = self.query(PLANS_IN_USE, &[(&plans, Type::TEXT_ARRAY)])?;
        rows.iter().map(|row| Ok(row.try_get("plan")?)).collect()
    }

    /// The plan, also when it is not sold any more.
    pub(crate) fn find_plan(&mut self, id: &str) -> Result<Option<PlanRow>, StoreError> {
        self.query_opt(FIND_PLAN, &[(&id, Type::TEXT)])?.map(|row| PlanRow::read(&row)).transpose()
    }
}

impl PlanRow {
    /// What the plan promises, read as the old broker did: the case of names does not matter, and null is as good as
    /// nothing. `None` if it cannot be read, or says something twice.
    pub(crate) fn promise(&self) -> Option<Promise> {
        let written: Map<String, Value> = serde_json::from_str(&self.details).ok()?;
        let mut read = Map::new();
        for (name, value) in written.into_iter().filter(|(_, value)| !value.is_null()) {
            if read.insert(name.to_ascii_lowercase(), value).is_some() {
                return None;
            }
        }
        serde_json::from_value(Value::Object(read)).ok()
    }

    /// From a row of [`PLANS`] or [`FIND_PLAN`].
    fn read(row: &Row) -> Result<PlanRow, StoreError> {
        Ok(PlanRow {
            id: row.try_get("plan")?,
            offering: row.try_get("service")?,
            name: row.try_get("name")?,
            human_name: row.try_get("human_name")?,
            description: row.try_get("description")?,
            version: row.try_get("version")?,
            engine: row.try_get("engine")?,
            cost_cents: row.try_get("cost_cents")?,
            cost_unit: row.try_get("cost_unit")?,
            attributes: row.try_get("attributes")?,
            details: row.try_get("details")?,
            inside_private_network: row.try_get("installable_inside_private_network")?,
            outside_private_network: row.try_get("installable_outside_private_network")?,
            beta: row.try_get("beta")?,
            deprecated: row.try_get("deprecated")?,
            deleted: row.try_get("deleted")?,
            created: row.try_get("created")?,
            updated: row.try_get("updated")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_promise_what_their_rows_say() {
        let promise = |details: &str| {
            let text = String::new;
            let plan = PlanRow {
                id: text(),
                offering: text(),
                name: text(),
                human_name: text(),
                description: text(),
                version: text(),
                engine: text(),
                cost_cents: 0,
                cost_unit: text(),
                attributes: text(),
                details: details.to_owned(),
                inside_private_network: true,
                outside_private_network: true,
                beta: false,
                deprecated: false,
                deleted: false,
                created: text(),
                updated: text(),
            };
            plan.promise()
        };
        for (details, versioned, encrypted, key) in [
            (r#"{"versioned":false}"#, false, false, None),
            (r#"{"versioned":true}"#, true, false, None),
            (
                r#"{"versioned":false, "encrypted":true, "kmsKeyId":"${AWS_KMS_KEY_ID}"}"#,
                false,
                true,
                Some("${AWS_KMS_KEY_ID}"),
            ),
            (
                r#"{"Versioned":true, "ENCRYPTED":true, "KmsKeyID":"alias/x", "more":1}"#,
                true,
                true,
                Some("alias/x"),
            ),
            (r#"{"versioned":null, "encrypted":true, "kmsKeyId":null}"#, false, true, None),
            ("{}", false, false, None),
        ] {
            let kms_key_id = key.map(str::to_owned);
            assert_eq!(promise(details), Some(Promise { versioned, encrypted, kms_key_id }), "{details}");
        }
        for broken in [r#"{"versioned":"yes"}"#, r#"{"encrypted":true,"Encrypted":false}"#, "[]", "null", ""]
        {
            assert_eq!(promise(broken), None, "{broken}");
        }
    }
}
