//! The circuit breaker: while the store is away, calls hear so at once instead of waiting for it in a
//! pile.
//!
//! It opens when operations of one kind fail several times in a row (not for what a single node of a cluster took
//! along), when a look at the store fails (see [`Health`](crate::health::Health), which looks where a call is in
//! doubt, or where none of those in flight is answered), and then cuts off the calls that still wait: writes with
//! "outcome unknown", which asks for the same operation again and is always right. After a delay, longer each time, it
//! is half open: one look passes, and its answer closes the breaker or opens it anew. No caller has to be the one
//! who tries.

mod guarded;
mod pulse;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kagzi_core::{ErrorScope, StoreError};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::{Instant, sleep};

pub(crate) use guarded::Guarded;
use guarded::Kind;
use pulse::{Pulse, Waiting};

use crate::metrics::{BreakerState, Label as _, Metrics, Operation};

/// So many failures of one operation in a row open the breaker.
const FAILURES: u32 = 5;

/// How long it stays open at first, and at most. A random part of up to a half is taken off, so that
/// several servers do not look at the same moment.
const FIRST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(2);

/// The shortest delay that a caller is told.
const SHORTEST_RETRY: Duration = Duration::from_millis(100);

/// If calls are in flight and none is answered for so long, the store is looked at. Together with the
/// patience of that look it is less than a second: nobody waits longer for a store that has gone. The same holds for
/// those that write, and for those that look for something to write, while others are answered: a file that another
/// process has locked, a disk that takes nothing, a database whose standby has gone, and whose commits wait for it. There
/// the look has longer, unless it is told what is wrong, since a write may wait for another for good reasons.
const STALLED: Duration = Duration::from_millis(450);

/// How often that is checked.
const TICK: Duration = Duration::from_millis(50);

/// See the module. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Breaker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    /// Failures in a row, by operation.
    failures: Vec<AtomicU32>,
    calls: Pulse,
    /// Those of them that write, of which only success counts as an answer: a refusal writes nothing.
    writes: Pulse,
    /// Those that look for something to write.
    finds: Pulse,
    /// What was wrong with the store when it was last found away.
    why: Mutex<String>,
    /// Ends the wait of calls in flight.
    cut: Notify,
    /// Wakes whoever looks at the store.
    opened: Notify,
    metrics: Metrics,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    /// Until it is looked at again.
    Open(Opening),
    HalfOpen(Opening),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Opening {
    since: Instant,
    look_at: Instant,
    /// How often a look failed since.
    looks: u32,
}

/// What is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stalled {
    /// No call at all.
    Everything,
    /// Nothing that writes, or nothing that looks for something to write.
    Writes,
}

impl Breaker {
    /// Closed.
    pub(crate) fn new(metrics: Metrics) -> Self {
        metrics.breaker_is(BreakerState::Closed);
        Self(Arc::new(Inner {
            state: Mutex::new(State::Closed),
            failures: Operation::ALL.iter().map(|_| AtomicU32::new(0)).collect(),
            calls: Pulse::new(),
            writes: Pulse::new(),
            finds: Pulse::new(),
            why: Mutex::default(),
            cut: Notify::new(),
            opened: Notify::new(),
            metrics,
        }))
    }

    /// Whether it lets no calls pass.
    pub(crate) fn is_open(&self) -> bool {
        *self.state() != State::Closed
    }

    /// When to look at the store again; nothing while it is closed.
    pub(crate) fn look_at(&self) -> Option<Instant> {
        match *self.state() {
            State::Closed => None,
            State::Open(opening) | State::HalfOpen(opening) => Some(opening.look_at),
        }
    }

    /// Lets a call pass, or refuses it with the delay after which it may be another matter.
    pub(crate) fn admit(&self) -> Result<(), StoreError> {
        let wait = match *self.state() {
            State::Closed => return Ok(()),
            State::Open(opening) => opening.look_at.saturating_duration_since(Instant::now()),
            State::HalfOpen(_) => Duration::ZERO,
        };
        self.0.metrics.breaker_refused();
        Err(StoreError::unavailable(
            format!("the server cannot reach its store, and asks it again before you may: {}", self.why()),
            wait.max(SHORTEST_RETRY),
        ))
    }

    /// One look is under way.
    pub(crate) fn half_open(&self) {
        let mut state = self.state();
        if let State::Open(opening) = *state {
            *state = State::HalfOpen(opening);
            self.0.metrics.breaker_is(BreakerState::HalfOpen);
        }
    }

    /// The store has written.
    pub(crate) fn note_write(&self) {
        self.0.writes.note_answer();
        self.0.finds.note_answer();
    }

