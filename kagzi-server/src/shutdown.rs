//! Draining: no new calls, waits end, what is in flight finishes.

use std::time::Duration;

use kagzi_sdk::wire::error::{Refusal, shutting_down};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// How long a client is told to wait before it tries again: about as long as a restart takes.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What is said to whoever asks for something new.
pub(crate) fn shutting_down_now() -> Refusal {
    shutting_down(RETRY_AFTER)
}

/// Whether the server takes calls, and how many are in flight. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub(crate) struct Drain {
    began: CancellationToken,
    in_flight: TaskTracker,
}

/// A call in flight; dropped when it has ended.
#[derive(Debug)]
pub(crate) struct InFlight(#[expect(dead_code, reason = "held, not read")] TaskTrackerToken);

impl Drain {
    /// Lets a call in, or refuses it with UNAVAILABLE and a retry delay.
    pub(crate) fn admit(&self) -> Result<InFlight, Refusal> {
        // Counted first, so that a drain that begins now waits for it.
        let call = InFlight(self.in_flight.token());
        if self.began.is_cancelled() { Err(shutting_down_now()) } else { Ok(call) }
    }

    /// Ready when the drain has begun: whoever waits for something stops waiting.
    pub(crate) async fn begun(&self) {
        self.began.cancelled().await;
    }

    /// Whether the drain has begun.
    pub(crate) fn has_begun(&self) -> bool {
        self.began.is_cancelled()
    }

    /// Runs work that a drain waits for, whoever goes away meanwhile.
    pub(crate) fn spawn(&self, runtime: &Handle, work: impl Future<Output = ()> + Send + 'static) {
        self.in_flight.spawn_on(work, runtime);
    }

    /// Refuses new calls, ends waits, and waits up to `timeout` for what is in flight. Answers whether
    /// everything finished.
    pub(crate) async fn run(&self, timeout: Duration) -> Drained {
        self.began.cancel();
        self.in_flight.close();
        match tokio::time::timeout(timeout, self.in_flight.wait()).await {
            Ok(()) => Drained::Completely,
            Err(_) => Drained::WithCallsLeft(self.in_flight.len()),
        }
    }
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drained {
    /// Everything finished.
    Completely,
    /// Time was up with this many calls in flight.
    WithCallsLeft(usize),
}
