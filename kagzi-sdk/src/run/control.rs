//! How an execution is told to stop, from outside.

use std::future::Future;
use std::pin::pin;
use std::sync::OnceLock;
use std::time::Duration;

use kagzi_core::{LostReason, RunState, StoreError};
use tokio_util::sync::CancellationToken;

use super::ends::Ended;

/// How long the answer to the last write is waited for once the lease is known to be lost.
const LAST_ANSWER: Duration = Duration::from_secs(1);

/// Why the right to a run is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhyLost {
    /// A client cancelled the run: nobody else executes it.
    Cancelled,
    /// Its lease ended otherwise: somebody else may be executing it.
    Otherwise,
}

impl WhyLost {
    /// What an error tells about the lease; nothing if it does not tell that it is lost.
    pub(crate) const fn of(error: &StoreError) -> Option<Self> {
        match error {
            StoreError::LeaseLost {
                reason: LostReason::NotRunning { state: RunState::Cancelled }, ..
            } => Some(Self::Cancelled),
            StoreError::LeaseLost { .. } | StoreError::RunNotFound { .. } => Some(Self::Otherwise),
            _ => None,
        }
    }
}

/// The strings on one execution, held by the heartbeat and the worker.
#[derive(Debug)]
pub(crate) struct Control {
    why: OnceLock<WhyLost>,
    /// The lease is lost: write nothing any more.
    pub(crate) lost: CancellationToken,
    /// Finish the steps in flight, then give the run back.
    pub(crate) drain: CancellationToken,
    /// Give the run back now.
    pub(crate) abort: CancellationToken,
    /// What the workflow's code sees.
    pub(crate) cancelled: CancellationToken,
}

impl Control {
    pub(crate) fn new(drain: CancellationToken, abort: CancellationToken) -> Self {
        Self {
            why: OnceLock::new(),
            lost: CancellationToken::new(),
            drain,
            abort,
            cancelled: CancellationToken::new(),
        }
    }

    /// Marks the lease as lost. The first reason stands.
    pub(crate) fn lose(&self, why: WhyLost) {
        self.why.get_or_init(|| why);
        self.cancelled.cancel();
        self.lost.cancel();
    }

    /// The answer to the last write of an execution, unless the execution is stopped before.
    pub(crate) async fn unless_stopped(&self, end: impl Future<Output = Ended>) -> Ended {
        let mut end = pin!(end);
        tokio::select! {
            biased;
            ended = &mut end => ended,
            () = self.abort.cancelled() => Ended::Stuck,
            // A heartbeat may find the lease ended by this very write, whose answer is on its way then.
            () = self.lost.cancelled() => {
                tokio::time::timeout(LAST_ANSWER, end).await.unwrap_or(Ended::Lost)
            }
        }
    }

    pub(crate) fn why_lost(&self) -> WhyLost {
        self.why.get().copied().unwrap_or(WhyLost::Otherwise)
    }
}
