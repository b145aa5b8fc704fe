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
    let now = writing.now();
    let mut reaped = Reaped::default();
    let due = writing.tables.attention.range(..=(micros(now), Id::MAX))?.take(limit as usize);
    let due: Vec<Id> = due.map(|entry| Ok(entry?.0.value().1)).collect::<Result<_>>()?;
    for run_id in due {
        if let Some(run) = load::run(&writing.tables.runs, run_id)?
            && let Some(kind) = repair(writing, &run, now)?
        {
            reaped.count(kind);
        }
    }
    // With the repair of a run its open attempts end too, so each of these is another run.
    while reaped.total() < limit
        && let Some(attempt) = longest_overdue_step(writing, now)?
        && repair_step(writing, &attempt, now)?
    {
        reaped.count(OverdueKind::StepTimedOut);
    }
    if reaped.total() >= limit {
        reaped.more = MoreDue::Maybe;
    }
    Ok(reaped)
}

/// Repairs one run, if time did something to it.
pub(crate) fn repair(writing: &mut Writing<'_>, run: &Run, now: Timestamp) -> Result<Option<OverdueKind>> {
    let progress = if decide::needs_progress(run, now) { writing.progress(run)? } else { Progress::None };
    let Some(overdue) = decide::overdue(run, progress, &writing.shared.rules, now) else { return Ok(None) };
    writing.apply(run.run_id, &overdue.effects, now)?;
    Ok(Some(overdue.kind))
}

fn longest_overdue_step(writing: &Writing<'_>, now: Timestamp) -> Result<Option<Attempt>> {
    let Some(first) = writing.tables.deadlines.first()? else { return Ok(None) };
    let (at, run_id, position, step, number) = first.0.value();
    if at > micros(now) {
        return Ok(None);
    }
    let found = writing.tables.attempts.get((run_id, position, step, number))?;
    found.map(|found| crate::row::attempt(found.value())).transpose()
}

/// Fails an attempt that is past its timeout; whether it did.
fn repair_step(writing: &mut Writing<'_>, attempt: &Attempt, now: Timestamp) -> Result<bool> {
    let Some(run) = load::run(&writing.tables.runs, tables::id(attempt.run_id))? else { return Ok(false) };
    let failures = writing.failures(&run, &attempt.step_id)?;
    match decide::step_overdue(&run, attempt, failures, &writing.shared.rules, now) {
        Some(overdue) => writing.apply(run.run_id, &overdue.effects, now).map(|()| true),
        None => Ok(false),
    }
}

/// The nearest moment over runs and steps: the first entries of two indexes.
pub(crate) fn next_due(reading: &ReadTransaction, now: Timestamp) -> Result<NextDue> {
    let run = reading.open_table(tables::ATTENTION)?.first()?.map(|(key, _)| key.value().0);
    let step = reading.open_table(tables::DEADLINES)?.first()?.map(|(key, _)| key.value().0);
    let due_at = run.into_iter().chain(step).min().map(Timestamp::from_micros_clamped);
    Ok(NextDue { now, due_at })
}
