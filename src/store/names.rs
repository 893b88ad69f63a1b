//! What the database names in AWS, for whoever compares the two; and the broker's own id.
//!
//! Not here: the comparison (`doctor`).

use postgres::Row;
use postgres::types::Type;

use super::instances::InstanceStatus;
use super::{StoreError, Transaction};

/// A row that names something in AWS: it is not deleted, or a task for it is still open. It has no
/// `Debug`: a task's metadata may hold a secret.
#[derive(Clone)]
pub(crate) struct Named {
    /// The platform's id for the instance.
    pub(crate) id: String,
    /// The name of its bucket and its user.
    pub(crate) name: String,
    /// Where it stands.
    pub(crate) status: InstanceStatus,
    /// Its access key id.
    pub(crate) access_key_id: Option<String>,
    /// The metadata of its tasks that have not ended.
    pub(crate) open_tasks: Vec<String>,
}

/// Both halves come from one statement, so that nothing is lost between them. What names nothing beside its row is left
/// out: notices, and what may go on for as long as AWS refuses it, or lacks what it is about.
const FIND_NAMED: &str = "
    select i.id, i.name, i.status, i.username,
        array_remove(array_agg(t.metadata order by t.task), null) as open_tasks
    from resources i left join tasks t
        on t.resource = i.id and not t.deleted and t.status in ('pending', 'started')
        and t.action not in ('notify-create-service-webhook', 'notify-create-binding-webhook', 'tag', 'check',
            'remove-previous-key', 'remove-unknown-keys')
    where not i.deleted or t.task is not null
    group by i.id order by i.id";
/// Whether such a row names `$1`, or a task that has not ended has it among its notes.
const IS_NAMED: &str = "
    select exists (
        select from resources i where i.name = $1 and (not i.deleted or exists (
            select from tasks t
            where t.resource = i.id and not t.deleted and t.status in ('pending', 'started'))))
    or exists (
        select from tasks t
        where not t.deleted and t.status in ('pending', 'started') and strpos(t.metadata, $1) > 0) as named";
/// Whether an instance that is not deleted and is not `$1` bears the name `$2` too. One that a platform has does not
/// share with the stock: what nobody was given goes with it.
const IS_SHARED: &str = "
    select exists (
        select from resources where name = $2 and id <> $1 and not deleted
            and (claimed or not exists (select from resources i where i.id = $1 and i.claimed))) as shared";
/// Names that several instances bear, and those.
const FIND_SHARED: &str = "
    select name, string_agg(id, ' ' order by id) as ids from resources where name <> '' and not deleted
    group by name having count(*) > 1 order by name limit 100";
/// The one row of `broker`.
const FIND_BROKER: &str = "select id::text from broker";

impl Transaction<'_> {
    /// All rows that name something in AWS.
    pub(crate) fn named(&mut self) -> Result<Vec<Named>, StoreError> {
        self.query(FIND_NAMED, &[])?.iter().map(Named::read).collect()
    }

    /// Whether the database names this. One name may stand within another: then it is taken for named.
    pub(crate) fn is_named(&mut self, name: &str) -> Result<bool, StoreError> {
        Ok(self.query_one(IS_NAMED, &[(&name, Type::TEXT)])?.try_get("named")?)
    }

    /// Whether another instance bears the name as well: the old broker could give one bucket to two.
    pub(crate) fn is_shared(&mut self, instance: &str, name: &str) -> Result<bool, StoreError> {
        let row = self.query_one(IS_SHARED, &[(&instance, Type::TEXT), (&name, Type::TEXT)])?;
        Ok(row.try_get("shared")?)
    }

    /// Names that several instances bear, each with their ids.
    pub(crate) fn shared_names(&mut self) -> Result<Vec<(String, String)>, StoreError> {
        let rows = self.query(FIND_SHARED, &[])?;
        rows.iter().map(|row| Ok((row.try_get("name")?, row.try_get("ids")?))).collect()
    }

    /// The id that this broker writes on what it makes.
    pub(crate) fn broker_id(&mut self) -> Result<String, StoreError> {
        Ok(self.query_one(FIND_BROKER, &[])?.try_get("id")?)
    }
}

impl Named {
    /// From a row of [`FIND_NAMED`].
    fn read(row: &Row) -> Result<Named, StoreError> {
        let access_key_id: Option<String> = row.try_get("username")?;
        Ok(Named {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            status: InstanceStatus::parse(row.try_get("status")?, access_key_id.is_some()),
            access_key_id,
            open_tasks: row.try_get("open_tasks")?,
        })
    }
}
