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
        let due: Vec<RunId> = state.overdue(now).take(limit as usize).map(|run| run.run_id).collect();
        for run_id in due {
            if let Some(kind) = repair_run(&mut state, run_id, rules, now, hub) {
                reaped.count(kind);
            }
        }
        // A run is treated once: with its first overdue attempt its lease has ended.
        let late: Vec<_> = state.overdue_steps(now).cloned().collect();
        for attempt in late {
            if reaped.total() >= limit {
                break;
            }
            let Some(run) = state.runs.get(&attempt.run_id) else { continue };
            let failures = state.failures(run, &attempt.step_id);
            if let Some(overdue) = decide::step_overdue(run, &attempt, failures, rules, now) {
                state.apply(attempt.run_id, overdue.effects, now, hub);
                reaped.count(overdue.kind);
            }
        }
        if reaped.total() >= limit {
            reaped.more = MoreDue::Maybe;
        }
        Ok(reaped)
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
