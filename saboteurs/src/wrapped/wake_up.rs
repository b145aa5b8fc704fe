//! Those who wait: woken never, too early, or for nothing.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use kagzi_core::{
    Claim, ClaimedRun, QueueChange, QueueOutcome, SetQueueState, SharedStore, StartRun, Started, StoreError,
    Topic, WakeHub,
};

use super::{Bug, meanwhile};

/// Wakes nobody.
#[derive(Debug, Default)]
pub struct WakesNobody(WakeHub);

impl Bug for WakesNobody {
    fn wake_hub<'a>(&'a self, _: &'a SharedStore) -> &'a WakeHub {
        &self.0
    }
}

/// Answers that a queue is resumed, and does so when somebody claims.
#[derive(Debug, Default)]
pub struct ResumesLate(Mutex<Vec<SetQueueState>>);

#[async_trait]
impl Bug for ResumesLate {
    async fn set_queue_state(
        &self,
        store: &SharedStore,
        request: SetQueueState,
    ) -> Result<QueueOutcome, StoreError> {
        if request.change == QueueChange::Resume {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(request);
            return Ok(QueueOutcome::Changed);
        }
        store.set_queue_state(request).await
    }

    async fn claim(&self, store: &SharedStore, request: Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        let late = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for resumption in late {
            store.set_queue_state(resumption).await?;
        }
        store.claim(request).await
    }
}

/// Wakes whoever waits for a queue, and a little later lets its run be seen, without a word more.
#[derive(Debug, Default)]
pub struct ToldBeforeSeen(AtomicU32);

#[async_trait]
impl Bug for ToldBeforeSeen {
    async fn start(&self, store: &SharedStore, batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        let started = store.start(batch).await;
        meanwhile().await;
        self.0.fetch_sub(1, Ordering::SeqCst);
        started
    }

    async fn claim(&self, store: &SharedStore, request: Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        if self.0.load(Ordering::SeqCst) > 0 {
            return Ok(Vec::new());
        }
        store.claim(request).await
    }
}

/// Wakes the queue of a run at its start, though it is to start later.
#[derive(Debug)]
pub struct WakesForLater;

#[async_trait]
impl Bug for WakesForLater {
    async fn start(&self, store: &SharedStore, batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        let queues: Vec<_> =
            batch.iter().map(|start| Topic::Queue(start.namespace.clone(), start.queue.clone())).collect();
        let started = store.start(batch).await?;
        for queue in &queues {
            store.wake_hub().announce(queue);
        }
        Ok(started)
    }
}
