//! Assertions that answer with a [`Violation`] instead of panicking.

use std::fmt::Debug;

use kagzi_core::{LostReason, StoreError};

use crate::proof;
use crate::violation::{Verdict, Violation};

/// Asserts that `holds`.
pub(crate) fn check(holds: bool, rule: &str, expected: impl Debug, seen: impl Debug) -> Verdict {
    if holds {
        proof::kept(rule);
        Ok(())
    } else {
        Err(Violation::new(rule, format!("{expected:?}"), format!("{seen:?}")))
    }
}

/// Asserts that two values are equal.
pub(crate) fn equal<T: PartialEq + Debug>(rule: &str, expected: &T, seen: &T) -> Verdict {
    check(expected == seen, rule, expected, seen)
}

/// The same verdict on a rule that is a case's own, where what was checked is what several cases check.
pub(crate) fn under(rule: &str, verdict: Verdict) -> Verdict {
    match verdict {
        Ok(()) => {
            proof::kept(rule);
            Ok(())
        }
        Err(part) => Err(Violation { rule: format!("{rule}: {}", part.rule), ..part }),
    }
}

/// What an answer was, for a violation.
fn seen<T: Debug>(answer: &Result<T, StoreError>) -> String {
    match answer {
        Ok(value) => format!("accepted: {value:?}"),
        Err(error) => format!("{}: {error}", error.reason()),
    }
}

fn refused_as<T: Debug>(
    answer: &Result<T, StoreError>,
    rule: &str,
    expected: &str,
    right: impl FnOnce(&StoreError) -> bool,
) -> Verdict {
    match answer {
        Err(error) if right(error) => {
            proof::kept(rule);
            Ok(())
        }
        other => Err(Violation::new(rule, expected, seen(other))),
    }
}

/// Asserts that an operation was refused because its lease is lost, and gives the reason.
pub(crate) fn lease_lost<T: Debug>(
    answer: &Result<T, StoreError>,
    rule: &str,
) -> Result<LostReason, Violation> {
    match answer {
        Err(StoreError::LeaseLost { reason, .. }) => {
            proof::kept(rule);
            Ok(*reason)
        }
        other => Err(Violation::new(rule, "LEASE_LOST", seen(other))),
    }
}

/// Asserts that an operation was refused because there is no such run.
pub(crate) fn run_not_found<T: Debug>(answer: &Result<T, StoreError>, rule: &str) -> Verdict {
    refused_as(answer, rule, "RUN_NOT_FOUND", |error| matches!(error, StoreError::RunNotFound { .. }))
}

/// Asserts that an operation was refused because of the field `name`.
pub(crate) fn invalid<T: Debug>(answer: &Result<T, StoreError>, name: &str, rule: &str) -> Verdict {
    refused_as(
        answer,
        rule,
        &format!("INVALID_ARGUMENT naming {name}"),
        |error| matches!(error, StoreError::InvalidArgument { field, .. } if field == name),
    )
}

/// Asserts that an operation was refused because the field `name` is too large.
pub(crate) fn too_large<T: Debug>(answer: &Result<T, StoreError>, name: &str, rule: &str) -> Verdict {
    refused_as(
        answer,
        rule,
        &format!("TOO_LARGE naming {name}"),
        |error| matches!(error, StoreError::TooLarge { field, .. } if field == name),
    )
}

/// Asserts that an operation was refused because its id was used for another.
pub(crate) fn operation_conflict<T: Debug>(answer: &Result<T, StoreError>, rule: &str) -> Verdict {
    refused_as(answer, rule, "OPERATION_CONFLICT", |error| {
        matches!(error, StoreError::OperationConflict { .. })
    })
}

/// Asserts that an operation was refused with this stable reason.
pub(crate) fn refused<T: Debug>(answer: &Result<T, StoreError>, reason: &str, rule: &str) -> Verdict {
    refused_as(answer, rule, reason, |error| error.reason() == reason)
}
