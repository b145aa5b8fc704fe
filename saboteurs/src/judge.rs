//! Lets the suite meet every saboteur, and tells which cases caught which.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use kagzi_conformance::{CaseReport, Filter, Outcome, Report, Settings};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::arguments::Extent;
use crate::list::{self, Kind, Saboteur};
use crate::reasons;
use crate::stores::postgres::Database;

/// How many stores are judged at one time.
pub const AT_ONE_TIME: usize = 3;

/// How many cases that caught a saboteur are named.
const NAMED: usize = 2;

/// What met whom, and what came of it.
#[derive(Debug)]
struct Judged {
    saboteur: Option<usize>,
    report: Report,
    kind: Kind,
}

/// Runs the chore; whether every saboteur was caught and every unbroken store passed.
pub async fn run(extent: Extent, settings: Settings, filters: &[String]) -> bool {
    let started = Instant::now();
    let database = Database::default();
    let saboteurs: Vec<Saboteur> = list::all(&database)
        .into_iter()
        .filter(|one| filters.is_empty() || filters.iter().any(|filter| one.name.contains(filter)))
        .collect();
    if saboteurs.is_empty() {
        println!("no saboteur's name contains any of {filters:?}; without a name all are judged");
        return false;
    }
    println!("{:<12} {:<62} caught by", "store", "saboteur");
    let judged = judge_all(&database, &saboteurs, extent, settings).await;
    let mut unbroken = judged.iter().filter(|one| one.saboteur.is_none());
    let kinds = Kind::ALL.into_iter().filter(|&kind| saboteurs.iter().any(|one| one.kind == kind)).count();
    // One whose judge died is missing, and has not passed.
    let unbroken_pass = unbroken.clone().count() == kinds && unbroken.all(passed);
    let caught: Vec<(usize, Vec<String>)> = judged
        .iter()
        .filter_map(|one| Some((one.saboteur?, caught_by(&saboteurs[one.saboteur?], &one.report))))
        .filter(|(_, cases)| !cases.is_empty())
        .collect();
    if extent == Extent::Full {
        print_catches(&saboteurs, &caught);
    }
    let contradictions = contradictions(&saboteurs, &judged);
    println!("\nin {} s", started.elapsed().as_secs());
    if !unbroken_pass {
        println!("an unbroken store failed, so nothing is proved");
    }
    for contradiction in &contradictions {
        println!("{contradiction}");
    }
    println!("saboteurs caught {} of {}", caught.len(), saboteurs.len());
    unbroken_pass && caught.len() == saboteurs.len() && contradictions.is_empty()
}

/// Where the table of reasons says of a case that it alone catches one of these, and that is not so.
fn contradictions(saboteurs: &[Saboteur], judged: &[Judged]) -> Vec<String> {
    let reasons = match reasons::read() {
        Ok(reasons) => reasons,
        Err(error) => return vec![error],
    };
    let told = |one: &Judged| {
        let saboteur = saboteurs.get(one.saboteur?)?;
        reasons::contradiction(&reasons, &saboteur.key(), &caught_by(saboteur, &one.report))
    };
    judged.iter().filter_map(told).collect()
}

async fn judge_all(
    database: &Database,
    saboteurs: &[Saboteur],
    extent: Extent,
    settings: Settings,
) -> Vec<Judged> {
    let turns = Arc::new(Semaphore::new(AT_ONE_TIME));
    let mut playing = JoinSet::new();
    let broken = saboteurs.iter().enumerate().map(|(place, one)| {
        (
            Some(place),
            one.kind,
            Arc::clone(&one.fixture),
            if extent == Extent::Full { Filter::default() } else { one.filter() },
        )
    });
    let unbroken = Kind::ALL.into_iter().filter_map(|kind| {
        let meant = meant_for(saboteurs, kind, extent)?;
        Some((None, kind, kind.unbroken(database), meant))
    });
    for (saboteur, kind, fixture, filter) in broken.chain(unbroken) {
        let turns = Arc::clone(&turns);
        playing.spawn(async move {
            // The semaphore is never closed; if it were, the store would only be judged earlier.
            let _turn = turns.acquire_owned().await.ok();
            let report = kagzi_conformance::run(fixture, &filter, settings, |_| {}).await;
            Judged { saboteur, report, kind }
        });
    }
    let mut all = Vec::new();
    while let Some(joined) = playing.join_next().await {
        match joined {
            Ok(judged) => {
                print_row(saboteurs, &judged);
                if extent == Extent::Told && judged.saboteur.is_some() {
                    print_failures(&judged.report);
                }
                all.push(judged);
            }
            Err(error) => println!("a judge died: {error}"),
        }
    }
    all
}

/// What an unbroken store must pass for its saboteurs' failures to mean anything: whatever they meet.
fn meant_for(saboteurs: &[Saboteur], kind: Kind, extent: Extent) -> Option<Filter> {
    let of_kind: Vec<&Saboteur> = saboteurs.iter().filter(|one| one.kind == kind).collect();
    if of_kind.is_empty() {
        return None;
    }
    if extent == Extent::Full {
        return Some(Filter::default());
    }
    let parts: BTreeSet<&str> = of_kind.iter().flat_map(|one| one.meant.iter().copied()).collect();
    Some(Filter { containing: parts.into_iter().map(str::to_owned).collect(), ..Filter::default() })
}

