//! Steps: begin, complete, fail, sleep.

use std::sync::Arc;

use kagzi_core::{
    Attempt, BeginOutcome, BeginStep, CompleteStep, CompleteStepOutcome, FailStep, FailureOutcome,
    OperationId, Run, RunId, Sleep, SleepOutcome, StepId, Then, decide,
};
use rusqlite::{Connection, params};

use crate::commit::Tx;
use crate::error::Error;
use crate::held::Latest;
use crate::rows::{self, Columns, attempt_columns, bytes, first};
use crate::runs::{self, load_held};

pub(crate) const LOAD: &str = concat!(
    "SELECT ",
    attempt_columns!(),
    " FROM steps AS s WHERE s.run_id = ?1 AND s.step_id = ?2 AND s.attempt = ?3 AND s.partition = 0"
);

pub(crate) const LOAD_LATEST: &str = concat!(
    "SELECT ",
    attempt_columns!(),
    " FROM steps AS s WHERE s.run_id = ?1 AND s.step_id = ?2 AND s.partition = 0",
    " ORDER BY s.attempt DESC LIMIT 1"
);

pub(crate) const LOAD_BEGUN_BY: &str = concat!(
    "SELECT ",
    attempt_columns!(),
    " FROM steps AS s WHERE s.run_id = ?1 AND s.step_id = ?2 AND s.partition = 0 AND s.begin_operation = ?3"
);

/// The FAILED attempts that count against a step's budget.
pub(crate) const COUNT_FAILURES: &str = "\
    SELECT count(*) FROM steps \
    WHERE run_id = ?1 AND step_id = ?2 AND partition = 0 AND state = 'FAILED' AND fencing_token > ?3";

/// One attempt.
pub(crate) fn find(
    connection: &Connection,
    run_id: RunId,
    step_id: &StepId,
    attempt: u32,
) -> Result<Option<Attempt>, Error> {
    first(connection, LOAD, params![bytes(run_id.as_uuid()), step_id.as_str(), attempt], rows::attempt)
}

fn find_latest(connection: &Connection, run_id: RunId, step_id: &StepId) -> Result<Option<Attempt>, Error> {
    first(connection, LOAD_LATEST, params![bytes(run_id.as_uuid()), step_id.as_str()], rows::attempt)
}

fn find_begun_by(
    connection: &Connection,
    run_id: RunId,
    step_id: &StepId,
    operation: OperationId,
) -> Result<Option<Attempt>, Error> {
    let key = params![bytes(run_id.as_uuid()), step_id.as_str(), bytes(operation.as_uuid())];
    first(connection, LOAD_BEGUN_BY, key, rows::attempt)
}

/// How many failures of a step its retry budget has used up.
pub(crate) fn count_failures(connection: &Connection, run: &Run, step_id: &StepId) -> Result<u32, Error> {
    let key = params![bytes(run.run_id.as_uuid()), step_id.as_str(), run.budget_token.get()];
    let count = first(connection, COUNT_FAILURES, key, |row| Columns::new(row).count())?;
    Ok(count.unwrap_or(0))
}

/// The latest attempt of a step of a run that is held.
fn latest(tx: &Tx<'_>, run_id: RunId, step_id: &StepId) -> Result<Option<Arc<Attempt>>, Error> {
    match tx.held.latest(run_id, step_id) {
        Latest::Open(attempt) => Ok(Some(attempt)),
        Latest::Absent => Ok(None),
        Latest::Unknown => Ok(find_latest(tx.connection, run_id, step_id)?.map(Arc::new)),
    }
}

/// One attempt of a run that is held.
fn attempt(tx: &Tx<'_>, run_id: RunId, step_id: &StepId, number: u32) -> Result<Option<Arc<Attempt>>, Error> {
    match tx.held.latest(run_id, step_id) {
        Latest::Open(attempt) if attempt.attempt == number => Ok(Some(attempt)),
        _ => Ok(find(tx.connection, run_id, step_id, number)?.map(Arc::new)),
    }
}

pub(crate) fn begin(tx: &mut Tx<'_>, request: &BeginStep) -> Result<BeginOutcome, Error> {
    let run = load_held(tx, &request.lease)?;
    let latest = latest(tx, run.run_id, &request.step.step_id)?;
    let decision = decide::begin_step(&run, latest.as_deref(), request, tx.now)?;
    tx.apply(run.run_id, decision.effects)?;
    Ok(decision.answer)
}

pub(crate) fn complete(tx: &mut Tx<'_>, request: &CompleteStep) -> Result<CompleteStepOutcome, Error> {
    let run = load_held(tx, &request.lease)?;
    let attempt = attempt(tx, run.run_id, &request.step_id, request.attempt)?;
    let next = match &request.then {
        Then::Begin(next) => Some(&next.step_id),
        Then::Nothing | Then::CompleteRun(_) => None,
    };
    let latest = match next {
        Some(step_id) => latest(tx, run.run_id, step_id)?,
        None => None,
    };
    if decide::was_completed_by(attempt.as_deref(), request.operation) {
        let begun = match next {
            Some(step_id) => find_begun_by(tx.connection, run.run_id, step_id, request.operation)?,
            None => None,
        };
        return Ok(decide::completed_again(&run, begun.as_ref(), latest.as_deref(), request)?);
    }
    let decision = decide::complete_step(&run, attempt.as_deref(), latest.as_deref(), request, tx.now)?;
    tx.apply(run.run_id, decision.effects)?;
    Ok(decision.answer)
}

pub(crate) fn fail(tx: &mut Tx<'_>, request: &FailStep) -> Result<FailureOutcome, Error> {
    let run = load_held(tx, &request.lease)?;
    let attempt = attempt(tx, run.run_id, &request.step_id, request.attempt)?;
    let failures = count_failures(tx.connection, &run, &request.step_id)?;
    let recorded = runs::load_recorded(tx.connection, run.run_id, request.operation)?;
    let decision =
        decide::fail_step(&run, attempt.as_deref(), failures, recorded, request, tx.rules, tx.now)?;
    tx.apply(run.run_id, decision.effects)?;
    Ok(decision.answer)
}

pub(crate) fn sleep(tx: &mut Tx<'_>, request: &Sleep) -> Result<SleepOutcome, Error> {
    let run = load_held(tx, &request.lease)?;
    let latest = latest(tx, run.run_id, &request.step_id)?;
    let recorded = runs::load_recorded(tx.connection, run.run_id, request.operation)?;
    let decision = decide::sleep(&run, latest.as_deref(), recorded, request, tx.now)?;
    tx.apply(run.run_id, decision.effects)?;
    Ok(decision.answer)
}
