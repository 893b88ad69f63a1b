//! Rotation of an instance's access key: what the action decides, and the key that it answers with.

use std::time::Duration;

use super::{BrokerError, Fresh, Outcome, open_task, task};
use crate::osb::{AccessKey, Id};
use crate::store::{Instance, InstanceStatus, TaskKind, TaskState, Transaction};

/// How long a rotation that succeeded is the answer to another request: a client that asks again because
/// it lost the answer must not end the key that its apps still use.
const REPEAT_WINDOW: Duration = Duration::from_secs(120);

/// Decides a rotation and enqueues its task, or joins one.
pub(crate) fn rotate(tx: &mut Transaction<'_>, id: &Id, fresh: &Fresh) -> Result<Outcome, BrokerError> {
    let instance = usable(tx, id)?;
    if let Some(open) = open_task(tx, &instance, &TaskKind::RotateCredentials)? {
        return Ok(Outcome::InProgress { operation: open.task });
    }
    let latest = tx.latest_task(&instance.id, &TaskKind::RotateCredentials)?;
    if latest
        .is_some_and(|it| it.state == TaskState::Finished && it.ended.is_some_and(|it| it < REPEAT_WINDOW))
    {
        return Ok(Outcome::Done);
    }
    tx.enqueue(&task(id, &fresh.task, TaskKind::RotateCredentials))?;
    Ok(Outcome::Enqueued { operation: fresh.task.clone() })
}

/// The present key after a rotation.
pub(crate) fn rotated(tx: &mut Transaction<'_>, id: &Id) -> Result<AccessKey, BrokerError> {
    let instance = usable(tx, id)?;
    let missing = || BrokerError::NotYetKnown;
    Ok(AccessKey {
        arn: instance.user_arn.ok_or_else(missing)?,
        user_name: instance.name,
        access_key_id: instance.access_key_id.ok_or_else(missing)?,
        secret_access_key: instance.secret_access_key.ok_or_else(missing)?.expose().to_owned(),
    })
}

/// Why a rotation that has failed did so.
pub(crate) fn not_rotated(tx: &mut Transaction<'_>, id: &Id, operation: &str) -> Result<String, BrokerError> {
    let instance = usable(tx, id)?; // a delete may have stopped it
    Ok(tx.find_task(&instance.id, operation)?.map(|it| it.result).unwrap_or_default())
}

/// An instance whose key can be rotated, held until the transaction ends.
fn usable(tx: &mut Transaction<'_>, id: &Id) -> Result<Instance, BrokerError> {
    let instance =
        tx.lock_instance(id.as_str())?.filter(|it| !it.deleted).ok_or(BrokerError::InstanceUnknown)?;
    match instance.status {
        InstanceStatus::Available | InstanceStatus::Modifying => Ok(instance),
        InstanceStatus::Provisioning => Err(BrokerError::Busy("the instance is being created")),
        InstanceStatus::Deprovisioning => Err(BrokerError::Busy("the instance is being deleted")),
        InstanceStatus::Failed => Err(BrokerError::InstanceFailed),
    }
}
