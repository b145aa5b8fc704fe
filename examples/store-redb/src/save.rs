//! How rows are written, with every index kept true in the same transaction.

use kagzi_core::decide::{AttemptWrite, Effects, OpenAttempts, Progress};
use kagzi_core::{
    Attempt, AttemptState, Namespace, OperationId, Payload, RecordedAnswer, Run, RunId, RunState, StepId,
    StoreError, Timestamp,
};
use redb::{Key, ReadableTable as _, Table, Value, WriteTransaction};

use crate::error::{Error, Result};
use crate::news::News;
use crate::tables::{Tables, attempts_of, id, micros, operation};
use crate::{Shared, load, row};

/// One transaction that writes. Every operation of a batch works on it, one after the other.
pub(crate) struct Writing<'a> {
    pub(crate) tables: Tables<'a>,
    pub(crate) shared: &'a Shared,
    /// What to tell those who wait, once this is durable.
    pub(crate) news: News,
    /// Whether there is anything to commit.
    pub(crate) wrote: bool,
}

/// Whether an entry of an index comes or goes.
#[derive(Clone, Copy)]
enum Entry {
    Comes,
    Goes,
}

impl Entry {
    fn set<K: Key, V: Value>(
        self,
        index: &mut Table<'_, K, V>,
        key: K::SelfType<'_>,
        value: V::SelfType<'_>,
    ) -> Result<()> {
        match self {
            Self::Comes => drop(index.insert(key, value)?),
            Self::Goes => drop(index.remove(key)?),
        }
        Ok(())
    }
}

impl<'a> Writing<'a> {
    pub(crate) fn new(transaction: &'a WriteTransaction, shared: &'a Shared) -> Result<Self> {
        Ok(Self { tables: Tables::open(transaction)?, shared, news: News::default(), wrote: false })
    }

    /// The store's time. Asked in each operation, since the one before it may have taken long.
    pub(crate) fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    /// The run, if it is in this namespace (invariant 11).
    pub(crate) fn run(&self, namespace: &Namespace, run_id: RunId) -> Result<Run> {
        load::run(&self.tables.runs, id(run_id))?
            .filter(|run| run.namespace == *namespace)
            .ok_or(Error::Refused(StoreError::RunNotFound { run_id }))
    }

    pub(crate) fn input(&self, run_id: RunId) -> Result<Payload> {
        let missing = || Error::Damaged(format!("run {run_id} has no input"));
        load::payload(&self.tables.inputs, run_id)?.ok_or_else(missing)
    }

    pub(crate) fn recorded(&self, run_id: RunId, by: OperationId) -> Result<Option<RecordedAnswer>> {
        let found = self.tables.answers.get((id(run_id), operation(by)))?;
        let read =
            |text: &str| RecordedAnswer::from_text(text).map_err(|error| Error::Damaged(error.to_string()));
        found.map(|found| read(found.value())).transpose()
    }

    /// One attempt of a step.
    pub(crate) fn attempt(&self, run_id: RunId, step_id: &StepId, number: u32) -> Result<Option<Attempt>> {
        let Some(step) = self.tables.steps.get((id(run_id), step_id.as_str()))? else { return Ok(None) };
        let (position, _) = step.value();
        let found = self.tables.attempts.get((id(run_id), position, step_id.as_str(), number))?;
        found.map(|found| row::attempt(found.value())).transpose()
    }

    /// The attempt of a step with the highest number.
    pub(crate) fn latest_attempt(&self, run_id: RunId, step_id: &StepId) -> Result<Option<Attempt>> {
        let step = self.tables.steps.get((id(run_id), step_id.as_str()))?.map(|step| step.value());
        step.map_or(Ok(None), |(_, latest)| self.attempt(run_id, step_id, latest))
    }

    /// The attempts of one step, by number.
    pub(crate) fn attempts_of_step(&self, run_id: RunId, step_id: &StepId) -> Result<Vec<Attempt>> {
        let step = self.tables.steps.get((id(run_id), step_id.as_str()))?.map(|step| step.value());
        let Some((position, latest)) = step else { return Ok(Vec::new()) };
        let (run, step) = (id(run_id), step_id.as_str());
        let range = self.tables.attempts.range((run, position, step, 1)..=(run, position, step, latest))?;
        range.map(|entry| row::attempt(entry?.1.value())).collect()
    }

    /// The FAILED attempts of a step that count against its budget; see [`kagzi_core::decide::fail_step`].
    pub(crate) fn failures(&self, run: &Run, step_id: &StepId) -> Result<u32> {
        let attempts = self.attempts_of_step(run.run_id, step_id)?;
        let counted = attempts
            .iter()
            .filter(|a| a.state == AttemptState::Failed && a.fencing_token > run.budget_token)
            .count();
        Ok(u32::try_from(counted).unwrap_or(u32::MAX))
    }

    /// Whether a step finished under the run's current token.
    pub(crate) fn progress(&self, run: &Run) -> Result<Progress> {
        for entry in self.tables.attempts.range(attempts_of(run.run_id))? {
            let (_, found) = entry?;
            // Without the output, which may be long.
            let attempt = row::attempt((found.value().0, None))?;
            if attempt.state == AttemptState::Completed && attempt.fencing_token == run.fencing_token {
                return Ok(Progress::Made);
            }
        }
        Ok(Progress::None)
    }

    /// Writes a new run with its input.
    pub(crate) fn insert_run(&mut self, run: &Run, input: &Payload) -> Result<()> {
        self.tables.inputs.insert(id(run.run_id), row::payload_to_row(input))?;
        self.index_for_good(run, Entry::Comes)?;
        self.save_run(run)
    }

