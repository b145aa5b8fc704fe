//! Starting runs.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use kagzi_core::{
    FencingToken, IdempotencyKey, Labels, OperationId, Payload, Priority, RetryPolicy, RunState, StartAt,
    StartOutcome, StartRun, StoreError, Timestamp,
};

use crate::case::cases;
use crate::scenario::{
    Scenario, check, equal, fatal, operation_conflict, race, refused, under, workflow_type,
};
use crate::violation::{Verdict, Violation};

cases! {
    "start";
    [15] creates_a_pending_run_that_is_due_now;
    [12] everything_that_was_given_comes_back_as_it_was;
    [12] an_empty_input_is_kept_as_empty;
    [10] a_delayed_run_is_not_claimable_before_its_time;
    [10] a_moment_in_the_past_is_due_at_once;
    [10] a_due_moment_at_the_end_of_time_is_kept;
    [15] a_timeout_counts_from_the_due_time;
    [7] the_same_key_and_request_name_one_run;
    [7] a_key_finds_its_run_even_with_another_due_time_or_trace;
    [7] the_same_key_with_another_input_conflicts_and_says_so;
    [7] the_same_key_with_another_content_type_conflicts;
    [7] the_same_key_with_another_type_conflicts_and_says_so;
    [7] the_same_key_with_another_queue_conflicts_and_says_so;
    [7] every_difference_under_a_key_is_named;
    [7, 15] a_conflict_leaves_the_first_run_untouched;
    [7, 11] the_same_key_in_another_namespace_is_another_run;
    [6, 7] a_key_stays_bound_after_the_run_completed;
    [6, 7] a_key_stays_bound_after_the_run_failed;
    [6, 7] a_key_stays_bound_after_the_run_was_cancelled;
    [7] thirty_two_concurrent_starts_with_one_key_make_one_run;
    [7] concurrent_starts_with_one_key_over_two_handles_make_one_run needs SecondHandle;
    [7] concurrent_different_requests_under_one_key_make_one_run_and_conflicts;
    [8] the_same_operation_again_gives_the_same_run_and_makes_no_second;
    [8] the_same_operation_again_after_the_run_finished_gives_the_same_run;
    [8] the_same_operation_with_another_input_is_refused;
    [8] thirty_two_concurrent_repeats_of_one_operation_make_one_run;
    [8, 11] the_same_operation_in_another_namespace_is_another_run;
    [7] without_a_key_every_start_is_a_new_run;
}

pub(super) fn keyed(s: &Scenario, key: &str) -> Result<StartRun, Violation> {
    let key = IdempotencyKey::new(key).map_err(|error| Violation::refused("making a key", &error))?;
    Ok(StartRun { idempotency_key: Some(key), ..s.start_request() })
}

/// The request again, as another caller would send it.
pub(super) fn again(request: &StartRun) -> StartRun {
    StartRun { operation: OperationId::generate(), ..request.clone() }
}

async fn creates_a_pending_run_that_is_due_now(s: Scenario) -> Verdict {
    let request = s.start_request();
    let started = s.start(request.clone()).await?;
    equal("a start creates the run of its operation [8]", &request.run_id(), &started.run_id)?;
    equal("a start says that it created the run", &StartOutcome::Created, &started.outcome)?;
    let record = s.run(started.run_id).await?;
    let run = &record.run;
    equal("a started run is PENDING", &RunState::Pending, &run.state)?;
    equal("a started run is due now", &s.now(), &run.due_at)?;
    equal("creation takes the store's time", &(s.now(), s.now()), &(run.created_at, run.updated_at))?;
    equal("a started run was never claimed", &(0, FencingToken::NONE), &(run.claims, run.fencing_token))?;
    let held = (&run.worker_id, &run.lease_expires_at, &run.claim_operation);
    check(held == (&None, &None, &None), "a started run is held by nobody [1]", "no lease", held)?;
    check(
        record.output.is_none() && run.finished_at.is_none(),
        "a started run has no end",
        "no end",
        &record,
    )?;
    equal("a started run has no history", &Vec::new(), &s.attempts(started.run_id).await?)
}

