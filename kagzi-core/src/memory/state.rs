//! The rows of the reference store, and the few ways in which they are found and written.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

use crate::clock::Timestamp;
use crate::decide::{AttemptWrite, Effects, OpenAttempts, Progress};
use crate::error::StoreError;
use crate::id::{OperationId, RunId};
use crate::name::{IdempotencyKey, Namespace, QueueName, StepId};
use crate::op::RecordedAnswer;
use crate::payload::Payload;
use crate::queue::QueueRow;
use crate::run::{Run, RunState};
use crate::step::{Attempt, AttemptState};
use crate::wake::{Topic, WakeHub};

/// The place of a PENDING run in the order of claims within its queue.
pub(super) type Place = (i64, RunId);

/// Everything that the store holds: tables, and the indexes that a database would keep.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) runs: BTreeMap<RunId, Run>,
    attempts: HashMap<RunId, BTreeMap<(StepId, u32), Attempt>>,
    inputs: HashMap<RunId, Payload>,
    outputs: HashMap<RunId, Payload>,
    operations: HashMap<RunId, HashMap<OperationId, RecordedAnswer>>,
    pub(super) queues: BTreeMap<(Namespace, QueueName), QueueRow>,
    keys: HashMap<(Namespace, IdempotencyKey), RunId>,
    ready: HashMap<(Namespace, QueueName), BTreeSet<Place>>,
    /// RUNNING runs by the claim that holds them.
    held: BTreeSet<(OperationId, RunId)>,
    attention: BTreeSet<(Timestamp, RunId)>,
    step_deadlines: BTreeSet<(Timestamp, RunId, StepId, u32)>,
    pub(super) closed: bool,
}

impl State {
    /// The run, if it is in this namespace.
    pub(super) fn run(&self, namespace: &Namespace, run_id: RunId) -> Result<&Run, StoreError> {
        self.runs
            .get(&run_id)
            .filter(|run| run.namespace == *namespace)
            .ok_or(StoreError::RunNotFound { run_id })
    }

    pub(super) fn run_by_key(&self, namespace: &Namespace, key: &IdempotencyKey) -> Option<&Run> {
        self.keys.get(&(namespace.clone(), key.clone())).and_then(|id| self.runs.get(id))
    }

    pub(super) fn input(&self, run_id: RunId) -> Payload {
        self.inputs.get(&run_id).cloned().unwrap_or_else(Payload::empty)
    }

    pub(super) fn output(&self, run_id: RunId) -> Option<Payload> {
        self.outputs.get(&run_id).cloned()
    }

    pub(super) fn recorded(&self, run_id: RunId, operation: OperationId) -> Option<RecordedAnswer> {
        self.operations.get(&run_id)?.get(&operation).copied()
    }

    /// One attempt.
    pub(super) fn attempt(&self, run_id: RunId, step_id: &StepId, number: u32) -> Option<&Attempt> {
        self.attempts.get(&run_id)?.get(&(step_id.clone(), number))
    }

    /// The attempts of one step, by number.
    pub(super) fn attempts_of_step(
        &self,
        run_id: RunId,
        step_id: &StepId,
    ) -> impl DoubleEndedIterator<Item = &Attempt> {
        let steps = self.attempts.get(&run_id).into_iter();
        let range = (step_id.clone(), 0)..=(step_id.clone(), u32::MAX);
        steps.flat_map(move |attempts| attempts.range(range.clone())).map(|(_, attempt)| attempt)
    }

    pub(super) fn latest_attempt(&self, run_id: RunId, step_id: &StepId) -> Option<&Attempt> {
        self.attempts_of_step(run_id, step_id).next_back()
    }

    /// The FAILED attempts of a step that count against its budget; see [`crate::decide::fail_step`].
    pub(super) fn failures(&self, run: &Run, step_id: &StepId) -> u32 {
        let counted = self
            .attempts_of_step(run.run_id, step_id)
            .filter(|a| a.state == AttemptState::Failed && a.fencing_token > run.budget_token)
            .count();
        u32::try_from(counted).unwrap_or(u32::MAX)
    }

    /// Every attempt of a run, by step and number.
    pub(super) fn attempts_of_run(&self, run_id: RunId) -> impl Iterator<Item = &Attempt> {
        self.attempts.get(&run_id).into_iter().flat_map(BTreeMap::values)
    }

    /// Whether a step finished under the run's current token.
    pub(super) fn progress(&self, run: &Run) -> Progress {
        let finished =
            |a: &Attempt| a.state == AttemptState::Completed && a.fencing_token == run.fencing_token;
        if self.attempts_of_run(run.run_id).any(finished) { Progress::Made } else { Progress::None }
    }

    /// PENDING runs of a queue, in the order of claims: none while it is paused.
    pub(super) fn ready(&self, namespace: &Namespace, queue: &QueueName) -> impl Iterator<Item = Place> {
        let queue = (namespace.clone(), queue.clone());
        let paused = self.queues.get(&queue).is_some_and(|row| row.pause.is_some());
        self.ready.get(&queue).filter(|_| !paused).into_iter().flatten().copied()
    }

