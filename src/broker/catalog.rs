//! What is sold, as the platform sees it.

use serde_json::{Value, json};

use crate::osb;
use crate::store::{OfferingRow, PlanRow, StoreError, Transaction};

/// What is sold, as the platform sees it. An offering without plans is not shown.
pub(crate) fn catalog(tx: &mut Transaction<'_>) -> Result<osb::Catalog, StoreError> {
    let (offerings, plans) = (tx.offerings()?, tx.plans()?);
    let services = offerings.iter().map(|offering| offering_object(offering, &plans));
    Ok(osb::Catalog { services: services.filter(|it| !it.plans.is_empty()).collect() })
}

/// One offering with its plans.
fn offering_object(offering: &OfferingRow, plans: &[PlanRow]) -> osb::Offering {
    let own = plans.iter().filter(|it| it.offering == offering.id);
    let tags = offering.categories.split(',').map(str::trim).filter(|it| !it.is_empty());
    osb::Offering {
        id: offering.id.clone(),
        name: offering.name.clone(),
        description: offering.description.clone(),
        tags: tags.map(str::to_owned).collect(),
        bindable: true,
        bindings_retrievable: true,
        plan_updateable: true,
        plans: own.map(|plan| plan_object(offering, plan)).collect(),
        metadata: json!({ "name": offering.human_name, "image": offering.image }),
    }
}

/// One plan. The metadata is what Akkeris' controller reads.
fn plan_object(offering: &OfferingRow, plan: &PlanRow) -> osb::Plan {
    let state = match (plan.deprecated, plan.beta) {
        (true, _) => "shutdown", // the one word that stops Akkeris from selling it
        (false, true) => "beta",
        (false, false) => "ga",
    };
    let attributes: Value = serde_json::from_str(&plan.attributes).unwrap_or_else(|_| json!({}));
    let no_parameters = json!({ "parameters": {
        "$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "additionalProperties": false,
    }});
    osb::Plan {
        id: plan.id.clone(),
        name: plan.name.clone(),
        description: plan.description.clone(),
        free: plan.cost_cents == 0,
        metadata: json!({
            "id": plan.id, "name": plan.name, "description": plan.description, "human_name": plan.human_name,
            "key": format!("{}:{}", offering.name, plan.name), "state": state, "attributes": attributes,
            "addon_service": { "id": offering.id, "name": offering.name },
            "engine": { "type": plan.engine, "version": plan.version },
            "price": { "cents": plan.cost_cents, "unit": plan.cost_unit },
            "installable_inside_private_network": plan.inside_private_network,
            "installable_outside_private_network": plan.outside_private_network,
            "compliance": [], "space_default": false,
            "created_at": plan.created, "updated_at": plan.updated,
        }),
        schemas: json!({
            "service_instance": { "create": no_parameters, "update": no_parameters }, "service_binding": { "create": no_parameters },
        }),
    }
}
