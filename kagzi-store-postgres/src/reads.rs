//! Reading runs: those that are asked for at the same time are read together.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use kagzi_core::{Namespace, RunId, RunRecord, RunState, StoreError};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::commit::{Committer, Gathered};
use crate::error::{Fault, MAX_TRIES};
use crate::rows::{payload_from_row, run_columns, run_from_row};
use crate::runs::input_from_row;
use crate::statement::query;
use crate::{Inner, PostgresStore};

/// Runs that are read together hold at most so much payload; the others are read alone.
const MAX_BYTES: i64 = 4 * 1024 * 1024;

/// A run that somebody wants to read. It is looked up after it was asked for, so that whatever was
/// acknowledged by then is seen.
#[derive(Clone, Debug)]
pub(crate) struct ReadRun {
    namespace: Namespace,
    run_id: RunId,
}

/// What was read, or nothing: then the run has to be read alone.
type Read = Option<Result<RunRecord, StoreError>>;

impl Gathered for ReadRun {
    fn run_id(&self) -> RunId {
        self.run_id
    }

    fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    fn len_bytes(&self) -> usize {
        0
    }

    type Answer = Read;

    fn unanswered() -> Read {
        None
    }
}

/// Reads batches of runs.
pub(crate) struct Reader(pub(crate) Arc<Inner>);

#[async_trait]
impl Committer<ReadRun> for Reader {
    async fn commit(&self, partition: i16, batch: &[ReadRun]) -> Vec<Read> {
        let mut tries = 1;
        let mut found = loop {
            match self.0.read_together(partition, batch).await {
                Ok(found) => break found,
                Err(fault) if fault.is_transient() && tries < MAX_TRIES => tries += 1,
                Err(fault) => {
                    let error = fault.into_store_error("reading runs");
                    return batch.iter().map(|_| Some(Err(error.clone()))).collect();
                }
            }
        };
        let missing = |run_id| Some(Err(StoreError::RunNotFound { run_id }));
        batch.iter().map(|one| found.remove(&one.run_id).unwrap_or_else(|| missing(one.run_id))).collect()
    }

    fn partition_of(&self, run_id: RunId) -> i16 {
        self.0.partition(run_id)
    }
}

impl PostgresStore {
    pub(crate) async fn read_run(
        &self,
        namespace: &Namespace,
        run_id: RunId,
    ) -> Result<RunRecord, StoreError> {
        let read = ReadRun { namespace: namespace.clone(), run_id };
        match self.reads.submit(read.clone()).await? {
            Some(answer) => answer,
            None => self.inner.read_alone(read).await,
        }
    }
}

impl Inner {
    async fn read_alone(&self, read: ReadRun) -> Result<RunRecord, StoreError> {
        let run_id = read.run_id;
        let turn = self.reads.turn_alone().await.map_err(|fault| fault.into_store_error("reading a run"))?;
        let found = self.read_together(self.partition(run_id), &[read]).await;
        let mut found = found.map_err(|fault| fault.into_store_error("reading a run"))?;
        drop(turn);
        found.remove(&run_id).flatten().unwrap_or(Err(StoreError::RunNotFound { run_id }))
    }

    /// Reads runs of one partition, no two of them the same. Those that are not there are left out.
    async fn read_together(&self, partition: i16, batch: &[ReadRun]) -> Result<HashMap<RunId, Read>, Fault> {
        const SQL: &str = concat!(
            "SELECT ",
            run_columns!(),
            ", fits, input_type, CASE WHEN fits THEN input END AS input,
             output_type, CASE WHEN fits THEN output END AS output
             FROM (
                 SELECT runs.*, i.content_type AS input_type, i.bytes AS input,
                     o.content_type AS output_type, o.bytes AS output,
                     u.i = 1 OR sum(octet_length(i.bytes)::bigint + COALESCE(octet_length(o.bytes), 0))
                         OVER (ORDER BY u.i) <= $4 AS fits
                 FROM UNNEST($1::uuid[], $3::text[]) WITH ORDINALITY AS u(id, of_namespace, i)
                 CROSS JOIN LATERAL (
                     SELECT * FROM runs r
                     WHERE r.run_id = u.id AND r.partition = $2
                       AND r.namespace IS NOT DISTINCT FROM u.of_namespace OFFSET 0) runs
                 CROSS JOIN LATERAL (
                     SELECT content_type, bytes FROM payloads p
                     WHERE p.run_id = u.id AND p.slot = 'INPUT' AND p.partition = $2 OFFSET 0) i
                 LEFT JOIN LATERAL (
                     SELECT content_type, bytes FROM payloads p
                     WHERE p.run_id = u.id AND p.slot = 'OUTPUT' AND p.partition = $2 OFFSET 0) o ON true
             ) found"
        );
        let read = query(SQL)
            .bind(batch.iter().map(|one| one.run_id.as_uuid()).collect::<Vec<_>>())
            .bind(partition)
            .bind(batch.iter().map(|one| one.namespace.as_str()).collect::<Vec<_>>())
            .bind(MAX_BYTES);
        let rows = self.fetch_all(read).await?;
        rows.iter().map(|row| Ok((RunId::from_uuid(row.try_get("run_id")?)?, record_from_row(row)))).collect()
    }
}

/// One run that cannot be read, because its row is damaged, does not keep the others from being read.
fn record_from_row(row: &PgRow) -> Read {
    let record = || {
        if !row.try_get::<bool, _>("fits")? {
            return Ok(None);
        }
        let run = run_from_row(row)?;
        let output = if run.state == RunState::Completed {
            payload_from_row(row, "output_type", "output")?
        } else {
            None
        };
        Ok(Some(RunRecord { run, input: input_from_row(row)?, output }))
    };
    record().map_err(|fault: Fault| fault.into_store_error("reading a run")).transpose()
}