/// A start that says everything that a start can say.
pub(super) fn full_request(s: &Scenario) -> Result<StartRun, Violation> {
    let labels = BTreeMap::from([
        ("region".to_owned(), "eu/central 'one'".to_owned()),
        ("empty".to_owned(), String::new()),
        ("script".to_owned(), "نص 🦀".to_owned()),
    ]);
    let invalid = |error: StoreError| Violation::refused("making a request", &error);
    Ok(StartRun {
        input: Payload::raw(vec![0, 255, 0xC3, 0x28, 0]),
        priority: Priority::new(7).map_err(invalid)?,
        start_at: StartAt::After(Duration::from_micros(1_500_001)),
        run_timeout: Some(Duration::from_micros(3_600_000_001)),
        retry: Some(RetryPolicy {
            max_attempts: u32::MAX,
            first_delay: Duration::from_micros(1),
            factor: 1.1,
            max_delay: Duration::from_hours(24),
            jitter: 0.3,
            non_retryable_codes: vec!["a".to_owned(), "b 'c'".to_owned()],
        }),
        labels: Labels::new(labels).map_err(invalid)?,
        trace_context: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        ..keyed(s, "order/1 \"x\"; --")?
    })
}

async fn everything_that_was_given_comes_back_as_it_was(s: Scenario) -> Verdict {
    let request = full_request(&s)?;
    let run_id = s.start(request.clone()).await?.run_id;
    let record = s.run(run_id).await?;
    let run = record.run;
    equal("a payload comes back to the byte [12]", &request.input.bytes, &record.input.bytes)?;
    equal("so does its content type [12]", &request.input.content_type, &record.input.content_type)?;
    equal("namespace as given", &request.namespace, &run.namespace)?;
    equal("queue as given", &request.queue, &run.queue)?;
    equal("workflow type as given", &request.workflow_type, &run.workflow_type)?;
    equal("priority as given", &request.priority, &run.priority)?;
    equal("timeout as given", &request.run_timeout, &run.run_timeout)?;
    equal("retry policy as given", &request.retry, &run.retry)?;
    equal("labels as given", &request.labels, &run.labels)?;
    equal("trace context as given", &request.trace_context, &run.trace_context)?;
    equal("key as given", &request.idempotency_key, &run.idempotency_key)?;
    let due_at = s.now().saturating_add(Duration::from_micros(1_500_001));
    equal("due to the microsecond", &due_at, &run.due_at)?;
    s.turn(Duration::from_secs(2));
    let held = s.claim_one("w1").await?;
    equal("a claim hands the same input over [12]", &request.input, &held.claimed.input)?;
    equal("and the same labels", &request.labels, &held.claimed.run.labels)?;
    equal("and the same retry policy", &request.retry, &held.claimed.run.retry)
}

async fn an_empty_input_is_kept_as_empty(s: Scenario) -> Verdict {
    let request = StartRun { input: Payload::empty(), ..s.start_request() };
    let run_id = s.start(request).await?.run_id;
    equal("no bytes are a payload too [12]", &Payload::empty(), &s.run(run_id).await?.input)
}

async fn a_delayed_run_is_not_claimable_before_its_time(s: Scenario) -> Verdict {
    let delay = Duration::from_secs(90);
    let request = StartRun { start_at: StartAt::After(delay), ..s.start_request() };
    let run_id = s.start(request).await?.run_id;
    equal("a delayed run is SLEEPING", &RunState::Sleeping, &s.run(run_id).await?.run.state)?;
    s.nothing_claimable("a delayed run waits for its time [10]").await?;
    s.turn_almost(delay);
    s.nothing_claimable("a microsecond before its time it still waits [10]").await?;
    s.turn(Duration::from_micros(1));
    equal("at its time it is claimable [10]", &run_id, &s.claim_one("w1").await?.run_id())
}

async fn a_moment_in_the_past_is_due_at_once(s: Scenario) -> Verdict {
    let request = StartRun { start_at: StartAt::At(Timestamp::MIN), ..s.start_request() };
    let run_id = s.start(request).await?.run_id;
    equal("a past moment counts as now", &s.now(), &s.run(run_id).await?.run.due_at)?;
    equal("and is claimable at once [10]", &run_id, &s.claim_one("w1").await?.run_id())
}

