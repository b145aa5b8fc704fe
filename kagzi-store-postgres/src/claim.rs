//! Claims.

use std::collections::BTreeMap;

use kagzi_core::{
    Attempt, AttemptScope, Claim, ClaimedRun, GrantedLease, Lease, ListAttempts, PageRequest, Payload, Run,
    RunId, RunState, StoreError, Topic,
};
use sqlx::Row as _;
use uuid::Uuid;

use crate::Inner;
use crate::error::{Fault, MAX_TRIES, damaged};
use crate::rows::{attempt_columns, attempt_from_row, micros, run_columns, run_from_row};
use crate::runs::input_from_row;
use crate::statement::query;

/// A claim puts at most this many overdue runs in order before it takes any, or as many as it wants if
/// that is more. The reaper does the rest, so that a claim stays quick when a great many sleepers wake.
const MAX_SWEPT: u32 = 1000;

/// What a claim found in one partition.
enum Found {
    /// These runs are taken, by this call or by an earlier one of the same operation.
    Taken(Vec<(Run, Payload)>),
    /// Something is overdue in the queues; nothing was taken.
    SweepFirst,
}

/// Whether a claim looks for overdue runs first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sweep {
    First,
    Done,
}

impl Inner {
    pub(crate) async fn claim(&self, request: &Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        request.validate()?;
        let mut request = request.clone();
        request.queues.sort_unstable();
        request.queues.dedup();
        let mut taken = if self.partitions == 1 {
            self.claim_in(0, &request).await?
        } else {
            self.claim_over_partitions(&request).await?
        };
        taken.sort_by_key(|(run, _)| (run.claim_rank(), run.run_id));
        for (run, _) in &taken {
            self.announce_run(run, RunState::Pending);
        }
        if request.queues.len() > 1 && taken.len() >= request.limit as usize {
            // While it chose among several queues it held more runs than it took, and another claim
            // may have passed them by.
            for queue in &request.queues {
                self.announce_topic(Topic::Queue(request.namespace.clone(), queue.clone()));
            }
        }
        self.hand_over(&request, taken).await
    }

    async fn claim_in(&self, partition: i16, request: &Claim) -> Result<Vec<(Run, Payload)>, StoreError> {
        match self.take(partition, request, request.limit, Sweep::First).await? {
            Found::Taken(taken) => Ok(taken),
            Found::SweepFirst => {
                self.sweep(partition, &request.namespace, &request.queues, request.limit.max(MAX_SWEPT))
                    .await?;
                match self.take(partition, request, request.limit, Sweep::Done).await? {
                    Found::Taken(taken) => Ok(taken),
                    Found::SweepFirst => Err(damaged("a claim asked for two sweeps")),
                }
            }
        }
    }

