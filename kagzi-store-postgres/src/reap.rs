//! What time did: sweeps before claims, reaping, the next due moment, and removing finished runs.

use std::collections::{BTreeMap, HashSet};

use kagzi_core::decide::{self, Overdue, Progress};
use kagzi_core::{
    Attempt, DeleteFinished, MoreDue, Namespace, NextDue, QueueName, Reaped, Run, RunId, RunState,
    StoreError, Timestamp,
};
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::Inner;
use crate::error::{Fault, MAX_TRIES};
use crate::locked::{apply, failures};
use crate::rows::{Moment, attempt_columns, attempt_from_row, run_columns, run_from_row};
use crate::save::{RunWrite, save_runs};
use crate::statement::{Tx, query};

/// How many runs one transaction of a sweep or a reap treats at most.
const PIECE: u32 = 500;

/// Which runs to look at.
#[derive(Clone, Copy)]
enum Within<'a> {
    Everywhere,
    Queues(&'a Namespace, &'a [QueueName]),
}

/// What is due first, over all partitions: how many runs and how many attempts in each.
#[derive(Clone, Copy, Default)]
struct Share {
    runs: u32,
    attempts: u32,
}

impl Inner {
    /// Puts overdue runs of some queues in order, so that a claim finds them.
    pub(crate) async fn sweep(
        &self,
        partition: i16,
        namespace: &Namespace,
        queues: &[QueueName],
        limit: u32,
    ) -> Result<(), StoreError> {
        let Some(turn) = self.sweeps.turn(partition, namespace).await else { return Ok(()) };
        let within = Within::Queues(namespace, queues);
        let mut reaped = Reaped::default();
        let repaired = self.repair(partition, within, limit, &mut reaped).await;
        // What was repaired before an error is durable: a piece is a transaction.
        self.counters.swept(&reaped);
        match repaired {
            Err(fault) if fault.is_locked() => {
                tracing::warn!("another server's sweep is stuck; claims go without one until it ends");
                turn.found_stuck();
                Ok(())
            }
            swept => {
                let failed = swept.err().map(|fault| fault.into_store_error("repairing overdue runs"));
                done_in_part(reaped.total() > 0, failed).map(|_| ())
            }
        }
    }

    pub(crate) async fn reap(&self, limit: u32) -> Result<Reaped, StoreError> {
        decide::check_reap(limit)?;
        let mut reaped = Reaped::default();
        loop {
            let before = reaped.total();
            let shares = match self.shares_due(limit - before).await {
                Ok(shares) => shares,
                Err(fault) => {
                    done_in_part(before > 0, Some(fault.into_store_error("looking for what is due")))?;
                    reaped.more = MoreDue::Maybe;
                    return Ok(reaped);
                }
            };
            let mut failed = None;
            for (partition, share) in shares {
                // Trouble in one partition is no reason to leave the others.
                let repaired = self
                    .repair(partition, Within::Everywhere, share.runs, &mut reaped)
                    .await
                    .map_err(|fault| fault.into_store_error("repairing overdue runs"));
                let timed_out = self.time_out_attempts(partition, share.attempts, &mut reaped).await;
                failed = failed.or(repaired.err()).or(timed_out.err());
            }
            let cut_short = done_in_part(reaped.total() > 0, failed)?;
            if reaped.total() >= limit || cut_short {
                reaped.more = MoreDue::Maybe;
                return Ok(reaped);
            }
            // Nothing is due any more, or others hold what is and treat it.
            if reaped.total() == before {
                return Ok(reaped);
            }
        }
    }

    /// The `limit` moments that have come longest ago, counted by partition and kind: what
    /// [`decide::shares_of_a_reap`] says, over partitions.
    async fn shares_due(&self, limit: u32) -> Result<BTreeMap<i16, Share>, Fault> {
        let answers = self.ask_present(|partition| self.moments_due(partition, limit)).await?;
        let mut moments: Vec<(i64, bool, i16)> =
            answers.given.into_iter().flat_map(|(_, moments)| moments).collect();
        moments.sort_unstable();
        let mut shares: BTreeMap<i16, Share> = BTreeMap::new();
        for (_, is_attempt, partition) in moments.into_iter().take(limit as usize) {
            let share = shares.entry(partition).or_default();
            if is_attempt { share.attempts += 1 } else { share.runs += 1 }
        }
        Ok(shares)
    }

