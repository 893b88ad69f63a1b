//! What each operation of the platform decides and writes: one transaction each.
//!
//! Not here: HTTP (`http`), the waiting for a task that was enqueued (`http::waiting`), AWS
//! (`steps`). Nothing here knows a socket.
//!
//! Invariants
//! - Nothing is made in AWS which the database does not name first: a row carries its bucket's
//!   name before a worker hears of it.
//! - A request that is refused has changed nothing.
//! - The order of checks is that of the specification's own table: data, ids of the catalog,
//!   AsyncRequired, MaintenanceInfoConflict, existence, conflicts.
//!
//! Source: Open Service Broker API 2.17; where Akkeris needs something else, [`Habits`] says so.

mod catalog;
mod checks;
mod error;
mod rotate;
mod update;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::osb::{BindRequest, Credentials, Id, LastOperation, OperationState, ProvisionRequest};
use crate::random;
use crate::store::{
    Instance, InstanceStatus, NewInstance, NewTask, Provisioned, StoreError, TaskKind, TaskRow, TaskState,
    Transaction, Webhook,
};

use catalog::refuse_unsold;

pub(crate) use catalog::catalog;
pub(crate) use checks::CatalogQuery;
pub(crate) use error::BrokerError;
pub(crate) use rotate::{not_rotated, rotate, rotated};
pub(crate) use update::{Update, conclude_update, update};

use checks::{catalog_ids, known_plan, mandatory, refuse_parameters};

/// Where the answers that Akkeris needs and those of the specification part.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Habits {
    /// To the letter of the specification.
    pub(crate) strict: bool,
}

/// Names for something new, drawn before the transaction so that its task can be waited for.
#[derive(Debug, Clone)]
pub(crate) struct Fresh {
    /// Id of the task.
    pub(crate) task: String,
    /// Name of the bucket and the user.
    pub(crate) name: String,
}

impl Fresh {
    /// Draws both.
    pub(crate) fn draw(name_prefix: &str) -> Result<Fresh, BrokerError> {
        let task = random::uuid().map_err(BrokerError::NoRandomness)?;
        let name = random::instance_name(name_prefix).map_err(BrokerError::NoRandomness)?;
        Ok(Fresh { task, name })
    }
}

/// How an operation that AWS has a part in stands after its transaction.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// This request enqueued the task: it may wait for it.
    Enqueued {
        /// The task.
        operation: String,
    },
    /// An earlier request did.
    InProgress {
        /// Its task.
        operation: String,
    },
    /// This request was given an instance that was ready.
    Claimed,
    /// Nothing is left to do.
    Done,
}

/// What a bind came to.
#[derive(Debug)]
pub(crate) enum Bound {
    /// Bound by this request.
    New(Credentials),
    /// Bound before, in the same way.
    Before(Credentials),
    /// The instance is still being made by this task; ask again when it has ended.
    After {
        /// The task.
        operation: String,
    },
}

/// Decides a provision: claims an instance that is ready, or enqueues the task that makes one. The webhook of the request
/// that does so is told how it ends.
///
/// Only an id without a row can claim one, since the claimed row takes the id. One that was used before keeps its
/// row, with what is left of its tasks, and gets a new bucket.
pub(crate) fn provision(
    tx: &mut Transaction<'_>,
    id: &Id,
    request: &ProvisionRequest,
    accepts_incomplete: bool,
    fresh: &Fresh,
    webhook: Option<&Webhook>,
) -> Result<Outcome, BrokerError> {
    let organization = mandatory(&request.organization_guid, "organization_guid is missing or empty");
    let space = mandatory(&request.space_guid, "space_guid is missing or empty");
    let (offering, plan) = catalog_ids(&request.service_id, &request.plan_id)?;
    let (organization, space) = (organization?.to_owned(), space?.to_owned());
    refuse_parameters(request.parameters.as_ref())?;
    let plan = known_plan(tx, offering, plan)?;
    if !accepts_incomplete {
        return Err(BrokerError::AsyncRequired);
    }
    if request.maintenance_info.as_ref().is_some_and(|it| it.version.is_some()) {
        return Err(BrokerError::MaintenanceInfoConflict); // no plan has a version
    }
    let new = NewInstance {
        id: id.as_str().to_owned(),
        name: fresh.name.clone(),
        provisioned: Provisioned {
            plan: plan.id.clone(),
            organization: Some(organization),
            space: Some(space),
        },
    };
    let mut existing = tx.lock_any_instance(id.as_str())?;
    if existing.is_none() {
        refuse_unsold(tx, &plan, BrokerError::BadRequest)?;
        if !tx.insert_instance(&new)? {
            existing = tx.lock_any_instance(id.as_str())?; // another request was faster
        } else if tx.claim_stock(&new)? {
            tx.enqueue(&task(id, &fresh.task, TaskKind::Tag))?;
            if let Some(webhook) = webhook {
                let kind = TaskKind::NotifyCreateService;
                tx.enqueue_notice(id.as_str(), &kind, webhook, true, "available")?;
            }
            return Ok(Outcome::Claimed);
        }
    }
    if let Some(instance) = existing {
        if let Some(outcome) = repeated_provision(tx, id, &instance, &new.provisioned)? {
            return Ok(outcome);
        }
        refuse_unsold(tx, &plan, BrokerError::BadRequest)?;
        tx.stop_tasks(id.as_str())?; // those of the former instance
        tx.reuse_instance(&new)?;
    }
    let mut task = task(id, &fresh.task, TaskKind::Provision);
    if let Some(webhook) = webhook {
        task.metadata = webhook.to_metadata()?;
    }
    tx.enqueue(&task)?;
    Ok(Outcome::Enqueued { operation: fresh.task.clone() })
}

