//! The old broker's tasks that look at AWS and bring the row in line with it.

use super::plan::{former_key, promise_of, promised_key, put_user_policy};
use super::{Ending, StepError, Work, find_bucket};
use crate::store::InstanceStatus;

/// Writes the user's policy anew, and what AWS says of user and bucket into the row.
pub(super) fn run(work: &Work<'_>) -> Result<Ending, StepError> {
    let instance = work.live_instance()?;
    if instance.status != InstanceStatus::Available {
        return Err(StepError::Unfixable("the instance cannot be used".to_owned()));
    }
    let caller = work.caller();
    let user = caller.get_user(&instance.name)?;
    let user =
        user.ok_or_else(|| StepError::Unfixable("AWS has no user of the instance's name".to_owned()))?;
    let key = promised_key(work, &promise_of(work, &instance.provisioned.plan)?, &instance)?;
    let former = former_key(work, &instance)?;
    put_user_policy(work, &instance, former.as_ref().or(key.as_ref()))?;
    let place = find_bucket(&caller, work.aws, &instance.name)?;
    work.write(move |tx, id| {
        tx.save_user_arn(id, &user.arn)?;
        tx.move_instance(id, &place)
    })?;
    Ok(Ending::Resynced)
}