    /// The `limit` of one partition, with whether each is of an attempt.
    async fn moments_due(&self, partition: i16, limit: u32) -> Result<Vec<(i64, bool, i16)>, Fault> {
        let query = query("SELECT attention_at, is_attempt FROM kagzi_moments_due($1, $2, $3)")
            .bind(partition)
            .bind(self.clock_now())
            .bind(i64::from(limit));
        let rows = self.fetch_all(query).await?;
        rows.iter()
            .map(|row| {
                let Moment(at) = row.try_get("attention_at")?;
                Ok((at.as_micros(), row.try_get("is_attempt")?, partition))
            })
            .collect()
    }

    /// Repairs up to `limit` overdue runs of one partition, in pieces, each whole or not at all.
    async fn repair(
        &self,
        partition: i16,
        within: Within<'_>,
        limit: u32,
        reaped: &mut Reaped,
    ) -> Result<(), Fault> {
        let mut left = limit;
        let mut tries = 1;
        while left > 0 {
            let piece = left.min(PIECE);
            match self.repair_piece(partition, within, piece).await {
                Ok(repaired) => {
                    let count = u32::try_from(repaired.len()).unwrap_or(u32::MAX);
                    for (before, overdue) in &repaired {
                        reaped.count(overdue.kind);
                        self.announce(before, &overdue.effects);
                    }
                    if count < piece {
                        return Ok(());
                    }
                    left = left.saturating_sub(count);
                    tries = 1;
                }
                Err(fault) if fault.is_transient() && tries < MAX_TRIES => tries += 1,
                Err(fault) => return Err(fault),
            }
        }
        Ok(())
    }

    async fn repair_piece(
        &self,
        partition: i16,
        within: Within<'_>,
        limit: u32,
    ) -> Result<Vec<(Run, Overdue)>, Fault> {
        let mut tx = self.pool.begin().await?;
        let locked = self.lock_overdue(&mut tx, partition, within, limit).await?;
        let progressed = progressed(&mut tx, partition, &locked).await?;
        let repaired: Vec<(Run, Overdue)> = locked
            .into_iter()
            .filter_map(|(run, now)| {
                let progress = if progressed.contains(&run.run_id) { Progress::Made } else { Progress::None };
                let overdue = decide::overdue(&run, progress, &self.rules, now)?;
                Some((run, overdue))
            })
            .collect();
        let writes: Vec<RunWrite<'_>> = repaired
            .iter()
            .filter_map(|(_, overdue)| {
                let abandon = overdue.effects.open_attempts == decide::OpenAttempts::Abandon;
                overdue.effects.run.as_ref().map(|run| RunWrite { run, abandon })
            })
            .collect();
        if !writes.is_empty() {
            save_runs(&mut tx, partition, &writes).await?;
        }
        tx.commit().await.map_err(Fault::Committing)?;
        Ok(repaired)
    }

    async fn lock_overdue(
        &self,
        tx: &mut Tx<'_>,
        partition: i16,
        within: Within<'_>,
        limit: u32,
    ) -> Result<Vec<(Run, Timestamp)>, Fault> {
        const SQL: &str = concat!(
            "SELECT ",
            run_columns!(),
            ", COALESCE($2, clock_timestamp()) AS now FROM kagzi_overdue($1, $2, $3, $4, $5)"
        );
        let (namespace, queues) = match within {
            Within::Everywhere => (None, None),
            Within::Queues(namespace, queues) => (
                Some(namespace.as_str()),
                Some(queues.iter().map(kagzi_core::QueueName::as_str).collect::<Vec<_>>()),
            ),
        };
        let rows = query(SQL)
            .bind(partition)
            .bind(self.clock_now())
            .bind(namespace)
            .bind(queues)
            .bind(i32::try_from(limit).unwrap_or(i32::MAX))
            .fetch_all(tx)
            .await?;
        rows.iter().map(run_and_now).collect()
    }

    /// Fails up to `limit` attempts whose timeout has passed.
    async fn time_out_attempts(
        &self,
        partition: i16,
        limit: u32,
        reaped: &mut Reaped,
    ) -> Result<(), StoreError> {
        if limit == 0 {
            return Ok(());
        }
        let mut tries = 1;
        let repaired = loop {
            match self.time_out_once(partition, limit).await {
                Ok(repaired) => break repaired,
                Err(fault) if fault.is_transient() && tries < MAX_TRIES => tries += 1,
                Err(fault) => return Err(fault.into_store_error("timing out steps")),
            }
        };
        for (before, overdue) in &repaired {
            reaped.count(overdue.kind);
            self.announce(before, &overdue.effects);
        }
        Ok(())
    }

