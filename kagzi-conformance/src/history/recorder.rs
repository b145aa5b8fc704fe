//! Records what concurrent callers asked and heard, each call with the interval in which it happened.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kagzi_core::{Clock, ManualClock, Store, Timestamp};

use crate::record::{Answer, Call};

/// A call, its answer, and when both happened, in stamps of the recorder.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    pub(super) caller: String,
    pub(super) called: u64,
    pub(super) returned: u64,
    pub(super) call: Call,
    pub(super) answer: Answer,
}

/// A turn of the clock: the new time may have been read from `called` on, the old one until `returned`.
#[derive(Clone, Copy, Debug)]
struct Turned {
    called: u64,
    returned: u64,
    now: Timestamp,
}

/// The record of one history.
#[derive(Debug)]
pub(super) struct Recorder {
    stamps: AtomicU64,
    clock: ManualClock,
    first: Timestamp,
    turns: Mutex<Vec<Turned>>,
    heard: Mutex<Vec<Heard>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Entries are pushed whole, so a panic elsewhere leaves none half written.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recorder {
    pub(super) fn new(clock: ManualClock) -> Self {
        let first = clock.now();
        Self { stamps: AtomicU64::new(1), clock, first, turns: Mutex::default(), heard: Mutex::default() }
    }

    /// The moment that the clock shows.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn stamp(&self) -> u64 {
        self.stamps.fetch_add(1, Ordering::SeqCst)
    }

    /// Sends a call and records it with its answer.
    pub(super) async fn send(&self, by: &str, store: &dyn Store, call: Call) -> Answer {
        let called = self.stamp();
        let answer = call.send(store).await;
        let returned = self.stamp();
        let heard = Heard { caller: by.to_owned(), called, returned, call, answer: answer.clone() };
        locked(&self.heard).push(heard);
        answer
    }

    /// Turns the clock, forward or back.
    pub(super) fn turn(&self, forward: Duration, back: Duration) {
        let mut turns = locked(&self.turns);
        let now = self.clock.now().saturating_add(forward).saturating_sub(back);
        let called = self.stamp();
        self.clock.set(now);
        turns.push(Turned { called, returned: self.stamp(), now });
    }

    /// The moments that the clock may have shown to a call.
    fn moments(turns: &[Turned], first: Timestamp, called: u64, returned: u64) -> Vec<Timestamp> {
        let mut moments = Vec::new();
        let (mut since, mut shown) = (0, first);
        for turn in turns {
            if since < returned && turn.returned > called && !moments.contains(&shown) {
                moments.push(shown);
            }
            (since, shown) = (turn.called, turn.now);
        }
        if since < returned && !moments.contains(&shown) {
            moments.push(shown);
        }
        moments
    }

    /// Everything that was recorded, in the order of calls, each with the moments that it may have
    /// happened at by the store's clock.
    pub(super) fn history(&self) -> Vec<(Heard, Vec<Timestamp>)> {
        let turns = locked(&self.turns).clone();
        let mut heard = locked(&self.heard).clone();
        heard.sort_by_key(|heard| heard.called);
        heard
            .into_iter()
            .map(|heard| {
                let moments = Self::moments(&turns, self.first, heard.called, heard.returned);
                (heard, moments)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_may_have_seen_every_moment_that_the_clock_showed_meanwhile() {
        let at = Timestamp::from_micros_clamped;
        let turns = [
            Turned { called: 10, returned: 12, now: at(1) },
            Turned { called: 20, returned: 22, now: at(2) },
        ];
        let moments = |called, returned| Recorder::moments(&turns, at(0), called, returned);
        assert_eq!(moments(1, 9), [at(0)], "before the turn");
        assert_eq!(moments(8, 11), [at(0), at(1)], "the turn had begun");
        assert_eq!(moments(11, 15), [at(0), at(1)], "the turn had not ended");
        assert_eq!(moments(13, 19), [at(1)], "between two turns");
        assert_eq!(moments(11, 21), [at(0), at(1), at(2)], "over both");
        assert_eq!(moments(23, 30), [at(2)], "after both");
    }
}
