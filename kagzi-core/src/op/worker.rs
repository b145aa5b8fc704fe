//! What workers ask: claim, heartbeat, steps, sleep, finish, release.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::failure::Failure;
use crate::id::OperationId;
use crate::lease::{GrantedLease, Lease};
use crate::limits::{Rules, check_batch, check_duration, check_positive_duration};
use crate::name::{Namespace, QueueName, StepId, WorkerId, WorkflowType};
use crate::page::Cursor;
use crate::payload::Payload;
use crate::retry::RetryPolicy;
use crate::run::{DeadLetterReason, Run};
use crate::step::Attempt;

/// Takes leases on due runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The tenant.
    pub namespace: Namespace,
    /// The queues to take from: 1 to 1,000.
    pub queues: Vec<QueueName>,
    /// Only runs of these types, at most 1,000; empty: any type.
    pub workflow_types: Vec<WorkflowType>,
    /// Who takes them.
    pub worker_id: WorkerId,
    /// How long the leases last without a heartbeat. At least a microsecond, at most 100 years.
    pub lease_length: Duration,
    /// How many runs at most, from 1 to 10,000. Fewer if their inputs are over
    /// [`Rules::max_claim_bytes`](crate::Rules), but at least one; the others stay due.
    pub limit: u32,
    /// How many recorded steps to hand over with each run at most, from 1 to 10,000.
    pub steps_limit: u32,
    /// Names this claim. Sent again, it gives the runs that it took and that are still held by it.
    pub operation: OperationId,
}

impl Claim {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] naming the field.
    pub fn validate(&self) -> Result<(), StoreError> {
        check_positive_duration("lease_length", self.lease_length)?;
        check_batch("limit", self.limit as usize)?;
        check_batch("steps_limit", self.steps_limit as usize)?;
        if self.queues.is_empty() || self.queues.len() > 1000 {
            return Err(StoreError::InvalidArgument {
                field: "queues".to_owned(),
                expected: "from 1 to 1000 queues".to_owned(),
                got: self.queues.len().to_string(),
            });
        }
        if self.workflow_types.len() > 1000 {
            return Err(StoreError::InvalidArgument {
                field: "workflow_types".to_owned(),
                expected: "at most 1000 types".to_owned(),
                got: self.workflow_types.len().to_string(),
            });
        }
        Ok(())
    }
}

/// A claimed run with everything a replay needs.
#[derive(Clone, Debug, PartialEq)]
pub struct ClaimedRun {
    /// The right to it.
    pub lease: GrantedLease,
    /// The run, as of this claim.
    pub run: Run,
    /// What it was started with.
    pub input: Payload,
    /// The latest attempt of each recorded step, completed ones with their outputs, ordered by
    /// position, then step id.
    pub steps: Vec<Attempt>,
    /// Where the steps go on if there are more than the claim's `steps_limit`, or than
    /// [`Rules::max_claim_bytes`](crate::Rules) left room for, or if a store could not tell them since the lease was lost
    /// again: a cursor for [`ListAttempts`](super::ListAttempts) with scope `Latest`.
    pub more_steps: Option<Cursor>,
}

/// Extends a lease. Naturally idempotent: the expiry only ever moves later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The lease.
    pub lease: Lease,
    /// The lease then lasts this long from now, or as long as before if that is longer.
    pub lease_length: Duration,
}

impl Heartbeat {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] naming the field.
    pub fn validate(&self) -> Result<(), StoreError> {
        check_positive_duration("lease_length", self.lease_length)
    }
}

/// A step to begin, by itself or right after another.
#[derive(Clone, Debug, PartialEq)]
pub struct NextStep {
    /// The step.
    pub step_id: StepId,
    /// Its ordinal in the run, from 0, as the workflow's code counts it. Kept from the first begin.
    pub position: u32,
    /// Its own retry policy.
    pub retry: Option<RetryPolicy>,
    /// How long an attempt may take. At least a microsecond, at most 100 years.
    pub timeout: Option<Duration>,
}

impl NextStep {
    /// A step without a policy or timeout of its own.
    pub const fn new(step_id: StepId, position: u32) -> Self {
        Self { step_id, position, retry: None, timeout: None }
    }

    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] naming the field.
    pub fn validate(&self) -> Result<(), StoreError> {
        if let Some(retry) = &self.retry {
            retry.validate()?;
        }
        if let Some(timeout) = self.timeout {
            check_positive_duration("timeout", timeout)?;
        }
        if i32::try_from(self.position).is_err() {
            return Err(StoreError::InvalidArgument {
                field: "position".to_owned(),
                expected: format!("from 0 to {}", i32::MAX),
                got: self.position.to_string(),
            });
        }
        Ok(())
    }
}

/// Asks to execute a step.
#[derive(Clone, Debug, PartialEq)]
pub struct BeginStep {
    /// The lease.
    pub lease: Lease,
    /// The step.
    pub step: NextStep,
    /// Names this begin.
    pub operation: OperationId,
}

impl BeginStep {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] naming the field.
    pub fn validate(&self) -> Result<(), StoreError> {
        self.step.validate()
    }
}

/// What a worker is told to do about a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BeginOutcome {
    /// Execute it: this attempt is yours (invariant 3).
    Execute {
        /// The number of the attempt.
        attempt: u32,
    },
    /// It completed before; here is what it gave (invariant 4).
    Memoized {
        /// The attempt that completed.
        attempt: u32,
        /// Its output, to the byte.
        output: Payload,
    },
    /// Another begin under the same lease was told to execute it, and has not finished.
    InProgress {
        /// The attempt that is running.
        attempt: u32,
    },
}

