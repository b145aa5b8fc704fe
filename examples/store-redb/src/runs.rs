//! What clients ask: start, cancel, requeue; and what keepers remove.

use std::collections::HashMap;

use kagzi_core::decide;
use kagzi_core::{
    CancelOutcome, CancelRun, DeleteFinished, IdempotencyKey, Namespace, RequeueOutcome, RequeueRun, Run,
    RunId, StartOutcome, StartRun, Started,
};
use redb::ReadableTable as _;

use crate::error::Result;
use crate::load;
use crate::save::Writing;
use crate::tables::{id, micros};

/// Starts runs, all or none (invariant 15): first every verdict, then every write. Later starts of a
/// batch see the earlier ones in `fresh`.
pub(crate) fn start(writing: &mut Writing<'_>, batch: &[StartRun]) -> Result<Vec<Started>> {
    decide::check_start_batch(batch, &writing.shared.rules)?;
    let now = writing.now();
    let mut fresh: Vec<(&StartRun, Run)> = Vec::new();
    let mut by_id: HashMap<RunId, usize> = HashMap::new();
    let mut by_key: HashMap<(&Namespace, &IdempotencyKey), usize> = HashMap::new();
    let mut answers = Vec::with_capacity(batch.len());
    for start in batch {
        let run_id = start.run_id();
        let key = start.idempotency_key.as_ref().map(|key| (&start.namespace, key));
        let earlier = by_id.get(&run_id).or_else(|| key.and_then(|key| by_key.get(&key)));
        answers.push(if let Some(run) = already_started(writing, start)? {
            decide::existing_run(start, &run, &writing.input(run.run_id)?)?
        } else if let Some((earlier, run)) = earlier.and_then(|at| fresh.get(*at)) {
            decide::existing_run(start, run, &earlier.input)?
        } else {
            by_id.insert(run_id, fresh.len());
            by_key.extend(key.map(|key| (key, fresh.len())));
            fresh.push((start, decide::new_run(start, now)));
            Started { run_id, outcome: StartOutcome::Created }
        });
    }
    fresh.iter().try_for_each(|(start, run)| writing.insert_run(run, &start.input))?;
    Ok(answers)
}

/// The stored run that this start names, by its id (invariant 8) or by its key (invariant 7).
fn already_started(writing: &Writing<'_>, start: &StartRun) -> Result<Option<Run>> {
    let tables = &writing.tables;
    if let Some(run) = load::run(&tables.runs, id(start.run_id()))? {
        return Ok(Some(run));
    }
    let Some(key) = &start.idempotency_key else { return Ok(None) };
    match tables.keys.get((start.namespace.as_str(), key.as_str()))? {
        Some(run_id) => load::run(&tables.runs, run_id.value()),
        None => Ok(None),
    }
}

pub(crate) fn cancel(writing: &mut Writing<'_>, request: &CancelRun) -> Result<CancelOutcome> {
    request.validate(&writing.shared.rules)?;
    let (run, now) = (writing.run(&request.namespace, request.run_id)?, writing.now());
    let recorded = writing.recorded(run.run_id, request.operation)?;
    let decision = decide::cancel(&run, recorded, request, now)?;
    writing.apply(run.run_id, &decision.effects, now)?;
    Ok(decision.answer)
}

pub(crate) fn requeue(writing: &mut Writing<'_>, request: &RequeueRun) -> Result<RequeueOutcome> {
    let (run, now) = (writing.run(&request.namespace, request.run_id)?, writing.now());
    let recorded = writing.recorded(run.run_id, request.operation)?;
    let decision = decide::requeue(&run, recorded, request, now)?;
    writing.apply(run.run_id, &decision.effects, now)?;
    Ok(decision.answer)
}

/// Removes finished runs, the longest finished first.
pub(crate) fn delete_finished(writing: &mut Writing<'_>, request: &DeleteFinished) -> Result<u64> {
    request.validate()?;
    let mut found: Vec<Run> = Vec::new();
    for entry in writing.tables.finished.range(..(micros(request.before), 0))? {
        if found.len() >= request.limit as usize {
            break;
        }
        let (key, namespace) = entry?;
        if request.namespace.as_ref().is_some_and(|only| only.as_str() != namespace.value()) {
            continue;
        }
        let run = load::run(&writing.tables.runs, key.value().1)?;
        found.extend(run.filter(|run| request.matches(&run.namespace, run.state, run.finished_at)));
    }
    found.iter().try_for_each(|run| writing.remove_run(run))?;
    Ok(found.len() as u64)
}
