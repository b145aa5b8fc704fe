//! Claims: due runs out, under leases.

use super::state::{Place, State};
use super::{MemoryStore, reap};
use crate::decide;
use crate::error::StoreError;
use crate::id::RunId;
use crate::lease::{GrantedLease, Lease};
use crate::op::{AttemptScope, Claim, ClaimedRun, ListAttempts, Reaped};
use crate::page::{Page, PageRequest};
use crate::run::Run;
use crate::step::Attempt;
use crate::wake::Topic;

impl MemoryStore {
    pub(super) fn claim_runs(&self, claim: &Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        claim.validate()?;
        let (mut state, now) = self.open()?;
        let held = already_held(&state, claim);
        if !held.is_empty() {
            // The claim was made before and its reply was lost (invariant 8).
            let mut room = decide::ClaimRoom::new(&self.shared.rules);
            for (run, _) in &held {
                room.takes(state.input(run.run_id).len_bytes());
            }
            return Ok(hand_over_all(&state, held, claim, room));
        }
        let due: Vec<RunId> = state
            .overdue(now)
            .filter_map(|(_, run_id)| state.runs.get(&run_id))
            .filter(|run| run.namespace == claim.namespace && claim.queues.contains(&run.queue))
            .map(|run| run.run_id)
            .collect();
        let mut swept = Reaped::default();
        for run_id in due {
            if let Some(kind) =
                reap::repair_run(&mut state, run_id, &self.shared.rules, now, &self.shared.hub)
            {
                swept.count(kind);
            }
        }
        self.shared.counters.swept(&swept);
        let mut room = decide::ClaimRoom::new(&self.shared.rules);
        let mut taken = Vec::new();
        for (_, run_id) in first_in_order(&state, claim) {
            let Some(run) = state.runs.get(&run_id) else { continue };
            if !room.takes(state.input(run_id).len_bytes()) {
                for queue in &claim.queues {
                    self.shared.hub.announce(&Topic::Queue(claim.namespace.clone(), queue.clone()));
                }
                break;
            }
            let (run, lease) = decide::claimed(run, claim, now);
            state.save_run(run.clone(), &self.shared.hub);
            taken.push((run, lease));
        }
        Ok(hand_over_all(&state, taken, claim, room))
    }
}

fn hand_over_all(
    state: &State,
    taken: Vec<(Run, GrantedLease)>,
    claim: &Claim,
    mut room: decide::ClaimRoom,
) -> Vec<ClaimedRun> {
    taken.into_iter().map(|(run, lease)| hand_over(state, run, lease, claim, &mut room)).collect()
}

/// The runs that this very claim took before and that are still held by it.
fn already_held(state: &State, claim: &Claim) -> Vec<(Run, GrantedLease)> {
    let mut held: Vec<&Run> =
        state.held_by(claim.operation).filter(|run| run.namespace == claim.namespace).collect();
    held.sort_unstable_by_key(|run| (run.claim_rank(), run.run_id));
    held.into_iter()
        .filter_map(|run| {
            let lease = Lease {
                namespace: run.namespace.clone(),
                run_id: run.run_id,
                worker_id: run.worker_id.clone()?,
                fencing_token: run.fencing_token,
            };
            let expires_at = run.lease_expires_at?;
            (lease.worker_id == claim.worker_id).then(|| (run.clone(), GrantedLease { lease, expires_at }))
        })
        .collect()
}

/// The first runs in the order of claims over all asked queues (invariant 13).
fn first_in_order(state: &State, claim: &Claim) -> Vec<Place> {
    let wanted = |run_id: &RunId| {
        claim.workflow_types.is_empty()
            || state.runs.get(run_id).is_some_and(|run| claim.workflow_types.contains(&run.workflow_type))
    };
    let limit = claim.limit as usize;
    let mut first: Vec<Place> = claim
        .queues
        .iter()
        .flat_map(|queue| {
            state.ready(&claim.namespace, queue).filter(|(_, run_id)| wanted(run_id)).take(limit)
        })
        .collect();
    first.sort_unstable();
    first.dedup();
    first.truncate(limit);
    first
}

fn hand_over(
    state: &State,
    run: Run,
    lease: GrantedLease,
    claim: &Claim,
    room: &mut decide::ClaimRoom,
) -> ClaimedRun {
    let mut items = latest_attempts(state, run.run_id);
    let more = items.len() > claim.steps_limit as usize;
    items.truncate(claim.steps_limit as usize);
    let listing = ListAttempts {
        namespace: run.namespace.clone(),
        run_id: run.run_id,
        scope: AttemptScope::Latest,
        page: PageRequest::first(claim.steps_limit),
    };
    let next = items.last().filter(|_| more).map(|last| listing.cursor_after(last));
    let steps = room.steps(&run, Page { items, next });
    ClaimedRun { lease, input: state.input(run.run_id), run, steps: steps.items, more_steps: steps.next }
}

/// The latest attempt of each step, in the order of listings.
pub(super) fn latest_attempts(state: &State, run_id: RunId) -> Vec<Attempt> {
    let mut latest: Vec<Attempt> = Vec::new();
    for attempt in state.attempts_of_run(run_id) {
        match latest.last_mut() {
            Some(before) if before.step_id == attempt.step_id => *before = attempt.clone(),
            _ => latest.push(attempt.clone()),
        }
    }
    latest.sort_by_key(Attempt::sort_key);
    latest
}
