//! Writing: what a decision says, into rows.

use std::sync::Arc;

use kagzi_core::decide::{AttemptWrite, Effects, OpenAttempts};
use kagzi_core::{
    Attempt, DeadLetterReason, IdempotencyKey, OperationId, Payload, RecordedAnswer, Run, RunId, StepId,
    Timestamp, WorkerId,
};
use rusqlite::params;

use crate::commit::Tx;
use crate::error::Error;
use crate::held::History;
use crate::rows::{Columns, all, bytes, execute, json, micros};

const INSERT_RUN: &str = "\
    INSERT INTO runs (run_id, namespace, queue, workflow_type, state, priority, due_at, claim_rank, \
        attention_at, deadline_at, run_timeout, fencing_token, claims, lost_leases, failures, budget_token, \
        created_at, updated_at, idempotency_key, trace_context, retry, labels) \
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22) \
    ON CONFLICT DO NOTHING";

/// What an operation can change about a run. Columns that never change are left out, so that their
/// indexes are not touched.
pub(crate) const UPDATE_RUN: &str = "\
    UPDATE runs SET state = ?2, due_at = ?3, claim_rank = ?4, attention_at = ?5, deadline_at = ?6, \
        fencing_token = ?7, worker_id = ?8, lease_expires_at = ?9, claim_operation = ?10, claims = ?11, \
        lost_leases = ?12, failures = ?13, budget_token = ?14, finish_operation = ?15, dead_letter = ?16, \
        updated_at = ?17, finished_at = ?18, failure = ?19 \
    WHERE run_id = ?1 AND partition = 0";

/// A heartbeat changes less: the index over claims stays as it is.
pub(crate) const EXTEND_LEASE: &str = "\
    UPDATE runs SET lease_expires_at = ?2, attention_at = ?3, updated_at = ?4 \
    WHERE run_id = ?1 AND partition = 0";

const INSERT_PAYLOAD: &str = "\
    INSERT INTO payloads (run_id, slot, created_at, updated_at, content_type, bytes) \
    VALUES (?1, ?2, ?3, ?3, ?4, ?5)";

const INSERT_ATTEMPT: &str = "\
    INSERT INTO steps (run_id, step_id, attempt, position, kind, state, fencing_token, worker_id, deadline_at, \
        begin_operation, end_operation, created_at, updated_at, finished_at, retry, output_type, output, failure) \
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)";

/// What can change about an attempt: how it ended.
pub(crate) const UPDATE_ATTEMPT: &str = "\
    UPDATE steps SET state = ?4, end_operation = ?5, updated_at = ?6, finished_at = ?7, output_type = ?8, \
        output = ?9, failure = ?10 \
    WHERE run_id = ?1 AND step_id = ?2 AND attempt = ?3 AND partition = 0";

/// First read, then written one by one: most leases end with no attempt open, and an update of a range
/// would build a table of its own each time to find that out.
pub(crate) const OPEN_ATTEMPTS: &str =
    "SELECT step_id, attempt FROM steps WHERE run_id = ?1 AND partition = 0 AND state = 'RUNNING'";

pub(crate) const ABANDON_ATTEMPT: &str = "\
    UPDATE steps SET state = 'ABANDONED', updated_at = ?4, finished_at = ?4 \
    WHERE run_id = ?1 AND step_id = ?2 AND attempt = ?3 AND partition = 0";

const INSERT_OPERATION: &str = "\
    INSERT INTO operations (run_id, operation_id, answer, created_at, updated_at) VALUES (?1, ?2, ?3, ?4, ?4)";

/// A payload's place beside its run.
#[derive(Clone, Copy)]
pub(crate) enum Slot {
    Input,
    Output,
}

impl Slot {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Input => "INPUT",
            Self::Output => "OUTPUT",
        }
    }
}

/// Whether a new run was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inserted {
    Yes,
    /// A run of its id or its key is there already.
    Not,
}

