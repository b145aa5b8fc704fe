//! How much the random cases play, and with which dice: variables of the environment.

use crate::violation::Violation;

/// The number that all dice of the random cases come from: a number repeats a run, `random` plays a
/// different one each time. 1 unless set, so that a suite gives the same verdict twice.
pub const SEED_VARIABLE: &str = "KAGZI_CONFORMANCE_SEED";

/// How many operations the cases of the group `model` play on a store, all together; 10,000 unless set.
pub const MODEL_VARIABLE: &str = "KAGZI_CONFORMANCE_MODEL_OPERATIONS";

/// How many operations the cases of the group `history` play on a store, all together; 5,000 unless set.
pub const HISTORY_VARIABLE: &str = "KAGZI_CONFORMANCE_HISTORY_OPERATIONS";

/// How many operations the random cases of the group `fault` send through faults, each; 500 unless set.
pub const FAULT_VARIABLE: &str = "KAGZI_CONFORMANCE_FAULT_OPERATIONS";

/// A variable as a number, or `default` if it is not set.
pub(crate) fn number(variable: &str, default: usize) -> Result<usize, Violation> {
    match read(variable)? {
        None => Ok(default),
        Some(text) => {
            text.parse().map_err(|_| Violation::new(format!("{variable} is a number"), "a number", text))
        }
    }
}

/// The seed of this run.
pub(crate) fn seed() -> Result<u64, Violation> {
    match read(SEED_VARIABLE)?.as_deref() {
        None => Ok(1),
        Some("random") => Ok(fastrand::u64(..)),
        Some(text) => text
            .parse()
            .map_err(|_| Violation::new(format!("{SEED_VARIABLE} is a seed"), "a number, or `random`", text)),
    }
}

fn read(variable: &str) -> Result<Option<String>, Violation> {
    match std::env::var(variable) {
        Ok(text) => Ok(Some(text)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(error) => Err(Violation::new(format!("{variable} can be read"), "UTF-8", error.to_string())),
    }
}
