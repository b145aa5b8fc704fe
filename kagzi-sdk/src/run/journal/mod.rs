//! What is recorded of a run, and what its code has asked for in this execution.
//!
//! The journal stands between the workflow's code (through [`Context`](crate::Context)) and the
//! driver. The code writes down what it wants: a call at each `step` or `sleep`, an output when a step
//! function ends. The driver takes it from there to the store and gives back what the store said.
//!
//! # One result at a time, always in the same order
//!
//! The driver hands results to the code one by one: it gives one call its **turn**, polls the code, and
//! only then gives the next. In a replay the recorded results get their turn in the order in which they
//! were recorded, which the fencing token and the (time-ordered) operation id of each completion tell.
//! Code that runs branches side by side therefore meets its results in the same order as before, makes
//! its calls in the same order, and every call finds the recorded step at its own position; a call that
//! finds another one there is a real change of the code.

mod state;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use kagzi_core::{
    Attempt, AttemptState, Failure, FencingToken, NextStep, Payload, SleepUntil, StepId, StepKind, Timestamp,
};
use tokio::time::Instant;
use uuid::Uuid;

use super::naming::Occurrences;
use crate::error::WorkflowError;
use crate::step::Step;
use state::{described, nondeterminism, wake};

/// The code of a run that does not do again what is recorded of it.
pub(crate) const NONDETERMINISM: &str = "nondeterminism";

/// The place of a completion among those of its run: tokens grow with every claim, and the holder of a
/// lease names its completions in the order in which its workflow saw them.
type Order = (FencingToken, Option<Uuid>, Option<Timestamp>, u32);

/// What the store knows about a step.
#[derive(Debug)]
struct Recorded {
    step_id: StepId,
    kind: StepKind,
    memo: Option<(Order, Payload)>,
    finished_at: Option<Timestamp>,
}

/// A step or sleep that the code asked for and that is not over.
#[derive(Debug)]
struct Call {
    step_id: StepId,
    what: What,
    phase: Phase,
    waker: Option<Waker>,
    /// It had its turn but was not polled: others go first until it is.
    parked: bool,
}

#[derive(Debug)]
enum What {
    Task { step: Step, memo: Option<(Order, Payload)> },
    Sleep { until: SleepUntil, called: Instant, epoch: u64, memo: Option<(Order, Payload)> },
}

#[derive(Debug)]
enum Phase {
    /// Nobody has polled it yet.
    Called,
    /// It waits for the driver: to begin, or to sleep.
    Asked,
    /// The begin is on its way to the store.
    Beginning,
    /// The store said: execute.
    Execute { attempt: u32, since: Instant },
    /// Its function runs.
    Executing { attempt: u32 },
    /// It has a result and waits for its turn. With an attempt, the result must be recorded.
    Waiting { output: Payload, attempt: Option<u32> },
    /// Its function failed; its future stays pending until it is dropped.
    Failed,
}

#[derive(Debug, Default)]
struct State {
    /// What is recorded and has not been asked for.
    recorded: BTreeMap<u32, Recorded>,
    positions: HashMap<StepId, u32>,
    occurrences: Occurrences,
    next_position: u32,
    /// How many results the code has had: two calls of one epoch were made at one moment.
    epoch: u64,
    /// From when on the recorded sleeps of an epoch counted.
    slept: HashMap<u64, Timestamp>,
    calls: BTreeMap<u32, Call>,
    /// Calls that wait to begin, in order.
    begins: VecDeque<u32>,
    /// Calls with a recorded result that wait for their turn.
    replayed: BTreeMap<Order, u32>,
    /// Calls with a fresh result that wait for their turn.
    finished: VecDeque<u32>,
    /// Whose turn it is.
    turn: Option<u32>,
    completion: Option<Completion>,
    failed: Vec<StepFailed>,
    broken: Option<Failure>,
}

/// What a call finds when it is polled.
pub(crate) enum Entered {
    /// The store told this worker to execute the step.
    Execute {
        /// The number of the attempt.
        attempt: u32,
        /// Since when the step's timeout counts.
        since: Instant,
    },
    /// It was recorded before.
    Replayed(Payload),
}

/// A result that the code has and the store has not.
#[derive(Clone, Debug)]
pub(crate) struct Completion {
    pub(crate) step_id: StepId,
    pub(crate) attempt: u32,
    pub(crate) output: Payload,
}

/// A step function that failed.
#[derive(Clone, Debug)]
pub(crate) struct StepFailed {
    pub(crate) step_id: StepId,
    pub(crate) attempt: u32,
    pub(crate) failure: Failure,
}

