//! Reading: runs listed, filtered, counted and paged.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use kagzi_core::{
    Cursor, Labels, ListRuns, Page, PageRequest, Run, RunFilter, RunId, RunState, StartRun, StoreError,
};

use crate::case::cases;
use crate::scenario::{
    Held, LEASE, Scenario, check, equal, fatal, in_turn, invalid, race, refused, run_not_found, under,
    workflow_type,
};
use crate::violation::{Verdict, Violation};

cases! {
    "reading";
    [11] a_run_that_does_not_exist_is_not_found;
    [11] many_runs_are_read_each_as_if_alone;
    [15] a_run_that_is_seen_to_have_completed_has_its_output;
    [13] runs_are_listed_youngest_first_ties_by_id;
    [12] a_listed_run_is_the_recorded_one;
    [12] runs_are_found_by_state;
    [12] runs_are_found_by_type;
    [12] runs_are_found_by_queue;
    [12] runs_are_found_by_labels_all_of_which_must_hold;
    [12] runs_are_found_by_creation_time_from_inclusive_to_exclusive;
    [12] all_filters_together_must_hold;
    [12] counts_agree_with_lists;
    [13] pages_have_no_gap_and_no_repeat;
    [13] pages_have_no_gap_and_no_repeat_while_others_start_runs;
    [13] a_filtered_listing_pages_over_what_it_skips;
    [13] a_page_that_is_exactly_full_is_the_last;
    [12] a_cursor_of_another_filter_is_refused;
    [11] a_cursor_of_another_namespace_is_refused;
    [12] an_invented_cursor_is_refused;
    [12] a_page_of_no_or_too_many_runs_is_refused;
    [] a_count_knows_no_page;
    [] a_page_may_be_longer_or_shorter_than_the_one_before;
}

pub(super) fn failed(what: &'static str) -> impl Fn(StoreError) -> Violation {
    move |error| Violation::refused(what, &error)
}

pub(super) fn listing(s: &Scenario, filter: &RunFilter, limit: u32) -> ListRuns {
    ListRuns { namespace: s.namespace().clone(), filter: filter.clone(), page: PageRequest::first(limit) }
}

pub(super) async fn page(s: &Scenario, request: &ListRuns) -> Result<Page<Run>, Violation> {
    s.store().list_runs(request).await.map_err(failed("a listing"))
}

/// Every run that a filter finds, over pages of `limit`.
pub(super) async fn all(s: &Scenario, filter: &RunFilter, limit: u32) -> Result<Vec<Run>, Violation> {
    let mut request = listing(s, filter, limit);
    let mut runs = Vec::new();
    loop {
        let page = page(s, &request).await?;
        check(page.items.len() <= limit as usize, "a page holds at most its limit", limit, page.items.len())?;
        runs.extend(page.items);
        request.page.cursor = page.next;
        if request.page.cursor.is_none() {
            return Ok(runs);
        }
    }
}

pub(super) async fn ids(s: &Scenario, filter: &RunFilter) -> Result<Vec<RunId>, Violation> {
    Ok(all(s, filter, 100).await?.iter().map(|run| run.run_id).collect())
}

pub(super) fn sorted(mut ids: Vec<RunId>) -> Vec<RunId> {
    ids.sort_unstable();
    ids
}

async fn a_run_that_does_not_exist_is_not_found(s: Scenario) -> Verdict {
    let missing = s.start_request().run_id();
    run_not_found(&s.store().get_run(s.namespace(), missing).await, "a missing run is not found")?;
    run_not_found(&s.store().cancel(s.cancel_request(missing)).await, "nor cancelled")?;
    run_not_found(&s.store().requeue(s.requeue_request(missing)).await, "nor put back to work")
}