    /// Looks into every partition first, so that the order of claims holds over all of them, and then
    /// takes from each what is its share.
    async fn claim_over_partitions(&self, request: &Claim) -> Result<Vec<(Run, Payload)>, StoreError> {
        let mut repeated = Vec::new();
        for partition in self.all_partitions() {
            match self.take(partition, request, 0, Sweep::First).await? {
                Found::Taken(runs) => repeated.extend(runs),
                Found::SweepFirst => {
                    let limit = request.limit.max(MAX_SWEPT);
                    self.sweep(partition, &request.namespace, &request.queues, limit).await?;
                }
            }
        }
        if !repeated.is_empty() {
            return Ok(repeated);
        }
        let mut taken = Vec::new();
        for (partition, share) in self.shares(request).await? {
            match self.take(partition, request, share, Sweep::Done).await {
                Ok(Found::Taken(runs)) => taken.extend(runs),
                Ok(Found::SweepFirst) => return Err(damaged("a claim asked for two sweeps")),
                // What was taken is taken; the worker had better know of it.
                Err(error) if !taken.is_empty() => {
                    tracing::warn!(%error, partition, "a claim was cut short");
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(taken)
    }

    /// How many runs to take from each partition.
    async fn shares(&self, request: &Claim) -> Result<BTreeMap<i16, u32>, StoreError> {
        let mut first: Vec<(i64, Uuid, i16)> = Vec::new();
        for partition in self.all_partitions() {
            let query = query("SELECT claim_rank, run_id FROM kagzi_peek($1, $2, $3, $4, $5, $6)")
                .bind(partition)
                .bind(self.clock_now())
                .bind(request.namespace.as_str())
                .bind(queues(request))
                .bind(types(request))
                .bind(i32::try_from(request.limit).unwrap_or(i32::MAX));
            let read = async {
                let rows = self.fetch_all(query).await?;
                rows.iter()
                    .map(|row| Ok((row.try_get("claim_rank")?, row.try_get("run_id")?, partition)))
                    .collect::<Result<Vec<_>, Fault>>()
            };
            first.extend(read.await.map_err(|fault| fault.into_store_error("looking for runs to claim"))?);
        }
        first.sort_unstable();
        let mut shares = BTreeMap::new();
        for (_, _, partition) in first.into_iter().take(request.limit as usize) {
            *shares.entry(partition).or_default() += 1;
        }
        Ok(shares)
    }

    async fn take(
        &self,
        partition: i16,
        request: &Claim,
        limit: u32,
        sweep: Sweep,
    ) -> Result<Found, StoreError> {
        let mut tries = 1;
        loop {
            match self.take_once(partition, request, limit, sweep).await {
                Ok(found) => return Ok(found),
                Err(fault) if fault.is_transient() && tries < MAX_TRIES => tries += 1,
                Err(fault) => return Err(fault.into_store_error("claiming runs")),
            }
        }
    }

    async fn take_once(
        &self,
        partition: i16,
        request: &Claim,
        limit: u32,
        sweep: Sweep,
    ) -> Result<Found, Fault> {
        const SQL: &str = concat!(
            "SELECT ",
            run_columns!(),
            ", input_type, input FROM (
                 SELECT (c.taken).*, c.input_type, c.input
                 FROM kagzi_claim($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) c) found"
        );
        let query = query(SQL)
            .bind(partition)
            .bind(self.clock_now())
            .bind(request.namespace.as_str())
            .bind(queues(request))
            .bind(types(request))
            .bind(request.worker_id.as_str())
            .bind(micros(request.lease_length))
            .bind(i32::try_from(limit).unwrap_or(i32::MAX))
            .bind(request.operation.as_uuid())
            .bind(sweep == Sweep::First);
        let rows = self.write_all(query).await?;
        if let [row] = &*rows
            && row.try_get::<Option<Uuid>, _>("run_id")?.is_none()
        {
            return Ok(Found::SweepFirst);
        }
        let taken = rows.iter().map(|row| Ok((run_from_row(row)?, input_from_row(row)?)));
        Ok(Found::Taken(taken.collect::<Result<_, Fault>>()?))
    }

    /// Adds the steps to runs that were taken. Only their holder writes steps from now on, so they may
    /// be read after the claim was committed.
    async fn hand_over(
        &self,
        request: &Claim,
        taken: Vec<(Run, Payload)>,
    ) -> Result<Vec<ClaimedRun>, StoreError> {
        let mut steps = self
            .latest_attempts(request, &taken)
            .await
            // The runs are taken; sent again, the claim gives them with their steps.
            .map_err(|fault| StoreError::OutcomeUnknown {
                reason: fault.into_store_error("reading steps of claimed runs").to_string(),
            })?;
        taken
            .into_iter()
            .map(|(run, input)| {
                claimed_run(request, steps.remove(&run.run_id).unwrap_or_default(), run, input)
            })
            .collect()
    }

    async fn latest_attempts(
        &self,
        request: &Claim,
        taken: &[(Run, Payload)],
    ) -> Result<BTreeMap<RunId, Vec<Attempt>>, Fault> {
        const SQL: &str = concat!(
            "SELECT ",
            attempt_columns!(),
            " FROM (
                 SELECT s.* FROM UNNEST($1::uuid[]) AS u(id)
                 CROSS JOIN LATERAL (
                     SELECT * FROM (
                         SELECT DISTINCT ON (step_id) * FROM steps
                         WHERE steps.run_id = u.id AND steps.partition = $2
                         ORDER BY step_id, attempt DESC) latest
                     ORDER BY position, step_id LIMIT $3) s) found
             ORDER BY run_id, position, step_id"
        );
        let mut by_partition: BTreeMap<i16, Vec<Uuid>> = BTreeMap::new();
        // A run that was never claimed before has no steps.
        for (run, _) in taken.iter().filter(|(run, _)| run.claims > 1) {
            by_partition.entry(self.partition(run.run_id)).or_default().push(run.run_id.as_uuid());
        }
        let mut steps: BTreeMap<RunId, Vec<Attempt>> = BTreeMap::new();
        for (partition, ids) in by_partition {
            let query = query(SQL).bind(ids).bind(partition).bind(i64::from(request.steps_limit) + 1);
            for row in self.fetch_all(query).await? {
                let attempt = attempt_from_row(&row)?;
                steps.entry(attempt.run_id).or_default().push(attempt);
            }
        }
        Ok(steps)
    }
}

fn queues(request: &Claim) -> Vec<&str> {
    request.queues.iter().map(kagzi_core::QueueName::as_str).collect()
}

fn types(request: &Claim) -> Option<Vec<&str>> {
    let types = &request.workflow_types;
    (!types.is_empty()).then(|| types.iter().map(kagzi_core::WorkflowType::as_str).collect())
}

fn claimed_run(
    request: &Claim,
    mut steps: Vec<Attempt>,
    run: Run,
    input: Payload,
) -> Result<ClaimedRun, StoreError> {
    let limit = request.steps_limit as usize;
    let mut more_steps = None;
    if steps.len() > limit {
        steps.truncate(limit);
        let listing = ListAttempts {
            namespace: run.namespace.clone(),
            run_id: run.run_id,
            scope: AttemptScope::Latest,
            page: PageRequest::first(request.steps_limit),
        };
        more_steps = steps.last().map(|last| listing.cursor_after(last));
    }
    let held = || damaged("a claimed run without a lease");
    let lease = Lease {
        namespace: run.namespace.clone(),
        run_id: run.run_id,
        worker_id: run.worker_id.clone().ok_or_else(held)?,
        fencing_token: run.fencing_token,
    };
    let expires_at = run.lease_expires_at.ok_or_else(held)?;
    Ok(ClaimedRun { lease: GrantedLease { lease, expires_at }, run, input, steps, more_steps })
}
