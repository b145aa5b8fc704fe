//! Runs: start, get, cancel, requeue.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use kagzi_core::decide;
use kagzi_core::{
    CancelOutcome, CancelRun, Clock as _, Namespace, Payload, RequeueOutcome, RequeueRun, Run, RunId,
    RunState, StartOutcome, StartRun, Started, StoreError, SystemClock, Timestamp,
};
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::commit::{Committer, Gathered, Verdict};
use crate::error::{Fault, MAX_TRIES, damaged};
use crate::locked::Wanted;
use crate::rows::{Moment, payload_from_row, run_columns, run_from_row};
use crate::save::{Insert, insert_runs, inserted_ids, is_among};
use crate::statement::{Tx, query};
use crate::steps::{after_fault, carefully};
use crate::{Inner, PostgresStore};

/// A statement carries at most this many new runs, and about this many bytes of input.
const MAX_ROWS: usize = 1000;
const MAX_BYTES: usize = 8 * 1024 * 1024;

impl Gathered for Arc<StartRun> {
    fn run_id(&self) -> RunId {
        StartRun::run_id(self)
    }

    fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    fn len_bytes(&self) -> usize {
        self.input.len_bytes()
    }

    type Answer = Verdict;

    fn unanswered() -> Verdict {
        // The lane had sent its batch, perhaps.
        Verdict::FateOpen
    }
}

/// Commits batches of single starts.
pub(crate) struct StartCommitter(pub(crate) Arc<Inner>);

#[async_trait]
impl Committer<Arc<StartRun>> for StartCommitter {
    async fn commit(&self, partition: i16, batch: &[Arc<StartRun>]) -> Vec<Verdict> {
        let mut tries = 1;
        let inserted = loop {
            match self.0.commit_starts(partition, batch).await {
                Ok(inserted) => break inserted,
                Err(fault) if fault.is_transient() && tries < MAX_TRIES => tries += 1,
                Err(fault) => return vec![after_fault(fault, "committing starts"); batch.len()],
            }
        };
        let done = |start: &Arc<StartRun>| {
            if inserted.contains(&start.run_id().as_uuid()) { Verdict::Done } else { Verdict::NotOrdinary }
        };
        batch.iter().map(done).collect()
    }

    fn partition_of(&self, run_id: RunId) -> i16 {
        self.0.partition(run_id)
    }
}

impl PostgresStore {
    pub(crate) async fn start_runs(&self, batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        decide::check_start_batch(&batch, &self.inner.rules)?;
        match <[StartRun; 1]>::try_from(batch) {
            Ok([start]) => Ok(vec![self.start_one(start).await?]),
            Err(batch) => self.inner.start_all(&batch).await,
        }
    }

    async fn start_one(&self, start: StartRun) -> Result<Started, StoreError> {
        let start = Arc::new(start);
        match self.starts.submit(Arc::clone(&start)).await? {
            Verdict::Done => Ok(Started { run_id: start.run_id(), outcome: StartOutcome::Created }),
            verdict => {
                let alone = self.inner.start_all(std::slice::from_ref(&*start));
                let mut started = carefully(verdict, alone).await?;
                started.pop().ok_or_else(|| damaged("a start was not answered"))
            }
        }
    }
}

impl Inner {
    pub(crate) async fn now(&self) -> Result<Timestamp, StoreError> {
        // Where a clock is given the database is not asked, which would say so.
        if self.pool.is_closed() {
            return Err(Fault::from(sqlx::Error::PoolClosed).into_store_error("asking for the time"));
        }
        self.read_now().await.map_err(|fault| fault.into_store_error("asking for the time"))
    }

    async fn read_now(&self) -> Result<Timestamp, Fault> {
        if let Some(Moment(now)) = self.clock_now() {
            return Ok(now);
        }
        let rows = self.fetch_all(query("SELECT clock_timestamp() AS now")).await?;
        let row = rows.first().ok_or_else(|| damaged("the database told no time"))?;
        Ok(row.try_get::<Moment, _>("now")?.0)
    }

    /// The time for what is started now: that of the database, asked once for many starts.
    async fn now_of_starts(&self) -> Result<Timestamp, Fault> {
        if let Some(now) = self.time_told.now().filter(|_| self.clock.is_none()) {
            return Ok(now);
        }
        let now = self.read_now().await?;
        self.time_told.note(now);
        Ok(now)
    }

