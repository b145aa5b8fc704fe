//! Runs cases: opens a store for each, lets it play, and judges.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::case::Case;
use crate::cases::all_cases;
use crate::fixture::Fixture;
use crate::invariant::invariant;
use crate::proof::Witness;
use crate::report::{CaseReport, Outcome, Report};
use crate::scenario::Scenario;
use crate::settings::Settings;
use crate::violation::Proves;

/// A case that has not ended by then hangs: a deadlock of the store, or a machine that is far too slow.
/// No case waits for time, so this is a guard and no measure.
const HUNG: Duration = Duration::from_mins(2);

/// The same for random cases, which play as much as a variable asks for.
const HUNG_AT_RANDOM: Duration = Duration::from_mins(10);

/// How a case failed, to be told with a text.
type Failure = fn(String) -> Outcome;

/// The groups of random cases.
const RANDOM: [&str; 4] = ["history", "model", "fault", "interleaving"];

/// How many cases [`run`] plays at one time.
const AT_ONE_TIME: usize = 4;

/// Which cases to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only cases of these groups; empty: of all.
    pub groups: Vec<String>,
    /// Only cases whose `group::name` contains one of these; empty: all.
    pub containing: Vec<String>,
    /// No cases whose `group::name` contains one of these.
    pub except: Vec<String>,
}

impl Filter {
    /// Whether a case is to run.
    pub fn accepts(&self, case: &Case) -> bool {
        let name = case.full_name();
        let found = |texts: &[String]| texts.iter().any(|text| name.contains(text));
        (self.groups.is_empty() || self.groups.iter().any(|group| group == case.group))
            && (self.containing.is_empty() || found(&self.containing))
            && !found(&self.except)
    }
}

/// Runs the cases that `filter` accepts, the random ones as `settings` ask, and tells `observer` of each as
/// it ends. Take [`Settings::from_environment`], before anything else is done, or the default.
///
/// Needs a multi-threaded tokio runtime: the races of the suite are real ones.
pub async fn run(
    fixture: Arc<dyn Fixture>,
    filter: &Filter,
    settings: Settings,
    mut observer: impl FnMut(&CaseReport) + Send,
) -> Report {
    let cases: Vec<Case> = all_cases().into_iter().filter(|case| filter.accepts(case)).collect();
    let turns = Arc::new(Semaphore::new(AT_ONE_TIME));
    let mut playing = JoinSet::new();
    for (place, case) in cases.iter().cloned().enumerate() {
        let (fixture, turns) = (Arc::clone(&fixture), Arc::clone(&turns));
        playing.spawn(async move {
            // The semaphore is never closed; if it were, the case would only run earlier.
            let _turn = turns.acquire_owned().await.ok();
            (place, run_case(&fixture, &case, settings).await)
        });
    }
    let mut ended = HashMap::new();
    while let Some(joined) = playing.join_next().await {
        if let Ok((place, report)) = joined {
            observer(&report);
            ended.insert(place, report);
        }
    }
    let lost = || Outcome::Unplayed("the task of this case was lost".to_owned());
    let reports = cases
        .iter()
        .enumerate()
        .map(|(place, case)| ended.remove(&place).unwrap_or_else(|| CaseReport::new(case, lost(), None)))
        .collect();
    Report { store: fixture.name(), cases: reports }
}

/// Plays the cases that `filter` accepts over a store, and tells which rules each found kept, in their own
/// words; `None` for a case that failed or does not apply. For those who tend the suite: a case that
/// finds nothing kept but what others find as well may be one too many.
///
/// Needs a multi-threaded tokio runtime, like [`run`].
pub async fn rules_kept(fixture: Arc<dyn Fixture>, filter: &Filter) -> Vec<(Case, Option<BTreeSet<String>>)> {
    let turns = Arc::new(Semaphore::new(AT_ONE_TIME));
    let mut playing = JoinSet::new();
    for (place, case) in all_cases().into_iter().filter(|case| filter.accepts(case)).enumerate() {
        let (fixture, turns) = (Arc::clone(&fixture), Arc::clone(&turns));
        playing.spawn(async move {
            // The semaphore is never closed; if it were, the case would only run earlier.
            let _turn = turns.acquire_owned().await.ok();
            let witness = Witness::default();
            let (outcome, _) = play_case(&fixture, &case, Settings::default(), &witness).await;
            (place, case, (outcome == Outcome::Passed).then(|| witness.rules()))
        });
    }
    let mut all = playing.join_all().await;
    all.sort_unstable_by_key(|(place, ..)| *place);
    all.into_iter().map(|(_, case, rules)| (case, rules)).collect()
}

/// Runs one case on a fresh store.
pub(crate) async fn run_case(fixture: &Arc<dyn Fixture>, case: &Case, settings: Settings) -> CaseReport {
    let (outcome, note) = play_case(fixture, case, settings, &Witness::default()).await;
    CaseReport::new(case, outcome, note)
}

/// How a case ended, and what it has to say about itself.
type Ended = (Outcome, Option<String>);

async fn play_case(fixture: &Arc<dyn Fixture>, case: &Case, settings: Settings, witness: &Witness) -> Ended {
    let patience = if RANDOM.contains(&case.group) { HUNG_AT_RANDOM } else { HUNG };
    play_for(patience, fixture, case, settings, witness).await
}