    async fn time_out_once(&self, partition: i16, limit: u32) -> Result<Vec<(Run, Overdue)>, Fault> {
        let mut tx = self.pool.begin().await?;
        let mut repaired = Vec::new();
        for (run, now) in self.lock_with_timed_out_attempts(&mut tx, partition, limit).await? {
            let Some(attempt) = longest_overdue(&mut tx, partition, &run, now).await? else { continue };
            let failed_before = failures(&mut tx, partition, &run, &attempt.step_id).await?;
            let Some(overdue) = decide::step_overdue(&run, &attempt, failed_before, &self.rules, now) else {
                continue;
            };
            apply(&mut tx, partition, run.run_id, &overdue.effects, now).await?;
            repaired.push((run, overdue));
        }
        tx.commit().await.map_err(Fault::Committing)?;
        Ok(repaired)
    }

    async fn lock_with_timed_out_attempts(
        &self,
        tx: &mut Tx<'_>,
        partition: i16,
        limit: u32,
    ) -> Result<Vec<(Run, Timestamp)>, Fault> {
        const SQL: &str = concat!(
            "SELECT ",
            run_columns!(),
            ", COALESCE($2, clock_timestamp()) AS now
             FROM (
                 SELECT s.run_id AS id FROM steps s
                 WHERE s.attention_at <= COALESCE($2, clock_timestamp()) AND s.partition = $1
                 ORDER BY s.attention_at) candidates
             CROSS JOIN LATERAL (
                 SELECT * FROM runs r WHERE r.run_id = candidates.id AND r.partition = $1
                 OFFSET 0 FOR NO KEY UPDATE SKIP LOCKED) held
             LIMIT $3"
        );
        let rows =
            query(SQL).bind(partition).bind(self.clock_now()).bind(i64::from(limit)).fetch_all(tx).await?;
        // A run with several such attempts comes several times; one of them is repaired in one go.
        let mut seen = HashSet::new();
        let runs = rows.iter().map(run_and_now);
        runs.filter(|row| row.as_ref().map_or(true, |(run, _)| seen.insert(run.run_id))).collect()
    }

    pub(crate) async fn next_due(&self) -> Result<NextDue, StoreError> {
        self.read_next_due().await.map_err(|fault| fault.into_store_error("looking for what is due next"))
    }

    async fn read_next_due(&self) -> Result<NextDue, Fault> {
        let answers = self.ask_present(|partition| self.next_due_in(partition)).await?;
        let due_at = answers.given.into_iter().filter_map(|(_, due_at)| due_at).min();
        let now = self.now().await?;
        Ok(NextDue { now, due_at })
    }

    async fn next_due_in(&self, partition: i16) -> Result<Option<Timestamp>, Fault> {
        // The first moments up to the end of time. A plan that was kept from an empty table would read all of them.
        let query = query("SELECT min(attention_at) AS due_at FROM kagzi_moments_due($1, $2, 1)")
            .bind(partition)
            .bind(Moment(Timestamp::MAX));
        let rows = self.fetch_all(query).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        Ok(row.try_get::<Option<Moment>, _>("due_at")?.map(|Moment(at)| at))
    }

    pub(crate) async fn delete_finished(&self, request: &DeleteFinished) -> Result<u64, StoreError> {
        request.validate()?;
        let work = async {
            let answers = self.ask_present(|partition| self.finished(partition, request)).await?;
            let mut candidates: Vec<_> =
                answers.given.into_iter().flat_map(|(_, finished)| finished).collect();
            candidates.sort_unstable();
            let mut by_partition: BTreeMap<i16, Vec<Uuid>> = BTreeMap::new();
            for (_, id, partition) in candidates.into_iter().take(request.limit as usize) {
                by_partition.entry(partition).or_default().push(id);
            }
            Ok::<_, Fault>(by_partition)
        };
        let context = "deleting finished runs";
        let candidates = work.await.map_err(|fault| fault.into_store_error(context))?;
        let (mut deleted, mut failed) = (0, None);
        for (partition, ids) in candidates {
            match self.delete(partition, request, ids).await {
                Ok(count) => deleted += count,
                Err(fault) => failed = failed.or(Some(fault.into_store_error(context))),
            }
        }
        done_in_part(deleted > 0, failed)?;
        Ok(deleted)
    }

    async fn finished(
        &self,
        partition: i16,
        request: &DeleteFinished,
    ) -> Result<Vec<(i64, Uuid, i16)>, Fault> {
        let query = query(
            "SELECT run_id, finished_at FROM runs
             WHERE finished_at < $2 AND partition = $1
               AND ($3::text IS NULL OR namespace IS NOT DISTINCT FROM $3)
               AND state = ANY ($4::text[]::run_state[])
             ORDER BY finished_at LIMIT $5",
        )
        .bind(partition)
        .bind(Moment(request.before))
        .bind(request.namespace.as_ref().map(kagzi_core::Namespace::as_str))
        .bind(final_states(request))
        .bind(i64::from(request.limit));
        let rows = self.fetch_all(query).await?;
        rows.iter()
            .map(|row| {
                let Moment(at) = row.try_get("finished_at")?;
                Ok((at.as_micros(), row.try_get("run_id")?, partition))
            })
            .collect()
    }

