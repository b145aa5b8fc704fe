//! How often somebody may call.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::time::Instant;

use crate::config::RateLimit;

/// The runtime's time, so that tests can turn it.
#[derive(Clone, Copy, Debug)]
struct RuntimeClock(Instant);

impl Clock for RuntimeClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.elapsed().into()
    }
}

/// One bucket of calls that fills up evenly.
#[derive(Debug)]
pub(crate) struct Rate {
    limiter: RateLimiter<NotKeyed, InMemoryState, RuntimeClock, NoOpMiddleware<Nanos>>,
    clock: RuntimeClock,
}

/// Why calls are refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TooMany {
    /// After so long there would be room for them.
    ForNow(Duration),
    /// They are more than there is ever room for.
    ForEver { burst: u32 },
}

impl Rate {
    pub(crate) fn new(limit: RateLimit) -> Self {
        // The configuration says that neither is 0.
        let count = |count: u32| NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(count(limit.per_second)).allow_burst(count(limit.burst));
        let clock = RuntimeClock(Instant::now());
        Self { limiter: RateLimiter::direct_with_clock(quota, clock), clock }
    }

    /// Takes `calls` out of the bucket, all or none.
    pub(crate) fn charge(&self, calls: NonZeroU32) -> Result<(), TooMany> {
        match self.limiter.check_n(calls) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(not_until)) => Err(TooMany::ForNow(not_until.wait_time_from(self.clock.now()))),
            Err(governor::InsufficientCapacity(burst)) => Err(TooMany::ForEver { burst }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(count: u32) -> NonZeroU32 {
        NonZeroU32::new(count).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_delay_that_was_told_there_is_room_and_not_before() {
        let rate = Rate::new(RateLimit { per_second: 10, burst: 5 });
        rate.charge(calls(5)).unwrap();
        let Err(TooMany::ForNow(delay)) = rate.charge(calls(2)) else { panic!("there is no room") };
        assert_eq!(delay, Duration::from_millis(200));
        tokio::time::advance(Duration::from_millis(199)).await;
        assert_eq!(rate.charge(calls(2)), Err(TooMany::ForNow(Duration::from_millis(1))));
        tokio::time::advance(Duration::from_millis(1)).await;
        rate.charge(calls(2)).unwrap();
        // It is never more than the burst, however long it was quiet.
        tokio::time::advance(Duration::from_hours(1)).await;
        rate.charge(calls(5)).unwrap();
        assert!(rate.charge(calls(1)).is_err());
        assert_eq!(rate.charge(calls(6)), Err(TooMany::ForEver { burst: 5 }));
    }
}
