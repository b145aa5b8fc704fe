//! Calls that are repeated until they arrive.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use kagzi_core::{RunId, StepId, StoreError};
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::stats::{FailedCall, Repeat, Reporter};
use crate::trace;
use crate::transport::Transport;

/// The way to the engine with the patience to go it again.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) backoff: Backoff,
    pub(crate) reporter: Reporter,
    /// The trace context that calls carry; those of no run have none.
    pub(crate) trace: Option<Arc<str>>,
}

/// What a call is about, for reports.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub(crate) operation: &'static str,
    pub(crate) run_id: Option<RunId>,
    pub(crate) step_id: Option<StepId>,
}

impl About {
    pub(crate) const fn operation(operation: &'static str) -> Self {
        Self { operation, run_id: None, step_id: None }
    }

    pub(crate) const fn of(operation: &'static str, run_id: RunId) -> Self {
        Self { operation, run_id: Some(run_id), step_id: None }
    }
}

impl Calls {
    /// Sends until the answer is final: an outcome, or an error that no repeat can cure. `send` must
    /// send the same operation under the same id each time.
    ///
    /// Cancel safe as the call itself is: the operation was done or not, and its id tells.
    pub(crate) async fn repeat<T, F, Fut>(&self, about: About, send: F) -> Result<T, StoreError>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, StoreError>>,
    {
        self.repeat_timed(about, send).await.map(|(outcome, _)| outcome)
    }

    /// Like [`repeat`](Self::repeat); tells when the call that was answered was sent, too.
    pub(crate) async fn repeat_timed<T, F, Fut>(
        &self,
        about: About,
        mut send: F,
    ) -> Result<(T, Instant), StoreError>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, StoreError>>,
    {
        let mut failures = 0;
        loop {
            let since = Instant::now();
            let error = match trace::carrying(self.trace.as_ref(), send()).await {
                Ok(outcome) => return Ok((outcome, since)),
                Err(error) => error,
            };
            failures += 1;
            self.failed(&about, failures, &error);
            if !error.is_retryable() {
                return Err(error);
            }
            tokio::time::sleep(self.backoff.delay(failures, asked_for(&error))).await;
        }
    }

    /// Reports a call that failed for the `failures`-th time in a row.
    pub(crate) fn failed(&self, about: &About, failures: u32, error: &StoreError) {
        self.reporter.call_failed(&FailedCall {
            operation: about.operation,
            run_id: about.run_id,
            step_id: about.step_id.as_ref(),
            failures,
            error,
            repeat: if error.is_retryable() { Repeat::Yes } else { Repeat::No },
        });
    }
}

/// How long the engine asks to be left alone.
pub(crate) fn asked_for(error: &StoreError) -> Duration {
    match error {
        StoreError::Unavailable { retry_after, .. } => *retry_after,
        _ => Duration::ZERO,
    }
}
