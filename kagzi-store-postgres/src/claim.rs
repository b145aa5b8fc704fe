//! Claims.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures::StreamExt as _;
use kagzi_core::decide::ClaimRoom;
use kagzi_core::{
    Attempt, AttemptScope, Claim, ClaimedRun, ErrorScope, GrantedLease, Lease, ListAttempts, Page,
    PageRequest, Payload, Run, RunId, RunState, StoreError, Topic,
};
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::Inner;
use crate::error::{Fault, MAX_TRIES, RETRY_AFTER, damaged};
use crate::rows::{attempt_from_row, micros, run_from_row, taken_columns};
use crate::runs::input_from_row;
use crate::statement::{Query, query};

/// A claim puts at most this many overdue runs in order before it takes any, or as many as it wants if
/// that is more. The reaper does the rest, so that a claim stays quick when a great many sleepers wake.
const MAX_SWEPT: u32 = 1000;

/// How often a claim looks where others hold all that there is: among several queues a claim holds more
/// than it takes for a moment, and may let some of it go. Then it answers that there is nothing.
const MAX_LOOKS: u32 = 3;

/// How long it waits before it looks again, at first.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// How many partitions one claim takes from at the same time: each takes a connection meanwhile.
const TAKES_SIDE_BY_SIDE: usize = 4;

/// What there is in one partition.
enum Seen {
    /// Runs that the same claim took before.
    Again,
    /// Something is overdue.
    Overdue,
    /// These can be taken; perhaps none.
    Ready(Vec<Due>),
}

/// What one look for runs came to.
enum Found {
    /// These are taken, by this look or by an earlier one of the same operation; perhaps none.
    Taken(Taken),
    /// Something is overdue in the queues in these partitions; nothing was taken.
    Overdue(Vec<i16>),
    /// There is something, but others hold all of it; nothing was taken.
    Held,
}

/// The first steps of a run.
#[derive(Default)]
struct Steps {
    items: Vec<Attempt>,
    /// Whether there are more behind them.
    more: bool,
}

#[derive(Default)]
struct Taken {
    runs: Vec<(Run, Payload)>,
    /// Whether some were left for want of room.
    left: bool,
    /// Whether an earlier look of the same operation took them, so that all may have steps by now.
    again: bool,
}

impl Taken {
    fn input_bytes(&self) -> usize {
        self.runs.iter().map(|(_, input)| input.len_bytes()).sum()
    }

    fn add(&mut self, more: Self) {
        self.runs.extend(more.runs);
        self.left |= more.left;
        self.again |= more.again;
    }
}

/// Whether a look asks for overdue runs first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sweep {
    First,
    Done,
}

/// What to do in one partition.
#[derive(Clone, Copy)]
struct Look {
    partition: i16,
    limit: u32,
    /// For how many bytes of inputs there is room; at least one run is taken.
    room_bytes: usize,
    /// Whether to look for what the same claim took before.
    repeat: bool,
    sweep: Sweep,
}

/// A run that is there to be taken, in the order of claims.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    claim_rank: i64,
    run_id: Uuid,
    partition: i16,
    input_bytes: usize,
}

impl Inner {
    pub(crate) async fn claim(&self, request: &Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        request.validate()?;
        let mut request = request.clone();
        request.queues.sort_unstable();
        request.queues.dedup();
        request.workflow_types.sort_unstable();
        request.workflow_types.dedup();
        let mut taken = self.take(&request).await?;
        taken.runs.sort_by_key(|(run, _)| (run.claim_rank(), run.run_id));
        for (run, _) in &taken.runs {
            self.announce_run(run, RunState::Pending);
        }
        let ranges = request.queues.len() * request.workflow_types.len().max(1);
        let held_more_than_it_took =
            (ranges > 1 || self.partitions > 1) && taken.runs.len() >= request.limit as usize;
        if taken.left || held_more_than_it_took {
            // There are more than it took, or another claim may have passed them by meanwhile.
            for queue in &request.queues {
                self.announce_topic(Topic::Queue(request.namespace.clone(), queue.clone()));
            }
        }
        self.hand_over(&request, taken).await
    }

    async fn take(&self, request: &Claim) -> Result<Taken, StoreError> {
        let mut sweep = Sweep::First;
        let mut looks = 1;
        loop {
            match self.look(request, sweep).await? {
                Found::Taken(taken) => return Ok(taken),
                Found::Overdue(partitions) if sweep == Sweep::First => {
                    let limit = request.limit.max(MAX_SWEPT);
                    for partition in partitions {
                        self.sweep(partition, &request.namespace, &request.queues, limit).await?;
                    }
                    sweep = Sweep::Done;
                }
                Found::Overdue(_) => return Err(damaged("a claim asked for two sweeps")),
                Found::Held if looks < MAX_LOOKS => {
                    tokio::time::sleep(LOOK_AGAIN * looks).await;
                    looks += 1;
                }
                Found::Held => return Ok(Taken::default()),
            }
        }
    }

