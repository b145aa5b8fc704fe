//! Claims: due runs out, under leases.

use kagzi_core::decide::{self, ClaimRoom};
use kagzi_core::{
    AttemptScope, Claim, ClaimedRun, GrantedLease, Lease, ListAttempts, PageRequest, QueueName, Run,
    Timestamp,
};
use redb::ReadableTable as _;

use crate::error::{Error, Result};
use crate::save::Writing;
use crate::tables::{Id, id, micros, operation};
use crate::{load, queues, reap};

/// How many overdue runs a claim repairs before it takes some, at least: enough that a claim for one
/// run seldom leaves a more urgent sleeper asleep, and a bound that no backlog can lift.
const SWEEP_AT_LEAST: u32 = 256;

pub(crate) fn claim(writing: &mut Writing<'_>, claim: &Claim) -> Result<Vec<ClaimedRun>> {
    claim.validate()?;
    let now = writing.now();
    let mut room = ClaimRoom::new(&writing.shared.rules);
    let mut taken = already_held(writing, claim)?;
    if taken.is_empty() {
        let mut queues = claim.queues.clone();
        queues.sort_unstable();
        queues.dedup();
        sweep(writing, claim, &queues, now)?;
        // What is due in a paused queue waits.
        queues::keep_open(writing, &claim.namespace, &mut queues)?;
        taken = take(writing, claim, &queues, now, &mut room)?;
    } else {
        // The claim was made before and its reply was lost (invariant 8).
        for (run, _) in &taken {
            room.takes(input_bytes(writing, id(run.run_id))?);
        }
    }
    taken.into_iter().map(|(run, lease)| hand_over(writing, run, lease, claim, &mut room)).collect()
}

/// Takes PENDING runs in the order of claims, while there is room for them.
fn take(
    writing: &mut Writing<'_>,
    claim: &Claim,
    queues: &[QueueName],
    now: Timestamp,
    room: &mut ClaimRoom,
) -> Result<Vec<(Run, GrantedLease)>> {
    let mut taken = Vec::new();
    while taken.len() < claim.limit as usize {
        let first = first_in_order(writing, claim, queues, claim.limit as usize - taken.len())?;
        if first.is_empty() {
            break;
        }
        for run_id in first {
            let run = load::run(&writing.tables.runs, run_id)?.ok_or_else(Error::dangling)?;
            // The sweep is bounded: a run past its deadline may still stand here, and ends here.
            if reap::repair(writing, &run, now)?.is_some() {
                continue;
            }
            if !room.takes(input_bytes(writing, run_id)?) {
                // Fewer than were asked for, and yet there are more: others should look.
                for queue in queues {
                    writing.news.note_queue(&claim.namespace, queue);
                }
                return Ok(taken);
            }
            let (run, lease) = decide::claimed(&run, claim, now);
            writing.save_run(&run)?;
            taken.push((run, lease));
        }
    }
    Ok(taken)
}

fn input_bytes(writing: &Writing<'_>, run_id: Id) -> Result<usize> {
    Ok(writing.tables.inputs.get(run_id)?.map_or(0, |input| input.value().1.len()))
}

/// The runs that this very claim took before and that are still held by it.
fn already_held(writing: &Writing<'_>, claim: &Claim) -> Result<Vec<(Run, GrantedLease)>> {
    let claimed_by = operation(claim.operation);
    let mut held = Vec::new();
    for entry in writing.tables.held.range((claimed_by, Id::MIN)..=(claimed_by, Id::MAX))? {
        let Some(run) = load::run(&writing.tables.runs, entry?.0.value().1)? else { continue };
        if run.namespace != claim.namespace || run.worker_id.as_ref() != Some(&claim.worker_id) {
            continue;
        }
        let Some(expires_at) = run.lease_expires_at else { continue };
        let lease = Lease {
            namespace: run.namespace.clone(),
            run_id: run.run_id,
            worker_id: claim.worker_id.clone(),
            fencing_token: run.fencing_token,
        };
        held.push((run, GrantedLease { lease, expires_at }));
    }
    held.sort_unstable_by_key(|(run, _)| (run.claim_rank(), run.run_id));
    Ok(held)
}

/// Repairs what is due in the asked queues, so that a claim depends on no reaper.
fn sweep(writing: &mut Writing<'_>, claim: &Claim, queues: &[QueueName], now: Timestamp) -> Result<()> {
    let mut left = claim.limit.max(SWEEP_AT_LEAST) as usize;
    for queue in queues {
        let (namespace, queue) = (claim.namespace.as_str(), queue.as_str());
        let due = (namespace, queue, i64::MIN, Id::MIN)..=(namespace, queue, micros(now), Id::MAX);
        let overdue = writing.tables.queue_attention.range(due)?.take(left);
        let overdue: Vec<Id> = overdue.map(|entry| Ok(entry?.0.value().3)).collect::<Result<_>>()?;
        left -= overdue.len();
        for run_id in overdue {
            if let Some(run) = load::run(&writing.tables.runs, run_id)? {
                reap::repair(writing, &run, now)?;
            }
        }
    }
    Ok(())
}

/// The first PENDING runs in the order of claims over all asked queues (invariant 13).
fn first_in_order(
    writing: &Writing<'_>,
    claim: &Claim,
    queues: &[QueueName],
    limit: usize,
) -> Result<Vec<Id>> {
    let wanted = |workflow_type: &str| {
        claim.workflow_types.is_empty()
            || claim.workflow_types.iter().any(|wanted| wanted.as_str() == workflow_type)
    };
    let mut first: Vec<(i64, Id)> = Vec::new();
    for queue in queues {
        let (namespace, queue) = (claim.namespace.as_str(), queue.as_str());
        let all = (namespace, queue, i64::MIN, Id::MIN)..=(namespace, queue, i64::MAX, Id::MAX);
        let mut found = 0;
        for entry in writing.tables.ready.range(all)? {
            let (key, workflow_type) = entry?;
            if wanted(workflow_type.value()) {
                let (_, _, rank, run_id) = key.value();
                first.push((rank, run_id));
                found += 1;
            }
            if found == limit {
                break;
            }
        }
        first.sort_unstable();
        first.truncate(limit);
    }
    Ok(first.into_iter().map(|(_, run_id)| run_id).collect())
}

/// A claimed run with everything that a replay needs, as far as there is room.
fn hand_over(
    writing: &Writing<'_>,
    run: Run,
    lease: GrantedLease,
    claim: &Claim,
    room: &mut ClaimRoom,
) -> Result<ClaimedRun> {
    let listing = ListAttempts {
        namespace: run.namespace.clone(),
        run_id: run.run_id,
        scope: AttemptScope::Latest,
        page: PageRequest::first(claim.steps_limit),
    };
    let page = load::page_of_attempts(&writing.tables.attempts, &listing, room.left_bytes())?;
    let steps = room.steps(&run, page);
    Ok(ClaimedRun {
        lease,
        input: writing.input(run.run_id)?,
        run,
        steps: steps.items,
        more_steps: steps.next,
    })
}
