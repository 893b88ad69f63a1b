//! What is sold, as the platform sees it.
//!
//! Invariants
//! - A plan that has live instances is in the catalog, whatever became of its row: a platform that
//!   misses it there cannot delete them.
//! - A row that is broken is not sold.
//! - No two offerings have the same name, nor two plans of one offering.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::BrokerError;
use crate::osb;
use crate::store::{OfferingRow, PlanRow, StoreError, Transaction};

/// What is said of a row whose name an older one has.
const NAME_TAKEN: &str = "an older row has its name";

/// An offering and its plans.
struct Shelf<'r> {
    /// The offering.
    row: &'r OfferingRow,
    /// Why it is not sold although its row says so.
    fault: Option<&'static str>,
    /// Its plans.
    plans: Vec<Judged<'r>>,
}

/// A plan.
struct Judged<'r> {
    /// The plan.
    row: &'r PlanRow,
    /// Why it is not sold although its row says so.
    fault: Option<&'static str>,
}

impl Judged<'_> {
    /// Whether new instances may come of it.
    fn is_on_sale(&self) -> bool {
        !self.row.deprecated && !self.is_only_kept()
    }

    /// Whether it is shown only as long as it has instances.
    fn is_only_kept(&self) -> bool {
        self.row.deleted || self.fault.is_some()
    }
}

/// The catalog, and in words for the log which rows are not in it as they should be.
pub(crate) fn catalog(tx: &mut Transaction<'_>) -> Result<(osb::Catalog, Vec<String>), StoreError> {
    tx.read_one_moment()?; // a plan must not fall between its old offering and its new one
    let (offerings, plans) = (tx.offerings()?, tx.plans()?);
    let shelves = judge(&offerings, &plans);
    let kept = shelves.iter().flat_map(|it| &it.plans).filter(|it| it.is_only_kept());
    let kept: Vec<&str> = kept.map(|it| it.row.id.as_str()).collect();
    let live = if kept.is_empty() { HashSet::new() } else { tx.plans_in_use(&kept)? };
    Ok((show(&shelves, &live), complaints(&shelves)))
}

/// Refuses what the catalog does not sell: a plan that is not sold any more, or whose row is broken.
pub(super) fn refuse_unsold(
    tx: &mut Transaction<'_>,
    plan: &PlanRow,
    refusal: fn(&'static str) -> BrokerError,
) -> Result<(), BrokerError> {
    if plan.deleted || plan.deprecated {
        return Err(refusal("the plan is not sold any more"));
    }
    let (offerings, plans) = (tx.offerings()?, tx.plans()?);
    let shelves = judge(&offerings, &plans);
    let mut judged = shelves.iter().flat_map(|it| &it.plans);
    if judged.any(|it| it.row.id == plan.id && it.fault.is_some()) {
        return Err(refusal("the plan is not sold: its row in the database is broken"));
    }
    Ok(())
}

/// Finds what is wrong with the rows, which come oldest first.
fn judge<'r>(offerings: &'r [OfferingRow], plans: &'r [PlanRow]) -> Vec<Shelf<'r>> {
    let mut names = HashSet::new();
    let shelf = |offering: &'r OfferingRow| {
        let is_on_sale = !offering.deleted && !offering.deprecated;
        let fault = name_fault(&offering.name)
            .or_else(|| (is_on_sale && !names.insert(offering.name.as_str())).then_some(NAME_TAKEN));
        let own = plans.iter().filter(|it| it.offering == offering.id);
        Shelf { row: offering, fault, plans: judge_plans(own, fault) }
    };
    offerings.iter().map(shelf).collect()
}

/// The same with the plans of an offering.
fn judge_plans<'r>(
    plans: impl Iterator<Item = &'r PlanRow>,
    of_offering: Option<&'static str>,
) -> Vec<Judged<'r>> {
    let mut names = HashSet::new();
    let judged = |row: &'r PlanRow| {
        let fault = of_offering.or_else(|| plan_fault(row));
        let is_on_sale = Judged { row, fault }.is_on_sale();
        let taken = is_on_sale && !names.insert(row.name.as_str());
        Judged { row, fault: fault.or_else(|| taken.then_some(NAME_TAKEN)) }
    };
    plans.map(judged).collect()
}

/// What the specification wants of every name. A description it wants too, but there is always something to say.
fn name_fault(name: &str) -> Option<&'static str> {
    name.trim().is_empty().then_some("its name is empty")
}

/// What is wrong with a plan's row by itself.
fn plan_fault(plan: &PlanRow) -> Option<&'static str> {
    name_fault(&plan.name)
        .or_else(|| attributes(plan).is_none().then_some("its attributes are not an object"))
        .or_else(|| {
            let Some(promise) = plan.promise() else {
                return Some("its provider_private_details cannot be read");
            };
            let key = promise.kms_key_id.unwrap_or_default();
            let is_known = ["${AWS_KMS_KEY_ID}", "$AWS_KMS_KEY_ID"].contains(&key.as_str());
            (promise.encrypted && key.contains('$') && !is_known)
                .then_some("its kmsKeyId holds another variable than ${AWS_KMS_KEY_ID}")
        })
}