    /// The time without asking the database, for hints only.
    pub(crate) fn now_roughly(&self) -> Timestamp {
        self.clock.as_ref().map_or_else(|| SystemClock.now(), |clock| clock.now())
    }

    /// Inserts single starts of one partition together; answers the ids of the runs that are new.
    async fn commit_starts(&self, partition: i16, batch: &[Arc<StartRun>]) -> Result<HashSet<Uuid>, Fault> {
        let now = self.now_of_starts().await?;
        let mut new: Vec<(Run, &Payload)> =
            batch.iter().map(|start| (decide::new_run(start, now), &start.input)).collect();
        // Two batches that bring the same keys must insert them in one order.
        new.sort_by(|(a, _), (b, _)| insertion_order(a).cmp(&insertion_order(b)));
        // One statement is a transaction of its own.
        let insert = insert_runs(Insert::over(self.partitions), partition, &new)?;
        let rows = self.write_all(insert).await?;
        let inserted: HashSet<Uuid> = inserted_ids(&rows)?.into_iter().collect();
        for (run, _) in new.iter().filter(|(run, _)| inserted.contains(&run.run_id.as_uuid())) {
            self.announce_new(run);
        }
        Ok(inserted)
    }

    fn announce_new(&self, run: &Run) {
        // To those who wait, a new run comes from nowhere: any state but PENDING will do.
        self.announce_run(run, RunState::Sleeping);
    }

    /// Starts runs, all or none, whatever is there already.
    async fn start_all(&self, batch: &[StartRun]) -> Result<Vec<Started>, StoreError> {
        let mut tries = 1;
        loop {
            // Apart, so that the futures of ordinary starts stay small.
            match Box::pin(self.start_all_once(batch)).await {
                Ok((started, new)) => {
                    for run in &new {
                        self.announce_new(run);
                    }
                    return Ok(started);
                }
                Err(fault) if fault.is_transient() && tries < MAX_TRIES => tries += 1,
                Err(fault) => return Err(fault.into_store_error("starting runs")),
            }
        }
    }

    async fn start_all_once(&self, batch: &[StartRun]) -> Result<(Vec<Started>, Vec<Run>), Fault> {
        let now = self.now_of_starts().await?;
        let mut tx = self.pool.begin().await?;
        let mut by_partition: BTreeMap<i16, Vec<usize>> = BTreeMap::new();
        for (index, start) in batch.iter().enumerate() {
            by_partition.entry(self.partition(start.run_id())).or_default().push(index);
        }
        let mut answers = vec![None; batch.len()];
        let mut created = Vec::new();
        // The first of the batch that names a run of other values, whichever partition that is in.
        let mut refused: Option<(usize, StoreError)> = None;
        for (partition, indexes) in by_partition {
            let (new, inserted) = self.insert_new(&mut tx, partition, batch, &indexes, now).await?;
            let mut first_of_run = HashSet::new();
            for index in indexes {
                let start = &batch[index];
                let run_id = start.run_id();
                if is_among(&inserted, run_id) && first_of_run.insert(run_id) {
                    answers[index] = Some(Started { run_id, outcome: StartOutcome::Created });
                    continue;
                }
                let (run, input) = find_existing(&mut tx, partition, start).await?;
                match decide::existing_run(start, &run, &input) {
                    Ok(started) => answers[index] = Some(started),
                    Err(refusal) => {
                        if refused.as_ref().is_none_or(|(first, _)| index < *first) {
                            refused = Some((index, refusal));
                        }
                        break;
                    }
                }
            }
            created.extend(new.into_iter().filter(|run| is_among(&inserted, run.run_id)));
        }
        if let Some((_, refusal)) = refused {
            // The keys of the batch must be free again before it is answered.
            tx.rollback().await?;
            return Err(refusal.into());
        }
        tx.commit().await.map_err(Fault::Committing)?;
        let answers = answers.into_iter().collect::<Option<Vec<_>>>();
        Ok((answers.ok_or_else(|| damaged("a start was not answered"))?, created))
    }