impl Tx<'_> {
    /// Writes what a decision about the run `run_id` says.
    pub(crate) fn apply(&mut self, run_id: RunId, effects: Effects) -> Result<(), Error> {
        for write in &effects.attempts {
            match write {
                AttemptWrite::Insert(attempt) => self.insert_attempt(attempt)?,
                AttemptWrite::Update(attempt) => self.update_attempt(attempt)?,
            }
        }
        if effects.open_attempts == OpenAttempts::Abandon {
            self.abandon_attempts(run_id)?;
        }
        if let Some(run) = effects.run {
            self.update_run(Arc::new(run), History::Unseen)?;
        }
        if let Some(output) = &effects.output {
            self.insert_payload(run_id, Slot::Output, output)?;
        }
        if let Some((operation, answer)) = effects.record {
            self.insert_operation(run_id, operation, answer)?;
        }
        Ok(())
    }

    /// Comes with the end of a lease, so the run is forgotten right after.
    fn abandon_attempts(&self, run_id: RunId) -> Result<(), Error> {
        if self.held.nothing_open(run_id) {
            return Ok(());
        }
        let run_id = bytes(run_id.as_uuid());
        let open = all(self.connection, OPEN_ATTEMPTS, params![run_id], |row| {
            let mut columns = Columns::new(row);
            Ok((columns.name::<StepId>()?, columns.count()?))
        })?;
        for (step_id, attempt) in open {
            let now = self.now.as_micros();
            execute(self.connection, ABANDON_ATTEMPT, params![run_id, step_id.as_str(), attempt, now])?;
        }
        Ok(())
    }

    /// Writes a new run with its input, unless its id or its key names one already: then nothing.
    pub(crate) fn insert_run(&mut self, run: &Run, input: &Payload) -> Result<Inserted, Error> {
        let labels = if run.labels.is_empty() { None } else { Some(json(&run.labels)?) };
        let rows = execute(
            self.connection,
            INSERT_RUN,
            params![
                bytes(run.run_id.as_uuid()),
                run.namespace.as_str(),
                run.queue.as_str(),
                run.workflow_type.as_str(),
                run.state.as_str(),
                run.priority.get(),
                run.due_at.as_micros(),
                run.claim_rank(),
                run.attention_at().map(Timestamp::as_micros),
                run.deadline_at.map(Timestamp::as_micros),
                run.run_timeout.map(micros),
                run.fencing_token.get(),
                run.claims,
                run.lost_leases,
                run.failures,
                run.budget_token.get(),
                run.created_at.as_micros(),
                run.updated_at.as_micros(),
                run.idempotency_key.as_ref().map(IdempotencyKey::as_str),
                run.trace_context,
                run.retry.as_ref().map(json).transpose()?,
                labels,
            ],
        )?;
        if rows == 0 {
            return Ok(Inserted::Not);
        }
        self.note_run(run);
        self.insert_payload(run.run_id, Slot::Input, input)?;
        Ok(Inserted::Yes)
    }

    /// Writes a run's row, whatever changed about it.
    pub(crate) fn update_run(&mut self, run: Arc<Run>, history: History) -> Result<(), Error> {
        execute(
            self.connection,
            UPDATE_RUN,
            params![
                bytes(run.run_id.as_uuid()),
                run.state.as_str(),
                run.due_at.as_micros(),
                run.claim_rank(),
                run.attention_at().map(Timestamp::as_micros),
                run.deadline_at.map(Timestamp::as_micros),
                run.fencing_token.get(),
                run.worker_id.as_ref().map(WorkerId::as_str),
                run.lease_expires_at.map(Timestamp::as_micros),
                run.claim_operation.map(|operation| bytes(operation.as_uuid())),
                run.claims,
                run.lost_leases,
                run.failures,
                run.budget_token.get(),
                run.finish_operation.map(|operation| bytes(operation.as_uuid())),
                run.dead_letter.map(DeadLetterReason::as_str),
                run.updated_at.as_micros(),
                run.finished_at.map(Timestamp::as_micros),
                run.failure.as_ref().map(json).transpose()?,
            ],
        )?;
        self.note_run(&run);
        self.held.note_run(run, history);
        Ok(())
    }

    fn note_run(&mut self, run: &Run) {
        self.wakes.note_run(run);
        if let Some(at) = run.attention_at() {
            self.held.note_attention(at);
        }
    }

    /// Writes a run's row after a heartbeat.
    pub(crate) fn extend_lease(&mut self, run: Run) -> Result<(), Error> {
        execute(
            self.connection,
            EXTEND_LEASE,
            params![
                bytes(run.run_id.as_uuid()),
                run.lease_expires_at.map(Timestamp::as_micros),
                run.attention_at().map(Timestamp::as_micros),
                run.updated_at.as_micros(),
            ],
        )?;
        self.held.note_run(Arc::new(run), History::Unseen);
        Ok(())
    }

    fn insert_payload(&self, run_id: RunId, slot: Slot, payload: &Payload) -> Result<(), Error> {
        execute(
            self.connection,
            INSERT_PAYLOAD,
            params![
                bytes(run_id.as_uuid()),
                slot.as_str(),
                self.now.as_micros(),
                payload.content_type.as_str(),
                &payload.bytes[..],
            ],
        )?;
        Ok(())
    }

    fn insert_attempt(&mut self, attempt: &Attempt) -> Result<(), Error> {
        execute(
            self.connection,
            INSERT_ATTEMPT,
            params![
                bytes(attempt.run_id.as_uuid()),
                attempt.step_id.as_str(),
                attempt.attempt,
                attempt.position,
                attempt.kind.as_str(),
                attempt.state.as_str(),
                attempt.fencing_token.get(),
                attempt.worker_id.as_str(),
                attempt.deadline_at.map(Timestamp::as_micros),
                bytes(attempt.begin_operation.as_uuid()),
                attempt.end_operation.map(|operation| bytes(operation.as_uuid())),
                attempt.created_at.as_micros(),
                attempt.updated_at.as_micros(),
                attempt.finished_at.map(Timestamp::as_micros),
                attempt.retry.as_ref().map(json).transpose()?,
                attempt.output.as_ref().map(|output| output.content_type.as_str()),
                attempt.output.as_ref().map(|output| &output.bytes[..]),
                attempt.failure.as_ref().map(json).transpose()?,
            ],
        )?;
        if let Some(at) = attempt.deadline_at {
            self.wakes.note_deadline(at);
        }
        self.held.note_attempt(attempt);
        Ok(())
    }

    fn update_attempt(&mut self, attempt: &Attempt) -> Result<(), Error> {
        execute(
            self.connection,
            UPDATE_ATTEMPT,
            params![
                bytes(attempt.run_id.as_uuid()),
                attempt.step_id.as_str(),
                attempt.attempt,
                attempt.state.as_str(),
                attempt.end_operation.map(|operation| bytes(operation.as_uuid())),
                attempt.updated_at.as_micros(),
                attempt.finished_at.map(Timestamp::as_micros),
                attempt.output.as_ref().map(|output| output.content_type.as_str()),
                attempt.output.as_ref().map(|output| &output.bytes[..]),
                attempt.failure.as_ref().map(json).transpose()?,
            ],
        )?;
        self.held.note_attempt(attempt);
        Ok(())
    }

    fn insert_operation(
        &self,
        run_id: RunId,
        operation: OperationId,
        answer: RecordedAnswer,
    ) -> Result<(), Error> {
        execute(
            self.connection,
            INSERT_OPERATION,
            params![
                bytes(run_id.as_uuid()),
                bytes(operation.as_uuid()),
                answer.to_text()?,
                self.now.as_micros()
            ],
        )?;
        Ok(())
    }
}
