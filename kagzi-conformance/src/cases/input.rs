//! Input: accepted whole or refused whole, by one rule in every backend.

use std::collections::BTreeMap;
use std::time::Duration;

use kagzi_core::{
    CancelRun, Claim, Failure, FailureKind, Heartbeat, Labels, MAX_DURATION, NextStep, OperationId, Priority,
    RetryPolicy, Rules, RunState, SleepUntil, StartAt, StartRun, StoreError, Timestamp,
};

use crate::case::cases;
use crate::scenario::{
    Held, Scenario, equal, invalid, queue, refused, suite_rules, too_large, under, worker, workflow_type,
};
use crate::violation::{Verdict, Violation};

cases! {
    "input";
    [12] texts_of_every_script_come_back_as_they_were;
    [12] texts_at_their_limits_come_back_as_they_were;
    [12] labels_of_every_script_come_back_as_they_were;
    [12] a_cancel_reason_may_be_any_text_up_to_its_limit;
    [12] a_failure_may_hold_any_text_nul_included;
    [12] a_retry_policy_may_name_any_codes_nul_included;
    [15] a_start_with_any_field_out_of_range_is_refused_and_leaves_no_trace;
    [15] a_claim_with_any_field_out_of_range_is_refused_and_takes_nothing;
    [15] a_begin_with_any_field_out_of_range_is_refused_and_begins_nothing;
    [15] a_sleep_out_of_range_is_refused_and_nobody_sleeps;
    [15] heartbeats_out_of_range_are_refused_and_extend_nothing;
    [8] operation_ids_of_any_form_are_accepted_but_for_starts;
    [12] the_largest_place_is_kept;
    [12] priorities_at_their_ends_are_kept;
    [12] durations_at_their_ends_are_kept;
    [7, 8] a_start_with_nanoseconds_agrees_with_itself;
    [7, 8] a_start_with_any_fractions_in_its_policy_agrees_with_itself;
    [10] a_store_works_in_the_year_1;
    [10] a_store_works_at_the_end_of_the_year_9999;
    [10] a_step_timeout_stops_at_the_end_of_time;
    [12] the_largest_limits_are_accepted;
}

/// Valid names that a careless backend would change, cut, fold, compare loosely or execute.
const ODD: [&str; 12] = [
    "'; DROP TABLE runs; --",
    "\"; DELETE FROM attempts",
    "a\\b\\'c",
    "%_*?[a-z]",
    "$1 :name @x ?1",
    "{\"json\":[1,null]}",
    "عربي من اليمين",
    "\u{202e}reversed\u{202c}x",
    "🦀🧪𝔘𝔫𝔦",
    "e\u{301}\u{200d}\u{fe0f}x",
    "\u{fffd}\u{feff}x",
    "NULL",
];

fn failed(what: &'static str) -> impl Fn(StoreError) -> Violation {
    move |error| Violation::refused(what, &error)
}

async fn goes_round(s: &Scenario, text: &str, worker_text: &str) -> Verdict {
    let tenant = s.in_namespace(text)?.on_queue(text)?;
    let key = kagzi_core::IdempotencyKey::new(text).map_err(failed("a key"))?;
    let request = StartRun {
        workflow_type: workflow_type(text)?,
        idempotency_key: Some(key),
        trace_context: Some(text.to_owned()),
        ..tenant.start_request()
    };
    let run_id = tenant.start(request.clone()).await?.run_id;
    let held = tenant.claim_one(worker_text).await?;
    held.step(text, "1").await?;
    let snapshot = tenant.snapshot(run_id).await?;
    let run = &snapshot.record.run;
    equal("a namespace comes back as it was [12]", &request.namespace, &run.namespace)?;
    equal("a queue comes back as it was [12]", &request.queue, &run.queue)?;
    equal("a type comes back as it was [12]", &request.workflow_type, &run.workflow_type)?;
    equal("a key comes back as it was [12]", &request.idempotency_key, &run.idempotency_key)?;
    equal("a trace context comes back as it was [12]", &request.trace_context, &run.trace_context)?;
    equal("a worker id comes back as it was [12]", &Some(worker(worker_text)?), &run.worker_id)?;
    equal("a step id comes back as it was [12]", &text, &snapshot.attempts[0].step_id.as_str())?;
    let again = StartRun { operation: OperationId::generate(), ..request };
    equal("and finds its run again [7]", &run_id, &tenant.start(again).await?.run_id)?;
    held.complete_run("1").await
}

