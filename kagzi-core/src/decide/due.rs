//! What time does to a run, and how claims and heartbeats answer it.

use super::guard::{check_lease, leave};
use super::step::attempt_failed;
use super::{Effects, OpenAttempts};
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::failure::Failure;
use crate::lease::{GrantedLease, Lease};
use crate::limits::Rules;
use crate::op::{Claim, FailureOutcome, Heartbeat, Reaped};
use crate::run::{DeadLetterReason, Run, RunState};
use crate::step::{Attempt, AttemptState};

/// Whether a step finished under the lease that expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// At least one attempt under the run's current token is COMPLETED.
    Made,
    /// None is.
    None,
}

/// What was overdue about a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverdueKind {
    /// Its sleep has ended.
    Woken,
    /// Its lease has expired.
    LeaseExpired,
    /// Its lease has expired once too often.
    Poisoned,
    /// Its deadline has passed.
    RunTimedOut,
    /// An attempt's timeout has passed, and another follows.
    StepTimedOut,
    /// An attempt's timeout has passed, and the run is a dead letter for this reason.
    StepGivenUp(DeadLetterReason),
}

impl Reaped {
    /// Counts one treated run.
    pub const fn count(&mut self, kind: OverdueKind) {
        match kind {
            OverdueKind::Woken => self.woken += 1,
            OverdueKind::LeaseExpired => self.leases_expired += 1,
            OverdueKind::Poisoned => self.poisoned += 1,
            OverdueKind::RunTimedOut => self.runs_timed_out += 1,
            OverdueKind::StepTimedOut => self.steps_timed_out += 1,
            OverdueKind::StepGivenUp(reason) => {
                self.steps_timed_out += 1;
                let given_up = &mut self.steps_given_up;
                match reason {
                    DeadLetterReason::RetriesExhausted => given_up.retries_exhausted += 1,
                    DeadLetterReason::NonRetryable => given_up.non_retryable += 1,
                    DeadLetterReason::RunTimeout => given_up.run_timeout += 1,
                    // What loses leases and not attempts.
                    DeadLetterReason::Poison => {}
                }
            }
        }
    }
}

/// A run that needs repair, and the repair.
#[derive(Clone, Debug, PartialEq)]
pub struct Overdue {
    /// What was overdue.
    pub kind: OverdueKind,
    /// What to write.
    pub effects: Effects,
}

/// Whether [`overdue`] depends on [`Progress`] for this run: only then need it be looked up.
pub fn needs_progress(run: &Run, now: Timestamp) -> bool {
    run.state == RunState::Running && run.lease_expires_at.is_some_and(|at| at <= now)
}

/// What time did to `run` by `now`, if anything. Reapers call it for the runs whose
/// [`attention_at`](Run::attention_at) has come, claims for those of their queues.
pub fn overdue(run: &Run, progress: Progress, rules: &Rules, now: Timestamp) -> Option<Overdue> {
    if run.state.is_terminal() {
        return None;
    }
    let mut next = run.clone();
    let kind = if run.deadline_at.is_some_and(|deadline| deadline <= now) {
        leave(&mut next, RunState::Failed, now);
        next.failure = Some(Failure::run_timeout());
        next.dead_letter = Some(DeadLetterReason::RunTimeout);
        OverdueKind::RunTimedOut
    } else if run.state == RunState::Sleeping && run.due_at <= now {
        leave(&mut next, RunState::Pending, now);
        OverdueKind::Woken
    } else if needs_progress(run, now) {
        next.lost_leases = match progress {
            Progress::Made => 0,
            Progress::None => run.lost_leases.saturating_add(1),
        };
        if next.lost_leases >= rules.poison_after {
            leave(&mut next, RunState::Failed, now);
            next.failure = Some(Failure::poison(next.lost_leases));
            next.dead_letter = Some(DeadLetterReason::Poison);
            OverdueKind::Poisoned
        } else {
            leave(&mut next, RunState::Pending, now);
            // Due from now on, so that a run that takes its workers down does not stand in front of
            // its queue every time.
            next.due_at = now;
            OverdueKind::LeaseExpired
        }
    } else {
        return None;
    };
    Some(Overdue {
        kind,
        effects: Effects { open_attempts: OpenAttempts::Abandon, run: Some(next), ..Effects::default() },
    })
}

