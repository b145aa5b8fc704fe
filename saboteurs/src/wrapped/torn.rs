//! What is seen, or told, before all of it is there.

use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use kagzi_core::{
    Claim, ClaimedRun, Namespace, RunId, RunRecord, SharedStore, StartRun, Started, StoreError, Topic,
};

use super::Bug;

/// Time enough for another to come in between.
async fn meanwhile() {
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
}

/// Reads the output of a run, and then the run.
#[derive(Debug)]
pub struct ReadsTwice;

#[async_trait]
impl Bug for ReadsTwice {
    async fn get_run(
        &self,
        store: &SharedStore,
        namespace: &Namespace,
        run_id: RunId,
    ) -> Result<RunRecord, StoreError> {
        let output = store.get_run(namespace, run_id).await?.output;
        meanwhile().await;
        Ok(RunRecord { output, ..store.get_run(namespace, run_id).await? })
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
        queues.iter().for_each(|queue| store.wake_hub().announce(queue));
        Ok(started)
    }
}