/// What a provision means for an id that has a row: `None` when the id may be used again.
fn repeated_provision(
    tx: &mut Transaction<'_>,
    id: &Id,
    instance: &Instance,
    sent: &Provisioned,
) -> Result<Option<Outcome>, BrokerError> {
    if instance.deleted {
        // a delete that is to come removes what the row names then
        return match open_task(tx, instance, &TaskKind::Delete)? {
            Some(_) => Err(BrokerError::Busy("what is left of the former instance is being removed")),
            None => Ok(None),
        };
    }
    if !instance.claimed {
        return Err(BrokerError::InstanceConflict); // somebody guessed the id of one of the stock
    }
    match instance.status {
        InstanceStatus::Deprovisioning => Err(BrokerError::Busy("the instance is being deleted")),
        InstanceStatus::Failed if is_cleaned(tx, instance)? => Ok(None),
        InstanceStatus::Failed => {
            Err(BrokerError::Busy("what is left of the failed instance is being removed"))
        }
        InstanceStatus::Provisioning | InstanceStatus::Available | InstanceStatus::Modifying => {
            if !is_same(&instance.provisioned, sent) {
                return Err(BrokerError::InstanceConflict);
            }
            tx.fill_attributes(&instance.id, sent)?;
            if instance.provisioned.organization.is_none() {
                retag(tx, id)?;
            }
            Ok(Some(match open_task(tx, instance, &TaskKind::Provision)? {
                Some(task) => Outcome::InProgress { operation: task.task },
                None => Outcome::Done,
            }))
        }
    }
}

/// Decides a deprovision and enqueues its task. It takes over a provision that still goes on.
pub(crate) fn deprovision(
    tx: &mut Transaction<'_>,
    id: &Id,
    query: &CatalogQuery,
    accepts_incomplete: bool,
    fresh: &Fresh,
) -> Result<Outcome, BrokerError> {
    query.check(tx)?;
    if !accepts_incomplete {
        return Err(BrokerError::AsyncRequired);
    }
    let instance =
        tx.lock_instance(id.as_str())?.filter(|it| !it.deleted).ok_or(BrokerError::InstanceGone)?;
    let running = open_task(tx, &instance, &TaskKind::Delete)?;
    if instance.status == InstanceStatus::Failed && is_cleaned(tx, &instance)? {
        tx.wipe_instance(&instance.id, true)?;
        return Ok(Outcome::Done);
    }
    tx.set_status(&instance.id, InstanceStatus::Deprovisioning)?;
    if let Some(task) = running {
        if instance.status != InstanceStatus::Deprovisioning {
            tx.hasten(&instance.id, &TaskKind::Delete, Duration::ZERO)?; // it may go further now that somebody asks
        }
        return Ok(Outcome::InProgress { operation: task.task });
    }
    tx.stop_tasks(&instance.id)?;
    tx.enqueue(&task(id, &fresh.task, TaskKind::Delete))?;
    Ok(Outcome::Enqueued { operation: fresh.task.clone() })
}

