//! The rules: pure functions from rows and a request to an answer and what to write.
//!
//! Every backend does the same three things: load the rows that an operation is about, ask the
//! function of that operation, and write what its [`Effects`] say, all in one transaction that holds
//! the run. A backend carries no rule of its own, so all of them answer alike.

mod due;
mod finish;
mod guard;
mod queue;
mod room;
mod start;
mod step;

pub use due::{
    Overdue, OverdueKind, Progress, claimed, heartbeat, needs_progress, overdue, shares_of_a_reap,
    step_overdue,
};
pub use finish::{cancel, complete_run, fail_run, release, requeue};
pub use guard::{check_heartbeats, check_lease, check_reap, check_start_batch};
pub use queue::{QueueDecision, set_queue_state};
pub use room::ClaimRoom;
pub use start::{existing_run, new_run};
pub use step::{begin_step, complete_step, completed_again, fail_step, sleep, was_completed_by};

use crate::id::OperationId;
use crate::op::RecordedAnswer;
use crate::payload::Payload;
use crate::run::Run;
use crate::step::Attempt;

/// What becomes of the attempts that are still RUNNING.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OpenAttempts {
    /// They stay.
    #[default]
    Leave,
    /// They become ABANDONED: `state`, `updated_at` and `finished_at` change, nothing else.
    Abandon,
}

/// A write to the attempts of a run.
#[derive(Clone, Debug, PartialEq)]
pub enum AttemptWrite {
    /// A new row.
    Insert(Attempt),
    /// The row of the same (step, attempt) becomes this.
    Update(Attempt),
}

/// What an operation writes, in this order. An empty one writes nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effects {
    /// Attempts to insert or update.
    pub attempts: Vec<AttemptWrite>,
    /// Then, what becomes of the attempts that are still RUNNING.
    pub open_attempts: OpenAttempts,
    /// The run's row becomes this.
    pub run: Option<Run>,
    /// The run's output.
    pub output: Option<Payload>,
    /// The answer to record in the run's operations.
    pub record: Option<(OperationId, RecordedAnswer)>,
}

/// An answer together with what must be written before it may be given.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision<T> {
    /// What to write.
    pub effects: Effects,
    /// What to answer once that is durable.
    pub answer: T,
}

impl<T> Decision<T> {
    /// An answer that changes nothing.
    pub fn unchanged(answer: T) -> Self {
        Self { effects: Effects::default(), answer }
    }
}
