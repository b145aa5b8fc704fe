//! How large things are on the wire, from above, and how much of them one response holds.
//!
//! A gRPC client refuses messages over 4 MiB unless it was told otherwise, and a refused poll is a lost
//! lease. So responses that hand out many things stop short of that.

use kagzi_core::{Attempt, ClaimedRun, Failure, Payload, RetryPolicy, Run};

/// What a response of many things weighs at most, unless its first thing alone is heavier: what every
/// gRPC client accepts, less some room for the frame.
pub(super) const RESPONSE_BYTES: usize = 4 * 1024 * 1024 - 64 * 1024;

/// What numbers, ids, moments, tags and lengths of one thing take at most, all fields together.
const FIXED: usize = 1024;

pub(super) fn attempt(attempt: &Attempt) -> usize {
    FIXED
        + attempt.step_id.as_str().len()
        + attempt.worker_id.as_str().len()
        + attempt.retry.as_ref().map_or(0, retry)
        + attempt.output.as_ref().map_or(0, payload)
        + attempt.failure.as_ref().map_or(0, failure)
}

pub(super) fn run(run: &Run) -> usize {
    let labels = run.labels.as_map().iter().map(|(key, value)| key.len() + value.len() + 16);
    FIXED
        + run.namespace.as_str().len()
        + run.queue.as_str().len()
        + run.workflow_type.as_str().len()
        + run.worker_id.as_ref().map_or(0, |id| id.as_str().len())
        + run.idempotency_key.as_ref().map_or(0, |key| key.as_str().len())
        + run.trace_context.as_ref().map_or(0, String::len)
        + labels.sum::<usize>()
        + run.retry.as_ref().map_or(0, retry)
        + run.failure.as_ref().map_or(0, failure)
}

/// A claimed run without its steps, with room for a cursor.
pub(super) fn claimed(claimed: &ClaimedRun) -> usize {
    let lease = &claimed.lease.lease;
    FIXED
        + lease.namespace.as_str().len()
        + lease.worker_id.as_str().len()
        + run(&claimed.run)
        + payload(&claimed.input)
}

fn payload(payload: &Payload) -> usize {
    payload.len_bytes() + payload.content_type.as_str().len() + 32
}

fn failure(failure: &Failure) -> usize {
    failure.code.len() + failure.message.len() + failure.details.as_ref().map_or(0, payload) + 64
}

fn retry(retry: &RetryPolicy) -> usize {
    128 + retry.non_retryable_codes.iter().map(|code| code.len() + 8).sum::<usize>()
}

/// How many of the first things one response holds, at least one if there is one.
pub(super) fn fitting<T>(items: &[T], weigh: impl Fn(&T) -> usize) -> usize {
    let mut total: usize = 0;
    let too_many = items.iter().position(|item| {
        total = total.saturating_add(weigh(item));
        total > RESPONSE_BYTES
    });
    too_many.unwrap_or(items.len()).max(usize::from(!items.is_empty()))
}
