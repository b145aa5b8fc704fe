//! The judge: what must be there after a crash, and what may be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kagzi_core::memory::MemoryStore;
use kagzi_core::{
    ListRuns, Namespace, OperationId, PageRequest, Run, RunFilter, RunId, RunState, SharedStore,
    StartOutcome, StartRun, Store, StoreError,
};
use tokio::task::JoinSet;

use super::lapsed::{self, Lapsed};
use super::script::{Rows, Script, length, rules};
use super::writer::WRITERS;
use crate::scenario::differ::{self, Difference, by_name, fields};
use crate::scenario::{Snapshot, equal};
use crate::violation::{Verdict, Violation};

/// What the child said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Acknowledged {
    /// How many operations of each script were acknowledged.
    scripts: BTreeMap<usize, usize>,
    /// How many runs its reaps said that they treated.
    reaped: usize,
}

impl Acknowledged {
    /// Notes a line of the child: `script place`, or `reaped count`.
    pub(super) fn note(&mut self, line: &str) -> Result<(), String> {
        if let Some(count) = line.trim().strip_prefix("reaped ").and_then(|count| count.parse::<usize>().ok())
        {
            self.reaped += count;
            return Ok(());
        }
        let numbers = line
            .trim()
            .split_once(' ')
            .and_then(|(script, place)| Some((script.parse::<usize>().ok()?, place.parse::<usize>().ok()?)));
        let (script, place) = numbers.ok_or_else(|| format!("an unexpected line of the writer: {line:?}"))?;
        let count = self.scripts.entry(script).or_default();
        if *count != place {
            return Err(format!("script {script} acknowledged {place} after {count} operations"));
        }
        *count += 1;
        Ok(())
    }

    /// How many operations of scripts were acknowledged.
    pub(super) fn total(&self) -> usize {
        self.scripts.values().sum()
    }

    /// The scripts of which anything may be there: those acknowledged, and the one that each writer may
    /// have begun after it ended the last.
    fn scripts(&self) -> BTreeMap<usize, usize> {
        let mut scripts = self.scripts.clone();
        for writer in 0..WRITERS {
            let ended = |number: &usize| self.scripts.get(number) == Some(&length(*number));
            let reached = (writer..).step_by(WRITERS).find(|number| !ended(number));
            if let Some(reached) = reached {
                scripts.entry(reached).or_insert(0);
            }
        }
        scripts
    }
}

/// What a store that never crashed holds and answers, operation by operation.
struct Expected {
    /// Before the first operation, and after each.
    rows: Vec<Rows>,
    answers: Vec<String>,
}

fn unanswered(what: &str, error: &StoreError) -> Violation {
    Violation::refused(what, error)
}

async fn expected(script: &Script) -> Result<Expected, Violation> {
    let reference = MemoryStore::new(Arc::new(lapsed::clock()), rules());
    let failed = |error| unanswered("a script over the reference store", &error);
    let mut expected =
        Expected { rows: vec![script.rows(&reference).await.map_err(failed)?], answers: Vec::new() };
    for place in 0..script.len() {
        expected.answers.push(script.send(&reference, place).await.map_err(failed)?);
        expected.rows.push(script.rows(&reference).await.map_err(failed)?);
    }
    Ok(expected)
}

/// One script, how much of it was acknowledged, and what must come of it.
#[derive(Clone)]
struct Part {
    script: Script,
    acknowledged: usize,
    expected: Arc<Expected>,
}

impl Part {
    fn told(&self, violation: &Violation) -> String {
        format!("{violation}\nscript    {}", self.script.describe(self.acknowledged))
    }
}

