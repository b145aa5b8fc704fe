//! The engine in the application's own process, over any store.

use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use kagzi_core::engine::{Engine, EngineOptions};
use kagzi_core::{
    Attempt, BeginOutcome, BeginStep, CancelOutcome, CancelRun, Claim, ClaimedRun, CompleteRun,
    CompleteRunOutcome, CompleteStep, CompleteStepOutcome, FailRun, FailStep, FailureOutcome, GrantedLease,
    Heartbeat, ListAttempts, ListRuns, Namespace, Page, QueueDepth, QueueOutcome, ReleaseOutcome, ReleaseRun,
    RequeueOutcome, RequeueRun, Run, RunFilter, RunId, RunRecord, SetQueueState, SharedStore, Sleep,
    SleepOutcome, StartRun, Started, StoreError,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Transport;
use crate::trace;

/// An engine over a store, with its reaper, for as long as this value lives.
///
/// Any number of processes may embed an engine over one store, beside any number of servers.
#[derive(Debug)]
pub struct Embedded {
    engine: Engine,
    /// The reaper starts with the first call, since a task needs a runtime to run in, and stops with
    /// this value.
    reaper: OnceLock<DropGuard>,
}

impl Embedded {
    /// An engine over `store`.
    pub fn new(store: SharedStore, options: EngineOptions) -> Self {
        Self { engine: Engine::new(store, options), reaper: OnceLock::new() }
    }

    /// The engine, with its reaper running.
    fn engine(&self) -> &Engine {
        self.reaper.get_or_init(|| {
            let stop = CancellationToken::new();
            let (engine, stopped) = (self.engine.clone(), stop.clone());
            tokio::spawn(async move { engine.run_reaper(stopped.cancelled()).await });
            stop.drop_guard()
        });
        &self.engine
    }

    fn store(&self) -> &SharedStore {
        self.engine().store()
    }
}

#[async_trait]
impl Transport for Embedded {
    async fn start(&self, mut batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        // Over gRPC the server does that, with what the call carries.
        if let Some(context) = trace::outgoing() {
            for start in &mut batch {
                start.trace_context.get_or_insert_with(|| context.as_ref().to_owned());
            }
        }
        self.engine().start(batch).await
    }

    async fn get_run(&self, namespace: &Namespace, run_id: RunId) -> Result<RunRecord, StoreError> {
        self.store().get_run(namespace, run_id).await
    }

    async fn await_finished(
        &self,
        namespace: &Namespace,
        run_id: RunId,
        wait: Duration,
    ) -> Result<RunRecord, StoreError> {
        self.engine().await_finished(namespace, run_id, wait).await
    }

    async fn list_runs(&self, request: &ListRuns) -> Result<Page<Run>, StoreError> {
        self.store().list_runs(request).await
    }

    async fn count_runs(&self, namespace: &Namespace, filter: &RunFilter) -> Result<u64, StoreError> {
        self.store().count_runs(namespace, filter).await
    }

    async fn list_attempts(&self, request: &ListAttempts) -> Result<Page<Attempt>, StoreError> {
        self.store().list_attempts(request).await
    }

    async fn cancel(&self, request: CancelRun) -> Result<CancelOutcome, StoreError> {
        self.store().cancel(request).await
    }

    async fn requeue(&self, request: RequeueRun) -> Result<RequeueOutcome, StoreError> {
        self.store().requeue(request).await
    }

    async fn set_queue_state(&self, request: SetQueueState) -> Result<QueueOutcome, StoreError> {
        self.store().set_queue_state(request).await
    }

    async fn queue_depths(&self, namespace: &Namespace) -> Result<Vec<QueueDepth>, StoreError> {
        self.store().queue_depths(namespace).await
    }

    async fn poll(&self, claim: Claim, wait: Duration) -> Result<Vec<ClaimedRun>, StoreError> {
        self.engine().poll(claim, wait).await
    }

    async fn heartbeat(
        &self,
        batch: Vec<Heartbeat>,
    ) -> Result<Vec<Result<GrantedLease, StoreError>>, StoreError> {
        self.store().heartbeat(batch).await
    }

    async fn begin_step(&self, request: BeginStep) -> Result<BeginOutcome, StoreError> {
        self.store().begin_step(request).await
    }

    async fn complete_step(&self, request: CompleteStep) -> Result<CompleteStepOutcome, StoreError> {
        self.store().complete_step(request).await
    }

    async fn fail_step(&self, request: FailStep) -> Result<FailureOutcome, StoreError> {
        self.store().fail_step(request).await
    }

    async fn sleep(&self, request: Sleep) -> Result<SleepOutcome, StoreError> {
        self.store().sleep(request).await
    }

    async fn complete_run(&self, request: CompleteRun) -> Result<CompleteRunOutcome, StoreError> {
        self.store().complete_run(request).await
    }

    async fn fail_run(&self, request: FailRun) -> Result<FailureOutcome, StoreError> {
        self.store().fail_run(request).await
    }

    async fn release(&self, request: ReleaseRun) -> Result<ReleaseOutcome, StoreError> {
        self.store().release(request).await
    }
}