    async fn look(&self, request: &Claim, sweep: Sweep) -> Result<Found, StoreError> {
        let mut tries = 1;
        loop {
            let looked = if self.partitions == 1 {
                self.look_in_the_only_partition(request, sweep).await
            } else {
                self.look_in_all_partitions(request, sweep).await
            };
            match looked {
                Ok(found) => return Ok(found),
                Err(fault) if fault.is_transient() && tries < MAX_TRIES => tries += 1,
                Err(fault) => return Err(fault.into_store_error("claiming runs")),
            }
        }
    }

    async fn look_in_the_only_partition(&self, request: &Claim, sweep: Sweep) -> Result<Found, Fault> {
        let (limit, room_bytes) = (request.limit, self.rules.max_claim_bytes);
        let look = Look { partition: 0, limit, room_bytes, repeat: true, sweep };
        found(look.partition, &self.write_all(self.claim_query(request, look)).await?)
    }

    /// Looks into every partition, side by side, and takes from each what is its share. Each take is a transaction in
    /// its own partition, so none reaches over two nodes; a lock of the operation keeps the same claim from taking twice.
    async fn look_in_all_partitions(&self, request: &Claim, sweep: Sweep) -> Result<Found, Fault> {
        let _place = self.claims.turn().await?;
        let mut lock = self.pool.begin().await?;
        // The functions, which run on other connections meanwhile, have a lock of their own for each partition.
        query("SELECT pg_advisory_xact_lock(hashtextextended($1, -1))")
            .bind(request.operation.as_uuid().to_string())
            .execute(&mut lock)
            .await?;
        let found = self.look_and_take(request, sweep).await;
        if let Err(error) = lock.rollback().await {
            // It ends with its connection, and what was found is true all the same.
            tracing::debug!(%error, "the lock of a claim was lost");
        }
        found
    }

    async fn look_and_take(&self, request: &Claim, sweep: Sweep) -> Result<Found, Fault> {
        let seen = self.ask_present(|partition| self.see(partition, request, sweep)).await?;
        let those = |wanted: fn(&Seen) -> bool| -> Vec<i16> {
            seen.given.iter().filter(|(_, seen)| wanted(seen)).map(|(partition, _)| *partition).collect()
        };
        let again = those(|seen| matches!(seen, Seen::Again));
        if !again.is_empty() {
            return self.repeat(request, &again, seen.some_absent).await;
        }
        let overdue = those(|seen| matches!(seen, Seen::Overdue));
        if !overdue.is_empty() {
            return Ok(Found::Overdue(overdue));
        }
        let mut due: Vec<Due> = Vec::new();
        for (_, seen) in seen.given {
            if let Seen::Ready(ready) = seen {
                due.extend(ready);
            }
        }
        due.sort_unstable();
        due.truncate(request.limit as usize);
        let taken = self.take_shares(request, &due).await?;
        let held = taken.runs.is_empty() && !due.is_empty();
        Ok(if held { Found::Held } else { Found::Taken(taken) })
    }

