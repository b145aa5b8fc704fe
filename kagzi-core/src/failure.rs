//! Failures: what went wrong in a workflow, kept in fields from the worker to the row and back.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::payload::Payload;

/// What sort of failure it is, which decides whether trying again makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FailureKind {
    /// Trying again may help.
    Retryable,
    /// Trying again cannot help.
    NonRetryable,
    /// A step or run took longer than it may. A step is tried again, a run is not.
    Timeout,
    /// Somebody cancelled the run.
    Cancelled,
    /// The worker lost its right to the run.
    LeaseLost,
    /// The code panicked. It is tried again, like a retryable failure.
    Panic,
}

impl FailureKind {
    /// Every kind, in the order of declaration.
    pub const ALL: [Self; 6] =
        [Self::Retryable, Self::NonRetryable, Self::Timeout, Self::Cancelled, Self::LeaseLost, Self::Panic];

    /// Whether a retry policy may try again after a failure of this kind.
    pub const fn may_retry(self) -> bool {
        matches!(self, Self::Retryable | Self::Timeout | Self::Panic)
    }

    /// The name used in the schema, the protocol and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Retryable => "RETRYABLE",
            Self::NonRetryable => "NON_RETRYABLE",
            Self::Timeout => "TIMEOUT",
            Self::Cancelled => "CANCELLED",
            Self::LeaseLost => "LEASE_LOST",
            Self::Panic => "PANIC",
        }
    }
}

/// One failure, in fields. Nothing is flattened to a string.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What sort of failure it is.
    pub kind: FailureKind,
    /// A short stable name that programs compare, such as `card_declined`. May be empty.
    pub code: String,
    /// What people read. Any UTF-8, also empty.
    pub message: String,
    /// Anything more, as the application encoded it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Payload>,
}

impl Failure {
    /// A failure without details.
    pub fn new(kind: FailureKind, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind, code: code.into(), message: message.into(), details: None }
    }

    /// A failure that a retry may cure.
    pub fn retryable(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(FailureKind::Retryable, code, message)
    }

    /// A failure that no retry can cure.
    pub fn non_retryable(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(FailureKind::NonRetryable, code, message)
    }

    /// The failure of a step attempt that took longer than `limit`.
    pub fn step_timeout(limit: Duration) -> Self {
        Self::new(
            FailureKind::Timeout,
            "step_timeout",
            format!("the attempt did not finish within its timeout of {limit:?}"),
        )
    }

    /// The failure of a run that was not finished by its deadline.
    pub fn run_timeout() -> Self {
        Self::new(FailureKind::Timeout, "run_timeout", "the run was not finished by its deadline")
    }

    /// The failure of a run that lost `lost_leases` leases in a row without finishing a step.
    pub fn poison(lost_leases: u32) -> Self {
        Self::new(
            FailureKind::LeaseLost,
            "poison",
            format!(
                "{lost_leases} leases in a row expired without a finished step: the run takes its workers down"
            ),
        )
    }

    /// The failure of a run that was cancelled.
    pub fn cancelled(reason: &str) -> Self {
        Self::new(FailureKind::Cancelled, "cancelled", reason)
    }
}
