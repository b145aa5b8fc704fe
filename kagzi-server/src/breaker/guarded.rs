//! A store behind the breaker.

use std::sync::Arc;

use async_trait::async_trait;
use kagzi_core::{
    Attempt, BeginOutcome, BeginStep, CancelOutcome, CancelRun, Claim, ClaimedRun, CompleteRun,
    CompleteRunOutcome, CompleteStep, CompleteStepOutcome, DeleteFinished, FailRun, FailStep, FailureOutcome,
    Finding, GrantedLease, Heartbeat, ListAttempts, ListRuns, Namespace, NextDue, Page, QueueDepth,
    QueueOutcome, Reaped, ReleaseOutcome, ReleaseRun, RequeueOutcome, RequeueRun, Run, RunFilter, RunId,
    RunRecord, SetQueueState, SharedStore, Sleep, SleepOutcome, StartRun, Started, Store, StoreError,
    StoreStats, Timestamp, WakeHub,
};

use super::{Breaker, SHORTEST_RETRY};
use crate::metrics::Operation;

/// Passes calls on to a store while the breaker is closed.
#[derive(Debug)]
pub(crate) struct Guarded {
    store: SharedStore,
    breaker: Breaker,
}

/// What a call does, which says what a caller who is cut off may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    /// Writes where it finds something to do. That it is answered does not show that the store takes writes.
    Find,
}

impl Kind {
    fn cut_off(self) -> StoreError {
        let reason = "the store did not answer in time, and the server stopped waiting for it";
        match self {
            Self::Read => StoreError::unavailable(reason, SHORTEST_RETRY),
            Self::Write | Self::Find => StoreError::outcome_unknown(reason),
        }
    }
}

impl Guarded {
    pub(crate) fn over(store: SharedStore, breaker: Breaker) -> SharedStore {
        Arc::new(Self { store, breaker })
    }

    async fn pass<T>(
        &self,
        operation: Operation,
        kind: Kind,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        // Made before the look at the state, so that an opening in between is heard.
        let cut = self.breaker.cut();
        self.breaker.admit()?;
        let _waiting = self.breaker.wait(kind);
        tokio::select! {
            biased;
            answer = call => {
                self.breaker.note(operation, kind, &answer);
                answer
            }
            // Dropping a call leaves it done or not done, never half.
            () = cut => {
                self.breaker.cut_off();
                Err(kind.cut_off())
            }
        }
    }
}

macro_rules! guarded {
    ($($kind:ident $operation:ident $name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Store for Guarded {
            fn backend(&self) -> &'static str {
                self.store.backend()
            }

            fn wake_hub(&self) -> &WakeHub {
                self.store.wake_hub()
            }

            fn stats(&self) -> StoreStats {
                self.store.stats()
            }

            $(async fn $name(&self, $($argument: $type),*) -> Result<$answer, StoreError> {
                self.pass(Operation::$operation, Kind::$kind, self.store.$name($($argument),*)).await
            })*

            /// Whoever examines a store wants to hear what is wrong with it, also while it is away.
            async fn examine(&self) -> Result<Vec<Finding>, StoreError> {
                self.store.examine().await
            }

            /// Whoever closes the store wants what is in flight finished.
            async fn close(&self) -> Result<(), StoreError> {
                self.store.close().await
            }
        }
    };
}

guarded! {
    Read Now now() -> Timestamp;
    Read Probe probe() -> ();
    Write Start start(batch: Vec<StartRun>) -> Vec<Started>;
    Read GetRun get_run(namespace: &Namespace, run_id: RunId) -> RunRecord;
    Read GetRuns get_runs(wanted: &[(Namespace, RunId)]) -> Vec<Result<RunRecord, StoreError>>;
    Read ListRuns list_runs(request: &ListRuns) -> Page<Run>;
    Read CountRuns count_runs(namespace: &Namespace, filter: &RunFilter) -> u64;
    Read ListAttempts list_attempts(request: &ListAttempts) -> Page<Attempt>;
    Write Cancel cancel(request: CancelRun) -> CancelOutcome;
    Write Requeue requeue(request: RequeueRun) -> RequeueOutcome;
    Find Claim claim(request: Claim) -> Vec<ClaimedRun>;
    Write Heartbeat heartbeat(batch: Vec<Heartbeat>) -> Vec<Result<GrantedLease, StoreError>>;
    Write BeginStep begin_step(request: BeginStep) -> BeginOutcome;
    Write CompleteStep complete_step(request: CompleteStep) -> CompleteStepOutcome;
    Write FailStep fail_step(request: FailStep) -> FailureOutcome;
    Write Sleep sleep(request: Sleep) -> SleepOutcome;
    Write CompleteRun complete_run(request: CompleteRun) -> CompleteRunOutcome;
    Write FailRun fail_run(request: FailRun) -> FailureOutcome;
    Write Release release(request: ReleaseRun) -> ReleaseOutcome;
    Find Reap reap(limit: u32) -> Reaped;
    Read NextDue next_due() -> NextDue;
    Read QueueDepths queue_depths(namespace: &Namespace) -> Vec<QueueDepth>;
    Write SetQueueState set_queue_state(request: SetQueueState) -> QueueOutcome;
    Find DeleteFinished delete_finished(request: &DeleteFinished) -> u64;
}
