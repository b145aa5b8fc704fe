//! Reading many runs at once: those who want to look while a read is under way share the next one.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::error::StoreError;
use crate::id::RunId;
use crate::name::Namespace;
use crate::run::RunRecord;
use crate::store::Store;

/// How many runs are read at once at most: with payloads at their limit, that many are in memory.
const MOST: usize = 64;

/// Who wants to look, and whose turn it is to read for all of them.
#[derive(Debug, Default)]
pub(super) struct Looks {
    asked: Mutex<Vec<Asked>>,
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Asked {
    namespace: Namespace,
    run_id: RunId,
    answer: oneshot::Sender<Result<RunRecord, StoreError>>,
}

impl Looks {
    fn asked(&self) -> MutexGuard<'_, Vec<Asked>> {
        // Whole values move in and out, so a panic elsewhere does not spoil it.
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a run, as it is at some moment after this call.
    ///
    /// Whoever gets the turn reads for all that asked by then. Cancel safe: if the reader is dropped,
    /// those it read for ask again.
    pub(super) async fn look(
        &self,
        store: &dyn Store,
        namespace: &Namespace,
        run_id: RunId,
    ) -> Result<RunRecord, StoreError> {
        loop {
            let (answer, mut answered) = oneshot::channel();
            self.asked().push(Asked { namespace: namespace.clone(), run_id, answer });
            let mut reading = tokio::select! {
                biased;
                Ok(record) = &mut answered => return record,
                turn = self.turn.lock() => Some(turn),
            };
            // With the turn, nobody else reads: either the answer has come, or the question still waits.
            while reading.is_some() {
                match answered.try_recv() {
                    Ok(record) => return record,
                    Err(oneshot::error::TryRecvError::Empty) => self.read_next(store).await,
                    Err(oneshot::error::TryRecvError::Closed) => reading = None,
                }
            }
        }
    }

    async fn read_next(&self, store: &dyn Store) {
        // A commit finishes many runs at once: whoever was woken with this one asks now.
        tokio::task::yield_now().await;
        let batch: Vec<Asked> = {
            let mut asked = self.asked();
            asked.retain(|asked| !asked.answer.is_closed());
            let most = asked.len().min(MOST);
            asked.drain(..most).collect()
        };
        let wanted: Vec<_> = batch.iter().map(|asked| (asked.namespace.clone(), asked.run_id)).collect();
        match store.get_runs(&wanted).await {
            Ok(records) => {
                for (asked, record) in batch.into_iter().zip(records) {
                    // Who no longer listens needs no answer.
                    asked.answer.send(record).ok();
                }
            }
            Err(error) => {
                for asked in batch {
                    asked.answer.send(Err(error.clone())).ok();
                }
            }
        }
    }
}
