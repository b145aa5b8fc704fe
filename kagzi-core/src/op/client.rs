//! What clients ask: start, cancel, requeue.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::id::{OperationId, RunId, check_v7};
use crate::limits::{Labels, Rules, check_duration, check_positive_duration};
use crate::name::{IdempotencyKey, Namespace, QueueName, WorkflowType};
use crate::payload::Payload;
use crate::retry::RetryPolicy;
use crate::run::{Priority, RunState};

/// When a run becomes due, by the store's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartAt {
    /// At once.
    #[default]
    Now,
    /// This long after the start.
    After(Duration),
    /// At this moment; at once if it has passed.
    At(Timestamp),
}

/// Starts a run.
#[derive(Clone, Debug, PartialEq)]
pub struct StartRun {
    /// The tenant.
    pub namespace: Namespace,
    /// Where the run waits for workers.
    pub queue: QueueName,
    /// Which program it executes.
    pub workflow_type: WorkflowType,
    /// What the program is given.
    pub input: Payload,
    /// The caller's name for this start: one key names one run, for ever.
    pub idempotency_key: Option<IdempotencyKey>,
    /// How urgent it is.
    pub priority: Priority,
    /// When it is due.
    pub start_at: StartAt,
    /// How long it may take from its due time to its end. At least a microsecond, at most 100 years.
    pub run_timeout: Option<Duration>,
    /// The retry policy for the run and for steps that bring none.
    pub retry: Option<RetryPolicy>,
    /// What the run can be found by.
    pub labels: Labels,
    /// W3C trace context, at most 512 bytes without control characters; see
    /// [`TraceContext`](crate::TraceContext).
    pub trace_context: Option<String>,
    /// Names this start; must be a `UUIDv7`.
    pub operation: OperationId,
}

impl StartRun {
    /// A start with a fresh operation id and everything optional left out.
    pub fn new(namespace: Namespace, queue: QueueName, workflow_type: WorkflowType, input: Payload) -> Self {
        Self {
            namespace,
            queue,
            workflow_type,
            input,
            idempotency_key: None,
            priority: Priority::default(),
            start_at: StartAt::Now,
            run_timeout: None,
            retry: None,
            labels: Labels::default(),
            trace_context: None,
            operation: OperationId::generate(),
        }
    }

    /// The id of the run that this start makes; see [`RunId::for_start`].
    pub fn run_id(&self) -> RunId {
        RunId::for_start(&self.namespace, self.operation, self.idempotency_key.as_ref())
    }

    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] or [`StoreError::TooLarge`] naming the field.
    pub fn validate(&self, rules: &Rules) -> Result<(), StoreError> {
        check_v7("operation_id", self.operation.as_uuid())?;
        rules.check_payload("input", &self.input)?;
        if let StartAt::After(delay) = self.start_at {
            check_duration("start_at", delay)?;
        }
        if let Some(timeout) = self.run_timeout {
            check_positive_duration("run_timeout", timeout)?;
        }
        if let Some(retry) = &self.retry {
            retry.validate()?;
        }
        match &self.trace_context {
            Some(context) if context.len() > 512 || context.chars().any(char::is_control) => {
                Err(StoreError::InvalidArgument {
                    field: "trace_context".to_owned(),
                    expected: "at most 512 bytes without control characters".to_owned(),
                    got: format!("{} bytes", context.len()),
                })
            }
            _ => Ok(()),
        }
    }
}

/// Whether a start made a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartOutcome {
    /// It made one (or this same operation did, before its reply was lost).
    Created,
    /// The idempotency key names a run that another operation started with the same request.
    Existing,
}

/// The answer to one start of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// The run.
    pub run_id: RunId,
    /// Whether this start made it.
    pub outcome: StartOutcome,
}

/// Cancels a run, whatever it is doing. Its worker's lease is lost at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelRun {
    /// The tenant.
    pub namespace: Namespace,
    /// The run.
    pub run_id: RunId,
    /// Why, for people; at most the message limit, may be empty.
    pub reason: String,
    /// Names this cancellation.
    pub operation: OperationId,
}

impl CancelRun {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`StoreError::TooLarge`] if the reason is over the message limit.
    pub fn validate(&self, rules: &Rules) -> Result<(), StoreError> {
        if self.reason.len() <= rules.max_message_bytes {
            return Ok(());
        }
        Err(StoreError::TooLarge {
            field: "reason".to_owned(),
            limit_bytes: rules.max_message_bytes,
            actual_bytes: self.reason.len(),
        })
    }
}

/// What a cancellation found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CancelOutcome {
    /// The run is cancelled now.
    Cancelled,
    /// The run was finished before, in this state, and stays as it is.
    AlreadyFinished(RunState),
}

/// Puts a dead letter (a FAILED run) back to work. Completed steps stay memoized, retry budgets and
/// the run's deadline start afresh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequeueRun {
    /// The tenant.
    pub namespace: Namespace,
    /// The run.
    pub run_id: RunId,
    /// Names this requeue.
    pub operation: OperationId,
}

/// What a requeue did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RequeueOutcome {
    /// The run is PENDING and due.
    Requeued,
}
