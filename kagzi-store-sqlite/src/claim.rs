//! Claims: due runs out, under leases.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use kagzi_core::{
    AttemptScope, Claim, ClaimedRun, GrantedLease, Lease, ListAttempts, PageRequest, QueueName, Run, RunId,
    decide,
};
use rusqlite::params;

use crate::commit::Tx;
use crate::error::Error;
use crate::rows::{self, all, bytes, json, run_columns};
use crate::{listing, reap, runs};

pub(crate) const HELD_BY_CLAIM: &str = concat!(
    "SELECT ",
    run_columns!(),
    " FROM runs AS r WHERE r.claim_operation = ?1 AND r.state = 'RUNNING' AND r.partition = 0",
    " AND r.namespace = ?2 AND r.worker_id = ?3"
);

pub(crate) const OVERDUE_IN_QUEUE: &str = concat!(
    "SELECT ",
    run_columns!(),
    " FROM runs AS r WHERE r.namespace = ?1 AND r.queue = ?2 AND r.attention_at IS NOT NULL",
    " AND r.attention_at <= ?3 AND r.partition = 0 ORDER BY r.attention_at LIMIT ?4"
);

pub(crate) const READY: &str = concat!(
    "SELECT ",
    run_columns!(),
    " FROM runs AS r WHERE r.namespace = ?1 AND r.queue = ?2 AND r.state = 'PENDING' AND r.partition = 0",
    " AND (r.claim_rank, r.run_id) > (?3, ?4) ORDER BY r.claim_rank, r.run_id LIMIT ?5"
);

/// Like [`READY`], of some types. The plus keeps the types from being looked up first: the order does it.
pub(crate) const READY_OF_TYPES: &str = concat!(
    "SELECT ",
    run_columns!(),
    " FROM runs AS r WHERE r.namespace = ?1 AND r.queue = ?2 AND r.state = 'PENDING' AND r.partition = 0",
    " AND (r.claim_rank, r.run_id) > (?3, ?4) AND +r.workflow_type IN (SELECT value FROM json_each(?6))",
    " ORDER BY r.claim_rank, r.run_id LIMIT ?5"
);

/// How many overdue runs a claim repairs at least before it takes what is due.
const SWEEP_AT_LEAST: u32 = 256;

pub(crate) fn claim(tx: &mut Tx<'_>, claim: &Claim) -> Result<Vec<ClaimedRun>, Error> {
    let held = already_held(tx, claim)?;
    if !held.is_empty() {
        // The claim was made before and its reply was lost (invariant 8).
        return held
            .into_iter()
            .map(|(run, lease)| hand_over(tx, run, lease, claim, History::Some))
            .collect();
    }
    let mut queues = claim.queues.clone();
    queues.sort_unstable();
    queues.dedup();
    sweep(tx, claim, &queues)?;
    let mut ready = Ready::new(tx, claim, queues)?;
    let mut claimed = Vec::new();
    while claimed.len() < claim.limit as usize
        && let Some(run) = ready.next(tx)?
    {
        // The sweep is bounded: a run past its deadline may still stand here, and ends here.
        if reap::repair_run(tx, &run)?.is_none() {
            // Attempts are begun under leases: a run that had none has no history to look for.
            let history = if run.claims == 0 { History::None } else { History::Some };
            let (run, lease) = decide::claimed(&run, claim, tx.now);
            tx.update_run(&run)?;
            claimed.push(hand_over(tx, run, lease, claim, history)?);
        }
    }
    Ok(claimed)
}

/// The runs that this very claim took before and that are still held by it.
fn already_held(tx: &Tx<'_>, claim: &Claim) -> Result<Vec<(Run, GrantedLease)>, Error> {
    let key = params![bytes(claim.operation.as_uuid()), claim.namespace.as_str(), claim.worker_id.as_str()];
    let mut held = all(tx.connection, HELD_BY_CLAIM, key, rows::run)?;
    held.sort_unstable_by_key(|run| (run.claim_rank(), run.run_id));
    let granted = held.into_iter().filter_map(|run| {
        let lease = Lease {
            namespace: run.namespace.clone(),
            run_id: run.run_id,
            worker_id: run.worker_id.clone()?,
            fencing_token: run.fencing_token,
        };
        let expires_at = run.lease_expires_at?;
        Some((run, GrantedLease { lease, expires_at }))
    });
    Ok(granted.collect())
}

/// Makes expired leases and due sleepers of the asked queues claimable, so that a claim needs no
/// reaper (invariant 10). Bounded over all queues together, since nobody else writes meanwhile; the
/// reaper does the rest.
fn sweep(tx: &mut Tx<'_>, claim: &Claim, queues: &[QueueName]) -> Result<(), Error> {
    let mut left = claim.limit.max(SWEEP_AT_LEAST) as usize;
    for queue in queues {
        let most = i64::try_from(left).unwrap_or(i64::MAX);
        let key = params![claim.namespace.as_str(), queue.as_str(), tx.now.as_micros(), most];
        let overdue = all(tx.connection, OVERDUE_IN_QUEUE, key, rows::run)?;
        left = left.saturating_sub(overdue.len());
        for run in &overdue {
            reap::repair_run(tx, run)?;
        }
    }
    Ok(())
}

/// PENDING runs over several queues, in the order of claims (invariant 13), read in small portions.
struct Ready<'q> {
    claim: &'q Claim,
    types: Option<String>,
    portion: usize,
    queues: Vec<Line>,
    /// The foremost run of each queue that has one.
    heads: BinaryHeap<Reverse<(i64, RunId, usize)>>,
    /// The queue that gave the last run: its next head is looked for only when it is wanted.
    beheaded: Option<usize>,
}