/// The cases that caught a saboteur: those in which it broke a rule. One that could not be played proves
/// nothing: the saboteur may no longer fit the store, and would be caught by whatever it meets. Nor does one
/// that never ended, unless that is the bug.
pub fn caught_by(saboteur: &Saboteur, report: &Report) -> Vec<String> {
    let caught = |case: &&CaseReport| match case.outcome {
        Outcome::Failed(_) => true,
        Outcome::Hung(_) => saboteur.hangs(),
        Outcome::Passed | Outcome::Unplayed(_) | Outcome::NotApplicable(_) => false,
    };
    report.cases.iter().filter(caught).map(|case| format!("{}::{}", case.group, case.name)).collect()
}

/// Why cases failed without catching anything, the first of them.
fn unplayed(report: &Report) -> Option<&str> {
    report.cases.iter().find_map(|case| match &case.outcome {
        Outcome::Unplayed(told) | Outcome::Hung(told) => Some(told.trim()),
        _ => None,
    })
}

fn passed(judged: &Judged) -> bool {
    let totals = judged.report.totals();
    totals.failed == 0 && totals.passed > 0
}

fn print_failures(report: &Report) {
    for told in report.failures().filter_map(|case| case.outcome.detail()) {
        println!("{told}\n");
    }
}

fn print_row(saboteurs: &[Saboteur], judged: &Judged) {
    let saboteur = judged.saboteur.and_then(|place| saboteurs.get(place));
    let failed = match saboteur {
        Some(one) => caught_by(one, &judged.report),
        None => judged.report.failures().map(|case| format!("{}::{}", case.group, case.name)).collect(),
    };
    let named = failed.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = failed.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let count = judged.report.cases.len();
    match saboteur {
        Some(one) if failed.is_empty() => {
            println!("{:<12} {:<62} GOT AWAY from {count} cases", one.kind, one.name);
            if let Some(told) = unplayed(&judged.report) {
                println!("it does not fit the store any more, breaks the case, or only hangs:\n{told}");
            }
        }
        Some(one) => println!("{:<12} {:<62} {named}{more}", one.kind, one.name),
        None if passed(judged) => println!("{:<12} {:<62} passes {count} cases", judged.kind, "(unbroken)"),
        None => {
            println!("{:<12} {:<62} FAILS {named}{more}", judged.kind, "(unbroken)");
            print_failures(&judged.report);
        }
    }
}

/// For each case how many saboteurs it caught, and how many nobody else did.
fn print_catches(saboteurs: &[Saboteur], caught: &[(usize, Vec<String>)]) {
    let mut catches: BTreeMap<&str, (u32, Vec<&str>)> = BTreeMap::new();
    for (place, cases) in caught {
        for case in cases {
            let entry = catches.entry(case).or_default();
            entry.0 += 1;
            if let ([_], Some(saboteur)) = (cases.as_slice(), saboteurs.get(*place)) {
                entry.1.push(saboteur.name);
            }
        }
    }
    println!("\ncase: saboteurs caught; those that no other case caught");
    for (case, (count, alone)) in catches {
        let alone = if alone.is_empty() { String::new() } else { format!("; alone: {}", alone.join(", ")) };
        println!("  {case}: {count}{alone}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch::Patch;
    use crate::stores::memory::Memory;
    use crate::stores::sqlite::{Sqlite, Tampering};

    #[test]
    fn only_a_broken_rule_catches() {
        let one = Saboteur {
            name: "says nothing",
            kind: Kind::Memory,
            meant: &[],
            fixture: Arc::new(Memory::unbroken()),
        };
        let told = || "told".to_owned();
        let outcomes = [
            (Outcome::Passed, false),
            (Outcome::NotApplicable(told()), false),
            (Outcome::Unplayed(told()), false),
            (Outcome::Hung(told()), false),
            (Outcome::Failed(told()), true),
        ];
        for (outcome, catches) in outcomes {
            let (group, name, invariants) = ("claim".to_owned(), "a".to_owned(), Vec::new());
            let case = CaseReport { group, name, invariants, outcome: outcome.clone(), note: None };
            let report = Report { store: "memory".to_owned(), cases: vec![case] };
            assert_eq!(!caught_by(&one, &report).is_empty(), catches, "{outcome:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_saboteur_that_no_longer_fits_the_store_is_not_caught() {
        let rotten = Tampering::Schema(&[Patch { from: "what no schema says", to: "" }]);
        let filter =
            Filter { containing: vec!["claim::the_limit_is_respected".to_owned()], ..Filter::default() };
        for (tampering, told) in [(rotten, true), (Tampering::None, false)] {
            let report =
                kagzi_conformance::run(Arc::new(Sqlite(tampering)), &filter, Settings::default(), |_| {})
                    .await;
            assert_eq!(report.cases.len(), 1);
            assert!(!report.cases.iter().any(|case| matches!(case.outcome, Outcome::Failed(_))));
            assert_eq!(unplayed(&report).is_some(), told, "{report}");
            assert_eq!(report.totals().failed, u32::from(told), "nor has it passed");
        }
    }
}
