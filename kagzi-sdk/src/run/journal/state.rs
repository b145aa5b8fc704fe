//! The moves of the journal: calls, turns and sleeps. The journal itself is behind a lock; here is what
//! happens under it.

use std::task::{Context, Poll};

use kagzi_core::{Failure, Payload, SleepUntil, StepId, StepKind, Timestamp};
use tokio::time::Instant;

use super::{Call, Completion, Entered, NONDETERMINISM, Phase, Recorded, SleepCall, State, What};
use crate::error::WorkflowError;

impl State {
    /// Notes a call: counts it, compares it with what is recorded at its position, and takes that.
    pub(super) fn call(
        &mut self,
        name: &str,
        kind: StepKind,
        what: impl FnOnce(Option<Recorded>, &mut Self) -> What,
    ) -> Result<(u32, StepId), WorkflowError> {
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
            let seen = described(kind, &step_id);
            let difference = match (&recorded, self.positions.get(&step_id)) {
                (None, Some(other)) => {
                    format!("the workflow asks for {seen}, which is recorded at position {other}")
                }
                (None, None) => format!("the workflow asks for {seen}"),
                (Some(recorded), _) => format!(
                    "expected {}, as recorded, but the workflow asks for {seen}",
                    described(recorded.kind, &recorded.step_id)
                ),
            };
            self.broken = Some(nondeterminism(format!("position {position}: {difference}{REMEDY}")));
        }
        let what = what(recorded, self);
        let call = Call { step_id: step_id.clone(), what, phase: Phase::Called, waker: None, parked: false };
        self.calls.insert(position, call);
        Ok((position, step_id))
    }

    /// Moves a call on that is being polled, as far as it can go by itself.
    pub(super) fn poll_enter(&mut self, position: u32, context: &Context<'_>) -> Poll<Entered> {
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
                Poll::Ready(Entered::Execute { attempt, since })
            }
            _ => Poll::Pending,
        }
    }

    /// Notes whom to wake for a call that has to wait.
    pub(super) fn wait(&mut self, position: u32, context: &Context<'_>) {
        if let Some(call) = self.calls.get_mut(&position) {
            call.parked = false;
            match &mut call.waker {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
        }
    }

    /// The result of `position` if it is its turn.
    pub(super) fn take_turn(&mut self, position: u32) -> Option<Payload> {
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
    pub(super) fn end_turn(&mut self) {
        if let Some(position) = self.turn.take()
            && let Some(call) = self.calls.get_mut(&position)
        {
            call.parked = true;
        }
    }

    pub(super) fn is_parked(&self, position: u32) -> bool {
        self.calls.get(&position).is_none_or(|call| call.parked)
    }

    /// Gives the turn to `next`. Answers whether that is anybody.
    pub(super) fn grant(&mut self, next: Option<u32>) -> bool {
        self.turn = next;
        if let Some(call) = next.and_then(|position| self.calls.get_mut(&position)) {
            wake(call);
        }
        next.is_some()
    }

    /// The sleep that ends first among those that the code waits for.
    pub(super) fn next_sleep(&self) -> Option<SleepCall> {
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

pub(super) fn wake(call: &mut Call) {
    if let Some(waker) = call.waker.take() {
        waker.wake();
    }
}

pub(super) const REMEDY: &str = "; the code of the workflow has changed since the run began: run the old code, \
                      or give the changed workflow a type of its own";

pub(super) fn nondeterminism(message: String) -> Failure {
    Failure::non_retryable(NONDETERMINISM, message)
}

pub(super) fn described(kind: StepKind, step_id: &StepId) -> String {
    match kind {
        StepKind::Task => format!("step {step_id:?}"),
        StepKind::Sleep => format!("sleep {step_id:?}"),
    }
}
