//! Errors through the wire and back.
//!
//! A [`StoreError`] becomes a `tonic::Status` with a standard code and the typed details of
//! `google.rpc`: `ErrorInfo` with [`StoreError::reason`] and the particulars as metadata, from which
//! the client rebuilds the very same error; `BadRequest` where a field is at fault; `RetryInfo` where
//! a delay is known. Free texts are cut to [`MAX_TEXT_BYTES`], since they travel in HTTP/2 trailers.
//!
//! | error | code |
//! | --- | --- |
//! | `InvalidArgument`, `TooLarge`, `BadCursor` | `INVALID_ARGUMENT` |
//! | `RunNotFound` | `NOT_FOUND` |
//! | `LeaseLost`, `AttemptNotRunning`, `StepKindMismatch`, `WrongState`, `SchemaMismatch` | `FAILED_PRECONDITION` |
//! | `IdempotencyConflict`, `OperationConflict`, `QueueOperationConflict` | `ALREADY_EXISTS` |
//! | `Unavailable`, `OutcomeUnknown` | `UNAVAILABLE`, always with a retry delay |
//! | `Internal` | `INTERNAL` |
//! | [`unauthenticated`], read as `InvalidArgument` | `UNAUTHENTICATED` |
//! | [`permission_denied`], read as `InvalidArgument` | `PERMISSION_DENIED` |
//! | [`overloaded`] and [`limit_reached`], read as `Unavailable` | `RESOURCE_EXHAUSTED`, with a retry delay |
//! | [`request_timeout`], read as `OutcomeUnknown` | `DEADLINE_EXCEEDED` |
//!
//! `LeaseLost` is not `ABORTED`: retrying middleware repeats `ABORTED`, and a worker that lost its
//! lease must stop. `OutcomeUnknown` is `UNAVAILABLE` because that is what it asks of the caller: send
//! the same operation again.

mod decode;
mod encode;
mod unread;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use kagzi_core::StoreError;
use kagzi_proto::{ERROR_DOMAIN, v1};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::time::{duration, duration_to_wire};

pub use unread::explained;

/// The longest free text in an error on the wire, in bytes.
pub const MAX_TEXT_BYTES: usize = 1024;

/// The reason of a status about a namespace that the server does not serve.
pub const NAMESPACE_NOT_FOUND: &str = "NAMESPACE_NOT_FOUND";

/// The reason of a status for a caller whom the server does not know.
pub const UNAUTHENTICATED: &str = "UNAUTHENTICATED";

/// The reason of a status for a caller who may not do this.
pub const PERMISSION_DENIED: &str = "PERMISSION_DENIED";

/// The reason of a status from a server that is shutting down.
pub const SHUTTING_DOWN: &str = "SHUTTING_DOWN";

/// How long a client is told to wait where the store does not say: every UNAVAILABLE carries a delay.
const UNAVAILABLE_RETRY_AFTER: Duration = Duration::from_millis(100);

/// The reason of a status from a server that has too much to do.
pub const OVERLOADED: &str = "OVERLOADED";

/// The reason of a status for a caller who asks for more than one principal or one namespace may take.
pub const LIMIT_REACHED: &str = "LIMIT_REACHED";

/// The reason of a status for a request that did not arrive whole in time.
pub const REQUEST_TIMEOUT: &str = "REQUEST_TIMEOUT";

/// An error in the form that the wire carries: the status of a call, or the verdict on one item of many.
#[derive(Clone, Debug)]
pub struct Refusal {
    code: Code,
    reason: String,
    message: String,
    metadata: BTreeMap<String, String>,
    retry_delay: Option<Duration>,
}