async fn many_runs_are_read_each_as_if_alone(s: Scenario) -> Verdict {
    let done = s.held().await?;
    done.complete_run("out").await?;
    let open = s.start(s.start_request()).await?.run_id;
    let missing = s.start_request().run_id();
    let other = s.in_namespace("globex")?;
    let ours = |run_id| (s.namespace().clone(), run_id);
    let foreign = (other.namespace().clone(), done.run_id());
    // In an order that is not the same backwards.
    let wanted = [ours(open), ours(missing), foreign, ours(done.run_id()), ours(open)];
    let records = s.store().get_runs(&wanted).await.map_err(failed("reading many runs"))?;
    equal("a verdict for each that was asked for", &wanted.len(), &records.len())?;
    for ((namespace, run_id), record) in wanted.iter().zip(records) {
        match s.store().get_run(namespace, *run_id).await {
            Ok(alone) => {
                let together = record.map_err(failed("reading a run among many"))?;
                equal("a run among many is the run read alone, in its place [12]", &alone, &together)?;
            }
            Err(_) => run_not_found(&record, "what is not found alone is not found among many [11]")?,
        }
    }
    Ok(())
}

async fn a_run_that_is_seen_to_have_completed_has_its_output(s: Scenario) -> Verdict {
    const RUNS: usize = 50;
    const LOOKERS: usize = 3;
    for number in 0..RUNS {
        let held = s.held().await?;
        let (run_id, complete) = (held.run_id(), held.complete_run_request("1"));
        let look = |completes: bool| {
            let (s, complete) = (s.clone(), complete.clone());
            async move {
                if completes {
                    s.store().complete_run(complete).await.map_err(failed("completing a run"))?;
                }
                loop {
                    let record = s.run(run_id).await?;
                    if record.run.state.is_terminal() {
                        return Ok((
                            record.run.state,
                            record.output.is_some(),
                            record.run.finished_at.is_some(),
                        ));
                    }
                    // A store that answers at once must not keep the writer from its turn.
                    tokio::task::yield_now().await;
                }
            }
        };
        let seen = if number % 2 == 0 {
            race(1 + LOOKERS, |number| look(number == 0)).await?
        } else {
            // All have begun to look before it completes.
            in_turn(LOOKERS + 1, |number| look(number == LOOKERS)).await?
        };
        let whole = (RunState::Completed, true, true);
        equal(
            "whoever sees a run completed sees its output and its end [15]",
            &vec![whole; 1 + LOOKERS],
            &seen,
        )?;
    }
    Ok(())
}

async fn runs_are_listed_youngest_first_ties_by_id(s: Scenario) -> Verdict {
    let mut expected = Vec::new();
    for _ in 0..4 {
        expected.push(sorted(s.start_many(5).await?));
        s.turn(Duration::from_micros(1));
    }
    let expected: Vec<RunId> = expected.concat().into_iter().rev().collect();
    equal("the youngest first, then the larger id", &expected, &ids(&s, &RunFilter::default()).await?)
}

async fn a_listed_run_is_the_recorded_one(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.step("a", "1").await?;
    let recorded = s.run(held.run_id()).await?.run;
    equal(
        "a listing shows what is recorded [12]",
        &vec![recorded],
        &all(&s, &RunFilter::default(), 10).await?,
    )
}

/// A run in every state: (state, id).
async fn every_state(s: &Scenario) -> Result<Vec<(RunState, RunId)>, Violation> {
    let mut found = Vec::new();
    for state in RunState::ALL {
        let queue = s.on_queue(state.as_str())?;
        let run_id = queue.start_one().await?;
        found.push((state, run_id));
        if state == RunState::Pending {
            continue;
        }
        let held = queue.claim_one("w1").await?;
        match state {
            RunState::Sleeping => drop(held.sleep("nap", LEASE).await?),
            RunState::Completed => held.complete_run("1").await?,
            RunState::Failed => drop(held.fail_run(fatal()).await?),
            RunState::Cancelled => drop(s.cancel(run_id).await?),
            RunState::Pending | RunState::Running => {}
        }
    }
    Ok(found)
}

async fn runs_are_found_by_state(s: Scenario) -> Verdict {
    let runs = every_state(&s).await?;
    for (state, run_id) in &runs {
        let filter = RunFilter { states: vec![*state], ..RunFilter::default() };
        equal(&format!("{state} runs, and no others"), &vec![*run_id], &ids(&s, &filter).await?)?;
    }
    let two = RunFilter { states: vec![RunState::Completed, RunState::Running], ..RunFilter::default() };
    let expected = runs.iter().filter(|(state, _)| two.states.contains(state)).map(|(_, id)| *id).collect();
    equal("several states are any of them", &sorted(expected), &sorted(ids(&s, &two).await?))?;
    equal("no state is every state", &6, &ids(&s, &RunFilter::default()).await?.len())
}