/// Judges everything that a round left in the store, then plays every script to its end and judges
/// again. Gives the runs of the scripts as they stand at last.
pub(super) async fn judge(
    store: &SharedStore,
    round: &str,
    seed: u64,
    acknowledged: &Acknowledged,
) -> Result<Vec<Run>, String> {
    let mut parts = Vec::new();
    for (number, acknowledged) in acknowledged.scripts() {
        let script = Script::new(round, seed, number).map_err(|error| error.to_string())?;
        let expected = expected(&script).await.map_err(|violation| violation.to_string())?;
        parts.push(Part { script, acknowledged, expected: Arc::new(expected) });
    }
    let first = parts.first().map(|part| part.script.clone()).ok_or("no script was played")?;
    let present = at_one_time(store, &parts, recovered).await?;
    let told = |violation: Violation| violation.to_string();
    let namespace = first.namespace();
    nothing_else(&**store, namespace, present.into_iter().flatten().collect()).await.map_err(told)?;
    at_one_time(store, &parts, goes_on).await?;
    all_runs(&**store, namespace).await.map_err(told)
}

/// The same for the runs that a reaper worked on.
pub(super) async fn judge_lapsed(
    store: &SharedStore,
    lapsed: &Lapsed,
    acknowledged: &Acknowledged,
) -> Result<Vec<Run>, String> {
    let told = |violation: Violation| violation.to_string();
    let present = lapsed.recovered(&**store, acknowledged.reaped).await.map_err(told)?;
    nothing_else(&**store, lapsed.namespace(), present).await.map_err(told)?;
    lapsed.go_on(&**store).await.map_err(told)?;
    all_runs(&**store, lapsed.namespace()).await.map_err(told)
}

/// Does something about every script, all at one time: the store may share commits among them.
async fn at_one_time<T, F>(
    store: &SharedStore,
    parts: &[Part],
    what: impl Fn(SharedStore, Part) -> F,
) -> Result<Vec<T>, String>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Violation>> + Send + 'static,
{
    let mut running = JoinSet::new();
    for part in parts {
        let done = what(Arc::clone(store), part.clone());
        let part = part.clone();
        running.spawn(async move { done.await.map_err(|violation| part.told(&violation)) });
    }
    running.join_all().await.into_iter().collect()
}

/// The rows are those after the last acknowledgement, or those after the operation in flight.
async fn recovered(store: SharedStore, part: Part) -> Result<Vec<Run>, Violation> {
    let Part { script, acknowledged, expected } = part;
    let rows = script.rows(&*store).await.map_err(|e| unanswered("reading after a crash", &e))?;
    let (before, after) = (&expected.rows[acknowledged], expected.rows.get(acknowledged + 1));
    if *before != rows && after != Some(&rows) {
        let beside = |right: &Rows| differ::lines(&differences(right, &rows));
        let mut told =
            vec!["others; beside those after the last acknowledgement:".to_owned(), beside(before)];
        if let Some(after) = after {
            told.extend(["and beside those after what was in flight:".to_owned(), beside(after)]);
        }
        return Err(Violation::new(
            "what was acknowledged is there, and nothing is half there [9, 15]",
            "the rows after the last acknowledgement, or after what was in flight",
            told.join("\n"),
        ));
    }
    Ok(rows.into_iter().flatten().map(|snapshot| snapshot.record.run).collect())
}

/// Where the rows of a script differ: by run, by step and attempt, by field.
fn differences(expected: &Rows, seen: &Rows) -> Vec<Difference> {
    let numbered = |rows: &'_ Rows| -> BTreeMap<usize, Snapshot> {
        rows.iter().cloned().enumerate().filter_map(|(number, row)| Some((number, row?))).collect()
    };
    let name = |number: &usize| if *number == 0 { "run".to_owned() } else { format!("sibling {number}") };
    let brief = |row: &Snapshot| format!("{} with {} attempts", row.record.run.state, row.attempts.len());
    by_name(&numbered(expected), &numbered(seen), name, brief, Snapshot::differences)
}

/// Asserts that two lists hold the same runs, to the last field.
pub(super) fn same_runs(rule: &str, expected: &[Run], seen: &[Run]) -> Verdict {
    if expected == seen {
        return Ok(());
    }
    let by_id =
        |runs: &[Run]| -> BTreeMap<RunId, Run> { runs.iter().map(|run| (run.run_id, run.clone())).collect() };
    let name = |run_id: &RunId| format!("run {run_id}");
    let differing = by_name(&by_id(expected), &by_id(seen), name, |run| run.state.to_string(), fields);
    let (here, there) = if differing.is_empty() {
        (format!("{} runs in their order", expected.len()), format!("{}, or in another order", seen.len()))
    } else {
        differ::sides(&differing)
    };
    Err(Violation::new(rule, here, there))
}

