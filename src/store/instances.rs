//! Rows of `resources`: the service instances. The column names are the old broker's: `username`
//! and `password` hold the access key, `endpoint` the bucket's name.
//!
//! Writes of a worker belong under [`super::Store::fenced`].

use std::time::Duration;

use postgres::Row;
use postgres::types::Type;

use super::{StoreError, Transaction};
use crate::config::Secret;

/// Where an instance stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InstanceStatus {
    /// Being made.
    Provisioning,
    /// Usable.
    Available,
    /// Usable while its plan is being changed.
    Modifying,
    /// Being removed because the platform said so.
    Deprovisioning,
    /// Its provision was given up; what there was of it is, or was, cleaned up.
    Failed,
}

impl InstanceStatus {
    /// The text in the table.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            InstanceStatus::Provisioning => "provisioning",
            InstanceStatus::Available => "available",
            InstanceStatus::Modifying => "modifying",
            InstanceStatus::Deprovisioning => "deprovisioning",
            InstanceStatus::Failed => "failed",
        }
    }

    /// The status that a text means. The old broker wrote others; such a row is as good as its key.
    pub(super) fn parse(text: &str, has_key: bool) -> InstanceStatus {
        match text {
            "provisioning" => InstanceStatus::Provisioning,
            "modifying" => InstanceStatus::Modifying,
            "deprovisioning" => InstanceStatus::Deprovisioning,
            "failed" => InstanceStatus::Failed,
            _ if has_key => InstanceStatus::Available,
            _ => InstanceStatus::Failed,
        }
    }
}

/// What the platform sent when it asked for an instance; compared when it asks again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Provisioned {
    /// The plan's id.
    pub(crate) plan: String,
    /// `organization_guid`; absent in rows of the old broker.
    pub(crate) organization: Option<String>,
    /// `space_guid`; absent in rows of the old broker.
    pub(crate) space: Option<String>,
}

/// An instance to be written.
#[derive(Debug, Clone)]
pub(crate) struct NewInstance {
    /// The platform's id for it.
    pub(crate) id: String,
    /// The name of its bucket and its user.
    pub(crate) name: String,
    /// What the platform sent.
    pub(crate) provisioned: Provisioned,
}

/// An instance.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    /// The platform's id for it.
    pub(crate) id: String,
    /// The name of its bucket and its user.
    pub(crate) name: String,
    /// What the platform sent.
    pub(crate) provisioned: Provisioned,
    /// Where it stands.
    pub(crate) status: InstanceStatus,
    /// Whether it is gone.
    pub(crate) deleted: bool,
    /// Whether a platform has it. If not, it is one of the stock (`super::stock`), and its id is ours.
    pub(crate) claimed: bool,
    /// Its access key id.
    pub(crate) access_key_id: Option<String>,
    /// Its secret access key.
    pub(crate) secret_access_key: Option<Secret>,
    /// How long ago the platform asked for it.
    pub(crate) age: Duration,
    /// How old the access key is, where known.
    pub(crate) key_age: Option<Duration>,
    /// The bucket's region.
    pub(crate) region: Option<String>,
    /// The bucket's host, and path where the endpoint wants one.
    pub(crate) location: Option<String>,
    /// The custom endpoint under which the bucket is reached.
    pub(crate) s3_endpoint: Option<String>,
    /// The user's ARN, once AWS has told it.
    pub(crate) user_arn: Option<String>,
    /// An access key that is not given out yet.
    pub(crate) next_key: Option<NextKey>,
    /// Id of the access key before the present one, as long as it works.
    pub(crate) previous_key: Option<String>,
    /// The KMS key of objects from before the last change of plan.
    pub(crate) former_kms_key: Option<String>,
}

/// An access key that is not given out yet.
#[derive(Debug, Clone)]
pub(crate) struct NextKey {
    /// Its id.
    pub(crate) id: String,
    /// The secret.
    pub(crate) secret: Secret,
    /// How old it is.
    pub(crate) age: Duration,
}

