//! The judge: everything that was heard, done and recorded, against the invariants.

mod attempts;
mod deeds;
mod identity;
mod order;
mod run_rules;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use kagzi_core::{Attempt, RunId, RunRecord};

use crate::log::History;

/// What the store holds of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    pub namespace: String,
    pub record: RunRecord,
    pub attempts: Vec<Attempt>,
}

/// All runs that the store holds.
pub type Look = BTreeMap<RunId, Stored>;

/// What is asked of everything that happened. The numbers are those of the invariants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    StartIsKept,
    KeyNamesOneRun,
    RunWasAskedFor,
    NamespaceKept,
    RunEnded,
    EndIsFinal,
    EndIsExplained,
    AttemptsAreDense,
    CompletedOnce,
    CompletionIsKept,
    CompletionWasSent,
    ResultIsKept,
    ReplayIsTheRecord,
    ExecutedByPermission,
    OneExecutionAnAttempt,
    RepeatsAgree,
    TokensDiffer,
    SomeOrder,
    TooTangled,
    ProcessLives,
    OthersGoOn,
    PlainRunCompletes,
}

impl Rule {
    /// The rule in words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::StartIsKept => "a start that was acknowledged exists, as it was asked for [9, 12]",
            Self::KeyNamesOneRun => "an idempotency key names one run [7]",
            Self::RunWasAskedFor => "a run was asked for, in its namespace [7, 11]",
            Self::NamespaceKept => "no call with one namespace sees or touches a run of another [11]",
            Self::RunEnded => "once all is well again every run ends [10, 13]",
            Self::EndIsFinal => "nothing of a run changes after its end [6, 9]",
            Self::EndIsExplained => "a dead letter has a reason that its history bears out [14]",
            Self::AttemptsAreDense => {
                "attempts are numbered from 1 without gaps, under tokens that never shrink, and none is open when the run has ended [1, 5]"
            }
            Self::CompletedOnce => "a step has at most one completed attempt, its last [3]",
            Self::CompletionIsKept => "a completion that was acknowledged is recorded to the byte [9, 12]",
            Self::CompletionWasSent => {
                "what is recorded as completed was sent by the holder of that token [2]"
            }
            Self::ResultIsKept => "the output of a run is the outputs of its steps [4, 9]",
            Self::ReplayIsTheRecord => {
                "workflow code gets the recorded output of a step, before it executes another [4]"
            }
            Self::ExecutedByPermission => "a step executes when its begin was told to, and not otherwise [3]",
            Self::OneExecutionAnAttempt => "an attempt is executed once [3]",
            Self::RepeatsAgree => "an operation that is sent again gets its first answer [8]",
            Self::TokensDiffer => "no two claims of a run get one token [1]",
            Self::SomeOrder => {
                "one order of everything that befell a run explains what everybody heard [1, 2, 3, 4, 5, 6, 8, 15]"
            }
            Self::TooTangled => "the history of a run can be judged",
            Self::ProcessLives => "no process ends by itself",
            Self::OthersGoOn => "while a node is away, runs of other partitions are started and end",
            Self::PlainRunCompletes => "a plain run completes, each of its five steps once [3, 9]",
        }
    }
}

/// A rule that was not kept.
#[derive(Clone, Debug)]
pub struct Found {
    pub rule: Rule,
    /// Whose story to tell.
    pub run: Option<RunId>,
    /// What was expected and seen.
    pub detail: String,
}

/// What the judge found, and how much it looked at.
#[derive(Debug, Default)]
pub struct Judgement {
    pub found: Vec<Found>,
    /// Calls, looks and claims on record.
    pub operations: usize,
    /// Of them those that were answered.
    pub answered: usize,
    /// Histories for which an order was sought.
    pub histories: usize,
    pub executions: usize,
    pub attempts: usize,
}

/// Judges everything. `first` and `second` are what the store held at two moments after all had ended, with
/// every process and the database killed in between.
pub fn judge(history: &History, first: &Look, second: &Look) -> Judgement {
    let mut found = Vec::new();
    identity::judge(history, first, &mut found);
    identity::ends(history, first, second, &mut found);
    attempts::judge(history, first, &mut found);
    deeds::judge(history, first, &mut found);
    let histories = order::judge(history, first, &mut found);
    Judgement {
        found,
        operations: history.heard.len(),
        answered: history.heard.iter().filter(|heard| heard.answer.is_acknowledgement()).count(),
        histories,
        executions: history.deeds.iter().filter(|deed| deed.got.is_none()).count(),
        attempts: first.values().map(|stored| stored.attempts.len()).sum(),
    }
}
