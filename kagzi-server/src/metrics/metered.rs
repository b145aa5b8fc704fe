//! A store that counts: whoever asks it, the services, the engine or the reaper.

use std::sync::Arc;

use async_trait::async_trait;
use kagzi_core::{
    Attempt, BeginOutcome, BeginStep, CancelOutcome, CancelRun, Claim, ClaimedRun, CompleteRun,
    CompleteRunOutcome, CompleteStep, CompleteStepOutcome, DeleteFinished, FailRun, FailStep, FailureOutcome,
    Finding, GrantedLease, Heartbeat, ListAttempts, ListRuns, Namespace, NextDue, Page, QueueDepth,
    QueueOutcome, Reaped, ReleaseOutcome, ReleaseRun, RequeueOutcome, RequeueRun, Run, RunFilter, RunId,
    RunRecord, SetQueueState, SharedStore, Sleep, SleepOutcome, StartOutcome, StartRun, Started, Store,
    StoreError, StoreStats, Timestamp, WakeHub,
};

use super::Metrics;
use super::lifecycle::{FinalState, RetryOf, StepOutcome};
use super::operation::Operation;

/// Passes every call on to a store and counts it.
///
/// What is counted are answers: an operation that is sent again after a lost reply gets the first answer,
/// and is counted again. The cost of a call is two looks at the clock, a histogram of which each
/// operation has its own, and a few atomic additions: well under a microsecond, where the quickest
/// operation on a database takes a hundred.
#[derive(Debug)]
pub(crate) struct Metered {
    store: SharedStore,
    metrics: Metrics,
}

impl Metered {
    pub(crate) fn over(store: SharedStore, metrics: Metrics) -> SharedStore {
        Arc::new(Self { store, metrics })
    }

    async fn timed<T>(
        &self,
        operation: Operation,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let underway = self.metrics.0.operations.begin(operation);
        let answer = call.await;
        underway.end(&answer);
        answer
    }
}

