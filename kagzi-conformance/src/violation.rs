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
    /// The seed, and how to play the same again, where chance had a hand in it.
    pub seed: Option<String>,
    /// What it says about the store.
    pub proves: Proves,
}

/// What a violation says about the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proves {
    /// It broke the rule.
    Broken,
    /// Nothing: the fixture failed, or the suite could not judge what it saw.
    Nothing,
}

impl Violation {
    /// A violation of `rule`.
    pub fn new(rule: impl Into<String>, expected: impl Into<String>, seen: impl Into<String>) -> Self {
        Self {
            rule: rule.into(),
            expected: expected.into(),
            seen: seen.into(),
            seed: None,
            proves: Proves::Broken,
        }
    }

    /// The same, found by chance: the seed, and how to play it again.
    #[must_use]
    pub(crate) fn found_by(self, seed: impl Into<String>) -> Self {
        Self { seed: Some(seed.into()), ..self }
    }

    /// The same, but nothing is known of the store.
    #[must_use]
    pub(crate) fn undecided(self) -> Self {
        Self { proves: Proves::Nothing, ..self }
    }

    /// The fixture could not do its part.
    pub(crate) fn of_fixture(what: &str, error: &FixtureError) -> Self {
        Self::new(format!("the fixture can {what}"), "a handle", error.to_string()).undecided()
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
        let indented = |text: &str| text.replace('\n', "\n          ");
        let (expected, seen) = (indented(&self.expected), indented(&self.seen));
        write!(f, "rule      {}\nexpected  {expected}\nseen      {seen}", self.rule)?;
        self.seed.as_deref().map_or(Ok(()), |seed| write!(f, "\nseed      {}", indented(seed)))
    }
}

/// What a case ends with.
pub type Verdict = Result<(), Violation>;
