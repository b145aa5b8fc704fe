//! What is read, counted, listed or removed wrongly.

use std::time::Duration;

use async_trait::async_trait;
use kagzi_core::{
    DeleteFinished, ListRuns, Namespace, Page, PageRequest, Run, RunFilter, RunId, RunRecord, SharedStore,
    StoreError,
};

use super::{Bug, meanwhile};

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