async fn texts_of_every_script_come_back_as_they_were(s: Scenario) -> Verdict {
    for text in ODD {
        under("texts of every script come back as they were [12]", goes_round(&s, text, text).await)?;
    }
    Ok(())
}

async fn texts_at_their_limits_come_back_as_they_were(s: Scenario) -> Verdict {
    // 64 bytes is the limit of the shortest, the namespace; the others are longer.
    goes_round(&s, &"n".repeat(64), &"w".repeat(128)).await?;
    goes_round(&s, &"🦀".repeat(16), &"🦀".repeat(32)).await?;
    goes_round(&s, "x", "y").await?;
    let tenant = s.on_queue(&"ü".repeat(64))?;
    let key = kagzi_core::IdempotencyKey::new("k".repeat(256)).map_err(failed("a key"))?;
    let request = StartRun {
        workflow_type: workflow_type("t".repeat(128))?,
        idempotency_key: Some(key),
        trace_context: Some("c".repeat(512)),
        ..tenant.start_request()
    };
    let run_id = tenant.start(request.clone()).await?.run_id;
    let run = tenant.run(run_id).await?.run;
    let found = (run.queue, run.workflow_type, run.idempotency_key, run.trace_context);
    let given = (request.queue, request.workflow_type, request.idempotency_key, request.trace_context);
    equal("texts at their limits are kept whole [12]", &given, &found)
}

async fn labels_of_every_script_come_back_as_they_were(s: Scenario) -> Verdict {
    let mut map: BTreeMap<String, String> =
        ODD.iter().enumerate().map(|(n, text)| (format!("k/{n}.a_b-C"), (*text).to_owned())).collect();
    map.insert("blank".to_owned(), "  ".to_owned());
    map.insert("empty".to_owned(), String::new());
    map.insert("k".repeat(63), "v".repeat(255));
    for n in 0..(32 - map.len()) {
        map.insert(format!("{n}"), n.to_string());
    }
    let labels = Labels::new(map).map_err(failed("making labels"))?;
    let run_id = s.start(StartRun { labels: labels.clone(), ..s.start_request() }).await?.run_id;
    equal("thirty-two labels are kept as they were [12]", &labels, &s.run(run_id).await?.run.labels)
}

async fn a_cancel_reason_may_be_any_text_up_to_its_limit(s: Scenario) -> Verdict {
    let limit = suite_rules().max_message_bytes;
    let longest = "r".repeat(limit);
    for reason in ["", " \n\t ", "it's \"over\"; --", "نص 🦀", "with \u{0} in it", &longest] {
        let run_id = s.start_one().await?;
        let cancel = CancelRun { reason: reason.to_owned(), ..s.cancel_request(run_id) };
        s.store().cancel(cancel).await.map_err(failed("a cancellation"))?;
        let failure = s.run(run_id).await?.run.failure;
        equal(
            "a reason is kept as it was [12]",
            &Some(Failure::new(FailureKind::Cancelled, "cancelled", reason)),
            &failure,
        )?;
    }
    let run_id = s.start_one().await?;
    let before = s.snapshot(run_id).await?;
    let over = CancelRun { reason: "r".repeat(limit + 1), ..s.cancel_request(run_id) };
    too_large(&s.store().cancel(over).await, "reason", "a reason over the limit is refused [12]")?;
    s.unchanged(&before, "and cancels nothing [15]").await
}