    /// Whether the store has written within `limit`.
    pub(crate) fn has_written_within(&self, limit: Duration) -> bool {
        self.0.writes.unanswered_for() < limit
    }

    /// The store is well.
    pub(crate) fn close(&self) {
        self.0.calls.note_answer();
        let before = std::mem::replace(&mut *self.state(), State::Closed);
        if let State::Open(opening) | State::HalfOpen(opening) = before {
            for failures in &self.0.failures {
                failures.store(0, Ordering::Relaxed);
            }
            self.0.metrics.breaker_is(BreakerState::Closed);
            tracing::info!(away_for = ?opening.since.elapsed(), "the store answers again: calls pass");
        }
    }

    /// The store is away: cuts off the calls that wait for it, and lets no others pass.
    pub(crate) fn open(&self, why: &dyn std::fmt::Display) {
        let now = Instant::now();
        let mut state = self.state();
        let before = *state;
        let (since, looks) = match before {
            State::Closed => (now, 0),
            // Somebody else found the same.
            State::Open(_) => return,
            State::HalfOpen(opening) => (opening.since, opening.looks.saturating_add(1)),
        };
        *state = State::Open(Opening { since, look_at: now + delay(looks), looks });
        *self.why() = why.to_string();
        drop(state);
        self.0.metrics.breaker_is(BreakerState::Open);
        if before == State::Closed {
            self.0.metrics.breaker_opened();
            tracing::warn!(%why, "the store does not answer: NOT_SERVING, calls are refused");
            self.0.cut.notify_waiters();
            self.0.opened.notify_one();
        }
    }

    /// Ready when it has opened, for the one who looks at the store: at once if that was while nobody waited here. An
    /// opening that is over again is not told. Cancel safe.
    pub(crate) async fn opened(&self) {
        loop {
            self.0.opened.notified().await;
            if self.is_open() {
                return;
            }
        }
    }

    /// Ready when calls wait for the store and it answers none of them, or none that writes.
    pub(crate) async fn stalled(&self) -> Stalled {
        loop {
            sleep(TICK).await;
            if self.0.calls.is_stalled(STALLED) {
                return Stalled::Everything;
            }
            if self.writes_are_stalled() {
                return Stalled::Writes;
            }
        }
    }

    /// Whether calls were answered within `limit`, and those that write meanwhile.
    pub(crate) fn answers_within(&self, limit: Duration) -> bool {
        self.0.calls.unanswered_for() < limit && !self.writes_are_stalled()
    }

    fn writes_are_stalled(&self) -> bool {
        self.0.writes.is_stalled(STALLED) || self.0.finds.is_stalled(STALLED)
    }

    /// Ready when the breaker opens from now on, polled before or not.
    fn cut(&self) -> Notified<'_> {
        self.0.cut.notified()
    }

    fn cut_off(&self) {
        self.0.metrics.breaker_cut_off();
    }

    /// Counts a call while it waits for the store.
    fn wait(&self, kind: Kind) -> (Waiting<'_>, Option<Waiting<'_>>) {
        let also = match kind {
            Kind::Read => None,
            Kind::Write => Some(self.0.writes.wait()),
            Kind::Find => Some(self.0.finds.wait()),
        };
        (self.0.calls.wait(), also)
    }

    /// Takes down how a call ended.
    fn note<T>(&self, operation: Operation, kind: Kind, answer: &Result<T, StoreError>) {
        let failures = &self.0.failures[operation.index()];
        match answer {
            // What a part of the store took along says nothing of the runs in the others.
            Err(error) if error.scope() == Some(ErrorScope::Store) => {
                if failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES {
                    self.open(error);
                }
            }
            Ok(_) | Err(_) => {
                self.0.calls.note_answer();
                match kind {
                    Kind::Write if answer.is_ok() => self.note_write(),
                    Kind::Find => self.0.finds.note_answer(),
                    Kind::Read | Kind::Write => {}
                }
                if failures.load(Ordering::Relaxed) > 0 {
                    failures.store(0, Ordering::Relaxed);
                }
            }
        }
    }

    fn why(&self) -> MutexGuard<'_, String> {
        self.0.why.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // It is replaced as a whole, so a panic elsewhere does not spoil it.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long to stay open after so many looks that failed.
fn delay(looks: u32) -> Duration {
    let whole = FIRST_DELAY.saturating_mul(1 << looks.min(8)).min(LONGEST_DELAY);
    whole.mul_f64(1.0 - fastrand::f64() / 2.0)
}
