//! Everything that is recorded about a run, to be compared with what is recorded later.

use kagzi_core::{Attempt, RunRecord};

use crate::violation::{Verdict, Violation};

/// A run and its whole history.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Snapshot {
    /// The run with its payloads.
    pub(crate) record: RunRecord,
    /// Every attempt of every step.
    pub(crate) attempts: Vec<Attempt>,
}

impl Snapshot {
    /// Asserts that `later` is the same, to the last field.
    pub(crate) fn compare(&self, later: &Self, rule: &str) -> Verdict {
        if self == later {
            return Ok(());
        }
        let (expected, seen) = differing_lines(&format!("{self:#?}"), &format!("{later:#?}"));
        Err(Violation::new(rule, format!("every row as it was\n{expected}"), format!("changed rows\n{seen}")))
    }
}

/// The lines in which two texts differ, each with its number, or both texts if they differ in length.
pub(crate) fn differing_lines(before: &str, after: &str) -> (String, String) {
    if before.lines().count() != after.lines().count() {
        return (before.to_owned(), after.to_owned());
    }
    let (old, new): (Vec<String>, Vec<String>) = before
        .lines()
        .zip(after.lines())
        .enumerate()
        .filter(|(_, (old, new))| old != new)
        .map(|(number, (old, new))| {
            (format!("{number}: {}", old.trim()), format!("{number}: {}", new.trim()))
        })
        .unzip();
    (old.join("\n"), new.join("\n"))
}