    /// Inserts those of the starts that name a run of their own; the first of several with one key or one
    /// operation wins, as if they had come one after the other.
    async fn insert_new(
        &self,
        tx: &mut Tx<'_>,
        partition: i16,
        batch: &[StartRun],
        indexes: &[usize],
        now: Timestamp,
    ) -> Result<(Vec<Run>, Vec<Uuid>), Fault> {
        let mut seen = HashSet::new();
        let mut new: Vec<(Run, &Payload)> = indexes
            .iter()
            .map(|&index| (decide::new_run(&batch[index], now), &batch[index].input))
            .filter(|(run, _)| seen.insert(run.run_id))
            .collect();
        // Stable: of two starts with one key the first stays in front.
        new.sort_by(|(a, _), (b, _)| collision_order(a).cmp(&collision_order(b)));
        let mut inserted = Vec::new();
        for piece in pieces(&new) {
            let insert = insert_runs(Insert::over(self.partitions), partition, piece)?;
            inserted.extend(inserted_ids(&insert.fetch_all(tx).await?)?);
        }
        Ok((new.into_iter().map(|(run, _)| run).collect(), inserted))
    }

    pub(crate) async fn cancel(&self, request: &CancelRun) -> Result<CancelOutcome, StoreError> {
        request.validate(&self.rules)?;
        let wanted = Wanted { recorded: Some(request.operation), ..Wanted::default() };
        self.decide("cancelling a run", (&request.namespace, request.run_id), wanted, |it| {
            decide::cancel(&it.run, it.recorded, request, it.now)
        })
        .await
    }

    pub(crate) async fn requeue(&self, request: &RequeueRun) -> Result<RequeueOutcome, StoreError> {
        let wanted = Wanted { recorded: Some(request.operation), ..Wanted::default() };
        self.decide("requeueing a run", (&request.namespace, request.run_id), wanted, |it| {
            decide::requeue(&it.run, it.recorded, request, it.now)
        })
        .await
    }
}

/// Rows that can collide, because they bring the same key, stand in one order in every batch.
fn insertion_order(run: &Run) -> (Option<(&str, &str)>, RunId) {
    (run.idempotency_key.as_ref().map(|key| (run.namespace.as_str(), key.as_str())), run.run_id)
}

/// The same, but of two starts with one key neither comes first.
fn collision_order(run: &Run) -> (Option<(&str, &str)>, Option<RunId>) {
    let (key, run_id) = insertion_order(run);
    (key, key.is_none().then_some(run_id))
}

/// The input of a run, which every run has.
pub(crate) fn input_from_row(row: &PgRow) -> Result<Payload, Fault> {
    Ok(payload_from_row(row, "input_type", "input")?.ok_or_else(|| damaged("a run without input"))?)
}

/// Cuts new runs into pieces that one statement can carry.
fn pieces<'a, 'b>(new: &'b [(Run, &'a Payload)]) -> Vec<&'b [(Run, &'a Payload)]> {
    let (mut pieces, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (index, (_, input)) in new.iter().enumerate() {
        if index > start && (index - start >= MAX_ROWS || bytes + input.len_bytes() > MAX_BYTES) {
            pieces.push(&new[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += input.len_bytes();
    }
    pieces.push(&new[start..]);
    pieces
}

/// The run that stands in the way of a start, by its id or by its key.
async fn find_existing(tx: &mut Tx<'_>, partition: i16, start: &StartRun) -> Result<(Run, Payload), Fault> {
    const SQL: &str = concat!(
        "SELECT ",
        run_columns!(),
        ", i.content_type AS input_type, i.bytes AS input
         FROM (
             (SELECT * FROM runs WHERE run_id = $1 AND partition = $2 AND namespace IS NOT DISTINCT FROM $3)
             UNION ALL
             (SELECT * FROM runs WHERE namespace = $3 AND idempotency_key = $4 AND partition = $2)
             LIMIT 1) found
         CROSS JOIN LATERAL (
             SELECT content_type, bytes FROM payloads p
             WHERE p.run_id = found.run_id AND p.slot = 'INPUT' AND p.partition = $2 OFFSET 0) i"
    );
    let row = query(SQL)
        .bind(start.run_id().as_uuid())
        .bind(partition)
        .bind(start.namespace.as_str())
        .bind(start.idempotency_key.as_ref().map(kagzi_core::IdempotencyKey::as_str))
        .fetch_optional(tx)
        .await?
        // It was deleted in the very moment; the same again will start a new one.
        .ok_or_else(|| {
            let reason = "the run that the idempotency key named was deleted just now";
            StoreError::unavailable(reason, std::time::Duration::ZERO)
        })?;
    Ok((run_from_row(&row)?, input_from_row(&row)?))
}