async fn a_due_moment_at_the_end_of_time_is_kept(s: Scenario) -> Verdict {
    let request = StartRun { start_at: StartAt::At(Timestamp::MAX), ..s.start_request() };
    let run_id = s.start(request).await?.run_id;
    equal("the last moment is kept", &Timestamp::MAX, &s.run(run_id).await?.run.due_at)?;
    s.nothing_claimable("and is not yet due [10]").await?;
    s.set_clock(Timestamp::MAX);
    equal("until it comes [10]", &run_id, &s.claim_one("w1").await?.run_id())
}

async fn a_timeout_counts_from_the_due_time(s: Scenario) -> Verdict {
    let (delay, timeout) = (Duration::from_secs(100), Duration::from_secs(50));
    let request =
        StartRun { start_at: StartAt::After(delay), run_timeout: Some(timeout), ..s.start_request() };
    let run_id = s.start(request).await?.run_id;
    let deadline = s.now().saturating_add(delay + timeout);
    equal("the deadline is due time plus timeout", &Some(deadline), &s.run(run_id).await?.run.deadline_at)
}

async fn the_same_key_and_request_name_one_run(s: Scenario) -> Verdict {
    let request = keyed(&s, "k")?;
    let first = s.start(request.clone()).await?;
    s.turn(Duration::from_secs(5));
    let second = s.start(again(&request)).await?;
    equal("one key names one run [7]", &first.run_id, &second.run_id)?;
    equal("the second start says that it existed", &StartOutcome::Existing, &second.outcome)?;
    equal("nothing else was made", &1, &s.claim("w1", 10).await?.len())
}

async fn a_key_finds_its_run_even_with_another_due_time_or_trace(s: Scenario) -> Verdict {
    let request = keyed(&s, "k")?;
    let first = s.start(request.clone()).await?;
    let later = StartRun {
        start_at: StartAt::After(Duration::from_secs(9)),
        trace_context: Some("00-1-2-01".to_owned()),
        ..again(&request)
    };
    equal("due time and trace may differ [7]", &first.run_id, &s.start(later).await?.run_id)
}

/// Starts `request` under a key, then something else under the same key.
async fn conflict(s: &Scenario, change: impl FnOnce(&mut StartRun), differs: &[&str]) -> Verdict {
    let request = keyed(s, "k")?;
    let first = s.start(request.clone()).await?;
    let before = s.snapshot(first.run_id).await?;
    let mut other = again(&request);
    change(&mut other);
    let answer = s.store().start(vec![other]).await;
    let rule = "a different request under the same key is a conflict that says so [7]";
    refused(&answer, "IDEMPOTENCY_CONFLICT", rule)?;
    if let Err(StoreError::IdempotencyConflict { run_id, differs: found, key }) = answer {
        equal("the conflict names the run [7]", &first.run_id, &run_id)?;
        equal("the conflict names the key [7]", &"k", &key.as_str())?;
        equal("the conflict names what differs [7]", &differs.to_vec(), &found)?;
    }
    s.unchanged(&before, "a conflict changes nothing [15]").await
}

async fn the_same_key_with_another_input_conflicts_and_says_so(s: Scenario) -> Verdict {
    under(
        "another input under a key is a conflict that names it [7]",
        conflict(&s, |other| other.input = Payload::json("{\"order\":2}"), &["input"]).await,
    )
}

async fn the_same_key_with_another_content_type_conflicts(s: Scenario) -> Verdict {
    under(
        "another content type under a key is a conflict that names the input [7]",
        conflict(&s, |other| other.input = Payload::raw(other.input.bytes.clone()), &["input"]).await,
    )
}

async fn the_same_key_with_another_type_conflicts_and_says_so(s: Scenario) -> Verdict {
    let other_type = workflow_type("bill")?;
    under(
        "another workflow type under a key is a conflict that names it [7]",
        conflict(&s, |other| other.workflow_type = other_type, &["workflow_type"]).await,
    )
}