async fn runs_are_found_by_type(s: Scenario) -> Verdict {
    s.start_one().await?;
    let bill = StartRun { workflow_type: workflow_type("bill")?, ..s.start_request() };
    let run_id = s.start(bill).await?.run_id;
    let filter = RunFilter { workflow_type: Some(workflow_type("bill")?), ..RunFilter::default() };
    equal("runs of the type, and no others", &vec![run_id], &ids(&s, &filter).await?)?;
    let none = RunFilter { workflow_type: Some(workflow_type("Bill")?), ..RunFilter::default() };
    equal("to the letter", &Vec::new(), &ids(&s, &none).await?)
}

async fn runs_are_found_by_queue(s: Scenario) -> Verdict {
    s.start_one().await?;
    let other = s.on_queue("other")?;
    let run_id = other.start_one().await?;
    let filter = RunFilter { queue: Some(other.start_request().queue), ..RunFilter::default() };
    equal("runs of the queue, and no others", &vec![run_id], &ids(&s, &filter).await?)
}

pub(super) fn labels(pairs: &[(&str, &str)]) -> Result<Labels, Violation> {
    let map: BTreeMap<String, String> =
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Labels::new(map).map_err(failed("making labels"))
}

async fn runs_are_found_by_labels_all_of_which_must_hold(s: Scenario) -> Verdict {
    let odd = "50% \"off\" \\ 'x' {} $.a";
    let both = s
        .start(StartRun { labels: labels(&[("a", "1"), ("b.c/d", odd)])?, ..s.start_request() })
        .await?
        .run_id;
    let one = s.start(StartRun { labels: labels(&[("a", "1")])?, ..s.start_request() }).await?.run_id;
    s.start(StartRun { labels: labels(&[("a", "2"), ("A", "1")])?, ..s.start_request() }).await?;
    s.start_one().await?;
    let find = async |pairs: &[(&str, &str)]| {
        let filter = RunFilter { labels: labels(pairs)?, ..RunFilter::default() };
        Ok::<_, Violation>(sorted(ids(&s, &filter).await?))
    };
    equal("runs with the label", &sorted(vec![both, one]), &find(&[("a", "1")]).await?)?;
    equal("runs with all of the labels", &vec![both], &find(&[("a", "1"), ("b.c/d", odd)]).await?)?;
    equal("a value is compared whole", &Vec::new(), &find(&[("b.c/d", "50%")]).await?)?;
    equal("an empty value is no wild card", &Vec::new(), &find(&[("a", "")]).await?)
}

async fn runs_are_found_by_creation_time_from_inclusive_to_exclusive(s: Scenario) -> Verdict {
    let mut started = Vec::new();
    for _ in 0..4 {
        started.push((s.now(), s.start_one().await?));
        s.turn(Duration::from_micros(1));
    }
    let filter = RunFilter {
        created_from: Some(started[1].0),
        created_before: Some(started[3].0),
        ..RunFilter::default()
    };
    equal("from inclusive, before exclusive", &vec![started[2].1, started[1].1], &ids(&s, &filter).await?)?;
    let from = RunFilter { created_from: Some(started[3].0), ..RunFilter::default() };
    equal("each end alone", &vec![started[3].1], &ids(&s, &from).await?)?;
    let before = RunFilter { created_before: Some(started[1].0), ..RunFilter::default() };
    equal("each end alone", &vec![started[0].1], &ids(&s, &before).await?)
}

/// Runs that differ in one thing each from what [`narrow`] asks for, and one that does not.
async fn nearly(s: &Scenario) -> Result<(RunFilter, RunId), Violation> {
    let other = s.on_queue("other")?;
    let wanted = StartRun {
        workflow_type: workflow_type("bill")?,
        labels: labels(&[("k", "v"), ("more", "1")])?,
        ..other.start_request()
    };
    let fresh = || StartRun { operation: kagzi_core::OperationId::generate(), ..wanted.clone() };
    s.start(fresh()).await?;
    s.turn(Duration::from_secs(1));
    let from = s.now();
    s.start(StartRun { queue: s.start_request().queue, ..fresh() }).await?;
    s.start(StartRun { workflow_type: workflow_type("ship")?, ..fresh() }).await?;
    s.start(StartRun { labels: labels(&[("k", "w")])?, ..fresh() }).await?;
    let cancelled = s.start(fresh()).await?.run_id;
    s.cancel(cancelled).await?;
    let run_id = s.start(fresh()).await?.run_id;
    s.turn(Duration::from_secs(1));
    let before = s.now();
    s.start(fresh()).await?;
    let filter = RunFilter {
        states: vec![RunState::Pending],
        workflow_type: Some(wanted.workflow_type),
        queue: Some(wanted.queue),
        labels: labels(&[("k", "v")])?,
        created_from: Some(from),
        created_before: Some(before),
    };
    Ok((filter, run_id))
}

