//! A step: its description, and the future that executes or replays it.

use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use kagzi_core::{Failure, MAX_DURATION, NextStep, RetryPolicy, StepId, StoreError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::Instrument as _;

use crate::codec;
use crate::error::{StepError, WorkflowError, panicked};
use crate::payload_codec::RunPayloads;
use crate::run::journal::{Entered, Journal, remaining};
use crate::trace::{self, RunTrace};

/// A step before it runs: its name, and optionally a retry policy and a timeout of its own.
///
/// Wherever one is expected, a text will do for the name alone.
///
/// ```
/// use std::time::Duration;
/// use kagzi_sdk::{RetryPolicy, Step};
///
/// let step = Step::named("ship")
///     .retry(RetryPolicy { max_attempts: 10, ..RetryPolicy::default() })
///     .timeout(Duration::from_secs(5));
/// # drop(step);
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Step {
    name: String,
    retry: Option<RetryPolicy>,
    timeout: Option<Duration>,
}

impl Step {
    /// A step of this name: 1 to 256 bytes without control characters. A name that is used again in the
    /// same run gets an occurrence, `name#2`, `name#3` and so on.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), retry: None, timeout: None }
    }

    /// How often and how soon the step is tried again after a failure; else the run's policy counts,
    /// else the engine's default.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = Some(policy);
        self
    }

    /// How long one attempt may take, at least a microsecond. An attempt that takes longer is dropped
    /// and fails with kind `TIMEOUT`, by this worker or, should it be frozen, by the engine.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Checks the policy and the timeout.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        self.retry.as_ref().map_or(Ok(()), RetryPolicy::validate)?;
        match self.timeout {
            Some(timeout) if timeout < Duration::from_micros(1) || timeout > MAX_DURATION => {
                Err(StoreError::InvalidArgument {
                    field: "timeout".to_owned(),
                    expected: "from 1 microsecond to 100 years".to_owned(),
                    got: format!("{timeout:?}"),
                })
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn to_next(&self, step_id: StepId, position: u32) -> NextStep {
        NextStep { step_id, position, retry: self.retry.clone(), timeout: self.timeout }
    }
}

impl From<&str> for Step {
    fn from(name: &str) -> Self {
        Self::named(name)
    }
}

impl From<String> for Step {
    fn from(name: String) -> Self {
        Self::named(name)
    }
}

/// What [`Context::step`](crate::Context::step) and the sleeps return. It does nothing until it is
/// awaited.
///
/// # Cancel safety
///
/// A step whose future is dropped (by `select!`, say) is not recorded; its attempt ends as ABANDONED,
/// and should the run be replayed up to there, the step may be executed again.
#[must_use = "a step does nothing unless it is awaited"]
pub struct StepFuture<'a, T>(BoxFuture<'a, Result<T, WorkflowError>>);

impl<'a, T> StepFuture<'a, T> {
    pub(crate) fn new(future: impl Future<Output = Result<T, WorkflowError>> + Send + 'a) -> Self {
        Self(future.boxed())
    }
}

impl<T> Future for StepFuture<'_, T> {
    type Output = Result<T, WorkflowError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context)
    }
}

impl<T> fmt::Debug for StepFuture<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StepFuture")
    }
}

/// Takes a call out of the journal when its future is dropped, finished or not.
struct Called {
    journal: Arc<Journal>,
    position: u32,
}

impl Called {
    async fn enter(&self) -> Entered {
        poll_fn(|context| self.journal.poll_enter(self.position, context)).await
    }
}

impl Drop for Called {
    fn drop(&mut self) {
        self.journal.forget(self.position);
    }
}

/// Notes a call of a task now, and returns the future that executes or replays it.
pub(crate) fn task<'a, T, F, Fut>(
    journal: &Arc<Journal>,
    payloads: &RunPayloads,
    trace: &Arc<RunTrace>,
    step: Step,
    function: F,
) -> StepFuture<'a, T>
where
    T: Serialize + DeserializeOwned + Send + 'a,
    F: FnOnce() -> Fut + Send + 'a,
    Fut: Future<Output = Result<T, StepError>> + Send + 'a,
{
    let name = step.name.clone();
    let timeout = step.timeout;
    let (payloads, trace) = (payloads.clone(), Arc::clone(trace));
    let called = journal.call_task(step).map(|(position, step_id)| {
        let call = Called { journal: Arc::clone(journal), position };
        (call, step_id)
    });
    StepFuture::new(async move {
        let (call, step_id) = called?;
        let output_of = || format!("the output of step {name:?}");
        let (attempt, since) = match call.enter().await {
            Entered::Replayed(output) => match payloads.decode_output(output, &step_id) {
                Ok(output) => return Ok(codec::decode(&output, output_of)?),
                Err(error) => {
                    // Not the code's to answer: what was done is done, and only cannot be read here.
                    call.journal.break_off(WorkflowError::from(error).into_failure());
                    return std::future::pending().await;
                }
            },
            Entered::Execute { attempt, since } => (attempt, since),
        };
        let span = trace.step_span(&name, &step_id, attempt);
        let timeout = timeout.map(|limit| (limit, remaining(limit, since)));
        let outcome = execute(&name, function, timeout).instrument(span.clone()).await;
        let encoded = |value: &T| payloads.encode_output(codec::encode(value, output_of)?, &step_id);
        let recorded = outcome.and_then(|value| match encoded(&value) {
            Ok(output) => Ok((value, output)),
            Err(error) => Err(StepError::from(error).into_failure()),
        });
        trace::step_ended(&span, &recorded);
        drop(span);
        match recorded {
            Ok((value, output)) => {
                call.journal.finish(call.position, output);
                poll_fn(|context| call.journal.poll_turn(call.position, context)).await;
                Ok(value)
            }
            Err(failure) => {
                call.journal.fail(call.position, payloads.encode_failure(failure));
                // The engine decides about a retry; this execution of the run ends here.
                std::future::pending().await
            }
        }
    })
}

/// Runs a step function to its end, its panic or its timeout (the whole limit, and what is left of it).
async fn execute<T, F, Fut>(
    name: &str,
    function: F,
    timeout: Option<(Duration, Duration)>,
) -> Result<T, Failure>
where
    F: FnOnce() -> Fut,
    Fut: Future<Output = Result<T, StepError>>,
{
    // The function itself may panic before it returns a future.
    let guarded = AssertUnwindSafe(async move { function().await }).catch_unwind();
    let ended = match timeout {
        None => guarded.await,
        Some((limit, left)) => match tokio::time::timeout(left, guarded).await {
            Ok(ended) => ended,
            Err(_) => return Err(Failure::step_timeout(limit)),
        },
    };
    match ended {
        Ok(outcome) => outcome.map_err(StepError::into_failure),
        Err(panic) => Err(panicked(&format!("step {name:?}"), panic.as_ref())),
    }
}

/// Notes a call of a sleep now, and returns the future that waits for it.
pub(crate) fn sleep(
    journal: &Arc<Journal>,
    name: &str,
    until: kagzi_core::SleepUntil,
) -> StepFuture<'static, ()> {
    let call =
        journal.call_sleep(name, until).map(|position| Called { journal: Arc::clone(journal), position });
    StepFuture::new(async move {
        let call = call?;
        // A sleep that has to be slept ends this execution of the run; the next one replays it.
        call.enter().await;
        Ok(())
    })
}
