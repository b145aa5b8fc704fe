//! From a [`StoreError`] to what the wire carries.

use std::collections::BTreeMap;

use kagzi_core::{LostReason, StoreError};

use super::{MAX_TEXT_BYTES, Refusal, UNAVAILABLE_RETRY_AFTER, code_of};

/// The particulars of an error, by name.
#[derive(Default)]
struct Metadata(BTreeMap<String, String>);

impl Metadata {
    fn with(mut self, name: &str, value: &(impl ToString + ?Sized)) -> Self {
        self.0.insert(name.to_owned(), cut(value.to_string()));
        self
    }
}

pub(super) fn describe(error: &StoreError) -> Refusal {
    let retry_delay = match error {
        StoreError::Unavailable { retry_after, .. } => Some(*retry_after),
        StoreError::OutcomeUnknown { .. } => Some(UNAVAILABLE_RETRY_AFTER),
        _ => None,
    };
    Refusal {
        code: code_of(error),
        reason: error.reason().to_owned(),
        message: cut(error.to_string()),
        metadata: particulars(error).0,
        retry_delay,
    }
}

fn particulars(error: &StoreError) -> Metadata {
    let with = |name, value: &dyn ToString| Metadata::default().with(name, value);
    match error {
        StoreError::InvalidArgument { field, expected, got } => {
            with("field", field).with("expected", expected).with("got", got)
        }
        StoreError::TooLarge { field, limit_bytes, actual_bytes } => {
            with("field", field).with("limit_bytes", limit_bytes).with("actual_bytes", actual_bytes)
        }
        StoreError::BadCursor { got } => with("field", &"page.cursor").with("got", got),
        StoreError::RunNotFound { run_id } => with("run_id", run_id),
        StoreError::LeaseLost { run_id, presented, reason } => {
            lost(with("run_id", run_id).with("presented_token", presented), *reason)
        }
        StoreError::AttemptNotRunning { run_id, step_id, attempt, state } => {
            let metadata = with("run_id", run_id).with("step_id", step_id).with("attempt", attempt);
            match state {
                Some(state) => metadata.with("attempt_state", state.as_str()),
                None => metadata,
            }
        }
        StoreError::StepKindMismatch { run_id, step_id } => with("run_id", run_id).with("step_id", step_id),
        StoreError::WrongState { run_id, state, expected } => {
            with("run_id", run_id).with("state", state.as_str()).with("expected", expected)
        }
        StoreError::IdempotencyConflict { key, run_id, differs } => {
            with("idempotency_key", key).with("run_id", run_id).with("differs", &differs.join(","))
        }
        StoreError::OperationConflict { run_id, operation } => {
            with("run_id", run_id).with("operation_id", operation)
        }
        StoreError::QueueOperationConflict { queue, operation } => {
            with("queue", queue).with("operation_id", operation)
        }
        StoreError::SchemaMismatch { found, supported, remedy } => {
            with("found_version", found).with("supported_version", supported).with("remedy", remedy)
        }
        StoreError::Unavailable { reason, .. } | StoreError::OutcomeUnknown { reason, .. } => {
            with("cause", reason)
        }
        StoreError::Internal { context, detail } => with("context", context).with("detail", detail),
        // A variant of a newer core travels as its text.
        other => with("detail", other),
    }
}

fn lost(metadata: Metadata, reason: LostReason) -> Metadata {
    match reason {
        LostReason::TokenStale { current } => {
            metadata.with("lost_reason", "TOKEN_STALE").with("current_token", &current)
        }
        LostReason::OtherWorker => metadata.with("lost_reason", "OTHER_WORKER"),
        LostReason::NotRunning { state } => {
            metadata.with("lost_reason", "NOT_RUNNING").with("state", state.as_str())
        }
    }
}

/// A text of at most [`MAX_TEXT_BYTES`], cut between characters.
fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
    text
}
