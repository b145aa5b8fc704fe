//! What becomes of runs and steps.

use std::sync::{Mutex, PoisonError};

use kagzi_core::{
    BeginOutcome, ClaimedRun, CompleteStepOutcome, DeadLetterReason, FailureOutcome, Namespace, Reaped,
    RunState, SharedStore, SweptStats,
};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::label::{Book, Counters, Label as _, label};

label! {
    /// Whether a claim took something.
    ClaimOutcome { Taken => "taken", Empty => "empty" }
}
label! {
    /// What a worker was told about a step.
    Begun { Execute => "execute", Memoized => "memoized", InProgress => "in_progress" }
}
label! {
    /// How an attempt of a step ended.
    StepOutcome { Completed => "completed", Failed => "failed", TimedOut => "timed_out", Slept => "slept" }
}
label! {
    /// What is tried again.
    RetryOf { Step => "step", Run => "run" }
}
label! {
    /// Where a run ended.
    FinalState { Completed => "completed", Failed => "failed", Cancelled => "cancelled" }
}
label! {
    /// Why a run became a dead letter.
    Reason {
        RetriesExhausted => "retries_exhausted",
        NonRetryable => "non_retryable",
        RunTimeout => "run_timeout",
        Poison => "poison",
    }
}
label! {
    /// What was overdue about a run.
    Repair {
        Woken => "woken",
        LeaseExpired => "lease_expired",
        Poisoned => "poisoned",
        RunTimedOut => "run_timed_out",
        StepTimedOut => "step_timed_out",
    }
}

impl From<DeadLetterReason> for Reason {
    fn from(reason: DeadLetterReason) -> Self {
        match reason {
            DeadLetterReason::RetriesExhausted => Self::RetriesExhausted,
            DeadLetterReason::NonRetryable => Self::NonRetryable,
            DeadLetterReason::RunTimeout => Self::RunTimeout,
            DeadLetterReason::Poison => Self::Poison,
        }
    }
}

