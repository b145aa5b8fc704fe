//! What a run of the suite found.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use serde::Serialize;

use crate::case::Case;

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "result", content = "detail")]
pub enum Outcome {
    /// The store kept the rule.
    Passed,
    /// It did not: which rule, what was expected and seen, and the calls that led there.
    Failed(String),
    /// The backend cannot do what the case needs.
    NotApplicable(String),
}

/// One case and how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CaseReport {
    /// The topic.
    pub group: String,
    /// The rule, as a sentence.
    pub name: String,
    /// The invariants that it proves.
    pub invariants: Vec<u8>,
    /// How it ended.
    pub outcome: Outcome,
}

impl CaseReport {
    pub(crate) fn new(case: &Case, outcome: Outcome) -> Self {
        Self {
            group: case.group.to_owned(),
            name: case.name.to_string(),
            invariants: case.invariants.to_vec(),
            outcome,
        }
    }
}

/// How many cases ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// The store kept the rule.
    pub passed: u32,
    /// It did not.
    pub failed: u32,
    /// The backend cannot do what the case needs.
    pub not_applicable: u32,
}

impl Totals {
    fn count(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Failed(_) => self.failed += 1,
            Outcome::NotApplicable(_) => self.not_applicable += 1,
        }
    }
}

/// What a run of the suite found about one store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The fixture's name.
    pub store: String,
    /// Every case, in the order of the catalogue.
    pub cases: Vec<CaseReport>,
}

#[derive(Serialize)]
struct Line<'a> {
    store: &'a str,
    groups: BTreeMap<&'a str, Totals>,
    #[serde(flatten)]
    totals: Totals,
}

impl Report {
    /// The numbers over all cases.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        self.cases.iter().for_each(|case| totals.count(&case.outcome));
        totals
    }

    /// The numbers of each group.
    pub fn groups(&self) -> BTreeMap<&str, Totals> {
        let mut groups = BTreeMap::<&str, Totals>::new();
        for case in &self.cases {
            groups.entry(&case.group).or_default().count(&case.outcome);
        }
        groups
    }

    /// The numbers as one line of JSON: `{"store", "groups": {group: numbers}, "passed", "failed",
    /// "not_applicable"}`.
    ///
    /// # Errors
    ///
    /// None that can happen for this type; the encoder's, if it had one.
    pub fn to_json_line(&self) -> io::Result<String> {
        let line = Line { store: &self.store, groups: self.groups(), totals: self.totals() };
        serde_json::to_string(&line).map_err(io::Error::from)
    }
}

/// A table of the groups and the sum, for people.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |f: &mut fmt::Formatter<'_>, name: &str, totals: Totals| {
            writeln!(f, "  {name:<14} {:>6} {:>6} {:>6}", totals.passed, totals.failed, totals.not_applicable)
        };
        writeln!(f, "conformance of {}:", self.store)?;
        writeln!(f, "  {:<14} {:>6} {:>6} {:>6}", "group", "passed", "failed", "n/a")?;
        for (group, totals) in self.groups() {
            row(f, group, totals)?;
        }
        row(f, "all", self.totals())
    }
}