    /// Writes a run's row, moves it in the indexes, and notes whom to tell.
    pub(crate) fn save_run(&mut self, run: &Run) -> Result<()> {
        self.wrote = true;
        if let Some(before) = load::run(&self.tables.runs, id(run.run_id))? {
            self.index(&before, Entry::Goes)?;
        }
        self.index(run, Entry::Comes)?;
        self.tables.runs.insert(id(run.run_id), row::run_to_bytes(run)?.as_slice())?;
        self.news.note_run(run);
        Ok(())
    }

    /// The indexes over what never changes about a run.
    fn index_for_good(&mut self, run: &Run, entry: Entry) -> Result<()> {
        let (namespace, run_id) = (run.namespace.as_str(), id(run.run_id));
        if let Some(key) = &run.idempotency_key {
            entry.set(&mut self.tables.keys, (namespace, key.as_str()), run_id)?;
        }
        entry.set(&mut self.tables.created, (namespace, micros(run.created_at), run_id), ())
    }

    /// The indexes over what does.
    fn index(&mut self, run: &Run, entry: Entry) -> Result<()> {
        let tables = &mut self.tables;
        let (namespace, queue, run_id) = (run.namespace.as_str(), run.queue.as_str(), id(run.run_id));
        if run.state == RunState::Pending {
            let key = (namespace, queue, run.claim_rank(), run_id);
            entry.set(&mut tables.ready, key, run.workflow_type.as_str())?;
        }
        if !run.state.is_terminal() {
            let key = (namespace, queue, run.state.as_str(), micros(run.due_at), run_id);
            entry.set(&mut tables.live, key, ())?;
        }
        if let Some(claim) = run.claim_operation {
            entry.set(&mut tables.held, (operation(claim), run_id), ())?;
        }
        if let Some(at) = run.attention_at() {
            entry.set(&mut tables.attention, (micros(at), run_id), ())?;
            entry.set(&mut tables.queue_attention, (namespace, queue, micros(at), run_id), ())?;
        }
        if let Some(at) = run.finished_at {
            entry.set(&mut tables.finished, (micros(at), run_id), namespace)?;
        }
        Ok(())
    }

    fn save_attempt(&mut self, attempt: &Attempt) -> Result<()> {
        self.wrote = true;
        let (run_id, step) = (id(attempt.run_id), attempt.step_id.as_str());
        let key = (run_id, attempt.position, step, attempt.attempt);
        let running = attempt.state == AttemptState::Running;
        let entry = if running { Entry::Comes } else { Entry::Goes };
        entry.set(&mut self.tables.open_attempts, key, ())?;
        if let Some(at) = attempt.deadline_at {
            let key = (micros(at), run_id, attempt.position, step, attempt.attempt);
            entry.set(&mut self.tables.deadlines, key, ())?;
            if running {
                self.news.note_deadline(at);
            }
        }
        let bytes = row::attempt_to_bytes(attempt)?;
        let output = attempt.output.as_ref().map(row::payload_to_row);
        self.tables.attempts.insert(key, (bytes.as_slice(), output))?;
        let latest = self.tables.steps.get((run_id, step))?.map_or(0, |found| found.value().1);
        if attempt.attempt > latest {
            self.tables.steps.insert((run_id, step), (attempt.position, attempt.attempt))?;
        }
        Ok(())
    }

    /// Writes what a decision says about the run `run_id`.
    pub(crate) fn apply(&mut self, run_id: RunId, effects: &Effects, now: Timestamp) -> Result<()> {
        for write in &effects.attempts {
            match write {
                AttemptWrite::Insert(attempt) | AttemptWrite::Update(attempt) => {
                    self.save_attempt(attempt)?;
                }
            }
        }
        if effects.open_attempts == OpenAttempts::Abandon {
            self.abandon_open_attempts(run_id, now)?;
        }
        if let Some(output) = &effects.output {
            self.tables.outputs.insert(id(run_id), row::payload_to_row(output))?;
        }
        if let Some((by, answer)) = &effects.record {
            self.wrote = true;
            self.tables.answers.insert((id(run_id), operation(*by)), answer.to_text()?.as_str())?;
        }
        if let Some(run) = &effects.run {
            self.save_run(run)?;
        }
        Ok(())
    }

    fn abandon_open_attempts(&mut self, run_id: RunId, now: Timestamp) -> Result<()> {
        let open = self.tables.open_attempts.range(attempts_of(run_id))?;
        let mut abandoned = Vec::new();
        for entry in open {
            let found = self.tables.attempts.get(entry?.0.value())?;
            let found = found.ok_or_else(Error::dangling)?;
            abandoned.push(Attempt {
                state: AttemptState::Abandoned,
                updated_at: now,
                finished_at: Some(now),
                ..row::attempt(found.value())?
            });
        }
        abandoned.iter().try_for_each(|attempt| self.save_attempt(attempt))
    }

    /// Removes a finished run with everything that belongs to it.
    pub(crate) fn remove_run(&mut self, run: &Run) -> Result<()> {
        self.wrote = true;
        self.index_for_good(run, Entry::Goes)?;
        self.index(run, Entry::Goes)?;
        let run_id = id(run.run_id);
        let after = run_id.saturating_add(1);
        let tables = &mut self.tables;
        tables.runs.remove(run_id)?;
        tables.inputs.remove(run_id)?;
        tables.outputs.remove(run_id)?;
        tables.attempts.retain_in(attempts_of(run.run_id), |_, _| false)?;
        tables.steps.retain_in((run_id, "")..(after, ""), |_, _| false)?;
        tables.answers.retain_in((run_id, 0)..(after, 0), |_, _| false)?;
        Ok(())
    }
}
