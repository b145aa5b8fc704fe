//! Runs: load, start, cancel, requeue, complete, fail, delete. Each operation loads, asks
//! [`decide`], and writes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kagzi_core::{
    CancelOutcome, CancelRun, CompleteRun, CompleteRunOutcome, DeleteFinished, FailRun, FailureOutcome,
    IdempotencyKey, Lease, Namespace, OperationId, Payload, RecordedAnswer, RequeueOutcome, RequeueRun, Run,
    RunId, RunRecord, RunState, StartOutcome, StartRun, Started, StoreError, decide,
};
use rusqlite::{Connection, params};

use crate::apply::{Inserted, Slot};
use crate::commit::Tx;
use crate::error::Error;
use crate::held::History;
use crate::rows::{self, Columns, all, bytes, execute, first, run_columns};

pub(crate) const LOAD: &str =
    concat!("SELECT ", run_columns!(), " FROM runs AS r WHERE r.run_id = ?1 AND r.partition = 0");

pub(crate) const LOAD_BY_KEY: &str = concat!(
    "SELECT ",
    run_columns!(),
    " FROM runs AS r WHERE r.namespace = ?1 AND r.idempotency_key = ?2 AND r.partition = 0"
);

pub(crate) const LOAD_PAYLOAD: &str =
    "SELECT content_type, bytes FROM payloads WHERE run_id = ?1 AND slot = ?2 AND partition = 0";

pub(crate) const LOAD_OPERATION: &str =
    "SELECT answer FROM operations WHERE run_id = ?1 AND operation_id = ?2 AND partition = 0";

/// The longest finished first. An unwanted state is bound as NULL, which no row equals.
pub(crate) const FIND_FINISHED: &str = "\
    SELECT run_id FROM runs \
    WHERE finished_at IS NOT NULL AND finished_at < ?1 AND partition = 0 \
        AND (?2 IS NULL OR namespace = ?2) AND state IN (?3, ?4, ?5) \
    ORDER BY finished_at, run_id LIMIT ?6";

/// Its steps, payloads and operations go with it: ON DELETE CASCADE.
pub(crate) const DELETE: &str = "DELETE FROM runs WHERE run_id = ?1 AND partition = 0";

/// A run, whoever owns it.
pub(crate) fn find(connection: &Connection, run_id: RunId) -> Result<Option<Run>, Error> {
    first(connection, LOAD, params![bytes(run_id.as_uuid())], rows::run)
}

/// A run of this namespace.
pub(crate) fn load(connection: &Connection, namespace: &Namespace, run_id: RunId) -> Result<Run, Error> {
    find(connection, run_id)?
        .filter(|run| run.namespace == *namespace)
        .ok_or(Error::Refused(StoreError::RunNotFound { run_id }))
}

/// The run of a lease: from the memory of what is held, else from the file.
pub(crate) fn load_held(tx: &mut Tx<'_>, lease: &Lease) -> Result<Arc<Run>, Error> {
    if let Some(run) = tx.held.run(lease.run_id).filter(|run| run.namespace == lease.namespace) {
        return Ok(run);
    }
    let run = Arc::new(load(tx.connection, &lease.namespace, lease.run_id)?);
    tx.held.note_run(Arc::clone(&run), History::Unseen);
    Ok(run)
}

/// What a run was started with.
pub(crate) fn load_input(connection: &Connection, run_id: RunId) -> Result<Payload, Error> {
    load_payload(connection, run_id, Slot::Input)?
        .ok_or_else(|| Error::damaged(format!("run {run_id} has no input")))
}

fn load_payload(connection: &Connection, run_id: RunId, slot: Slot) -> Result<Option<Payload>, Error> {
    let key = params![bytes(run_id.as_uuid()), slot.as_str()];
    first(connection, LOAD_PAYLOAD, key, |row| Columns::new(row).payload())
}

/// The answer of an operation on a run, if it was recorded.
pub(crate) fn load_recorded(
    connection: &Connection,
    run_id: RunId,
    operation: OperationId,
) -> Result<Option<RecordedAnswer>, Error> {
    let key = params![bytes(run_id.as_uuid()), bytes(operation.as_uuid())];
    first(connection, LOAD_OPERATION, key, |row| Ok(RecordedAnswer::from_text(Columns::new(row).text()?)?))
}

