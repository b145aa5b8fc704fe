//! Reading: one run, pages, counts and depths. Readers see the last commit and hold up nobody.

use kagzi_core::{
    Attempt, ListAttempts, ListRuns, Namespace, Page, QueueDepth, QueueName, Run, RunFilter, RunId,
    RunRecord, RunState, StoreError, Timestamp,
};
use redb::ReadTransaction;

use crate::error::{Error, Result};
use crate::tables::{ATTEMPTS, CREATED, INPUTS, Id, LIVE, Micros, OUTPUTS, RUNS, id, micros};
use crate::{load, queues};

pub(crate) fn get_run(reading: &ReadTransaction, namespace: &Namespace, run_id: RunId) -> Result<RunRecord> {
    let run = run(reading, namespace, run_id)?;
    let input = load::payload(&reading.open_table(INPUTS)?, run_id)?;
    let input = input.ok_or_else(|| Error::Damaged(format!("run {run_id} has no input")))?;
    let output = load::payload(&reading.open_table(OUTPUTS)?, run_id)?;
    Ok(RunRecord { run, input, output })
}

fn run(reading: &ReadTransaction, namespace: &Namespace, run_id: RunId) -> Result<Run> {
    load::run(&reading.open_table(RUNS)?, id(run_id))?
        .filter(|run| run.namespace == *namespace)
        .ok_or(Error::Refused(StoreError::RunNotFound { run_id }))
}

/// A page of runs, the youngest first, read no further than its end.
pub(crate) fn list_runs(reading: &ReadTransaction, request: &ListRuns) -> Result<Page<Run>> {
    let place = request.place()?.map(|(created_at, run_id)| (micros(created_at), id(run_id)));
    let limit = request.page.limit as usize;
    let mut items: Vec<Run> = Vec::new();
    for run in youngest_first(reading, &request.namespace, &request.filter, place)? {
        let run = run?;
        if !request.filter.matches(&run) {
            continue;
        }
        if items.len() == limit {
            let next = items.last().map(|last| request.cursor_after(last));
            return Ok(Page { items, next });
        }
        items.push(run);
    }
    Ok(Page { items, next: None })
}

pub(crate) fn count_runs(
    reading: &ReadTransaction,
    namespace: &Namespace,
    filter: &RunFilter,
) -> Result<u64> {
    let mut count = 0;
    for run in youngest_first(reading, namespace, filter, None)? {
        count += u64::from(filter.matches(&run?));
    }
    Ok(count)
}

/// The runs of a namespace within the times of `filter` that are older than `place`.
fn youngest_first(
    reading: &ReadTransaction,
    namespace: &Namespace,
    filter: &RunFilter,
    place: Option<(Micros, Id)>,
) -> Result<impl Iterator<Item = Result<Run>>> {
    let runs = reading.open_table(RUNS)?;
    let namespace = namespace.as_str();
    let from = (filter.created_from.map_or(Micros::MIN, micros), Id::MIN);
    let before = filter.created_before.map_or((Micros::MAX, Id::MAX), |at| (micros(at), Id::MIN));
    // A range that ends before it begins is empty, and not an error.
    let end = place.map_or(before, |place| place.min(before)).max(from);
    let range = reading.open_table(CREATED)?.range((namespace, from.0, from.1)..(namespace, end.0, end.1))?;
    Ok(range.rev().map(move |entry| {
        let (_, _, run_id) = entry?.0.value();
        load::run(&runs, run_id)?.ok_or_else(Error::dangling)
    }))
}

pub(crate) fn list_attempts(reading: &ReadTransaction, request: &ListAttempts) -> Result<Page<Attempt>> {
    request.place()?; // a bad cursor is refused whether the run exists or not
    run(reading, &request.namespace, request.run_id)?;
    load::page_of_attempts(&reading.open_table(ATTEMPTS)?, request, usize::MAX)
}

/// The queues with live runs, by name, in one pass over the index of live runs, which is in that order; and
/// those that are paused.
pub(crate) fn queue_depths(reading: &ReadTransaction, namespace: &Namespace) -> Result<Vec<QueueDepth>> {
    let mut depths: Vec<QueueDepth> = Vec::new();
    for entry in reading.open_table(LIVE)?.range((namespace.as_str(), "", "", Micros::MIN, Id::MIN)..)? {
        let (key, _) = entry?;
        let (found, queue, state, due_at, _) = key.value();
        if found != namespace.as_str() {
            break;
        }
        if depths.last().is_none_or(|last| last.queue.as_str() != queue) {
            let queue = QueueName::new(queue).map_err(|error| Error::Damaged(error.to_string()))?;
            depths.push(QueueDepth::empty(queue));
        }
        let Some(depth) = depths.last_mut() else { continue };
        if state == RunState::Pending.as_str() {
            depth.pending += 1;
            // Within a state the longest due comes first.
            depth.oldest_due_at.get_or_insert(Timestamp::from_micros_clamped(due_at));
        } else if state == RunState::Sleeping.as_str() {
            depth.sleeping += 1;
        } else {
            depth.running += 1;
        }
    }
    for (queue, pause) in queues::paused(reading, namespace)? {
        let place = depths.binary_search_by(|depth| depth.queue.cmp(&queue)).unwrap_or_else(|place| {
            depths.insert(place, QueueDepth::empty(queue));
            place
        });
        if let Some(depth) = depths.get_mut(place) {
            depth.pause = Some(pause);
        }
    }
    Ok(depths)
}
