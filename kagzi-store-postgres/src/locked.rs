//! The path that every operation can take: lock one run, load what its rule asks for, decide, write.

use kagzi_core::decide::{AttemptWrite, Decision, Effects, OpenAttempts};
use kagzi_core::{
    Attempt, Namespace, OperationId, Payload, RecordedAnswer, Run, RunId, StepId, StoreError, Timestamp,
};
use sqlx::Row as _;

use crate::Inner;
use crate::error::{Fault, MAX_TRIES};
use crate::rows::{
    Moment, attempt_columns, attempt_from_row, moment, retry_text, run_columns, run_from_row, to_json,
};
use crate::save::{RunWrite, save_runs};
use crate::statement::{Tx, query};

/// What a rule wants to know beside the run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted<'a> {
    /// This attempt of this step.
    pub(crate) attempt: Option<(&'a StepId, u32)>,
    /// The latest attempt of this step.
    pub(crate) latest: Option<&'a StepId>,
    /// The attempt of `latest`'s step that this operation began.
    pub(crate) begun_by: Option<OperationId>,
    /// How many attempts of this step have failed under the present budget.
    pub(crate) failures_of: Option<&'a StepId>,
    /// The answer that this operation was given before.
    pub(crate) recorded: Option<OperationId>,
}

/// A locked run with what was wanted.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) run: Run,
    pub(crate) now: Timestamp,
    pub(crate) attempt: Option<Attempt>,
    pub(crate) latest: Option<Attempt>,
    pub(crate) begun: Option<Attempt>,
    pub(crate) failures: u32,
    pub(crate) recorded: Option<RecordedAnswer>,
}

impl Inner {
    /// Locks a run, asks `rule`, writes what it decided, and answers once that is durable.
    pub(crate) async fn decide<T: Send>(
        &self,
        context: &'static str,
        (namespace, run_id): (&Namespace, RunId),
        wanted: Wanted<'_>,
        rule: impl Fn(Loaded) -> Result<Decision<T>, StoreError> + Send + Sync,
    ) -> Result<T, StoreError> {
        let _turn = self.one_by_one.turn().await.map_err(|fault| fault.into_store_error(context))?;
        let mut tries = 1;
        loop {
            // Apart, so that the callers' futures, most of which never come here, stay small.
            match Box::pin(self.decide_once(namespace, run_id, wanted, &rule)).await {
                Ok(answer) => return Ok(answer),
                Err(fault) if fault.is_transient() && tries < MAX_TRIES => tries += 1,
                Err(fault) => return Err(fault.into_store_error(context)),
            }
        }
    }

    async fn decide_once<T: Send>(
        &self,
        namespace: &Namespace,
        run_id: RunId,
        wanted: Wanted<'_>,
        rule: &(impl Fn(Loaded) -> Result<Decision<T>, StoreError> + Send + Sync),
    ) -> Result<T, Fault> {
        let partition = self.partition(run_id);
        let mut tx = self.pool.begin().await?;
        let loaded = self.load(&mut tx, partition, namespace, run_id, wanted).await?;
        let (before, now) = (loaded.run.clone(), loaded.now);
        let decision = match rule(loaded) {
            Ok(decision) => decision,
            Err(refusal) => {
                // The lock on the run must not outlast the answer: a claim would pass the run by.
                tx.rollback().await?;
                return Err(refusal.into());
            }
        };
        if decision.effects == Effects::default() {
            tx.rollback().await?;
            return Ok(decision.answer);
        }
        apply(&mut tx, partition, run_id, &decision.effects, now).await?;
        tx.commit().await.map_err(Fault::Committing)?;
        self.announce(&before, &decision.effects);
        Ok(decision.answer)
    }

    async fn load(
        &self,
        tx: &mut Tx<'_>,
        partition: i16,
        namespace: &Namespace,
        run_id: RunId,
        wanted: Wanted<'_>,
    ) -> Result<Loaded, Fault> {
        let (run, now) = self.lock(tx, partition, namespace, run_id).await?;
        let mut loaded =
            Loaded { run, now, attempt: None, latest: None, begun: None, failures: 0, recorded: None };
        if let Some((step_id, number)) = wanted.attempt {
            loaded.attempt = attempt(tx, partition, run_id, step_id, number).await?;
        }
        if let Some(step_id) = wanted.latest {
            loaded.latest = latest_attempt(tx, partition, run_id, step_id).await?;
        }
        if let (Some(step_id), Some(operation)) = (wanted.latest, wanted.begun_by) {
            loaded.begun = attempt_begun_by(tx, partition, run_id, step_id, operation).await?;
        }
        if let Some(step_id) = wanted.failures_of {
            loaded.failures = failures(tx, partition, &loaded.run, step_id).await?;
        }
        if let Some(operation) = wanted.recorded {
            loaded.recorded = recorded_answer(tx, partition, run_id, operation).await?;
        }
        Ok(loaded)
    }

