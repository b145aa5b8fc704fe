//! Many run rows in one statement: new ones, and changed ones.

use kagzi_core::{OperationId, Payload, Run, RunId, StoreError};
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::error::Fault;
use crate::rows::{Moment, micros, moment, retry_text, to_json};
use crate::statement::{Query, Tx, query};

/// A run as it is to be from now on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunWrite<'a> {
    pub(crate) run: &'a Run,
    /// Whether its attempts that are still RUNNING become ABANDONED.
    pub(crate) abandon: bool,
}

/// One array a column.
fn column<'a, T, C: FromIterator<T>>(writes: &[RunWrite<'a>], value: impl Fn(&'a Run) -> T) -> C {
    writes.iter().map(|write| value(write.run)).collect()
}

/// Writes the changeable columns of runs of one partition, whose rows the transaction has locked.
pub(crate) async fn save_runs(tx: &mut Tx<'_>, partition: i16, writes: &[RunWrite<'_>]) -> Result<(), Fault> {
    let failures: Vec<Option<String>> =
        column::<_, Result<_, StoreError>>(writes, |run| run.failure.as_ref().map(to_json).transpose())?;
    query(
        "SELECT kagzi_save_runs($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17,
             $18, $19, $20, $21)",
    )
    .bind(partition)
    .bind(column::<_, Vec<_>>(writes, |run| run.run_id.as_uuid()))
    .bind(column::<_, Vec<_>>(writes, |run| run.state.as_str()))
    .bind(column::<_, Vec<_>>(writes, |run| Moment(run.due_at)))
    .bind(column::<_, Vec<_>>(writes, |run| moment(run.deadline_at)))
    .bind(column::<_, Vec<_>>(writes, Run::claim_rank))
    .bind(column::<_, Vec<_>>(writes, |run| moment(run.attention_at())))
    .bind(column::<_, Vec<_>>(writes, |run| run.fencing_token.get()))
    .bind(column::<_, Vec<_>>(writes, |run| run.worker_id.as_ref().map(kagzi_core::WorkerId::as_str)))
    .bind(column::<_, Vec<_>>(writes, |run| moment(run.lease_expires_at)))
    .bind(column::<_, Vec<_>>(writes, |run| run.claim_operation.map(OperationId::as_uuid)))
    .bind(column::<_, Vec<_>>(writes, |run| i64::from(run.claims)))
    .bind(column::<_, Vec<_>>(writes, |run| i64::from(run.lost_leases)))
    .bind(column::<_, Vec<_>>(writes, |run| i64::from(run.failures)))
    .bind(column::<_, Vec<_>>(writes, |run| run.budget_token.get()))
    .bind(failures)
    .bind(column::<_, Vec<_>>(writes, |run| run.dead_letter.map(kagzi_core::DeadLetterReason::as_str)))
    .bind(column::<_, Vec<_>>(writes, |run| run.finish_operation.map(OperationId::as_uuid)))
    .bind(column::<_, Vec<_>>(writes, |run| Moment(run.updated_at)))
    .bind(column::<_, Vec<_>>(writes, |run| moment(run.finished_at)))
    .bind(writes.iter().map(|write| write.abandon).collect::<Vec<_>>())
    .execute(tx)
    .await?;
    Ok(())
}

/// How new runs are inserted: see `migrations/0005_cluster.sql`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Insert {
    /// By one statement.
    Plainly,
    /// By a function, which a cluster runs on the node of its partition.
    ByFunction,
}

impl Insert {
    pub(crate) const fn over(partitions: u16) -> Self {
        if partitions == 1 { Self::Plainly } else { Self::ByFunction }
    }

    const fn sql(self) -> &'static str {
        match self {
            Self::Plainly => include_str!("insert_runs.sql"),
            Self::ByFunction => {
                "SELECT run_id FROM kagzi_start($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16,
                     $17, $18, $19) AS run_id"
            }
        }
    }
}

/// The statement that inserts new runs with their inputs, and answers the ids of those that it inserted
/// ([`inserted_ids`]): a run whose id or key is there already is left out.
pub(crate) fn insert_runs(
    insert: Insert,
    partition: i16,
    new: &[(Run, &Payload)],
) -> Result<Query, StoreError> {
    let writes: Vec<RunWrite<'_>> = new.iter().map(|(run, _)| RunWrite { run, abandon: false }).collect();
    let retries: Vec<Option<String>> =
        column::<_, Result<_, StoreError>>(&writes, |run| retry_text(run.retry.as_ref()))?;
    let labels: Vec<Option<String>> = column::<_, Result<_, StoreError>>(&writes, |run| {
        (!run.labels.is_empty()).then(|| to_json(&run.labels)).transpose()
    })?;
    Ok(query(insert.sql())
        .bind(partition)
        .bind(column::<_, Vec<_>>(&writes, |run| run.run_id.as_uuid()))
        .bind(column::<_, Vec<_>>(&writes, |run| run.namespace.as_str()))
        .bind(column::<_, Vec<_>>(&writes, |run| run.queue.as_str()))
        .bind(column::<_, Vec<_>>(&writes, |run| run.workflow_type.as_str()))
        .bind(column::<_, Vec<_>>(&writes, |run| run.state.as_str()))
        .bind(column::<_, Vec<_>>(&writes, |run| i16::from(run.priority.get())))
        .bind(column::<_, Vec<_>>(&writes, |run| Moment(run.due_at)))
        .bind(column::<_, Vec<_>>(&writes, |run| moment(run.deadline_at)))
        .bind(column::<_, Vec<_>>(&writes, |run| run.run_timeout.map(micros)))
        .bind(column::<_, Vec<_>>(&writes, Run::claim_rank))
        .bind(column::<_, Vec<_>>(&writes, |run| moment(run.attention_at())))
        .bind(retries)
        .bind(column::<_, Vec<_>>(&writes, |run| {
            run.idempotency_key.as_ref().map(kagzi_core::IdempotencyKey::as_str)
        }))
        .bind(labels)
        .bind(column::<_, Vec<_>>(&writes, |run| run.trace_context.as_deref()))
        .bind(column::<_, Vec<_>>(&writes, |run| Moment(run.created_at)))
        .bind(new.iter().map(|(_, input)| input.content_type.as_str()).collect::<Vec<_>>())
        .bind(new.iter().map(|(_, input)| &input.bytes[..]).collect::<Vec<_>>()))
}

/// Reads what [`insert_runs`] answered.
pub(crate) fn inserted_ids(rows: &[PgRow]) -> Result<Vec<Uuid>, Fault> {
    rows.iter().map(|row| Ok(row.try_get("run_id")?)).collect()
}

/// Whether `run_id` is among the ids of [`inserted_ids`].
pub(crate) fn is_among(inserted: &[Uuid], run_id: RunId) -> bool {
    inserted.contains(&run_id.as_uuid())
}
