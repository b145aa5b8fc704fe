//! Bugs as wrappers round a store that works: each changes the calls it is about and passes on the rest.

pub mod answers;
pub mod batching;
pub mod claim;
pub mod fencing;
pub mod listing;
pub mod many;
pub mod reading;
pub mod reap;
pub mod repairs;
pub mod stale;
pub mod step;
pub mod wake_up;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use kagzi_core::{
    Attempt, BeginOutcome, BeginStep, CancelOutcome, CancelRun, Claim, ClaimedRun, CompleteRun,
    CompleteRunOutcome, CompleteStep, CompleteStepOutcome, DeleteFinished, FailRun, FailStep, FailureOutcome,
    Finding, GrantedLease, Heartbeat, ListAttempts, ListRuns, Namespace, NextDue, Page, QueueDepth,
    QueueOutcome, Reaped, ReleaseOutcome, ReleaseRun, RequeueOutcome, RequeueRun, Run, RunFilter, RunId,
    RunRecord, SetQueueState, SharedStore, Sleep, SleepOutcome, StartRun, Started, Store, StoreError,
    Timestamp, WakeHub,
};

/// The answer to a batch of heartbeats.
pub type Beats = Result<Vec<Result<GrantedLease, StoreError>>, StoreError>;

/// Time enough for another to come in between.
pub async fn meanwhile() {
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
}

/// What is wrong with a store: the calls that a bug leaves alone reach the store as they are.
#[async_trait]
pub trait Bug: fmt::Debug + Send + Sync + 'static {
    /// See [`Store::wake_hub`].
    fn wake_hub<'a>(&'a self, store: &'a SharedStore) -> &'a WakeHub {
        store.wake_hub()
    }
    /// See [`Store::now`].
    async fn now(&self, store: &SharedStore) -> Result<Timestamp, StoreError> {
        store.now().await
    }
    /// See [`Store::start`].
    async fn start(&self, store: &SharedStore, batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        store.start(batch).await
    }
    /// See [`Store::get_run`].
    async fn get_run(
        &self,
        store: &SharedStore,
        namespace: &Namespace,
        run_id: RunId,
    ) -> Result<RunRecord, StoreError> {
        store.get_run(namespace, run_id).await
    }
    /// See [`Store::get_runs`].
    async fn get_runs(
        &self,
        store: &SharedStore,
        wanted: &[(Namespace, RunId)],
    ) -> Result<Vec<Result<RunRecord, StoreError>>, StoreError> {
        store.get_runs(wanted).await
    }
    /// See [`Store::queue_depths`].
    async fn queue_depths(
        &self,
        store: &SharedStore,
        namespace: &Namespace,
    ) -> Result<Vec<QueueDepth>, StoreError> {
        store.queue_depths(namespace).await
    }
    /// See [`Store::list_runs`].
    async fn list_runs(&self, store: &SharedStore, request: &ListRuns) -> Result<Page<Run>, StoreError> {
        store.list_runs(request).await
    }
    /// See [`Store::count_runs`].
    async fn count_runs(
        &self,
        store: &SharedStore,
        namespace: &Namespace,
        filter: &RunFilter,
    ) -> Result<u64, StoreError> {
        store.count_runs(namespace, filter).await
    }
    /// See [`Store::list_attempts`].
    async fn list_attempts(
        &self,
        store: &SharedStore,
        request: &ListAttempts,
    ) -> Result<Page<Attempt>, StoreError> {
        store.list_attempts(request).await
    }
    /// See [`Store::cancel`].
    async fn cancel(&self, store: &SharedStore, request: CancelRun) -> Result<CancelOutcome, StoreError> {
        store.cancel(request).await
    }
    /// See [`Store::requeue`].
    async fn requeue(&self, store: &SharedStore, request: RequeueRun) -> Result<RequeueOutcome, StoreError> {
        store.requeue(request).await
    }
    /// See [`Store::claim`].
    async fn claim(&self, store: &SharedStore, request: Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        store.claim(request).await
    }
    /// See [`Store::heartbeat`].
    async fn heartbeat(&self, store: &SharedStore, batch: Vec<Heartbeat>) -> Beats {
        store.heartbeat(batch).await
    }
    /// See [`Store::begin_step`].
    async fn begin_step(&self, store: &SharedStore, request: BeginStep) -> Result<BeginOutcome, StoreError> {
        store.begin_step(request).await
    }
    /// See [`Store::complete_step`].
    async fn complete_step(
        &self,
        store: &SharedStore,
        request: CompleteStep,
    ) -> Result<CompleteStepOutcome, StoreError> {
        store.complete_step(request).await
    }
    /// See [`Store::fail_step`].
    async fn fail_step(&self, store: &SharedStore, request: FailStep) -> Result<FailureOutcome, StoreError> {
        store.fail_step(request).await
    }
    /// See [`Store::sleep`].
    async fn sleep(&self, store: &SharedStore, request: Sleep) -> Result<SleepOutcome, StoreError> {
        store.sleep(request).await
    }
    /// See [`Store::complete_run`].
    async fn complete_run(
        &self,
        store: &SharedStore,
        request: CompleteRun,
    ) -> Result<CompleteRunOutcome, StoreError> {
        store.complete_run(request).await
    }
    /// See [`Store::fail_run`].
    async fn fail_run(&self, store: &SharedStore, request: FailRun) -> Result<FailureOutcome, StoreError> {
        store.fail_run(request).await
    }
    /// See [`Store::release`].
    async fn release(&self, store: &SharedStore, request: ReleaseRun) -> Result<ReleaseOutcome, StoreError> {
        store.release(request).await
    }
    /// See [`Store::reap`].
    async fn reap(&self, store: &SharedStore, limit: u32) -> Result<Reaped, StoreError> {
        store.reap(limit).await
    }
    /// See [`Store::next_due`].
    async fn next_due(&self, store: &SharedStore) -> Result<NextDue, StoreError> {
        store.next_due().await
    }
    /// See [`Store::set_queue_state`].
    async fn set_queue_state(
        &self,
        store: &SharedStore,
        request: SetQueueState,
    ) -> Result<QueueOutcome, StoreError> {
        store.set_queue_state(request).await
    }
    /// See [`Store::delete_finished`].
    async fn delete_finished(
        &self,
        store: &SharedStore,
        request: &DeleteFinished,
    ) -> Result<u64, StoreError> {
        store.delete_finished(request).await
    }
}