/// The code of an error; see the table of this module.
pub const fn code_of(error: &StoreError) -> Code {
    match error {
        StoreError::InvalidArgument { .. } | StoreError::TooLarge { .. } | StoreError::BadCursor { .. } => {
            Code::InvalidArgument
        }
        StoreError::RunNotFound { .. } => Code::NotFound,
        StoreError::LeaseLost { .. }
        | StoreError::AttemptNotRunning { .. }
        | StoreError::StepKindMismatch { .. }
        | StoreError::WrongState { .. }
        | StoreError::SchemaMismatch { .. } => Code::FailedPrecondition,
        StoreError::IdempotencyConflict { .. }
        | StoreError::OperationConflict { .. }
        | StoreError::QueueOperationConflict { .. } => Code::AlreadyExists,
        StoreError::Unavailable { .. } | StoreError::OutcomeUnknown { .. } => Code::Unavailable,
        _ => Code::Internal,
    }
}

/// The status of a failed call.
pub fn error_to_status(error: &StoreError) -> Status {
    encode::describe(error).into_status()
}

/// The error inside a status. A status that no kagzi server made (a proxy's, a broken connection's)
/// becomes the error that asks for the right behaviour: what may pass is retryable.
pub fn error_from_status(status: &Status) -> StoreError {
    let info = status.get_details_error_info().filter(|info| info.domain == ERROR_DOMAIN);
    let Some(info) = info else { return decode::foreign(status) };
    decode::rebuild(&Refusal {
        code: status.code(),
        reason: info.reason,
        message: status.message().to_owned(),
        metadata: info.metadata.into_iter().collect(),
        retry_delay: status.get_details_retry_info().and_then(|retry| retry.retry_delay),
    })
}

/// The refusal of one item of a batch.
pub fn error_to_item(error: &StoreError) -> v1::ItemError {
    encode::describe(error).into_item()
}

/// The error inside the refusal of an item.
pub fn error_from_item(item: &v1::ItemError) -> StoreError {
    decode::rebuild(&Refusal {
        code: Code::from_i32(item.code),
        reason: item.reason.clone(),
        message: item.message.clone(),
        metadata: item.metadata.clone(),
        retry_delay: item.retry_delay.and_then(|delay| duration("retry_delay", delay).ok()),
    })
}

/// The refusal of a namespace that the server does not serve. Clients read it as a
/// [`StoreError::InvalidArgument`] about the field.
pub fn namespace_not_found(namespace: &str) -> Refusal {
    let expected =
        "a namespace that this server serves; add it to `namespaces` in the server's configuration";
    Refusal {
        code: Code::NotFound,
        reason: NAMESPACE_NOT_FOUND.to_owned(),
        message: format!("namespace: expected {expected}, got {namespace:?}"),
        metadata: BTreeMap::from([
            ("field".to_owned(), "namespace".to_owned()),
            ("expected".to_owned(), expected.to_owned()),
            ("got".to_owned(), namespace.to_owned()),
        ]),
        retry_delay: None,
    }
}

/// The refusal of a caller who shows no credentials, or none that the server accepts. `why` must not tell
/// what would have been accepted. Clients read it as a [`StoreError::InvalidArgument`] about them.
pub fn unauthenticated(why: &str) -> Refusal {
    let expected = "a token or certificate that this server knows";
    credentials(Code::Unauthenticated, UNAUTHENTICATED, expected, why)
}

/// The refusal of a call that its caller may not make: the same, whether or not what it names is there.
/// Clients read it as a [`StoreError::InvalidArgument`] about their credentials.
pub fn permission_denied(method: &str) -> Refusal {
    let expected = "those of somebody whom the server's access file grants this";
    credentials(Code::PermissionDenied, PERMISSION_DENIED, expected, &format!("no right to {method} here"))
}

fn credentials(code: Code, reason: &str, expected: &str, got: &str) -> Refusal {
    Refusal {
        code,
        reason: reason.to_owned(),
        message: format!("credentials: expected {expected}, got {got}"),
        metadata: BTreeMap::from([
            ("expected".to_owned(), expected.to_owned()),
            ("got".to_owned(), got.to_owned()),
        ]),
        retry_delay: None,
    }
}

