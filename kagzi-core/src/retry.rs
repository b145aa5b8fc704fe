//! Retry policies, and the pure function that every backend asks what to do after a failure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::{duration_micros, whole_micros};
use crate::error::StoreError;
use crate::failure::Failure;
use crate::limits::MAX_DURATION;

/// How often, how soon and after what a failed step or run is tried again.
///
/// The delay before retry *n* (from 1) is `first_delay * factor^(n-1)`, at most `max_delay`, then
/// moved by up to `jitter` of itself in either direction, and never above `max_delay`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// How many failures end it: 1 means no retry. At least 1; `u32::MAX` is as good as for ever.
    pub max_attempts: u32,
    /// The delay after the first failure.
    #[serde(with = "duration_micros", rename = "first_delay_micros")]
    pub first_delay: Duration,
    /// What each further delay is multiplied by, from 1 to 1,000.
    pub factor: f64,
    /// No delay is longer than this.
    #[serde(with = "duration_micros", rename = "max_delay_micros")]
    pub max_delay: Duration,
    /// Which part of the delay is left to chance, from 0 (none) to 1 (all of it).
    pub jitter: f64,
    /// Failure codes after which trying again is pointless, whatever the kind of failure.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub non_retryable_codes: Vec<String>,
}

impl Default for RetryPolicy {
    /// Five attempts, 1 s doubling up to 60 s, a tenth of it chance.
    fn default() -> Self {
        Self {
            max_attempts: 5,
            first_delay: Duration::from_secs(1),
            factor: 2.0,
            max_delay: Duration::from_mins(1),
            jitter: 0.1,
            non_retryable_codes: Vec::new(),
        }
    }
}

/// What follows a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryDecision {
    /// Try again after this delay, counted from the failure.
    RetryAfter(Duration),
    /// The policy allows no further attempt.
    Exhausted,
    /// The kind or the code of the failure forbids another attempt.
    NonRetryable,
}

impl RetryPolicy {
    /// One attempt, no retry.
    pub fn never() -> Self {
        Self { max_attempts: 1, ..Self::default() }
    }

    /// The policy as stores keep it, its delays in whole microseconds.
    pub(crate) fn as_recorded(&self) -> Self {
        Self {
            first_delay: whole_micros(self.first_delay),
            max_delay: whole_micros(self.max_delay),
            ..self.clone()
        }
    }

    /// Checks every field against its range.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] naming the first field outside its range.
    pub fn validate(&self) -> Result<(), StoreError> {
        let refuse = |field: &str, expected: &str, got: String| {
            Err(StoreError::InvalidArgument {
                field: format!("retry_policy.{field}"),
                expected: expected.to_owned(),
                got,
            })
        };
        if self.max_attempts == 0 {
            return refuse("max_attempts", "at least 1", "0".to_owned());
        }
        if self.first_delay > MAX_DURATION {
            return refuse("first_delay", "at most 100 years", format!("{:?}", self.first_delay));
        }
        if self.max_delay > MAX_DURATION {
            return refuse("max_delay", "at most 100 years", format!("{:?}", self.max_delay));
        }
        if !(1.0..=1000.0).contains(&self.factor) {
            return refuse("factor", "from 1 to 1000", self.factor.to_string());
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            return refuse("jitter", "from 0 to 1", self.jitter.to_string());
        }
        if self.non_retryable_codes.len() > 64 {
            let got = format!("{} codes", self.non_retryable_codes.len());
            return refuse("non_retryable_codes", "at most 64 codes", got);
        }
        let lengths = self.non_retryable_codes.iter().map(String::len);
        match lengths.enumerate().find(|(_, bytes)| *bytes > 128) {
            Some((at, bytes)) => refuse(
                &format!("non_retryable_codes[{at}]"),
                "a code of at most 128 bytes",
                format!("{bytes} bytes"),
            ),
            None => Ok(()),
        }
    }

    /// What follows the `failures`-th failure (counted from 1, this one included).
    ///
    /// `seed` decides the jitter, so that the answer is the same wherever it is computed.
    pub fn decide(&self, failure: &Failure, failures: u32, seed: u64) -> RetryDecision {
        if !failure.kind.may_retry() || self.non_retryable_codes.contains(&failure.code) {
            RetryDecision::NonRetryable
        } else if failures >= self.max_attempts {
            RetryDecision::Exhausted
        } else {
            RetryDecision::RetryAfter(self.delay(failures, seed))
        }
    }

