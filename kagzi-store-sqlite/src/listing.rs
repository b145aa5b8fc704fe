//! Listings and counts, on reader connections.

use std::collections::BTreeMap;

use kagzi_core::{
    Attempt, AttemptScope, Cursor, ListAttempts, ListRuns, Namespace, Page, PageRequest, Payload, QueueDepth,
    QueueName, Run, RunFilter, RunId, StepId, Timestamp, WorkflowType,
};
use rusqlite::{Connection, ToSql, params};

use crate::error::Error;
use crate::rows::{self, Columns, all, attempt_columns, bytes, first, json, run_columns};
use crate::{queues, steps};

/// A filter as a fixed text: what is not asked for is bound as NULL.
macro_rules! filter {
    () => {
        " FROM runs AS r WHERE r.namespace = :namespace AND r.partition = 0 \
            AND r.created_at >= :created_from AND (r.created_at, r.run_id) < (:before, :before_id) \
            AND (:queue IS NULL OR r.queue = :queue) \
            AND (:workflow_type IS NULL OR r.workflow_type = :workflow_type) \
            AND (:states IS NULL OR r.state IN (SELECT value FROM json_each(:states))) \
            AND (:labels IS NULL OR NOT EXISTS ( \
                SELECT 1 FROM json_each(:labels) AS wanted WHERE NOT EXISTS ( \
                    SELECT 1 FROM json_each(r.labels) AS has \
                    WHERE has.key = wanted.key AND has.value = wanted.value)))"
    };
}

pub(crate) const LIST_RUNS: &str =
    concat!("SELECT ", run_columns!(), filter!(), " ORDER BY r.created_at DESC, r.run_id DESC LIMIT :limit");

pub(crate) const COUNT_RUNS: &str = concat!("SELECT count(*)", filter!());

/// The keys of a page first, so that sorting does not carry outputs around.
pub(crate) const ALL_ATTEMPTS: &str = concat!(
    "SELECT ",
    attempt_columns!(),
    " FROM (SELECT step_id, attempt FROM steps WHERE run_id = ?1 AND partition = 0",
    " AND (position, step_id, attempt) > (?2, ?3, ?4) ORDER BY position, step_id, attempt LIMIT ?5) AS page",
    " CROSS JOIN steps AS s",
    " ON s.run_id = ?1 AND s.step_id = page.step_id AND s.attempt = page.attempt AND s.partition = 0"
);

/// Which attempts are the latest of their steps, from a place on.
macro_rules! latest_keys {
    () => {
        "SELECT a.step_id, a.attempt FROM steps AS a WHERE a.run_id = ?1 AND a.partition = 0 \
            AND (a.position, a.step_id, a.attempt) > (?2, ?3, ?4) AND NOT EXISTS ( \
                SELECT 1 FROM steps AS later WHERE later.run_id = a.run_id AND later.step_id = a.step_id \
                    AND later.attempt > a.attempt AND later.partition = 0) \
            ORDER BY a.position, a.step_id LIMIT ?5"
    };
}

pub(crate) const LATEST_KEYS: &str = latest_keys!();

pub(crate) const LATEST_ATTEMPTS: &str = concat!(
    "SELECT ",
    attempt_columns!(),
    " FROM (",
    latest_keys!(),
    ") AS page CROSS JOIN steps AS s",
    " ON s.run_id = ?1 AND s.step_id = page.step_id AND s.attempt = page.attempt AND s.partition = 0"
);

/// From the index over ready runs alone.
pub(crate) const PENDING_DEPTHS: &str = "\
    SELECT queue, count(*), min(due_at) FROM runs \
    WHERE namespace = ?1 AND state = 'PENDING' AND partition = 0 GROUP BY queue";

/// From the index over runs that time has something to say about: all that sleep or run.
pub(crate) const WAITING_DEPTHS: &str = "\
    SELECT queue, sum(state = 'SLEEPING'), sum(state = 'RUNNING') FROM runs \
    WHERE namespace = ?1 AND attention_at IS NOT NULL AND state IN ('SLEEPING', 'RUNNING') \
        AND partition = 0 GROUP BY queue";

/// A filter, as it is bound.
struct Bound<'f> {
    namespace: &'f str,
    created_from: i64,
    /// Both ends of time in one bound, so that the index goes straight to a page's first run.
    before: (i64, [u8; 16]),
    queue: Option<&'f str>,
    workflow_type: Option<&'f str>,
    states: Option<String>,
    labels: Option<String>,
}

impl<'f> Bound<'f> {
    fn new(
        namespace: &'f Namespace,
        filter: &'f RunFilter,
        place: Option<(Timestamp, RunId)>,
    ) -> Result<Self, Error> {
        let states: Vec<&str> = filter.states.iter().map(|state| state.as_str()).collect();
        let end = filter.created_before.map_or(i64::MAX, Timestamp::as_micros);
        let place = place.map_or((i64::MAX, [0; 16]), |(at, id)| (at.as_micros(), bytes(id.as_uuid())));
        Ok(Self {
            namespace: namespace.as_str(),
            created_from: filter.created_from.map_or(i64::MIN, Timestamp::as_micros),
            // No id is smaller than zero: before (end, 0) is before the end.
            before: place.min((end, [0; 16])),
            queue: filter.queue.as_ref().map(QueueName::as_str),
            workflow_type: filter.workflow_type.as_ref().map(WorkflowType::as_str),
            states: if states.is_empty() { None } else { Some(json(&states)?) },
            labels: if filter.labels.is_empty() { None } else { Some(json(&filter.labels)?) },
        })
    }

