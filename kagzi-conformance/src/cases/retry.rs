//! Retries: what follows a failure.

use std::time::Duration;

use kagzi_core::{
    AttemptState, BeginOutcome, DeadLetterReason, Failure, FailureKind, FailureOutcome, MAX_DURATION,
    RetryPolicy, RunId, RunState, StartRun,
};

use crate::case::cases;
use crate::scenario::{Held, Scenario, check, equal, fatal, hiccup, race, under};
use crate::violation::{Verdict, Violation};

cases! {
    "retry";
    [10] a_failed_step_is_retried_after_the_delay_and_not_earlier;
    [] delays_grow_by_the_factor_up_to_the_ceiling;
    [] jitter_stays_within_its_bounds;
    [] attempts_used_up_make_a_dead_letter_with_the_reason;
    [] a_non_retryable_failure_ends_it_at_once;
    [] a_non_retryable_code_ends_it_at_once;
    [] every_kind_of_failure_is_retried_or_not_by_its_rule;
    [] one_attempt_means_no_retry;
    [] the_policy_of_the_step_beats_that_of_the_run;
    [] the_policy_of_the_run_beats_the_default;
    [] a_run_that_fails_is_retried_by_its_policy;
    [] a_run_uses_up_its_own_failures;
    [] each_step_has_a_budget_of_its_own;
    [14] abandoned_attempts_use_up_no_budget;
    [] the_delay_counts_from_the_failure_by_the_stores_clock;
    [] a_retry_that_would_reach_the_deadline_fails_now;
    [] a_retry_just_before_the_deadline_is_scheduled;
    [4] a_retry_does_not_touch_completed_steps;
    [10] a_retry_without_delay_is_due_at_once;
    [1, 3] a_retry_is_executed_by_one;
    [] delays_and_attempts_at_their_maxima_do_not_overflow;
}

fn policy(max_attempts: u32, first_seconds: u64) -> RetryPolicy {
    RetryPolicy {
        max_attempts,
        first_delay: Duration::from_secs(first_seconds),
        factor: 2.0,
        max_delay: Duration::from_secs(30),
        jitter: 0.0,
        non_retryable_codes: Vec::new(),
    }
}

async fn begin_with(held: &Held, step: &str, retry: Option<RetryPolicy>) -> Result<u32, Violation> {
    let mut request = held.begin_request(step)?;
    request.step.retry = retry;
    match held.store().begin_step(request).await {
        Ok(BeginOutcome::Execute { attempt }) => Ok(attempt),
        Ok(other) => {
            Err(Violation::new("an open step is to be executed [3]", "Execute", format!("{other:?}")))
        }
        Err(error) => Err(Violation::refused("a begin", &error)),
    }
}

fn after(s: &Scenario, seconds: u64) -> FailureOutcome {
    FailureOutcome::RetryAt(s.now().saturating_add(Duration::from_secs(seconds)))
}

/// Asserts that a run is a dead letter for `reason`, of `failure`.
async fn dead(s: &Scenario, run_id: RunId, reason: DeadLetterReason, failure: &Failure) -> Verdict {
    let run = s.run(run_id).await?.run;
    let found = (run.state, run.dead_letter, run.failure.as_ref(), run.finished_at);
    let expected = (RunState::Failed, Some(reason), Some(failure), Some(s.now()));
    equal("a run that is given up is a dead letter with reason and failure", &expected, &found)?;
    s.turn(Duration::from_hours(100));
    s.reap_all().await?;
    s.nothing_claimable("and is not tried again [6]").await
}

async fn a_failed_step_is_retried_after_the_delay_and_not_earlier(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.begin("a").await?;
    equal("the default policy decides", &after(&s, 10), &held.fail("a", 1, hiccup()).await?)?;
    let run = s.run(held.run_id()).await?.run;
    equal("the run waits for its retry", &RunState::Sleeping, &run.state)?;
    equal("until the moment that was told", &s.now().saturating_add(Duration::from_secs(10)), &run.due_at)?;
    equal("a run that will be retried has not failed", &(None, None), &(run.failure, run.dead_letter))?;
    s.turn_almost(Duration::from_secs(10));
    s.nothing_claimable("not a microsecond earlier [10]").await?;
    s.turn(Duration::from_micros(1));
    equal("then it is claimable [10]", &held.run_id(), &s.claim_one("w2").await?.run_id())
}

