//! Pausing and resuming queues.

use kagzi_core::{
    Namespace, Pause, QueueName, QueueOperations, QueueOutcome, QueueRow, SetQueueState, StoreError,
    Timestamp, Topic, decide,
};
use sqlx::Row as _;

use crate::Inner;
use crate::error::{Fault, MAX_TRIES, damaged};
use crate::rows::{Moment, moment};
use crate::statement::{Tx, query};

/// The partition whose row decides; those of the others follow it.
const FIRST: i16 = 0;

impl Inner {
    pub(crate) async fn set_queue_state(&self, request: &SetQueueState) -> Result<QueueOutcome, StoreError> {
        const CONTEXT: &str = "changing the state of a queue";
        request.validate()?;
        let _turn = self.one_by_one.turn().await.map_err(|fault| fault.into_store_error(CONTEXT))?;
        let mut tries = 1;
        loop {
            match self.set_queue_state_once(request).await {
                Ok(outcome) => return Ok(outcome),
                Err(fault) if fault.is_transient() && tries < MAX_TRIES => tries += 1,
                Err(fault) => return Err(fault.into_store_error(CONTEXT)),
            }
        }
    }

    /// The row of the first partition is locked first, so changes of one queue come one after the other.
    async fn set_queue_state_once(&self, request: &SetQueueState) -> Result<QueueOutcome, Fault> {
        let mut tx = self.pool.begin().await?;
        let (before, now) = self.lock_queue(&mut tx, request).await?;
        let decision = match decide::set_queue_state(Some(&before), request, now) {
            Ok(decision) => decision,
            Err(refusal) => {
                tx.rollback().await?;
                return Err(refusal.into());
            }
        };
        let Some(row) = decision.row else {
            tx.rollback().await?;
            return Ok(decision.answer);
        };
        for partition in self.all_partitions() {
            save(&mut tx, partition, request, &row).await?;
        }
        tx.commit().await.map_err(Fault::Committing)?;
        if row.pause.is_none() {
            self.announce_topic(Topic::Queue(request.namespace.clone(), request.queue.clone()));
        }
        Ok(decision.answer)
    }

    async fn lock_queue(
        &self,
        tx: &mut Tx<'_>,
        request: &SetQueueState,
    ) -> Result<(QueueRow, Timestamp), Fault> {
        let row = query(
            "SELECT paused_at, reason, operations, created_at, updated_at, now
             FROM kagzi_queue_lock($1, $2, $3, $4)",
        )
        .bind(FIRST)
        .bind(self.clock_now())
        .bind(request.namespace.as_str())
        .bind(request.queue.as_str())
        .fetch_optional(tx)
        .await?
        .ok_or_else(|| damaged("a queue has no row after it was made"))?;
        let since: Option<Moment> = row.try_get("paused_at")?;
        let reason: Option<String> = row.try_get("reason")?;
        let Moment(created_at) = row.try_get("created_at")?;
        let Moment(updated_at) = row.try_get("updated_at")?;
        let Moment(now) = row.try_get("now")?;
        let found = QueueRow {
            pause: since.zip(reason).map(|(Moment(since), reason)| Pause { reason, since }),
            operations: QueueOperations::from_text(row.try_get("operations")?)?,
            created_at,
            updated_at,
        };
        Ok((found, now))
    }

    /// The paused queues of a namespace.
    pub(crate) async fn read_pauses(&self, namespace: &Namespace) -> Result<Vec<(QueueName, Pause)>, Fault> {
        let paused = query("SELECT queue, paused_at, reason FROM kagzi_paused_queues($1, $2)")
            .bind(FIRST)
            .bind(namespace.as_str());
        let rows = self.scan(paused).await?;
        rows.iter()
            .map(|row| {
                let queue = QueueName::new(row.try_get::<&str, _>("queue")?)?;
                let Moment(since) = row.try_get("paused_at")?;
                Ok((queue, Pause { reason: row.try_get("reason")?, since }))
            })
            .collect()
    }
}

async fn save(tx: &mut Tx<'_>, partition: i16, request: &SetQueueState, row: &QueueRow) -> Result<(), Fault> {
    query(
        "INSERT INTO queues (namespace, queue, partition, state, paused_at, reason, operations, created_at,
             updated_at)
         VALUES ($1, $2, $3, $4::text::queue_state, $5, $6, $7, $8, $9)
         ON CONFLICT (namespace, queue, partition) DO UPDATE
         SET state = excluded.state, paused_at = excluded.paused_at, reason = excluded.reason,
             operations = excluded.operations, updated_at = excluded.updated_at",
    )
    .bind(request.namespace.as_str())
    .bind(request.queue.as_str())
    .bind(partition)
    .bind(row.state().as_str())
    .bind(moment(row.pause.as_ref().map(|pause| pause.since)))
    .bind(row.pause.as_ref().map(|pause| pause.reason.as_str()))
    .bind(row.operations.to_text()?)
    .bind(Moment(row.created_at))
    .bind(Moment(row.updated_at))
    .execute(tx)
    .await?;
    Ok(())
}
