//! The answers of rare operations, recorded so that the operation can be asked again (invariant 8).

use serde::{Deserialize, Serialize};

use crate::error::StoreError;
use crate::op::{CancelOutcome, FailureOutcome, ReleaseOutcome, RequeueOutcome, SleepOutcome};

/// What an operation answered, recorded beside its effect in the `operations` of a run.
///
/// The hot operations (claim, begin, complete) need no record of their own: their operation id stands
/// on the row that they wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordedAnswer {
    /// Of a `fail_step`.
    StepFailed(FailureOutcome),
    /// Of a `fail_run`.
    RunFailed(FailureOutcome),
    /// Of a `sleep`.
    Slept(SleepOutcome),
    /// Of a `release`.
    Released(ReleaseOutcome),
    /// Of a `cancel`.
    Cancelled(CancelOutcome),
    /// Of a `requeue`.
    Requeued(RequeueOutcome),
}

impl RecordedAnswer {
    /// The form to store: JSON of about 50 bytes.
    ///
    /// # Errors
    ///
    /// [`StoreError::Internal`]; cannot happen for a value of this type.
    pub fn to_text(self) -> Result<String, StoreError> {
        serde_json::to_string(&self).map_err(|error| StoreError::Internal {
            context: "encoding a recorded answer",
            detail: error.to_string(),
        })
    }

    /// Reads the stored form back.
    ///
    /// # Errors
    ///
    /// [`StoreError::Internal`] if the text is not one that [`to_text`](Self::to_text) made.
    pub fn from_text(text: &str) -> Result<Self, StoreError> {
        serde_json::from_str(text).map_err(|error| StoreError::Internal {
            context: "reading a recorded answer",
            detail: error.to_string(),
        })
    }
}
