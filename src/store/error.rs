//! What can go wrong between us and the database.

/// What went wrong between us and the database.
#[derive(Debug)]
pub(crate) enum StoreError {
    /// The server or the client library refused.
    Postgres(postgres::Error),
    /// The task is no longer ours: its lease ran out and another worker has it, or it was settled.
    LeaseLost,
    /// All connections were in use for too long.
    Busy,
    /// The server did not answer in time, now or several times just before.
    Silent,
    /// The thread that did the work panicked; nothing was committed.
    Panicked,
    /// A value in the database that this version cannot read; names column and trouble.
    Unreadable(&'static str),
}

impl StoreError {
    /// Whether the database is the trouble, and asking again later may help.
    pub(crate) fn is_unavailable(&self) -> bool {
        match self {
            StoreError::Busy | StoreError::Silent => true,
            StoreError::LeaseLost | StoreError::Panicked | StoreError::Unreadable(_) => false,
            StoreError::Postgres(err) => match err.code() {
                None => true, // no answer from the server: connecting, sending, reading failed
                Some(code) => {
                    let code = code.code();
                    // connection, resources, operator intervention; then deadlock, lock and statement
                    // timeouts, a table, column or right not there yet;
                    // a database that is missing, lets nobody in, or lets nobody write: a standby
                    ["08", "53", "57"].iter().any(|class| code.starts_with(class))
                        || [
                            "40001", "40P01", "55P03", "42P01", "42703", "42501", "3F000", "55000", "28000",
                            "28P01", "3D000", "25006",
                        ]
                        .contains(&code)
                }
            },
        }
    }
}

impl From<postgres::Error> for StoreError {
    fn from(err: postgres::Error) -> StoreError {
        StoreError::Postgres(err)
    }
}

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StoreError::Postgres(err) => match err.as_db_error() {
                Some(answer) => write!(f, "PostgreSQL said {}: {}", answer.code().code(), answer.message()),
                None => match std::error::Error::source(err) {
                    Some(source) => write!(f, "PostgreSQL: {err}: {source}"),
                    None => write!(f, "PostgreSQL: {err}"),
                },
            },
            StoreError::LeaseLost => f.write_str("the task belongs to another worker now"),
            StoreError::Busy => f.write_str("all database connections are in use"),
            StoreError::Silent => f.write_str("the database does not answer"),
            StoreError::Panicked => f.write_str("a panic while the database was in use"),
            StoreError::Unreadable(column) => write!(f, "unreadable value in {column}"),
        }
    }
}
