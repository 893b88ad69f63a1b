//! Changes of plan: what a PATCH decides, and what it answers when it has waited.

use std::time::Duration;

use serde_json::{Value, json};

use super::catalog::refuse_unsold;
use super::checks::{catalog_ids, known_plan, refuse_parameters};
use super::{BrokerError, Fresh, Outcome, task};
use crate::osb::{Id, UpdateRequest};
use crate::store::{InstanceStatus, NewTask, TaskKind, TaskRow, TaskState, Transaction};

/// How a change of plan stands when a request has waited for it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Update {
    /// The bucket is what the new plan promises.
    Applied,
    /// A worker is at it.
    Running,
    /// No worker came, and none will: nothing was changed.
    Withdrawn,
    /// AWS refused it, and the bucket is as it was; says why.
    Refused(String),
}

/// Decides a change of plan and enqueues its task, which no worker begins any more once the request has waited for so
/// long: it can be answered without the database, and the answer is no.
pub(crate) fn update(
    tx: &mut Transaction<'_>,
    id: &Id,
    request: &UpdateRequest,
    accepts_incomplete: bool,
    wait: Option<Duration>,
    fresh: &Fresh,
) -> Result<Outcome, BrokerError> {
    let same_plan = request.plan_id.is_none();
    let (offering, wanted) = if same_plan {
        (super::checks::mandatory(&request.service_id, "service_id is missing or empty")?, "")
    } else {
        catalog_ids(&request.service_id, &request.plan_id)?
    };
    refuse_parameters(request.parameters.as_ref())?;
    let plan = if same_plan { None } else { Some(known_plan(tx, offering, wanted)?) };
    if !accepts_incomplete {
        return Err(BrokerError::AsyncRequired);
    }
    if request.maintenance_info.as_ref().is_some_and(|it| it.version.is_some()) {
        return Err(BrokerError::MaintenanceInfoConflict); // no plan has a version
    }
    let instance =
        tx.lock_instance(id.as_str())?.filter(|it| !it.deleted).ok_or(BrokerError::InstanceUnknown)?;
    match instance.status {
        InstanceStatus::Available | InstanceStatus::Modifying => {}
        InstanceStatus::Provisioning => return Err(BrokerError::Busy("the instance is being created")),
        InstanceStatus::Deprovisioning => return Err(BrokerError::Busy("the instance is being deleted")),
        InstanceStatus::Failed => return Err(BrokerError::InstanceFailed),
    }
    if let Some(open) = super::open_task(tx, &instance, &TaskKind::ChangePlans)? {
        let repeated = plan.is_some_and(|it| target(&open).as_deref() == Some(it.id.as_str()));
        if !repeated || is_late(&open) {
            return Err(BrokerError::Busy("the plan is being changed"));
        }
        if wait.is_none() && !open.begun {
            tx.remember(&open.task, &change(wanted, None))?; // told to go on, so it comes, however late
        }
        return Ok(Outcome::InProgress { operation: open.task });
    }
    if same_plan {
        known_plan(tx, offering, &instance.provisioned.plan)?;
    }
    let Some(plan) = plan.filter(|it| it.id != instance.provisioned.plan) else {
        return Ok(Outcome::Done);
    };
    refuse_unsold(tx, &plan, BrokerError::ChangeRefused)?;
    tx.set_status(&instance.id, InstanceStatus::Modifying)?;
    let metadata = change(&plan.id, wait);
    tx.enqueue(&NewTask { metadata, ..task(id, &fresh.task, TaskKind::ChangePlans) })?;
    Ok(Outcome::Enqueued { operation: fresh.task.clone() })
}

/// How the change stands. One that no worker has begun is withdrawn: the platform keeps the old plan,
/// and so does the instance.
pub(crate) fn conclude_update(
    tx: &mut Transaction<'_>,
    id: &Id,
    operation: &str,
) -> Result<Update, BrokerError> {
    let instance = tx.lock_instance(id.as_str())?.ok_or(BrokerError::InstanceUnknown)?;
    let Some(task) = tx.find_task(&instance.id, operation)? else {
        return Err(BrokerError::InstanceUnknown);
    };
    if task.state != TaskState::Finished && instance.deleted {
        return Err(BrokerError::InstanceUnknown);
    }
    if task.state != TaskState::Finished && instance.status == InstanceStatus::Deprovisioning {
        return Err(BrokerError::Busy("the instance is being deleted")); // which has stopped the change
    }
    Ok(match task.state {
        TaskState::Finished => Update::Applied,
        _ if is_late(&task) => Update::Withdrawn,
        TaskState::Failed if !task.begun => Update::Withdrawn,
        TaskState::Failed => Update::Refused(task.result),
        TaskState::Pending if tx.withdraw_task(&instance.id, operation)? => {
            if instance.status == InstanceStatus::Modifying {
                tx.set_status(&instance.id, InstanceStatus::Available)?;
            }
            Update::Withdrawn
        }
        TaskState::Pending | TaskState::Started => Update::Running,
    })
}

/// What the task of a change needs to know: the plan, as the old broker wrote it, and for how long somebody waits.
fn change(plan: &str, wait: Option<Duration>) -> String {
    json!({ "plan": plan, "wait_s": wait.map(|it| it.as_secs()) }).to_string()
}

/// The plan that a task leads to.
fn target(task: &TaskRow) -> Option<String> {
    let metadata: Value = serde_json::from_str(&task.metadata).ok()?;
    metadata.get("plan")?.as_str().map(str::to_owned)
}

/// Whether a worker had it only when nobody waited any more: then it is taken back, whoever has it.
fn is_late(task: &TaskRow) -> bool {
    let metadata: Value = serde_json::from_str(&task.metadata).unwrap_or_default();
    let wait = metadata.get("wait_s").and_then(Value::as_u64).map(Duration::from_secs);
    matches!((task.waited, wait), (Some(waited), Some(wait)) if waited >= wait)
}