/// The listings and counts hold these runs and no other; each index agrees with the rows.
async fn nothing_else(store: &dyn Store, namespace: &Namespace, mut present: Vec<Run>) -> Verdict {
    let mut listed = all_runs(store, namespace).await?;
    present.sort_by_key(|run| run.run_id);
    listed.sort_by_key(|run| run.run_id);
    same_runs("the listing holds the runs that are there, and no other [9, 15]", &present, &listed)?;
    let failed = |error| unanswered("reading after a crash", &error);
    for state in RunState::ALL {
        let filter = RunFilter { states: vec![state], ..RunFilter::default() };
        let counted = store.count_runs(namespace, &filter).await.map_err(failed)?;
        let there = present.iter().filter(|run| run.state == state).count() as u64;
        equal("the counts agree with the rows [15]", &(state, there), &(state, counted))?;
    }
    let queues = |state| {
        let mut queues = BTreeMap::<_, u64>::new();
        for run in present.iter().filter(|run| run.state == state) {
            *queues.entry(run.queue.clone()).or_default() += 1;
        }
        queues
    };
    let (pending, running, sleeping) =
        (queues(RunState::Pending), queues(RunState::Running), queues(RunState::Sleeping));
    let names: BTreeSet<_> = pending.keys().chain(running.keys()).chain(sleeping.keys()).collect();
    let there: Vec<_> = names
        .into_iter()
        .map(|queue| {
            let count = |of: &BTreeMap<_, u64>| of.get(queue).copied().unwrap_or_default();
            (queue.clone(), count(&pending), count(&sleeping), count(&running))
        })
        .collect();
    let depths = store.queue_depths(namespace).await.map_err(failed)?;
    let seen: Vec<_> =
        depths.into_iter().map(|depth| (depth.queue, depth.pending, depth.sleeping, depth.running)).collect();
    equal("the depths of the queues agree with the rows [15]", &there, &seen)
}

/// The script goes on from its last acknowledgement, sending again what was in flight, and every
/// answer and row is as if nothing had happened.
async fn goes_on(store: SharedStore, part: Part) -> Verdict {
    let Part { script, acknowledged, expected } = part;
    for place in acknowledged..script.len() {
        let answer =
            script.send(&*store, place).await.map_err(|e| unanswered("going on after a crash", &e))?;
        equal("an operation sent again gets its first answer [8]", &expected.answers[place], &answer)?;
    }
    let rows = script.rows(&*store).await.map_err(|e| unanswered("reading after a crash", &e))?;
    let last = expected.rows.last();
    if last != Some(&rows) {
        let (here, there) = differ::sides(&last.map(|last| differences(last, &rows)).unwrap_or_default());
        let rule = "and the end is that of a store that never crashed [8, 9]";
        return Err(Violation::new(rule, here, there));
    }
    keys_stay_bound(&*store, &script).await
}

async fn keys_stay_bound(store: &dyn Store, script: &Script) -> Verdict {
    let failed = |error| unanswered("a start under a bound key", &error);
    let first = script.starts().map_err(failed)?.swap_remove(0);
    let run_id = first.run_id();
    let again = StartRun { operation: OperationId::generate(), ..first };
    let started = store.start(vec![again]).await.map_err(failed)?;
    let seen: Vec<_> = started.iter().map(|started| (started.run_id, started.outcome)).collect();
    equal("the key names its run after a crash [7, 9]", &vec![(run_id, StartOutcome::Existing)], &seen)
}