/// The refusal of a server that takes no new calls. Clients read it as [`StoreError::Unavailable`].
pub fn shutting_down(retry_after: Duration) -> Refusal {
    let cause = "the server is shutting down; retry, on another server if there is one";
    not_now(Code::Unavailable, SHUTTING_DOWN, cause, retry_after)
}

/// The refusal of a server that has too much to do. Clients read it as [`StoreError::Unavailable`].
pub fn overloaded(retry_after: Duration) -> Refusal {
    let cause = "the server has as much in flight as it bears; retry later, and slower";
    not_now(Code::ResourceExhausted, OVERLOADED, cause, retry_after)
}

/// The refusal of a caller who has reached a limit of their own, or of their namespace, while others may
/// find room: `limit` is the name of the setting. Clients read it as [`StoreError::Unavailable`].
pub fn limit_reached(limit: &str, retry_after: Duration) -> Refusal {
    let cause = format!("the limit {limit} of the server is reached; retry after the delay, and slower");
    let mut refusal = not_now(Code::ResourceExhausted, LIMIT_REACHED, &cause, retry_after);
    refusal.metadata.insert("limit".to_owned(), limit.to_owned());
    refusal
}

/// The refusal of a request that did not arrive whole within `limit`, the server's setting `request_body_timeout`.
/// Nothing was done. Clients read it as [`StoreError::OutcomeUnknown`], as any deadline that has passed, and send the
/// same operation again.
pub fn request_timeout(limit: Duration) -> Refusal {
    let cause = format!(
        "the request did not arrive whole within {limit:?}, the server's request_body_timeout; retry, over a faster link"
    );
    let code = Code::DeadlineExceeded;
    let metadata = BTreeMap::from([("cause".to_owned(), cause.clone())]);
    Refusal { code, reason: REQUEST_TIMEOUT.to_owned(), message: cause, metadata, retry_delay: None }
}

/// The refusal of a server that lacks something that will come back. Clients read it as
/// [`StoreError::Unavailable`].
pub fn unavailable(cause: &str, retry_after: Duration) -> Refusal {
    not_now(Code::Unavailable, "UNAVAILABLE", cause, retry_after)
}

fn not_now(code: Code, reason: &str, cause: &str, retry_after: Duration) -> Refusal {
    Refusal {
        code,
        reason: reason.to_owned(),
        message: cause.to_owned(),
        metadata: BTreeMap::from([("cause".to_owned(), cause.to_owned())]),
        retry_delay: Some(retry_after),
    }
}

impl From<&StoreError> for Refusal {
    fn from(error: &StoreError) -> Self {
        encode::describe(error)
    }
}

impl Refusal {
    /// The code of the status that it becomes.
    pub const fn code(&self) -> Code {
        self.code
    }

    /// The stable name of the situation.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The setting that was reached, if the reason is [`LIMIT_REACHED`].
    pub fn limit(&self) -> Option<&str> {
        self.metadata.get("limit").map(String::as_str).filter(|_| self.reason == LIMIT_REACHED)
    }

    /// As the verdict on one item of many.
    pub fn into_item(self) -> v1::ItemError {
        v1::ItemError {
            code: self.code.into(),
            message: self.message,
            reason: self.reason,
            metadata: self.metadata,
            retry_delay: self.retry_delay.map(duration_to_wire),
        }
    }

    /// As the status of a call.
    pub fn into_status(self) -> Status {
        let mut details = ErrorDetails::new();
        if let Some(field) = self.metadata.get("field") {
            details.add_bad_request_violation(field.clone(), self.message.clone());
        }
        if let Some(delay) = self.retry_delay {
            details.set_retry_info(Some(delay));
        }
        let metadata: HashMap<_, _> = self.metadata.into_iter().collect();
        details.set_error_info(self.reason, ERROR_DOMAIN, metadata);
        Status::with_error_details(self.code, self.message, details)
    }
}

#[cfg(test)]
mod tests;
