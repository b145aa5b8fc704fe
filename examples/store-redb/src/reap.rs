//! Reaping: what time did, repaired in bounded pieces.

use kagzi_core::decide::{self, OverdueKind, Progress};
use kagzi_core::{Attempt, MoreDue, NextDue, Reaped, Run, Timestamp};
use redb::{ReadTransaction, ReadableTable as _};

use crate::error::Result;
use crate::load;
use crate::save::Writing;
use crate::tables::{self, Id, micros};

pub(crate) fn reap(writing: &mut Writing<'_>, limit: u32) -> Result<Reaped> {
    decide::check_reap(limit)?;
    let mut reaped = Reaped::default();
    while reaped.total() < limit {
        let before = reaped.total();
        repair_longest_overdue(writing, limit - before, &mut reaped)?;
        if reaped.total() == before {
            break;
        }
    }
    if reaped.total() >= limit {
        reaped.more = MoreDue::Maybe;
    }
    Ok(reaped)
}

fn repair_longest_overdue(writing: &mut Writing<'_>, limit: u32, reaped: &mut Reaped) -> Result<()> {
    let now = writing.now();
    let (run_moments, due) = overdue_runs(writing, now, limit)?;
    let (step_moments, late) = overdue_steps(writing, now, limit)?;
    let (runs, attempts) = decide::shares_of_a_reap(limit, &run_moments, &step_moments);
    for run_id in due.into_iter().take(runs) {
        if let Some(run) = load::run(&writing.tables.runs, run_id)?
            && let Some(kind) = repair(writing, &run, now)?
        {
            reaped.count(kind);
        }
    }
    for attempt in late.iter().take(attempts) {
        // With the repair of a run its open attempts end too, so each that is treated is another run.
        if let Some(kind) = repair_step(writing, attempt, now)? {
            reaped.count(kind);
        }
    }
    Ok(())
}

/// Repairs one run, if time did something to it.
pub(crate) fn repair(writing: &mut Writing<'_>, run: &Run, now: Timestamp) -> Result<Option<OverdueKind>> {
    let progress = if decide::needs_progress(run, now) { writing.progress(run)? } else { Progress::None };
    let Some(overdue) = decide::overdue(run, progress, &writing.shared.rules, now) else { return Ok(None) };
    writing.apply(run.run_id, &overdue.effects, now)?;
    Ok(Some(overdue.kind))
}

/// Since when, and which.
fn overdue_runs(writing: &Writing<'_>, now: Timestamp, limit: u32) -> Result<(Vec<Timestamp>, Vec<Id>)> {
    let due = writing.tables.attention.range(..=(micros(now), Id::MAX))?.take(limit as usize);
    due.map(|entry| {
        let (at, run_id) = entry?.0.value();
        Ok((Timestamp::from_micros_clamped(at), run_id))
    })
    .collect()
}

/// Since when, and which.
fn overdue_steps(
    writing: &Writing<'_>,
    now: Timestamp,
    limit: u32,
) -> Result<(Vec<Timestamp>, Vec<Attempt>)> {
    let (mut moments, mut late) = (Vec::new(), Vec::new());
    for entry in writing.tables.deadlines.iter()?.take(limit as usize) {
        let key = entry?.0;
        let (at, run_id, position, step, number) = key.value();
        if at > micros(now) {
            break;
        }
        if let Some(found) = writing.tables.attempts.get((run_id, position, step, number))? {
            moments.push(Timestamp::from_micros_clamped(at));
            late.push(crate::row::attempt(found.value())?);
        }
    }
    Ok((moments, late))
}

/// Fails an attempt that is past its timeout; whether it did.
fn repair_step(writing: &mut Writing<'_>, attempt: &Attempt, now: Timestamp) -> Result<Option<OverdueKind>> {
    let Some(run) = load::run(&writing.tables.runs, tables::id(attempt.run_id))? else { return Ok(None) };
    let failures = writing.failures(&run, &attempt.step_id)?;
    let overdue = decide::step_overdue(&run, attempt, failures, &writing.shared.rules, now);
    let Some(overdue) = overdue else { return Ok(None) };
    writing.apply(run.run_id, &overdue.effects, now)?;
    Ok(Some(overdue.kind))
}

/// The nearest moment over runs and steps: the first entries of two indexes.
pub(crate) fn next_due(reading: &ReadTransaction, now: Timestamp) -> Result<NextDue> {
    let run = reading.open_table(tables::ATTENTION)?.first()?.map(|(key, _)| key.value().0);
    let step = reading.open_table(tables::DEADLINES)?.first()?.map(|(key, _)| key.value().0);
    let due_at = run.into_iter().chain(step).min().map(Timestamp::from_micros_clamped);
    Ok(NextDue { now, due_at })
}
