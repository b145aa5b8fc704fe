//! Claims: due runs out, under leases.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use kagzi_core::decide::{self, ClaimRoom};
use kagzi_core::{Claim, ClaimedRun, GrantedLease, Lease, Payload, QueueName, Run, RunId, WorkflowType};
use rusqlite::params;

use crate::commit::Tx;
use crate::error::Error;
use crate::held::History;
use crate::rows::{self, all, bytes, json, run_columns};
use crate::{listing, queues, reap, runs};

pub(crate) const HELD_BY_CLAIM: &str = concat!(
    "SELECT ",
    run_columns!(),
    " FROM runs AS r WHERE r.claim_operation = ?1 AND r.state = 'RUNNING' AND r.partition = 0",
    " AND r.namespace = ?2 AND r.worker_id = ?3"
);

// The indexes are named, since statistics (somebody may run ANALYZE) would have others chosen, which walk
// past the work of other queues.

pub(crate) const OVERDUE_IN_QUEUE: &str = concat!(
    "SELECT ",
    run_columns!(),
    " FROM runs AS r INDEXED BY runs_queue_attention WHERE r.namespace = ?1 AND r.queue = ?2",
    " AND r.attention_at IS NOT NULL AND r.attention_at <= ?3 AND r.partition = 0 ORDER BY r.attention_at LIMIT ?4"
);

pub(crate) const READY: &str = concat!(
    "SELECT ",
    run_columns!(),
    " FROM runs AS r INDEXED BY runs_ready WHERE r.namespace = ?1 AND r.queue = ?2",
    " AND r.state = 'PENDING' AND r.partition = 0",
    " AND (r.claim_rank, r.run_id) > (?3, ?4) ORDER BY r.claim_rank, r.run_id LIMIT ?5"
);

/// Like [`READY`], of one type.
pub(crate) const READY_OF_TYPE: &str = concat!(
    "SELECT ",
    run_columns!(),
    " FROM runs AS r INDEXED BY runs_ready_of_type",
    " WHERE r.namespace = ?1 AND r.queue = ?2 AND r.workflow_type = ?6",
    " AND r.state = 'PENDING' AND r.partition = 0",
    " AND (r.claim_rank, r.run_id) > (?3, ?4) ORDER BY r.claim_rank, r.run_id LIMIT ?5"
);

/// Like [`READY`], of some types, walking past the others: for claims that ask for so many types in so
/// many queues that looking at each pair would take longer.
pub(crate) const READY_OF_TYPES: &str = concat!(
    "SELECT ",
    run_columns!(),
    " FROM runs AS r INDEXED BY runs_ready WHERE r.namespace = ?1 AND r.queue = ?2",
    " AND r.state = 'PENDING' AND r.partition = 0",
    " AND (r.claim_rank, r.run_id) > (?3, ?4) AND +r.workflow_type IN (SELECT value FROM json_each(?6))",
    " ORDER BY r.claim_rank, r.run_id LIMIT ?5"
);

/// How many overdue runs a claim repairs at least before it takes what is due.
const SWEEP_AT_LEAST: u32 = 256;

/// How many pairs of queue and type a claim looks at one by one.
const MOST_LINES: usize = 1024;

pub(crate) fn claim(tx: &mut Tx<'_>, claim: &Claim) -> Result<Vec<ClaimedRun>, Error> {
    let mut room = ClaimRoom::new(tx.rules);
    let mut taken = Vec::new();
    for (run, lease) in already_held(tx, claim)? {
        // The claim was made before and its reply was lost (invariant 8).
        let input = runs::load_input(tx.connection, run.run_id)?;
        room.takes(input.len_bytes());
        taken.push(Taken { run, lease, input, history: History::Unseen });
    }
    if taken.is_empty() {
        let mut queues = claim.queues.clone();
        queues.sort_unstable();
        queues.dedup();
        // What time did is put in order in paused queues too; there it waits.
        sweep(tx, claim, &queues)?;
        let mut open = Vec::with_capacity(queues.len());
        for queue in queues {
            if !queues::is_paused(tx.connection, &claim.namespace, &queue)? {
                open.push(queue);
            }
        }
        taken = take(tx, claim, &open, &mut room)?;
    }
    let claimed = taken.into_iter().map(|taken| hand_over(tx, taken, claim, &mut room)).collect();
    *tx.answer_bytes += tx.rules.max_claim_bytes - room.left_bytes();
    claimed
}

/// A run that a claim holds.
struct Taken {
    run: Run,
    lease: GrantedLease,
    input: Payload,
    history: History,
}

/// Leases runs in the order of claims, as many as are asked for and as there is room for.
fn take(
    tx: &mut Tx<'_>,
    claim: &Claim,
    queues: &[QueueName],
    room: &mut ClaimRoom,
) -> Result<Vec<Taken>, Error> {
    let mut ready = Ready::new(tx, claim, queues)?;
    let mut taken = Vec::new();
    while taken.len() < claim.limit as usize
        && let Some(run) = ready.next(tx)?
    {
        // The sweep is bounded: a run past its deadline may still stand here, and ends here.
        if let Some(kind) = reap::repair_run(tx, &run)? {
            tx.wakes.note_swept(kind);
            continue;
        }
        let input = runs::load_input(tx.connection, run.run_id)?;
        if !room.takes(input.len_bytes()) {
            for queue in &claim.queues {
                tx.wakes.note_queue(&claim.namespace, queue);
            }
            break;
        }
        // Attempts are begun under leases: a run that had none has no history to look for.
        let history = if run.claims == 0 { History::Absent } else { History::Unseen };
        let (run, lease) = decide::claimed(&run, claim, tx.now);
        tx.update_run(Arc::new(run.clone()), history)?;
        taken.push(Taken { run, lease, input, history });
    }
    Ok(taken)
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
    if reap::is_quiet(tx)? {
        return Ok(());
    }
    let mut left = claim.limit.max(SWEEP_AT_LEAST) as usize;
    for queue in queues {
        let most = i64::try_from(left).unwrap_or(i64::MAX);
        let key = params![claim.namespace.as_str(), queue.as_str(), tx.now.as_micros(), most];
        let overdue = all(tx.connection, OVERDUE_IN_QUEUE, key, rows::run)?;
        left = left.saturating_sub(overdue.len());
        for run in &overdue {
            if let Some(kind) = reap::repair_run(tx, run)? {
                tx.wakes.note_swept(kind);
            }
        }
    }
    Ok(())
}

