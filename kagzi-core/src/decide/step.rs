//! Steps: begin, complete, fail, sleep.

use super::guard::{check_lease, leave, wait_until};
use super::{AttemptWrite, Decision, Effects, OpenAttempts};
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::failure::Failure;
use crate::id::OperationId;
use crate::lease::Lease;
use crate::limits::Rules;
use crate::op::{
    BeginOutcome, BeginStep, CompleteStep, CompleteStepOutcome, FailStep, FailureOutcome, NextStep,
    RecordedAnswer, Sleep, SleepOutcome, SleepUntil, Then,
};
use crate::payload::Payload;
use crate::retry::{RetryDecision, RetryPolicy};
use crate::run::{DeadLetterReason, Run, RunState};
use crate::step::{Attempt, AttemptState, StepKind};

/// Begins a step. `latest` is its latest attempt, if it has any.
///
/// # Errors
///
/// [`StoreError::LeaseLost`], [`StoreError::StepKindMismatch`].
pub fn begin_step(
    run: &Run,
    latest: Option<&Attempt>,
    request: &BeginStep,
    now: Timestamp,
) -> Result<Decision<BeginOutcome>, StoreError> {
    check_lease(run, &request.lease)?;
    begin(run, latest, &request.lease, &request.step, request.operation, now)
}

fn begin(
    run: &Run,
    latest: Option<&Attempt>,
    lease: &Lease,
    step: &NextStep,
    operation: OperationId,
    now: Timestamp,
) -> Result<Decision<BeginOutcome>, StoreError> {
    let mut effects = Effects::default();
    let (attempt, position) = match latest {
        None => (1, step.position),
        Some(latest) if latest.kind != StepKind::Task => return Err(kind_mismatch(run, latest)),
        Some(latest) => match latest.state {
            AttemptState::Completed => return Ok(Decision::unchanged(memoized(latest))),
            AttemptState::Running if latest.fencing_token == lease.fencing_token => {
                return Ok(Decision::unchanged(if latest.begin_operation == operation {
                    BeginOutcome::Execute { attempt: latest.attempt }
                } else {
                    BeginOutcome::InProgress { attempt: latest.attempt }
                }));
            }
            AttemptState::Running => {
                effects.attempts.push(AttemptWrite::Update(abandoned(latest, now)));
                (latest.attempt + 1, latest.position)
            }
            AttemptState::Failed | AttemptState::Abandoned => (latest.attempt + 1, latest.position),
        },
    };
    effects.attempts.push(AttemptWrite::Insert(Attempt {
        run_id: run.run_id,
        step_id: step.step_id.clone(),
        position,
        kind: StepKind::Task,
        attempt,
        state: AttemptState::Running,
        fencing_token: lease.fencing_token,
        worker_id: lease.worker_id.clone(),
        retry: step.retry.as_ref().map(RetryPolicy::as_recorded),
        deadline_at: step.timeout.map(|timeout| now.saturating_add(timeout)),
        begin_operation: operation,
        end_operation: None,
        output: None,
        failure: None,
        created_at: now,
        updated_at: now,
        finished_at: None,
    }));
    Ok(Decision { effects, answer: BeginOutcome::Execute { attempt } })
}

fn memoized(latest: &Attempt) -> BeginOutcome {
    BeginOutcome::Memoized {
        attempt: latest.attempt,
        output: latest.output.clone().unwrap_or_else(Payload::empty),
    }
}

fn kind_mismatch(run: &Run, found: &Attempt) -> StoreError {
    StoreError::StepKindMismatch { run_id: run.run_id, step_id: found.step_id.clone() }
}

fn abandoned(attempt: &Attempt, now: Timestamp) -> Attempt {
    Attempt { state: AttemptState::Abandoned, updated_at: now, finished_at: Some(now), ..attempt.clone() }
}

/// Whether this very operation completed `attempt` before: then the request is a repeat, and
/// [`completed_again`] has the answer.
pub fn was_completed_by(attempt: Option<&Attempt>, operation: OperationId) -> bool {
    attempt.is_some_and(|a| a.state == AttemptState::Completed && a.end_operation == Some(operation))
}

