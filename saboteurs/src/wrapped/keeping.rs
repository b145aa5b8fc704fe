//! What keepers and those who wait are told wrongly.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use kagzi_core::{
    Claim, ClaimedRun, DeleteFinished, ListRuns, MoreDue, Namespace, NextDue, Page, PageRequest, QueueChange,
    QueueOutcome, Reaped, Run, RunFilter, SetQueueState, SharedStore, StoreError, WakeHub,
};

use super::Bug;

/// Reaps all there is, whatever the limit.
#[derive(Debug)]
pub struct ReapKnowsNoLimit;

#[async_trait]
impl Bug for ReapKnowsNoLimit {
    async fn reap(&self, store: &SharedStore, limit: u32) -> Result<Reaped, StoreError> {
        store.reap(if limit == 0 { 0 } else { 10_000 }).await
    }
}

/// Counts a sleeper that woke as a lease that expired.
#[derive(Debug)]
pub struct ReapMiscounts;

#[async_trait]
impl Bug for ReapMiscounts {
    async fn reap(&self, store: &SharedStore, limit: u32) -> Result<Reaped, StoreError> {
        let reaped = store.reap(limit).await?;
        Ok(Reaped { woken: 0, leases_expired: reaped.leases_expired + reaped.woken, ..reaped })
    }
}

/// Says that nothing more is due when its limit is used up.
#[derive(Debug)]
pub struct ReapSaysDone;

#[async_trait]
impl Bug for ReapSaysDone {
    async fn reap(&self, store: &SharedStore, limit: u32) -> Result<Reaped, StoreError> {
        Ok(Reaped { more: MoreDue::No, ..store.reap(limit).await? })
    }
}

/// Says that nothing will ever be due.
#[derive(Debug)]
pub struct NothingIsDue;

#[async_trait]
impl Bug for NothingIsDue {
    async fn next_due(&self, store: &SharedStore) -> Result<NextDue, StoreError> {
        Ok(NextDue { due_at: None, ..store.next_due().await? })
    }
}

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

/// Removes what finished at the very moment before which it should have finished.
#[derive(Debug)]
pub struct RemovesTooMuch;

#[async_trait]
impl Bug for RemovesTooMuch {
    async fn delete_finished(&self, store: &SharedStore, it: &DeleteFinished) -> Result<u64, StoreError> {
        let before = it.before.saturating_add(Duration::from_micros(1));
        store.delete_finished(&DeleteFinished { before, ..it.clone() }).await
    }
}

/// Counts the finished runs it looked at against the limit, removed or not.
#[derive(Debug)]
pub struct RemovalCountsWhatItLooksAt;

#[async_trait]
impl Bug for RemovalCountsWhatItLooksAt {
    async fn delete_finished(&self, store: &SharedStore, it: &DeleteFinished) -> Result<u64, StoreError> {
        it.validate()?;
        let Some(namespace) = it.namespace.clone() else { return store.delete_finished(it).await };
        let page = PageRequest { limit: 1000, cursor: None };
        let listing = ListRuns { namespace, filter: RunFilter::default(), page };
        let runs = store.list_runs(&listing).await?.items;
        let mut finished: Vec<_> = runs
            .into_iter()
            .filter_map(|run| Some((run.finished_at.filter(|at| *at < it.before)?, run.run_id, run.state)))
            .collect();
        finished.sort_unstable_by_key(|(at, run_id, _)| (*at, *run_id));
        let looked_at = finished.iter().take(it.limit as usize);
        let wanted = looked_at.filter(|(.., state)| it.states.is_empty() || it.states.contains(state));
        match u32::try_from(wanted.count()).unwrap_or(u32::MAX) {
            0 => Ok(0),
            limit => store.delete_finished(&DeleteFinished { limit, ..it.clone() }).await,
        }
    }
}

/// Goes on after a page at the next moment, over whatever else was created at the last one.
#[derive(Debug)]
pub struct CursorSkipsTies;

#[async_trait]
impl Bug for CursorSkipsTies {
    async fn list_runs(&self, store: &SharedStore, request: &ListRuns) -> Result<Page<Run>, StoreError> {
        let mut page = store.list_runs(request).await?;
        let Some(moment) = page.items.last().map(|run| run.created_at) else { return Ok(page) };
        let mut cursor = page.next.take();
        while let Some(here) = cursor.take() {
            let one = PageRequest { limit: 1, cursor: Some(here.clone()) };
            let next = store.list_runs(&ListRuns { page: one, ..request.clone() }).await?;
            if next.items.first().is_some_and(|run| run.created_at == moment) {
                cursor = next.next;
            } else {
                page.next = Some(here);
            }
        }
        Ok(page)
    }
}

/// Counts runs whatever their labels.
#[derive(Debug)]
pub struct CountsIgnoreLabels;

#[async_trait]
impl Bug for CountsIgnoreLabels {
    async fn count_runs(
        &self,
        store: &SharedStore,
        namespace: &Namespace,
        filter: &RunFilter,
    ) -> Result<u64, StoreError> {
        let filter = RunFilter { labels: kagzi_core::Labels::default(), ..filter.clone() };
        store.count_runs(namespace, &filter).await
    }
}

/// Counts no further than a page of two thousand.
#[derive(Debug)]
pub struct CountsAPage;

#[async_trait]
impl Bug for CountsAPage {
    async fn count_runs(
        &self,
        store: &SharedStore,
        namespace: &Namespace,
        filter: &RunFilter,
    ) -> Result<u64, StoreError> {
        Ok(store.count_runs(namespace, filter).await?.min(2000))
    }
}
