//! How often each of many may do what costs others something: calls from one address show credentials that nobody knows,
//! one principal asks for what it may not do, has its calls put on record, or makes calls that fail.
//!
//! Every credential is looked at, however many before it were wrong: those who share the address of somebody who
//! guesses (a proxy's, say) are let in all the same. What is bounded is what the wrong ones cost and say: beyond the
//! limit they hear no more than when to come again, and leave no line in the log. Nor do more denials, nor more calls
//! that go on record: each is a line or two there, and whoever filled the disk by them would keep operators from acting.

use std::collections::HashMap;
use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::RateLimit;
use crate::rate::{Rate, TooMany};

/// So many have an account of their own; any more share one.
const MOST_ACCOUNTS: usize = 10_000;

/// What was counted of late, by whose it is.
#[derive(Debug)]
pub(crate) struct Rates<K> {
    limit: RateLimit,
    most: usize,
    state: Mutex<State<K>>,
}

#[derive(Debug)]
struct State<K> {
    of_each: HashMap<K, Account>,
    /// Those for whom there is no room.
    others: Rate,
    /// When accounts that are full again are next removed.
    sweep_at: Instant,
}

#[derive(Debug)]
struct Account {
    rate: Rate,
    /// When it was last counted.
    last: Instant,
}

impl<K: Eq + Hash> Rates<K> {
    pub(crate) fn up_to(limit: RateLimit) -> Self {
        Self::of_most(limit, MOST_ACCOUNTS)
    }

    fn of_most(limit: RateLimit, most: usize) -> Self {
        let state = State { of_each: HashMap::new(), others: Rate::new(limit), sweep_at: Instant::now() };
        Self { limit, most, state: Mutex::new(state) }
    }

    /// Counts one more.
    ///
    /// # Errors
    ///
    /// The delay after which another would be within the limit, if this one is not.
    pub(crate) fn count(&self, whose: K) -> Result<(), Duration> {
        let now = Instant::now();
        // An account is charged or not, so a panic elsewhere does not spoil it.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.of_each.len() >= self.most && now >= state.sweep_at {
            let forgiven = self.forgiven_after();
            state.of_each.retain(|_, account| now.duration_since(account.last) < forgiven);
            state.sweep_at = now + forgiven;
        }
        let room = state.of_each.len() < self.most;
        let State { of_each, others, .. } = &mut *state;
        let charged = match of_each.get_mut(&whose) {
            Some(account) => account.charge(now),
            None if room => {
                let account = Account { rate: Rate::new(self.limit), last: now };
                of_each.entry(whose).or_insert(account).charge(now)
            }
            None => others.charge(NonZeroU32::MIN),
        };
        charged.map_err(|too_many| match too_many {
            TooMany::ForNow(delay) => delay,
            // One is never more than a burst.
            TooMany::ForEver { .. } => self.forgiven_after(),
        })
    }

    /// After so long without one an account is as a new one.
    fn forgiven_after(&self) -> Duration {
        Duration::from_secs(1) * self.limit.burst / self.limit.per_second.max(1)
    }
}

impl Account {
    fn charge(&mut self, now: Instant) -> Result<(), TooMany> {
        self.last = now;
        self.rate.charge(NonZeroU32::MIN)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    const LIMIT: RateLimit = RateLimit { per_second: 2, burst: 4 };

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_burst_they_are_within_the_limit_as_often_as_it_says() {
        let rates = Rates::up_to(LIMIT);
        for _ in 0..4 {
            rates.count(address(1)).unwrap();
        }
        assert_eq!(rates.count(address(1)), Err(Duration::from_millis(500)));
        rates.count(address(2)).unwrap();
        tokio::time::advance(Duration::from_millis(500)).await;
        rates.count(address(1)).unwrap();
        rates.count(address(1)).unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_beyond_those_that_are_remembered_share_one_account_until_others_are_forgiven() {
        let rates = Rates::of_most(LIMIT, 3);
        let remembered = || rates.state.lock().unwrap().of_each.len();
        for last in 1..=3 {
            for _ in 0..4 {
                rates.count(address(last)).unwrap();
            }
        }
        for last in 4..8 {
            rates.count(address(last)).unwrap();
        }
        rates.count(address(8)).unwrap_err();
        assert_eq!(remembered(), 3);
        // One goes on and stays; the others are as if they had never been.
        tokio::time::advance(Duration::from_secs(1)).await;
        rates.count(address(1)).unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        rates.count(address(8)).unwrap();
        assert_eq!(remembered(), 2);
    }
}
