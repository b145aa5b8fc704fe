//! What is in flight, and what has to wait for it.
//!
//! Heartbeats and the writes of workers go first: each of them moves a run towards its end or keeps it
//! from being done twice. They are as many as there are runs under way, so they need no bound of their
//! own; while they are many, no more runs are claimed. Starts are bounded: beyond that, callers are told
//! to come again rather than left to wait until their time runs out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kagzi_sdk::wire::error::{Refusal, overloaded};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// No runs are claimed while so many writes of workers are in flight.
const MANY_WRITES: usize = 1024;

/// So many starts may be in flight.
const MOST_STARTS: usize = 2048;

/// When a refused start should be tried again: the store commits some thousand starts meanwhile.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// What a request does to the server's load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Errand {
    /// A heartbeat or a write of a worker.
    Work,
    /// It brings new work in.
    Start,
    /// It hands work out.
    Claim,
    /// Anything else.
    Other,
}

/// See the module. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct Load(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    writes: AtomicUsize,
    fewer: Notify,
    starts: Arc<Semaphore>,
}

/// A request in flight.
#[derive(Debug)]
pub(super) enum Admitted {
    Write(#[expect(dead_code, reason = "held, not read")] Writing),
    Start(#[expect(dead_code, reason = "held, not read")] OwnedSemaphorePermit),
    Uncounted,
}

/// Counts a write while it lives.
#[derive(Debug)]
pub(super) struct Writing(Load);

impl Default for Load {
    fn default() -> Self {
        let starts = Arc::new(Semaphore::new(MOST_STARTS));
        Self(Arc::new(Inner { writes: AtomicUsize::new(0), fewer: Notify::new(), starts }))
    }
}

impl Load {
    /// Lets a request in: at once, when there is room for it, or not at all.
    pub(super) async fn admit(&self, errand: Errand) -> Result<Admitted, Refusal> {
        match errand {
            Errand::Work => {
                self.0.writes.fetch_add(1, Ordering::AcqRel);
                Ok(Admitted::Write(Writing(self.clone())))
            }
            Errand::Start => {
                let permit = Arc::clone(&self.0.starts).try_acquire_owned();
                permit.map(Admitted::Start).map_err(|_| overloaded(RETRY_AFTER))
            }
            Errand::Claim => {
                self.until_calm().await;
                Ok(Admitted::Uncounted)
            }
            Errand::Other => Ok(Admitted::Uncounted),
        }
    }

    async fn until_calm(&self) {
        loop {
            let fewer = self.0.fewer.notified();
            if self.0.writes.load(Ordering::Acquire) < MANY_WRITES {
                return;
            }
            fewer.await;
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let Inner { writes, fewer, .. } = &*self.0.0;
        if writes.fetch_sub(1, Ordering::AcqRel) == MANY_WRITES {
            fewer.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tonic::Code;
    use tonic_types::StatusExt as _;

    use super::*;

    #[tokio::test]
    async fn claims_wait_while_many_writes_are_in_flight_and_writes_do_not() {
        let load = Load::default();
        let mut writes = Vec::new();
        for _ in 0..=MANY_WRITES {
            writes.push(load.admit(Errand::Work).now_or_never().unwrap().unwrap());
        }
        let mut claim = std::pin::pin!(load.admit(Errand::Claim));
        assert!(claim.as_mut().now_or_never().is_none());
        writes.pop();
        assert!(claim.as_mut().now_or_never().is_none(), "still too many");
        writes.pop();
        claim.now_or_never().unwrap().unwrap();
    }

    #[tokio::test]
    async fn more_starts_than_it_bears_are_refused_with_a_delay() {
        let load = Load::default();
        let mut starts = Vec::new();
        for _ in 0..MOST_STARTS {
            starts.push(load.admit(Errand::Start).await.unwrap());
        }
        let refused = load.admit(Errand::Start).await.unwrap_err().into_status();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert_eq!(refused.get_details_error_info().unwrap().reason, "OVERLOADED");
        assert_eq!(refused.get_details_retry_info().unwrap().retry_delay, Some(RETRY_AFTER));
        load.admit(Errand::Work).await.unwrap();
        starts.pop();
        load.admit(Errand::Start).await.unwrap();
    }
}
