//! The last writes of an execution.

use kagzi_core::{Failure, FailureOutcome, Payload, SleepOutcome, StoreError};

use super::control::WhyLost;
use super::driver::Write;
use super::journal::{Completion, Journal, SleepCall, StepFailed};
use super::writes::Writes;
use crate::error::WorkflowError;

/// How an execution of a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The run is COMPLETED.
    Completed,
    /// A failure is recorded; the run will be tried again.
    ToRetry,
    /// A failure is recorded; the run is a dead letter.
    DeadLettered,
    /// The run sleeps.
    Slept,
    /// The run was given back.
    Released,
    /// The lease was lost: nothing more was written.
    Lost,
    /// Neither its end nor its release could be recorded; its lease will expire.
    Stuck,
}

/// Why an execution ends before its code does.
#[derive(Debug)]
pub(crate) enum Ending {
    FailStep(StepFailed),
    FailRun(Failure),
    Sleep(SleepCall),
    Release,
}

impl Ending {
    /// How much it matters against other reasons to end: a failure that cannot be retried decides the
    /// run whatever else happened.
    pub(crate) const fn gravity(&self) -> u8 {
        match self {
            Self::Sleep(_) | Self::Release => 0,
            Self::FailStep(StepFailed { failure, .. }) | Self::FailRun(failure) => {
                if failure.kind.may_retry() { 1 } else { 2 }
            }
        }
    }
}

/// Records what the code returned, after what is still to be recorded of its steps.
pub(crate) async fn returned(
    writes: &Writes,
    journal: &Journal,
    recording: Option<Write>,
    result: Result<Payload, WorkflowError>,
) -> Ended {
    let mut result = result.map_err(WorkflowError::into_failure);
    if let Some(recording) = recording
        && let Err(error) = recording.await
    {
        if WhyLost::of(&error).is_some() {
            return Ended::Lost;
        }
        result = Err(failure_of(&error));
    }
    if let Some(failure) = journal.broken() {
        result = Err(failure);
    } else if let (Ok(_), Some(failure)) = (&result, journal.never_asked()) {
        result = Err(failure);
    }
    let recorded = match (result, journal.take_completion()) {
        (Ok(output), None) => writes.complete_run(output).await.map(|()| Ended::Completed),
        (Ok(output), Some(completion)) => complete_both(writes, completion, output).await,
        (Err(failure), None) => fail_run(writes, failure).await,
        (Err(failure), Some(completion)) => match writes.clone().complete_step(completion, None).await {
            Ok(_) => fail_run(writes, failure).await,
            Err(error) => Err(error),
        },
    };
    match recorded {
        Ok(ended) => ended,
        Err(error) => refused(writes, &error).await,
    }
}

/// Completes the last step and the run in one write. If only the run's output is at fault, the step is
/// recorded all the same, so that a requeue does not execute it again.
async fn complete_both(
    writes: &Writes,
    completion: Completion,
    output: Payload,
) -> Result<Ended, StoreError> {
    match writes.clone().complete_step_and_run(completion.clone(), output).await {
        Ok(()) => Ok(Ended::Completed),
        Err(error) if WhyLost::of(&error).is_some() => Err(error),
        Err(error) => {
            writes.clone().complete_step(completion, None).await?;
            fail_run(writes, failure_of(&error)).await
        }
    }
}

/// Records why the execution ends.
pub(crate) async fn ending(writes: &Writes, ending: Ending) -> Ended {
    let recorded = match ending {
        Ending::Release => return released(writes).await,
        Ending::FailRun(failure) => fail_run(writes, failure).await,
        Ending::FailStep(failed) => fail_step(writes, failed).await,
        Ending::Sleep(call) => match writes.sleep(&call).await {
            Ok(SleepOutcome::Sleeping { .. }) => Ok(Ended::Slept),
            // The claim did not tell of it; the next one will.
            Ok(SleepOutcome::AlreadySlept) => return released(writes).await,
            Err(error) => Err(error),
        },
    };
    match recorded {
        Ok(ended) => ended,
        Err(error) => refused(writes, &error).await,
    }
}

/// The last write was refused for good: the run fails with that, or at least is given back.
pub(crate) async fn refused(writes: &Writes, error: &StoreError) -> Ended {
    if WhyLost::of(error).is_some() {
        return Ended::Lost;
    }
    match fail_run(writes, failure_of(error)).await {
        Ok(ended) => ended,
        Err(again) if WhyLost::of(&again).is_some() => Ended::Lost,
        Err(_) => released(writes).await,
    }
}

/// Gives the run back.
pub(crate) async fn released(writes: &Writes) -> Ended {
    match writes.release().await {
        Ok(()) => Ended::Released,
        Err(error) if WhyLost::of(&error).is_some() => Ended::Lost,
        Err(_) => Ended::Stuck,
    }
}

async fn fail_step(writes: &Writes, mut failed: StepFailed) -> Result<Ended, StoreError> {
    let outcome = match writes.fail_step(failed.clone()).await {
        // Rather a failure without its details than one in its place that tells of their size.
        Err(StoreError::TooLarge { .. }) if failed.failure.details.take().is_some() => {
            writes.fail_step(failed).await
        }
        outcome => outcome,
    };
    outcome.map(ended)
}

async fn fail_run(writes: &Writes, mut failure: Failure) -> Result<Ended, StoreError> {
    let outcome = match writes.fail_run(failure.clone()).await {
        Err(StoreError::TooLarge { .. }) if failure.details.take().is_some() => {
            writes.fail_run(failure).await
        }
        outcome => outcome,
    };
    outcome.map(ended)
}

const fn ended(outcome: FailureOutcome) -> Ended {
    match outcome {
        FailureOutcome::RetryAt(_) => Ended::ToRetry,
        FailureOutcome::DeadLetter(_) => Ended::DeadLettered,
    }
}

/// What a run fails with when the engine refuses what was to be recorded of it. Where the request is at
/// fault, doing it again gives the same; where the engine is, the retry policy spreads the attempts.
pub(crate) fn failure_of(error: &StoreError) -> Failure {
    let code = error.reason().to_lowercase();
    match error {
        StoreError::InvalidArgument { .. }
        | StoreError::TooLarge { .. }
        | StoreError::StepKindMismatch { .. } => Failure::non_retryable(code, error.to_string()),
        _ => Failure::retryable(code, error.to_string()),
    }
}
