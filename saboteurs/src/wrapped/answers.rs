//! Writes that are repeated, torn, early or late.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kagzi_core::{
    CancelOutcome, CancelRun, CompleteRun, CompleteRunOutcome, FailRun, FailStep, FailureOutcome, Heartbeat,
    OperationId, ReleaseOutcome, ReleaseRun, RequeueOutcome, RequeueRun, SharedStore, Sleep, SleepOutcome,
    SleepUntil, StartRun, Started, StoreError,
};

use super::{Beats, Bug};

/// Takes every repeat of a rare operation for a new one.
#[derive(Debug)]
pub struct ForgetsAnswers;

#[async_trait]
impl Bug for ForgetsAnswers {
    async fn cancel(&self, store: &SharedStore, it: CancelRun) -> Result<CancelOutcome, StoreError> {
        store.cancel(CancelRun { operation: OperationId::generate(), ..it }).await
    }
    async fn requeue(&self, store: &SharedStore, it: RequeueRun) -> Result<RequeueOutcome, StoreError> {
        store.requeue(RequeueRun { operation: OperationId::generate(), ..it }).await
    }
    async fn fail_step(&self, store: &SharedStore, it: FailStep) -> Result<FailureOutcome, StoreError> {
        store.fail_step(FailStep { operation: OperationId::generate(), ..it }).await
    }
    async fn fail_run(&self, store: &SharedStore, it: FailRun) -> Result<FailureOutcome, StoreError> {
        store.fail_run(FailRun { operation: OperationId::generate(), ..it }).await
    }
    async fn release(&self, store: &SharedStore, it: ReleaseRun) -> Result<ReleaseOutcome, StoreError> {
        store.release(ReleaseRun { operation: OperationId::generate(), ..it }).await
    }
}

/// Starts the runs of a batch one after the other, and stops at the first that is refused.
#[derive(Debug)]
pub struct StartsOneByOne;

#[async_trait]
impl Bug for StartsOneByOne {
    async fn start(&self, store: &SharedStore, batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        if batch.is_empty() {
            return store.start(batch).await;
        }
        let mut started = Vec::new();
        for one in batch {
            started.extend(store.start(vec![one]).await?);
        }
        Ok(started)
    }
}

/// Lets one lost lease fail the heartbeats beside it.
#[derive(Debug)]
pub struct BeatsFailAsOne;

#[async_trait]
impl Bug for BeatsFailAsOne {
    async fn heartbeat(&self, store: &SharedStore, batch: Vec<Heartbeat>) -> Beats {
        let verdicts = store.heartbeat(batch).await?;
        Ok(verdicts.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().map(Ok).collect())
    }
}

/// Answers heartbeats in the order in which it locked the runs.
#[derive(Debug)]
pub struct BeatsAnsweredAsLocked;

#[async_trait]
impl Bug for BeatsAnsweredAsLocked {
    async fn heartbeat(&self, store: &SharedStore, batch: Vec<Heartbeat>) -> Beats {
        let runs: Vec<_> = batch.iter().map(|beat| beat.lease.run_id).collect();
        let mut verdicts: Vec<_> = runs.into_iter().zip(store.heartbeat(batch).await?).collect();
        verdicts.sort_by_key(|(run_id, _)| *run_id);
        Ok(verdicts.into_iter().map(|(_, verdict)| verdict).collect())
    }
}

/// Lets a sleeper wake a microsecond early.
#[derive(Debug)]
pub struct WakesEarly;

#[async_trait]
impl Bug for WakesEarly {
    async fn sleep(&self, store: &SharedStore, mut it: Sleep) -> Result<SleepOutcome, StoreError> {
        if let SleepUntil::After(length) = &mut it.until {
            *length = length.saturating_sub(Duration::from_micros(1));
        }
        store.sleep(it).await
    }
}

/// Answers that a sleep is recorded, and leaves the run as it is: held, and awake.
#[derive(Debug)]
pub struct SleepKeepsTheLease;

#[async_trait]
impl Bug for SleepKeepsTheLease {
    async fn sleep(&self, store: &SharedStore, it: Sleep) -> Result<SleepOutcome, StoreError> {
        it.validate()?;
        let now = store.now().await?;
        let due_at = match it.until {
            SleepUntil::After(length) => now.saturating_add(length),
            SleepUntil::At(moment) => moment,
        };
        Ok(SleepOutcome::Sleeping { due_at })
    }
}

/// Acknowledges the completion of a run, and writes it a little later.
#[derive(Debug)]
pub struct AcknowledgesFirst;

#[async_trait]
impl Bug for AcknowledgesFirst {
    async fn complete_run(
        &self,
        store: &SharedStore,
        it: CompleteRun,
    ) -> Result<CompleteRunOutcome, StoreError> {
        let store = Arc::clone(store);
        tokio::spawn(async move {
            for _ in 0..64 {
                tokio::task::yield_now().await;
            }
            // Nobody is left who could be told that it failed: that is the bug.
            store.complete_run(it).await.ok();
        });
        Ok(CompleteRunOutcome::Completed)
    }
}