async fn the_same_key_with_another_queue_conflicts_and_says_so(s: Scenario) -> Verdict {
    let elsewhere = s.on_queue("elsewhere")?.start_request().queue;
    under(
        "another queue under a key is a conflict that names it [7]",
        conflict(&s, |other| other.queue = elsewhere, &["queue"]).await,
    )
}

async fn every_difference_under_a_key_is_named(s: Scenario) -> Verdict {
    let changed = full_request(&s)?;
    let change = |other: &mut StartRun| {
        other.priority = changed.priority;
        other.run_timeout = changed.run_timeout;
        other.retry = changed.retry;
        other.labels = changed.labels;
    };
    under(
        "a conflict names every difference, not the first one [7]",
        conflict(&s, change, &["priority", "run_timeout", "retry_policy", "labels"]).await,
    )
}

async fn a_conflict_leaves_the_first_run_untouched(s: Scenario) -> Verdict {
    let request = keyed(&s, "k")?;
    s.start(request.clone()).await?;
    let held = s.claim_one("w1").await?;
    held.begin("a").await?;
    let before = held.snapshot().await?;
    let other = StartRun { input: Payload::empty(), ..again(&request) };
    refused(&s.store().start(vec![other]).await, "IDEMPOTENCY_CONFLICT", "another input conflicts [7]")?;
    s.unchanged(&before, "a conflict changes nothing, even while the run is held [15]").await
}

async fn the_same_key_in_another_namespace_is_another_run(s: Scenario) -> Verdict {
    let other = s.in_namespace("globex")?;
    let first = s.start(keyed(&s, "k")?).await?;
    let second = other.start(StartRun { input: Payload::empty(), ..keyed(&other, "k")? }).await?;
    equal("a key belongs to its namespace [11]", &StartOutcome::Created, &second.outcome)?;
    check(first.run_id != second.run_id, "two namespaces, two runs [11]", "two runs", first.run_id)?;
    equal("each sees its own [11]", &Payload::empty(), &other.run(second.run_id).await?.input)
}

async fn stays_bound(s: &Scenario, request: &StartRun, first: kagzi_core::RunId, state: RunState) -> Verdict {
    equal("the run has ended", &state, &s.run(first).await?.run.state)?;
    let before = s.snapshot(first).await?;
    let second = s.start(again(request)).await?;
    equal("a key stays bound for ever [7]", &first, &second.run_id)?;
    equal("and the start says so [7]", &StartOutcome::Existing, &second.outcome)?;
    s.unchanged(&before, "a finished run is not started again [6]").await
}

async fn a_key_stays_bound_after_the_run_completed(s: Scenario) -> Verdict {
    let request = keyed(&s, "k")?;
    let first = s.start(request.clone()).await?.run_id;
    s.claim_one("w1").await?.complete_run("1").await?;
    under(
        "a key stays bound after its run completed [7]",
        stays_bound(&s, &request, first, RunState::Completed).await,
    )
}

async fn a_key_stays_bound_after_the_run_failed(s: Scenario) -> Verdict {
    let request = keyed(&s, "k")?;
    let first = s.start(request.clone()).await?.run_id;
    s.claim_one("w1").await?.fail_run(fatal()).await?;
    under(
        "a key stays bound after its run failed [7]",
        stays_bound(&s, &request, first, RunState::Failed).await,
    )
}

async fn a_key_stays_bound_after_the_run_was_cancelled(s: Scenario) -> Verdict {
    let request = keyed(&s, "k")?;
    let first = s.start(request.clone()).await?.run_id;
    s.cancel(first).await?;
    under(
        "a key stays bound after its run was cancelled [7]",
        stays_bound(&s, &request, first, RunState::Cancelled).await,
    )
}

async fn thirty_two_concurrent_starts_with_one_key_make_one_run(s: Scenario) -> Verdict {
    under("concurrent starts with one key make one run [7]", one_run_of_a_race(&s, &s).await)
}

async fn concurrent_starts_with_one_key_over_two_handles_make_one_run(s: Scenario) -> Verdict {
    let second = s.second_handle().await?;
    under(
        "concurrent starts with one key over two handles make one run [7]",
        one_run_of_a_race(&s, &second).await,
    )
}

