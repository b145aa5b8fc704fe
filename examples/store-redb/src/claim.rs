//! Claims: due runs out, under leases.

use kagzi_core::decide;
use kagzi_core::{
    AttemptScope, Claim, ClaimedRun, GrantedLease, Lease, ListAttempts, PageRequest, QueueName, Run,
    Timestamp,
};
use redb::ReadableTable as _;

use crate::error::{Error, Result};
use crate::save::Writing;
use crate::tables::{Id, id, micros, operation};
use crate::{load, reap};

/// How many overdue runs a claim repairs before it takes some, at least: enough that a claim for one
/// run seldom leaves a more urgent sleeper asleep, and a bound that no backlog can lift.
const SWEEP_AT_LEAST: u32 = 256;

pub(crate) fn claim(writing: &mut Writing<'_>, claim: &Claim) -> Result<Vec<ClaimedRun>> {
    claim.validate()?;
    let now = writing.now();
    let held = already_held(writing, claim)?;
    if !held.is_empty() {
        // The claim was made before and its reply was lost (invariant 8).
        return held.into_iter().map(|(run, lease)| hand_over(writing, run, lease, claim)).collect();
    }
    let mut queues = claim.queues.clone();
    queues.sort_unstable();
    queues.dedup();
    sweep(writing, claim, &queues, now)?;
    let mut claimed = Vec::new();
    while claimed.len() < claim.limit as usize {
        let first = first_in_order(writing, claim, &queues, claim.limit as usize - claimed.len())?;
        if first.is_empty() {
            break;
        }
        for run_id in first {
            let run = load::run(&writing.tables.runs, run_id)?;
            let run =
                run.ok_or_else(|| Error::Damaged("an index names a run that is not there".to_owned()))?;
            // The sweep is bounded: a run past its deadline may still stand here, and ends here.
            if reap::repair(writing, &run, now)?.is_none() {
                let (run, lease) = decide::claimed(&run, claim, now);
                writing.save_run(&run)?;
                claimed.push(hand_over(writing, run, lease, claim)?);
            }
        }
    }
    Ok(claimed)
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

/// A claimed run with everything that a replay needs.
fn hand_over(writing: &Writing<'_>, run: Run, lease: GrantedLease, claim: &Claim) -> Result<ClaimedRun> {
    let steps = load::page_of_attempts(
        &writing.tables.attempts,
        &ListAttempts {
            namespace: run.namespace.clone(),
            run_id: run.run_id,
            scope: AttemptScope::Latest,
            page: PageRequest::first(claim.steps_limit),
        },
    )?;
    let input = writing.input(run.run_id)?;
    debug_assert_eq!(id(run.run_id), id(lease.lease.run_id), "the lease is on this run");
    Ok(ClaimedRun { lease, run, input, steps: steps.items, more_steps: steps.next })
}