async fn delays_grow_by_the_factor_up_to_the_ceiling(s: Scenario) -> Verdict {
    s.start_one().await?;
    for (number, delay) in [(1, 5), (2, 10), (3, 20), (4, 30), (5, 30)] {
        let held = s.claim_one("w1").await?;
        equal("numbers are dense [5]", &number, &begin_with(&held, "a", Some(policy(9, 5))).await?)?;
        equal("delays grow up to the ceiling", &after(&s, delay), &held.fail("a", number, hiccup()).await?)?;
        s.turn(Duration::from_secs(delay));
    }
    Ok(())
}

async fn jitter_stays_within_its_bounds(s: Scenario) -> Verdict {
    let jittery = RetryPolicy { jitter: 0.5, max_delay: Duration::from_hours(1), ..policy(9, 100) };
    s.start_many(20).await?;
    let (low, high) =
        (s.now().saturating_add(Duration::from_secs(50)), s.now().saturating_add(Duration::from_secs(150)));
    let mut moments = Vec::new();
    for run in s.claim("w1", 20).await? {
        let held = Held::new(s.clone(), run);
        begin_with(&held, "a", Some(jittery.clone())).await?;
        match held.fail("a", 1, hiccup()).await? {
            FailureOutcome::RetryAt(at) => moments.push(at),
            dead @ FailureOutcome::DeadLetter(_) => {
                return check(false, "a first failure is retried", "RetryAt", dead);
            }
        }
    }
    let within = moments.iter().all(|at| (low..=high).contains(at));
    check(within, "jitter moves a delay by at most its part", (low, high), &moments)?;
    moments.sort_unstable();
    moments.dedup();
    check(moments.len() > 10, "and spreads the retries of different runs", "different moments", &moments)
}

async fn attempts_used_up_make_a_dead_letter_with_the_reason(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    for number in 1..=3 {
        let held = s.claim_one("w1").await?;
        held.begin("a").await?;
        let failure = Failure::retryable("hiccup", format!("time {number}"));
        let answer = held.fail("a", number, failure.clone()).await?;
        if number == 3 {
            let expected = FailureOutcome::DeadLetter(DeadLetterReason::RetriesExhausted);
            equal("the last attempt ends it", &expected, &answer)?;
            dead(&s, run_id, DeadLetterReason::RetriesExhausted, &failure).await?;
        }
        s.turn(Duration::from_mins(1));
    }
    let states: Vec<_> = s.attempts(run_id).await?.iter().map(|a| a.state).collect();
    equal("the history keeps every failure [5]", &vec![AttemptState::Failed; 3], &states)
}

async fn ends_at_once(s: &Scenario, failure: Failure) -> Verdict {
    let held = s.held().await?;
    held.begin("a").await?;
    let expected = FailureOutcome::DeadLetter(DeadLetterReason::NonRetryable);
    equal("trying again is pointless", &expected, &held.fail("a", 1, failure.clone()).await?)?;
    dead(s, held.run_id(), DeadLetterReason::NonRetryable, &failure).await
}

async fn a_non_retryable_failure_ends_it_at_once(s: Scenario) -> Verdict {
    under("a failure that says so is not retried", ends_at_once(&s, fatal()).await)
}

async fn a_non_retryable_code_ends_it_at_once(s: Scenario) -> Verdict {
    under(
        "a code that the policy names is not retried",
        ends_at_once(&s, Failure::retryable("never_again", "whatever the kind says")).await,
    )
}

async fn every_kind_of_failure_is_retried_or_not_by_its_rule(s: Scenario) -> Verdict {
    for kind in FailureKind::ALL {
        let held = s.held().await?;
        held.begin("a").await?;
        let answer = held.fail("a", 1, Failure::new(kind, "code", "message")).await?;
        let expected = if kind.may_retry() {
            after(&s, 10)
        } else {
            FailureOutcome::DeadLetter(DeadLetterReason::NonRetryable)
        };
        equal(&format!("a failure of kind {} goes by its rule", kind.as_str()), &expected, &answer)?;
    }
    Ok(())
}

async fn one_attempt_means_no_retry(s: Scenario) -> Verdict {
    let held = s.held().await?;
    begin_with(&held, "a", Some(RetryPolicy::never())).await?;
    let expected = FailureOutcome::DeadLetter(DeadLetterReason::RetriesExhausted);
    equal("one attempt means no retry", &expected, &held.fail("a", 1, hiccup()).await?)
}

