//! A store that is still waited for: away until it is there, and from then on that store.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use kagzi_core::{
    Attempt, BeginOutcome, BeginStep, CancelOutcome, CancelRun, Claim, ClaimedRun, CompleteRun,
    CompleteRunOutcome, CompleteStep, CompleteStepOutcome, DeleteFinished, FailRun, FailStep, FailureOutcome,
    Finding, GrantedLease, Heartbeat, ListAttempts, ListRuns, Namespace, NextDue, Page, QueueDepth,
    QueueOutcome, Reaped, ReleaseOutcome, ReleaseRun, RequeueOutcome, RequeueRun, Run, RunFilter, RunId,
    RunRecord, SetQueueState, SharedStore, Sleep, SleepOutcome, StartRun, Started, Store, StoreError,
    StoreStats, Timestamp, WakeHub,
};

/// When a caller should ask again; the breaker tells those who come later by when it looks next.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Awaited {
    backend: &'static str,
    store: OnceLock<SharedStore>,
    /// Where whoever came too early waits.
    early: WakeHub,
    /// Why it is not there.
    why: Mutex<String>,
}

impl Awaited {
    pub(super) fn new(backend: &'static str, why: String) -> Self {
        Self { backend, store: OnceLock::new(), early: WakeHub::new(), why: Mutex::new(why) }
    }

    /// It is still away.
    pub(super) fn is_away(&self, why: String) {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// It is there: this one.
    pub(super) fn is(&self, store: SharedStore) {
        self.store.get_or_init(|| store);
        self.early.announce_all();
    }

    fn there(&self) -> Result<&SharedStore, StoreError> {
        self.store.get().ok_or_else(|| {
            let why = self.why.lock().unwrap_or_else(PoisonError::into_inner);
            StoreError::unavailable(format!("it has not opened since the server started: {why}"), RETRY_AFTER)
        })
    }
}

macro_rules! awaited {
    ($($name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Store for Awaited {
            fn backend(&self) -> &'static str {
                self.backend
            }

            fn wake_hub(&self) -> &WakeHub {
                self.store.get().map_or(&self.early, |store| store.wake_hub())
            }

            fn stats(&self) -> StoreStats {
                self.store.get().map(|store| store.stats()).unwrap_or_default()
            }

            $(async fn $name(&self, $($argument: $type),*) -> Result<$answer, StoreError> {
                self.there()?.$name($($argument),*).await
            })*

            /// There is nothing to close of a store that never came.
            async fn close(&self) -> Result<(), StoreError> {
                match self.store.get() {
                    Some(store) => store.close().await,
                    None => Ok(()),
                }
            }
        }
    };
}

awaited! {
    now() -> Timestamp;
    probe() -> ();
    examine() -> Vec<Finding>;
    start(batch: Vec<StartRun>) -> Vec<Started>;
    get_run(namespace: &Namespace, run_id: RunId) -> RunRecord;
    get_runs(wanted: &[(Namespace, RunId)]) -> Vec<Result<RunRecord, StoreError>>;
    list_runs(request: &ListRuns) -> Page<Run>;
    count_runs(namespace: &Namespace, filter: &RunFilter) -> u64;
    list_attempts(request: &ListAttempts) -> Page<Attempt>;
    cancel(request: CancelRun) -> CancelOutcome;
    requeue(request: RequeueRun) -> RequeueOutcome;
    claim(request: Claim) -> Vec<ClaimedRun>;
    heartbeat(batch: Vec<Heartbeat>) -> Vec<Result<GrantedLease, StoreError>>;
    begin_step(request: BeginStep) -> BeginOutcome;
    complete_step(request: CompleteStep) -> CompleteStepOutcome;
    fail_step(request: FailStep) -> FailureOutcome;
    sleep(request: Sleep) -> SleepOutcome;
    complete_run(request: CompleteRun) -> CompleteRunOutcome;
    fail_run(request: FailRun) -> FailureOutcome;
    release(request: ReleaseRun) -> ReleaseOutcome;
    reap(limit: u32) -> Reaped;
    next_due() -> NextDue;
    queue_depths(namespace: &Namespace) -> Vec<QueueDepth>;
    set_queue_state(request: SetQueueState) -> QueueOutcome;
    delete_finished(request: &DeleteFinished) -> u64;
}
