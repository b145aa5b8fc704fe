//! The ends of a lease and of a run: complete, fail, release, cancel, requeue.

use super::guard::{check_lease, leave};
use super::step::{after_failure, jitter_seed};
use super::{Decision, Effects, OpenAttempts};
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::failure::Failure;
use crate::id::OperationId;
use crate::limits::Rules;
use crate::op::{
    CancelOutcome, CancelRun, CompleteRun, CompleteRunOutcome, FailRun, FailureOutcome, RecordedAnswer,
    ReleaseOutcome, ReleaseRun, RequeueOutcome, RequeueRun,
};
use crate::payload::Payload;
use crate::run::{Run, RunState};

fn conflict<T>(run: &Run, operation: OperationId) -> Result<T, StoreError> {
    Err(StoreError::OperationConflict { run_id: run.run_id, operation })
}

/// Completes a run.
///
/// # Errors
///
/// [`StoreError::LeaseLost`].
pub fn complete_run(
    run: &Run,
    request: &CompleteRun,
    now: Timestamp,
) -> Result<Decision<CompleteRunOutcome>, StoreError> {
    if run.state == RunState::Completed && run.finish_operation == Some(request.operation) {
        return Ok(Decision::unchanged(CompleteRunOutcome::Completed));
    }
    check_lease(run, &request.lease)?;
    let mut effects = Effects::default();
    complete(&mut effects, run, &request.output, request.operation, now);
    Ok(Decision { effects, answer: CompleteRunOutcome::Completed })
}

pub(super) fn complete(
    effects: &mut Effects,
    run: &Run,
    output: &Payload,
    operation: OperationId,
    now: Timestamp,
) {
    let mut done = run.clone();
    leave(&mut done, RunState::Completed, now);
    done.lost_leases = 0;
    done.finish_operation = Some(operation);
    effects.open_attempts = OpenAttempts::Abandon;
    effects.run = Some(done);
    effects.output = Some(output.clone());
}

/// Fails a run outside any step. `recorded` is the answer of this operation, if it was recorded before.
///
/// # Errors
///
/// [`StoreError::LeaseLost`], [`StoreError::OperationConflict`].
pub fn fail_run(
    run: &Run,
    recorded: Option<RecordedAnswer>,
    request: &FailRun,
    rules: &Rules,
    now: Timestamp,
) -> Result<Decision<FailureOutcome>, StoreError> {
    match recorded {
        Some(RecordedAnswer::RunFailed(answer)) => return Ok(Decision::unchanged(answer)),
        Some(_) => return conflict(run, request.operation),
        None => {}
    }
    check_lease(run, &request.lease)?;
    let policy = run.retry.as_ref().unwrap_or(&rules.default_retry);
    let failures = run.failures.saturating_add(1);
    let seed = jitter_seed(run, 0, failures);
    let (mut failed, answer) = after_failure(run, policy, &request.failure, failures, seed, now);
    failed.failures = failures;
    Ok(Decision {
        effects: Effects {
            open_attempts: OpenAttempts::Abandon,
            run: Some(failed),
            record: Some((request.operation, RecordedAnswer::RunFailed(answer))),
            ..Effects::default()
        },
        answer,
    })
}

/// Gives a lease back. `recorded` is the answer of this operation, if it was recorded before.
///
/// # Errors
///
/// [`StoreError::LeaseLost`], [`StoreError::OperationConflict`].
pub fn release(
    run: &Run,
    recorded: Option<RecordedAnswer>,
    request: &ReleaseRun,
    now: Timestamp,
) -> Result<Decision<ReleaseOutcome>, StoreError> {
    match recorded {
        Some(RecordedAnswer::Released(answer)) => return Ok(Decision::unchanged(answer)),
        Some(_) => return conflict(run, request.operation),
        None => {}
    }
    check_lease(run, &request.lease)?;
    let mut released = run.clone();
    leave(&mut released, RunState::Pending, now);
    // A worker that gives its lease back is alive, so the row of lost leases is broken.
    released.lost_leases = 0;
    let answer = ReleaseOutcome::Released;
    Ok(Decision {
        effects: Effects {
            open_attempts: OpenAttempts::Abandon,
            run: Some(released),
            record: Some((request.operation, RecordedAnswer::Released(answer))),
            ..Effects::default()
        },
        answer,
    })
}

/// Cancels a run. `recorded` is the answer of this operation, if it was recorded before.
///
/// # Errors
///
/// [`StoreError::OperationConflict`].
pub fn cancel(
    run: &Run,
    recorded: Option<RecordedAnswer>,
    request: &CancelRun,
    now: Timestamp,
) -> Result<Decision<CancelOutcome>, StoreError> {
    match recorded {
        Some(RecordedAnswer::Cancelled(answer)) => return Ok(Decision::unchanged(answer)),
        Some(_) => return conflict(run, request.operation),
        None => {}
    }
    let mut effects = Effects::default();
    let answer = if run.state.is_terminal() {
        CancelOutcome::AlreadyFinished(run.state)
    } else {
        let mut cancelled = run.clone();
        leave(&mut cancelled, RunState::Cancelled, now);
        cancelled.failure = Some(Failure::cancelled(&request.reason));
        effects.open_attempts = OpenAttempts::Abandon;
        effects.run = Some(cancelled);
        CancelOutcome::Cancelled
    };
    effects.record = Some((request.operation, RecordedAnswer::Cancelled(answer)));
    Ok(Decision { effects, answer })
}

/// Puts a dead letter back to work. `recorded` is the answer of this operation, if it was recorded before.
///
/// # Errors
///
/// [`StoreError::WrongState`] unless the run is FAILED, [`StoreError::OperationConflict`].
pub fn requeue(
    run: &Run,
    recorded: Option<RecordedAnswer>,
    request: &RequeueRun,
    now: Timestamp,
) -> Result<Decision<RequeueOutcome>, StoreError> {
    match recorded {
        Some(RecordedAnswer::Requeued(answer)) => return Ok(Decision::unchanged(answer)),
        Some(_) => return conflict(run, request.operation),
        None => {}
    }
    if run.state != RunState::Failed {
        return Err(StoreError::WrongState {
            run_id: run.run_id,
            state: run.state,
            expected: "FAILED (a dead letter)",
        });
    }
    let requeued = Run {
        state: RunState::Pending,
        due_at: now,
        deadline_at: run.run_timeout.map(|timeout| now.saturating_add(timeout)),
        lost_leases: 0,
        failures: 0,
        budget_token: run.fencing_token,
        failure: None,
        dead_letter: None,
        updated_at: now,
        finished_at: None,
        ..run.clone()
    };
    let answer = RequeueOutcome::Requeued;
    Ok(Decision {
        effects: Effects {
            run: Some(requeued),
            record: Some((request.operation, RecordedAnswer::Requeued(answer))),
            ..Effects::default()
        },
        answer,
    })
}
