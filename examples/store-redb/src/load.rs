//! How rows are found. Everything here works in transactions that read and in those that write.

use kagzi_core::{Attempt, AttemptScope, ListAttempts, Page, Payload, Run, RunId, StepId};
use redb::ReadableTable;

use crate::error::Result;
use crate::row;
use crate::tables::{AttemptKey, AttemptRow, Id, PayloadRow, id};

pub(crate) fn run(runs: &impl ReadableTable<Id, &'static [u8]>, run_id: Id) -> Result<Option<Run>> {
    runs.get(run_id)?.map(|found| row::run(found.value())).transpose()
}

pub(crate) fn payload(
    payloads: &impl ReadableTable<Id, PayloadRow>,
    run_id: RunId,
) -> Result<Option<Payload>> {
    payloads.get(id(run_id))?.map(|found| row::payload(found.value())).transpose()
}

/// The attempts of one step, by number.
pub(crate) fn attempts_of_step<'a>(
    attempts: &'a impl ReadableTable<AttemptKey, AttemptRow>,
    run_id: RunId,
    position: u32,
    step_id: &StepId,
) -> Result<impl DoubleEndedIterator<Item = Result<Attempt>> + 'a> {
    let step = step_id.as_str();
    let range = attempts.range((id(run_id), position, step, 0)..=(id(run_id), position, step, u32::MAX))?;
    Ok(range.map(|entry| row::attempt(entry?.1.value())))
}

/// Every attempt of a run, in the order of listings.
pub(crate) fn attempts_of_run(
    attempts: &impl ReadableTable<AttemptKey, AttemptRow>,
    run_id: RunId,
) -> Result<impl Iterator<Item = Result<Attempt>>> {
    let range = attempts.range((id(run_id), 0, "", 0)..(id(run_id).saturating_add(1), 0, "", 0))?;
    Ok(range.map(|entry| row::attempt(entry?.1.value())))
}

/// A page of the history, read no further than its end.
pub(crate) fn page_of_attempts(
    attempts: &impl ReadableTable<AttemptKey, AttemptRow>,
    request: &ListAttempts,
) -> Result<Page<Attempt>> {
    let run = id(request.run_id);
    let place = request.place()?;
    let (position, step, number) =
        place.as_ref().map_or((0, "", 0), |(position, step, number)| (*position, step.as_str(), *number + 1));
    let mut entries = attempts.range((run, position, step, number)..(run.saturating_add(1), 0, "", 0))?;
    let limit = request.page.limit as usize;
    let mut items: Vec<Attempt> = Vec::new();
    let mut entry = entries.next().transpose()?;
    while let Some((key, value)) = entry {
        entry = entries.next().transpose()?;
        let (_, position, step, _) = key.value();
        let superseded = entry.as_ref().is_some_and(|(next, _)| {
            let (_, next_position, next_step, _) = next.value();
            (next_position, next_step) == (position, step)
        });
        if request.scope == AttemptScope::Latest && superseded {
            continue;
        }
        if items.len() == limit {
            let next = items.last().map(|last| request.cursor_after(last));
            return Ok(Page { items, next });
        }
        items.push(row::attempt(value.value())?);
    }
    Ok(Page { items, next: None })
}