    async fn see(&self, partition: i16, request: &Claim, sweep: Sweep) -> Result<Seen, Fault> {
        let look = query(
            "SELECT told, claim_rank, run_id, COALESCE(input_bytes, 0) AS input_bytes
             FROM kagzi_look($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(partition)
        .bind(self.clock_now())
        .bind(request.namespace.as_str())
        .bind(queues(request))
        .bind(types(request))
        .bind(request.worker_id.as_str())
        .bind(i32::try_from(request.limit).unwrap_or(i32::MAX))
        .bind(request.operation.as_uuid())
        .bind(sweep == Sweep::First);
        let mut ready = Vec::new();
        for row in &self.fetch_all(look).await? {
            match row.try_get("told")? {
                "READY" => ready.push(Due {
                    claim_rank: row.try_get("claim_rank")?,
                    run_id: row.try_get("run_id")?,
                    partition,
                    input_bytes: usize::try_from(row.try_get::<i32, _>("input_bytes")?).unwrap_or(0),
                }),
                "AGAIN" => return Ok(Seen::Again),
                "OVERDUE" => return Ok(Seen::Overdue),
                other => return Err(damaged(format!("kagzi_look told {other:?}")).into()),
            }
        }
        Ok(Seen::Ready(ready))
    }

    /// What the same claim took before, in these partitions.
    async fn repeat(&self, request: &Claim, again: &[i16], some_absent: bool) -> Result<Found, Fault> {
        if some_absent {
            let reason = "a node of the cluster is away, and perhaps a part of what this claim took before";
            return Err(StoreError::unavailable(reason, RETRY_AFTER).within(ErrorScope::Part).into());
        }
        let mut repeated = Taken::default();
        for &partition in again {
            let look = Look { partition, limit: 0, room_bytes: 0, repeat: true, sweep: Sweep::Done };
            repeated.add(self.take_in(request, look).await?);
        }
        Ok(Found::Taken(repeated))
    }

    async fn take_shares(&self, request: &Claim, due: &[Due]) -> Result<Taken, Fault> {
        let mut room = ClaimRoom::new(&self.rules);
        // How many runs of each partition are among the first, and the bytes of their inputs.
        let mut shares: BTreeMap<i16, (u32, usize)> = BTreeMap::new();
        let fitting = due.iter().take_while(|run| room.takes(run.input_bytes)).inspect(|run| {
            let (count, bytes) = shares.entry(run.partition).or_default();
            *count += 1;
            *bytes += run.input_bytes;
        });
        let mut taken = Taken { left: fitting.count() < due.len(), ..Taken::default() };
        let looks = shares.into_iter().map(|(partition, (limit, room_bytes))| {
            self.take_in(request, Look { partition, limit, room_bytes, repeat: false, sweep: Sweep::Done })
        });
        let mut answers = futures::stream::iter(looks.collect::<Vec<_>>()).buffered(TAKES_SIDE_BY_SIDE);
        let mut failed = None;
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(more) => taken.add(more),
                // Whether those were taken is open: the same claim sent again finds out, unless the node is away. Then they
                // come back when their lease expires, and what was taken elsewhere need not wait for that.
                Err(fault @ Fault::Committing(_)) if !fault.is_node_away() => return Err(fault),
                Err(fault) => failed = failed.or(Some(fault)),
            }
        }
        drop(answers);
        match failed {
            Some(fault) if taken.runs.is_empty() => return Err(fault),
            Some(fault) => tracing::warn!(%fault, "a claim took nothing in one of its partitions"),
            None => {}
        }
        if taken.runs.is_empty() && !due.is_empty() {
            // Others hold all that was in front. Behind it there may be something still; what order there
            // is between the partitions then hangs on who holds what.
            self.take_behind(request, &mut taken).await?;
        }
        Ok(taken)
    }

    async fn take_behind(&self, request: &Claim, taken: &mut Taken) -> Result<(), Fault> {
        for partition in self.all_partitions() {
            let count = u32::try_from(taken.runs.len()).unwrap_or(u32::MAX);
            let limit = request.limit.saturating_sub(count);
            if limit == 0 {
                break;
            }
            let room_bytes = self.rules.max_claim_bytes.saturating_sub(taken.input_bytes());
            let look = Look { partition, limit, room_bytes, repeat: false, sweep: Sweep::Done };
            match self.take_in(request, look).await {
                Ok(more) => taken.add(more),
                Err(fault) if fault.is_node_away() => {}
                Err(fault) if taken.runs.is_empty() => return Err(fault),
                Err(fault @ Fault::Committing(_)) => return Err(fault),
                Err(fault) => tracing::warn!(%fault, "a claim took nothing in one of its partitions"),
            }
        }
        Ok(())
    }

    /// Takes up to its limit of runs from one partition.
    async fn take_in(&self, request: &Claim, look: Look) -> Result<Taken, Fault> {
        match found(look.partition, &self.write_all(self.claim_query(request, look)).await?)? {
            Found::Taken(taken) => Ok(taken),
            Found::Held => Ok(Taken::default()),
            Found::Overdue(_) => Err(damaged("a claim asked for two sweeps").into()),
        }
    }

    fn claim_query(&self, request: &Claim, look: Look) -> Query {
        const SQL: &str = concat!(
            "SELECT told, ",
            taken_columns!(),
            ", input_type, input FROM kagzi_claim($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
        );
        query(SQL)
            .bind(look.partition)
            .bind(self.clock_now())
            .bind(request.namespace.as_str())
            .bind(queues(request))
            .bind(types(request))
            .bind(request.worker_id.as_str())
            .bind(micros(request.lease_length))
            .bind(i32::try_from(look.limit).unwrap_or(i32::MAX))
            .bind(i64::try_from(look.room_bytes).unwrap_or(i64::MAX))
            .bind(request.operation.as_uuid())
            .bind(look.repeat)
            .bind(look.sweep == Sweep::First)
    }