async fn a_failure_may_hold_any_text_nul_included(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.begin("a").await?;
    let failure = Failure::non_retryable("a\u{0}b", "\u{0}first\u{0}\r\n\u{1b}[31mred\u{7f}\u{ffff}");
    held.fail("a", 1, failure.clone()).await?;
    let snapshot = held.snapshot().await?;
    equal("the attempt keeps it [12]", &Some(&failure), &snapshot.attempts[0].failure.as_ref())?;
    equal("so does the run [12]", &Some(&failure), &snapshot.record.run.failure.as_ref())
}

async fn a_retry_policy_may_name_any_codes_nul_included(s: Scenario) -> Verdict {
    let codes = vec![String::new(), "a\u{0}b".to_owned(), "'\"\\".to_owned(), "c".repeat(128)];
    let retry = Some(RetryPolicy { non_retryable_codes: codes, ..RetryPolicy::default() });
    s.start(StartRun { retry: retry.clone(), ..s.start_request() }).await?;
    let held = s.claim_one("w1").await?;
    equal("codes are kept as they were [12]", &retry, &held.claimed.run.retry)?;
    let answer = held.fail_run(Failure::retryable("a\u{0}b", "")).await?;
    let expected = kagzi_core::FailureOutcome::DeadLetter(kagzi_core::DeadLetterReason::NonRetryable);
    equal("and found again [12]", &expected, &answer)
}

