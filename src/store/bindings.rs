//! Rows of `bindings`: which apps were bound to an instance. They hold no credentials.

use postgres::types::Type;

use super::{StoreError, Transaction};

/// A service binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Binding {
    /// `bind_resource.app_guid`, where the platform told it.
    pub(crate) app: Option<String>,
    /// Whether it was unbound.
    pub(crate) deleted: bool,
}

/// `$1` instance, `$2` binding.
const FIND: &str = "select app, deleted from bindings where resource = $1 and binding = $2";
/// A binding, new or once more after an unbind.
const SAVE: &str = "
    insert into bindings (resource, binding, app) values ($1, $2, $3)
    on conflict (resource, binding) do update
    set app = excluded.app, deleted = false, updated = now()";
/// Zero rows: there was none.
const REMOVE: &str = "
    update bindings set deleted = true, updated = now()
    where resource = $1 and binding = $2 and not deleted";

/// Bindings of an instance, in the order of their ids.
const FIND_ALL: &str = "
    select binding, app from bindings where resource = $1 and not deleted order by binding";

impl Transaction<'_> {
    /// The bindings of an instance, by their ids, each with its app.
    pub(crate) fn bindings(&mut self, instance: &str) -> Result<Vec<(String, Option<String>)>, StoreError> {
        let rows = self.query(FIND_ALL, &[(&instance, Type::TEXT)])?;
        rows.iter().map(|row| Ok((row.try_get("binding")?, row.try_get("app")?))).collect()
    }

    /// The binding, unbound or not.
    pub(crate) fn find_binding(
        &mut self,
        instance: &str,
        binding: &str,
    ) -> Result<Option<Binding>, StoreError> {
        let row = self.query_opt(FIND, &[(&instance, Type::TEXT), (&binding, Type::TEXT)])?;
        row.map(|row| Ok(Binding { app: row.try_get("app")?, deleted: row.try_get("deleted")? })).transpose()
    }

    /// Writes a binding that is bound from now on.
    pub(crate) fn save_binding(
        &mut self,
        instance: &str,
        id: &str,
        app: Option<&str>,
    ) -> Result<(), StoreError> {
        let parameters: [super::Parameter<'_>; 3] =
            [(&instance, Type::TEXT), (&id, Type::TEXT), (&app, Type::TEXT)];
        self.execute(SAVE, &parameters).map(drop)
    }

    /// Unbinds; false when there was no such binding.
    pub(crate) fn remove_binding(&mut self, instance: &str, binding: &str) -> Result<bool, StoreError> {
        Ok(self.execute(REMOVE, &[(&instance, Type::TEXT), (&binding, Type::TEXT)])? == 1)
    }
}