async fn play_for(
    patience: Duration,
    fixture: &Arc<dyn Fixture>,
    case: &Case,
    settings: Settings,
    witness: &Witness,
) -> Ended {
    if let Some(reason) = case.not_applicable(&fixture.capabilities()) {
        return (Outcome::NotApplicable(reason), None);
    }
    let (scenario, stage) = match Scenario::open(fixture, settings).await {
        Ok(ready) => ready,
        Err(violation) => return (Outcome::Unplayed(violation.to_string()), None),
    };
    // A task of its own, so that a panic in the store fails this case and no other; in a set, so that
    // it ends with whoever runs the case.
    let mut playing = JoinSet::new();
    let (witness, body) = (witness.clone(), case.body(scenario));
    playing.spawn(async move { witness.hear(body).await });
    let failed: Option<(Failure, String)> = match tokio::time::timeout(patience, playing.join_next()).await {
        Ok(Some(Ok(Ok(()))) | None) => None,
        Ok(Some(Ok(Err(violation)))) => {
            let outcome = match violation.proves {
                Proves::Broken => Outcome::Failed,
                Proves::Nothing => Outcome::Unplayed,
            };
            Some((outcome, violation.to_string()))
        }
        Ok(Some(Err(error))) => Some((Outcome::Unplayed, format!("the case or the store panicked: {error}"))),
        Err(_) => {
            playing.abort_all();
            let told = format!("rule      every call ends\nseen      no end after {} s", patience.as_secs());
            Some((Outcome::Hung, told))
        }
    };
    let (calls, note) = (stage.log().render(), stage.log().remarked());
    let discarded = stage.discard().await;
    let outcome = match (failed, discarded) {
        (None, Ok(())) => Outcome::Passed,
        (None, Err(error)) => Outcome::Unplayed(format!("the fixture could not discard the store: {error}")),
        (Some((outcome, told)), _) => {
            let told = calls.with_names(&format!(
                "\ncase      {}{}\n{told}\ncalls\n{}",
                case.full_name(),
                cited(case.invariants),
                calls.text()
            ));
            outcome(told)
        }
    };
    (outcome, note)
}

fn cited(invariants: &[u8]) -> String {
    if invariants.is_empty() {
        return String::new();
    }
    let numbers: Vec<String> = invariants.iter().map(ToString::to_string).collect();
    let rules = invariants
        .iter()
        .filter_map(|number| Some(format!("\ninvariant {number}: {}", invariant(*number)?)))
        .collect::<String>();
    format!("  [invariants {}]{rules}", numbers.join(", "))
}

#[cfg(test)]
mod tests {
    use kagzi_core::memory::MemoryStore;
    use kagzi_core::{Clock, Rules, SharedStore};

    use super::*;
    use crate::fixture::{Capability, FixtureError, Instance};
    use crate::violation::{Verdict, Violation};

    #[derive(Debug)]
    struct Memory;

    #[derive(Debug)]
    struct Opened(SharedStore);

    #[async_trait::async_trait]
    impl Fixture for Memory {
        fn name(&self) -> String {
            "memory".to_owned()
        }

        fn capabilities(&self) -> Vec<Capability> {
            Vec::new()
        }

        async fn open(&self, clock: Arc<dyn Clock>, rules: Rules) -> Result<Box<dyn Instance>, FixtureError> {
            Ok(Box::new(Opened(Arc::new(MemoryStore::new(clock, rules)))))
        }
    }

    impl Instance for Opened {
        fn store(&self) -> SharedStore {
            Arc::clone(&self.0)
        }
    }

    async fn ends<F>(patience: Duration, body: fn(Scenario) -> F) -> Outcome
    where
        F: Future<Output = Verdict> + Send + 'static,
    {
        let fixture: Arc<dyn Fixture> = Arc::new(Memory);
        let case = Case::new("claim", "a_case", &[], &[], move |scenario| Box::pin(body(scenario)));
        play_for(patience, &fixture, &case, Settings::default(), &Witness::default()).await.0
    }

    #[tokio::test]
    async fn a_case_that_passes_may_have_something_to_say() {
        let fixture: Arc<dyn Fixture> = Arc::new(Memory);
        let mut cases = all_cases().into_iter();
        let case = cases.find(|case| case.group == "interleaving").unwrap();
        let CaseReport { outcome, note, .. } = run_case(&fixture, &case, Settings::default()).await;
        assert_eq!(outcome, Outcome::Passed);
        let note = note.unwrap();
        let (states, rest) = note.split_once(' ').unwrap();
        assert!(states.parse::<usize>().unwrap() > 100 && rest.starts_with("states and "), "{note}");
    }

    #[tokio::test]
    async fn each_way_to_end_without_a_proof_is_told_apart() {
        let broken = ends(HUNG, |_| async { Err(Violation::new("a rule", "this", "that")) }).await;
        assert!(matches!(&broken, Outcome::Failed(told) if told.contains("a rule")), "{broken:?}");
        let undecided =
            ends(HUNG, |_| async { Err(Violation::new("a rule", "this", "that").undecided()) }).await;
        assert!(matches!(&undecided, Outcome::Unplayed(told) if told.contains("a rule")), "{undecided:?}");
        let panicked = ends(HUNG, |_| async { panic!("on purpose") }).await;
        assert!(matches!(&panicked, Outcome::Unplayed(told) if told.contains("panicked")), "{panicked:?}");
        let hung = ends(Duration::from_millis(1), |scenario| async move {
            // The scenario stays, as it does with a caller that waits for an answer.
            let _waiting = scenario;
            std::future::pending().await
        });
        let hung = hung.await;
        assert!(matches!(&hung, Outcome::Hung(told) if told.contains("every call ends")), "{hung:?}");
        assert!([broken, undecided, panicked, hung].iter().all(Outcome::is_failure), "none is a proof");
    }
}
