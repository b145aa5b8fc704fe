//! Reaping: what time did, repaired in bounded pieces.

use super::MemoryStore;
use super::state::State;
use crate::clock::Timestamp;
use crate::decide::{self, OverdueKind};
use crate::error::StoreError;
use crate::id::RunId;
use crate::limits::Rules;
use crate::op::{MoreDue, Reaped};
use crate::wake::WakeHub;

impl MemoryStore {
    pub(super) fn repair(&self, limit: u32) -> Result<Reaped, StoreError> {
        decide::check_reap(limit)?;
        let (mut state, now) = self.open()?;
        let (rules, hub) = (&self.shared.rules, &self.shared.hub);
        let mut reaped = Reaped::default();
        while reaped.total() < limit {
            let before = reaped.total();
            repair_longest_overdue(&mut state, limit - before, &mut reaped, rules, now, hub);
            if reaped.total() == before {
                break;
            }
        }
        if reaped.total() >= limit {
            reaped.more = MoreDue::Maybe;
        }
        Ok(reaped)
    }
}

/// Repairs up to `limit` runs: whose moments came longest ago, over leases, sleepers, deadlines and timeouts of
/// steps.
fn repair_longest_overdue(
    state: &mut State,
    limit: u32,
    reaped: &mut Reaped,
    rules: &Rules,
    now: Timestamp,
    hub: &WakeHub,
) {
    let most = limit as usize;
    let (run_moments, due): (Vec<_>, Vec<_>) = state.overdue(now).take(most).unzip();
    let (step_moments, late): (Vec<_>, Vec<_>) = state.overdue_steps(now).take(most).unzip();
    let (runs, attempts) = decide::shares_of_a_reap(limit, &run_moments, &step_moments);
    for run_id in due.into_iter().take(runs) {
        if let Some(kind) = repair_run(state, run_id, rules, now, hub) {
            reaped.count(kind);
        }
    }
    // A run is treated once: with its first overdue attempt its lease has ended, and its other attempts with it.
    for (run_id, step_id, number) in late.into_iter().take(attempts) {
        let Some(run) = state.runs.get(&run_id) else { continue };
        let Some(attempt) = state.attempt(run_id, &step_id, number) else { continue };
        let failures = state.failures(run, &step_id);
        if let Some(overdue) = decide::step_overdue(run, attempt, failures, rules, now) {
            state.apply(run_id, overdue.effects, now, hub);
            reaped.count(overdue.kind);
        }
    }
}

/// Repairs one run, if time did something to it.
pub(super) fn repair_run(
    state: &mut State,
    run_id: RunId,
    rules: &Rules,
    now: Timestamp,
    hub: &WakeHub,
) -> Option<OverdueKind> {
    let run = state.runs.get(&run_id)?;
    let overdue = decide::overdue(run, state.progress(run), rules, now)?;
    state.apply(run_id, overdue.effects, now, hub);
    Some(overdue.kind)
}