/// Every run of a namespace, over all pages.
pub(super) async fn all_runs(store: &dyn Store, namespace: &Namespace) -> Result<Vec<Run>, Violation> {
    let mut request = ListRuns {
        namespace: namespace.clone(),
        filter: RunFilter::default(),
        page: PageRequest::first(100),
    };
    let mut runs = Vec::new();
    loop {
        let page = store.list_runs(&request).await.map_err(|e| unanswered("listing after a crash", &e))?;
        runs.extend(page.items);
        match page.next {
            Some(next) => request.page.cursor = Some(next),
            None => return Ok(runs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND: &str = "round-0";
    const SEED: u64 = 7;

    /// A store in which script `number` was played up to `places` operations, and so many acknowledged.
    async fn judged(played: &[(usize, usize)], acknowledged: &[(usize, usize)]) -> Result<Vec<Run>, String> {
        let store: SharedStore = Arc::new(MemoryStore::new(Arc::new(lapsed::clock()), rules()));
        for (number, places) in played {
            let script = Script::new(ROUND, SEED, *number).unwrap();
            for place in 0..*places {
                script.send(&*store, place).await.unwrap();
            }
        }
        let mut said = Acknowledged::default();
        for (number, places) in acknowledged {
            for place in 0..*places {
                said.note(&format!("{number} {place}")).unwrap();
            }
        }
        judge(&store, ROUND, SEED, &said).await
    }

    #[tokio::test]
    async fn what_was_in_flight_may_be_there_or_not() {
        let there = judged(&[(0, 3), (1, 5), (2, 4)], &[(0, 2), (1, 4), (2, 3)]).await.unwrap();
        let not_there = judged(&[(0, 2), (1, 4), (2, 3)], &[(0, 2), (1, 4), (2, 3)]).await.unwrap();
        assert_eq!(there, not_there, "and the end is the same");
        assert_eq!(there.len(), 3 * WRITERS, "every script and its siblings");
    }

    #[tokio::test]
    async fn a_lost_acknowledgement_is_found() {
        for lost in 1..=8 {
            let told = judged(&[(1, lost - 1)], &[(1, lost)]).await.unwrap_err();
            assert!(told.contains("what was acknowledged is there"), "{lost}: {told}");
        }
    }

    #[tokio::test]
    async fn a_write_that_nobody_sent_yet_is_found() {
        let told = judged(&[(0, 4)], &[(0, 2)]).await.unwrap_err();
        assert!(told.contains("nothing is half there"), "{told}");
        // By run, step and field, beside each of the two states that would have been right.
        for part in [
            "beside those after the last acknowledgement:",
            "run, step a, attempt 1: expected none, seen COMPLETED",
            "beside those after what was in flight:",
            "run, step a, attempt 1, state: expected Running, seen Completed",
            "run, step b, attempt 1: expected none, seen RUNNING",
        ] {
            assert!(told.contains(part), "{part} is missing in {told}");
        }
        assert!(!told.contains("sibling") && told.lines().count() < 25, "only what differs: {told}");
    }

    #[tokio::test]
    async fn a_run_that_belongs_to_no_script_is_found() {
        // The ninth script may begin only after the first has ended.
        let told = judged(&[(0, 1), (8, 1)], &[(0, 1)]).await.unwrap_err();
        assert!(told.contains("and no other"), "{told}");
    }

    #[tokio::test]
    async fn a_start_of_which_half_is_there_is_found() {
        let store: SharedStore = Arc::new(MemoryStore::new(Arc::new(lapsed::clock()), rules()));
        let mut starts = Script::new(ROUND, SEED, 0).unwrap().starts().unwrap();
        starts.truncate(2);
        store.start(starts).await.unwrap();
        let told = judge(&store, ROUND, SEED, &Acknowledged::default()).await.unwrap_err();
        assert!(told.contains("nothing is half there"), "{told}");
    }

    #[test]
    fn acknowledgements_out_of_order_are_refused() {
        let mut said = Acknowledged::default();
        said.note("3 0\n").unwrap();
        assert!(
            said.note("3 2").is_err() && said.note("nonsense").is_err() && said.note("reaped x").is_err()
        );
        said.note("reaped 2\n").unwrap();
        said.note("reaped 3\n").unwrap();
        assert_eq!((said.total(), said.reaped), (1, 5));
    }
}