    /// The run under a row lock, and the time.
    async fn lock(
        &self,
        tx: &mut Tx<'_>,
        partition: i16,
        namespace: &Namespace,
        run_id: RunId,
    ) -> Result<(Run, Timestamp), Fault> {
        const SQL: &str = concat!(
            "SELECT ",
            run_columns!(),
            ", COALESCE($4, clock_timestamp()) AS now FROM runs
             WHERE run_id = $1 AND partition = $2 AND namespace IS NOT DISTINCT FROM $3 FOR NO KEY UPDATE"
        );
        let row = query(SQL)
            .bind(run_id.as_uuid())
            .bind(partition)
            .bind(namespace.as_str())
            .bind(self.clock_now())
            .fetch_optional(tx)
            .await?
            .ok_or(StoreError::RunNotFound { run_id })?;
        Ok((run_from_row(&row)?, row.try_get::<Moment, _>("now")?.0))
    }
}

async fn attempt(
    tx: &mut Tx<'_>,
    partition: i16,
    run_id: RunId,
    step_id: &StepId,
    number: u32,
) -> Result<Option<Attempt>, Fault> {
    const SQL: &str = concat!(
        "SELECT ",
        attempt_columns!(),
        " FROM steps WHERE run_id = $1 AND step_id = $2 AND attempt = $3 AND partition = $4"
    );
    let row = query(SQL)
        .bind(run_id.as_uuid())
        .bind(step_id.as_str())
        .bind(i64::from(number))
        .bind(partition)
        .fetch_optional(tx)
        .await?;
    row.as_ref().map(attempt_from_row).transpose()
}

async fn latest_attempt(
    tx: &mut Tx<'_>,
    partition: i16,
    run_id: RunId,
    step_id: &StepId,
) -> Result<Option<Attempt>, Fault> {
    const SQL: &str = concat!(
        "SELECT ",
        attempt_columns!(),
        " FROM steps WHERE run_id = $1 AND step_id = $2 AND partition = $3 ORDER BY attempt DESC LIMIT 1"
    );
    let row =
        query(SQL).bind(run_id.as_uuid()).bind(step_id.as_str()).bind(partition).fetch_optional(tx).await?;
    row.as_ref().map(attempt_from_row).transpose()
}

async fn attempt_begun_by(
    tx: &mut Tx<'_>,
    partition: i16,
    run_id: RunId,
    step_id: &StepId,
    operation: OperationId,
) -> Result<Option<Attempt>, Fault> {
    const SQL: &str = concat!(
        "SELECT ",
        attempt_columns!(),
        " FROM steps WHERE run_id = $1 AND step_id = $2 AND partition = $3 AND begin_operation = $4"
    );
    let row = query(SQL)
        .bind(run_id.as_uuid())
        .bind(step_id.as_str())
        .bind(partition)
        .bind(operation.as_uuid())
        .fetch_optional(tx)
        .await?;
    row.as_ref().map(attempt_from_row).transpose()
}

/// How many attempts of a step have failed since the run was last requeued.
pub(crate) async fn failures(
    tx: &mut Tx<'_>,
    partition: i16,
    run: &Run,
    step_id: &StepId,
) -> Result<u32, Fault> {
    let row = query(
        "SELECT count(*) AS failures FROM steps
         WHERE run_id = $1 AND step_id = $2 AND partition = $3 AND state = 'FAILED' AND fencing_token > $4",
    )
    .bind(run.run_id.as_uuid())
    .bind(step_id.as_str())
    .bind(partition)
    .bind(run.budget_token.get())
    .fetch_one(tx)
    .await?;
    Ok(u32::try_from(row.try_get::<i64, _>("failures")?).unwrap_or(u32::MAX))
}

async fn recorded_answer(
    tx: &mut Tx<'_>,
    partition: i16,
    run_id: RunId,
    operation: OperationId,
) -> Result<Option<RecordedAnswer>, Fault> {
    let row =
        query("SELECT answer FROM operations WHERE run_id = $1 AND operation_id = $2 AND partition = $3")
            .bind(run_id.as_uuid())
            .bind(operation.as_uuid())
            .bind(partition)
            .fetch_optional(tx)
            .await?;
    row.map(|row| Ok(RecordedAnswer::from_text(row.try_get("answer")?)?)).transpose()
}

/// Writes what an operation on one run decided.
pub(crate) async fn apply(
    tx: &mut Tx<'_>,
    partition: i16,
    run_id: RunId,
    effects: &Effects,
    now: Timestamp,
) -> Result<(), Fault> {
    apply_attempts(tx, partition, &effects.attempts).await?;
    let abandon = effects.open_attempts == OpenAttempts::Abandon;
    match &effects.run {
        Some(run) => save_runs(tx, partition, &[RunWrite { run, abandon }]).await?,
        None if abandon => {
            return Err(StoreError::Internal {
                context: "writing what a rule decided",
                detail: "attempts are abandoned without a change of their run".to_owned(),
            }
            .into());
        }
        None => {}
    }
    if let Some(output) = &effects.output {
        save_output(tx, partition, run_id, output, now).await?;
    }
    if let Some((operation, answer)) = &effects.record {
        record(tx, partition, run_id, *operation, *answer, now).await?;
    }
    Ok(())
}

