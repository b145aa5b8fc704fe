//! Reading many runs at once: those who want to look while a read is under way share the next one.
//!
//! Whoever has the turn reads for the others, in its own task and at its own pace. So each namespace has a turn of its
//! own: of a noisy tenant thousands may wait to look, and the one who reads for them may have much else to do.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::oneshot;

use crate::error::StoreError;
use crate::id::RunId;
use crate::name::Namespace;
use crate::run::RunRecord;
use crate::store::Store;

/// How many runs are read at once at most: with payloads at their limit, that many are in memory.
const MOST: usize = 64;

/// The lines of those who want to look now.
#[derive(Debug, Default)]
pub(super) struct Looks(Mutex<HashMap<Namespace, Weak<Line>>>);

/// Who wants to look in one namespace, and whose turn it is to read for all of them.
#[derive(Debug)]
struct Line {
    namespace: Namespace,
    asked: Mutex<Vec<Asked>>,
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Asked {
    run_id: RunId,
    answer: oneshot::Sender<Result<RunRecord, StoreError>>,
}

impl Looks {
    /// The line of a namespace, shared by all who stand in it.
    fn line(&self, namespace: &Namespace) -> Arc<Line> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.get(namespace).and_then(Weak::upgrade) {
            return line;
        }
        lines.retain(|_, line| line.strong_count() > 0);
        let (asked, turn) = (Mutex::default(), tokio::sync::Mutex::default());
        let line = Arc::new(Line { namespace: namespace.clone(), asked, turn });
        lines.insert(namespace.clone(), Arc::downgrade(&line));
        line
    }

    /// Reads a run, as it is at some moment after this call.
    ///
    /// Whoever gets the turn reads for all of its namespace that asked by then. Cancel safe: if the reader is dropped,
    /// those it read for ask again.
    pub(super) async fn look(
        &self,
        store: &dyn Store,
        namespace: &Namespace,
        run_id: RunId,
    ) -> Result<RunRecord, StoreError> {
        self.line(namespace).look(store, run_id).await
    }
}

impl Line {
    fn asked(&self) -> MutexGuard<'_, Vec<Asked>> {
        // Whole values move in and out, so a panic elsewhere does not spoil it.
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn look(&self, store: &dyn Store, run_id: RunId) -> Result<RunRecord, StoreError> {
        loop {
            let (answer, mut answered) = oneshot::channel();
            self.asked().push(Asked { run_id, answer });
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
        let wanted: Vec<_> = batch.iter().map(|asked| (self.namespace.clone(), asked.run_id)).collect();
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

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::clock::SystemClock;
    use crate::id::OperationId;
    use crate::limits::Rules;
    use crate::memory::MemoryStore;

    #[tokio::test(start_paused = true)]
    async fn a_reader_who_takes_long_holds_up_nobody_in_another_namespace() {
        let store = MemoryStore::new(Arc::new(SystemClock), Rules::default());
        let looks = Looks::default();
        let [noisy, quiet] = ["noisy", "quiet"].map(|name| Namespace::new(name).unwrap());
        let run_of = |namespace: &Namespace| RunId::for_start(namespace, OperationId::generate(), None);
        let line = looks.line(&noisy);
        let turn = line.turn.lock().await;
        let mut waits = pin!(looks.look(&store, &noisy, run_of(&noisy)));
        assert!(timeout(Duration::from_secs(1), &mut waits).await.is_err(), "somebody reads");
        let read = timeout(Duration::from_secs(1), looks.look(&store, &quiet, run_of(&quiet))).await;
        assert!(matches!(read, Ok(Err(StoreError::RunNotFound { .. }))), "{read:?}");
        drop(turn);
        assert!(matches!(waits.await, Err(StoreError::RunNotFound { .. })));
        drop(line);
        drop(looks.line(&quiet));
        assert_eq!(looks.0.lock().unwrap().len(), 1, "nothing is kept of those who have looked");
    }
}
