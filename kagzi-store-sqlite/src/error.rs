//! What can go wrong inside this backend, and how callers hear of it.

use std::path::Path;
use std::time::Duration;

use kagzi_core::StoreError;
use rusqlite::ErrorCode;

/// How long callers wait before they try a locked or broken file again.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Why an operation gave no outcome.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The rules said no, or a row could not be read: an answer, decided before anything was written.
    #[error(transparent)]
    Refused(#[from] StoreError),
    /// SQLite said no: whatever was written in this transaction must be undone.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

impl Error {
    /// Something in the file that this program did not write.
    pub(crate) fn damaged(detail: impl Into<String>) -> Self {
        Self::Refused(StoreError::Internal { context: "reading a row", detail: detail.into() })
    }

    /// What the caller hears. Nothing was changed.
    pub(crate) fn into_store_error(self) -> StoreError {
        match self {
            Self::Refused(error) => error,
            Self::Sqlite(error) => nothing_happened(&error),
        }
    }
}

/// The answer after an error of SQLite when it is certain that nothing was changed.
pub(crate) fn nothing_happened(error: &rusqlite::Error) -> StoreError {
    let remedy = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another process holds the file for longer than the busy timeout; close it or raise the timeout"
        }
        Some(ErrorCode::DiskFull) => "the disk or its quota is full; free some space",
        Some(ErrorCode::ReadOnly) => {
            "the file, its directory or its file system is read-only; make all three writable"
        }
        Some(ErrorCode::CannotOpen) => "the file or its -wal and -shm neighbours cannot be opened",
        Some(ErrorCode::SystemIoFailure) => "the disk reported an input/output error; check it",
        Some(ErrorCode::OutOfMemory) => "the machine is out of memory",
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            return StoreError::Internal {
                context: "reading a damaged file",
                detail: format!(
                    "close every process that has it open, keep a copy, then restore a backup or salvage it \
                     with `sqlite3 FILE .recover` (SQLite: {error})"
                ),
            };
        }
        _ => {
            return StoreError::Internal { context: "running SQL", detail: error.to_string() };
        }
    };
    unavailable(format!("{remedy} (SQLite: {error})"))
}

/// The answer to every operation of a batch whose COMMIT failed.
///
/// A commit that SQLite refused (full, busy, read-only, vetoed) was undone. After an input/output
/// error nobody knows what reached the disk: the batch may come to light when the file is recovered.
pub(crate) fn commit_failed(error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::DiskFull
            | ErrorCode::ReadOnly
            | ErrorCode::OutOfMemory,
        ) => nothing_happened(error),
        Some(ErrorCode::ConstraintViolation) => {
            StoreError::Internal { context: "committing a batch", detail: error.to_string() }
        }
        _ => StoreError::outcome_unknown(format!("the commit failed (SQLite: {error})")),
    }
}

/// Writing to a file that is no longer there would be lost.
pub(crate) fn displaced(path: &Path) -> StoreError {
    unavailable(format!("{}; put it back, or open the store anew", gone(path)))
}

/// The file went away during a commit.
pub(crate) fn displaced_meanwhile(path: &Path) -> StoreError {
    StoreError::outcome_unknown(format!("{} during the commit", gone(path)))
}

fn gone(path: &Path) -> String {
    format!("{} was moved, deleted or replaced while it was open", path.display())
}

/// The store cannot serve now; nothing was changed.
pub(crate) fn unavailable(reason: impl Into<String>) -> StoreError {
    StoreError::unavailable(reason, RETRY_AFTER)
}

/// Another process has the lock, and nobody knows for how long.
pub(crate) fn kept_out() -> StoreError {
    unavailable(
        "another process holds the file, and keeps this one from writing to it; find out which, and close it",
    )
}

/// The store was closed.
pub(crate) fn closed() -> StoreError {
    unavailable("the store is closed")
}

/// Whether another connection stands in the way.
pub(crate) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}
