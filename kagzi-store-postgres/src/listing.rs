//! Listings and counts.

use std::collections::{BinaryHeap, VecDeque};

use kagzi_core::{
    Attempt, AttemptScope, Cursor, ListAttempts, ListRuns, Namespace, Page, QueueDepth, QueueName, Run,
    RunFilter, RunId, RunState, StoreError, Timestamp,
};
use sqlx::Row as _;

use crate::Inner;
use crate::error::Fault;
use crate::rows::{Moment, attempt_columns, attempt_from_row, moment, run_columns, run_from_row, to_json};
use crate::statement::{Query, query};

/// The conditions of a [`RunFilter`]: parameters 2 to 8, in the order of [`bind_filter`].
macro_rules! run_filter {
    () => {
        "partition = $1 AND namespace = $2
         AND ($3::text[] IS NULL OR state = ANY ($3::text[]::run_state[]))
         AND ($4::text IS NULL OR workflow_type = $4)
         AND ($5::text IS NULL OR queue = $5)
         AND ($6::text IS NULL OR labels @> $6::text::jsonb)
         AND ($7::timestamptz IS NULL OR created_at >= $7)
         AND ($8::timestamptz IS NULL OR created_at < $8)"
    };
}

fn bind_filter(
    query: Query,
    partition: i16,
    namespace: &Namespace,
    filter: &RunFilter,
) -> Result<Query, StoreError> {
    let states = (!filter.states.is_empty())
        .then(|| filter.states.iter().map(|state| state.as_str()).collect::<Vec<_>>());
    let labels = (!filter.labels.is_empty()).then(|| to_json(&filter.labels)).transpose()?;
    Ok(query
        .bind(partition)
        .bind(namespace.as_str())
        .bind(states)
        .bind(filter.workflow_type.as_ref().map(kagzi_core::WorkflowType::as_str))
        .bind(filter.queue.as_ref().map(kagzi_core::QueueName::as_str))
        .bind(labels)
        .bind(moment(filter.created_from))
        .bind(moment(filter.created_before)))
}

/// Cuts what was read, up to one item over the limit, down to a page.
fn page<T>(mut items: Vec<T>, limit: u32, cursor_after: impl Fn(&T) -> Cursor) -> Page<T> {
    let limit = limit as usize;
    let more = items.len() > limit;
    items.truncate(limit);
    let next = if more { items.last().map(cursor_after) } else { None };
    Page { items, next }
}

/// A run's place in a listing, the youngest last.
type Place = (Timestamp, RunId);

/// What was read of one partition for a listing and is not used up.
struct Source {
    partition: i16,
    runs: VecDeque<Run>,
    /// Whether there may be more behind them.
    has_more: bool,
}

impl Source {
    fn new((partition, runs): (i16, Vec<Run>), piece: usize) -> Self {
        Self { partition, has_more: runs.len() >= piece, runs: runs.into() }
    }

    /// The place of its first run.
    fn head((at, source): (usize, &Self)) -> Option<(Place, usize)> {
        source.runs.front().map(|run| ((run.created_at, run.run_id), at))
    }
}

/// How many runs of one partition are read at a time for `wanted` of all: twice its share, and some.
fn piece_of(wanted: usize, partitions: u16) -> usize {
    if partitions <= 1 {
        return wanted;
    }
    (2 * wanted / usize::from(partitions) + 8).min(wanted)
}

impl Inner {
    pub(crate) async fn list_runs(&self, request: &ListRuns) -> Result<Page<Run>, StoreError> {
        let place = request.place()?;
        let merged = self.merge_runs(request, place).await;
        let runs = merged.map_err(|fault| fault.into_store_error("listing runs"))?;
        Ok(page(runs, request.page.limit, |last| request.cursor_after(last)))
    }

    /// The first runs of a listing over all partitions, one more than a page holds. A small piece is read of each, and
    /// further ones of those whose piece is used up, so that what is read hangs on the page and hardly on how many
    /// partitions there are.
    async fn merge_runs(&self, request: &ListRuns, place: Option<Place>) -> Result<Vec<Run>, Fault> {
        let wanted = request.page.limit as usize + 1;
        let piece = piece_of(wanted, self.partitions);
        let read = self.ask_each(|partition| self.list_runs_in(partition, request, place, piece)).await?;
        let mut sources: Vec<Source> = read.into_iter().map(|read| Source::new(read, piece)).collect();
        let mut heads: BinaryHeap<(Place, usize)> =
            sources.iter().enumerate().filter_map(Source::head).collect();
        let mut runs = Vec::with_capacity(wanted);
        while runs.len() < wanted {
            let Some((after, at)) = heads.pop() else { break };
            let Some(source) = sources.get_mut(at) else { break };
            runs.extend(source.runs.pop_front());
            if source.runs.is_empty() && source.has_more {
                let partition = source.partition;
                let more = self.list_runs_in(partition, request, Some(after), piece).await?;
                *source = Source::new((partition, more), piece);
            }
            heads.extend(Source::head((at, &*source)));
        }
        Ok(runs)
    }

