//! Runs the suite again and again over stores that nobody broke, and compares the verdicts.

use std::collections::BTreeMap;
use std::time::Instant;

use kagzi_conformance::{Filter, Report, Settings};

use crate::list::Kind;
use crate::stores::postgres::Database;

/// Runs the chore, over one store or over all; whether all rounds agreed and none failed.
pub async fn run(rounds: u32, store: Option<Kind>, settings: Settings, filters: &[String]) -> bool {
    let filter = Filter { containing: filters.to_vec(), ..Filter::default() };
    let mut good = true;
    let kinds = store.map_or(Kind::ALL.to_vec(), |kind| vec![kind]);
    for kind in kinds {
        good &= soak(kind, rounds, settings, &filter).await;
    }
    good
}

async fn soak(kind: Kind, rounds: u32, settings: Settings, filter: &Filter) -> bool {
    let started = Instant::now();
    // By case: how often each verdict was given.
    let mut verdicts: BTreeMap<String, BTreeMap<&'static str, u32>> = BTreeMap::new();
    for round in 1..=rounds {
        // A database a round: each case leaves a schema behind.
        let database = Database::default();
        let report = kagzi_conformance::run(kind.unbroken(&database), filter, settings, |_| {}).await;
        if let Err(error) = database.remove().await {
            println!("{kind}, round {round}: the database could not be removed: {error}");
        }
        let totals = report.totals();
        println!(
            "{kind}, round {round} of {rounds}: {} passed, {} failed, {} not applicable; {} s so far",
            totals.passed,
            totals.failed,
            totals.not_applicable,
            started.elapsed().as_secs()
        );
        if totals.failed > 0 {
            println!("{kind}, round {round}:");
            print_failures(&report);
        }
        for case in &report.cases {
            let name = format!("{}::{}", case.group, case.name);
            *verdicts.entry(name).or_default().entry(case.outcome.as_str()).or_default() += 1;
        }
    }
    let disagreeing: Vec<_> = verdicts.iter().filter(|(_, verdicts)| verdicts.len() > 1).collect();
    for (case, verdicts) in &disagreeing {
        println!("{kind}: {case}: {verdicts:?}");
    }
    let failed = verdicts.values().filter(|verdicts| verdicts.contains_key("failed")).count();
    println!(
        "{kind}: {rounds} rounds of {} cases in {} s: {} disagree, {failed} failed",
        verdicts.len(),
        started.elapsed().as_secs(),
        disagreeing.len()
    );
    let proved = verdicts.values().any(|verdicts| verdicts.contains_key("passed"));
    disagreeing.is_empty() && failed == 0 && proved
}

fn print_failures(report: &Report) {
    for told in report.failures().filter_map(|case| case.outcome.detail()) {
        println!("{told}\n");
    }
}
