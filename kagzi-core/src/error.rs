//! What a store can answer instead of an outcome. An error means that nothing was changed (invariant 15).

use std::time::Duration;

use crate::id::{OperationId, RunId};
use crate::lease::FencingToken;
use crate::name::{IdempotencyKey, QueueName, StepId};
use crate::run::RunState;
use crate::step::AttemptState;

/// Why a lease no longer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostReason {
    /// The run was claimed again, or never under this token: another token is current.
    TokenStale {
        /// The run's current token.
        current: FencingToken,
    },
    /// The token is current but belongs to another worker.
    OtherWorker,
    /// The run is not RUNNING: the lease ended with the sleep, release, finish or cancellation.
    NotRunning {
        /// The run's state now.
        state: RunState,
    },
}

impl std::fmt::Display for LostReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TokenStale { current } => write!(f, "the run's current fencing token is {current}"),
            Self::OtherWorker => f.write_str("the lease belongs to another worker"),
            Self::NotRunning { state } => write!(f, "the run is {}", state.as_str()),
        }
    }
}

/// How much of a store an error is about that says it could not answer now.
///
/// A backend whose data lie in parts that can fail one without the other, such as the nodes of a distributed database,
/// says [`Part`](Self::Part) where the rest answers as ever; every other error is about the store as a whole. Whoever
/// decides for all calls by the errors of some, such as the server's circuit breaker, reads it: an error about a part
/// says nothing of the calls that the part does not serve. Callers need not look: they may send the operation again
/// in either case, and the scope does not travel over the protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ErrorScope {
    /// The whole store, as far as the backend knows.
    #[default]
    Store,
    /// The part that holds the runs which the operation asked for. Others can be had.
    Part,
}

/// Everything a [`Store`](crate::Store) can answer instead of an outcome.
///
/// No variant carries a payload, so an error can always be logged.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A field of the request is outside its documented rule. Correct it; a retry cannot help.
    #[error("{field}: expected {expected}, got {got}")]
    InvalidArgument {
        /// The field, as in the request.
        field: String,
        /// The rule.
        expected: String,
        /// What came, without payloads.
        got: String,
    },

    /// A payload or text is over its limit. Make it smaller, or raise the limit of the store.
    #[error(
        "{field}: {actual_bytes} bytes are over the limit of {limit_bytes}; store the data elsewhere and pass a reference, or raise the limit"
    )]
    TooLarge {
        /// The field, as in the request.
        field: String,
        /// The limit.
        limit_bytes: usize,
        /// What came.
        actual_bytes: usize,
    },

    /// No such run in this namespace. A run of another namespace answers the same (invariant 11).
    #[error("run {run_id} does not exist in this namespace")]
    RunNotFound {
        /// The id that was asked for.
        run_id: RunId,
    },

    /// The caller's lease is not the run's current one (invariant 2). Stop working on the run.
    #[error(
        "the lease on run {run_id} with fencing token {presented} is lost: {reason}; stop working on this run, its next holder goes on"
    )]
    LeaseLost {
        /// The run.
        run_id: RunId,
        /// The token that the caller showed.
        presented: FencingToken,
        /// What was found instead.
        reason: LostReason,
    },

    /// The step has no attempt of this number that is RUNNING: it was never begun, or has ended.
    #[error("attempt {attempt} of step {step_id:?} in run {run_id} is not running: {}", match state { Some(state) => state.as_str(), None => "it was never begun" })]
    AttemptNotRunning {
        /// The run.
        run_id: RunId,
        /// The step.
        step_id: StepId,
        /// The attempt that the caller named.
        attempt: u32,
        /// Its state, or nothing if there is no such attempt.
        state: Option<AttemptState>,
    },

    /// The step id stands for another kind of step already: a task is not a sleep.
    #[error(
        "step {step_id:?} in run {run_id} was recorded as another kind of step; a step id is used for one thing only"
    )]
    StepKindMismatch {
        /// The run.
        run_id: RunId,
        /// The step.
        step_id: StepId,
    },

    /// The operation needs the run in another state.
    #[error("run {run_id} is {}, expected {expected}", state.as_str())]
    WrongState {
        /// The run.
        run_id: RunId,
        /// Its state.
        state: RunState,
        /// The states that the operation works on.
        expected: &'static str,
    },

    /// The idempotency key names a run that was started by a different request (invariant 7).
    #[error("idempotency key {key:?} already names run {run_id}, which was started with other values of: {}; use another key, or send the same request", differs.join(", "))]
    IdempotencyConflict {
        /// The key.
        key: IdempotencyKey,
        /// The run it names.
        run_id: RunId,
        /// The fields that differ.
        differs: Vec<&'static str>,
    },

    /// The operation id was used for a different operation. Every operation needs an id of its own.
    #[error(
        "operation id {operation} was already used for a different operation on run {run_id}; generate a new id for each operation"
    )]
    OperationConflict {
        /// The run.
        run_id: RunId,
        /// The operation id.
        operation: OperationId,
    },

    /// The operation id was used for the opposite change of this queue. Every operation needs an id of its own.
    #[error(
        "operation id {operation} was already used for another change of queue {queue:?}; generate a new id for each operation"
    )]
    QueueOperationConflict {
        /// The queue.
        queue: QueueName,
        /// The operation id.
        operation: OperationId,
    },

    /// A page cursor that this listing did not give. Start again without a cursor.
    #[error(
        "cursor: expected one that the same listing with the same filter gave, got {got}; start again without a cursor"
    )]
    BadCursor {
        /// What was wrong with it.
        got: &'static str,
    },

    /// The database has a schema that this program cannot use.
    #[error(
        "the schema of the store is version {found}, this program knows versions up to {supported}; {remedy}"
    )]
    SchemaMismatch {
        /// The version found.
        found: i64,
        /// The newest version known.
        supported: i64,
        /// What to do.
        remedy: &'static str,
    },

    /// The store cannot be reached, is full, locked or read-only now. Nothing was changed; retry later.
    /// Made by [`StoreError::unavailable`].
    #[error("the store is unavailable: {reason}")]
    #[non_exhaustive]
    Unavailable {
        /// What happened, and what to do about it where that is known.
        reason: String,
        /// How long to wait before a retry.
        retry_after: Duration,
        /// How much of the store that is about.
        scope: ErrorScope,
    },

    /// The reply was lost or the commit's fate is unknown: the write may or may not have happened.
    /// Send it again under the same operation id; the answer will be the right one (invariant 8).
    /// Made by [`StoreError::outcome_unknown`].
    #[error("the outcome is unknown: {reason}; send the same operation again under the same id")]
    #[non_exhaustive]
    OutcomeUnknown {
        /// What happened.
        reason: String,
        /// How much of the store that is about.
        scope: ErrorScope,
    },

    /// The store broke its own contract: a bug, or damaged data.
    #[error("internal error of the store while {context}: {detail}")]
    Internal {
        /// What was being done.
        context: &'static str,
        /// What went wrong.
        detail: String,
    },
}