/// Writes the attempts that an operation adds or changes.
pub(crate) async fn apply_attempts(
    tx: &mut Tx<'_>,
    partition: i16,
    writes: &[AttemptWrite],
) -> Result<(), Fault> {
    for write in writes {
        match write {
            AttemptWrite::Insert(attempt) => insert_attempt(tx, partition, attempt).await?,
            AttemptWrite::Update(attempt) => update_attempt(tx, partition, attempt).await?,
        }
    }
    Ok(())
}

/// The moment at which a reaper must look at an attempt: its deadline, while it runs.
fn attention_at(attempt: &Attempt) -> Option<Moment> {
    moment(attempt.deadline_at.filter(|_| attempt.state == kagzi_core::AttemptState::Running))
}

async fn insert_attempt(tx: &mut Tx<'_>, partition: i16, attempt: &Attempt) -> Result<(), Fault> {
    query(
        "INSERT INTO steps (run_id, step_id, attempt, partition, position, kind, state, fencing_token,
             worker_id, retry, deadline_at, attention_at, begin_operation, end_operation, output_type, output,
             failure, created_at, updated_at, finished_at)
         VALUES ($1, $2, $3, $4, $5, $6::text::step_kind, $7::text::attempt_state, $8, $9, $10, $11, $12, $13,
             $14, $15, $16, $17, $18, $19, $20)",
    )
    .bind(attempt.run_id.as_uuid())
    .bind(attempt.step_id.as_str())
    .bind(i32::try_from(attempt.attempt).unwrap_or(i32::MAX))
    .bind(partition)
    .bind(i32::try_from(attempt.position).unwrap_or(i32::MAX))
    .bind(attempt.kind.as_str())
    .bind(attempt.state.as_str())
    .bind(attempt.fencing_token.get())
    .bind(attempt.worker_id.as_str())
    .bind(retry_text(attempt.retry.as_ref())?)
    .bind(moment(attempt.deadline_at))
    .bind(attention_at(attempt))
    .bind(attempt.begin_operation.as_uuid())
    .bind(attempt.end_operation.map(OperationId::as_uuid))
    .bind(attempt.output.as_ref().map(|output| output.content_type.as_str()))
    .bind(attempt.output.as_ref().map(|output| &output.bytes[..]))
    .bind(attempt.failure.as_ref().map(to_json).transpose()?)
    .bind(Moment(attempt.created_at))
    .bind(Moment(attempt.updated_at))
    .bind(moment(attempt.finished_at))
    .execute(tx)
    .await?;
    Ok(())
}

async fn update_attempt(tx: &mut Tx<'_>, partition: i16, attempt: &Attempt) -> Result<(), Fault> {
    query(
        "UPDATE steps SET state = $5::text::attempt_state, attention_at = $6, end_operation = $7,
             output_type = $8, output = $9, failure = $10, updated_at = $11, finished_at = $12
         WHERE run_id = $1 AND step_id = $2 AND attempt = $3 AND partition = $4",
    )
    .bind(attempt.run_id.as_uuid())
    .bind(attempt.step_id.as_str())
    .bind(i64::from(attempt.attempt))
    .bind(partition)
    .bind(attempt.state.as_str())
    .bind(attention_at(attempt))
    .bind(attempt.end_operation.map(OperationId::as_uuid))
    .bind(attempt.output.as_ref().map(|output| output.content_type.as_str()))
    .bind(attempt.output.as_ref().map(|output| &output.bytes[..]))
    .bind(attempt.failure.as_ref().map(to_json).transpose()?)
    .bind(Moment(attempt.updated_at))
    .bind(moment(attempt.finished_at))
    .execute(tx)
    .await?;
    Ok(())
}

async fn save_output(
    tx: &mut Tx<'_>,
    partition: i16,
    run_id: RunId,
    output: &Payload,
    now: Timestamp,
) -> Result<(), Fault> {
    query(
        "INSERT INTO payloads (run_id, slot, partition, content_type, bytes, created_at, updated_at)
         VALUES ($1, 'OUTPUT', $2, $3, $4, $5, $5)
         ON CONFLICT (run_id, slot, partition)
         DO UPDATE SET content_type = $3, bytes = $4, updated_at = $5",
    )
    .bind(run_id.as_uuid())
    .bind(partition)
    .bind(output.content_type.as_str())
    .bind(&output.bytes[..])
    .bind(Moment(now))
    .execute(tx)
    .await?;
    Ok(())
}

async fn record(
    tx: &mut Tx<'_>,
    partition: i16,
    run_id: RunId,
    operation: OperationId,
    answer: RecordedAnswer,
    now: Timestamp,
) -> Result<(), Fault> {
    query(
        "INSERT INTO operations (run_id, operation_id, partition, answer, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $5)",
    )
    .bind(run_id.as_uuid())
    .bind(operation.as_uuid())
    .bind(partition)
    .bind(answer.to_text()?)
    .bind(Moment(now))
    .execute(tx)
    .await?;
    Ok(())
}
