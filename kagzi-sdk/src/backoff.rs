//! How long to wait before a failed call is repeated.

use std::time::Duration;

/// The waiting times between repeats of failed calls: exponential, with full jitter, so that workers
/// that lost the same server do not come back to it all at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The longest first wait. 50 ms by default.
    pub first: Duration,
    /// The longest wait of all. 5 s by default.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(50), max: Duration::from_secs(5) }
    }
}

impl Backoff {
    /// How long to wait after the `failures`-th failure in a row (from 1): any time up to
    /// `first * 2^(failures-1)`, at most `max`, on top of what the server asked for.
    pub fn delay(&self, failures: u32, asked_for: Duration) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let ceiling = self.first.saturating_mul(1 << doublings).min(self.max);
        asked_for.min(self.max) + ceiling.mul_f64(fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_ceiling_and_differ() {
        let backoff = Backoff::default();
        for failures in 1..60 {
            let ceiling = backoff.first.saturating_mul(1 << failures.min(20)).min(backoff.max);
            assert!(backoff.delay(failures, Duration::ZERO) <= ceiling);
        }
        let several: std::collections::HashSet<_> =
            (0..20).map(|_| backoff.delay(20, Duration::ZERO)).collect();
        assert!(several.len() > 1, "jitter spreads them");
    }

    #[test]
    fn what_the_server_asks_for_is_kept_within_reason() {
        let backoff = Backoff::default();
        assert!(backoff.delay(1, Duration::from_secs(2)) >= Duration::from_secs(2));
        assert!(backoff.delay(1, Duration::from_hours(1)) <= backoff.max + backoff.first);
    }
}