/// A store with a bug.
#[derive(Debug)]
struct Broken {
    store: SharedStore,
    bug: Arc<dyn Bug>,
}

/// Breaks a store.
pub fn broken(store: SharedStore, bug: Arc<dyn Bug>) -> SharedStore {
    Arc::new(Broken { store, bug })
}

#[async_trait]
impl Store for Broken {
    fn backend(&self) -> &'static str {
        self.store.backend()
    }
    fn wake_hub(&self) -> &WakeHub {
        self.bug.wake_hub(&self.store)
    }
    async fn now(&self) -> Result<Timestamp, StoreError> {
        self.bug.now(&self.store).await
    }
    async fn start(&self, batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        self.bug.start(&self.store, batch).await
    }
    async fn get_run(&self, namespace: &Namespace, run_id: RunId) -> Result<RunRecord, StoreError> {
        self.bug.get_run(&self.store, namespace, run_id).await
    }
    async fn get_runs(
        &self,
        wanted: &[(Namespace, RunId)],
    ) -> Result<Vec<Result<RunRecord, StoreError>>, StoreError> {
        self.bug.get_runs(&self.store, wanted).await
    }
    async fn list_runs(&self, request: &ListRuns) -> Result<Page<Run>, StoreError> {
        self.bug.list_runs(&self.store, request).await
    }
    async fn count_runs(&self, namespace: &Namespace, filter: &RunFilter) -> Result<u64, StoreError> {
        self.bug.count_runs(&self.store, namespace, filter).await
    }
    async fn list_attempts(&self, request: &ListAttempts) -> Result<Page<Attempt>, StoreError> {
        self.bug.list_attempts(&self.store, request).await
    }
    async fn cancel(&self, request: CancelRun) -> Result<CancelOutcome, StoreError> {
        self.bug.cancel(&self.store, request).await
    }
    async fn requeue(&self, request: RequeueRun) -> Result<RequeueOutcome, StoreError> {
        self.bug.requeue(&self.store, request).await
    }
    async fn claim(&self, request: Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        self.bug.claim(&self.store, request).await
    }
    async fn heartbeat(&self, batch: Vec<Heartbeat>) -> Beats {
        self.bug.heartbeat(&self.store, batch).await
    }
    async fn begin_step(&self, request: BeginStep) -> Result<BeginOutcome, StoreError> {
        self.bug.begin_step(&self.store, request).await
    }
    async fn complete_step(&self, request: CompleteStep) -> Result<CompleteStepOutcome, StoreError> {
        self.bug.complete_step(&self.store, request).await
    }
    async fn fail_step(&self, request: FailStep) -> Result<FailureOutcome, StoreError> {
        self.bug.fail_step(&self.store, request).await
    }
    async fn sleep(&self, request: Sleep) -> Result<SleepOutcome, StoreError> {
        self.bug.sleep(&self.store, request).await
    }
    async fn complete_run(&self, request: CompleteRun) -> Result<CompleteRunOutcome, StoreError> {
        self.bug.complete_run(&self.store, request).await
    }
    async fn fail_run(&self, request: FailRun) -> Result<FailureOutcome, StoreError> {
        self.bug.fail_run(&self.store, request).await
    }
    async fn release(&self, request: ReleaseRun) -> Result<ReleaseOutcome, StoreError> {
        self.bug.release(&self.store, request).await
    }
    async fn reap(&self, limit: u32) -> Result<Reaped, StoreError> {
        self.bug.reap(&self.store, limit).await
    }
    async fn next_due(&self) -> Result<NextDue, StoreError> {
        self.bug.next_due(&self.store).await
    }
    async fn queue_depths(&self, namespace: &Namespace) -> Result<Vec<QueueDepth>, StoreError> {
        self.bug.queue_depths(&self.store, namespace).await
    }
    async fn set_queue_state(&self, request: SetQueueState) -> Result<QueueOutcome, StoreError> {
        self.bug.set_queue_state(&self.store, request).await
    }
    async fn delete_finished(&self, request: &DeleteFinished) -> Result<u64, StoreError> {
        self.bug.delete_finished(&self.store, request).await
    }
    async fn examine(&self) -> Result<Vec<Finding>, StoreError> {
        self.store.examine().await
    }
    async fn close(&self) -> Result<(), StoreError> {
        self.store.close().await
    }
}
