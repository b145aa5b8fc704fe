//! Calls that are gathered, by callers who may go away.

use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use kagzi_core::{BeginOutcome, BeginStep, SharedStore, StoreError};
use tokio::sync::oneshot;

use super::Bug;

/// Who waits, and whether somebody writes for all of them.
#[derive(Debug, Default)]
struct Line {
    led: bool,
    waiting: Vec<(BeginStep, oneshot::Sender<Result<BeginOutcome, StoreError>>)>,
}

/// Lets the first who comes write for all who come behind; if that one goes away, nobody does.
#[derive(Debug, Default)]
pub struct FirstWritesForAll(Mutex<Line>);

impl FirstWritesForAll {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether whoever asks is to write for all.
    fn enter(&self, request: BeginStep, answer: oneshot::Sender<Result<BeginOutcome, StoreError>>) -> bool {
        let mut line = self.line();
        line.waiting.push((request, answer));
        !std::mem::replace(&mut line.led, true)
    }

    async fn write_for_all(&self, store: &SharedStore) {
        loop {
            // Time enough for others to get in line.
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
            let batch = {
                let mut line = self.line();
                line.led = !line.waiting.is_empty();
                std::mem::take(&mut line.waiting)
            };
            if batch.is_empty() {
                return;
            }
            for (request, answer) in batch {
                // Who went away needs no answer.
                answer.send(store.begin_step(request).await).ok();
            }
        }
    }
}

#[async_trait]
impl Bug for FirstWritesForAll {
    async fn begin_step(&self, store: &SharedStore, request: BeginStep) -> Result<BeginOutcome, StoreError> {
        let (answer, answered) = oneshot::channel();
        if self.enter(request, answer) {
            self.write_for_all(store).await;
        }
        let lost = || StoreError::outcome_unknown("whoever wrote is gone");
        answered.await.unwrap_or_else(|_| Err(lost()))
    }
}
