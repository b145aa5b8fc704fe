//! What keepers ask: the reaper, retention, and those who watch queues.

use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::limits::check_batch;
use crate::name::{Namespace, QueueName};
use crate::op::Pause;
use crate::run::RunState;

/// Whether a reap left due work behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MoreDue {
    /// Its limit was reached: call again at once.
    Maybe,
    /// Nothing else was due.
    #[default]
    No,
}

/// What one reap did. The numbers are the runs it treated, each in one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Sleepers whose time had come: PENDING now.
    pub woken: u32,
    /// Runs whose lease had expired: PENDING now, open attempts abandoned.
    pub leases_expired: u32,
    /// Runs that lost too many leases in a row: dead letters now.
    pub poisoned: u32,
    /// Runs past their deadline: dead letters now.
    pub runs_timed_out: u32,
    /// Runs with an attempt past its timeout: failed by their retry policy.
    pub steps_timed_out: u32,
    /// How many of those were not to be tried again, and are dead letters now.
    pub steps_given_up: StepsGivenUp,
    /// Whether to call again at once.
    pub more: MoreDue,
}

/// Runs that became dead letters because an attempt was past its timeout, by their
/// [`DeadLetterReason`](crate::DeadLetterReason).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepsGivenUp {
    /// It was the last attempt.
    pub retries_exhausted: u32,
    /// The policy of the step retries no timeout.
    pub non_retryable: u32,
    /// The next attempt would have come after the deadline of the run.
    pub run_timeout: u32,
}

impl StepsGivenUp {
    /// All of them.
    pub const fn total(self) -> u32 {
        self.retries_exhausted + self.non_retryable + self.run_timeout
    }
}

impl Reaped {
    /// How many runs were treated; never more than the limit of the call (invariant 14).
    pub const fn total(&self) -> u32 {
        self.woken + self.leases_expired + self.poisoned + self.runs_timed_out + self.steps_timed_out
    }
}

/// The nearest moment at which there is something to reap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextDue {
    /// The store's clock.
    pub now: Timestamp,
    /// The nearest moment over sleepers, leases, deadlines and step timeouts, or nothing.
    pub due_at: Option<Timestamp>,
}

/// How full a queue is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueDepth {
    /// The queue.
    pub queue: QueueName,
    /// Runs that are due: claimable, unless the queue is paused.
    pub pending: u64,
    /// Runs that wait for a moment.
    pub sleeping: u64,
    /// Runs held by workers.
    pub running: u64,
    /// Since when the longest waiting PENDING run is due.
    pub oldest_due_at: Option<Timestamp>,
    /// Why and since when claims take nothing from it; nothing while it is open.
    pub pause: Option<Pause>,
}

impl QueueDepth {
    /// An open queue without a live run.
    pub const fn empty(queue: QueueName) -> Self {
        Self { queue, pending: 0, sleeping: 0, running: 0, oldest_due_at: None, pause: None }
    }
}

/// Removes finished runs with their steps and payloads, the longest finished first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteFinished {
    /// Only of this tenant; nothing: of all.
    pub namespace: Option<Namespace>,
    /// Only in these states, which must be final; empty: in every final state.
    pub states: Vec<RunState>,
    /// Only runs that finished before this moment.
    pub before: Timestamp,
    /// How many runs at most, from 1 to 10,000.
    pub limit: u32,
}

impl DeleteFinished {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] naming the field.
    pub fn validate(&self) -> Result<(), StoreError> {
        check_batch("limit", self.limit as usize)?;
        match self.states.iter().find(|state| !state.is_terminal()) {
            None => Ok(()),
            Some(live) => Err(StoreError::InvalidArgument {
                field: "states".to_owned(),
                expected: "COMPLETED, FAILED or CANCELLED".to_owned(),
                got: live.as_str().to_owned(),
            }),
        }
    }

    /// Whether a run in `state` that finished at `finished_at` in `namespace` is to go.
    pub fn matches(&self, namespace: &Namespace, state: RunState, finished_at: Option<Timestamp>) -> bool {
        state.is_terminal()
            && (self.states.is_empty() || self.states.contains(&state))
            && self.namespace.as_ref().is_none_or(|only| only == namespace)
            && finished_at.is_some_and(|at| at < self.before)
    }
}
