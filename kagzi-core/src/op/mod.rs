//! The requests and outcomes of the [`Store`](crate::Store) trait, by who sends them.
//!
//! Every request has a `validate` that checks all its fields against their documented ranges; every
//! backend calls it first, so that bad input gets the same clear error everywhere and leaves no trace.

mod client;
mod keeper;
mod listing;
mod queue;
mod recorded;
mod worker;

pub use client::{
    CancelOutcome, CancelRun, RequeueOutcome, RequeueRun, StartAt, StartOutcome, StartRun, Started,
};
pub use keeper::{DeleteFinished, MoreDue, NextDue, QueueDepth, Reaped, StepsGivenUp};
pub use listing::{AttemptScope, ListAttempts, ListRuns, RunFilter};
pub use queue::{MAX_PAUSE_REASON_BYTES, Pause, QueueChange, QueueOutcome, QueueState, SetQueueState};
pub use recorded::RecordedAnswer;
pub use worker::{
    BeginOutcome, BeginStep, Claim, ClaimedRun, CompleteRun, CompleteRunOutcome, CompleteStep,
    CompleteStepOutcome, FailRun, FailStep, FailureOutcome, Heartbeat, NextStep, ReleaseOutcome, ReleaseRun,
    Sleep, SleepOutcome, SleepUntil, Then,
};
