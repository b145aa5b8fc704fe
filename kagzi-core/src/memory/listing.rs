//! Listings and counts.

use std::collections::BTreeMap;

use super::MemoryStore;
use super::claim::latest_attempts;
use crate::error::StoreError;
use crate::name::{Namespace, QueueName};
use crate::op::{AttemptScope, ListAttempts, ListRuns, QueueDepth, RunFilter};
use crate::page::Page;
use crate::run::{Run, RunState};
use crate::step::Attempt;

impl MemoryStore {
    pub(super) fn page_of_runs(&self, request: &ListRuns) -> Result<Page<Run>, StoreError> {
        let place = request.place()?;
        let (state, _) = self.open()?;
        let mut found: Vec<&Run> = state
            .runs
            .values()
            .filter(|run| run.namespace == request.namespace && request.filter.matches(run))
            .filter(|run| place.is_none_or(|place| (run.created_at, run.run_id) < place))
            .collect();
        found.sort_unstable_by_key(|run| std::cmp::Reverse((run.created_at, run.run_id)));
        Ok(page(found.into_iter().cloned(), request.page.limit, |last| request.cursor_after(last)))
    }

    pub(super) fn count(&self, namespace: &Namespace, filter: &RunFilter) -> Result<u64, StoreError> {
        let (state, _) = self.open()?;
        let wanted = |run: &&Run| run.namespace == *namespace && filter.matches(run);
        Ok(state.runs.values().filter(wanted).count() as u64)
    }

    pub(super) fn page_of_attempts(&self, request: &ListAttempts) -> Result<Page<Attempt>, StoreError> {
        let place = request.place()?;
        let (state, _) = self.open()?;
        state.run(&request.namespace, request.run_id)?;
        let mut found = match request.scope {
            AttemptScope::Latest => latest_attempts(&state, request.run_id),
            AttemptScope::All => state.attempts_of_run(request.run_id).cloned().collect(),
        };
        found.sort_by_key(Attempt::sort_key);
        let rest = found.into_iter().filter(|a| place.as_ref().is_none_or(|place| a.sort_key() > *place));
        Ok(page(rest, request.page.limit, |last| request.cursor_after(last)))
    }

    pub(super) fn depths(&self, namespace: &Namespace) -> Result<Vec<QueueDepth>, StoreError> {
        let (state, _) = self.open()?;
        let mut depths: BTreeMap<QueueName, QueueDepth> = BTreeMap::new();
        for run in state.runs.values() {
            if run.namespace != *namespace || run.state.is_terminal() {
                continue;
            }
            let depth =
                depths.entry(run.queue.clone()).or_insert_with(|| QueueDepth::empty(run.queue.clone()));
            match run.state {
                RunState::Sleeping => depth.sleeping += 1,
                RunState::Running => depth.running += 1,
                _ => {
                    depth.pending += 1;
                    let oldest = depth.oldest_due_at.map_or(run.due_at, |at| at.min(run.due_at));
                    depth.oldest_due_at = Some(oldest);
                }
            }
        }
        for ((of, queue), row) in &state.queues {
            if of == namespace && row.pause.is_some() {
                let depth = depths.entry(queue.clone()).or_insert_with(|| QueueDepth::empty(queue.clone()));
                depth.pause.clone_from(&row.pause);
            }
        }
        Ok(depths.into_values().collect())
    }
}

fn page<T>(
    rest: impl Iterator<Item = T>,
    limit: u32,
    cursor_after: impl Fn(&T) -> crate::page::Cursor,
) -> Page<T> {
    let limit = limit as usize;
    let mut items: Vec<T> = rest.take(limit + 1).collect();
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(cursor_after);
    Page { items, next }
}