    /// Deletes runs with all that belongs to them; one that was requeued since is left alone.
    async fn delete(&self, partition: i16, request: &DeleteFinished, ids: Vec<Uuid>) -> Result<u64, Fault> {
        let mut tx = self.pool.begin().await?;
        // IS TRUE, so that the rows are found by their ids, even by a plan that was kept from an empty table.
        let rows = query(
            "DELETE FROM runs
             WHERE run_id = ANY ($2) AND partition = $1 AND (finished_at < $3) IS TRUE
               AND state = ANY ($4::text[]::run_state[])
             RETURNING run_id",
        )
        .bind(partition)
        .bind(ids)
        .bind(Moment(request.before))
        .bind(final_states(request))
        .fetch_all(&mut tx)
        .await?;
        let deleted: Vec<Uuid> = rows.iter().map(|row| row.try_get("run_id")).collect::<Result<_, _>>()?;
        let count = deleted.len() as u64;
        // After their runs, never before: from here on nobody adds to them. What rare operations were
        // answered follows by its foreign key.
        for leftover in [
            "DELETE FROM steps WHERE run_id = ANY ($2) AND partition = $1",
            "DELETE FROM payloads WHERE run_id = ANY ($2) AND partition = $1",
        ] {
            query(leftover).bind(partition).bind(deleted.clone()).execute(&mut tx).await?;
        }
        tx.commit().await.map_err(Fault::Committing)?;
        Ok(count)
    }
}

/// What becomes of an error on the way: once a piece of the work was committed the answer is what was
/// done, since an error says that nothing was. Answers whether there was an error.
fn done_in_part(done: bool, failed: Option<StoreError>) -> Result<bool, StoreError> {
    match failed {
        Some(error) if done => {
            tracing::warn!(%error, "a part of the work failed, the rest was done");
            Ok(true)
        }
        Some(error) => Err(error),
        None => Ok(false),
    }
}

fn final_states(request: &DeleteFinished) -> Vec<&'static str> {
    let wanted = |state: &RunState| request.states.is_empty() || request.states.contains(state);
    RunState::ALL
        .into_iter()
        .filter(|state| state.is_terminal() && wanted(state))
        .map(RunState::as_str)
        .collect()
}

fn run_and_now(row: &PgRow) -> Result<(Run, Timestamp), Fault> {
    let Moment(now) = row.try_get("now")?;
    Ok((run_from_row(row)?, now))
}

/// Which of the runs whose lease has expired finished a step under it.
async fn progressed(
    tx: &mut Tx<'_>,
    partition: i16,
    locked: &[(Run, Timestamp)],
) -> Result<HashSet<RunId>, Fault> {
    let expired = || locked.iter().filter(|(run, now)| decide::needs_progress(run, *now));
    if expired().next().is_none() {
        return Ok(HashSet::new());
    }
    let rows = query(
        "SELECT u.id FROM UNNEST($1::uuid[], $2::bigint[]) AS u(id, token)
         CROSS JOIN LATERAL (
             SELECT 1 FROM steps s
             WHERE s.run_id = u.id AND s.partition = $3 AND s.state = 'COMPLETED' AND s.fencing_token = u.token
             LIMIT 1) done",
    )
    .bind(expired().map(|(run, _)| run.run_id.as_uuid()).collect::<Vec<_>>())
    .bind(expired().map(|(run, _)| run.fencing_token.get()).collect::<Vec<_>>())
    .bind(partition)
    .fetch_all(tx)
    .await?;
    rows.iter().map(|row| Ok(RunId::from_uuid(row.try_get("id")?)?)).collect()
}

/// The attempt of a run whose timeout has passed longest ago.
async fn longest_overdue(
    tx: &mut Tx<'_>,
    partition: i16,
    run: &Run,
    now: Timestamp,
) -> Result<Option<Attempt>, Fault> {
    const SQL: &str = concat!(
        "SELECT ",
        attempt_columns!(),
        " FROM steps WHERE run_id = $1 AND partition = $2 AND attention_at <= $3 ORDER BY attention_at LIMIT 1"
    );
    let row =
        query(SQL).bind(run.run_id.as_uuid()).bind(partition).bind(Moment(now)).fetch_optional(tx).await?;
    row.as_ref().map(attempt_from_row).transpose()
}