/// What time did to a RUNNING attempt by `now`, if its timeout has passed: it fails with kind TIMEOUT
/// and its retry policy decides. `failures` as in [`fail_step`](super::fail_step).
pub fn step_overdue(
    run: &Run,
    attempt: &Attempt,
    failures: u32,
    rules: &Rules,
    now: Timestamp,
) -> Option<Overdue> {
    let deadline = attempt.deadline_at.filter(|deadline| *deadline <= now)?;
    if run.state != RunState::Running
        || attempt.state != AttemptState::Running
        || attempt.fencing_token != run.fencing_token
    {
        return None;
    }
    let failure = Failure::step_timeout(deadline.saturating_since(attempt.created_at));
    let decision = attempt_failed(run, attempt, failures, &failure, rules, now);
    let kind = match decision.answer {
        FailureOutcome::RetryAt(_) => OverdueKind::StepTimedOut,
        FailureOutcome::DeadLetter(reason) => OverdueKind::StepGivenUp(reason),
    };
    Some(Overdue { kind, effects: decision.effects })
}

/// The row of a PENDING run once `claim` has taken it: a larger token, the next claim count, worker,
/// expiry and state together (invariants 1 and 15).
pub fn claimed(run: &Run, claim: &Claim, now: Timestamp) -> (Run, GrantedLease) {
    let token = run.fencing_token.next();
    let expires_at = now.saturating_add(claim.lease_length);
    let held = Run {
        state: RunState::Running,
        fencing_token: token,
        worker_id: Some(claim.worker_id.clone()),
        lease_expires_at: Some(expires_at),
        claim_operation: Some(claim.operation),
        claims: run.claims.saturating_add(1),
        updated_at: now,
        ..run.clone()
    };
    let lease = Lease {
        namespace: run.namespace.clone(),
        run_id: run.run_id,
        worker_id: claim.worker_id.clone(),
        fencing_token: token,
    };
    (held, GrantedLease { lease, expires_at })
}

/// The row of a run after a heartbeat: the lease lasts `lease_length` from now, or as long as before
/// if that is longer.
///
/// # Errors
///
/// [`StoreError::LeaseLost`].
pub fn heartbeat(run: &Run, beat: &Heartbeat, now: Timestamp) -> Result<(Run, GrantedLease), StoreError> {
    check_lease(run, &beat.lease)?;
    let wanted = now.saturating_add(beat.lease_length);
    let expires_at = run.lease_expires_at.map_or(wanted, |before| before.max(wanted));
    let held = Run { lease_expires_at: Some(expires_at), updated_at: now, ..run.clone() };
    Ok((held, GrantedLease { lease: beat.lease.clone(), expires_at }))
}

/// How many of the overdue `runs` and how many of the overdue `attempts` a reap of `limit` treats: those
/// that are overdue longest, whichever they are, and of two that are overdue alike the run.
///
/// Both are the moments that have come, the earliest first.
///
/// ```
/// # use kagzi_core::Timestamp;
/// # use kagzi_core::decide::shares_of_a_reap;
/// let at = Timestamp::from_micros_clamped;
/// assert_eq!(shares_of_a_reap(3, &[at(2), at(9)], &[at(1), at(2), at(3)]), (1, 2));
/// ```
#[must_use]
pub fn shares_of_a_reap(limit: u32, runs: &[Timestamp], attempts: &[Timestamp]) -> (usize, usize) {
    let (mut some_runs, mut some_attempts) = (0, 0);
    while some_runs + some_attempts < limit as usize {
        match (runs.get(some_runs), attempts.get(some_attempts)) {
            (Some(run), Some(attempt)) if run > attempt => some_attempts += 1,
            (Some(_), _) => some_runs += 1,
            (None, Some(_)) => some_attempts += 1,
            (None, None) => break,
        }
    }
    (some_runs, some_attempts)
}
