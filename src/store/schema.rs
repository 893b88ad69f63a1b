//! Brings the database to this version's tables, once, whoever comes first.
//!
//! A database at the same or a newer version is not touched and nothing is locked. Any number of
//! processes may start at once: they take turns by an advisory lock that ends with its transaction.

use std::time::Duration;

use super::{Store, StoreError, Transaction};

/// The version that `schema.sql` brings a database to.
const VERSION: i32 = 4;
/// The text of `schema.sql`.
const SCHEMA: &str = include_str!("../../schema.sql");
/// Chosen once, at random, so that nothing else in the database uses it.
const ADVISORY_LOCK: i64 = 0x5e27_1ceb_1205_4a11;

/// Whether there is a version row's table yet: asking for the row of a missing table is an error.
/// Read from the catalog itself, since `to_regclass` may answer from before the lock was waited for.
const TABLE_EXISTS: &str = "
    select exists (
        select 1 from pg_catalog.pg_class where relname = 'schema_version' and pg_table_is_visible(oid)
    ) as there";
/// Whether the tables about to be made are there already: another database has none, nor has another `search_path`.
const IS_TAKEN_OVER: &str = "
    select exists (
        select 1 from pg_catalog.pg_tables where schemaname = current_schema() and tablename = 'resources'
    ) as there";
/// The version of the tables.
const FIND_VERSION: &str = "select version from schema_version";
/// Waits for those who change the tables now, but not for long: the whole is tried again.
const TAKE_TURN: &str = "set local lock_timeout = '3s'; set local statement_timeout = '60s';";
/// Held until the transaction ends.
const LOCK: &str = "select pg_advisory_xact_lock($1)";

impl Store {
    /// Creates or upgrades the tables where that is needed; true when it did.
    ///
    /// # Errors
    /// Whatever stopped it; nothing was changed then, and the caller tries again.
    pub(crate) fn ensure_schema(&self) -> Result<bool, StoreError> {
        if self.transaction(is_current)? {
            return Ok(false);
        }
        self.transaction_within(Duration::from_secs(90), |tx| {
            tx.batch(TAKE_TURN)?;
            tx.query_one(LOCK, &[(&ADVISORY_LOCK, postgres::types::Type::INT8)])?;
            if is_current(tx)? {
                return Ok(false);
            }
            let is_taken_over = tx.query_one(IS_TAKEN_OVER, &[])?.try_get::<_, bool>("there")?;
            tx.batch(SCHEMA)?;
            if !is_taken_over {
                log::info!("no tables of a broker were there: all were made, and know no instance");
            }
            Ok(true)
        })
    }
}

/// Whether the tables are of this version or a later one.
fn is_current(tx: &mut Transaction<'_>) -> Result<bool, StoreError> {
    if !tx.query_one(TABLE_EXISTS, &[])?.try_get::<_, bool>("there")? {
        return Ok(false);
    }
    let row = tx.query_opt(FIND_VERSION, &[])?;
    Ok(row.map(|row| row.try_get::<_, i32>("version")).transpose()?.is_some_and(|it| it >= VERSION))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schema_sql_sets_the_version_that_the_code_looks_for() {
        assert!(SCHEMA.contains(&format!("insert into schema_version (version) values ({VERSION})")));
    }
}