async fn the_policy_of_the_step_beats_that_of_the_run(s: Scenario) -> Verdict {
    s.start(StartRun { retry: Some(policy(9, 7)), ..s.start_request() }).await?;
    let held = s.claim_one("w1").await?;
    begin_with(&held, "a", Some(policy(9, 3))).await?;
    equal("the step's own policy decides", &after(&s, 3), &held.fail("a", 1, hiccup()).await?)
}

async fn the_policy_of_the_run_beats_the_default(s: Scenario) -> Verdict {
    s.start(StartRun { retry: Some(policy(9, 7)), ..s.start_request() }).await?;
    let held = s.claim_one("w1").await?;
    held.begin("a").await?;
    equal(
        "the run's policy decides for steps without one",
        &after(&s, 7),
        &held.fail("a", 1, hiccup()).await?,
    )?;
    s.turn(Duration::from_secs(7));
    let held = s.claim_one("w1").await?;
    equal("and for the run itself", &after(&s, 7), &held.fail_run(hiccup()).await?)
}

async fn a_run_that_fails_is_retried_by_its_policy(s: Scenario) -> Verdict {
    s.start(StartRun { retry: Some(policy(3, 5)), ..s.start_request() }).await?;
    for (number, delay) in [(1, 5), (2, 10)] {
        let held = s.claim_one("w1").await?;
        held.begin("open").await?;
        equal(
            "a failed run waits as a failed step does",
            &after(&s, delay),
            &held.fail_run(hiccup()).await?,
        )?;
        let run = s.run(held.run_id()).await?.run;
        equal("its failures are counted", &(RunState::Sleeping, number), &(run.state, run.failures))?;
        let abandoned = s.attempts(held.run_id()).await?.iter().all(|a| a.state == AttemptState::Abandoned);
        check(abandoned, "its open attempts are abandoned [5]", "ABANDONED", held.run_id())?;
        s.turn(Duration::from_secs(delay));
    }
    Ok(())
}

async fn a_run_uses_up_its_own_failures(s: Scenario) -> Verdict {
    let run_id = s.start(StartRun { retry: Some(policy(2, 0)), ..s.start_request() }).await?.run_id;
    let held = s.claim_one("w1").await?;
    held.begin("a").await?;
    equal("a step's failure is the step's", &after(&s, 0), &held.fail("a", 1, hiccup()).await?)?;
    equal("so is the run's first", &after(&s, 0), &s.claim_one("w1").await?.fail_run(hiccup()).await?)?;
    let expected = FailureOutcome::DeadLetter(DeadLetterReason::RetriesExhausted);
    equal("and its second the last", &expected, &s.claim_one("w1").await?.fail_run(hiccup()).await?)?;
    dead(&s, run_id, DeadLetterReason::RetriesExhausted, &hiccup()).await
}

async fn each_step_has_a_budget_of_its_own(s: Scenario) -> Verdict {
    s.start(StartRun { retry: Some(policy(2, 0)), ..s.start_request() }).await?;
    for step in ["a", "b", "c"] {
        let held = s.claim_one("w1").await?;
        held.begin(step).await?;
        equal(
            "another step's failures are not counted",
            &after(&s, 0),
            &held.fail(step, 1, hiccup()).await?,
        )?;
    }
    let held = s.claim_one("w1").await?;
    held.begin("b").await?;
    let expected = FailureOutcome::DeadLetter(DeadLetterReason::RetriesExhausted);
    equal("its own are", &expected, &held.fail("b", 2, hiccup()).await?)
}

async fn abandoned_attempts_use_up_no_budget(s: Scenario) -> Verdict {
    s.start(StartRun { retry: Some(policy(2, 0)), ..s.start_request() }).await?;
    for _ in 0..5 {
        let held = s.claim_one("w1").await?;
        held.begin("a").await?;
        held.release().await?;
    }
    let held = s.claim_one("w1").await?;
    equal("numbers go on [5]", &6, &held.begin("a").await?)?;
    equal("a lost attempt is no failure", &after(&s, 0), &held.fail("a", 6, hiccup()).await?)
}

async fn the_delay_counts_from_the_failure_by_the_stores_clock(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.begin("a").await?;
    s.turn(Duration::from_secs(25));
    equal("the delay counts from the failure", &after(&s, 10), &held.fail("a", 1, hiccup()).await?)
}