async fn all_filters_together_must_hold(s: Scenario) -> Verdict {
    let (filter, run_id) = nearly(&s).await?;
    equal("every part of a filter must hold", &vec![run_id], &ids(&s, &filter).await?)
}

async fn counts_agree_with_lists(s: Scenario) -> Verdict {
    let (narrow, _) = nearly(&s).await?;
    every_state(&s).await?;
    let filters = [
        narrow.clone(),
        RunFilter::default(),
        RunFilter { states: vec![RunState::Pending, RunState::Failed], ..RunFilter::default() },
        RunFilter { labels: narrow.labels.clone(), ..RunFilter::default() },
        RunFilter { queue: narrow.queue.clone(), created_from: narrow.created_from, ..RunFilter::default() },
        RunFilter { workflow_type: Some(workflow_type("unknown")?), ..RunFilter::default() },
    ];
    for filter in filters {
        let count = s.store().count_runs(s.namespace(), &filter).await.map_err(failed("a count"))?;
        equal("a count is the length of the listing", &(ids(&s, &filter).await?.len() as u64), &count)?;
    }
    Ok(())
}

async fn pages_have_no_gap_and_no_repeat(s: Scenario) -> Verdict {
    // All of one moment, so that only the id tells them apart.
    let started = sorted(s.start_many(50).await?);
    for limit in [1, 7, 49, 50, 51] {
        let listed: Vec<RunId> =
            all(&s, &RunFilter::default(), limit).await?.iter().map(|run| run.run_id).collect();
        let expected: Vec<RunId> = started.iter().rev().copied().collect();
        equal("pages go on where the last one ended, on ties too [13]", &expected, &listed)?;
    }
    Ok(())
}

async fn pages_have_no_gap_and_no_repeat_while_others_start_runs(s: Scenario) -> Verdict {
    let mut before = Vec::new();
    for _ in 0..6 {
        before.extend(s.start_many(5).await?);
        s.turn(Duration::from_secs(1));
    }
    let mut request = listing(&s, &RunFilter::default(), 4);
    let mut seen = Vec::new();
    loop {
        let page = page(&s, &request).await?;
        seen.extend(page.items.iter().map(|run| run.run_id));
        request.page.cursor = page.next;
        if request.page.cursor.is_none() {
            break;
        }
        s.start_many(3).await?;
        s.turn(Duration::from_secs(1));
        s.cancel(before[seen.len() % before.len()]).await?;
    }
    let distinct: HashSet<RunId> = seen.iter().copied().collect();
    equal("no run is listed twice [13]", &distinct.len(), &seen.len())?;
    let missing: Vec<RunId> = before.into_iter().filter(|run_id| !distinct.contains(run_id)).collect();
    equal("no run that was there is left out [13]", &Vec::new(), &missing)
}

async fn a_filtered_listing_pages_over_what_it_skips(s: Scenario) -> Verdict {
    let mut wanted = Vec::new();
    for number in 0..40 {
        let run_id = s.start_one().await?;
        if number % 9 == 0 {
            s.cancel(run_id).await?;
            wanted.push(run_id);
        }
        s.turn(Duration::from_micros(1));
    }
    wanted.reverse();
    let filter = RunFilter { states: vec![RunState::Cancelled], ..RunFilter::default() };
    let listed: Vec<RunId> = all(&s, &filter, 2).await?.iter().map(|run| run.run_id).collect();
    equal("what a filter skips costs no page [13]", &wanted, &listed)
}