/// Where a bucket turned out to be.
#[derive(Debug, Clone)]
pub(crate) struct Whereabouts {
    /// The bucket's region.
    pub(crate) region: String,
    /// The bucket's host, and path where the endpoint wants one.
    pub(crate) location: String,
    /// The custom endpoint under which the bucket is reached.
    pub(crate) s3_endpoint: Option<String>,
}

/// All columns that an [`Instance`] is read from; all selects share it.
macro_rules! select_instance {
    ($tail:literal) => {
        concat!(
            "select id, name, plan::text, status, deleted, claimed, username, password, region, location,
                s3_endpoint, user_arn, organization, space, next_key, next_secret, previous_key, former_kms_key,
                extract(epoch from now() - next_key_since)::float8 as next_key_age_s,
                extract(epoch from now() - created)::float8 as age_s,
                extract(epoch from now() - key_since)::float8 as key_age_s
            from resources where id = $1",
            $tail
        )
    };
}

/// A platform's instance.
const FIND: &str = select_instance!(" and claimed");
/// A platform's instance, held until the transaction ends.
const LOCK: &str = select_instance!(" and claimed for no key update");
/// One instance, be it a platform's or of the stock.
const FIND_ANY: &str = select_instance!("");
/// The same, held until the transaction ends.
const LOCK_ANY: &str = select_instance!(" for no key update");

/// `$1` id, `$2` name, `$3` plan, `$4` organization, `$5` space.
const INSERT: &str = "
    insert into resources (id, name, plan, claimed, status, endpoint, organization, space)
    values ($1, $2, $3::uuid, true, 'provisioning', $2, $4, $5)
    on conflict (id) do nothing";
/// The same for an id whose former instance is gone.
const REUSE: &str = "
    update resources set name = $2, plan = $3::uuid, claimed = true, status = 'provisioning', endpoint = $2,
        organization = $4, space = $5, created = now(), deleted = false,
        username = null, password = null, key_since = null, user_arn = null,
        next_key = null, next_secret = null, next_key_since = null, previous_key = null,
        previous_key_until = null, former_kms_key = null,
        region = null, location = null, s3_endpoint = null
    where id = $1";
/// Bindings of the former instance do not belong to the new one.
const FORGET_BINDINGS: &str = "delete from bindings where resource = $1";
/// Nor do its rotations, which would answer for the new one's.
const FORGET_ROTATIONS: &str =
    "update tasks set deleted = true where resource = $1 and action = 'rotate-credentials'";
/// Fills what a row of the old broker lacks.
const FILL: &str = "
    update resources set organization = coalesce(organization, $2), space = coalesce(space, $3)
    where id = $1";
/// `$2` the status.
const SET_STATUS: &str = "update resources set status = $2 where id = $1";
/// `$2` the user's ARN.
const SAVE_USER: &str = "update resources set user_arn = $2 where id = $1";
/// `$2` and `$3` the key; both null forget it.
const SAVE_KEY: &str = "
    update resources set username = $2, password = $3,
        key_since = case when $2::text is null then null else now() end
    where id = $1";
/// `$2` a new name, for which nothing was made yet.
const RENAME: &str = "
    update resources set name = $2, endpoint = $2, user_arn = null, username = null, password = null,
        key_since = null
    where id = $1";
/// `$2` region, `$3` location, `$4` endpoint.
const MARK_AVAILABLE: &str = "
    update resources set status = 'available', region = $2, location = $3, s3_endpoint = $4 where id = $1";
/// Names of buckets whose place the old broker never wrote down. The status counts as [`InstanceStatus::parse`] reads it.
const FIND_UNPLACED: &str = "
    select id, name from resources
    where region is null and not deleted and username is not null
        and status not in ('provisioning', 'deprovisioning', 'failed')
    order by id";
/// `$2` region, `$3` location, `$4` endpoint, where they are not known yet and still matter.
const PLACE: &str = "
    update resources set region = $2, location = $3, s3_endpoint = $4
    where id = $1 and region is null and not deleted and status <> 'deprovisioning'";
