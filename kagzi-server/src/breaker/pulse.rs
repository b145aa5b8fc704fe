//! Whether calls that wait are answered.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Calls of some sort.
#[derive(Debug)]
pub(super) struct Pulse {
    in_flight: AtomicUsize,
    /// When one was last answered, or when the first of those in flight began: in milliseconds after `made`.
    answered: AtomicU64,
    made: Instant,
}

/// Counts a call while it waits.
#[derive(Debug)]
pub(super) struct Waiting<'p>(&'p Pulse);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self { in_flight: AtomicUsize::new(0), answered: AtomicU64::new(0), made: Instant::now() }
    }

    /// Counts one more call, until what this gives is dropped.
    pub(super) fn wait(&self) -> Waiting<'_> {
        if self.in_flight.fetch_add(1, Ordering::Relaxed) == 0 {
            self.note_answer();
        }
        Waiting(self)
    }

    pub(super) fn note_answer(&self) {
        let millis = u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.answered.store(millis, Ordering::Relaxed);
    }

    /// For how long none was answered, among those that wait.
    pub(super) fn unanswered_for(&self) -> Duration {
        let answered = Duration::from_millis(self.answered.load(Ordering::Relaxed));
        self.made.elapsed().saturating_sub(answered)
    }

    /// Whether some wait, and none was answered for so long.
    pub(super) fn is_stalled(&self, limit: Duration) -> bool {
        self.in_flight.load(Ordering::Relaxed) > 0 && self.unanswered_for() >= limit
    }
}
