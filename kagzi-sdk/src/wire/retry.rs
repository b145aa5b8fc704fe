//! Retry policies.

use kagzi_core::{RetryPolicy, StoreError};
use kagzi_proto::v1;

use super::field::within;
use super::time::{duration_to_wire, optional_duration};
use super::{FromWire, IntoWire};

impl IntoWire<v1::RetryPolicy> for RetryPolicy {
    fn into_wire(self) -> v1::RetryPolicy {
        v1::RetryPolicy {
            max_attempts: Some(self.max_attempts),
            first_delay: Some(duration_to_wire(self.first_delay)),
            factor: Some(self.factor),
            max_delay: Some(duration_to_wire(self.max_delay)),
            jitter: Some(self.jitter),
            non_retryable_codes: self.non_retryable_codes,
        }
    }
}

/// What is left out has its default. Ranges are checked by the request that brings the policy.
impl FromWire<v1::RetryPolicy> for RetryPolicy {
    fn from_wire(wire: v1::RetryPolicy) -> Result<Self, StoreError> {
        let default = Self::default();
        Ok(Self {
            max_attempts: wire.max_attempts.unwrap_or(default.max_attempts),
            first_delay: optional_duration("first_delay", wire.first_delay)?.unwrap_or(default.first_delay),
            factor: wire.factor.unwrap_or(default.factor),
            max_delay: optional_duration("max_delay", wire.max_delay)?.unwrap_or(default.max_delay),
            jitter: wire.jitter.unwrap_or(default.jitter),
            non_retryable_codes: wire.non_retryable_codes,
        })
    }
}

/// The policy in the field `retry_policy`, which may be left out.
pub(super) fn retry_policy(wire: Option<v1::RetryPolicy>) -> Result<Option<RetryPolicy>, StoreError> {
    wire.map(|wire| within("retry_policy", RetryPolicy::from_wire(wire))).transpose()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn policies_round_trip_and_gaps_are_filled_with_defaults() {
        let policy = RetryPolicy {
            max_attempts: u32::MAX,
            first_delay: Duration::from_micros(1),
            factor: 1.5,
            max_delay: Duration::from_hours(7),
            jitter: 0.0,
            non_retryable_codes: vec!["a".to_owned(), "ü".to_owned()],
        };
        assert_eq!(RetryPolicy::from_wire(policy.clone().into_wire()).unwrap(), policy);
        assert_eq!(RetryPolicy::from_wire(v1::RetryPolicy::default()).unwrap(), RetryPolicy::default());
    }

    #[test]
    fn an_explicit_zero_is_kept_for_validation_to_refuse() {
        let wire = v1::RetryPolicy { max_attempts: Some(0), ..Default::default() };
        let error = RetryPolicy::from_wire(wire).unwrap().validate().unwrap_err();
        assert!(error.to_string().starts_with("retry_policy.max_attempts: "), "{error}");
    }
}