/// PENDING runs over several lines, in the order of claims (invariant 13), read in small portions.
struct Ready<'q> {
    claim: &'q Claim,
    portion: usize,
    lines: Vec<Line>,
    /// The foremost run of each line that has one.
    heads: BinaryHeap<Reverse<(i64, RunId, usize)>>,
    /// The line that gave the last run: its next head is looked for only when it is wanted.
    beheaded: Option<usize>,
}

/// What was read of the wanted runs of one queue, or of one type in it.
struct Line {
    queue: QueueName,
    wanted: Wanted,
    read: VecDeque<Run>,
    /// Behind this place the line was not read yet; nothing once it was read to its end.
    place: Option<(i64, [u8; 16])>,
}

#[derive(Clone)]
enum Wanted {
    Any,
    OneType(WorkflowType),
    /// As JSON.
    SomeTypes(Arc<str>),
}

impl<'q> Ready<'q> {
    fn new(tx: &Tx<'_>, claim: &'q Claim, queues: &[QueueName]) -> Result<Self, Error> {
        let wanted = wanted(claim, queues.len())?;
        let line = |queue: &QueueName, wanted: &Wanted| Line {
            queue: queue.clone(),
            wanted: wanted.clone(),
            read: VecDeque::new(),
            place: Some((i64::MIN, [0; 16])),
        };
        let lines: Vec<Line> =
            queues.iter().flat_map(|queue| wanted.iter().map(move |wanted| line(queue, wanted))).collect();
        let mut ready = Self {
            claim,
            portion: (claim.limit as usize).div_ceil(lines.len().max(1)),
            lines,
            heads: BinaryHeap::new(),
            beheaded: None,
        };
        for at in 0..ready.lines.len() {
            ready.push_head(tx, at)?;
        }
        Ok(ready)
    }

    /// The next run over all lines.
    fn next(&mut self, tx: &Tx<'_>) -> Result<Option<Run>, Error> {
        if let Some(at) = self.beheaded.take() {
            self.push_head(tx, at)?;
        }
        let Some(Reverse((.., at))) = self.heads.pop() else { return Ok(None) };
        self.beheaded = Some(at);
        Ok(self.lines.get_mut(at).and_then(|line| line.read.pop_front()))
    }

    fn push_head(&mut self, tx: &Tx<'_>, at: usize) -> Result<(), Error> {
        let Some(line) = self.lines.get_mut(at) else { return Ok(()) };
        if line.read.is_empty()
            && let Some(place) = line.place
        {
            line.read = read_ready(tx, self.claim, line, place, self.portion)?;
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

/// What to read of each queue: a line for each type, unless that makes too many.
fn wanted(claim: &Claim, queues: usize) -> Result<Vec<Wanted>, Error> {
    let mut types = claim.workflow_types.clone();
    types.sort_unstable();
    types.dedup();
    Ok(if types.is_empty() {
        vec![Wanted::Any]
    } else if types.len().saturating_mul(queues) <= MOST_LINES {
        types.into_iter().map(Wanted::OneType).collect()
    } else {
        vec![Wanted::SomeTypes(json(&types)?.into())]
    })
}

fn read_ready(
    tx: &Tx<'_>,
    claim: &Claim,
    line: &Line,
    (rank, run_id): (i64, [u8; 16]),
    portion: usize,
) -> Result<VecDeque<Run>, Error> {
    let (namespace, queue) = (claim.namespace.as_str(), line.queue.as_str());
    let portion = i64::try_from(portion).unwrap_or(i64::MAX);
    let (sql, types) = match &line.wanted {
        Wanted::Any => {
            let key = params![namespace, queue, rank, run_id, portion];
            return all(tx.connection, READY, key, rows::run).map(VecDeque::from);
        }
        Wanted::OneType(only) => (READY_OF_TYPE, only.as_str()),
        Wanted::SomeTypes(types) => (READY_OF_TYPES, &**types),
    };
    let key = params![namespace, queue, rank, run_id, portion, types];
    all(tx.connection, sql, key, rows::run).map(VecDeque::from)
}

/// A claimed run with everything that a replay needs and that there is room for.
fn hand_over(tx: &Tx<'_>, taken: Taken, claim: &Claim, room: &mut ClaimRoom) -> Result<ClaimedRun, Error> {
    let Taken { run, lease, input, history } = taken;
    if history == History::Absent {
        return Ok(ClaimedRun { lease, run, input, steps: Vec::new(), more_steps: None });
    }
    let page = listing::latest_attempts(tx.connection, &run, claim.steps_limit, room.left_bytes())?;
    let steps = room.steps(&run, page);
    Ok(ClaimedRun { lease, run, input, steps: steps.items, more_steps: steps.next })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kagzi_core::{Namespace, OperationId, StartRun, Store, WorkerId};

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