/// A run with its payloads.
pub(crate) fn record(
    connection: &Connection,
    namespace: &Namespace,
    run_id: RunId,
) -> Result<RunRecord, Error> {
    let run = load(connection, namespace, run_id)?;
    let output = match run.state {
        RunState::Completed => load_payload(connection, run_id, Slot::Output)?,
        _ => None,
    };
    Ok(RunRecord { input: load_input(connection, run_id)?, run, output })
}

/// Runs with their payloads, each with its own verdict.
pub(crate) fn records(
    connection: &Connection,
    wanted: &[(Namespace, RunId)],
) -> Result<Vec<Result<RunRecord, StoreError>>, Error> {
    let read = |(namespace, run_id): &(Namespace, RunId)| match record(connection, namespace, *run_id) {
        Err(Error::Refused(refused)) => Ok(Err(refused)),
        other => other.map(Ok),
    };
    wanted.iter().map(read).collect()
}

/// Starts runs, all or none: first every verdict, then every write. A single one is written at once,
/// which finds out by itself whether it is new.
pub(crate) fn start(tx: &mut Tx<'_>, batch: &[StartRun]) -> Result<Vec<Started>, Error> {
    if let [start] = batch {
        let run = decide::new_run(start, tx.now);
        if tx.insert_run(&run, &start.input)? == Inserted::Yes {
            return Ok(vec![Started { run_id: run.run_id, outcome: StartOutcome::Created }]);
        }
    }
    let mut fresh: Vec<(&StartRun, Run)> = Vec::with_capacity(batch.len());
    // Later starts of the batch must see the earlier ones, which are not written yet.
    let mut by_id: HashMap<RunId, usize> = HashMap::new();
    let mut by_key: HashMap<(&Namespace, &IdempotencyKey), usize> = HashMap::new();
    let mut answers = Vec::with_capacity(batch.len());
    for start in batch {
        let run = decide::new_run(start, tx.now);
        let key = start.idempotency_key.as_ref().map(|key| (&start.namespace, key));
        let earlier = by_id.get(&run.run_id).or_else(|| key.and_then(|key| by_key.get(&key)));
        let answer = if let Some(stored) = find_started(tx.connection, run.run_id, key)? {
            decide::existing_run(start, &stored, &load_input(tx.connection, stored.run_id)?)?
        } else if let Some((earlier, run)) = earlier.and_then(|at| fresh.get(*at)) {
            decide::existing_run(start, run, &earlier.input)?
        } else {
            by_id.insert(run.run_id, fresh.len());
            by_key.extend(key.map(|key| (key, fresh.len())));
            let started = Started { run_id: run.run_id, outcome: StartOutcome::Created };
            fresh.push((start, run));
            started
        };
        answers.push(answer);
    }
    for (start, run) in &fresh {
        if tx.insert_run(run, &start.input)? == Inserted::Not {
            // Looked for above, in this very transaction.
            return Err(Error::damaged(format!("run {} is in an index, but not in its table", run.run_id)));
        }
    }
    Ok(answers)
}

fn find_started(
    connection: &Connection,
    run_id: RunId,
    key: Option<(&Namespace, &IdempotencyKey)>,
) -> Result<Option<Run>, Error> {
    match (find(connection, run_id)?, key) {
        (None, Some((namespace, key))) => {
            first(connection, LOAD_BY_KEY, params![namespace.as_str(), key.as_str()], rows::run)
        }
        (found, _) => Ok(found),
    }
}

pub(crate) fn cancel(tx: &mut Tx<'_>, request: &CancelRun) -> Result<CancelOutcome, Error> {
    let run = load(tx.connection, &request.namespace, request.run_id)?;
    let recorded = load_recorded(tx.connection, request.run_id, request.operation)?;
    let decision = decide::cancel(&run, recorded, request, tx.now)?;
    tx.apply(request.run_id, decision.effects)?;
    Ok(decision.answer)
}