/// A sleep to record.
#[derive(Debug)]
pub(crate) struct SleepCall {
    pub(crate) step_id: StepId,
    pub(crate) position: u32,
    pub(crate) until: SleepUntil,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Journal(Mutex<State>);

impl Journal {
    /// A journal of what `steps`, the latest attempt of each step, tell.
    pub(crate) fn new(steps: Vec<Attempt>) -> Self {
        let mut state = State::default();
        for attempt in steps {
            state.positions.insert(attempt.step_id.clone(), attempt.position);
            let order = (
                attempt.fencing_token,
                attempt.end_operation.map(kagzi_core::OperationId::as_uuid),
                attempt.finished_at,
                attempt.position,
            );
            let memo = (attempt.state == AttemptState::Completed)
                .then(|| (order, attempt.output.unwrap_or_else(Payload::empty)));
            let recorded = Recorded {
                step_id: attempt.step_id,
                kind: attempt.kind,
                memo,
                finished_at: attempt.finished_at,
            };
            if let Some(other) = state.recorded.insert(attempt.position, recorded) {
                state.broken = Some(nondeterminism(format!(
                    "two steps are recorded at position {}, one of them is {:?}: \
                     they come from different versions of the workflow",
                    attempt.position, other.step_id
                )));
            }
        }
        Self(Mutex::new(state))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing below panics half way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // What the code does.

    /// Notes a call of a task, in program order.
    pub(crate) fn call_task(&self, step: Step) -> Result<(u32, StepId), WorkflowError> {
        // Told here and not by the store, since the begin travels with the record of another step.
        step.check().map_err(|error| WorkflowError::non_retryable("invalid_step", error))?;
        let mut state = self.lock();
        let name = step.name().to_owned();
        state.call(&name, StepKind::Task, |recorded, _| What::Task {
            step,
            memo: recorded.and_then(|r| r.memo),
        })
    }

    /// Notes a call of a sleep, in program order.
    pub(crate) fn call_sleep(&self, name: &str, until: SleepUntil) -> Result<u32, WorkflowError> {
        let mut state = self.lock();
        let called = state.call(name, StepKind::Sleep, |recorded, state| {
            let epoch = state.epoch;
            let ended_at = recorded.as_ref().and_then(|recorded| recorded.finished_at);
            if let (Some(ended_at), SleepUntil::After(duration)) = (ended_at, until) {
                state.slept.entry(epoch).or_insert(ended_at.saturating_sub(duration));
            }
            What::Sleep { until, called: Instant::now(), epoch, memo: recorded.and_then(|r| r.memo) }
        });
        called.map(|(position, _)| position)
    }

    /// Lets a call go on: asks to begin, or waits for what the driver brings.
    pub(crate) fn poll_enter(&self, position: u32, context: &Context<'_>) -> Poll<Entered> {
        self.lock().poll_enter(position, context)
    }

    /// Notes the output of a step function. [`poll_turn`](Self::poll_turn) tells when the code may have it.
    pub(crate) fn finish(&self, position: u32, output: Payload) {
        let mut state = self.lock();
        if let Some(call) = state.calls.get_mut(&position)
            && let Phase::Executing { attempt } = call.phase
        {
            call.phase = Phase::Waiting { output, attempt: Some(attempt) };
            state.finished.push_back(position);
        }
    }

    /// Waits for the turn of a finished step.
    pub(crate) fn poll_turn(&self, position: u32, context: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.take_turn(position).is_some() {
            return Poll::Ready(());
        }
        state.wait(position, context);
        Poll::Pending
    }

    /// Notes the failure of a step function.
    pub(crate) fn fail(&self, position: u32, failure: Failure) {
        let mut state = self.lock();
        if let Some(call) = state.calls.get_mut(&position)
            && let Phase::Executing { attempt } = call.phase
        {
            call.phase = Phase::Failed;
            let failed = StepFailed { step_id: call.step_id.clone(), attempt, failure };
            state.failed.push(failed);
        }
    }

    /// The run cannot be replayed here. The driver ends this execution with `failure`.
    pub(crate) fn break_off(&self, failure: Failure) {
        self.lock().broken.get_or_insert(failure);
    }

    /// The code dropped a call, or is done with it.
    pub(crate) fn forget(&self, position: u32) {
        let mut state = self.lock();
        if state.calls.remove(&position).is_some() {
            state.begins.retain(|at| *at != position);
            state.finished.retain(|at| *at != position);
            state.replayed.retain(|_, at| *at != position);
            if state.turn == Some(position) {
                state.turn = None;
            }
        }
    }

    // What the driver does.

    /// The result that the code has had and that must be recorded before anything else goes on.
    pub(crate) fn take_completion(&self) -> Option<Completion> {
        self.lock().completion.take()
    }

    /// The next call that waits to begin.
    pub(crate) fn take_begin(&self) -> Option<(u32, NextStep)> {
        let mut state = self.lock();
        let position = state.begins.pop_front()?;
        let call = state.calls.get_mut(&position)?;
        let What::Task { step, .. } = &call.what else { return None };
        let next = step.to_next(call.step_id.clone(), position);
        call.phase = Phase::Beginning;
        Some((position, next))
    }

    /// Gives the turn to the recorded result that came first. Answers whether there was one.
    pub(crate) fn grant_replayed(&self) -> bool {
        let mut state = self.lock();
        state.end_turn();
        let next = state.replayed.values().copied().find(|at| !state.is_parked(*at));
        state.grant(next)
    }

    /// Gives the turn to the step that finished first. Answers whether there was one.
    pub(crate) fn grant_finished(&self) -> bool {
        let mut state = self.lock();
        state.end_turn();
        let next = state.finished.iter().copied().find(|at| !state.is_parked(*at));
        state.grant(next)
    }

    /// Takes a finished step that the code shall not hear of any more, to record it.
    pub(crate) fn take_finished(&self) -> Option<Completion> {
        let mut state = self.lock();
        state.turn = None;
        while let Some(position) = state.finished.pop_front() {
            let Some(call) = state.calls.get_mut(&position) else { continue };
            if let Phase::Waiting { output, attempt: Some(attempt) } =
                std::mem::replace(&mut call.phase, Phase::Failed)
            {
                return Some(Completion { step_id: call.step_id.clone(), attempt, output });
            }
        }
        None
    }

    /// The store said: execute. Answers whether the code still wants it.
    pub(crate) fn execute(&self, position: u32, attempt: u32, since: Instant) -> bool {
        let mut state = self.lock();
        let Some(call) = state.calls.get_mut(&position) else { return false };
        call.phase = Phase::Execute { attempt, since };
        wake(call);
        true
    }

    /// The store said: this was recorded before, although the claim did not tell.
    pub(crate) fn memoized(&self, position: u32, output: Payload) {
        let mut state = self.lock();
        if let Some(call) = state.calls.get_mut(&position) {
            call.phase = Phase::Waiting { output, attempt: None };
            wake(call);
            state.finished.push_back(position);
        }
    }

    /// The step was begun, but shall not be executed here any more.
    pub(crate) fn give_up(&self, position: u32) {
        if let Some(call) = self.lock().calls.get_mut(&position) {
            call.phase = Phase::Failed;
        }
    }

    /// The steps that have not started shall not be executed here any more.
    pub(crate) fn give_up_unstarted(&self) {
        for call in self.lock().calls.values_mut() {
            if matches!(call.phase, Phase::Asked | Phase::Beginning | Phase::Execute { .. }) {
                call.phase = Phase::Failed;
            }
        }
    }

    /// The step functions that failed since the last look.
    pub(crate) fn take_failed(&self) -> Vec<StepFailed> {
        std::mem::take(&mut self.lock().failed)
    }

    /// Why the code cannot go on, if it did not do again what is recorded.
    pub(crate) fn broken(&self) -> Option<Failure> {
        self.lock().broken.clone()
    }

    /// Whether a step is beginning or executing.
    pub(crate) fn is_busy(&self) -> bool {
        self.lock().calls.values().any(|call| {
            matches!(call.phase, Phase::Beginning | Phase::Execute { .. } | Phase::Executing { .. })
        })
    }

    /// The sleep that ends first among those that the code waits for.
    pub(crate) fn next_sleep(&self) -> Option<SleepCall> {
        self.lock().next_sleep()
    }

    /// What to say when the code is at its end and has not asked for all that is recorded.
    pub(crate) fn never_asked(&self) -> Option<Failure> {
        let state = self.lock();
        let (position, recorded) = state.recorded.first_key_value()?;
        Some(nondeterminism(format!(
            "position {position}: expected {}, as recorded, but the workflow ended after {} calls without asking for it{}",
            described(recorded.kind, &recorded.step_id),
            state.next_position,
            state::REMEDY,
        )))
    }
}

/// How long a step may take from `since` on, as of now.
pub(crate) fn remaining(timeout: Duration, since: Instant) -> Duration {
    timeout.saturating_sub(since.elapsed())
}