/// What the platform shows of a plan.
fn attributes(plan: &PlanRow) -> Option<Map<String, Value>> {
    serde_json::from_str(&plan.attributes).ok()
}

/// One line for each fault.
fn complaints(shelves: &[Shelf<'_>]) -> Vec<String> {
    let mut lines = Vec::new();
    for shelf in shelves {
        match shelf.fault {
            Some(fault) => lines.push(format!("offering not sold: service={} cause={fault:?}", shelf.row.id)),
            None => lines.extend(shelf.plans.iter().filter_map(|it| {
                it.fault.map(|fault| format!("plan not sold: plan={} cause={fault:?}", it.row.id))
            })),
        }
    }
    lines
}

/// The catalog, where `live` are plans with instances. An offering without plans is not shown.
fn show(shelves: &[Shelf<'_>], live: &HashSet<String>) -> osb::Catalog {
    let mut names = HashSet::new();
    let is_sold = |it: &&Shelf<'_>| it.plans.iter().any(Judged::is_on_sale);
    let in_order = shelves.iter().filter(is_sold).chain(shelves.iter().filter(|it| !is_sold(it)));
    let mut services: Vec<osb::Offering> = in_order
        .filter_map(|shelf| {
            let plans = show_plans(shelf, live);
            (!plans.is_empty()).then_some((shelf, plans))
        })
        .map(|(shelf, plans)| {
            offering_object(shelf.row, own_name(&shelf.row.name, &shelf.row.id, &mut names), plans)
        })
        .collect();
    services.sort_by(|one, other| one.name.cmp(&other.name));
    osb::Catalog { services }
}

/// The plans of an offering that are shown, each with its name. Those on sale choose first.
fn show_plans<'s>(shelf: &'s Shelf<'_>, live: &HashSet<String>) -> Vec<(&'s Judged<'s>, String)> {
    let mut names = HashSet::new();
    let (sold, kept): (Vec<_>, Vec<_>) = shelf
        .plans
        .iter()
        .filter(|it| !it.is_only_kept() || live.contains(&it.row.id))
        .partition(|it| it.is_on_sale());
    let mut shown: Vec<_> = sold
        .into_iter()
        .chain(kept)
        .map(|plan| (plan, own_name(&plan.row.name, &plan.row.id, &mut names)))
        .collect();
    shown.sort_by(|one, other| one.1.cmp(&other.1));
    shown
}

/// The name, or one made of it and the id where somebody has it.
fn own_name(name: &str, id: &str, names: &mut HashSet<String>) -> String {
    let first = if name.is_empty() { id } else { name };
    let own = if names.contains(first) { format!("{name}-{id}") } else { first.to_owned() };
    names.insert(own.clone());
    own
}

/// One offering with its plans.
fn offering_object(row: &OfferingRow, name: String, plans: Vec<(&Judged<'_>, String)>) -> osb::Offering {
    let tags = row.categories.split(',').map(str::trim).filter(|it| !it.is_empty());
    osb::Offering {
        id: row.id.clone(),
        description: first_text([&row.description, &row.human_name, &name]),
        tags: tags.map(str::to_owned).collect(),
        bindable: true,
        bindings_retrievable: true,
        plan_updateable: true,
        plans: plans.into_iter().map(|(plan, own)| plan_object(row, &name, plan, own)).collect(),
        metadata: json!({ "name": first_text([&row.human_name, &name]), "image": row.image }),
        name,
    }
}

/// One plan. The metadata is what Akkeris' controller reads.
fn plan_object(offering: &OfferingRow, service: &str, plan: &Judged<'_>, name: String) -> osb::Plan {
    let (row, attributes) = (plan.row, attributes(plan.row).unwrap_or_default());
    let state = match (plan.is_on_sale(), row.beta) {
        (false, _) => "shutdown", // the one word that stops Akkeris from selling it
        (true, true) => "beta",
        (true, false) => "ga",
    };
    let description = first_text([&row.description, &row.human_name, &name]);
    let no_parameters = json!({ "parameters": {
        "$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "additionalProperties": false,
    }});
    osb::Plan {
        id: row.id.clone(),
        free: row.cost_cents == 0,
        metadata: json!({
            "id": row.id, "name": name, "description": description,
            "human_name": first_text([&row.human_name, &name]),
            "key": format!("{service}:{name}"), "state": state, "attributes": attributes,
            "addon_service": { "id": offering.id, "name": service },
            "engine": { "type": row.engine, "version": row.version },
            "price": { "cents": row.cost_cents, "unit": row.cost_unit, "contract": false },
            "installable_inside_private_network": row.inside_private_network,
            "installable_outside_private_network": row.outside_private_network,
            "compliance": [], "space_default": false,
            "created_at": row.created, "updated_at": row.updated,
        }),
        schemas: json!({
            "service_instance": { "create": no_parameters, "update": no_parameters }, "service_binding": { "create": no_parameters },
        }),
        description,
        name,
    }
}

/// The first that says something.
fn first_text<const N: usize>(texts: [&String; N]) -> String {
    texts.into_iter().find(|it| !it.trim().is_empty()).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests;
