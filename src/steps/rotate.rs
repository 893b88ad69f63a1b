//! *rotate-credentials*: a new key is made, kept aside and proven; then it takes the place of the present
//! one, which works on for the grace. *remove-previous-key*: the end of that grace. *remove-unknown-keys*: what a
//! run that went wrong may have left, of a provision too.
//!
//! Invariants
//! - Nobody reads a key before it works, and none without its secret.
//! - There are never more than two keys, and none that the row does not name.

use std::time::Duration;

use super::keys::{self, KEY_PATIENCE};
use super::{Ending, Notes, StepError, Work, wait};
use crate::aws::Credentials;
use crate::store::{Instance, NextKey};

/// Makes the next key and proves it, or goes on doing so.
pub(super) fn run(work: &Work<'_>) -> Result<Ending, StepError> {
    let mut instance = work.live_instance()?;
    let Some(held) = instance.access_key_id.clone() else {
        return Err(StepError::Unfixable("the instance has no access key".to_owned()));
    };
    refuse_shared(work, &instance.name)?;
    if instance.user_arn.is_none() {
        save_user_arn(work, &instance)?;
    }
    if instance.next_key.is_none() {
        make_next_key(work, &instance, &held)?;
        instance = work.instance()?;
    }
    let Some(next) = &instance.next_key else {
        return Err(wait(Duration::ZERO, "the access key is made again"));
    };
    if keys::try_key(work, &instance.name, &Credentials::lasting(&next.id, &next.secret))?.is_none() {
        if next.age > KEY_PATIENCE {
            return Err(replace_next_key(work, &instance, next)?);
        }
        return Err(keys::not_yet());
    }
    keys::keep_only(work, &instance.name, &[held, next.id.clone()])?;
    Ok(Ending::Rotated { grace: work.settings.rotation_grace })
}

/// The keys of a user that two instances have, by the old broker's mistake, are not for one of them to end.
fn refuse_shared(work: &Work<'_>, user: &str) -> Result<(), StepError> {
    if work.is_shared(user)? {
        return Err(StepError::Unfixable("another instance has the user too".to_owned()));
    }
    Ok(())
}

/// The old broker did not write the user's ARN down.
fn save_user_arn(work: &Work<'_>, instance: &Instance) -> Result<(), StepError> {
    let user = work.caller().get_user(&instance.name)?;
    let user =
        user.ok_or_else(|| StepError::Unfixable("AWS has no user of the instance's name".to_owned()))?;
    work.write(move |tx, id| tx.save_user_arn(id, &user.arn))
}

/// Makes room, makes a key, keeps it. A key before the present one ends here, whatever is left of its
/// grace: whoever rotates twice wants it gone.
fn make_next_key(work: &Work<'_>, instance: &Instance, held: &str) -> Result<(), StepError> {
    keys::keep_only(work, &instance.name, &[held.to_owned()])?;
    if instance.previous_key.is_some() {
        work.write(|tx, id| tx.forget_previous_key(id, None))?;
    }
    let key = keys::create(work, &instance.name)?;
    work.write(move |tx, id| tx.save_next_key(id, Some((&key.id, &key.secret))))
}

/// Removes a key that never came to work, so that the next run makes another: once. When that does not come to work
/// either, it is not for the keys, and the rotation is given up.
fn replace_next_key(work: &Work<'_>, instance: &Instance, next: &NextKey) -> Result<StepError, StepError> {
    log::warn!("access key never came to work and is removed: instance={:?} key={}", instance.id, next.id);
    work.caller().delete_access_key(&instance.name, &next.id)?;
    let mut notes = Notes::parse(&work.claim.metadata);
    let is_second = std::mem::replace(&mut notes.replaced, true);
    let (task, metadata) = (work.claim.task.clone(), notes.to_json());
    work.write(move |tx, id| {
        tx.save_next_key(id, None)?;
        tx.remember(&task, &metadata)
    })?;
    Ok(match is_second {
        true => StepError::Unfixable("no new access key came to work".to_owned()),
        false => keys::not_yet(),
    })
}

/// Removes the key whose grace is over.
pub(super) fn remove_previous_key(work: &Work<'_>) -> Result<Ending, StepError> {
    let notes = Notes::parse(&work.claim.metadata);
    let (Some(user), Some(key)) = (notes.name, notes.key) else {
        return Err(StepError::Unfixable("the task names no key".to_owned()));
    };
    work.refuse_foreign(&user)?;
    let instance = work.instance()?;
    let is_used = instance.access_key_id.as_ref() == Some(&key);
    if is_used || instance.next_key.as_ref().is_some_and(|it| it.id == key) {
        return Err(StepError::Unfixable("the key is the present one".to_owned()));
    }
    work.believing_one_account(&instance, || Ok(work.caller().delete_access_key(&user, &key)?))?;
    Ok(Ending::KeyRemoved { key })
}

/// Removes a key whose answer was lost, and that no later run has seen; or that waited when its rotation was given up.
pub(super) fn remove_unknown_keys(work: &Work<'_>) -> Result<Ending, StepError> {
    let instance = work.live_instance()?;
    let user = instance.name.as_str();
    if instance.access_key_id.is_none() {
        return Err(StepError::Unfixable("the instance has no access key".to_owned()));
    }
    refuse_shared(work, user)?;
    let next = instance.next_key.as_ref().map(|it| &it.id);
    let named = [instance.access_key_id.as_ref(), instance.previous_key.as_ref(), next];
    let named: Vec<String> = named.into_iter().flatten().cloned().collect();
    work.believing_one_account(&instance, || keys::keep_only(work, user, &named).map(drop))?;
    Ok(Ending::KeysKnown)
}
