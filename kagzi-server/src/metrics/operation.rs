//! Store operations: how many, how long, and how they ended.

use std::sync::OnceLock;
use std::time::Instant;

use kagzi_core::StoreError;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::label::{Book, Counters, Label, Pair, label};

label! {
    /// What a store is asked, as in [`Store`](kagzi_core::Store).
    Operation {
        Now => "now",
        Probe => "probe",
        Start => "start",
        GetRun => "get_run",
        GetRuns => "get_runs",
        ListRuns => "list_runs",
        CountRuns => "count_runs",
        ListAttempts => "list_attempts",
        Cancel => "cancel",
        Requeue => "requeue",
        Claim => "claim",
        Heartbeat => "heartbeat",
        BeginStep => "begin_step",
        CompleteStep => "complete_step",
        FailStep => "fail_step",
        Sleep => "sleep",
        CompleteRun => "complete_run",
        FailRun => "fail_run",
        Release => "release",
        Reap => "reap",
        NextDue => "next_due",
        QueueDepths => "queue_depths",
        SetQueueState => "set_queue_state",
        DeleteFinished => "delete_finished",
        Close => "close",
    }
}

label! {
    /// How an operation ended.
    Outcome {
        Ok => "ok",
        Refused => "refused",
        Unavailable => "unavailable",
        Unknown => "unknown",
        Internal => "internal",
        Dropped => "dropped",
    }
}

impl Outcome {
    fn of(error: &StoreError) -> Self {
        match error {
            StoreError::Unavailable { .. } => Self::Unavailable,
            StoreError::OutcomeUnknown { .. } => Self::Unknown,
            StoreError::Internal { .. } | StoreError::SchemaMismatch { .. } => Self::Internal,
            _ => Self::Refused,
        }
    }
}

/// From half a millisecond, an operation on memory, to ten seconds, longer than any is meant to take.
pub(super) const BUCKETS_SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

pub(super) fn durations() -> Histogram {
    Histogram::new(BUCKETS_SECONDS)
}

/// How long operations took, by operation and outcome; how many are under way; which lost their lease.
#[derive(Debug)]
pub(super) struct Operations {
    family: Family<[Pair; 2], Histogram>,
    /// Those that were needed so far, by [`Operation`] and then [`Outcome`].
    histograms: Vec<OnceLock<Histogram>>,
    in_flight: Gauge,
    leases_lost: Counters<Operation>,
}

impl Operations {
    pub(super) fn register(book: &mut Book) -> Self {
        let family = book.register(
            "store_operation_duration_seconds",
            &["operation", "outcome"],
            "How long the store took for an operation; outcome dropped: its caller went away, or the breaker cut it off",
            Family::new_with_constructor(durations as fn() -> Histogram),
        );
        let in_flight = book.register(
            "store_operations_in_flight",
            &[],
            "Operations that the store has not answered yet",
            Gauge::default(),
        );
        let leases_lost = book.counters(
            "leases_lost",
            &["operation"],
            "Writes and heartbeats that were refused because their lease was lost, each heartbeat of a batch by itself",
        );
        let histograms = (0..Operation::ALL.len() * Outcome::ALL.len()).map(|_| OnceLock::new()).collect();
        Self { family, histograms, in_flight, leases_lost }
    }

    /// Begins an operation.
    pub(super) fn begin(&self, operation: Operation) -> Underway<'_> {
        self.in_flight.inc();
        Underway { operations: self, operation, began: Instant::now(), outcome: Outcome::Dropped }
    }

    pub(super) fn lease_lost(&self, operation: Operation) {
        self.leases_lost.of(operation).inc();
    }

    fn histogram(&self, operation: Operation, outcome: Outcome) -> &Histogram {
        self.histograms[operation.index() * Outcome::ALL.len() + outcome.index()].get_or_init(|| {
            let labels = [("operation", operation.as_str()), ("outcome", outcome.as_str())];
            self.family.get_or_create_owned(&labels)
        })
    }
}

/// An operation that is under way; counted when it ends, or is dropped.
#[derive(Debug)]
pub(super) struct Underway<'o> {
    operations: &'o Operations,
    operation: Operation,
    began: Instant,
    outcome: Outcome,
}

impl Underway<'_> {
    /// The store has answered.
    pub(super) fn end<T>(mut self, answer: &Result<T, StoreError>) {
        self.outcome = match answer {
            Ok(_) => Outcome::Ok,
            Err(error) => {
                if matches!(error, StoreError::LeaseLost { .. }) {
                    self.operations.lease_lost(self.operation);
                }
                Outcome::of(error)
            }
        };
    }
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        self.operations.in_flight.dec();
        let took = self.began.elapsed().as_secs_f64();
        self.operations.histogram(self.operation, self.outcome).observe(took);
    }
}