    /// The runs that are held by this claim.
    pub(super) fn held_by(&self, claim: OperationId) -> impl Iterator<Item = &Run> {
        let all = (Bound::Included((claim, RunId::MIN)), Bound::Included((claim, RunId::MAX)));
        self.held.range(all).filter_map(|(_, run_id)| self.runs.get(run_id))
    }

    /// Runs that time has something to say about by `now`, since when, the longest overdue first.
    pub(super) fn overdue(&self, now: Timestamp) -> impl Iterator<Item = (Timestamp, RunId)> {
        self.attention.iter().take_while(move |(at, _)| *at <= now).copied()
    }

    /// RUNNING attempts past their timeout by `now`, since when, the longest overdue first.
    pub(super) fn overdue_steps(
        &self,
        now: Timestamp,
    ) -> impl Iterator<Item = (Timestamp, (RunId, StepId, u32))> {
        let due = self.step_deadlines.iter().take_while(move |(at, ..)| *at <= now);
        due.map(|(at, run_id, step_id, number)| (*at, (*run_id, step_id.clone(), *number)))
    }

    /// The nearest moment over both.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        let runs = self.attention.first().map(|(at, _)| *at);
        let steps = self.step_deadlines.first().map(|(at, ..)| *at);
        runs.into_iter().chain(steps).min()
    }

    /// Writes a new run with its input.
    pub(super) fn insert_run(&mut self, run: Run, input: Payload, hub: &WakeHub) {
        if let Some(key) = &run.idempotency_key {
            self.keys.insert((run.namespace.clone(), key.clone()), run.run_id);
        }
        self.inputs.insert(run.run_id, input);
        self.save_run(run, hub);
    }

    /// Writes a run's row, keeps the indexes true and tells those who wait.
    pub(super) fn save_run(&mut self, run: Run, hub: &WakeHub) {
        if let Some(before) = self.runs.get(&run.run_id) {
            if let Some(ready) = self.ready.get_mut(&(before.namespace.clone(), before.queue.clone())) {
                ready.remove(&(before.claim_rank(), before.run_id));
            }
            if let Some(claim) = before.claim_operation {
                self.held.remove(&(claim, run.run_id));
            }
            if let Some(at) = before.attention_at() {
                self.attention.remove(&(at, run.run_id));
            }
        }
        if run.state == RunState::Pending {
            let queue = (run.namespace.clone(), run.queue.clone());
            self.ready.entry(queue).or_default().insert((run.claim_rank(), run.run_id));
            hub.announce(&Topic::Queue(run.namespace.clone(), run.queue.clone()));
        }
        if let Some(claim) = run.claim_operation {
            self.held.insert((claim, run.run_id));
        }
        if let Some(at) = run.attention_at() {
            self.attention.insert((at, run.run_id));
            hub.note_deadline(at);
        }
        if run.state.is_terminal() {
            hub.announce(&Topic::Run(run.run_id));
        }
        self.runs.insert(run.run_id, run);
    }

    fn save_attempt(&mut self, attempt: Attempt, hub: &WakeHub) {
        if let Some(at) = attempt.deadline_at {
            let key = (at, attempt.run_id, attempt.step_id.clone(), attempt.attempt);
            if attempt.state == AttemptState::Running {
                self.step_deadlines.insert(key);
                hub.note_deadline(at);
            } else {
                self.step_deadlines.remove(&key);
            }
        }
        let key = (attempt.step_id.clone(), attempt.attempt);
        self.attempts.entry(attempt.run_id).or_default().insert(key, attempt);
    }

    /// Writes what a decision says about the run `run_id`.
    pub(super) fn apply(&mut self, run_id: RunId, effects: Effects, now: Timestamp, hub: &WakeHub) {
        for write in effects.attempts {
            match write {
                AttemptWrite::Insert(attempt) | AttemptWrite::Update(attempt) => {
                    self.save_attempt(attempt, hub);
                }
            }
        }
        if effects.open_attempts == OpenAttempts::Abandon {
            let open: Vec<Attempt> = self
                .attempts_of_run(run_id)
                .filter(|attempt| attempt.state == AttemptState::Running)
                .cloned()
                .collect();
            for attempt in open {
                let abandoned = Attempt {
                    state: AttemptState::Abandoned,
                    updated_at: now,
                    finished_at: Some(now),
                    ..attempt
                };
                self.save_attempt(abandoned, hub);
            }
        }
        if let Some(output) = effects.output {
            self.outputs.insert(run_id, output);
        }
        if let Some((operation, answer)) = effects.record {
            self.operations.entry(run_id).or_default().insert(operation, answer);
        }
        if let Some(run) = effects.run {
            self.save_run(run, hub);
        }
    }

    /// Removes a finished run with everything that belongs to it.
    pub(super) fn remove_run(&mut self, run_id: RunId) {
        let Some(run) = self.runs.remove(&run_id) else { return };
        if let Some(key) = run.idempotency_key {
            self.keys.remove(&(run.namespace, key));
        }
        self.inputs.remove(&run_id);
        self.outputs.remove(&run_id);
        self.attempts.remove(&run_id);
        self.operations.remove(&run_id);
    }
}