/// Fails a step 20 seconds before the run's deadline, with a delay of `seconds`.
async fn near_the_deadline(s: &Scenario, seconds: u64) -> Result<(Held, FailureOutcome), Violation> {
    let run_timeout = Some(Duration::from_secs(25));
    s.start(StartRun { run_timeout, ..s.start_request() }).await?;
    let held = s.claim_one("w1").await?;
    begin_with(&held, "a", Some(policy(9, seconds))).await?;
    s.turn(Duration::from_secs(5));
    let answer = held.fail("a", 1, hiccup()).await?;
    Ok((held, answer))
}

async fn a_retry_that_would_reach_the_deadline_fails_now(s: Scenario) -> Verdict {
    let (held, answer) = near_the_deadline(&s, 20).await?;
    let expected = FailureOutcome::DeadLetter(DeadLetterReason::RunTimeout);
    equal("there is no use in waiting for a deadline", &expected, &answer)?;
    dead(&s, held.run_id(), DeadLetterReason::RunTimeout, &hiccup()).await
}

async fn a_retry_just_before_the_deadline_is_scheduled(s: Scenario) -> Verdict {
    let (held, answer) = near_the_deadline(&s, 19).await?;
    equal("a retry within the deadline is one", &after(&s, 19), &answer)?;
    s.turn(Duration::from_secs(19));
    s.claim_one("w1").await?.complete_run("1").await?;
    equal("and may finish", &RunState::Completed, &s.run(held.run_id()).await?.run.state)
}

async fn a_retry_does_not_touch_completed_steps(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.step("done", "\"kept\"").await?;
    let before = s.attempts(held.run_id()).await?;
    held.begin("flaky").await?;
    held.fail("flaky", 1, hiccup()).await?;
    s.turn(Duration::from_secs(10));
    let again = s.claim_one("w2").await?;
    equal("a completed step stays to the last field [4]", &before[0], &s.attempts(held.run_id()).await?[0])?;
    under(
        "a retry leaves completed steps as they are [4]",
        match again.begin_any("done").await? {
            BeginOutcome::Memoized { attempt: 1, .. } => Ok(()),
            other => check(false, "and is not executed again [4]", "Memoized 1", other),
        },
    )
}

async fn a_retry_without_delay_is_due_at_once(s: Scenario) -> Verdict {
    let held = s.held().await?;
    begin_with(&held, "a", Some(policy(9, 0))).await?;
    equal("no delay means now", &after(&s, 0), &held.fail("a", 1, hiccup()).await?)?;
    equal("so the run is PENDING", &RunState::Pending, &s.run(held.run_id()).await?.run.state)?;
    equal("and nothing is left to reap", &None, &s.next_due().await?)?;
    equal("and it is claimable at once [10]", &held.run_id(), &s.claim_one("w2").await?.run_id())
}

async fn a_retry_is_executed_by_one(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.begin("a").await?;
    held.fail("a", 1, hiccup()).await?;
    s.turn(Duration::from_secs(10));
    let executed = race(16, |number| {
        let s = s.clone();
        async move {
            s.reap(10).await?;
            let mut executed = 0;
            for run in s.claim(&format!("w{number}"), 1).await? {
                equal("it is the second attempt [5]", &2, &Held::new(s.clone(), run).begin("a").await?)?;
                executed += 1;
            }
            Ok(executed)
        }
    })
    .await?;
    equal("one worker executes a retry [1, 3]", &1, &executed.iter().sum::<i32>())
}

async fn delays_and_attempts_at_their_maxima_do_not_overflow(s: Scenario) -> Verdict {
    let extreme = RetryPolicy {
        max_attempts: u32::MAX,
        first_delay: MAX_DURATION,
        factor: 1000.0,
        max_delay: MAX_DURATION,
        jitter: 0.0,
        non_retryable_codes: Vec::new(),
    };
    s.start(StartRun { retry: Some(extreme), ..s.start_request() }).await?;
    for number in 1..=2 {
        let held = s.claim_one("w1").await?;
        held.begin("a").await?;
        let due_at = s.now().saturating_add(MAX_DURATION);
        equal(
            "the longest delay is a delay",
            &FailureOutcome::RetryAt(due_at),
            &held.fail("a", number, hiccup()).await?,
        )?;
        s.turn(MAX_DURATION);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_wrong_retry_is_not_told_as_an_operation_done_by_half() {
        let atomic: Vec<_> =
            super::cases().into_iter().filter(|case| case.invariants.contains(&15)).collect();
        assert!(atomic.is_empty(), "{atomic:?}");
    }
}
