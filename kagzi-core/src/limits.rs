//! The limits and defaults that every backend applies alike.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::StoreError;
use crate::failure::Failure;
use crate::payload::Payload;
use crate::retry::RetryPolicy;

/// No duration anywhere is longer: 100 years.
pub const MAX_DURATION: Duration = Duration::from_hours(100 * 366 * 24);

/// What one call may ask for at most: runs in a start, leases in a claim or heartbeat, a page.
pub const MAX_BATCH: u32 = 10_000;

/// Rules that are the operator's to choose and the same in every backend. A store is opened with them.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// The longest payload (input, output, details of a failure), in bytes. 2 MiB by default.
    pub max_payload_bytes: usize,
    /// The longest failure message, in bytes. 64 KiB by default.
    pub max_message_bytes: usize,
    /// The policy of a step or run that brings none.
    pub default_retry: RetryPolicy,
    /// After how many lost leases in a row, without a finished step, a run is a poison run and
    /// becomes a dead letter (invariant 14). 5 by default; at least 1.
    pub poison_after: u32,
    /// About how many bytes of inputs and recorded steps one claim hands over, so that a worker that
    /// asks for many runs with huge histories costs bounded memory everywhere; at least one run is
    /// always taken. 3 MiB by default: with the rows around it, what one gRPC message holds. At least 1.
    pub max_claim_bytes: usize,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            max_payload_bytes: 2 * 1024 * 1024,
            max_message_bytes: 64 * 1024,
            default_retry: RetryPolicy::default(),
            poison_after: 5,
            max_claim_bytes: 3 * 1024 * 1024,
        }
    }
}

impl Rules {
    /// Checks every field; backends call it when they open.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] naming the field.
    pub fn validate(&self) -> Result<(), StoreError> {
        let at_least_one = |field: &str, value: usize| match value {
            0 => Err(StoreError::InvalidArgument {
                field: field.to_owned(),
                expected: "at least 1".to_owned(),
                got: "0".to_owned(),
            }),
            _ => Ok(()),
        };
        at_least_one("max_payload_bytes", self.max_payload_bytes)?;
        at_least_one("max_message_bytes", self.max_message_bytes)?;
        at_least_one("poison_after", self.poison_after as usize)?;
        at_least_one("max_claim_bytes", self.max_claim_bytes)?;
        self.default_retry.validate()
    }

    /// Checks a payload's size.
    ///
    /// # Errors
    ///
    /// [`StoreError::TooLarge`] naming `field`.
    pub fn check_payload(&self, field: &str, payload: &Payload) -> Result<(), StoreError> {
        check_size(field, payload.len_bytes(), self.max_payload_bytes)
    }

    /// Checks the sizes of a failure's fields.
    ///
    /// # Errors
    ///
    /// [`StoreError::TooLarge`] naming the field.
    pub fn check_failure(&self, failure: &Failure) -> Result<(), StoreError> {
        check_size("failure.code", failure.code.len(), 128)?;
        check_size("failure.message", failure.message.len(), self.max_message_bytes)?;
        match &failure.details {
            Some(details) => self.check_payload("failure.details", details),
            None => Ok(()),
        }
    }
}

fn check_size(field: &str, actual_bytes: usize, limit_bytes: usize) -> Result<(), StoreError> {
    if actual_bytes <= limit_bytes {
        Ok(())
    } else {
        Err(StoreError::TooLarge { field: field.to_owned(), limit_bytes, actual_bytes })
    }
}

/// Checks a duration that may be zero.
pub(crate) fn check_duration(field: &str, duration: Duration) -> Result<(), StoreError> {
    if duration <= MAX_DURATION {
        return Ok(());
    }
    Err(StoreError::InvalidArgument {
        field: field.to_owned(),
        expected: "at most 100 years".to_owned(),
        got: format!("{} s", duration.as_secs()),
    })
}

/// Checks a duration that must be at least a microsecond, the precision that stores keep.
pub(crate) fn check_positive_duration(field: &str, duration: Duration) -> Result<(), StoreError> {
    if duration >= Duration::from_micros(1) {
        return check_duration(field, duration);
    }
    Err(StoreError::InvalidArgument {
        field: field.to_owned(),
        expected: "at least 1 microsecond".to_owned(),
        got: format!("{duration:?}"),
    })
}

/// Checks how many things a call asks for: 1 to [`MAX_BATCH`].
pub(crate) fn check_batch(field: &str, count: usize) -> Result<(), StoreError> {
    if count >= 1 && count <= MAX_BATCH as usize {
        return Ok(());
    }
    Err(StoreError::InvalidArgument {
        field: field.to_owned(),
        expected: format!("from 1 to {MAX_BATCH}"),
        got: count.to_string(),
    })
}

/// Labels: short texts that runs are found by. Keys are 1 to 63 bytes of `A-Z a-z 0-9 . _ / -`,
/// values at most 255 bytes without control characters; at most 32 labels a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// Checks every key and value.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] naming the first label that breaks the rule.
    pub fn new(labels: BTreeMap<String, String>) -> Result<Self, StoreError> {
        let refuse = |field: String, expected: &str, got: String| {
            Err(StoreError::InvalidArgument { field, expected: expected.to_owned(), got })
        };
        if labels.len() > 32 {
            return refuse("labels".to_owned(), "at most 32 labels", labels.len().to_string());
        }
        for (key, value) in &labels {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._/-".contains(c);
            if key.is_empty() || key.len() > 63 || !key.chars().all(plain) {
                let got = if key.is_empty() {
                    "an empty text".to_owned()
                } else if key.len() > 63 {
                    format!("{} bytes", key.len())
                } else {
                    format!("{key:?}")
                };
                return refuse("labels key".to_owned(), "1 to 63 bytes of A-Z a-z 0-9 . _ / -", got);
            }
            let got = if value.len() > 255 {
                format!("{} bytes", value.len())
            } else if let Some(at) = value.find(char::is_control) {
                format!("a control character at byte {at}")
            } else {
                continue;
            };
            return refuse(format!("labels[{key}]"), "at most 255 bytes without control characters", got);
        }
        Ok(Self(labels))
    }

    /// The labels, ordered by key.
    pub fn as_map(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    /// Whether there is no label.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether every label of `wanted` is among these, with the same value.
    pub fn contain(&self, wanted: &Self) -> bool {
        wanted.0.iter().all(|(key, value)| self.0.get(key) == Some(value))
    }
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = StoreError;
    fn try_from(labels: BTreeMap<String, String>) -> Result<Self, StoreError> {
        Self::new(labels)
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_outside_the_rule_is_told_by_what_is_wrong_with_it() {
        let long = "x".repeat(300);
        let cases = [
            ("", "v", "labels key: ", "got an empty text"),
            (&long, "v", "labels key: ", "got 300 bytes"),
            ("a b", "v", "labels key: ", "got \"a b\""),
            ("k", &long, "labels[k]: ", "got 300 bytes"),
            ("k", "a\nb", "labels[k]: ", "got a control character at byte 1"),
        ];
        for (key, value, field, got) in cases {
            let labels = BTreeMap::from([(key.to_owned(), value.to_owned())]);
            let error = Labels::new(labels).unwrap_err().to_string();
            assert!(error.starts_with(field) && error.ends_with(got), "{error}");
        }
    }
}