/// How the instance stands. In strict mode, how the named operation does.
pub(crate) fn last_operation(
    tx: &mut Transaction<'_>,
    id: &Id,
    operation: Option<&str>,
    habits: Habits,
) -> Result<LastOperation, BrokerError> {
    let instance = tx.find_instance(id.as_str())?.ok_or(BrokerError::InstanceUnknown)?;
    if habits.strict
        && let Some(operation) = operation
    {
        let task = tx.find_task(&instance.id, operation)?;
        let task = task.ok_or(BrokerError::BadRequest("operation is not one of this instance"))?;
        if !(instance.deleted && task.state == TaskState::Finished) {
            return Ok(operation_of_task(&task));
        }
    }
    if instance.deleted {
        return Err(BrokerError::InstanceGone);
    }
    Ok(match instance.status {
        // The old broker enqueued changes of plan without a word in the instance's row.
        InstanceStatus::Available | InstanceStatus::Modifying => {
            match open_task(tx, &instance, &TaskKind::ChangePlans)? {
                Some(task) => operation_of_task(&task),
                None if instance.status == InstanceStatus::Modifying => {
                    done(OperationState::InProgress, "the plan is being changed")
                }
                None => done(OperationState::Succeeded, "available"),
            }
        }
        InstanceStatus::Failed => {
            let task = tx.latest_task(&instance.id, &TaskKind::Provision)?;
            let why = task.map(|it| it.result).filter(|it| !it.is_empty());
            done(OperationState::Failed, why.as_deref().unwrap_or("the bucket could not be created"))
        }
        InstanceStatus::Provisioning => {
            progress(tx, &instance, &TaskKind::Provision, "the bucket is being created")?
        }
        InstanceStatus::Deprovisioning => {
            progress(tx, &instance, &TaskKind::Delete, "the bucket is being deleted")?
        }
    })
}

/// Decides a bind. Asks nobody but the database.
pub(crate) fn bind(
    tx: &mut Transaction<'_>,
    id: &Id,
    binding: &Id,
    request: &BindRequest,
    webhook: Option<&Webhook>,
) -> Result<Bound, BrokerError> {
    let (offering, plan) = catalog_ids(&request.service_id, &request.plan_id)?;
    refuse_parameters(request.parameters.as_ref())?;
    known_plan(tx, offering, plan)?;
    let resource = request.bind_resource.as_ref().and_then(|it| it.app_guid.as_deref());
    let app = resource.or(request.app_guid.as_deref());
    if app.is_some_and(|it| it.is_empty() || it.len() > 1_024 || it.contains('\0')) {
        return Err(BrokerError::BadRequest("app_guid is empty, too long or holds a NUL"));
    }
    let instance =
        tx.lock_instance(id.as_str())?.filter(|it| !it.deleted).ok_or(BrokerError::InstanceUnknown)?;
    match instance.status {
        InstanceStatus::Available | InstanceStatus::Modifying => {}
        InstanceStatus::Failed => return Err(BrokerError::InstanceFailed),
        InstanceStatus::Deprovisioning => return Err(BrokerError::Busy("the instance is being deleted")),
        InstanceStatus::Provisioning => {
            return match open_task(tx, &instance, &TaskKind::Provision)? {
                Some(task) => Ok(Bound::After { operation: task.task }),
                None => Err(BrokerError::Busy("the instance is being created")),
            };
        }
    }
    let credentials = credentials(&instance)?;
    match tx.find_binding(&instance.id, binding.as_str())? {
        Some(before) if !before.deleted && before.app.as_deref() == app => Ok(Bound::Before(credentials)),
        Some(before) if !before.deleted => Err(BrokerError::BindingConflict),
        Some(_) | None => {
            tx.save_binding(&instance.id, binding.as_str(), app)?;
            retag(tx, id)?;
            if let Some(webhook) = webhook {
                let kind = TaskKind::NotifyCreateBinding;
                tx.enqueue_notice(&instance.id, &kind, webhook, true, "the binding was made")?;
            }
            Ok(Bound::New(credentials))
        }
    }
}

/// Fetches a binding. For Akkeris one that is not bound exists too: it names bindings after dynos and
/// jobs that it tells nobody of, does not look whether a bind went well, and fails a deploy whose config
/// vars it does not get.
pub(crate) fn fetch_binding(
    tx: &mut Transaction<'_>,
    id: &Id,
    binding: &Id,
    habits: Habits,
) -> Result<Credentials, BrokerError> {
    let instance =
        tx.find_instance(id.as_str())?.filter(|it| !it.deleted).ok_or(BrokerError::InstanceUnknown)?;
    let is_bound = tx.find_binding(&instance.id, binding.as_str())?.is_some_and(|it| !it.deleted);
    if habits.strict && !is_bound {
        return Err(BrokerError::BindingUnknown);
    }
    match instance.status {
        InstanceStatus::Available | InstanceStatus::Modifying => credentials(&instance),
        InstanceStatus::Provisioning | InstanceStatus::Deprovisioning | InstanceStatus::Failed => {
            Err(BrokerError::BindingUnknown)
        }
    }
}

/// Removes a binding.
pub(crate) fn unbind(
    tx: &mut Transaction<'_>,
    id: &Id,
    binding: &Id,
    query: &CatalogQuery,
) -> Result<(), BrokerError> {
    query.check(tx)?;
    let instance = tx.lock_instance(id.as_str())?.filter(|it| !it.deleted).ok_or(BrokerError::BindingGone)?;
    if !tx.remove_binding(&instance.id, binding.as_str())? {
        return Err(BrokerError::BindingGone);
    }
    retag(tx, id)
}

