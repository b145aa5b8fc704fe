//! Starting runs.

use crate::clock::{Timestamp, whole_micros};
use crate::error::StoreError;
use crate::lease::FencingToken;
use crate::op::{StartAt, StartOutcome, StartRun, Started};
use crate::payload::Payload;
use crate::retry::RetryPolicy;
use crate::run::{Run, RunState};

/// The row of the run that a start makes. Its input is recorded beside it.
pub fn new_run(start: &StartRun, now: Timestamp) -> Run {
    let due_at = match start.start_at {
        StartAt::Now => now,
        StartAt::After(delay) => now.saturating_add(delay),
        StartAt::At(moment) => moment.max(now),
    };
    Run {
        run_id: start.run_id(),
        namespace: start.namespace.clone(),
        queue: start.queue.clone(),
        workflow_type: start.workflow_type.clone(),
        state: if due_at <= now { RunState::Pending } else { RunState::Sleeping },
        priority: start.priority,
        due_at,
        deadline_at: start.run_timeout.map(|timeout| due_at.saturating_add(timeout)),
        run_timeout: start.run_timeout.map(whole_micros),
        fencing_token: FencingToken::NONE,
        worker_id: None,
        lease_expires_at: None,
        claim_operation: None,
        claims: 0,
        lost_leases: 0,
        failures: 0,
        budget_token: FencingToken::NONE,
        retry: start.retry.as_ref().map(RetryPolicy::as_recorded),
        idempotency_key: start.idempotency_key.clone(),
        labels: start.labels.clone(),
        trace_context: start.trace_context.clone(),
        failure: None,
        dead_letter: None,
        finish_operation: None,
        created_at: now,
        updated_at: now,
        finished_at: None,
    }
}

/// The answer to a start whose run id or idempotency key names `run` already, which was started with
/// `input` (invariants 7 and 8). The due time and the trace context may differ: a repeated request
/// comes at another time and on another trace.
///
/// # Errors
///
/// [`StoreError::OperationConflict`] if the same operation asked for something else,
/// [`StoreError::IdempotencyConflict`] if another operation did, under the same key.
pub fn existing_run(start: &StartRun, run: &Run, input: &Payload) -> Result<Started, StoreError> {
    let differs = differences(start, run, input);
    let same_operation = run.run_id == start.run_id();
    if differs.is_empty() {
        let outcome = if same_operation { StartOutcome::Created } else { StartOutcome::Existing };
        return Ok(Started { run_id: run.run_id, outcome });
    }
    match &start.idempotency_key {
        Some(key) if !same_operation => {
            Err(StoreError::IdempotencyConflict { key: key.clone(), run_id: run.run_id, differs })
        }
        _ => Err(StoreError::OperationConflict { run_id: run.run_id, operation: start.operation }),
    }
}

fn differences(start: &StartRun, run: &Run, input: &Payload) -> Vec<&'static str> {
    [
        ("queue", start.queue == run.queue),
        ("workflow_type", start.workflow_type == run.workflow_type),
        ("input", start.input == *input),
        ("idempotency_key", start.idempotency_key == run.idempotency_key),
        ("priority", start.priority == run.priority),
        ("run_timeout", start.run_timeout.map(whole_micros) == run.run_timeout),
        ("retry_policy", start.retry.as_ref().map(RetryPolicy::as_recorded) == run.retry),
        ("labels", start.labels == run.labels),
    ]
    .into_iter()
    .filter_map(|(field, same)| (!same).then_some(field))
    .collect()
}