impl StoreError {
    /// The whole store cannot answer now, and nothing was changed: what happened, what to do about it where that is
    /// known, and how long to wait before a retry.
    pub fn unavailable(reason: impl Into<String>, retry_after: Duration) -> Self {
        Self::Unavailable { reason: reason.into(), retry_after, scope: ErrorScope::Store }
    }

    /// A write may or may not have happened, for a reason that is about the whole store.
    pub fn outcome_unknown(reason: impl Into<String>) -> Self {
        Self::OutcomeUnknown { reason: reason.into(), scope: ErrorScope::Store }
    }

    /// The same of so much of the store. Errors that a retry cannot help have no scope, and stay as they are.
    ///
    /// ```
    /// use kagzi_core::{ErrorScope, StoreError};
    ///
    /// let error = StoreError::unavailable("node 3 is away", std::time::Duration::from_secs(1));
    /// assert_eq!(error.scope(), Some(ErrorScope::Store));
    /// assert_eq!(error.within(ErrorScope::Part).scope(), Some(ErrorScope::Part));
    /// ```
    #[must_use]
    pub fn within(mut self, of: ErrorScope) -> Self {
        if let Self::Unavailable { scope, .. } | Self::OutcomeUnknown { scope, .. } = &mut self {
            *scope = of;
        }
        self
    }

    /// How much of the store could not answer, or nothing where the store did answer: a retry cannot help then.
    pub const fn scope(&self) -> Option<ErrorScope> {
        match self {
            Self::Unavailable { scope, .. } | Self::OutcomeUnknown { scope, .. } => Some(*scope),
            _ => None,
        }
    }

    /// Whether sending the same operation again, under the same id, can succeed.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::OutcomeUnknown { .. })
    }

    /// A short stable name of the situation for logs, metrics and the protocol.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::InvalidArgument { .. } => "INVALID_ARGUMENT",
            Self::TooLarge { .. } => "TOO_LARGE",
            Self::RunNotFound { .. } => "RUN_NOT_FOUND",
            Self::LeaseLost { .. } => "LEASE_LOST",
            Self::AttemptNotRunning { .. } => "ATTEMPT_NOT_RUNNING",
            Self::StepKindMismatch { .. } => "STEP_KIND_MISMATCH",
            Self::WrongState { .. } => "WRONG_STATE",
            Self::IdempotencyConflict { .. } => "IDEMPOTENCY_CONFLICT",
            Self::OperationConflict { .. } | Self::QueueOperationConflict { .. } => "OPERATION_CONFLICT",
            Self::BadCursor { .. } => "BAD_CURSOR",
            Self::SchemaMismatch { .. } => "SCHEMA_MISMATCH",
            Self::Unavailable { .. } => "UNAVAILABLE",
            Self::OutcomeUnknown { .. } => "OUTCOME_UNKNOWN",
            Self::Internal { .. } => "INTERNAL",
        }
    }
}
