//! Pages that forget what they are pages of, end too early, or leave out what was recorded.

use async_trait::async_trait;
use kagzi_core::{
    Attempt, Claim, ClaimedRun, Labels, ListAttempts, ListRuns, MAX_BATCH, Page, PageRequest, Run, RunFilter,
    SharedStore, StoreError,
};

use super::Bug;

/// The runs of a filter, all of them, as one page.
async fn all(store: &SharedStore, request: &ListRuns, filter: RunFilter) -> Result<Vec<Run>, StoreError> {
    let page = PageRequest { limit: MAX_BATCH, cursor: None };
    Ok(store.list_runs(&ListRuns { filter, page, ..request.clone() }).await?.items)
}

/// The page that a request asks for, of runs that a filter of its own found.
fn page_of(request: &ListRuns, found: Vec<Run>) -> Result<Page<Run>, StoreError> {
    let place = request.place()?;
    let mut rest =
        found.into_iter().filter(|run| place.is_none_or(|place| (run.created_at, run.run_id) < place));
    let items: Vec<Run> = rest.by_ref().take(request.page.limit as usize).collect();
    let next = rest.next().and(items.last()).map(|last| request.cursor_after(last));
    Ok(Page { items, next })
}

/// What a filter says that is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgotten {
    /// The queue.
    Queue,
    /// The type.
    Type,
    /// The labels.
    Labels,
    /// Since when.
    Since,
    /// All but the states.
    AllButStates,
}

/// Applies the whole filter to the first page, and part of it to those that follow.
#[derive(Debug)]
pub struct PagesForget(pub Forgotten);

#[async_trait]
impl Bug for PagesForget {
    async fn list_runs(&self, store: &SharedStore, request: &ListRuns) -> Result<Page<Run>, StoreError> {
        if request.place()?.is_none() {
            return store.list_runs(request).await;
        }
        let mut filter = request.filter.clone();
        match self.0 {
            Forgotten::Queue => filter.queue = None,
            Forgotten::Type => filter.workflow_type = None,
            Forgotten::Labels => filter.labels = Labels::default(),
            Forgotten::Since => filter.created_from = None,
            Forgotten::AllButStates => filter = RunFilter { states: filter.states, ..RunFilter::default() },
        }
        page_of(request, all(store, request, filter).await?)
    }
}

/// Ends each page at a thousand, whatever was asked for, and says that nothing more follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LongPagesEnd {
    /// Pages of runs.
    OfRuns,
    /// Pages of attempts.
    OfAttempts,
}

const LONGEST: usize = 1000;

#[async_trait]
impl Bug for LongPagesEnd {
    async fn list_runs(&self, store: &SharedStore, request: &ListRuns) -> Result<Page<Run>, StoreError> {
        let mut page = store.list_runs(request).await?;
        if *self == Self::OfRuns && page.items.len() > LONGEST {
            page.items.truncate(LONGEST);
            page.next = None;
        }
        Ok(page)
    }
    async fn list_attempts(
        &self,
        store: &SharedStore,
        request: &ListAttempts,
    ) -> Result<Page<Attempt>, StoreError> {
        let mut page = store.list_attempts(request).await?;
        if *self == Self::OfAttempts && page.items.len() > LONGEST {
            page.items.truncate(LONGEST);
            page.next = None;
        }
        Ok(page)
    }
}

/// Lists runs without their labels and their trace.
#[derive(Debug)]
pub struct ListsInPart;

#[async_trait]
impl Bug for ListsInPart {
    async fn list_runs(&self, store: &SharedStore, request: &ListRuns) -> Result<Page<Run>, StoreError> {
        let mut page = store.list_runs(request).await?;
        for run in &mut page.items {
            run.labels = Labels::default();
            run.trace_context = None;
        }
        Ok(page)
    }
}

/// Hands runs over without their trace.
#[derive(Debug)]
pub struct HandsOverNoTrace;

#[async_trait]
impl Bug for HandsOverNoTrace {
    async fn claim(&self, store: &SharedStore, request: Claim) -> Result<Vec<ClaimedRun>, StoreError> {
        let mut claimed = store.claim(request).await?;
        for one in &mut claimed {
            one.run.trace_context = None;
        }
        Ok(claimed)
    }
}

/// Takes the moment since when runs were created for one since when they are due.
#[derive(Debug)]
pub struct SinceItIsDue;

#[async_trait]
impl Bug for SinceItIsDue {
    async fn list_runs(&self, store: &SharedStore, request: &ListRuns) -> Result<Page<Run>, StoreError> {
        let Some(from) = request.filter.created_from else { return store.list_runs(request).await };
        request.place()?;
        let filter = RunFilter { created_from: None, ..request.filter.clone() };
        let mut found = all(store, request, filter).await?;
        found.retain(|run| run.due_at >= from);
        page_of(request, found)
    }
}

/// Reads one piece of each of seven partitions for a page, and takes what it has then for all that there is.
#[derive(Debug)]
pub struct OnePieceOfEach;

#[async_trait]
impl Bug for OnePieceOfEach {
    async fn list_runs(&self, store: &SharedStore, request: &ListRuns) -> Result<Page<Run>, StoreError> {
        const PARTITIONS: u16 = 7;
        let mut page = store.list_runs(request).await?;
        let wanted = page.items.len() + 1;
        let piece = (2 * wanted / usize::from(PARTITIONS) + 8).min(wanted);
        let mut read = [0; PARTITIONS as usize];
        let used_up = page.items.iter().position(|run| {
            let of_partition = &mut read[usize::from(run.run_id.partition(PARTITIONS))];
            *of_partition += 1;
            *of_partition > piece
        });
        if let Some(used_up) = used_up {
            page.items.truncate(used_up);
            page.next = None;
        }
        Ok(page)
    }
}
