//! A store whose operations are spans.

use std::sync::Arc;

use async_trait::async_trait;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::examine::Finding;
use crate::id::RunId;
use crate::lease::GrantedLease;
use crate::name::Namespace;
use crate::op::{
    BeginOutcome, BeginStep, CancelOutcome, CancelRun, Claim, ClaimedRun, CompleteRun, CompleteRunOutcome,
    CompleteStep, CompleteStepOutcome, DeleteFinished, FailRun, FailStep, FailureOutcome, Heartbeat,
    ListAttempts, ListRuns, NextDue, QueueDepth, QueueOutcome, Reaped, ReleaseOutcome, ReleaseRun,
    RequeueOutcome, RequeueRun, RunFilter, SetQueueState, Sleep, SleepOutcome, StartRun, Started,
};
use crate::page::Page;
use crate::run::{Run, RunRecord};
use crate::stats::StoreStats;
use crate::step::Attempt;
use crate::store::{SharedStore, Store};
use crate::trace_context::SPANS;
use crate::wake::WakeHub;

/// Passes every call on to a store, within a span of target [`SPANS`] that follows the conventions of
/// OpenTelemetry for calls of a database.
///
/// Calls that are in flight together share commits, so a span tells how long its call waited for the store,
/// not what the call alone cost it. What timers ask again and again (the time, whether the store is well,
/// what is due next) makes no span.
///
/// ```
/// use std::sync::Arc;
/// use kagzi_core::Traced;
/// use kagzi_core::memory::MemoryStore;
///
/// let store = Traced::over(Arc::new(MemoryStore::default()));
/// assert_eq!(store.backend(), "memory");
/// ```
#[derive(Debug)]
pub struct Traced {
    store: SharedStore,
    system: &'static str,
}

impl Traced {
    /// The same store, traced.
    pub fn over(store: SharedStore) -> SharedStore {
        let system = match store.backend() {
            // As the conventions spell it.
            "postgres" => "postgresql",
            other => other,
        };
        Arc::new(Self { store, system })
    }

    fn span(&self, operation: &'static str) -> Span {
        tracing::info_span!(
            target: SPANS,
            "store",
            otel.name = operation,
            otel.kind = "client",
            otel.status_code = Empty,
            db.system.name = self.system,
            db.operation.name = operation,
            error.type = Empty,
            kagzi.runs = Empty,
        )
    }

    async fn within<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let span = self.span(operation);
        let answer = call.instrument(span.clone()).await;
        if let Err(error) = &answer {
            failed(&span, error);
        }
        answer
    }
}

/// What the store refused is an answer; what it could not do is an error.
fn failed(span: &Span, error: &StoreError) {
    span.record("error.type", error.reason());
    if error.is_retryable()
        || matches!(error, StoreError::Internal { .. } | StoreError::SchemaMismatch { .. })
    {
        span.record("otel.status_code", "ERROR");
    }
}

macro_rules! traced {
    ($($name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Store for Traced {
            fn backend(&self) -> &'static str {
                self.store.backend()
            }

            fn wake_hub(&self) -> &WakeHub {
                self.store.wake_hub()
            }

            fn stats(&self) -> StoreStats {
                self.store.stats()
            }

            async fn now(&self) -> Result<Timestamp, StoreError> {
                self.store.now().await
            }

            async fn probe(&self) -> Result<(), StoreError> {
                self.store.probe().await
            }

            async fn next_due(&self) -> Result<NextDue, StoreError> {
                self.store.next_due().await
            }

            async fn examine(&self) -> Result<Vec<Finding>, StoreError> {
                self.store.examine().await
            }

            async fn close(&self) -> Result<(), StoreError> {
                self.store.close().await
            }

            async fn claim(&self, request: Claim) -> Result<Vec<ClaimedRun>, StoreError> {
                let span = self.span("claim");
                let answer = self.store.claim(request).instrument(span.clone()).await;
                match &answer {
                    // Whoever waits for work claims again and again: those that got none can be told apart.
                    Ok(runs) => {
                        span.record("kagzi.runs", i64::try_from(runs.len()).unwrap_or(i64::MAX));
                    }
                    Err(error) => failed(&span, error),
                }
                answer
            }

            $(async fn $name(&self, $($argument: $type),*) -> Result<$answer, StoreError> {
                self.within(stringify!($name), self.store.$name($($argument),*)).await
            })*
        }
    };
}

traced! {
    start(batch: Vec<StartRun>) -> Vec<Started>;
    get_run(namespace: &Namespace, run_id: RunId) -> RunRecord;
    get_runs(wanted: &[(Namespace, RunId)]) -> Vec<Result<RunRecord, StoreError>>;
    list_runs(request: &ListRuns) -> Page<Run>;
    count_runs(namespace: &Namespace, filter: &RunFilter) -> u64;
    list_attempts(request: &ListAttempts) -> Page<Attempt>;
    cancel(request: CancelRun) -> CancelOutcome;
    requeue(request: RequeueRun) -> RequeueOutcome;
    heartbeat(batch: Vec<Heartbeat>) -> Vec<Result<GrantedLease, StoreError>>;
    begin_step(request: BeginStep) -> BeginOutcome;
    complete_step(request: CompleteStep) -> CompleteStepOutcome;
    fail_step(request: FailStep) -> FailureOutcome;
    sleep(request: Sleep) -> SleepOutcome;
    complete_run(request: CompleteRun) -> CompleteRunOutcome;
    fail_run(request: FailRun) -> FailureOutcome;
    release(request: ReleaseRun) -> ReleaseOutcome;
    reap(limit: u32) -> Reaped;
    queue_depths(namespace: &Namespace) -> Vec<QueueDepth>;
    set_queue_state(request: SetQueueState) -> QueueOutcome;
    delete_finished(request: &DeleteFinished) -> u64;
}