async fn a_page_that_is_exactly_full_is_the_last(s: Scenario) -> Verdict {
    s.start_many(6).await?;
    let first = page(&s, &listing(&s, &RunFilter::default(), 6)).await?;
    equal("there is no page after the last run", &(6, None), &(first.items.len(), first.next))?;
    let none = page(&s.in_namespace("empty")?, &listing(&s.in_namespace("empty")?, &RunFilter::default(), 6))
        .await?;
    equal("nor after none", &(0, None), &(none.items.len(), none.next))
}

async fn cursor(s: &Scenario) -> Result<Cursor, Violation> {
    s.start_many(3).await?;
    let first = page(s, &listing(s, &RunFilter::default(), 1)).await?;
    first.next.ok_or_else(|| Violation::new("a full page says how to go on", "a cursor", "none"))
}

async fn refuses(s: &Scenario, mut request: ListRuns, cursor: Cursor) -> Verdict {
    request.page.cursor = Some(cursor);
    refused(&s.store().list_runs(&request).await, "BAD_CURSOR", "a cursor is good for its own listing only")
}

async fn a_cursor_of_another_filter_is_refused(s: Scenario) -> Verdict {
    let cursor = cursor(&s).await?;
    let filter = RunFilter { states: vec![RunState::Pending], ..RunFilter::default() };
    under("a cursor of another filter is refused", refuses(&s, listing(&s, &filter, 1), cursor).await)
}

async fn a_cursor_of_another_namespace_is_refused(s: Scenario) -> Verdict {
    let cursor = cursor(&s).await?;
    let other = s.in_namespace("globex")?;
    under(
        "a cursor of another namespace is refused [11]",
        refuses(&other, listing(&other, &RunFilter::default(), 1), cursor).await,
    )
}

async fn an_invented_cursor_is_refused(s: Scenario) -> Verdict {
    let good = cursor(&s).await?;
    let damaged = format!("{}A", &good.as_str()[..good.as_str().len() - 1]);
    for text in ["", "0", "null", "' OR 1=1 --", "AAAAAAAAAAAAAAAA", "ü", &damaged] {
        if text != good.as_str() {
            let answer = refuses(&s, listing(&s, &RunFilter::default(), 1), Cursor::from_text(text)).await;
            under("an invented cursor is refused", answer)?;
        }
    }
    Ok(())
}

async fn a_page_of_no_or_too_many_runs_is_refused(s: Scenario) -> Verdict {
    let held: Held = s.held().await?;
    for limit in [0, 10_001, u32::MAX] {
        let request = listing(&s, &RunFilter::default(), limit);
        invalid(&s.store().list_runs(&request).await, "page.limit", "a page holds 1 to 10,000 runs")?;
        let request = kagzi_core::ListAttempts {
            namespace: s.namespace().clone(),
            run_id: held.run_id(),
            scope: kagzi_core::AttemptScope::All,
            page: PageRequest::first(limit),
        };
        invalid(&s.store().list_attempts(&request).await, "page.limit", "or attempts")?;
    }
    Ok(())
}

async fn a_count_knows_no_page(s: Scenario) -> Verdict {
    /// More than a backend is tempted to look through.
    const MANY_RUNS: usize = 2_100;
    for _ in 0..3 {
        s.start_many(MANY_RUNS / 3).await?;
    }
    let count = s.store().count_runs(s.namespace(), &RunFilter::default()).await;
    let count = count.map_err(|e| Violation::refused("a count", &e))?;
    equal("a count goes beyond any page", &(MANY_RUNS as u64), &count)
}

async fn a_page_may_be_longer_or_shorter_than_the_one_before(s: Scenario) -> Verdict {
    s.start_many(12).await?;
    let all = ids(&s, &RunFilter::default()).await?;
    let (mut cursor, mut read) = (None, Vec::new());
    for limit in [2, 5, 1, 4] {
        let page = PageRequest { limit, cursor };
        let list = ListRuns { namespace: s.namespace().clone(), filter: RunFilter::default(), page };
        let page = s.store().list_runs(&list).await.map_err(failed("a listing"))?;
        equal("each page is as long as it was asked for", &(limit as usize), &page.items.len())?;
        read.extend(page.items.iter().map(|run| run.run_id));
        cursor = page.next;
    }
    equal("and pages of different lengths have no gap and no repeat", &all, &read)
}