/// The first answer of a completion that is sent again (invariant 8). `begun` is the attempt of the
/// next step that this operation began, if it did; `latest` is the latest attempt of the next step.
///
/// # Errors
///
/// [`StoreError::OperationConflict`] if the operation did not do what is asked now.
pub fn completed_again(
    run: &Run,
    begun: Option<&Attempt>,
    latest: Option<&Attempt>,
    request: &CompleteStep,
) -> Result<CompleteStepOutcome, StoreError> {
    let conflict = StoreError::OperationConflict { run_id: run.run_id, operation: request.operation };
    match &request.then {
        Then::Nothing => Ok(CompleteStepOutcome::Recorded),
        Then::CompleteRun(_) if run.finish_operation == Some(request.operation) => {
            Ok(CompleteStepOutcome::RecordedAndRunCompleted)
        }
        Then::CompleteRun(_) => Err(conflict),
        Then::Begin(_) => match (begun, latest) {
            (Some(begun), _) => {
                Ok(CompleteStepOutcome::RecordedAndNext(BeginOutcome::Execute { attempt: begun.attempt }))
            }
            (None, Some(latest)) if latest.state == AttemptState::Completed => {
                Ok(CompleteStepOutcome::RecordedAndNext(memoized(latest)))
            }
            (None, Some(latest)) => {
                Ok(CompleteStepOutcome::RecordedAndNext(BeginOutcome::InProgress { attempt: latest.attempt }))
            }
            (None, None) => Err(conflict),
        },
    }
}

/// Completes an attempt, with what follows. `attempt` is the one that the request names, `next_latest`
/// the latest attempt of the step that [`Then::Begin`] names. Repeats are answered by
/// [`completed_again`] before.
///
/// # Errors
///
/// [`StoreError::LeaseLost`], [`StoreError::AttemptNotRunning`], [`StoreError::StepKindMismatch`].
pub fn complete_step(
    run: &Run,
    attempt: Option<&Attempt>,
    next_latest: Option<&Attempt>,
    request: &CompleteStep,
    now: Timestamp,
) -> Result<Decision<CompleteStepOutcome>, StoreError> {
    check_lease(run, &request.lease)?;
    let running = running(run, attempt, &request.step_id, request.attempt)?;
    let completed = Attempt {
        state: AttemptState::Completed,
        output: Some(request.output.clone()),
        end_operation: Some(request.operation),
        updated_at: now,
        finished_at: Some(now),
        ..running.clone()
    };
    let mut effects = Effects { attempts: vec![AttemptWrite::Update(completed)], ..Effects::default() };
    let answer = match &request.then {
        Then::Nothing => CompleteStepOutcome::Recorded,
        Then::Begin(next) => {
            let next = begin(run, next_latest, &request.lease, next, request.operation, now)?;
            effects.attempts.extend(next.effects.attempts);
            CompleteStepOutcome::RecordedAndNext(next.answer)
        }
        Then::CompleteRun(output) => {
            super::finish::complete(&mut effects, run, output, request.operation, now);
            CompleteStepOutcome::RecordedAndRunCompleted
        }
    };
    Ok(Decision { effects, answer })
}

fn running<'a>(
    run: &Run,
    attempt: Option<&'a Attempt>,
    step_id: &crate::name::StepId,
    number: u32,
) -> Result<&'a Attempt, StoreError> {
    match attempt {
        // A RUNNING attempt of an older lease cannot exist while a newer one is held; if one did, it
        // would not be this caller's.
        Some(found) if found.state == AttemptState::Running && found.fencing_token == run.fencing_token => {
            Ok(found)
        }
        other => Err(StoreError::AttemptNotRunning {
            run_id: run.run_id,
            step_id: step_id.clone(),
            attempt: number,
            state: other.map(|found| found.state),
        }),
    }
}

/// Fails an attempt. `failures` counts the step's FAILED attempts begun under a token larger than the
/// run's `budget_token`, this one not included; `recorded` is the answer of this operation, if it was
/// recorded before.
///
/// # Errors
///
/// [`StoreError::LeaseLost`], [`StoreError::AttemptNotRunning`], [`StoreError::OperationConflict`].
pub fn fail_step(
    run: &Run,
    attempt: Option<&Attempt>,
    failures: u32,
    recorded: Option<RecordedAnswer>,
    request: &FailStep,
    rules: &Rules,
    now: Timestamp,
) -> Result<Decision<FailureOutcome>, StoreError> {
    match recorded {
        Some(RecordedAnswer::StepFailed(answer)) => return Ok(Decision::unchanged(answer)),
        Some(_) => {
            return Err(StoreError::OperationConflict { run_id: run.run_id, operation: request.operation });
        }
        None => {}
    }
    check_lease(run, &request.lease)?;
    let running = running(run, attempt, &request.step_id, request.attempt)?;
    let mut decision = attempt_failed(run, running, failures, &request.failure, rules, now);
    if let Some(AttemptWrite::Update(failed)) = decision.effects.attempts.first_mut() {
        failed.end_operation = Some(request.operation);
    }
    decision.effects.record = Some((request.operation, RecordedAnswer::StepFailed(decision.answer)));
    Ok(decision)
}