/// What happens in the same operation as the completion of a step, whole or not at all (invariant 15).
#[derive(Clone, Debug, PartialEq)]
pub enum Then {
    /// Nothing more.
    Nothing,
    /// The next step begins.
    Begin(NextStep),
    /// The run completes with this output.
    CompleteRun(Payload),
}

/// Records the output of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct CompleteStep {
    /// The lease.
    pub lease: Lease,
    /// The step.
    pub step_id: StepId,
    /// The attempt, as [`BeginOutcome::Execute`] gave it.
    pub attempt: u32,
    /// What it gave.
    pub output: Payload,
    /// What happens together with it.
    pub then: Then,
    /// Names this completion, and what happens with it.
    pub operation: OperationId,
}

impl CompleteStep {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] or [`StoreError::TooLarge`] naming the field.
    pub fn validate(&self, rules: &Rules) -> Result<(), StoreError> {
        rules.check_payload("output", &self.output)?;
        match &self.then {
            Then::Nothing => Ok(()),
            Then::CompleteRun(output) => rules.check_payload("run_output", output),
            Then::Begin(next) if next.step_id == self.step_id => Err(StoreError::InvalidArgument {
                field: "then.step_id".to_owned(),
                expected: "another step than the one that completes".to_owned(),
                got: "the same step".to_owned(),
            }),
            Then::Begin(next) => next.validate(),
        }
    }
}

/// What a completion did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompleteStepOutcome {
    /// The output is recorded.
    Recorded,
    /// The output is recorded, and this is what to do about the next step.
    RecordedAndNext(BeginOutcome),
    /// The output is recorded and the run is COMPLETED.
    RecordedAndRunCompleted,
}

/// Records the failure of an attempt. The retry policy decides what follows; either way the lease
/// ends, and other attempts still running under it are abandoned.
#[derive(Clone, Debug, PartialEq)]
pub struct FailStep {
    /// The lease.
    pub lease: Lease,
    /// The step.
    pub step_id: StepId,
    /// The attempt.
    pub attempt: u32,
    /// What went wrong.
    pub failure: Failure,
    /// Names this failure.
    pub operation: OperationId,
}

impl FailStep {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`StoreError::TooLarge`] naming the field.
    pub fn validate(&self, rules: &Rules) -> Result<(), StoreError> {
        rules.check_failure(&self.failure)
    }
}

/// What follows a failure of a step or run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureOutcome {
    /// The run is claimable again from this moment on.
    RetryAt(Timestamp),
    /// The run is FAILED: a dead letter with this reason.
    DeadLetter(DeadLetterReason),
}

/// Until when a run sleeps, by the store's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SleepUntil {
    /// This long from now; zero gives up the lease and is due at once.
    After(Duration),
    /// Until this moment; one that has passed is due at once.
    At(Timestamp),
}

/// Records a sleep, gives up the lease and comes back later. On replay the sleep is a completed step.
#[derive(Clone, Debug, PartialEq)]
pub struct Sleep {
    /// The lease.
    pub lease: Lease,
    /// The sleep's own step id.
    pub step_id: StepId,
    /// Its ordinal in the run, as in [`NextStep::position`].
    pub position: u32,
    /// Until when.
    pub until: SleepUntil,
    /// Names this sleep.
    pub operation: OperationId,
}

impl Sleep {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] naming the field.
    pub fn validate(&self) -> Result<(), StoreError> {
        NextStep::new(self.step_id.clone(), self.position).validate()?;
        match self.until {
            SleepUntil::After(duration) => check_duration("until", duration),
            SleepUntil::At(_) => Ok(()),
        }
    }
}

/// What a sleep did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SleepOutcome {
    /// The lease is given up; the run is claimable from this moment on.
    Sleeping {
        /// When it is due.
        due_at: Timestamp,
    },
    /// This sleep was slept before. The lease is kept; go on.
    AlreadySlept,
}

/// Completes a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompleteRun {
    /// The lease.
    pub lease: Lease,
    /// What the run gives.
    pub output: Payload,
    /// Names this completion.
    pub operation: OperationId,
}

impl CompleteRun {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`StoreError::TooLarge`] naming the field.
    pub fn validate(&self, rules: &Rules) -> Result<(), StoreError> {
        rules.check_payload("run_output", &self.output)
    }
}

/// What completing a run did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompleteRunOutcome {
    /// The run is COMPLETED; attempts still running are abandoned.
    Completed,
}

/// Records that the run itself failed, outside any step. The run's retry policy decides what follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailRun {
    /// The lease.
    pub lease: Lease,
    /// What went wrong.
    pub failure: Failure,
    /// Names this failure.
    pub operation: OperationId,
}

impl FailRun {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`StoreError::TooLarge`] naming the field.
    pub fn validate(&self, rules: &Rules) -> Result<(), StoreError> {
        rules.check_failure(&self.failure)
    }
}

/// Gives a lease back unfinished: the run is due at once, its steps stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseRun {
    /// The lease.
    pub lease: Lease,
    /// Names this release.
    pub operation: OperationId,
}

/// What a release did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReleaseOutcome {
    /// The run is PENDING; attempts still running are abandoned.
    Released,
}
