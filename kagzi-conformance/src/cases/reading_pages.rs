//! Reading: what later and long pages hold, and all that a listed run tells.

use std::time::Duration;

use kagzi_core::{
    AttemptScope, Failure, ListAttempts, OperationId, PageRequest, Payload, Run, RunFilter, RunId, StartAt,
    StartRun,
};

use super::reading::{all, failed, ids, labels, sorted};
use super::start::full_request;
use crate::case::cases;
use crate::scenario::{LEASE, Scenario, equal, fatal, queue, race, workflow_type};
use crate::violation::{Verdict, Violation};

cases! {
    "reading";
    [12, 13] every_page_keeps_to_every_part_of_the_filter;
    [13] a_page_of_two_thousand_runs_holds_them_or_says_how_to_go_on;
    [5] a_page_of_two_thousand_attempts_holds_them_or_says_how_to_go_on;
    [13] runs_whose_ids_lead_to_one_partition_are_listed_whole;
    [12] a_run_is_listed_and_handed_over_with_all_that_it_was_given;
    [12] a_run_that_is_due_later_is_found_by_when_it_was_created;
}

/// Longer than the pages with which a store is tempted to make do.
const LONG_PAGE: u32 = 2_000;

/// Runs of two queues, types and labels by turns, a millisecond apart.
async fn by_turns(s: &Scenario) -> Result<Vec<Run>, Violation> {
    let mut runs = Vec::new();
    for number in 0..12 {
        let one_of = |every: u32, names: [&'static str; 2]| names[usize::from(number % every == 0)];
        let request = StartRun {
            queue: queue(one_of(2, ["left", "right"]))?,
            workflow_type: workflow_type(one_of(3, ["bill", "ship"]))?,
            labels: labels(&[("place", one_of(4, ["here", "there"]))])?,
            ..s.start_request()
        };
        runs.push(s.run(s.start(request).await?.run_id).await?.run);
        s.turn(Duration::from_millis(1));
    }
    Ok(runs)
}

async fn every_page_keeps_to_every_part_of_the_filter(s: Scenario) -> Verdict {
    let runs = by_turns(&s).await?;
    let none = RunFilter::default;
    let parts = [
        ("queue", RunFilter { queue: Some(queue("right")?), ..none() }),
        ("type", RunFilter { workflow_type: Some(workflow_type("ship")?), ..none() }),
        ("labels", RunFilter { labels: labels(&[("place", "there")])?, ..none() }),
        ("time from which", RunFilter { created_from: Some(runs[6].created_at), ..none() }),
        ("time before which", RunFilter { created_before: Some(runs[6].created_at), ..none() }),
    ];
    for (part, filter) in parts {
        let wanted = runs.iter().rev().filter(|run| filter.matches(run)).map(|run| run.run_id);
        let listed = all(&s, &filter, 1).await?.iter().map(|run| run.run_id).collect();
        let rule = format!("every page keeps to the {part} of the filter, not the first alone [12, 13]");
        equal(&rule, &wanted.collect::<Vec<_>>(), &listed)?;
    }
    Ok(())
}

async fn a_page_of_two_thousand_runs_holds_them_or_says_how_to_go_on(s: Scenario) -> Verdict {
    let mut started = sorted(s.start_many(1_500).await?);
    started.reverse();
    let runs = all(&s, &RunFilter::default(), LONG_PAGE).await?;
    let listed: Vec<RunId> = runs.iter().map(|run| run.run_id).collect();
    equal("a long page holds all runs, or says that more follow [13]", &started.len(), &listed.len())?;
    equal("and they are those that were started, in their order [13]", &started, &listed)
}

async fn a_page_of_two_thousand_attempts_holds_them_or_says_how_to_go_on(s: Scenario) -> Verdict {
    const AT_ONCE: usize = 25;
    const EACH: usize = 41;
    let held = s.held().await?;
    race(AT_ONCE, |number| {
        let held = held.clone();
        async move {
            for step in 0..EACH {
                held.begin(&format!("step-{number}-{step}")).await?;
            }
            Ok(())
        }
    })
    .await?;
    for scope in [AttemptScope::All, AttemptScope::Latest] {
        let (namespace, run_id) = (s.namespace().clone(), held.run_id());
        let mut request = ListAttempts { namespace, run_id, scope, page: PageRequest::first(LONG_PAGE) };
        let mut count = 0;
        loop {
            let page = s.store().list_attempts(&request).await.map_err(failed("listing attempts"))?;
            count += page.items.len();
            request.page.cursor = page.next;
            if request.page.cursor.is_none() {
                break;
            }
        }
        equal("a long page holds all attempts, or says that more follow [5]", &(AT_ONCE * EACH), &count)?;
    }
    Ok(())
}

async fn runs_whose_ids_lead_to_one_partition_are_listed_whole(s: Scenario) -> Verdict {
    // Every number of partitions up to seven divides it: whatever a store spreads its runs over, these stand together.
    const PARTITIONS: u16 = 420;
    const RUNS: usize = 70;
    let operations = std::iter::repeat_with(OperationId::generate);
    let starts = operations.map(|operation| StartRun { operation, ..s.start_request() });
    let alike = starts.filter(|start| start.run_id().partition(PARTITIONS) == 0).take(RUNS);
    let started = s.start_all(alike.collect()).await?.iter().map(|started| started.run_id).collect();
    let found = ids_by(&s, 50).await?;
    let rule = "a listing of runs whose ids lead to one partition has no gap [13]";
    equal(rule, &sorted(started), &sorted(found))
}

async fn ids_by(s: &Scenario, limit: u32) -> Result<Vec<RunId>, Violation> {
    Ok(all(s, &RunFilter::default(), limit).await?.iter().map(|run| run.run_id).collect())
}

async fn a_run_is_listed_and_handed_over_with_all_that_it_was_given(s: Scenario) -> Verdict {
    let request = full_request(&s)?;
    let run_id = s.start(request.clone()).await?.run_id;
    let any = RunFilter::default();
    let listed = || all(&s, &any, 10);
    let started = listed().await?;
    equal("a run that was started is listed", &1, &started.len())?;
    for run in started {
        let told = (&run.labels, &run.trace_context, &run.retry, &run.run_timeout, &run.idempotency_key);
        let given = (
            &request.labels,
            &request.trace_context,
            &request.retry,
            &request.run_timeout,
            &request.idempotency_key,
        );
        equal("a listed run has its labels, trace, policy, timeout and key [12]", &given, &told)?;
    }
    s.turn(LEASE);
    let held = s.claim_one("w1").await?;
    let recorded = s.run(run_id).await?.run;
    equal("a run is handed over with all that is recorded of it [12]", &recorded, &held.claimed.run)?;
    let failure = Failure { details: Some(Payload::json("{\"why\":1}")), ..fatal() };
    held.fail_run(failure.clone()).await?;
    let recorded = s.run(run_id).await?.run;
    equal("a run that failed says why [12]", &Some(failure), &recorded.failure)?;
    equal("and is listed with all that is recorded of it [12]", &vec![recorded], &listed().await?)
}

async fn a_run_that_is_due_later_is_found_by_when_it_was_created(s: Scenario) -> Verdict {
    let created_at = s.now();
    let later = StartRun { start_at: StartAt::After(LEASE), ..s.start_request() };
    let run_id = s.start(later).await?.run_id;
    s.turn(Duration::from_secs(1));
    let (from, before) = (s.now(), Some(s.now()));
    let none = RunFilter::default;
    let asked = [
        ("not among those created after it", RunFilter { created_from: Some(from), ..none() }, vec![]),
        ("but from its moment on", RunFilter { created_from: Some(created_at), ..none() }, vec![run_id]),
        ("and before the next", RunFilter { created_before: before, ..none() }, vec![run_id]),
    ];
    for (where_, filter, expected) in asked {
        let rule = format!("a run is found by its creation, whenever it is due: {where_} [12]");
        equal(&rule, &expected, &ids(&s, &filter).await?)?;
        let count = s.store().count_runs(s.namespace(), &filter).await.map_err(failed("a count"))?;
        equal("and counted by it", &(expected.len() as u64), &count)?;
    }
    Ok(())
}