#[async_trait]
impl Store for Metered {
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
        self.timed(Operation::Now, self.store.now()).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.timed(Operation::Probe, self.store.probe()).await
    }

    async fn start(&self, batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        let queues: Vec<_> = batch
            .iter()
            .map(|start| self.metrics.0.queues.counters(&start.namespace, &start.queue))
            .collect();
        let started = self.timed(Operation::Start, self.store.start(batch)).await?;
        for (queue, started) in queues.iter().zip(&started) {
            match started.outcome {
                StartOutcome::Created => queue.created.inc(),
                StartOutcome::Existing => queue.existing.inc(),
            };
        }
        Ok(started)
    }

    async fn get_run(&self, namespace: &Namespace, run_id: RunId) -> Result<RunRecord, StoreError> {
        self.timed(Operation::GetRun, self.store.get_run(namespace, run_id)).await
    }

    async fn get_runs(
        &self,
        wanted: &[(Namespace, RunId)],
    ) -> Result<Vec<Result<RunRecord, StoreError>>, StoreError> {
        self.timed(Operation::GetRuns, self.store.get_runs(wanted)).await
    }

    async fn list_runs(&self, request: &ListRuns) -> Result<Page<Run>, StoreError> {
        self.timed(Operation::ListRuns, self.store.list_runs(request)).await
    }

    async fn count_runs(&self, namespace: &Namespace, filter: &RunFilter) -> Result<u64, StoreError> {
        self.timed(Operation::CountRuns, self.store.count_runs(namespace, filter)).await
    }

    async fn list_attempts(&self, request: &ListAttempts) -> Result<Page<Attempt>, StoreError> {
        self.timed(Operation::ListAttempts, self.store.list_attempts(request)).await
    }

    async fn cancel(&self, request: CancelRun) -> Result<CancelOutcome, StoreError> {
        let outcome = self.timed(Operation::Cancel, self.store.cancel(request)).await?;
        if outcome == CancelOutcome::Cancelled {
            self.metrics.0.lifecycle.finished.of(FinalState::Cancelled).inc();
        }
        Ok(outcome)
    }

    async fn requeue(&self, request: RequeueRun) -> Result<RequeueOutcome, StoreError> {
        let outcome = self.timed(Operation::Requeue, self.store.requeue(request)).await?;
        self.metrics.0.lifecycle.requeued.inc();
        Ok(outcome)
    }

    async fn claim(&self, request: Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        let namespace = request.namespace.clone();
        let answer = self.timed(Operation::Claim, self.store.claim(request)).await;
        let figures = &self.metrics.0;
        // A claim may have repaired runs before it failed.
        figures.lifecycle.swept(&self.store);
        let claimed = answer?;
        figures.lifecycle.claimed(&namespace, &claimed);
        for run in &claimed {
            figures.queues.counters(&run.run.namespace, &run.run.queue).claimed.inc();
        }
        Ok(claimed)
    }

    async fn heartbeat(
        &self,
        batch: Vec<Heartbeat>,
    ) -> Result<Vec<Result<GrantedLease, StoreError>>, StoreError> {
        let verdicts = self.timed(Operation::Heartbeat, self.store.heartbeat(batch)).await?;
        for verdict in &verdicts {
            if matches!(verdict, Err(StoreError::LeaseLost { .. })) {
                self.metrics.0.operations.lease_lost(Operation::Heartbeat);
            }
        }
        Ok(verdicts)
    }

    async fn begin_step(&self, request: BeginStep) -> Result<BeginOutcome, StoreError> {
        let outcome = self.timed(Operation::BeginStep, self.store.begin_step(request)).await?;
        self.metrics.0.lifecycle.begun(&outcome);
        Ok(outcome)
    }

    async fn complete_step(&self, request: CompleteStep) -> Result<CompleteStepOutcome, StoreError> {
        let outcome = self.timed(Operation::CompleteStep, self.store.complete_step(request)).await?;
        self.metrics.0.lifecycle.completed_step(&outcome);
        Ok(outcome)
    }

    async fn fail_step(&self, request: FailStep) -> Result<FailureOutcome, StoreError> {
        let outcome = self.timed(Operation::FailStep, self.store.fail_step(request)).await?;
        self.metrics.0.lifecycle.steps.of(StepOutcome::Failed).inc();
        self.metrics.0.lifecycle.failed(RetryOf::Step, outcome);
        Ok(outcome)
    }

    async fn sleep(&self, request: Sleep) -> Result<SleepOutcome, StoreError> {
        let outcome = self.timed(Operation::Sleep, self.store.sleep(request)).await?;
        if matches!(outcome, SleepOutcome::Sleeping { .. }) {
            self.metrics.0.lifecycle.steps.of(StepOutcome::Slept).inc();
        }
        Ok(outcome)
    }

    async fn complete_run(&self, request: CompleteRun) -> Result<CompleteRunOutcome, StoreError> {
        let outcome = self.timed(Operation::CompleteRun, self.store.complete_run(request)).await?;
        self.metrics.0.lifecycle.finished.of(FinalState::Completed).inc();
        Ok(outcome)
    }

    async fn fail_run(&self, request: FailRun) -> Result<FailureOutcome, StoreError> {
        let outcome = self.timed(Operation::FailRun, self.store.fail_run(request)).await?;
        self.metrics.0.lifecycle.failed(RetryOf::Run, outcome);
        Ok(outcome)
    }

    async fn release(&self, request: ReleaseRun) -> Result<ReleaseOutcome, StoreError> {
        self.timed(Operation::Release, self.store.release(request)).await
    }

    async fn reap(&self, limit: u32) -> Result<Reaped, StoreError> {
        let reaped = self.timed(Operation::Reap, self.store.reap(limit)).await?;
        self.metrics.0.lifecycle.reaped(&reaped);
        Ok(reaped)
    }

    async fn next_due(&self) -> Result<NextDue, StoreError> {
        self.timed(Operation::NextDue, self.store.next_due()).await
    }

    async fn queue_depths(&self, namespace: &Namespace) -> Result<Vec<QueueDepth>, StoreError> {
        self.timed(Operation::QueueDepths, self.store.queue_depths(namespace)).await
    }

    async fn set_queue_state(&self, request: SetQueueState) -> Result<QueueOutcome, StoreError> {
        self.timed(Operation::SetQueueState, self.store.set_queue_state(request)).await
    }

    async fn delete_finished(&self, request: &DeleteFinished) -> Result<u64, StoreError> {
        let deleted = self.timed(Operation::DeleteFinished, self.store.delete_finished(request)).await?;
        self.metrics.0.lifecycle.deleted.inc_by(deleted);
        Ok(deleted)
    }

    // No operation of the contract, and asked by people: not counted.
    async fn examine(&self) -> Result<Vec<Finding>, StoreError> {
        self.store.examine().await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.timed(Operation::Close, self.store.close()).await
    }
}