/// What was read of one queue.
struct Line {
    queue: QueueName,
    read: VecDeque<Run>,
    /// Behind this place the queue was not read yet; nothing once it was read to its end.
    place: Option<(i64, [u8; 16])>,
}

impl<'q> Ready<'q> {
    fn new(tx: &Tx<'_>, claim: &'q Claim, queues: Vec<QueueName>) -> Result<Self, Error> {
        let types = if claim.workflow_types.is_empty() { None } else { Some(json(&claim.workflow_types)?) };
        let mut ready = Self {
            claim,
            types,
            portion: (claim.limit as usize).div_ceil(queues.len().max(1)),
            queues: queues
                .into_iter()
                .map(|queue| Line { queue, read: VecDeque::new(), place: Some((i64::MIN, [0; 16])) })
                .collect(),
            heads: BinaryHeap::new(),
            beheaded: None,
        };
        for at in 0..ready.queues.len() {
            ready.push_head(tx, at)?;
        }
        Ok(ready)
    }

    /// The next run over all queues.
    fn next(&mut self, tx: &Tx<'_>) -> Result<Option<Run>, Error> {
        if let Some(at) = self.beheaded.take() {
            self.push_head(tx, at)?;
        }
        let Some(Reverse((.., at))) = self.heads.pop() else { return Ok(None) };
        self.beheaded = Some(at);
        Ok(self.queues.get_mut(at).and_then(|line| line.read.pop_front()))
    }

    fn push_head(&mut self, tx: &Tx<'_>, at: usize) -> Result<(), Error> {
        let Some(line) = self.queues.get_mut(at) else { return Ok(()) };
        if line.read.is_empty()
            && let Some((rank, run_id)) = line.place
        {
            line.read =
                read_ready(tx, self.claim, self.types.as_deref(), &line.queue, (rank, run_id), self.portion)?;
            line.place = line
                .read
                .back()
                .filter(|_| line.read.len() == self.portion)
                .map(|last| (last.claim_rank(), bytes(last.run_id.as_uuid())));
        }
        if let Some(first) = line.read.front() {
            self.heads.push(Reverse((first.claim_rank(), first.run_id, at)));
        }
        Ok(())
    }
}

fn read_ready(
    tx: &Tx<'_>,
    claim: &Claim,
    types: Option<&str>,
    queue: &QueueName,
    (rank, run_id): (i64, [u8; 16]),
    portion: usize,
) -> Result<VecDeque<Run>, Error> {
    let (namespace, queue) = (claim.namespace.as_str(), queue.as_str());
    let portion = i64::try_from(portion).unwrap_or(i64::MAX);
    let found = match types {
        None => all(tx.connection, READY, params![namespace, queue, rank, run_id, portion], rows::run),
        Some(types) => all(
            tx.connection,
            READY_OF_TYPES,
            params![namespace, queue, rank, run_id, portion, types],
            rows::run,
        ),
    };
    found.map(VecDeque::from)
}

/// Whether a run can have attempts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum History {
    Some,
    None,
}

/// A claimed run with everything that a replay needs.
fn hand_over(
    tx: &Tx<'_>,
    run: Run,
    lease: GrantedLease,
    claim: &Claim,
    history: History,
) -> Result<ClaimedRun, Error> {
    let input = runs::load_input(tx.connection, run.run_id)?;
    if history == History::None {
        return Ok(ClaimedRun { lease, run, input, steps: Vec::new(), more_steps: None });
    }
    let request = ListAttempts {
        namespace: run.namespace.clone(),
        run_id: run.run_id,
        scope: AttemptScope::Latest,
        page: PageRequest::first(claim.steps_limit),
    };
    let page = listing::attempts(tx.connection, &request, None)?;
    Ok(ClaimedRun { lease, run, input, steps: page.items, more_steps: page.next })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kagzi_core::{Namespace, OperationId, Payload, StartRun, Store, WorkerId, WorkflowType};

    use super::*;
    use crate::{SqliteOptions, SqliteStore};

    #[tokio::test]
    async fn a_claim_over_several_queues_goes_on_where_a_portion_ends() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(SqliteOptions::new(directory.path().join("kagzi.db"))).await.unwrap();
        let namespace = Namespace::new("n").unwrap();
        let queues: Vec<_> = ["a", "b", "c"].map(|name| QueueName::new(name).unwrap()).into();
        let mut expected = Vec::new();
        for queue in &queues {
            for number in 0..7 {
                let kind = WorkflowType::new(if number % 2 == 0 { "even" } else { "odd" }).unwrap();
                let start = StartRun::new(namespace.clone(), queue.clone(), kind, Payload::empty());
                expected.push(start.run_id());
                store.start(vec![start]).await.unwrap();
            }
        }
        let claim = |limit, types: Vec<WorkflowType>| Claim {
            namespace: namespace.clone(),
            queues: queues.clone(),
            workflow_types: types,
            worker_id: WorkerId::new("w").unwrap(),
            lease_length: Duration::from_mins(1),
            limit,
            steps_limit: 10,
            operation: OperationId::generate(),
        };
        let take = async |limit, types| {
            let claimed = store.claim(claim(limit, types)).await.unwrap();
            claimed.iter().map(|claimed| claimed.run.run_id).collect::<Vec<_>>()
        };
        // A portion is two runs of a queue, and the oldest five are all of one.
        assert_eq!(take(5, Vec::new()).await, expected[..5]);
        let odd = vec![WorkflowType::new("odd").unwrap()];
        let odd_ones: Vec<_> = [5, 8, 10, 12, 15, 17, 19].map(|at| expected[at]).into();
        assert_eq!(take(100, odd).await, odd_ones);
        let rest: Vec<_> = [6, 7, 9, 11, 13, 14, 16, 18, 20].map(|at| expected[at]).into();
        assert_eq!(take(100, Vec::new()).await, rest);
    }
}
