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

/// What a call finds when it is polled.
pub(crate) enum Entered {
    /// The store told this worker to execute the step.
    Execute {
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
pub(crate) struct Journal(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
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

impl Journal {
    /// A journal of what `steps`, the latest attempt of each step, tell.
    pub(crate) fn new(steps: Vec<Attempt>) -> Self {
        let mut inner = Inner::default();
        for attempt in steps {
            inner.positions.insert(attempt.step_id.clone(), attempt.position);
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
            if let Some(other) = inner.recorded.insert(attempt.position, recorded) {
                inner.broken = Some(nondeterminism(format!(
                    "two steps are recorded at position {}, one of them is {:?}: \
                     they come from different versions of the workflow",
                    attempt.position, other.step_id
                )));
            }
        }
        Self(Mutex::new(inner))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing below panics half way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // What the code does.

    /// Notes a call of a task, in program order.
    pub(crate) fn call_task(&self, step: Step) -> Result<u32, WorkflowError> {
        // Told here and not by the store, since the begin travels with the record of another step.
        step.check().map_err(|error| WorkflowError::non_retryable("invalid_step", error))?;
        let mut inner = self.lock();
        let name = step.name().to_owned();
        inner.call(&name, StepKind::Task, |recorded, _| What::Task {
            step,
            memo: recorded.and_then(|r| r.memo),
        })
    }

    /// Notes a call of a sleep, in program order.
    pub(crate) fn call_sleep(&self, name: &str, until: SleepUntil) -> Result<u32, WorkflowError> {
        let mut inner = self.lock();
        inner.call(name, StepKind::Sleep, |recorded, inner| {
            let epoch = inner.epoch;
            let ended_at = recorded.as_ref().and_then(|recorded| recorded.finished_at);
            if let (Some(ended_at), SleepUntil::After(duration)) = (ended_at, until) {
                inner.slept.entry(epoch).or_insert(ended_at.saturating_sub(duration));
            }
            What::Sleep { until, called: Instant::now(), epoch, memo: recorded.and_then(|r| r.memo) }
        })
    }

    /// Lets a call go on: asks to begin, or waits for what the driver brings.
    pub(crate) fn poll_enter(&self, position: u32, context: &Context<'_>) -> Poll<Entered> {
        self.lock().poll_enter(position, context)
    }

    /// Notes the output of a step function. [`poll_turn`](Self::poll_turn) tells when the code may have it.
    pub(crate) fn finish(&self, position: u32, output: Payload) {
        let mut inner = self.lock();
        if let Some(call) = inner.calls.get_mut(&position)
            && let Phase::Executing { attempt } = call.phase
        {
            call.phase = Phase::Waiting { output, attempt: Some(attempt) };
            inner.finished.push_back(position);
        }
    }

    /// Waits for the turn of a finished step.
    pub(crate) fn poll_turn(&self, position: u32, context: &Context<'_>) -> Poll<()> {
        let mut inner = self.lock();
        if inner.take_turn(position).is_some() {
            return Poll::Ready(());
        }
        inner.wait(position, context);
        Poll::Pending
    }

    /// Notes the failure of a step function.
    pub(crate) fn fail(&self, position: u32, failure: Failure) {
        let mut inner = self.lock();
        if let Some(call) = inner.calls.get_mut(&position)
            && let Phase::Executing { attempt } = call.phase
        {
            call.phase = Phase::Failed;
            let failed = StepFailed { step_id: call.step_id.clone(), attempt, failure };
            inner.failed.push(failed);
        }
    }

    /// The code dropped a call, or is done with it.
    pub(crate) fn forget(&self, position: u32) {
        let mut inner = self.lock();
        if inner.calls.remove(&position).is_some() {
            inner.begins.retain(|at| *at != position);
            inner.finished.retain(|at| *at != position);
            inner.replayed.retain(|_, at| *at != position);
            if inner.turn == Some(position) {
                inner.turn = None;
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
        let mut inner = self.lock();
        let position = inner.begins.pop_front()?;
        let call = inner.calls.get_mut(&position)?;
        let What::Task { step, .. } = &call.what else { return None };
        let next = step.to_next(call.step_id.clone(), position);
        call.phase = Phase::Beginning;
        Some((position, next))
    }

    /// Gives the turn to the recorded result that came first. Answers whether there was one.
    pub(crate) fn grant_replayed(&self) -> bool {
        let mut inner = self.lock();
        inner.end_turn();
        let next = inner.replayed.values().copied().find(|at| !inner.is_parked(*at));
        inner.grant(next)
    }

    /// Gives the turn to the step that finished first. Answers whether there was one.
    pub(crate) fn grant_finished(&self) -> bool {
        let mut inner = self.lock();
        inner.end_turn();
        let next = inner.finished.iter().copied().find(|at| !inner.is_parked(*at));
        inner.grant(next)
    }

    /// Takes a finished step that the code shall not hear of any more, to record it.
    pub(crate) fn take_finished(&self) -> Option<Completion> {
        let mut inner = self.lock();
        inner.turn = None;
        while let Some(position) = inner.finished.pop_front() {
            let Some(call) = inner.calls.get_mut(&position) else { continue };
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
        let mut inner = self.lock();
        let Some(call) = inner.calls.get_mut(&position) else { return false };
        call.phase = Phase::Execute { attempt, since };
        wake(call);
        true
    }

    /// The store said: this was recorded before, although the claim did not tell.
    pub(crate) fn memoized(&self, position: u32, output: Payload) {
        let mut inner = self.lock();
        if let Some(call) = inner.calls.get_mut(&position) {
            call.phase = Phase::Waiting { output, attempt: None };
            wake(call);
            inner.finished.push_back(position);
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
        let inner = self.lock();
        let (position, recorded) = inner.recorded.first_key_value()?;
        Some(nondeterminism(format!(
            "position {position}: expected {}, as recorded, but the workflow ended after {} calls without asking for it{REMEDY}",
            described(recorded.kind, &recorded.step_id),
            inner.next_position,
        )))
    }
}

impl Inner {
    fn call(
        &mut self,
        name: &str,
        kind: StepKind,
        what: impl FnOnce(Option<Recorded>, &mut Self) -> What,
    ) -> Result<u32, WorkflowError> {
        let step_id = self
            .occurrences
            .next(name)
            .map_err(|error| WorkflowError::non_retryable("invalid_step_name", error))?;
        let position = self.next_position;
        self.next_position += 1;
        let recorded = self.recorded.remove(&position);
        let matches = recorded.as_ref().map_or_else(
            || !self.positions.contains_key(&step_id),
            |recorded| recorded.step_id == step_id && recorded.kind == kind,
        );
        if !matches && self.broken.is_none() {
            let expected = match (&recorded, self.positions.get(&step_id)) {
                (Some(recorded), _) => described(recorded.kind, &recorded.step_id),
                (None, Some(other)) => format!("it at position {other}"),
                (None, None) => "nothing".to_owned(),
            };
            self.broken = Some(nondeterminism(format!(
                "position {position}: expected {expected}, as recorded, but the workflow asks for {}{REMEDY}",
                described(kind, &step_id)
            )));
        }
        let what = what(recorded, self);
        self.calls.insert(position, Call { step_id, what, phase: Phase::Called, waker: None, parked: false });
        Ok(position)
    }

    fn poll_enter(&mut self, position: u32, context: &Context<'_>) -> Poll<Entered> {
        if let Some(output) = self.take_turn(position) {
            return Poll::Ready(Entered::Replayed(output));
        }
        self.wait(position, context);
        let Some(call) = self.calls.get_mut(&position) else { return Poll::Pending };
        match call.phase {
            // Code that does not do again what is recorded gets no further.
            Phase::Called if self.broken.is_none() => {
                let (What::Task { memo, .. } | What::Sleep { memo, .. }) = &mut call.what;
                if let Some((order, output)) = memo.take() {
                    call.phase = Phase::Waiting { output, attempt: None };
                    self.replayed.insert(order, position);
                } else {
                    call.phase = Phase::Asked;
                    if matches!(call.what, What::Task { .. }) {
                        self.begins.push_back(position);
                    }
                }
                Poll::Pending
            }
            Phase::Execute { attempt, since } => {
                call.phase = Phase::Executing { attempt };
                Poll::Ready(Entered::Execute { since })
            }
            _ => Poll::Pending,
        }
    }

    fn wait(&mut self, position: u32, context: &Context<'_>) {
        if let Some(call) = self.calls.get_mut(&position) {
            call.parked = false;
            match &mut call.waker {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
        }
    }

    /// The result of `position` if it is its turn.
    fn take_turn(&mut self, position: u32) -> Option<Payload> {
        if self.turn != Some(position) {
            return None;
        }
        self.turn = None;
        let call = self.calls.remove(&position)?;
        let Phase::Waiting { output, attempt } = call.phase else { return None };
        self.epoch += 1;
        // Whose turn it was stood in front, unless others were parked before it.
        if self.finished.front() == Some(&position) {
            self.finished.pop_front();
        } else if self.replayed.first_key_value().is_some_and(|(_, at)| *at == position) {
            self.replayed.pop_first();
        } else {
            self.finished.retain(|at| *at != position);
            self.replayed.retain(|_, at| *at != position);
        }
        if let Some(attempt) = attempt {
            let output = output.clone();
            self.completion = Some(Completion { step_id: call.step_id, attempt, output });
        }
        Some(output)
    }

    /// Takes the turn back from a call that was not polled.
    fn end_turn(&mut self) {
        if let Some(position) = self.turn.take()
            && let Some(call) = self.calls.get_mut(&position)
        {
            call.parked = true;
        }
    }

    fn is_parked(&self, position: u32) -> bool {
        self.calls.get(&position).is_none_or(|call| call.parked)
    }

    fn grant(&mut self, next: Option<u32>) -> bool {
        self.turn = next;
        if let Some(call) = next.and_then(|position| self.calls.get_mut(&position)) {
            wake(call);
        }
        next.is_some()
    }

    fn next_sleep(&mut self) -> Option<SleepCall> {
        let now = Timestamp::from(std::time::SystemTime::now());
        let asked = self.calls.iter().filter(|(_, call)| matches!(call.phase, Phase::Asked));
        let (position, step_id, until) = asked
            .filter_map(|(position, call)| match &call.what {
                What::Sleep { until, called, epoch, .. } => {
                    let until = self.effective(*until, *called, *epoch);
                    Some((*position, call.step_id.clone(), until))
                }
                What::Task { .. } => None,
            })
            .min_by_key(|(_, _, until)| match until {
                SleepUntil::After(duration) => *duration,
                SleepUntil::At(moment) => moment.saturating_since(now),
            })?;
        Some(SleepCall { step_id, position, until })
    }

    /// Until when a sleep lasts, given that it may have had to wait for other branches: it counts from
    /// its call in this execution, or from the recorded sleep that was called at the same moment.
    fn effective(&self, until: SleepUntil, called: Instant, epoch: u64) -> SleepUntil {
        match until {
            SleepUntil::At(_) => until,
            SleepUntil::After(duration) => match self.slept.get(&epoch) {
                Some(began_at) => SleepUntil::At(began_at.saturating_add(duration)),
                None if epoch == self.epoch => until,
                None => SleepUntil::After(duration.saturating_sub(called.elapsed())),
            },
        }
    }
}

fn wake(call: &mut Call) {
    if let Some(waker) = call.waker.take() {
        waker.wake();
    }
}

const REMEDY: &str = "; the code of the workflow has changed since the run began: run the old code, \
                      or give the changed workflow a type of its own";

fn nondeterminism(message: String) -> Failure {
    Failure::non_retryable(NONDETERMINISM, message)
}

fn described(kind: StepKind, step_id: &StepId) -> String {
    match kind {
        StepKind::Task => format!("step {step_id:?}"),
        StepKind::Sleep => format!("sleep {step_id:?}"),
    }
}

/// How long a step may take from `since` on, as of now.
pub(crate) fn remaining(timeout: Duration, since: Instant) -> Duration {
    timeout.saturating_sub(since.elapsed())
}