/// What becomes of runs and steps, as the store answers it.
#[derive(Debug)]
pub(super) struct Lifecycle {
    claims: Family<[(&'static str, String); 2], Counter>,
    reclaimed: Counter,
    begun: Counters<Begun>,
    pub(super) steps: Counters<StepOutcome>,
    retries: Counters<RetryOf>,
    pub(super) finished: Counters<FinalState>,
    dead_letters: Counters<Reason>,
    repaired: Counters<Repair>,
    pub(super) requeued: Counter,
    pub(super) deleted: Counter,
    expired: Counters<FinalState>,
    /// What is counted already of what claims repaired.
    swept: Mutex<SweptStats>,
}

impl Lifecycle {
    pub(super) fn register(book: &mut Book) -> Self {
        Self {
            claims: book.register(
                "claims",
                &["namespace", "outcome"],
                "Claims by whether they took runs; a namespace is absent until the first",
                Family::default(),
            ),
            reclaimed: book.register(
                "runs_reclaimed",
                &[],
                "Runs that were claimed after their last lease expired without a finished step",
                Counter::default(),
            ),
            begun: book.counters("step_begins", &["outcome"], "Begins of steps by what the worker was told"),
            steps: book.counters("steps", &["outcome"], "Attempts of steps by how they ended"),
            retries: book.counters(
                "retries",
                &["of"],
                "Failures of steps and runs after which the run is tried again",
            ),
            finished: book.counters("runs_finished", &["state"], "Runs that finished, by state"),
            dead_letters: book.counters("dead_letters", &["reason"], "Runs that became dead letters"),
            repaired: book.counters(
                "runs_repaired",
                &["repair"],
                "Overdue runs that the reaper or a claim put in order, by what was overdue",
            ),
            requeued: book.register(
                "runs_requeued",
                &[],
                "Dead letters that were put back to work",
                Counter::default(),
            ),
            deleted: book.register(
                "runs_deleted",
                &[],
                "Finished runs that were removed",
                Counter::default(),
            ),
            expired: book.counters(
                "runs_expired",
                &["state"],
                "Finished runs that retention removed, by state; kagzi_runs_deleted_total counts them too",
            ),
            swept: Mutex::default(),
        }
    }

    /// Counts finished runs that retention removed.
    pub(super) fn expired(&self, state: RunState, runs: u64) {
        let state = match state {
            RunState::Completed => FinalState::Completed,
            RunState::Cancelled => FinalState::Cancelled,
            _ => FinalState::Failed,
        };
        self.expired.of(state).inc_by(runs);
    }

    pub(super) fn claimed(&self, namespace: &Namespace, runs: &[ClaimedRun]) {
        let taken = if runs.is_empty() { ClaimOutcome::Empty } else { ClaimOutcome::Taken };
        for outcome in ClaimOutcome::ALL {
            let labels = [("namespace", namespace.to_string()), ("outcome", outcome.as_str().to_owned())];
            // Both are there from the first claim on, so that a rate of one does not miss its first.
            self.claims.get_or_create_owned(&labels).inc_by(u64::from(*outcome == taken));
        }
        let again = runs.iter().filter(|run| run.run.lost_leases > 0).count();
        self.reclaimed.inc_by(again as u64);
    }

    pub(super) fn begun(&self, outcome: &BeginOutcome) {
        let begun = match outcome {
            BeginOutcome::Execute { .. } => Begun::Execute,
            BeginOutcome::Memoized { .. } => Begun::Memoized,
            BeginOutcome::InProgress { .. } => Begun::InProgress,
        };
        self.begun.of(begun).inc();
    }

    pub(super) fn completed_step(&self, outcome: &CompleteStepOutcome) {
        self.steps.of(StepOutcome::Completed).inc();
        match outcome {
            CompleteStepOutcome::Recorded => {}
            CompleteStepOutcome::RecordedAndNext(begun) => self.begun(begun),
            CompleteStepOutcome::RecordedAndRunCompleted => {
                self.finished.of(FinalState::Completed).inc();
            }
        }
    }

    pub(super) fn failed(&self, of: RetryOf, outcome: FailureOutcome) {
        match outcome {
            FailureOutcome::RetryAt(_) => {
                self.retries.of(of).inc();
            }
            FailureOutcome::DeadLetter(reason) => self.dead_letters(reason.into(), 1),
        }
    }

    pub(super) fn reaped(&self, reaped: &Reaped) {
        self.steps.of(StepOutcome::TimedOut).inc_by(reaped.steps_timed_out.into());
        self.repaired.of(Repair::StepTimedOut).inc_by(reaped.steps_timed_out.into());
        let given_up = reaped.steps_given_up;
        self.retries.of(RetryOf::Step).inc_by(reaped.steps_timed_out.saturating_sub(given_up.total()).into());
        self.dead_letters(Reason::RetriesExhausted, given_up.retries_exhausted.into());
        self.dead_letters(Reason::NonRetryable, given_up.non_retryable.into());
        self.dead_letters(Reason::RunTimeout, given_up.run_timeout.into());
        self.repaired(SweptStats {
            woken: reaped.woken.into(),
            leases_expired: reaped.leases_expired.into(),
            poisoned: reaped.poisoned.into(),
            runs_timed_out: reaped.runs_timed_out.into(),
        });
    }

    /// Counts what claims have repaired since the last time.
    pub(super) fn swept(&self, store: &SharedStore) {
        let mut seen = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        // Read under the lock, so that nobody counts what another has counted meanwhile.
        let now = store.stats().swept;
        let before = std::mem::replace(&mut *seen, now);
        if now != before {
            self.repaired(SweptStats {
                woken: now.woken.saturating_sub(before.woken),
                leases_expired: now.leases_expired.saturating_sub(before.leases_expired),
                poisoned: now.poisoned.saturating_sub(before.poisoned),
                runs_timed_out: now.runs_timed_out.saturating_sub(before.runs_timed_out),
            });
        }
    }

    fn repaired(&self, repaired: SweptStats) {
        self.repaired.of(Repair::Woken).inc_by(repaired.woken);
        self.repaired.of(Repair::LeaseExpired).inc_by(repaired.leases_expired);
        self.repaired.of(Repair::Poisoned).inc_by(repaired.poisoned);
        self.repaired.of(Repair::RunTimedOut).inc_by(repaired.runs_timed_out);
        self.dead_letters(Reason::Poison, repaired.poisoned);
        self.dead_letters(Reason::RunTimeout, repaired.runs_timed_out);
    }

    fn dead_letters(&self, reason: Reason, count: u64) {
        self.dead_letters.of(reason).inc_by(count);
        self.finished.of(FinalState::Failed).inc_by(count);
    }
}
