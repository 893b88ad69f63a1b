//! The error catalogue. Which status each becomes is decided in `http`.

use crate::random;
use crate::store::StoreError;

/// Why an operation was refused or could not be done.
#[derive(Debug)]
pub(crate) enum BrokerError {
    /// The platform must say `accepts_incomplete=true`.
    AsyncRequired,
    /// Another operation on the instance goes on; says which.
    Busy(&'static str),
    /// The platform's idea of the plan's maintenance version is not ours.
    MaintenanceInfoConflict,
    /// No such instance; the platform asked about one.
    InstanceUnknown,
    /// No such instance; the platform wants it gone or asks how its removal went.
    InstanceGone,
    /// The id belongs to an instance with other attributes.
    InstanceConflict,
    /// The instance can give no credentials, and never will.
    InstanceFailed,
    /// No such binding; the platform asked about one.
    BindingUnknown,
    /// No such binding; the platform wants it gone.
    BindingGone,
    /// The id belongs to a binding with other attributes.
    BindingConflict,
    /// The instance cannot get that plan; says why.
    ChangeRefused(&'static str),
    /// What is missing or wrong in the request.
    BadRequest(&'static str),
    /// The instance lacks what its credentials need until a worker has looked.
    NotYetKnown,
    /// No worker has begun what the request waited for, and it was withdrawn.
    NoWorker,
    /// The database, or the lack of randomness.
    Store(StoreError),
    /// No name could be made.
    NoRandomness(random::NoRandomness),
}

impl From<StoreError> for BrokerError {
    fn from(err: StoreError) -> BrokerError {
        BrokerError::Store(err)
    }
}