    fn params(&self) -> [(&'static str, &dyn ToSql); 8] {
        [
            (":namespace", &self.namespace),
            (":created_from", &self.created_from),
            (":before", &self.before.0),
            (":before_id", &self.before.1),
            (":queue", &self.queue),
            (":workflow_type", &self.workflow_type),
            (":states", &self.states),
            (":labels", &self.labels),
        ]
    }
}

/// A page of runs, the youngest first.
pub(crate) fn runs(
    connection: &Connection,
    request: &ListRuns,
    place: Option<(Timestamp, RunId)>,
) -> Result<Page<Run>, Error> {
    let bound = Bound::new(&request.namespace, &request.filter, place)?;
    let limit = i64::from(request.page.limit) + 1;
    let mut params = bound.params().to_vec();
    params.push((":limit", &limit));
    let found = all(connection, LIST_RUNS, params.as_slice(), rows::run)?;
    Ok(page(found, request.page.limit, |last| request.cursor_after(last)))
}

/// How many runs a filter finds.
pub(crate) fn count(
    connection: &Connection,
    namespace: &Namespace,
    filter: &RunFilter,
) -> Result<u64, Error> {
    let bound = Bound::new(namespace, filter, None)?;
    let count = first(connection, COUNT_RUNS, bound.params().as_slice(), |row| Columns::new(row).total())?;
    Ok(count.unwrap_or(0))
}

/// A page of the history of a run, which exists.
pub(crate) fn attempts(
    connection: &Connection,
    request: &ListAttempts,
    place: Option<&(u32, StepId, u32)>,
) -> Result<Page<Attempt>, Error> {
    let sql = match request.scope {
        AttemptScope::All => ALL_ATTEMPTS,
        AttemptScope::Latest => LATEST_ATTEMPTS,
    };
    let (position, step_id, attempt) = match place {
        Some((position, step_id, attempt)) => (i64::from(*position), step_id.as_str(), *attempt),
        None => (-1, "", 0),
    };
    let limit = i64::from(request.page.limit) + 1;
    let key: [&dyn ToSql; 5] = [&bytes(request.run_id.as_uuid()), &position, &step_id, &attempt, &limit];
    let mut found = all(connection, sql, key, rows::attempt)?;
    found.sort_by_cached_key(Attempt::sort_key);
    Ok(page(found, request.page.limit, |last| request.cursor_after(last)))
}

/// The first page of a run's latest attempts. Reads no more of them once their outputs are over
/// `room_bytes`, with the one that is: the caller cuts there.
pub(crate) fn latest_attempts(
    connection: &Connection,
    run: &Run,
    limit: u32,
    room_bytes: usize,
) -> Result<Page<Attempt>, Error> {
    let key = params![bytes(run.run_id.as_uuid()), -1, "", 0, i64::from(limit) + 1];
    let keys = all(connection, LATEST_KEYS, key, |row| {
        let mut columns = Columns::new(row);
        Ok((columns.name::<StepId>()?, columns.count()?))
    })?;
    let mut found = Vec::with_capacity(keys.len());
    let mut left_bytes = Some(room_bytes);
    for (step_id, number) in keys {
        let Some(left) = left_bytes else { break };
        let attempt = steps::find(connection, run.run_id, &step_id, number)?
            .ok_or_else(|| Error::damaged(format!("attempt {number} of a step is in an index only")))?;
        left_bytes = left.checked_sub(attempt.output.as_ref().map_or(0, Payload::len_bytes));
        found.push(attempt);
    }
    let listing = ListAttempts {
        namespace: run.namespace.clone(),
        run_id: run.run_id,
        scope: AttemptScope::Latest,
        page: PageRequest::first(limit),
    };
    Ok(page(found, limit, |last| listing.cursor_after(last)))
}

/// Cuts the one item too many that tells whether there is more.
fn page<T>(mut items: Vec<T>, limit: u32, cursor_after: impl Fn(&T) -> Cursor) -> Page<T> {
    let more = items.len() > limit as usize;
    items.truncate(limit as usize);
    let next = items.last().filter(|_| more).map(cursor_after);
    Page { items, next }
}

/// The queues of a namespace that hold live runs or are paused, by name.
pub(crate) fn depths(connection: &Connection, namespace: &Namespace) -> Result<Vec<QueueDepth>, Error> {
    let mut depths: BTreeMap<QueueName, QueueDepth> = BTreeMap::new();
    let pending = all(connection, PENDING_DEPTHS, params![namespace.as_str()], |row| {
        let mut columns = Columns::new(row);
        Ok((columns.name::<QueueName>()?, columns.total()?, columns.moment()?))
    })?;
    for (queue, count, oldest) in pending {
        let depth = depths.entry(queue.clone()).or_insert_with(|| QueueDepth::empty(queue));
        depth.pending = count;
        depth.oldest_due_at = Some(oldest);
    }
    let waiting = all(connection, WAITING_DEPTHS, params![namespace.as_str()], |row| {
        let mut columns = Columns::new(row);
        Ok((columns.name::<QueueName>()?, columns.total()?, columns.total()?))
    })?;
    for (queue, sleeping, running) in waiting {
        let depth = depths.entry(queue.clone()).or_insert_with(|| QueueDepth::empty(queue));
        depth.sleeping = sleeping;
        depth.running = running;
    }
    for (queue, pause) in queues::paused(connection, namespace)? {
        depths.entry(queue.clone()).or_insert_with(|| QueueDepth::empty(queue)).pause = Some(pause);
    }
    Ok(depths.into_values().collect())
}
