//! How rows are found. Everything here works in transactions that read and in those that write.

use std::ops::Range;

use kagzi_core::{Attempt, AttemptScope, ListAttempts, Page, Payload, Run, RunId};
use redb::ReadableTable;

use crate::error::Result;
use crate::row;
use crate::tables::{AttemptKey, AttemptRow, Id, PayloadRow, attempts_of, id};

pub(crate) fn run(runs: &impl ReadableTable<Id, &'static [u8]>, run_id: Id) -> Result<Option<Run>> {
    runs.get(run_id)?.map(|found| row::run(found.value())).transpose()
}

pub(crate) fn payload(
    payloads: &impl ReadableTable<Id, PayloadRow>,
    run_id: RunId,
) -> Result<Option<Payload>> {
    payloads.get(id(run_id))?.map(|found| row::payload(found.value())).transpose()
}

/// A page of the history, read no further than its end, nor much further than `most_bytes` of outputs.
pub(crate) fn page_of_attempts(
    attempts: &impl ReadableTable<AttemptKey, AttemptRow>,
    request: &ListAttempts,
    most_bytes: usize,
) -> Result<Page<Attempt>> {
    let Range { start, end } = attempts_of(request.run_id);
    let place = request.place()?;
    let from = place.as_ref().map_or(start, |(position, step, number)| {
        (id(request.run_id), *position, step.as_str(), number.saturating_add(1))
    });
    let mut entries = attempts.range(from..end)?;
    let limit = request.page.limit as usize;
    let mut items: Vec<Attempt> = Vec::new();
    let mut bytes = 0_usize;
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
        if items.len() == limit || bytes > most_bytes {
            let next = items.last().map(|last| request.cursor_after(last));
            return Ok(Page { items, next });
        }
        let attempt = row::attempt(value.value())?;
        bytes = bytes.saturating_add(attempt.output.as_ref().map_or(0, Payload::len_bytes));
        items.push(attempt);
    }
    Ok(Page { items, next: None })
}