    async fn list_runs_in(
        &self,
        partition: i16,
        request: &ListRuns,
        place: Option<Place>,
        limit: usize,
    ) -> Result<Vec<Run>, Fault> {
        const SQL: &str = concat!(
            "SELECT ",
            run_columns!(),
            " FROM runs WHERE ",
            run_filter!(),
            " AND ($9::timestamptz IS NULL OR (created_at, run_id) < ($9, $10))
             ORDER BY created_at DESC, run_id DESC LIMIT $11"
        );
        let query = bind_filter(query(SQL), partition, &request.namespace, &request.filter)?
            .bind(place.map(|(at, _)| Moment(at)))
            .bind(place.map(|(_, run_id)| run_id.as_uuid()))
            .bind(i64::try_from(limit).unwrap_or(i64::MAX));
        self.scan(query).await?.iter().map(run_from_row).collect()
    }

    pub(crate) async fn count_runs(
        &self,
        namespace: &Namespace,
        filter: &RunFilter,
    ) -> Result<u64, StoreError> {
        const SQL: &str = concat!("SELECT count(*) AS runs FROM runs WHERE ", run_filter!());
        let count = |partition: i16| async move {
            let query = bind_filter(query(SQL), partition, namespace, filter)?;
            let rows = self.scan(query).await?;
            let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
            Ok::<_, Fault>(row.try_get::<i64, _>("runs")?.unsigned_abs())
        };
        let counts = self.ask_each(count).await.map_err(|fault| fault.into_store_error("counting runs"))?;
        Ok(counts.into_iter().map(|(_, count)| count).sum())
    }

    pub(crate) async fn list_attempts(&self, request: &ListAttempts) -> Result<Page<Attempt>, StoreError> {
        let place = request.place()?;
        let attempts = self
            .read_attempts(request, place)
            .await
            .map_err(|fault| fault.into_store_error("listing attempts"))?;
        Ok(page(attempts, request.page.limit, |last| request.cursor_after(last)))
    }

    async fn read_attempts(
        &self,
        request: &ListAttempts,
        place: Option<(u32, kagzi_core::StepId, u32)>,
    ) -> Result<Vec<Attempt>, Fault> {
        const ALL: &str = concat!(
            "SELECT ",
            attempt_columns!(),
            " FROM steps WHERE run_id = $1 AND partition = $2
               AND ($3::bigint IS NULL OR (position::bigint, step_id, attempt::bigint) > ($3, $4, $5))
             ORDER BY position, step_id, attempt LIMIT $6"
        );
        const LATEST: &str = concat!(
            "SELECT ",
            attempt_columns!(),
            " FROM (
                 SELECT DISTINCT ON (step_id) * FROM steps WHERE run_id = $1 AND partition = $2
                 ORDER BY step_id, attempt DESC) latest
             WHERE $3::bigint IS NULL OR (position::bigint, step_id, attempt::bigint) > ($3, $4, $5)
             ORDER BY position, step_id, attempt LIMIT $6"
        );
        let partition = self.partition(request.run_id);
        let sql = match request.scope {
            AttemptScope::All => ALL,
            AttemptScope::Latest => LATEST,
        };
        let listed = query(sql)
            .bind(request.run_id.as_uuid())
            .bind(partition)
            .bind(place.as_ref().map(|(position, ..)| i64::from(*position)))
            .bind(place.as_ref().map(|(_, step_id, _)| step_id.as_str()))
            .bind(place.as_ref().map(|(.., attempt)| i64::from(*attempt)))
            .bind(i64::from(request.page.limit) + 1);
        let attempts = self.scan(listed).await?.iter().map(attempt_from_row).collect();
        // Asked afterwards: a run that is removed in between is not found, and never one without steps.
        let known = query(
            "SELECT 1 FROM runs WHERE run_id = $1 AND partition = $2 AND namespace IS NOT DISTINCT FROM $3",
        )
        .bind(request.run_id.as_uuid())
        .bind(partition)
        .bind(request.namespace.as_str());
        if self.scan(known).await?.is_empty() {
            return Err(StoreError::RunNotFound { run_id: request.run_id }.into());
        }
        attempts
    }

    pub(crate) async fn queue_depths(&self, namespace: &Namespace) -> Result<Vec<QueueDepth>, StoreError> {
        self.read_depths(namespace).await.map_err(|fault| fault.into_store_error("measuring queues"))
    }

    async fn read_depths(&self, namespace: &Namespace) -> Result<Vec<QueueDepth>, Fault> {
        const SQL: &str = "SELECT queue, state, runs, oldest_due_at FROM kagzi_queue_depths($1, $2)";
        let mut depths = std::collections::BTreeMap::new();
        let read = |partition: i16| self.scan(query(SQL).bind(partition).bind(namespace.as_str()));
        for (_, rows) in self.ask_each(read).await? {
            for row in rows {
                let queue = QueueName::new(row.try_get::<&str, _>("queue")?)?;
                let runs = row.try_get::<i64, _>("runs")?.unsigned_abs();
                let Moment(oldest) = row.try_get("oldest_due_at")?;
                let depth: &mut QueueDepth =
                    depths.entry(queue.clone()).or_insert_with(|| QueueDepth::empty(queue));
                match row.try_get::<&str, _>("state")? {
                    name if name == RunState::Pending.as_str() => {
                        depth.pending += runs;
                        depth.oldest_due_at =
                            Some(depth.oldest_due_at.map_or(oldest, |earlier| earlier.min(oldest)));
                    }
                    name if name == RunState::Sleeping.as_str() => depth.sleeping += runs,
                    _ => depth.running += runs,
                }
            }
        }
        for (queue, pause) in self.read_pauses(namespace).await? {
            depths.entry(queue.clone()).or_insert_with(|| QueueDepth::empty(queue)).pause = Some(pause);
        }
        Ok(depths.into_values().collect())
    }
}
