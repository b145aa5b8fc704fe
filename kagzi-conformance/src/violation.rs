//! What a case says when a store broke a rule.

use std::fmt;

use kagzi_core::StoreError;

use crate::fixture::FixtureError;

/// A broken rule: which one, what was expected, what was seen. The runner adds the calls that led there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule in words, with the numbers of its invariants in brackets.
    pub rule: String,
    /// What the contract asks for.
    pub expected: String,
    /// What the store did.
    pub seen: String,
    /// The seed that plays the same again, where chance had a hand in it.
    pub seed: Option<u64>,
    /// It is the fixture that failed, so nothing is known of the store.
    pub by_fixture: bool,
}

impl Violation {
    /// A violation of `rule`.
    pub fn new(rule: impl Into<String>, expected: impl Into<String>, seen: impl Into<String>) -> Self {
        Self {
            rule: rule.into(),
            expected: expected.into(),
            seen: seen.into(),
            seed: None,
            by_fixture: false,
        }
    }

    /// The same, found with this seed.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed: Some(seed), ..self }
    }

    /// The fixture could not do its part.
    pub(crate) fn of_fixture(what: &str, error: &FixtureError) -> Self {
        let violation = Self::new(format!("the fixture can {what}"), "a handle", error.to_string());
        Self { by_fixture: true, ..violation }
    }

    /// An operation that the contract accepts was refused.
    pub fn refused(operation: &str, error: &StoreError) -> Self {
        Self::new(
            format!("{operation} is accepted here"),
            "an answer",
            format!("{}: {error}", error.reason()),
        )
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = self.seen.replace('\n', "\n          ");
        let expected = self.expected.replace('\n', "\n          ");
        write!(f, "rule      {}\nexpected  {expected}\nseen      {seen}", self.rule)?;
        self.seed.map_or(Ok(()), |seed| write!(f, "\nseed      {seed}"))
    }
}

/// What a case ends with.
pub type Verdict = Result<(), Violation>;
