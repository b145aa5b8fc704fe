//! A store that keeps a log of what it was asked and what it answered.

mod call;
mod describe;
mod log;

pub(crate) use call::{Answer, Call, Refusal, Reply};
pub(crate) use describe::Describe;
pub(crate) use log::Log;

use async_trait::async_trait;
use kagzi_core::{
    Attempt, BeginOutcome, BeginStep, CancelOutcome, CancelRun, Claim, ClaimedRun, CompleteRun,
    CompleteRunOutcome, CompleteStep, CompleteStepOutcome, DeleteFinished, FailRun, FailStep, FailureOutcome,
    Finding, GrantedLease, Heartbeat, ListAttempts, ListRuns, Namespace, NextDue, Page, QueueDepth,
    QueueOutcome, Reaped, ReleaseOutcome, ReleaseRun, RequeueOutcome, RequeueRun, Run, RunFilter, RunId,
    RunRecord, SetQueueState, SharedStore, Sleep, SleepOutcome, StartRun, Started, Store, StoreError,
    StoreStats, Timestamp, WakeHub,
};

/// A wrapper round any store: passes every call on and logs it. `handle` tells several handles apart.
#[derive(Debug)]
pub(crate) struct Recorded {
    inner: SharedStore,
    log: Log,
    handle: &'static str,
}

impl Recorded {
    pub(crate) fn new(inner: SharedStore, log: Log, handle: &'static str) -> Self {
        Self { inner, log, handle }
    }

    async fn logged<T: Describe + Send>(
        &self,
        call: String,
        answer: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let entry = self.log.call(format!("{}{call}", self.handle));
        let answer = answer.await;
        self.log.answer(
            entry,
            match &answer {
                Ok(value) => value.describe(),
                Err(error) => error.describe(),
            },
        );
        answer
    }
}

#[async_trait]
impl Store for Recorded {
    fn backend(&self) -> &'static str {
        self.inner.backend()
    }

    fn wake_hub(&self) -> &WakeHub {
        self.inner.wake_hub()
    }

    fn stats(&self) -> StoreStats {
        self.inner.stats()
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.inner.probe().await
    }

    async fn now(&self) -> Result<Timestamp, StoreError> {
        self.inner.now().await
    }

    async fn start(&self, batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        self.logged(format!("start({})", batch.describe()), self.inner.start(batch)).await
    }

    async fn get_run(&self, namespace: &Namespace, run_id: RunId) -> Result<RunRecord, StoreError> {
        self.logged(format!("get_run({namespace}, {run_id})"), self.inner.get_run(namespace, run_id)).await
    }

    async fn get_runs(
        &self,
        wanted: &[(Namespace, RunId)],
    ) -> Result<Vec<Result<RunRecord, StoreError>>, StoreError> {
        self.logged(format!("get_runs({})", wanted.describe()), self.inner.get_runs(wanted)).await
    }

    async fn list_runs(&self, request: &ListRuns) -> Result<Page<Run>, StoreError> {
        self.logged(format!("list_runs({})", request.describe()), self.inner.list_runs(request)).await
    }

    async fn count_runs(&self, namespace: &Namespace, filter: &RunFilter) -> Result<u64, StoreError> {
        self.logged(format!("count_runs({namespace})"), self.inner.count_runs(namespace, filter)).await
    }

    async fn list_attempts(&self, request: &ListAttempts) -> Result<Page<Attempt>, StoreError> {
        self.logged(format!("list_attempts({})", request.describe()), self.inner.list_attempts(request)).await
    }

    async fn cancel(&self, request: CancelRun) -> Result<CancelOutcome, StoreError> {
        self.logged(format!("cancel({})", request.describe()), self.inner.cancel(request)).await
    }

    async fn requeue(&self, request: RequeueRun) -> Result<RequeueOutcome, StoreError> {
        self.logged(format!("requeue({})", request.describe()), self.inner.requeue(request)).await
    }

    async fn claim(&self, request: Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        self.logged(format!("claim({})", request.describe()), self.inner.claim(request)).await
    }

    async fn heartbeat(
        &self,
        batch: Vec<Heartbeat>,
    ) -> Result<Vec<Result<GrantedLease, StoreError>>, StoreError> {
        self.logged(format!("heartbeat({})", batch.describe()), self.inner.heartbeat(batch)).await
    }

    async fn begin_step(&self, request: BeginStep) -> Result<BeginOutcome, StoreError> {
        self.logged(format!("begin_step({})", request.describe()), self.inner.begin_step(request)).await
    }

    async fn complete_step(&self, request: CompleteStep) -> Result<CompleteStepOutcome, StoreError> {
        self.logged(format!("complete_step({})", request.describe()), self.inner.complete_step(request)).await
    }

    async fn fail_step(&self, request: FailStep) -> Result<FailureOutcome, StoreError> {
        self.logged(format!("fail_step({})", request.describe()), self.inner.fail_step(request)).await
    }

    async fn sleep(&self, request: Sleep) -> Result<SleepOutcome, StoreError> {
        self.logged(format!("sleep({})", request.describe()), self.inner.sleep(request)).await
    }

    async fn complete_run(&self, request: CompleteRun) -> Result<CompleteRunOutcome, StoreError> {
        self.logged(format!("complete_run({})", request.describe()), self.inner.complete_run(request)).await
    }

    async fn fail_run(&self, request: FailRun) -> Result<FailureOutcome, StoreError> {
        self.logged(format!("fail_run({})", request.describe()), self.inner.fail_run(request)).await
    }

    async fn release(&self, request: ReleaseRun) -> Result<ReleaseOutcome, StoreError> {
        self.logged(format!("release({})", request.describe()), self.inner.release(request)).await
    }

    async fn reap(&self, limit: u32) -> Result<Reaped, StoreError> {
        self.logged(format!("reap({limit})"), self.inner.reap(limit)).await
    }

    async fn next_due(&self) -> Result<NextDue, StoreError> {
        self.logged("next_due()".to_owned(), self.inner.next_due()).await
    }

    async fn queue_depths(&self, namespace: &Namespace) -> Result<Vec<QueueDepth>, StoreError> {
        self.logged(format!("queue_depths({namespace})"), self.inner.queue_depths(namespace)).await
    }

    async fn set_queue_state(&self, request: SetQueueState) -> Result<QueueOutcome, StoreError> {
        self.logged(format!("set_queue_state({})", request.describe()), self.inner.set_queue_state(request))
            .await
    }

    async fn delete_finished(&self, request: &DeleteFinished) -> Result<u64, StoreError> {
        self.logged(format!("delete_finished({})", request.describe()), self.inner.delete_finished(request))
            .await
    }

    // Nothing of the contract to judge, so nothing for the log.
    async fn examine(&self) -> Result<Vec<Finding>, StoreError> {
        self.inner.examine().await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.logged("close()".to_owned(), self.inner.close()).await
    }
}
