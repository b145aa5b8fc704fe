//! How many bytes an operation carries while it waits for the writer.

use kagzi_core::{CompleteStep, Failure, Payload, StartRun, Then};

/// What a start takes beside its input: names, labels, policy.
const START_BYTES: usize = 512;

pub(crate) fn of_starts(batch: &[StartRun]) -> usize {
    batch.iter().map(|start| START_BYTES + start.input.len_bytes()).sum()
}

pub(crate) fn of_completion(request: &CompleteStep) -> usize {
    let run_output = match &request.then {
        Then::CompleteRun(output) => output.len_bytes(),
        Then::Begin(_) | Then::Nothing => 0,
    };
    request.output.len_bytes() + run_output
}

pub(crate) fn of_failure(failure: &Failure) -> usize {
    failure.message.len() + failure.details.as_ref().map_or(0, Payload::len_bytes)
}