    /// The delay after the `failures`-th failure (from 1). Never above `max_delay`.
    pub fn delay(&self, failures: u32, seed: u64) -> Duration {
        if self.first_delay.is_zero() {
            // Nothing times whatever it has grown to, infinity included.
            return Duration::ZERO;
        }
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let ceiling = self.max_delay.as_secs_f64();
        let grown = (self.first_delay.as_secs_f64() * self.factor.powi(exponent)).min(ceiling);
        let chance = fastrand::Rng::with_seed(seed).f64() * 2.0 - 1.0;
        let moved = (grown * (1.0 + self.jitter * chance)).clamp(0.0, ceiling);
        // Seconds as a fraction are not exact: over years they are off by a microsecond or so.
        Duration::try_from_secs_f64(moved).map_or(self.max_delay, |delay| delay.min(self.max_delay))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> RetryPolicy {
        RetryPolicy { jitter: 0.0, ..RetryPolicy::default() }
    }

    #[test]
    fn delays_grow_by_the_factor_up_to_the_ceiling() {
        let seconds: Vec<u64> = (1..9).map(|n| policy().delay(n, 0).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn jitter_stays_within_its_part_and_below_the_ceiling() {
        let policy = RetryPolicy { jitter: 0.5, ..policy() };
        for seed in 0..1000 {
            let delay = policy.delay(2, seed).as_secs_f64();
            assert!((1.0..=3.0).contains(&delay), "{delay}");
            assert!(policy.delay(30, seed) <= policy.max_delay);
        }
        assert_ne!(policy.delay(2, 1), policy.delay(2, 2));
    }

    #[test]
    fn fractions_survive_json_to_the_last_bit() {
        // Without serde_json's `float_roundtrip` one in ten comes back changed, and a start that is
        // sent again would conflict with itself.
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..1000 {
            let policy = RetryPolicy { factor: 1.0 + random.f64() * 999.0, jitter: random.f64(), ..policy() };
            let text = serde_json::to_string(&policy).unwrap();
            assert_eq!(serde_json::from_str::<RetryPolicy>(&text).unwrap(), policy);
        }
    }

    #[test]
    fn extremes_do_not_overflow() {
        let policy = RetryPolicy {
            first_delay: MAX_DURATION,
            max_delay: MAX_DURATION,
            factor: 1000.0,
            jitter: 1.0,
            max_attempts: u32::MAX,
            ..policy()
        };
        policy.validate().unwrap();
        for failures in [0, 1, 2, 1_000_000, u32::MAX] {
            assert!(policy.delay(failures, 7) <= MAX_DURATION);
        }
        let at_once = RetryPolicy { first_delay: Duration::ZERO, ..policy };
        assert_eq!(at_once.delay(u32::MAX, 7), Duration::ZERO, "no delay stays no delay");
    }

    #[test]
    fn a_ceiling_of_years_is_kept_to_the_microsecond() {
        for micros in (2_482_579_440_731_872..).take(1000) {
            let ceiling = Duration::from_micros(micros);
            let policy = RetryPolicy { first_delay: ceiling, max_delay: ceiling, ..policy() };
            assert!(policy.delay(1, 0) <= ceiling, "{ceiling:?}");
        }
    }

    #[test]
    fn kind_and_code_can_forbid_a_retry() {
        let mut policy = policy();
        policy.non_retryable_codes.push("card_declined".to_owned());
        let decide = |failure: &Failure, n| policy.decide(failure, n, 0);
        assert_eq!(decide(&Failure::non_retryable("x", ""), 1), RetryDecision::NonRetryable);
        assert_eq!(decide(&Failure::retryable("card_declined", ""), 1), RetryDecision::NonRetryable);
        assert_eq!(decide(&Failure::retryable("x", ""), 5), RetryDecision::Exhausted);
        assert_eq!(
            decide(&Failure::retryable("x", ""), 4),
            RetryDecision::RetryAfter(Duration::from_secs(8))
        );
    }

    #[test]
    fn fields_outside_their_range_are_named() {
        let broken = [
            ("max_attempts", RetryPolicy { max_attempts: 0, ..policy() }),
            ("factor", RetryPolicy { factor: f64::NAN, ..policy() }),
            ("jitter", RetryPolicy { jitter: -0.1, ..policy() }),
            ("first_delay", RetryPolicy { first_delay: Duration::MAX, ..policy() }),
        ];
        for (field, policy) in broken {
            assert!(policy.validate().unwrap_err().to_string().contains(field));
        }
    }

    #[test]
    fn of_too_many_codes_the_number_is_told_and_of_a_long_one_the_length() {
        let many = RetryPolicy { non_retryable_codes: vec!["x".to_owned(); 65], ..policy() };
        let error = many.validate().unwrap_err().to_string();
        assert!(error.ends_with("at most 64 codes, got 65 codes"), "{error}");
        let long = vec!["x".to_owned(), "x".repeat(129)];
        let error = RetryPolicy { non_retryable_codes: long, ..policy() }.validate().unwrap_err().to_string();
        assert!(error.contains("non_retryable_codes[1]: ") && error.ends_with("got 129 bytes"), "{error}");
    }
}
