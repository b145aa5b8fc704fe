//! What a run of the suite found.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use serde::{Serialize, Serializer};

use crate::case::Case;

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The store kept the rule.
    Passed,
    /// It did not: which rule, what was expected and seen, and the calls that led there.
    Failed(String),
    /// It had not ended after some minutes, which is a failure: a store answers. Told apart, since it shows
    /// no other rule broken, and a machine that is far too slow looks alike.
    Hung(String),
    /// The case could not be played to its end: the fixture failed, the case or the store panicked, or the
    /// suite could not judge what it saw. A failure like any other for whoever wants a proof, but no rule
    /// is known to be broken.
    Unplayed(String),
    /// The backend cannot do what the case needs.
    NotApplicable(String),
}

impl Outcome {
    /// The name used in JSON: `passed`, `failed` (also for what hung or could not be played) or
    /// `not_applicable`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed(_) | Self::Hung(_) | Self::Unplayed(_) => "failed",
            Self::NotApplicable(_) => "not_applicable",
        }
    }

    /// Whether whoever wants a proof has none: it failed, hung, or could not be played.
    pub fn is_failure(&self) -> bool {
        self.as_str() == "failed"
    }

    /// What there is to say about it.
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Passed => None,
            Self::Failed(told) | Self::Hung(told) | Self::Unplayed(told) => Some(told.trim()),
            Self::NotApplicable(reason) => Some(reason),
        }
    }
}

/// One case and how it ended. In JSON: `{"group", "name", "invariant": [numbers], "verdict"}`, with
/// `"detail"` unless it passed, and with `"note"` if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseReport {
    /// The topic.
    pub group: String,
    /// The rule, as a sentence.
    pub name: String,
    /// The invariants that it proves.
    pub invariants: Vec<u8>,
    /// How it ended.
    pub outcome: Outcome,
    /// What it has to say however it ended: how many states a search reached, how many calls were played.
    pub note: Option<String>,
}

#[derive(Serialize)]
struct CaseView<'a> {
    group: &'a str,
    name: &'a str,
    invariant: &'a [u8],
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'a str>,
}

impl Serialize for CaseReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { group, name, invariants: invariant, outcome, note } = self;
        let (verdict, detail, note) = (outcome.as_str(), outcome.detail(), note.as_deref());
        CaseView { group, name, invariant, verdict, detail, note }.serialize(serializer)
    }
}

impl CaseReport {
    pub(crate) fn new(case: &Case, outcome: Outcome, note: Option<String>) -> Self {
        Self {
            group: case.group.to_owned(),
            name: case.name.to_string(),
            invariants: case.invariants.to_vec(),
            outcome,
            note,
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
            Outcome::Failed(_) | Outcome::Hung(_) | Outcome::Unplayed(_) => self.failed += 1,
            Outcome::NotApplicable(_) => self.not_applicable += 1,
        }
    }
}

/// What a run of the suite found about one store. In JSON: `{"store", "passed", "failed",
/// "not_applicable", "cases"}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The fixture's name.
    pub store: String,
    /// Every case, in the order of the catalogue.
    pub cases: Vec<CaseReport>,
}

#[derive(Serialize)]
struct ReportView<'a> {
    store: &'a str,
    #[serde(flatten)]
    totals: Totals,
    cases: &'a [CaseReport],
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { store, cases } = self;
        ReportView { store, totals: self.totals(), cases }.serialize(serializer)
    }
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

    /// The cases that failed.
    pub fn failures(&self) -> impl Iterator<Item = &CaseReport> {
        self.cases.iter().filter(|case| case.outcome.is_failure())
    }

    /// What cases have to say however they ended, each with the name of its case.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        self.cases
            .iter()
            .filter_map(|case| Some(format!("{}::{}: {}", case.group, case.name, case.note.as_ref()?)))
    }

    /// The report in Markdown: the table, what failed and why, what did not apply, and what cases say of
    /// themselves.
    pub fn to_markdown(&self) -> String {
        let row = |name: &str, Totals { passed, failed, not_applicable }| {
            format!("| {name} | {passed} | {failed} | {not_applicable} |\n")
        };
        let mut text = format!("# Conformance of {}\n\n", self.store);
        text.push_str("| group | passed | failed | not applicable |\n| --- | ---: | ---: | ---: |\n");
        text.extend(self.groups().into_iter().map(|(group, totals)| row(group, totals)));
        text.push_str(&row("**all**", self.totals()));
        for case in self.failures() {
            let told = case.outcome.detail().unwrap_or_default();
            // Longer than any run of backticks within, so that nothing in the text can end it.
            let fence = "`".repeat(longest_run(told, '`').max(2) + 1);
            text.extend([format!("\n## {}::{}\n\n{fence}text\n{told}\n{fence}\n", case.group, case.name)]);
        }
        let not_applicable: String = self
            .cases
            .iter()
            .filter_map(|case| match &case.outcome {
                Outcome::NotApplicable(reason) => {
                    Some(format!("- `{}::{}`: {reason}\n", case.group, case.name))
                }
                _ => None,
            })
            .collect();
        if !not_applicable.is_empty() {
            text.extend(["\n## Not applicable\n\n", &not_applicable]);
        }
        for (number, note) in self.notes().enumerate() {
            let heading = if number == 0 { "\n## Notes\n\n" } else { "" };
            text.extend([heading, "- ", &note, "\n"]);
        }
        text
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

/// A table of the groups and the sum, and the notes, for people.
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
        row(f, "all", self.totals())?;
        self.notes().try_for_each(|note| writeln!(f, "  {note}"))
    }
}

fn longest_run(text: &str, of: char) -> usize {
    text.split(|c| c != of).map(str::len).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let case = |name: &str, outcome| CaseReport {
            group: "claim".to_owned(),
            name: name.to_owned(),
            invariants: vec![1, 15],
            note: (name == "a").then(|| "12 states".to_owned()),
            outcome,
        };
        Report {
            store: "mine".to_owned(),
            cases: vec![
                case("a", Outcome::Passed),
                case("b", Outcome::Failed("\nrule ```x```".to_owned())),
                case("c", Outcome::NotApplicable("needs reopening".to_owned())),
            ],
        }
    }

    #[test]
    fn json_has_a_verdict_for_each_case_and_the_totals() {
        let json = serde_json::to_value(report()).unwrap();
        let expected = serde_json::json!({
            "store": "mine", "passed": 1, "failed": 1, "not_applicable": 1,
            "cases": [
                {"group": "claim", "name": "a", "invariant": [1, 15], "verdict": "passed", "note": "12 states"},
                {"group": "claim", "name": "b", "invariant": [1, 15], "verdict": "failed", "detail": "rule ```x```"},
                {"group": "claim", "name": "c", "invariant": [1, 15], "verdict": "not_applicable", "detail": "needs reopening"},
            ],
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn what_a_case_says_of_itself_stands_below_the_table() {
        let text = report().to_string();
        assert!(
            text.ends_with("\n  claim::a: 12 states\n") && text.matches("claim::").count() == 1,
            "{text}"
        );
    }

    #[test]
    fn markdown_has_the_table_and_fences_that_no_text_can_end() {
        let text = report().to_markdown();
        for part in [
            "| claim | 1 | 1 | 1 |",
            "## claim::b",
            "````text\nrule ```x```\n````",
            "- `claim::c`: needs",
            "- claim::a: 12",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }
}
