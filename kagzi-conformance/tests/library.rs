//! The suite as a library, and what it says about a store that breaks a rule.

use std::sync::Arc;

use kagzi_conformance::{
    Capability, Filter, Fixture, FixtureError, Instance, Outcome, Report, Settings, Totals, all_cases, run,
};
use kagzi_core::memory::MemoryStore;
use kagzi_core::{Clock, Rules, SharedStore};

/// The reference store, or one that was opened with other rules than it was asked to keep.
#[derive(Debug)]
struct Memory {
    change: fn(&mut Rules),
}

#[derive(Debug)]
struct Opened(MemoryStore);

#[async_trait::async_trait]
impl Fixture for Memory {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    fn capabilities(&self) -> Vec<Capability> {
        Vec::new()
    }

    async fn open(&self, clock: Arc<dyn Clock>, mut rules: Rules) -> Result<Box<dyn Instance>, FixtureError> {
        (self.change)(&mut rules);
        Ok(Box::new(Opened(MemoryStore::new(clock, rules))))
    }
}

impl Instance for Opened {
    fn store(&self) -> SharedStore {
        Arc::new(self.0.clone())
    }
}

async fn judge(change: fn(&mut Rules), containing: &str) -> (Report, usize) {
    let filter = Filter { containing: vec![containing.to_owned()], ..Filter::default() };
    let mut observed = 0;
    let report = run(Arc::new(Memory { change }), &filter, Settings::default(), |_| observed += 1).await;
    (report, observed)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_case_that_is_asked_for_is_reported_and_observed() {
    let (report, observed) = judge(|_| (), "claim::").await;
    let cases = all_cases();
    let asked: Vec<_> = cases.iter().filter(|case| case.group == "claim").collect();
    assert_eq!((report.cases.len(), observed), (asked.len(), asked.len()));
    let needy = asked.iter().filter(|case| !case.needs.is_empty()).count();
    assert!(needy > 0, "this store can do nothing that a case may need");
    let Totals { passed, failed, not_applicable } = report.totals();
    let told = (passed as usize, failed, not_applicable as usize);
    assert_eq!(told, (asked.len() - needy, 0, needy), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_case_that_needs_what_the_store_has_not_is_not_applicable_and_never_passed() {
    let (report, _) = judge(|_| (), "durability::start_is_there").await;
    assert_eq!(report.cases[0].outcome, Outcome::NotApplicable("needs reopening".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_names_the_rule_what_was_expected_and_seen_and_the_calls() {
    let (report, _) = judge(|rules| rules.poison_after = 9, "a_poison_run_becomes_a_dead_letter").await;
    let Outcome::Failed(told) = &report.cases[0].outcome else { panic!("{report}") };
    for part in [
        "case      reap::a_poison_run_becomes_a_dead_letter  [invariants 14]",
        "rule      the one too many is the last [14]",
        "expected  (0, 1)",
        "seen      (1, 0)",
        "    1  start([run#1 in acme/orders of ship, input 11 bytes, Now, op ..",
        "the clock is turned by 30s",
        "claim(acme/orders by w1 for 30s, limit 1, op ..",
        "-> [run#1 token 3 with 0 steps]",
        "reap(10) -> Reaped { woken: 0, leases_expired: 1",
    ] {
        assert!(told.contains(part), "{part} is missing in {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_line_for_collectors_has_the_numbers_of_every_group() {
    let (report, _) = judge(|_| (), "an_empty").await;
    let line: serde_json::Value = serde_json::from_str(&report.to_json_line().unwrap()).unwrap();
    assert_eq!(line["store"], "memory");
    assert_eq!(line["failed"], 0);
    assert_eq!(line["passed"], report.cases.len());
    assert_eq!(line["groups"]["start"]["passed"], 2);
    assert!(!line.to_string().contains('\n'));
}

#[test]
fn case_names_are_unique_and_cite_known_invariants() {
    let mut names: Vec<String> = all_cases().iter().map(kagzi_conformance::Case::full_name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "two cases of one name");
    for case in all_cases() {
        assert!(case.invariants.iter().all(|number| (1..=15).contains(number)), "{case:?}");
    }
}
