//! What can go wrong inside this backend, and how callers hear of it.

use std::time::Duration;

use kagzi_core::StoreError;

/// How long callers wait before they try a file that cannot be used now.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// What everything in this crate answers, until it leaves the crate.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Why an operation gave no outcome. The difference matters to a batch: after a refusal its
/// neighbours go on, after anything else the whole transaction is undone.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The rules said no, before anything was written.
    #[error(transparent)]
    Refused(#[from] StoreError),
    /// redb said no, maybe in the middle of an operation.
    #[error(transparent)]
    Redb(#[from] redb::Error),
    /// A row is not one that this program wrote.
    #[error("a row cannot be read: {0}")]
    Damaged(String),
}

macro_rules! redb_errors {
    ($($error:ty),*) => {$(
        impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::Redb(error.into())
            }
        }
    )*};
}
redb_errors!(
    redb::DatabaseError,
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError
);

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::Damaged(error.to_string())
    }
}

impl Error {
    /// An entry of an index leads nowhere.
    pub(crate) fn dangling() -> Self {
        Self::Damaged("an index names a row that is not there".to_owned())
    }

    /// What the caller hears. Nothing was changed.
    pub(crate) fn into_store_error(self) -> StoreError {
        match self {
            Self::Refused(error) => error,
            Self::Redb(redb::Error::Corrupted(detail)) | Self::Damaged(detail) => {
                StoreError::Internal { context: "reading the file", detail }
            }
            Self::Redb(error) => unavailable(error.to_string()),
        }
    }
}

/// The store cannot be used now.
pub(crate) fn unavailable(reason: impl Into<String>) -> StoreError {
    StoreError::unavailable(reason, RETRY_AFTER)
}
