//! What is on record: every call that may change something with its answer, every claim and look, and
//! what the code of workflows did, each with the moments between which it happened.

use std::collections::BTreeMap;
use std::sync::Arc;

use kagzi_core::{
    BeginOutcome, CancelOutcome, CompleteStepOutcome, DeadLetterReason, FailureOutcome, OperationId, Payload,
    Run, RunId, RunState, StartOutcome, Started, StoreError,
};
use serde::{Deserialize, Serialize};

/// Nanoseconds of the machine's monotonic clock, which all processes share.
pub type Moment = u64;

/// The moment now.
pub fn now() -> Moment {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // Neither is negative on a machine that runs.
    u64::try_from(time.tv_sec).unwrap_or_default() * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or_default()
}

/// Ids as text.
mod text {
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub fn serialize<T: std::fmt::Display, S: Serializer>(id: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(id)
    }

    pub fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
    where
        T: std::str::FromStr<Err: std::fmt::Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The id of an operation, which repeats of it share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Operation(#[serde(with = "text")] pub OperationId);

/// What was asked about one run. A call about several is on record as one for each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Call {
    Start {
        operation: Operation,
        key: Option<String>,
        input: String,
    },
    Cancel {
        operation: Operation,
    },
    Requeue {
        operation: Operation,
    },
    /// A claim that was answered with the run, and the completed steps that came along, all that there were or not.
    Claim {
        token: i64,
        claims: u32,
        completed: BTreeMap<String, String>,
        all: bool,
    },
    /// A look that was answered.
    Look {
        seen: Seen,
    },
    Beat {
        token: i64,
    },
    Begin {
        token: i64,
        step: String,
        operation: Operation,
    },
    Complete {
        token: i64,
        step: String,
        attempt: u32,
        output: String,
        then: Then,
        operation: Operation,
    },
    Fail {
        token: i64,
        step: String,
        attempt: u32,
        operation: Operation,
    },
    Sleep {
        token: i64,
        step: String,
        operation: Operation,
    },
    Finish {
        token: i64,
        output: String,
        operation: Operation,
    },
    FailRun {
        token: i64,
        operation: Operation,
    },
    Release {
        token: i64,
        operation: Operation,
    },
}

/// What follows the completion of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Then {
    Nothing,
    Begin(String),
    Finish(String),
}

/// What a look at a run showed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    pub state: RunState,
    pub token: i64,
    pub dead_letter: Option<DeadLetterReason>,
}

impl Seen {
    pub fn of(run: &Run) -> Self {
        Self { state: run.state, token: run.fencing_token.get(), dead_letter: run.dead_letter }
    }
}

/// What a begin was told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Begun {
    Execute(u32),
    Memoized(u32, String),
    InProgress(u32),
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// Nothing, or that nobody knows: it may have happened, and may still.
    Unknown,
    /// That nothing was changed, and why.
    Refused(String),
    /// An answer without particulars.
    Done,
    Started {
        #[serde(with = "text")]
        run: RunId,
        created: bool,
    },
    /// The key names this run, which was started with something else.
    Conflict {
        #[serde(with = "text")]
        run: RunId,
    },
    AlreadyFinished(RunState),
    WrongState(RunState),
    Begun(Begun),
    RecordedAndNext(Begun),
    Retry,
    DeadLetter(DeadLetterReason),
}

impl Answer {
    /// Whether the operation happened.
    pub const fn is_acknowledgement(&self) -> bool {
        !matches!(self, Self::Unknown | Self::Refused(_) | Self::Conflict { .. } | Self::WrongState(_))
    }
}

impl From<&StoreError> for Answer {
    fn from(error: &StoreError) -> Self {
        match error {
            // UNAVAILABLE is not among them: it means that nothing was changed.
            StoreError::OutcomeUnknown { .. } => Self::Unknown,
            StoreError::IdempotencyConflict { run_id, .. } => Self::Conflict { run: *run_id },
            StoreError::WrongState { state, .. } => Self::WrongState(*state),
            other => Self::Refused(other.reason().to_owned()),
        }
    }
}

impl From<&Started> for Answer {
    fn from(started: &Started) -> Self {
        Self::Started { run: started.run_id, created: started.outcome == StartOutcome::Created }
    }
}

impl From<&BeginOutcome> for Begun {
    fn from(outcome: &BeginOutcome) -> Self {
        match outcome {
            BeginOutcome::Execute { attempt } => Self::Execute(*attempt),
            BeginOutcome::Memoized { attempt, output } => Self::Memoized(*attempt, words(output)),
            BeginOutcome::InProgress { attempt } => Self::InProgress(*attempt),
        }
    }
}

impl From<&CompleteStepOutcome> for Answer {
    fn from(outcome: &CompleteStepOutcome) -> Self {
        match outcome {
            CompleteStepOutcome::Recorded | CompleteStepOutcome::RecordedAndRunCompleted => Self::Done,
            CompleteStepOutcome::RecordedAndNext(begun) => Self::RecordedAndNext(begun.into()),
        }
    }
}

impl From<&FailureOutcome> for Answer {
    fn from(outcome: &FailureOutcome) -> Self {
        match outcome {
            FailureOutcome::RetryAt(_) => Self::Retry,
            FailureOutcome::DeadLetter(reason) => Self::DeadLetter(*reason),
        }
    }
}

impl From<&CancelOutcome> for Answer {
    fn from(outcome: &CancelOutcome) -> Self {
        match outcome {
            CancelOutcome::Cancelled => Self::Done,
            CancelOutcome::AlreadyFinished(state) => Self::AlreadyFinished(*state),
        }
    }
}

/// A payload of the torture's own workflows, which is text.
pub fn words(payload: &Payload) -> String {
    String::from_utf8_lossy(&payload.bytes).into_owned()
}

/// A line of a log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Line {
    /// A call goes out.
    Called {
        id: u64,
        at: Moment,
        namespace: String,
        #[serde(with = "text")]
        run: RunId,
        call: Call,
    },
    /// A call was answered.
    Answered { id: u64, at: Moment, answer: Answer },
    /// A claim or a look was answered; nobody asks what those did that were not.
    Saw {
        called: Moment,
        at: Moment,
        namespace: String,
        #[serde(with = "text")]
        run: RunId,
        call: Call,
    },
    /// The code of a step begins to execute, in the execution that is the run's so-manieth claim.
    Executes {
        at: Moment,
        #[serde(with = "text")]
        run: RunId,
        claims: u32,
        step: String,
    },
    /// The code of a workflow got the output of a step.
    Got {
        at: Moment,
        #[serde(with = "text")]
        run: RunId,
        claims: u32,
        step: String,
        output: String,
    },
}

/// A call and its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Heard {
    pub who: Arc<str>,
    pub namespace: Arc<str>,
    pub run: RunId,
    pub called: Moment,
    /// The end of time if there was no answer.
    pub returned: Moment,
    pub call: Call,
    pub answer: Answer,
}

/// What the code of a workflow did.
#[derive(Clone, Debug, PartialEq)]
pub struct Deed {
    pub who: Arc<str>,
    pub run: RunId,
    pub at: Moment,
    pub claims: u32,
    pub step: String,
    /// The output that it got; nothing if it began to execute the step.
    pub got: Option<String>,
}