/// The tags of bucket and user tell of the bindings.
fn retag(tx: &mut Transaction<'_>, id: &Id) -> Result<(), BrokerError> {
    let name = random::uuid().map_err(BrokerError::NoRandomness)?;
    Ok(tx.enqueue_unless_waiting(&task(id, &name, TaskKind::Tag))?)
}

/// Whether both describe the same instance. What the old broker did not write down counts as equal.
fn is_same(kept: &Provisioned, sent: &Provisioned) -> bool {
    let same = |kept: &Option<String>, sent: &Option<String>| kept.is_none() || kept == sent;
    kept.plan == sent.plan && same(&kept.organization, &sent.organization) && same(&kept.space, &sent.space)
}

/// The instance's newest task of a kind, if it goes on.
fn open_task(
    tx: &mut Transaction<'_>,
    instance: &Instance,
    kind: &TaskKind,
) -> Result<Option<TaskRow>, StoreError> {
    Ok(tx.latest_task(&instance.id, kind)?.filter(|it| !it.state.has_ended()))
}

/// Whether nothing is left in AWS of an instance that failed.
fn is_cleaned(tx: &mut Transaction<'_>, instance: &Instance) -> Result<bool, StoreError> {
    Ok(tx.latest_task(&instance.id, &TaskKind::Delete)?.is_some_and(|it| it.state == TaskState::Finished))
}

/// A task that is due at once and needs to know nothing.
fn task(id: &Id, task: &str, kind: TaskKind) -> NewTask {
    NewTask {
        task: task.to_owned(),
        instance: id.as_str().to_owned(),
        kind,
        metadata: "{}".to_owned(),
        delay: Duration::ZERO,
    }
}

/// What is said while a task goes on: what it said itself, or why nothing happens yet.
fn progress(
    tx: &mut Transaction<'_>,
    instance: &Instance,
    kind: &TaskKind,
    otherwise: &str,
) -> Result<LastOperation, StoreError> {
    let task = tx.latest_task(&instance.id, kind)?;
    Ok(match task {
        Some(task) if !task.state.has_ended() => operation_of_task(&task),
        Some(_) | None => done(OperationState::InProgress, otherwise),
    })
}

/// How a task stands, for the platform.
fn operation_of_task(task: &TaskRow) -> LastOperation {
    let said = |otherwise: &'static str| {
        if task.result.is_empty() { otherwise } else { task.result.as_str() }
    };
    match task.state {
        TaskState::Pending if !task.begun => done(OperationState::InProgress, said("waits for a worker")),
        TaskState::Pending | TaskState::Started => {
            done(OperationState::InProgress, said("a worker is at it"))
        }
        TaskState::Finished => done(OperationState::Succeeded, said("done")),
        TaskState::Failed => done(OperationState::Failed, said("given up")),
    }
}

/// An answer to a poll.
fn done(state: OperationState, description: &str) -> LastOperation {
    LastOperation { state, description: description.to_owned() }
}

/// The config vars of an instance, or why there are none yet.
fn credentials(instance: &Instance) -> Result<Credentials, BrokerError> {
    let missing = || BrokerError::NotYetKnown;
    let mut values = BTreeMap::from([
        ("S3_BUCKET", instance.name.clone()),
        ("S3_LOCATION", instance.location.clone().ok_or_else(missing)?),
        ("S3_ACCESS_KEY", instance.access_key_id.clone().ok_or_else(missing)?),
        ("S3_SECRET_KEY", instance.secret_access_key.as_ref().ok_or_else(missing)?.expose().to_owned()),
        ("S3_REGION", instance.region.clone().ok_or_else(missing)?),
    ]);
    if let Some(endpoint) = &instance.s3_endpoint {
        values.insert("S3_ENDPOINT", endpoint.clone());
    }
    Ok(Credentials(values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_buckets_and_users() {
        let fresh = Fresh::draw(&"p".repeat(45)).unwrap();
        assert_eq!(fresh.name.len(), 63);
    }

    #[test]
    fn attributes_missing_in_old_rows_count_as_equal() {
        let text = |it: &str| Some(it.to_owned());
        let sent = Provisioned { plan: "p".into(), organization: text("o"), space: text("s") };
        let old = Provisioned { plan: "p".into(), organization: None, space: None };
        assert!(is_same(&old, &sent) && is_same(&sent, &sent));
        for other in [
            Provisioned { plan: "q".into(), ..sent.clone() },
            Provisioned { organization: text("x"), ..sent.clone() },
            Provisioned { space: text("x"), ..sent.clone() },
        ] {
            assert!(!is_same(&other, &sent), "{other:?}");
        }
    }
}
