//! The checks that stand before every decision.

use crate::clock::Timestamp;
use crate::error::{LostReason, StoreError};
use crate::lease::Lease;
use crate::limits::{Rules, check_batch};
use crate::op::{Heartbeat, StartRun};
use crate::run::{Run, RunState};

/// Whether `lease` is the right to write to `run` now (invariant 2). No clock is asked.
///
/// # Errors
///
/// [`StoreError::LeaseLost`] with the reason.
pub fn check_lease(run: &Run, lease: &Lease) -> Result<(), StoreError> {
    let reason = if run.state != RunState::Running {
        LostReason::NotRunning { state: run.state }
    } else if run.fencing_token != lease.fencing_token {
        LostReason::TokenStale { current: run.fencing_token }
    } else if run.worker_id.as_ref() != Some(&lease.worker_id) {
        LostReason::OtherWorker
    } else {
        return Ok(());
    };
    Err(StoreError::LeaseLost { run_id: run.run_id, presented: lease.fencing_token, reason })
}

/// Checks a batch of starts: 1 to 10,000 of them, each valid.
///
/// # Errors
///
/// [`StoreError::InvalidArgument`] or [`StoreError::TooLarge`] naming the field.
pub fn check_start_batch(batch: &[StartRun], rules: &Rules) -> Result<(), StoreError> {
    check_batch("runs", batch.len())?;
    batch.iter().try_for_each(|start| start.validate(rules))
}

/// Checks a batch of heartbeats: 1 to 10,000 of them, each valid.
///
/// # Errors
///
/// [`StoreError::InvalidArgument`] naming the field.
pub fn check_heartbeats(batch: &[Heartbeat]) -> Result<(), StoreError> {
    check_batch("heartbeats", batch.len())?;
    batch.iter().try_for_each(Heartbeat::validate)
}

/// Checks the limit of a reap: 1 to 10,000.
///
/// # Errors
///
/// [`StoreError::InvalidArgument`].
pub fn check_reap(limit: u32) -> Result<(), StoreError> {
    check_batch("limit", limit as usize)
}

/// Ends the lease on `run`, if any, and moves it to `state`.
pub(super) fn leave(run: &mut Run, state: RunState, now: Timestamp) {
    run.state = state;
    run.worker_id = None;
    run.lease_expires_at = None;
    run.claim_operation = None;
    run.updated_at = now;
    if state.is_terminal() {
        run.finished_at = Some(now);
    }
}

/// Makes `run` due at `due_at`: PENDING if that has come, SLEEPING until then otherwise.
pub(super) fn wait_until(run: &mut Run, due_at: Timestamp, now: Timestamp) {
    let state = if due_at <= now { RunState::Pending } else { RunState::Sleeping };
    leave(run, state, now);
    run.due_at = due_at;
}