pub(crate) fn requeue(tx: &mut Tx<'_>, request: &RequeueRun) -> Result<RequeueOutcome, Error> {
    let run = load(tx.connection, &request.namespace, request.run_id)?;
    let recorded = load_recorded(tx.connection, request.run_id, request.operation)?;
    let decision = decide::requeue(&run, recorded, request, tx.now)?;
    tx.apply(request.run_id, decision.effects)?;
    Ok(decision.answer)
}

pub(crate) fn complete(tx: &mut Tx<'_>, request: &CompleteRun) -> Result<CompleteRunOutcome, Error> {
    let run = load_held(tx, &request.lease)?;
    let decision = decide::complete_run(&run, request, tx.now)?;
    tx.apply(run.run_id, decision.effects)?;
    Ok(decision.answer)
}

pub(crate) fn fail(tx: &mut Tx<'_>, request: &FailRun) -> Result<FailureOutcome, Error> {
    let run = load_held(tx, &request.lease)?;
    let recorded = load_recorded(tx.connection, run.run_id, request.operation)?;
    let decision = decide::fail_run(&run, recorded, request, tx.rules, tx.now)?;
    tx.apply(run.run_id, decision.effects)?;
    Ok(decision.answer)
}

/// What one piece of a removal came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Removed {
    pub(crate) runs: u32,
    /// Its time was over before all were removed.
    pub(crate) more: bool,
}

/// Removes finished runs with everything that belongs to them: at least one if there is one, and no more once it has been
/// at it for so long. What hangs on a run may be many megabytes, and everybody waits for the writer meanwhile.
pub(crate) fn delete_finished(
    tx: &mut Tx<'_>,
    request: &DeleteFinished,
    within: Duration,
) -> Result<Removed, Error> {
    let began = Instant::now();
    let states = &request.states;
    let wanted = |state: RunState| (states.is_empty() || states.contains(&state)).then(|| state.as_str());
    let found = all(
        tx.connection,
        FIND_FINISHED,
        params![
            request.before.as_micros(),
            request.namespace.as_ref().map(Namespace::as_str),
            wanted(RunState::Completed),
            wanted(RunState::Failed),
            wanted(RunState::Cancelled),
            request.limit,
        ],
        |row| Columns::new(row).run_id(),
    )?;
    let mut removed = Removed { runs: 0, more: false };
    for run_id in &found {
        if removed.runs > 0 && began.elapsed() >= within {
            removed.more = true;
            break;
        }
        execute(tx.connection, DELETE, params![bytes(run_id.as_uuid())])?;
        removed.runs += 1;
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use kagzi_core::{QueueName, Store as _, WorkflowType};

    use super::*;
    use crate::{SqliteOptions, SqliteStore};

    #[tokio::test]
    async fn a_removal_goes_in_pieces_that_end_when_their_time_is_over() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(SqliteOptions::new(directory.path().join("kagzi.db"))).await.unwrap();
        let namespace = Namespace::new("n").unwrap();
        let start = || {
            let (queue, workflow_type) = (QueueName::new("q").unwrap(), WorkflowType::new("w").unwrap());
            StartRun::new(namespace.clone(), queue, workflow_type, Payload::raw(Vec::new()))
        };
        for started in store.start((0..5).map(|_| start()).collect()).await.unwrap() {
            let (run_id, reason) = (started.run_id, String::new());
            let operation = OperationId::generate();
            store
                .cancel(CancelRun { namespace: namespace.clone(), run_id, reason, operation })
                .await
                .unwrap();
        }
        let before = store.now().await.unwrap().saturating_add(Duration::from_secs(1));
        let request = DeleteFinished { namespace: Some(namespace), states: Vec::new(), before, limit: 4 };
        let piece = async |limit| {
            let request = DeleteFinished { limit, ..request.clone() };
            store.writer.perform(0, move |tx| delete_finished(tx, &request, Duration::ZERO)).await.unwrap()
        };
        assert_eq!(piece(4).await, Removed { runs: 1, more: true });
        assert_eq!(piece(1).await, Removed { runs: 1, more: false });
        // All pieces together are one removal.
        assert_eq!(store.delete_finished(&DeleteFinished { limit: 2, ..request.clone() }).await.unwrap(), 2);
        assert_eq!(store.delete_finished(&request).await.unwrap(), 1);
        assert_eq!(piece(4).await, Removed { runs: 0, more: false });
    }
}