/// Leaves nothing that opens anything. `$2` whether the row is gone for the platform too.
const WIPE: &str = "
    update resources set username = null, password = null, key_since = null, next_key = null,
        next_secret = null, next_key_since = null, previous_key = null, previous_key_until = null,
        former_kms_key = null, deleted = $2
    where id = $1";

impl Transaction<'_> {
    /// Writes a new instance; false when the id is taken already.
    pub(crate) fn insert_instance(&mut self, new: &NewInstance) -> Result<bool, StoreError> {
        Ok(self.write_instance(INSERT, new)? == 1)
    }

    /// Gives the id of an instance that is gone to a new one.
    pub(crate) fn reuse_instance(&mut self, new: &NewInstance) -> Result<(), StoreError> {
        self.execute(FORGET_BINDINGS, &[(&new.id, Type::TEXT)])?;
        self.execute(FORGET_ROTATIONS, &[(&new.id, Type::TEXT)])?;
        self.write_instance(REUSE, new).map(drop)
    }

    /// The parameters that both ways of writing an instance share.
    fn write_instance(&mut self, sql: &str, new: &NewInstance) -> Result<u64, StoreError> {
        let sent = &new.provisioned;
        let parameters: [super::Parameter<'_>; 5] = [
            (&new.id, Type::TEXT),
            (&new.name, Type::TEXT),
            (&sent.plan, Type::TEXT),
            (&sent.organization, Type::TEXT),
            (&sent.space, Type::TEXT),
        ];
        self.execute(sql, &parameters)
    }

    /// The platform's instance, deleted or not. One of the stock has no platform: it is not found.
    pub(crate) fn find_instance(&mut self, id: &str) -> Result<Option<Instance>, StoreError> {
        self.read_instance(FIND, id)
    }

    /// The same, held against other writers until the transaction ends.
    pub(crate) fn lock_instance(&mut self, id: &str) -> Result<Option<Instance>, StoreError> {
        self.read_instance(LOCK, id)
    }

    /// The instance, deleted or not, a platform's or of the stock: for those who work on it.
    pub(crate) fn find_any_instance(&mut self, id: &str) -> Result<Option<Instance>, StoreError> {
        self.read_instance(FIND_ANY, id)
    }

    /// The same, held against other writers until the transaction ends.
    pub(crate) fn lock_any_instance(&mut self, id: &str) -> Result<Option<Instance>, StoreError> {
        self.read_instance(LOCK_ANY, id)
    }

    /// The row that a select gives, if any.
    fn read_instance(&mut self, sql: &str, id: &str) -> Result<Option<Instance>, StoreError> {
        self.query_opt(sql, &[(&id, Type::TEXT)])?.map(|row| Instance::read(&row)).transpose()
    }

    /// Fills in what a row of the old broker does not know.
    pub(crate) fn fill_attributes(&mut self, id: &str, sent: &Provisioned) -> Result<(), StoreError> {
        let parameters: [super::Parameter<'_>; 3] =
            [(&id, Type::TEXT), (&sent.organization, Type::TEXT), (&sent.space, Type::TEXT)];
        self.execute(FILL, &parameters).map(drop)
    }

    /// Moves an instance to another status.
    pub(crate) fn set_status(&mut self, id: &str, status: InstanceStatus) -> Result<(), StoreError> {
        self.execute(SET_STATUS, &[(&id, Type::TEXT), (&status.as_str(), Type::TEXT)]).map(drop)
    }

    /// Keeps the ARN of the instance's user.
    pub(crate) fn save_user_arn(&mut self, id: &str, arn: &str) -> Result<(), StoreError> {
        self.execute(SAVE_USER, &[(&id, Type::TEXT), (&arn, Type::TEXT)]).map(drop)
    }

    /// Keeps the instance's access key; `None` forgets it.
    pub(crate) fn save_access_key(
        &mut self,
        id: &str,
        key: Option<(&str, &Secret)>,
    ) -> Result<(), StoreError> {
        let (key_id, secret) = (key.map(|it| it.0), key.map(|it| it.1.expose()));
        self.execute(SAVE_KEY, &[(&id, Type::TEXT), (&key_id, Type::TEXT), (&secret, Type::TEXT)]).map(drop)
    }

    /// Gives the instance another name, under which nothing was made yet.
    pub(crate) fn rename_instance(&mut self, id: &str, name: &str) -> Result<(), StoreError> {
        self.execute(RENAME, &[(&id, Type::TEXT), (&name, Type::TEXT)]).map(drop)
    }

    /// Ids and buckets of instances of the old broker, which did not write down where they are.
    pub(crate) fn unplaced_instances(&mut self) -> Result<Vec<(String, String)>, StoreError> {
        let rows = self.query(FIND_UNPLACED, &[])?;
        rows.iter().map(|row| Ok((row.try_get("id")?, row.try_get("name")?))).collect()
    }

    /// Writes down where an instance's bucket is; false when that is known already, or the instance goes.
    pub(crate) fn place_instance(&mut self, id: &str, bucket: &Whereabouts) -> Result<bool, StoreError> {
        Ok(self.write_place(PLACE, id, bucket)? == 1)
    }

    /// The instance can be used from now on.
    pub(crate) fn mark_available(&mut self, id: &str, bucket: &Whereabouts) -> Result<(), StoreError> {
        self.write_place(MARK_AVAILABLE, id, bucket).map(drop)
    }

    /// The parameters that both ways of writing a place share.
    pub(super) fn write_place(
        &mut self,
        sql: &str,
        id: &str,
        bucket: &Whereabouts,
    ) -> Result<u64, StoreError> {
        let parameters: [super::Parameter<'_>; 4] = [
            (&id, Type::TEXT),
            (&bucket.region, Type::TEXT),
            (&bucket.location, Type::TEXT),
            (&bucket.s3_endpoint, Type::TEXT),
        ];
        self.execute(sql, &parameters)
    }

    /// Nothing is left of the instance in AWS; its secrets go here too.
    pub(crate) fn wipe_instance(&mut self, id: &str, deleted: bool) -> Result<(), StoreError> {
        self.execute(WIPE, &[(&id, Type::TEXT), (&deleted, Type::BOOL)]).map(drop)
    }
}

