//! What happens to a live instance: another access key, another plan, a look at where it is.
//!
//! Writes of a worker belong under [`super::Store::fenced`].

use std::time::Duration;

use postgres::types::Type;

use super::instances::Whereabouts;
use super::{StoreError, Transaction};
use crate::config::Secret;

/// `$2` and `$3` the key that is not given out yet; both null forget it.
const SAVE_NEXT_KEY: &str = "
    update resources set next_key = $2, next_secret = $3,
        next_key_since = case when $2::text is null then null else now() end
    where id = $1";
/// The key that waited is given out from now on; `$2` seconds for the one before. Gives the latter's id.
const ADVANCE_KEY: &str = "
    update resources set previous_key = username, previous_key_until = now() + make_interval(secs => $2),
        username = next_key, password = next_secret, key_since = next_key_since,
        next_key = null, next_secret = null, next_key_since = null
    where id = $1 and next_key is not null
    returning previous_key";
/// `$2` a key that does not work any more; null: whichever it is.
const FORGET_PREVIOUS_KEY: &str = "
    update resources set previous_key = null, previous_key_until = null
    where id = $1 and previous_key = coalesce($2, previous_key)";
/// `$2` the plan that the bucket is of now.
const CHANGE_PLAN: &str = "update resources set plan = $2::uuid, status = 'available' where id = $1";
/// `$2` the KMS key of what is in the bucket.
const SAVE_FORMER_KMS_KEY: &str = "update resources set former_kms_key = $2 where id = $1";
/// `$2` region, `$3` location, `$4` endpoint.
const MOVE: &str = "update resources set region = $2, location = $3, s3_endpoint = $4 where id = $1";

impl Transaction<'_> {
    /// Keeps a key that is not given out yet; `None` forgets it.
    pub(crate) fn save_next_key(&mut self, id: &str, key: Option<(&str, &Secret)>) -> Result<(), StoreError> {
        let (key_id, secret) = (key.map(|it| it.0), key.map(|it| it.1.expose()));
        let parameters: [super::Parameter<'_>; 3] =
            [(&id, Type::TEXT), (&key_id, Type::TEXT), (&secret, Type::TEXT)];
        self.execute(SAVE_NEXT_KEY, &parameters).map(drop)
    }

    /// Gives the key that waited out from now on; the id of the one before, which works on for `grace`.
    pub(crate) fn advance_key(&mut self, id: &str, grace: Duration) -> Result<Option<String>, StoreError> {
        let row = self.query_opt(ADVANCE_KEY, &[(&id, Type::TEXT), (&grace.as_secs_f64(), Type::FLOAT8)])?;
        Ok(row.map(|row| row.try_get("previous_key")).transpose()?.flatten())
    }

    /// The previous key is gone; with `key` only if it is that one.
    pub(crate) fn forget_previous_key(&mut self, id: &str, key: Option<&str>) -> Result<(), StoreError> {
        self.execute(FORGET_PREVIOUS_KEY, &[(&id, Type::TEXT), (&key, Type::TEXT)]).map(drop)
    }

    /// The bucket is what that plan promises.
    pub(crate) fn change_plan(&mut self, id: &str, plan: &str) -> Result<(), StoreError> {
        self.execute(CHANGE_PLAN, &[(&id, Type::TEXT), (&plan, Type::TEXT)]).map(drop)
    }

    /// Keeps the KMS key with which objects are encrypted that outlive a change of plan.
    pub(crate) fn save_former_kms_key(&mut self, id: &str, key: &str) -> Result<(), StoreError> {
        self.execute(SAVE_FORMER_KMS_KEY, &[(&id, Type::TEXT), (&key, Type::TEXT)]).map(drop)
    }

    /// Writes down where the bucket is, whatever was believed.
    pub(crate) fn move_instance(&mut self, id: &str, bucket: &Whereabouts) -> Result<(), StoreError> {
        self.write_place(MOVE, id, bucket).map(drop)
    }
}
