//! What small tests do not see: many at once, and names that are nearly the same.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use kagzi_core::{
    Claim, ClaimedRun, Heartbeat, ListRuns, MoreDue, Page, PageRequest, QueueName, QueueOutcome, Reaped, Run,
    RunFilter, SetQueueState, SharedStore, StartRun, Started, StoreError,
};

use super::{Beats, Bug};

/// Starts the runs of a large batch in pieces, each whole or not at all.
#[derive(Debug)]
pub struct StartsInPieces;

#[async_trait]
impl Bug for StartsInPieces {
    async fn start(&self, store: &SharedStore, batch: Vec<StartRun>) -> Result<Vec<Started>, StoreError> {
        if batch.is_empty() {
            return store.start(batch).await;
        }
        let mut started = Vec::new();
        for piece in batch.chunks(500) {
            started.extend(store.start(piece.to_vec()).await?);
        }
        Ok(started)
    }
}

/// Looks at the first ten queues of a claim, or at its first ten types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LooksAtTen {
    /// Queues.
    Queues,
    /// Types.
    Types,
}

#[async_trait]
impl Bug for LooksAtTen {
    async fn claim(&self, store: &SharedStore, mut it: Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        match self {
            Self::Queues => it.queues.truncate(10),
            Self::Types => it.workflow_types.truncate(10),
        }
        store.claim(it).await
    }
}

/// Finds runs by the text of their labels, whatever its case.
#[derive(Debug)]
pub struct LabelsIgnoreCase;

#[async_trait]
impl Bug for LabelsIgnoreCase {
    async fn list_runs(&self, store: &SharedStore, request: &ListRuns) -> Result<Page<Run>, StoreError> {
        let wanted = &request.filter.labels;
        if wanted.is_empty() || request.page.cursor.is_some() {
            return store.list_runs(request).await;
        }
        let filter = RunFilter { labels: kagzi_core::Labels::default(), ..request.filter.clone() };
        let page = PageRequest { limit: 1000, cursor: None };
        let all = store.list_runs(&ListRuns { filter, page, ..request.clone() }).await?;
        let has = |run: &Run| {
            wanted.as_map().iter().all(|(key, value)| {
                run.labels.as_map().iter().any(|(k, v)| k == key && v.eq_ignore_ascii_case(value))
            })
        };
        Ok(Page { items: all.items.into_iter().filter(has).collect(), next: None })
    }
}

/// Pauses the queue whose name is the same but for its case.
#[derive(Debug)]
pub struct PausesIgnoreCase;

#[async_trait]
impl Bug for PausesIgnoreCase {
    async fn set_queue_state(
        &self,
        store: &SharedStore,
        request: SetQueueState,
    ) -> Result<QueueOutcome, StoreError> {
        let queue = QueueName::new(request.queue.as_str().to_lowercase())?;
        store.set_queue_state(SetQueueState { queue, ..request }).await
    }
}

/// Goes on with pages as long as the first one was.
#[derive(Debug, Default)]
pub struct PagesAreAllAlike(Mutex<BTreeMap<String, u32>>);

#[async_trait]
impl Bug for PagesAreAllAlike {
    async fn list_runs(&self, store: &SharedStore, request: &ListRuns) -> Result<Page<Run>, StoreError> {
        let known = |cursor| {
            let lengths = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            lengths.get(&format!("{cursor:?}")).copied()
        };
        let first = request.page.cursor.as_ref().and_then(known);
        let limit = first.unwrap_or(request.page.limit);
        let page = PageRequest { limit, cursor: request.page.cursor.clone() };
        let page = store.list_runs(&ListRuns { page, ..request.clone() }).await?;
        if let Some(next) = &page.next {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(format!("{next:?}"), limit);
        }
        Ok(page)
    }
}

/// Extends all leases of a batch by the length that the first asks for.
#[derive(Debug)]
pub struct BeatsAreAllAlike;

#[async_trait]
impl Bug for BeatsAreAllAlike {
    async fn heartbeat(&self, store: &SharedStore, mut batch: Vec<Heartbeat>) -> Beats {
        if let Some(first) = batch.first().map(|beat| beat.lease_length) {
            for beat in &mut batch {
                beat.lease_length = first;
            }
        }
        store.heartbeat(batch).await
    }
}

/// Treats at most five hundred, and says that nothing more is due.
#[derive(Debug)]
pub struct ReapsAPiece;

#[async_trait]
impl Bug for ReapsAPiece {
    async fn reap(&self, store: &SharedStore, limit: u32) -> Result<Reaped, StoreError> {
        let large = (501..=10_000).contains(&limit);
        let reaped = store.reap(if large { 500 } else { limit }).await?;
        Ok(if large { Reaped { more: MoreDue::No, ..reaped } } else { reaped })
    }
}