impl Instance {
    /// From a row of `select_instance`.
    fn read(row: &Row) -> Result<Instance, StoreError> {
        let access_key_id: Option<String> = row.try_get("username")?;
        Ok(Instance {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            provisioned: Provisioned {
                plan: row.try_get("plan")?,
                organization: row.try_get("organization")?,
                space: row.try_get("space")?,
            },
            status: InstanceStatus::parse(row.try_get("status")?, access_key_id.is_some()),
            deleted: row.try_get("deleted")?,
            claimed: row.try_get("claimed")?,
            access_key_id,
            secret_access_key: row.try_get::<_, Option<String>>("password")?.map(Secret::new),
            age: seconds(row.try_get("age_s")?),
            key_age: row.try_get::<_, Option<f64>>("key_age_s")?.map(seconds),
            region: row.try_get("region")?,
            location: row.try_get("location")?,
            s3_endpoint: row.try_get("s3_endpoint")?,
            user_arn: row.try_get("user_arn")?,
            next_key: NextKey::read(row)?,
            previous_key: row.try_get("previous_key")?,
            former_kms_key: row.try_get("former_kms_key")?,
        })
    }
}

impl NextKey {
    /// The part of a row of [`FIND`] or [`LOCK`].
    fn read(row: &Row) -> Result<Option<NextKey>, StoreError> {
        let id: Option<String> = row.try_get("next_key")?;
        let secret: Option<String> = row.try_get("next_secret")?;
        let age_s: Option<f64> = row.try_get("next_key_age_s")?;
        Ok(id.zip(secret).map(|(id, secret)| NextKey {
            id,
            secret: Secret::new(secret),
            age: seconds(age_s.unwrap_or_default()),
        }))
    }
}

/// A span that the database measured; none is negative but by a clock set back.
pub(super) fn seconds(span: f64) -> Duration {
    Duration::try_from_secs_f64(span.max(0.0)).unwrap_or_default()
}
