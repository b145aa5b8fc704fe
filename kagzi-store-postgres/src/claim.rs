//! Claims.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use kagzi_core::decide::ClaimRoom;
use kagzi_core::{
    Attempt, AttemptScope, Claim, ClaimedRun, GrantedLease, Lease, ListAttempts, Page, PageRequest, Payload,
    Run, RunId, RunState, StoreError, Topic,
};
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::Inner;
use crate::error::{Fault, MAX_TRIES, damaged};
use crate::rows::{attempt_from_row, micros, run_columns, run_from_row};
use crate::runs::input_from_row;
use crate::statement::{Query, Tx, query};

/// A claim puts at most this many overdue runs in order before it takes any, or as many as it wants if
/// that is more. The reaper does the rest, so that a claim stays quick when a great many sleepers wake.
const MAX_SWEPT: u32 = 1000;

/// How often a claim looks where others hold all that there is: among several queues a claim holds more
/// than it takes for a moment, and may let some of it go. Then it answers that there is nothing.
const MAX_LOOKS: u32 = 3;

/// How long it waits before it looks again, at first.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

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

    /// Looks into every partition and takes from each what is its share, all in one transaction: the
    /// lock of the operation, which the first look takes, keeps the same claim from taking twice.
    async fn look_in_all_partitions(&self, request: &Claim, sweep: Sweep) -> Result<Found, Fault> {
        let mut tx = self.pool.begin().await?;
        let (mut repeated, mut overdue) = (Taken::default(), Vec::new());
        for partition in self.all_partitions() {
            let look = Look { partition, limit: 0, room_bytes: 0, repeat: true, sweep };
            match self.look_in(&mut tx, request, look).await? {
                Found::Taken(taken) => repeated.add(taken),
                Found::Overdue(here) => overdue.extend(here),
                Found::Held => {}
            }
        }
        if !repeated.runs.is_empty() || !overdue.is_empty() {
            tx.rollback().await?;
            let again = !repeated.runs.is_empty();
            return Ok(if again { Found::Taken(repeated) } else { Found::Overdue(overdue) });
        }
        let due = self.first_due(&mut tx, request).await?;
        let taken = self.take_shares(&mut tx, request, &due).await?;
        if taken.runs.is_empty() {
            tx.rollback().await?;
            return Ok(if due.is_empty() { Found::Taken(taken) } else { Found::Held });
        }
        tx.commit().await.map_err(Fault::Committing)?;
        Ok(Found::Taken(taken))
    }

    /// The first runs in the order of claims over all partitions.
    async fn first_due(&self, tx: &mut Tx<'_>, request: &Claim) -> Result<Vec<Due>, Fault> {
        let mut first: Vec<Due> = Vec::new();
        for partition in self.all_partitions() {
            let rows = query(
                "SELECT claim_rank, run_id, COALESCE(input_bytes, 0) AS input_bytes
                 FROM kagzi_peek($1, $2, $3, $4, $5, $6)",
            )
            .bind(partition)
            .bind(self.clock_now())
            .bind(request.namespace.as_str())
            .bind(queues(request))
            .bind(types(request))
            .bind(i32::try_from(request.limit).unwrap_or(i32::MAX))
            .fetch_all(tx)
            .await?;
            for row in &rows {
                first.push(Due {
                    claim_rank: row.try_get("claim_rank")?,
                    run_id: row.try_get("run_id")?,
                    partition,
                    input_bytes: usize::try_from(row.try_get::<i32, _>("input_bytes")?).unwrap_or(0),
                });
            }
        }
        first.sort_unstable();
        first.truncate(request.limit as usize);
        Ok(first)
    }

    async fn take_shares(&self, tx: &mut Tx<'_>, request: &Claim, due: &[Due]) -> Result<Taken, Fault> {
        let mut room = ClaimRoom::new(&self.rules);
        let mut shares: BTreeMap<i16, u32> = BTreeMap::new();
        let fitting = due.iter().take_while(|run| room.takes(run.input_bytes)).inspect(|run| {
            *shares.entry(run.partition).or_default() += 1;
        });
        let mut taken = Taken { left: fitting.count() < due.len(), ..Taken::default() };
        for (partition, share) in shares {
            taken.add(self.take_in(tx, request, partition, share, &taken).await?);
        }
        if taken.runs.is_empty() && !due.is_empty() {
            // Others hold all that was in front. Behind it there may be something still; what order there
            // is between the partitions then hangs on who holds what.
            for partition in self.all_partitions() {
                let count = u32::try_from(taken.runs.len()).unwrap_or(u32::MAX);
                match request.limit.saturating_sub(count) {
                    0 => break,
                    rest => taken.add(self.take_in(tx, request, partition, rest, &taken).await?),
                }
            }
        }
        Ok(taken)
    }

    /// Takes up to `limit` runs from one partition, beside those taken from others.
    async fn take_in(
        &self,
        tx: &mut Tx<'_>,
        request: &Claim,
        partition: i16,
        limit: u32,
        before: &Taken,
    ) -> Result<Taken, Fault> {
        let room_bytes = self.rules.max_claim_bytes.saturating_sub(before.input_bytes());
        let look = Look { partition, limit, room_bytes, repeat: false, sweep: Sweep::Done };
        match self.look_in(tx, request, look).await? {
            Found::Taken(taken) => Ok(taken),
            Found::Held => Ok(Taken::default()),
            Found::Overdue(_) => Err(damaged("a claim asked for two sweeps").into()),
        }
    }

    async fn look_in(&self, tx: &mut Tx<'_>, request: &Claim, look: Look) -> Result<Found, Fault> {
        found(look.partition, &self.claim_query(request, look).fetch_all(tx).await?)
    }

    fn claim_query(&self, request: &Claim, look: Look) -> Query {
        const SQL: &str = concat!(
            "SELECT told, ",
            run_columns!(),
            ", input_type, input FROM (
                 SELECT c.told, (c.taken).*, c.input_type, c.input
                 FROM kagzi_claim($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) c) found"
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
    /// be read after the claim was committed.
    async fn hand_over(&self, request: &Claim, taken: Taken) -> Result<Vec<ClaimedRun>, StoreError> {
        let mut room = ClaimRoom::new(&self.rules);
        for (_, input) in &taken.runs {
            room.takes(input.len_bytes());
        }
        let mut steps = self
            .latest_attempts(request, &taken, room.left_bytes())
            .await
            // The runs are taken; sent again, the claim gives them with their steps.
            .map_err(|fault| StoreError::OutcomeUnknown {
                reason: fault.into_store_error("reading steps of claimed runs").to_string(),
            })?;
        taken
            .runs
            .into_iter()
            .map(|(run, input)| {
                let steps = steps.remove(&run.run_id).unwrap_or_default();
                claimed_run(request, steps, run, input, &mut room)
            })
            .collect()
    }

    /// The first steps of claimed runs, as many of each as the claim asks for, and of all together about
    /// as many as there is room for.
    async fn latest_attempts(
        &self,
        request: &Claim,
        taken: &Taken,
        room_bytes: usize,
    ) -> Result<HashMap<RunId, Steps>, Fault> {
        let mut by_partition: BTreeMap<i16, Vec<Uuid>> = BTreeMap::new();
        // A run that was never claimed before has no steps.
        for (run, _) in taken.runs.iter().filter(|(run, _)| taken.again || run.claims > 1) {
            by_partition.entry(self.partition(run.run_id)).or_default().push(run.run_id.as_uuid());
        }
        let mut steps: HashMap<RunId, Steps> = HashMap::new();
        for (partition, ids) in by_partition {
            let read = query(include_str!("claimed_steps.sql"))
                .bind(ids)
                .bind(partition)
                .bind(i64::from(request.steps_limit) + 1)
                .bind(i64::try_from(room_bytes).unwrap_or(i64::MAX));
            for row in self.fetch_all(read).await? {
                let of_run = steps.entry(RunId::from_uuid(row.try_get("run_id")?)?).or_default();
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
