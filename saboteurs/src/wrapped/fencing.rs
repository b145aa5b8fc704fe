//! Writes that do not look at the whole lease.

use async_trait::async_trait;
use kagzi_core::{
    BeginOutcome, BeginStep, CompleteRun, CompleteRunOutcome, CompleteStep, CompleteStepOutcome, FailRun,
    FailStep, FailureOutcome, Heartbeat, Lease, ReleaseOutcome, ReleaseRun, SharedStore, Sleep, SleepOutcome,
    StoreError,
};

use super::{Beats, Bug};

/// Which writes are taken without a look at the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blind {
    /// All of them.
    All,
    /// Completing a step.
    CompleteStep,
    /// Failing a step.
    FailStep,
    /// Heartbeats.
    Heartbeat,
    /// Releases.
    Release,
}

/// What is still looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nothing: whoever writes is taken for the holder.
    Anybody,
    /// The name of the worker.
    WorkerName,
}

/// Takes writes of those who held the lease once.
#[derive(Debug)]
pub struct NoTokenCheck {
    /// The writes it is about.
    pub blind: Blind,
    /// What it checks instead of the token.
    pub owner: Owner,
}

impl NoTokenCheck {
    /// The lease as it ought to be, whatever was shown.
    async fn lease(&self, store: &SharedStore, operation: Blind, shown: Lease) -> Lease {
        if self.blind != Blind::All && self.blind != operation {
            return shown;
        }
        let Ok(record) = store.get_run(&shown.namespace, shown.run_id).await else { return shown };
        match record.run.worker_id {
            Some(worker_id) if self.owner == Owner::Anybody || worker_id == shown.worker_id => {
                Lease { worker_id, fencing_token: record.run.fencing_token, ..shown }
            }
            _ => shown,
        }
    }
}

#[async_trait]
impl Bug for NoTokenCheck {
    async fn heartbeat(&self, store: &SharedStore, mut batch: Vec<Heartbeat>) -> Beats {
        for beat in &mut batch {
            beat.lease = self.lease(store, Blind::Heartbeat, beat.lease.clone()).await;
        }
        store.heartbeat(batch).await
    }
    async fn begin_step(&self, store: &SharedStore, mut it: BeginStep) -> Result<BeginOutcome, StoreError> {
        it.lease = self.lease(store, Blind::All, it.lease).await;
        store.begin_step(it).await
    }
    async fn complete_step(
        &self,
        store: &SharedStore,
        mut it: CompleteStep,
    ) -> Result<CompleteStepOutcome, StoreError> {
        it.lease = self.lease(store, Blind::CompleteStep, it.lease).await;
        store.complete_step(it).await
    }
    async fn fail_step(&self, store: &SharedStore, mut it: FailStep) -> Result<FailureOutcome, StoreError> {
        it.lease = self.lease(store, Blind::FailStep, it.lease).await;
        store.fail_step(it).await
    }
    async fn sleep(&self, store: &SharedStore, mut it: Sleep) -> Result<SleepOutcome, StoreError> {
        it.lease = self.lease(store, Blind::All, it.lease).await;
        store.sleep(it).await
    }
    async fn complete_run(
        &self,
        store: &SharedStore,
        mut it: CompleteRun,
    ) -> Result<CompleteRunOutcome, StoreError> {
        it.lease = self.lease(store, Blind::All, it.lease).await;
        store.complete_run(it).await
    }
    async fn fail_run(&self, store: &SharedStore, mut it: FailRun) -> Result<FailureOutcome, StoreError> {
        it.lease = self.lease(store, Blind::All, it.lease).await;
        store.fail_run(it).await
    }
    async fn release(&self, store: &SharedStore, mut it: ReleaseRun) -> Result<ReleaseOutcome, StoreError> {
        it.lease = self.lease(store, Blind::Release, it.lease).await;
        store.release(it).await
    }
}
