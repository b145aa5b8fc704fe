//! Runs: one execution of a workflow type, as every store records it.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::failure::Failure;
use crate::id::{OperationId, RunId};
use crate::lease::FencingToken;
use crate::limits::Labels;
use crate::name::{IdempotencyKey, Namespace, QueueName, WorkerId, WorkflowType};
use crate::payload::Payload;
use crate::retry::RetryPolicy;

/// Where a run stands: `PENDING → RUNNING → COMPLETED | FAILED | CANCELLED`, with
/// `RUNNING → SLEEPING → PENDING` for sleeps, retries and delayed starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RunState {
    /// Due: the next claim may take it.
    Pending,
    /// Held under a lease.
    Running,
    /// Waiting for its `due_at`.
    Sleeping,
    /// Finished with an output. Final.
    Completed,
    /// Given up: a dead letter, with its reason. Only a requeue moves it.
    Failed,
    /// Cancelled by a client. Final.
    Cancelled,
}

impl RunState {
    /// Every state, in the order of declaration.
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::Running, Self::Sleeping, Self::Completed, Self::Failed, Self::Cancelled];

    /// Whether the run is finished: no worker and no timer moves it any more (invariant 6).
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// The name used in the schema, the protocol and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Running => "RUNNING",
            Self::Sleeping => "SLEEPING",
            Self::Completed => "COMPLETED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        }
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why the engine gave a run up. Every FAILED run is a dead letter and has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DeadLetterReason {
    /// The retry policy allowed no further attempt.
    RetriesExhausted,
    /// The failure was of a kind or code that must not be retried.
    NonRetryable,
    /// The run was not finished by its deadline, or its next retry would have passed it.
    RunTimeout,
    /// Its leases expired again and again without a finished step.
    Poison,
}

impl DeadLetterReason {
    /// Every reason, in the order of declaration.
    pub const ALL: [Self; 4] = [Self::RetriesExhausted, Self::NonRetryable, Self::RunTimeout, Self::Poison];

    /// The name used in the schema, the protocol and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RetriesExhausted => "RETRIES_EXHAUSTED",
            Self::NonRetryable => "NON_RETRYABLE",
            Self::RunTimeout => "RUN_TIMEOUT",
            Self::Poison => "POISON",
        }
    }
}

/// How urgent a run is, from -9 to 9; 0 unless told otherwise.
///
/// Claims go by [`claim_rank`]: one level of priority is worth one hour of waiting. The head start is
/// finite, so a stream of urgent runs cannot starve the others (invariant 13).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Priority(i8);

impl Priority {
    /// The least urgent.
    pub const MIN: Self = Self(-9);
    /// The most urgent.
    pub const MAX: Self = Self(9);

    /// A priority from -9 to 9.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] outside that range.
    pub fn new(level: i64) -> Result<Self, StoreError> {
        match i8::try_from(level) {
            Ok(small) if (-9..=9).contains(&small) => Ok(Self(small)),
            _ => Err(StoreError::InvalidArgument {
                field: "priority".to_owned(),
                expected: "from -9 to 9".to_owned(),
                got: level.to_string(),
            }),
        }
    }

    /// The level, from -9 to 9.
    pub const fn get(self) -> i8 {
        self.0
    }
}

/// What one level of priority is worth in waiting time.
pub const PRIORITY_LEVEL: Duration = Duration::from_hours(1);

/// The order of claims within a queue: smallest first, ties by run id (invariant 13). It is the due
/// time in microseconds, earlier by one [`PRIORITY_LEVEL`] for each level of priority. Stores keep it
/// in a column, so that one index gives the order.
pub fn claim_rank(due_at: Timestamp, priority: Priority) -> i64 {
    const LEVEL_MICROS: i64 = 3_600_000_000;
    due_at.as_micros() - i64::from(priority.get()) * LEVEL_MICROS
}

/// One run, without its payloads: the hot row.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Its id.
    pub run_id: RunId,
    /// Its tenant.
    pub namespace: Namespace,
    /// Where it waits for workers.
    pub queue: QueueName,
    /// Which program it executes.
    pub workflow_type: WorkflowType,
    /// Where it stands.
    pub state: RunState,
    /// How urgent it is.
    pub priority: Priority,
    /// PENDING: since when it may be claimed. SLEEPING: from when on. Otherwise: when it last was due.
    pub due_at: Timestamp,
    /// From this moment on, if it is not finished, it fails with reason `RUN_TIMEOUT`.
    pub deadline_at: Option<Timestamp>,
    /// How long it may take from its due time to its end; the source of `deadline_at`.
    pub run_timeout: Option<Duration>,
    /// The token of the last claim.
    pub fencing_token: FencingToken,
    /// Who holds it; present exactly while RUNNING.
    pub worker_id: Option<WorkerId>,
    /// When the lease becomes stealable; present exactly while RUNNING.
    pub lease_expires_at: Option<Timestamp>,
    /// The operation of the claim that holds it; present exactly while RUNNING.
    pub claim_operation: Option<OperationId>,
    /// How often it was claimed.
    pub claims: u32,
    /// How many leases in a row expired without a finished step; the poison count.
    pub lost_leases: u32,
    /// How many failures of the run itself (not of a step) its retry policy has used up.
    pub failures: u32,
    /// Failures under this token or a smaller one no longer count: a requeue gives a fresh budget.
    pub budget_token: FencingToken,
    /// Its own retry policy, for itself and for steps that bring none.
    pub retry: Option<RetryPolicy>,
    /// The caller's name for the start.
    pub idempotency_key: Option<IdempotencyKey>,
    /// What it can be found by.
    pub labels: Labels,
    /// W3C trace context of the start, carried along; see [`TraceContext`](crate::TraceContext).
    pub trace_context: Option<String>,
    /// Why it is FAILED or CANCELLED.
    pub failure: Option<Failure>,
    /// Why the engine gave it up; present exactly while FAILED.
    pub dead_letter: Option<DeadLetterReason>,
    /// The operation that completed it.
    pub finish_operation: Option<OperationId>,
    /// When it was started.
    pub created_at: Timestamp,
    /// When its row last changed.
    pub updated_at: Timestamp,
    /// When it reached its final state.
    pub finished_at: Option<Timestamp>,
}

impl Run {
    /// The next moment at which time itself changes this run: a sleep's end, a lease's expiry or the
    /// deadline, whichever comes first. Stores keep it in an indexed column; `reap`, `claim` and
    /// `next_due` look at nothing else. Nothing for a finished run.
    pub fn attention_at(&self) -> Option<Timestamp> {
        let own = match self.state {
            RunState::Pending => None,
            RunState::Running => self.lease_expires_at,
            RunState::Sleeping => Some(self.due_at),
            RunState::Completed | RunState::Failed | RunState::Cancelled => return None,
        };
        match (own, self.deadline_at) {
            (Some(own), Some(deadline)) => Some(own.min(deadline)),
            (own, deadline) => own.or(deadline),
        }
    }

    /// The place of this run in the order of claims; see [`claim_rank`].
    pub fn claim_rank(&self) -> i64 {
        claim_rank(self.due_at, self.priority)
    }
}

/// A run with its payloads.
#[derive(Clone, Debug, PartialEq)]
pub struct RunRecord {
    /// The run.
    pub run: Run,
    /// What it was started with.
    pub input: Payload,
    /// What it completed with; present exactly when COMPLETED.
    pub output: Option<Payload>,
}