/// What follows the failure of a RUNNING attempt, whoever reports it.
pub(super) fn attempt_failed(
    run: &Run,
    attempt: &Attempt,
    failures: u32,
    failure: &Failure,
    rules: &Rules,
    now: Timestamp,
) -> Decision<FailureOutcome> {
    let policy = attempt.retry.as_ref().or(run.retry.as_ref()).unwrap_or(&rules.default_retry);
    let failures = failures.saturating_add(1);
    let seed = jitter_seed(run, attempt.position.wrapping_add(1), failures);
    let (run, answer) = after_failure(run, policy, failure, failures, seed, now);
    let failed = Attempt {
        state: AttemptState::Failed,
        failure: Some(failure.clone()),
        updated_at: now,
        finished_at: Some(now),
        ..attempt.clone()
    };
    let effects = Effects {
        attempts: vec![AttemptWrite::Update(failed)],
        open_attempts: OpenAttempts::Abandon,
        run: Some(run),
        ..Effects::default()
    };
    Decision { effects, answer }
}

/// The run after a failure of its own or of a step: due again later, or a dead letter.
pub(super) fn after_failure(
    run: &Run,
    policy: &RetryPolicy,
    failure: &Failure,
    failures: u32,
    seed: u64,
    now: Timestamp,
) -> (Run, FailureOutcome) {
    let mut run = run.clone();
    let reason = match policy.decide(failure, failures, seed) {
        RetryDecision::RetryAfter(delay) => {
            let due_at = now.saturating_add(delay);
            if run.deadline_at.is_none_or(|deadline| due_at < deadline) {
                wait_until(&mut run, due_at, now);
                run.lost_leases = 0;
                return (run, FailureOutcome::RetryAt(due_at));
            }
            DeadLetterReason::RunTimeout
        }
        RetryDecision::Exhausted => DeadLetterReason::RetriesExhausted,
        RetryDecision::NonRetryable => DeadLetterReason::NonRetryable,
    };
    leave(&mut run, RunState::Failed, now);
    run.failure = Some(failure.clone());
    run.dead_letter = Some(reason);
    (run, FailureOutcome::DeadLetter(reason))
}

/// A seed for the jitter that is the same in every backend: from the run, the place and the count.
pub(super) fn jitter_seed(run: &Run, place: u32, failures: u32) -> u64 {
    let (high, low) = run.run_id.as_uuid().as_u64_pair();
    high.rotate_left(17) ^ low ^ (u64::from(place) << 32 | u64::from(failures))
}

/// Puts a run to sleep. `latest` is the latest attempt of the sleep's step id, `recorded` the answer
/// of this operation, if it was recorded before.
///
/// # Errors
///
/// [`StoreError::LeaseLost`], [`StoreError::StepKindMismatch`], [`StoreError::OperationConflict`].
pub fn sleep(
    run: &Run,
    latest: Option<&Attempt>,
    recorded: Option<RecordedAnswer>,
    request: &Sleep,
    now: Timestamp,
) -> Result<Decision<SleepOutcome>, StoreError> {
    match recorded {
        Some(RecordedAnswer::Slept(answer)) => return Ok(Decision::unchanged(answer)),
        Some(_) => {
            return Err(StoreError::OperationConflict { run_id: run.run_id, operation: request.operation });
        }
        None => {}
    }
    check_lease(run, &request.lease)?;
    match latest {
        Some(found) if found.kind != StepKind::Sleep => return Err(kind_mismatch(run, found)),
        Some(_) => return Ok(Decision::unchanged(SleepOutcome::AlreadySlept)),
        None => {}
    }
    let due_at = match request.until {
        SleepUntil::After(duration) => now.saturating_add(duration),
        SleepUntil::At(moment) => moment.max(now),
    };
    let answer = SleepOutcome::Sleeping { due_at };
    let mut asleep = run.clone();
    wait_until(&mut asleep, due_at, now);
    asleep.lost_leases = 0;
    let slept = Attempt {
        run_id: run.run_id,
        step_id: request.step_id.clone(),
        position: request.position,
        kind: StepKind::Sleep,
        attempt: 1,
        state: AttemptState::Completed,
        fencing_token: request.lease.fencing_token,
        worker_id: request.lease.worker_id.clone(),
        retry: None,
        deadline_at: None,
        begin_operation: request.operation,
        end_operation: Some(request.operation),
        output: Some(Payload::empty()),
        failure: None,
        created_at: now,
        updated_at: now,
        finished_at: Some(due_at),
    };
    let effects = Effects {
        attempts: vec![AttemptWrite::Insert(slept)],
        open_attempts: OpenAttempts::Abandon,
        run: Some(asleep),
        output: None,
        record: Some((request.operation, RecordedAnswer::Slept(answer))),
    };
    Ok(Decision { effects, answer })
}