    /// Adds the steps to runs that were taken. Only their holder writes steps from now on, so they may
    /// be read after the claim was committed, as long as the lease is held still: of a run whose lease was lost since none
    /// are told, for what the next holder did is not what this claim found. Its cursor leads to them.
    async fn hand_over(&self, request: &Claim, taken: Taken) -> Result<Vec<ClaimedRun>, StoreError> {
        let mut room = ClaimRoom::new(&self.rules);
        for (_, input) in &taken.runs {
            room.takes(input.len_bytes());
        }
        let mut steps = self
            .latest_attempts(request, &taken, room.left_bytes())
            .await
            // The runs are taken; sent again, the claim gives them with their steps.
            .map_err(|fault| {
                let error = fault.into_store_error("reading steps of claimed runs");
                StoreError::outcome_unknown(error.to_string()).within(error.scope().unwrap_or_default())
            })?;
        let mut claimed = Vec::with_capacity(taken.runs.len());
        for (run, input) in taken.runs {
            let found = steps.remove(&run.run_id).unwrap_or_else(|| {
                let more = may_have_steps(&run, taken.again);
                Steps { items: Vec::new(), more }
            });
            claimed.push(claimed_run(request, found, run, input, &mut room)?);
        }
        Ok(claimed)
    }

    /// The first steps of claimed runs that are held still and may have any, as many of each as the claim asks for, and of
    /// all together about as many as there is room for.
    async fn latest_attempts(
        &self,
        request: &Claim,
        taken: &Taken,
        room_bytes: usize,
    ) -> Result<HashMap<RunId, Steps>, Fault> {
        let mut by_partition: BTreeMap<i16, (Vec<Uuid>, Vec<i64>)> = BTreeMap::new();
        for (run, _) in taken.runs.iter().filter(|(run, _)| may_have_steps(run, taken.again)) {
            let (ids, tokens) = by_partition.entry(self.partition(run.run_id)).or_default();
            ids.push(run.run_id.as_uuid());
            tokens.push(run.fencing_token.get());
        }
        let mut steps: HashMap<RunId, Steps> = HashMap::new();
        for (partition, (ids, tokens)) in by_partition {
            let read = query(include_str!("claimed_steps.sql"))
                .bind(ids)
                .bind(partition)
                .bind(i64::from(request.steps_limit) + 1)
                .bind(i64::try_from(room_bytes).unwrap_or(i64::MAX))
                .bind(tokens);
            for row in self.fetch_all(read).await? {
                let of_run = steps.entry(RunId::from_uuid(row.try_get("run_id")?)?).or_default();
                if row.try_get::<Option<&str>, _>("step_id")?.is_none() {
                    continue;
                }
                if row.try_get("fits")? && of_run.items.len() < request.steps_limit as usize {
                    of_run.items.push(attempt_from_row(&row)?);
                } else {
                    of_run.more = true;
                }
            }
        }
        Ok(steps)
    }
}

/// Whether a claimed run may have steps: one that was never claimed before has none, unless it was taken by an earlier
/// look of this claim.
const fn may_have_steps(run: &Run, again: bool) -> bool {
    again || run.claims > 1
}

/// Reads what `kagzi_claim` answered.
fn found(partition: i16, rows: &[PgRow]) -> Result<Found, Fault> {
    let mut taken = Taken::default();
    for row in rows {
        match row.try_get("told")? {
            "TAKEN" => taken.runs.push((run_from_row(row)?, input_from_row(row)?)),
            "AGAIN" => {
                taken.runs.push((run_from_row(row)?, input_from_row(row)?));
                taken.again = true;
            }
            "LEFT" => taken.left = true,
            "OVERDUE" => return Ok(Found::Overdue(vec![partition])),
            "HELD" => return Ok(Found::Held),
            other => return Err(damaged(format!("kagzi_claim told {other:?}")).into()),
        }
    }
    Ok(Found::Taken(taken))
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
    Steps { items, more }: Steps,
    run: Run,
    input: Payload,
    room: &mut ClaimRoom,
) -> Result<ClaimedRun, StoreError> {
    let listing = ListAttempts {
        namespace: run.namespace.clone(),
        run_id: run.run_id,
        scope: AttemptScope::Latest,
        page: PageRequest::first(request.steps_limit),
    };
    let go_on = || items.last().map_or_else(|| listing.cursor_at_start(), |last| listing.cursor_after(last));
    let next = more.then(go_on);
    let steps = room.steps(&run, Page { items, next });
    let held = || damaged("a claimed run without a lease");
    let lease = Lease {
        namespace: run.namespace.clone(),
        run_id: run.run_id,
        worker_id: run.worker_id.clone().ok_or_else(held)?,
        fencing_token: run.fencing_token,
    };
    let expires_at = run.lease_expires_at.ok_or_else(held)?;
    let lease = GrantedLease { lease, expires_at };
    Ok(ClaimedRun { lease, run, input, steps: steps.items, more_steps: steps.next })
}
