//! Steps and their attempts: the history of a run.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::failure::Failure;
use crate::id::{OperationId, RunId};
use crate::lease::FencingToken;
use crate::name::{StepId, WorkerId};
use crate::payload::Payload;
use crate::retry::RetryPolicy;

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum StepKind {
    /// It runs the application's code.
    Task,
    /// It waits: recorded as completed at the moment when the sleep ends, so a replay does not sleep again.
    Sleep,
}

impl StepKind {
    /// Every kind, in the order of declaration.
    pub const ALL: [Self; 2] = [Self::Task, Self::Sleep];

    /// The name used in the schema, the protocol and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Task => "TASK",
            Self::Sleep => "SLEEP",
        }
    }
}

/// Where an attempt stands: `RUNNING → COMPLETED | FAILED | ABANDONED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AttemptState {
    /// Somebody was told to execute it. At most one attempt of a step (invariant 3).
    Running,
    /// It has an output, for ever (invariant 4). At most one attempt of a step.
    Completed,
    /// It has a failure.
    Failed,
    /// Its lease was lost or given up; what it did is unknown.
    Abandoned,
}

impl AttemptState {
    /// Every state, in the order of declaration.
    pub const ALL: [Self; 4] = [Self::Running, Self::Completed, Self::Failed, Self::Abandoned];

    /// The name used in the schema, the protocol and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Completed => "COMPLETED",
            Self::Failed => "FAILED",
            Self::Abandoned => "ABANDONED",
        }
    }
}

impl fmt::Display for AttemptState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One try of a step. Attempts are numbered from 1 without gaps and only ever appended; the one with
/// the highest number is the latest (invariant 5).
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// The run.
    pub run_id: RunId,
    /// The step.
    pub step_id: StepId,
    /// The step's place in the run: the ordinal of its first begin, from 0, as the workflow's code
    /// counts it. Replays are checked against it.
    pub position: u32,
    /// What the step does.
    pub kind: StepKind,
    /// The number of this try, from 1.
    pub attempt: u32,
    /// Where it stands.
    pub state: AttemptState,
    /// The token of the lease it was begun under.
    pub fencing_token: FencingToken,
    /// The worker it was begun by.
    pub worker_id: WorkerId,
    /// The step's own retry policy.
    pub retry: Option<RetryPolicy>,
    /// From this moment on, if still RUNNING, the attempt fails with kind TIMEOUT.
    pub deadline_at: Option<Timestamp>,
    /// The operation that began it.
    pub begin_operation: OperationId,
    /// The operation that completed or failed it.
    pub end_operation: Option<OperationId>,
    /// What it completed with; present exactly when COMPLETED, empty for a sleep.
    pub output: Option<Payload>,
    /// What it failed with; present exactly when FAILED.
    pub failure: Option<Failure>,
    /// When it was begun.
    pub created_at: Timestamp,
    /// When its row last changed.
    pub updated_at: Timestamp,
    /// When it ended; for a sleep, when the sleep ends.
    pub finished_at: Option<Timestamp>,
}

impl Attempt {
    /// The order in which histories are listed: by place in the run, then step, then number.
    pub fn sort_key(&self) -> (u32, StepId, u32) {
        (self.position, self.step_id.clone(), self.attempt)
    }
}