async fn one_run_of_a_race(first: &Scenario, second: &Scenario) -> Verdict {
    let request = keyed(first, "k")?;
    let answers = race(32, |number| {
        let s = if number % 2 == 0 { first.clone() } else { second.clone() };
        let request = again(&request);
        async move { s.start(request).await }
    })
    .await?;
    let runs: HashSet<_> = answers.iter().map(|started| started.run_id).collect();
    equal("one key names one run, however many start it [7]", &1, &runs.len())?;
    let created = answers.iter().filter(|started| started.outcome == StartOutcome::Created).count();
    equal("exactly one of them created it [7]", &1, &created)?;
    equal("and one run is there", &1, &first.claim("w1", 100).await?.len())
}

async fn concurrent_different_requests_under_one_key_make_one_run_and_conflicts(s: Scenario) -> Verdict {
    let request = keyed(&s, "k")?;
    let answers = race(16, |number| {
        let s = s.clone();
        let request = StartRun { input: Payload::json(format!("{number}")), ..again(&request) };
        async move { Ok(s.store().start(vec![request]).await) }
    })
    .await?;
    let started = answers.iter().filter(|answer| answer.is_ok()).count();
    equal("one of the requests wins the key [7]", &1, &started)?;
    for answer in answers.iter().filter(|answer| answer.is_err()) {
        refused(answer, "IDEMPOTENCY_CONFLICT", "the others are told of the conflict [7]")?;
    }
    equal("and one run is there", &1, &s.claim("w1", 100).await?.len())
}

async fn the_same_operation_again_gives_the_same_run_and_makes_no_second(s: Scenario) -> Verdict {
    let request = s.start_request();
    let first = s.start(request.clone()).await?;
    s.turn(Duration::from_mins(1));
    equal("a repeat gives the first answer [8]", &first, &s.start(request).await?)?;
    equal("and makes no second run [8]", &1, &s.claim("w1", 10).await?.len())
}

async fn the_same_operation_again_after_the_run_finished_gives_the_same_run(s: Scenario) -> Verdict {
    let request = s.start_request();
    let first = s.start(request.clone()).await?;
    s.claim_one("w1").await?.complete_run("1").await?;
    let before = s.snapshot(first.run_id).await?;
    equal("a repeat gives the first answer, however late [8]", &first, &s.start(request).await?)?;
    s.unchanged(&before, "and changes nothing [6]").await
}

async fn the_same_operation_with_another_input_is_refused(s: Scenario) -> Verdict {
    let request = s.start_request();
    let first = s.start(request.clone()).await?;
    let before = s.snapshot(first.run_id).await?;
    let other = StartRun { input: Payload::empty(), ..request };
    operation_conflict(&s.store().start(vec![other]).await, "an operation id names one operation [8]")?;
    s.unchanged(&before, "a refused start changes nothing [15]").await
}

async fn thirty_two_concurrent_repeats_of_one_operation_make_one_run(s: Scenario) -> Verdict {
    let request = s.start_request();
    let answers = race(32, |_| {
        let (s, request) = (s.clone(), request.clone());
        async move { s.start(request).await }
    })
    .await?;
    let distinct: HashSet<_> = answers.iter().map(|started| started.run_id).collect();
    equal("one operation makes one run [8]", &HashSet::from([request.run_id()]), &distinct)?;
    let told_created = answers.iter().all(|started| started.outcome == StartOutcome::Created);
    check(told_created, "every repeat gets the first answer [8]", "Created", &answers)?;
    equal("and one run is there", &1, &s.claim("w1", 100).await?.len())
}

async fn the_same_operation_in_another_namespace_is_another_run(s: Scenario) -> Verdict {
    let other = s.in_namespace("globex")?;
    let request = s.start_request();
    let first = s.start(request.clone()).await?;
    let second = other.start(StartRun { namespace: other.namespace().clone(), ..request }).await?;
    check(
        first.run_id != second.run_id,
        "nobody can aim at a run of another namespace [11]",
        "two runs",
        first,
    )
}

async fn without_a_key_every_start_is_a_new_run(s: Scenario) -> Verdict {
    let ids: HashSet<_> = s.start_many(20).await?.into_iter().collect();
    equal("no key, no deduplication", &20, &ids.len())
}
