//! Reaping: what time did, repaired in bounded pieces.

use kagzi_core::decide::{self, OverdueKind, Progress};
use kagzi_core::{MoreDue, Reaped, Run, RunId, StepId, Timestamp};
use rusqlite::{Connection, params};

use crate::commit::Tx;
use crate::error::Error;
use crate::rows::{self, Columns, all, bytes, first, run_columns};
use crate::{runs, steps};

/// Which attempt of which step of which run.
type AttemptKey = (RunId, StepId, u32);

pub(crate) const OVERDUE_RUNS: &str = concat!(
    "SELECT ",
    run_columns!(),
    " FROM runs AS r WHERE r.attention_at IS NOT NULL AND r.attention_at <= ?1 AND r.partition = 0",
    " ORDER BY r.attention_at, r.run_id LIMIT ?2"
);

pub(crate) const OVERDUE_STEPS: &str = "\
    SELECT deadline_at, run_id, step_id, attempt FROM steps \
    WHERE deadline_at IS NOT NULL AND state = 'RUNNING' AND deadline_at <= ?1 AND partition = 0 \
    ORDER BY deadline_at, run_id, step_id, attempt LIMIT ?2";

pub(crate) const NEXT_DUE_RUN: &str = "\
    SELECT attention_at FROM runs WHERE attention_at IS NOT NULL AND partition = 0 \
    ORDER BY attention_at LIMIT 1";

pub(crate) const NEXT_DUE_STEP: &str = "\
    SELECT deadline_at FROM steps WHERE deadline_at IS NOT NULL AND state = 'RUNNING' AND partition = 0 \
    ORDER BY deadline_at LIMIT 1";

pub(crate) const HAS_PROGRESS: &str = "\
    SELECT 1 FROM steps \
    WHERE run_id = ?1 AND partition = 0 AND fencing_token = ?2 AND state = 'COMPLETED' LIMIT 1";

/// Repairs at most `limit` runs: whose moments came longest ago, over leases, sleepers, deadlines and
/// timeouts of steps.
pub(crate) fn reap(tx: &mut Tx<'_>, limit: u32) -> Result<Reaped, Error> {
    let mut reaped = Reaped::default();
    while reaped.total() < limit {
        let before = reaped.total();
        repair_longest_overdue(tx, limit - before, &mut reaped)?;
        if reaped.total() == before {
            break;
        }
    }
    if reaped.total() >= limit {
        reaped.more = MoreDue::Maybe;
    }
    Ok(reaped)
}

fn repair_longest_overdue(tx: &mut Tx<'_>, limit: u32, reaped: &mut Reaped) -> Result<(), Error> {
    let due = all(tx.connection, OVERDUE_RUNS, params![tx.now.as_micros(), limit], rows::run)?;
    let (step_moments, late) = overdue_steps(tx, limit)?;
    let run_moments: Vec<Timestamp> =
        due.iter().map(|run| run.attention_at().unwrap_or(Timestamp::MAX)).collect();
    let (runs, attempts) = decide::shares_of_a_reap(limit, &run_moments, &step_moments);
    for run in due.iter().take(runs) {
        if let Some(kind) = repair_run(tx, run)? {
            reaped.count(kind);
        }
    }
    for (run_id, step_id, attempt) in late.iter().take(attempts) {
        // A run is treated once: with its first overdue attempt its lease has ended, and its other attempts
        // with it.
        if let Some(kind) = repair_step(tx, *run_id, step_id, *attempt)? {
            reaped.count(kind);
        }
    }
    Ok(())
}

/// RUNNING attempts past their timeout: since when, and which.
fn overdue_steps(tx: &Tx<'_>, limit: u32) -> Result<(Vec<Timestamp>, Vec<AttemptKey>), Error> {
    let found = all(tx.connection, OVERDUE_STEPS, params![tx.now.as_micros(), limit], |row| {
        let mut columns = Columns::new(row);
        Ok((columns.moment()?, (columns.run_id()?, columns.name()?, columns.count()?)))
    })?;
    Ok(found.into_iter().unzip())
}

/// Repairs one run, if time did something to it.
pub(crate) fn repair_run(tx: &mut Tx<'_>, run: &Run) -> Result<Option<OverdueKind>, Error> {
    let progress =
        if decide::needs_progress(run, tx.now) { progress(tx.connection, run)? } else { Progress::None };
    let Some(overdue) = decide::overdue(run, progress, tx.rules, tx.now) else { return Ok(None) };
    tx.apply(run.run_id, overdue.effects)?;
    Ok(Some(overdue.kind))
}

fn repair_step(
    tx: &mut Tx<'_>,
    run_id: RunId,
    step_id: &StepId,
    attempt: u32,
) -> Result<Option<OverdueKind>, Error> {
    let Some(run) = runs::find(tx.connection, run_id)? else { return Ok(None) };
    let Some(attempt) = steps::find(tx.connection, run_id, step_id, attempt)? else { return Ok(None) };
    let failures = steps::count_failures(tx.connection, &run, step_id)?;
    let Some(overdue) = decide::step_overdue(&run, &attempt, failures, tx.rules, tx.now) else {
        return Ok(None);
    };
    tx.apply(run_id, overdue.effects)?;
    Ok(Some(overdue.kind))
}

/// Whether a step finished under the run's current token.
fn progress(connection: &Connection, run: &Run) -> Result<Progress, Error> {
    let key = params![bytes(run.run_id.as_uuid()), run.fencing_token.get()];
    let found = first(connection, HAS_PROGRESS, key, |_| Ok(()))?;
    Ok(if found.is_some() { Progress::Made } else { Progress::None })
}

/// Whether it is certain that no run needs repair now. Mostly from memory, since most claims find
/// nothing to repair.
pub(crate) fn is_quiet(tx: &mut Tx<'_>) -> Result<bool, Error> {
    if !tx.held.is_quiet(tx.now) {
        let next = first(tx.connection, NEXT_DUE_RUN, [], |row| Columns::new(row).moment())?;
        tx.held.note_quiet_until(next.unwrap_or(Timestamp::MAX));
    }
    Ok(tx.held.is_quiet(tx.now))
}

/// The nearest moment over sleepers, leases, deadlines and step timeouts.
pub(crate) fn next_due(connection: &Connection) -> Result<Option<Timestamp>, Error> {
    let run = first(connection, NEXT_DUE_RUN, [], |row| Columns::new(row).moment())?;
    let step = first(connection, NEXT_DUE_STEP, [], |row| Columns::new(row).moment())?;
    Ok(run.into_iter().chain(step).min())
}