/// A field, by the name in its refusal, and how to put it out of its range.
type Change<T> = (&'static str, fn(&mut T));

fn policy(change: impl Fn(&mut RetryPolicy)) -> RetryPolicy {
    let mut policy = RetryPolicy::default();
    change(&mut policy);
    policy
}

const TOO_LONG: Duration = MAX_DURATION.saturating_add(Duration::from_micros(1));
const TOO_SHORT: Duration = Duration::from_nanos(999);

async fn a_start_with_any_field_out_of_range_is_refused_and_leaves_no_trace(s: Scenario) -> Verdict {
    let changes: &[Change<StartRun>] = &[
        ("start_at", |start| start.start_at = StartAt::After(TOO_LONG)),
        ("start_at", |start| start.start_at = StartAt::After(Duration::MAX)),
        ("run_timeout", |start| start.run_timeout = Some(Duration::ZERO)),
        ("run_timeout", |start| start.run_timeout = Some(TOO_SHORT)),
        ("run_timeout", |start| start.run_timeout = Some(TOO_LONG)),
        ("trace_context", |start| start.trace_context = Some("x".repeat(513))),
        ("trace_context", |start| start.trace_context = Some("a\u{0}b".to_owned())),
        ("retry_policy.max_attempts", |start| start.retry = Some(policy(|p| p.max_attempts = 0))),
        ("retry_policy.first_delay", |start| start.retry = Some(policy(|p| p.first_delay = TOO_LONG))),
        ("retry_policy.max_delay", |start| start.retry = Some(policy(|p| p.max_delay = Duration::MAX))),
        ("retry_policy.factor", |start| start.retry = Some(policy(|p| p.factor = 0.5))),
        ("retry_policy.factor", |start| start.retry = Some(policy(|p| p.factor = f64::NAN))),
        ("retry_policy.factor", |start| start.retry = Some(policy(|p| p.factor = f64::INFINITY))),
        ("retry_policy.jitter", |start| start.retry = Some(policy(|p| p.jitter = -0.1))),
        ("retry_policy.jitter", |start| start.retry = Some(policy(|p| p.jitter = 1.1))),
        ("retry_policy.non_retryable_codes[0]", |start| {
            start.retry = Some(policy(|p| p.non_retryable_codes = vec!["c".repeat(129)]));
        }),
    ];
    for &(field, change) in changes {
        let mut start = s.start_request();
        change(&mut start);
        let run_id = start.run_id();
        invalid(&s.store().start(vec![start]).await, field, "a field out of its range is named")?;
        let read = s.store().get_run(s.namespace(), run_id).await;
        refused(&read, "RUN_NOT_FOUND", "and nothing was written [12, 15]")?;
    }
    Ok(())
}

async fn a_claim_with_any_field_out_of_range_is_refused_and_takes_nothing(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    let before = s.snapshot(run_id).await?;
    let changes: &[Change<Claim>] = &[
        ("lease_length", |claim| claim.lease_length = Duration::ZERO),
        ("lease_length", |claim| claim.lease_length = TOO_SHORT),
        ("lease_length", |claim| claim.lease_length = TOO_LONG),
        ("limit", |claim| claim.limit = 0),
        ("limit", |claim| claim.limit = 10_001),
        ("steps_limit", |claim| claim.steps_limit = 0),
        ("steps_limit", |claim| claim.steps_limit = u32::MAX),
        ("queues", |claim| claim.queues.clear()),
        ("queues", |claim| claim.queues = vec![claim.queues[0].clone(); 1001]),
        ("workflow_types", |claim| claim.workflow_types = vec![claim.workflow_types[0].clone(); 1001]),
    ];
    for &(field, change) in changes {
        let types = vec![workflow_type("ship")?];
        let mut claim = Claim { workflow_types: types, ..s.claim_request("w1", 10)? };
        change(&mut claim);
        invalid(&s.store().claim(claim).await, field, "a field out of its range is named")?;
    }
    s.unchanged(&before, "and nothing was taken [15]").await
}

async fn a_begin_with_any_field_out_of_range_is_refused_and_begins_nothing(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let before = held.snapshot().await?;
    let changes: &[Change<NextStep>] = &[
        ("position", |step| step.position = 1 << 31),
        ("position", |step| step.position = u32::MAX),
        ("timeout", |step| step.timeout = Some(Duration::ZERO)),
        ("timeout", |step| step.timeout = Some(TOO_LONG)),
        ("retry_policy.max_attempts", |step| step.retry = Some(policy(|p| p.max_attempts = 0))),
    ];
    for &(field, change) in changes {
        let mut begin = held.begin_request("a")?;
        change(&mut begin.step);
        invalid(&s.store().begin_step(begin).await, field, "a field out of its range is named")?;
    }
    s.unchanged(&before, "and nothing was begun [15]").await
}

async fn a_sleep_out_of_range_is_refused_and_nobody_sleeps(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let before = held.snapshot().await?;
    for length in [TOO_LONG, Duration::MAX] {
        let request = held.sleep_request("nap", SleepUntil::After(length))?;
        invalid(&s.store().sleep(request).await, "until", "a sleep is at most 100 years")?;
    }
    let mut request = held.sleep_request("nap", SleepUntil::After(Duration::ZERO))?;
    request.position = u32::MAX;
    invalid(&s.store().sleep(request).await, "position", "a field out of its range is named")?;
    s.unchanged(&before, "and the lease is kept [15]").await
}

async fn heartbeats_out_of_range_are_refused_and_extend_nothing(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let before = held.snapshot().await?;
    s.turn(Duration::from_secs(1));
    let beat = |lease_length| Heartbeat { lease_length, ..held.heartbeat_request() };
    for bad in [Duration::ZERO, TOO_SHORT, TOO_LONG] {
        let answer = s.store().heartbeat(vec![held.heartbeat_request(), beat(bad)]).await;
        invalid(&answer, "lease_length", "a field out of its range is named")?;
    }
    invalid(&s.store().heartbeat(Vec::new()).await, "heartbeats", "a batch holds 1 to 10,000 leases")?;
    let many = vec![held.heartbeat_request(); 10_001];
    invalid(&s.store().heartbeat(many).await, "heartbeats", "a batch holds 1 to 10,000 leases")?;
    s.unchanged(&before, "and nothing was extended [15]").await
}

async fn operation_ids_of_any_form_are_accepted_but_for_starts(s: Scenario) -> Verdict {
    let forms = [
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "f47ac10b-58cc-4372-a567-0e02b2c3d479",
    ];
    for form in forms {
        let operation: OperationId = form.parse().map_err(failed("an operation id"))?;
        let start = StartRun { operation, ..s.start_request() };
        invalid(&s.store().start(vec![start]).await, "operation_id", "a start's id must be a UUIDv7")?;
        let held = s.held().await?;
        let mut begin = held.begin_request("a")?;
        begin.operation = operation;
        s.store().begin_step(begin).await.map_err(failed("a begin"))?;
        let mut complete = held.complete_request("a", 1, "1")?;
        complete.operation = operation;
        s.store().complete_step(complete).await.map_err(failed("completing a step"))?;
        let mut release = held.release_request();
        release.operation = operation;
        s.store().release(release).await.map_err(failed("a release"))?;
        s.cancel(held.run_id()).await?;
    }
    Ok(())
}

async fn the_largest_place_is_kept(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let mut begin = held.begin_request("a")?;
    begin.step.position = i32::MAX.unsigned_abs();
    s.store().begin_step(begin).await.map_err(failed("a begin"))?;
    equal(
        "the largest place is kept",
        &i32::MAX.unsigned_abs(),
        &s.attempts(held.run_id()).await?[0].position,
    )
}

async fn priorities_at_their_ends_are_kept(s: Scenario) -> Verdict {
    for level in [-9, 9] {
        let priority = Priority::new(level).map_err(failed("a priority"))?;
        let run_id = s.start(StartRun { priority, ..s.start_request() }).await?.run_id;
        equal("a priority is kept", &priority, &s.run(run_id).await?.run.priority)?;
    }
    Ok(())
}

async fn durations_at_their_ends_are_kept(s: Scenario) -> Verdict {
    for length in [Duration::from_micros(1), MAX_DURATION] {
        let retry = Some(policy(|p| {
            p.first_delay = length;
            p.max_delay = length;
        }));
        let start = StartRun { run_timeout: Some(length), retry: retry.clone(), ..s.start_request() };
        let run_id = s.start(start).await?.run_id;
        let run = s.run(run_id).await?.run;
        equal(
            "durations are kept to the microsecond",
            &(Some(length), retry),
            &(run.run_timeout, run.retry),
        )?;
        let deadline = s.now().saturating_add(length);
        equal("and counted to the microsecond", &Some(deadline), &run.deadline_at)?;
        s.cancel(run_id).await?;
        s.start_one().await?;
        let claim = Claim { lease_length: length, ..s.claim_request("w1", 1)? };
        let expiries: Vec<Timestamp> =
            s.claim_as(claim).await?.iter().map(|run| run.lease.expires_at).collect();
        equal("for leases too", &vec![deadline], &expiries)?;
    }
    Ok(())
}

async fn a_start_with_nanoseconds_agrees_with_itself(s: Scenario) -> Verdict {
    let odd = Duration::new(10, 123_456_789);
    let key = kagzi_core::IdempotencyKey::new("k").map_err(failed("a key"))?;
    let request = StartRun {
        run_timeout: Some(odd),
        retry: Some(policy(|p| p.first_delay = odd)),
        idempotency_key: Some(key),
        ..s.start_request()
    };
    let first = s.start(request.clone()).await?;
    equal("a repeat agrees, though stores keep microseconds [8]", &first, &s.start(request.clone()).await?)?;
    let again = StartRun { operation: OperationId::generate(), ..request };
    equal("so does the same request under the same key [7]", &first.run_id, &s.start(again).await?.run_id)?;
    let run = s.run(first.run_id).await?.run;
    let kept = Duration::from_micros(10_123_456);
    let found = (run.run_timeout, run.retry.map(|retry| retry.first_delay));
    equal(
        "what lies below a microsecond is cut off, in every backend alike [12]",
        &(Some(kept), Some(kept)),
        &found,
    )
}

async fn a_start_with_any_fractions_in_its_policy_agrees_with_itself(s: Scenario) -> Verdict {
    let batch: Vec<StartRun> = (1..300_u32)
        .map(|n| {
            let fraction = f64::from(n) / 301.0;
            let retry = Some(policy(|p| {
                p.factor = 1.0 + fraction * 998.0;
                p.jitter = fraction;
            }));
            StartRun { retry, ..s.start_request() }
        })
        .collect();
    let first = s.start_all(batch.clone()).await?;
    equal(
        "fractions are kept to the last bit, so a repeat agrees [8, 12]",
        &first,
        &s.start_all(batch).await?,
    )
}

async fn lives_a_life(s: &Scenario) -> Verdict {
    let held = s.held().await?;
    held.step("a", "1").await?;
    held.heartbeat().await?;
    held.complete_run("1").await?;
    let run = s.run(held.run_id()).await?.run;
    let found = (run.state, run.created_at, run.finished_at);
    equal("a run lives at any time", &(RunState::Completed, s.now(), Some(s.now())), &found)?;
    s.reap(10).await.map(drop)
}

async fn a_store_works_in_the_year_1(s: Scenario) -> Verdict {
    s.set_clock(Timestamp::MIN);
    lives_a_life(&s).await?;
    let held: Held = s.held().await?;
    held.sleep("nap", Duration::from_secs(1)).await?;
    s.nothing_claimable("a sleeper sleeps in the year 1 too [10]").await?;
    s.turn(Duration::from_secs(1));
    s.claim_one("w1").await?.complete_run("1").await
}

async fn a_store_works_at_the_end_of_the_year_9999(s: Scenario) -> Verdict {
    s.set_clock(Timestamp::MAX);
    lives_a_life(&s).await?;
    let run_timeout = Some(Duration::from_secs(1));
    let start = StartRun { run_timeout, start_at: StartAt::After(MAX_DURATION), ..s.start_request() };
    let run_id = s.start(start).await?.run_id;
    let run = s.run(run_id).await?.run;
    under(
        "a store works at the end of time, and times stop there",
        equal(
            "times stop at the end of time",
            &(Timestamp::MAX, Some(Timestamp::MAX)),
            &(run.due_at, run.deadline_at),
        ),
    )
}

async fn a_step_timeout_stops_at_the_end_of_time(s: Scenario) -> Verdict {
    s.set_clock(Timestamp::MAX.saturating_sub(Duration::from_hours(1)));
    let held = s.held().await?;
    let mut begin = held.begin_request("a")?;
    begin.step.timeout = Some(MAX_DURATION);
    held.store().begin_step(begin).await.map_err(|e| Violation::refused("a begin", &e))?;
    let attempt = s.attempts(held.run_id()).await?.pop();
    under(
        "the timeout of a step stops at the end of time",
        equal(
            "times stop at the end of time",
            &Some(Some(Timestamp::MAX)),
            &attempt.map(|one| one.deadline_at),
        ),
    )
}

async fn the_largest_limits_are_accepted(s: Scenario) -> Verdict {
    let rules: Rules = suite_rules();
    s.start_many(3).await?;
    let claim = Claim { steps_limit: 10_000, ..s.claim_request("w1", 10_000)? };
    equal("the largest claim is a claim", &3, &s.claim_as(claim).await?.len())?;
    let mut claim = s.claim_request("w1", 1)?;
    claim.queues = (0..1000).map(|n| queue(format!("q{n}"))).collect::<Result<_, _>>()?;
    claim.workflow_types = (0..1000).map(|n| workflow_type(format!("t{n}"))).collect::<Result<_, _>>()?;
    equal("also over a thousand queues and types", &0, &s.claim_as(claim).await?.len())?;
    equal("the largest reap is a reap", &0, &s.reap(10_000).await?.total())?;
    let retry = Some(policy(|p| p.non_retryable_codes = vec!["c".repeat(128); 64]));
    s.start(StartRun {
        retry,
        input: kagzi_core::Payload::raw(vec![0; rules.max_payload_bytes]),
        ..s.start_request()
    })
    .await
    .map(drop)
}
