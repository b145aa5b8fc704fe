//! Reaping: deadlines, step timeouts, and the nearest moment at which there is something to do.

use std::time::Duration;

use kagzi_core::{
    AttemptState, BeginStep, Claim, DeadLetterReason, FailureKind, MoreDue, NextStep, RetryPolicy, RunState,
    StartAt, StartRun, StepsGivenUp, Then, Timestamp,
};

use crate::case::cases;
use crate::scenario::{Held, LEASE, Scenario, equal, lease_lost, step_id, under};
use crate::violation::{Verdict, Violation};

cases! {
    "reap";
    [6] a_run_times_out_at_the_microsecond_of_its_deadline;
    [6] a_pending_run_times_out;
    [5, 6] a_held_run_times_out_and_its_attempts_are_abandoned;
    [6, 14] a_held_run_that_beats_times_out;
    [6] a_deadline_that_passed_with_the_lease_is_a_timeout;
    [5] a_step_times_out_at_the_microsecond_of_its_deadline;
    [5, 14] a_step_that_a_completion_begins_times_out;
    [5] a_timed_out_step_is_retried_by_its_policy;
    [14] a_run_with_two_timed_out_steps_is_treated_once;
    [5] of_two_late_steps_the_one_that_is_late_longest_has_timed_out;
    [14] a_run_with_many_late_steps_hides_no_other;
    [14] timed_out_steps_count_against_the_limit;
    [14] the_limit_holds_over_leases_and_steps_together;
    [14] the_longest_overdue_is_treated_first_whatever_it_is;
    [14] the_steps_that_are_late_longest_come_first_whatever_the_ids_of_their_runs;
    [5] a_completed_step_times_out_no_more;
    [5] an_abandoned_attempt_times_out_no_more;
    [2] a_step_past_its_timeout_that_nobody_reaped_may_still_complete;
    [14] next_due_is_nothing_when_there_is_nothing;
    [10, 14] next_due_names_the_nearest_sleeper;
    [14] next_due_names_the_nearest_lease;
    [14] next_due_names_the_nearest_deadline_and_step_timeout;
    [14] next_due_moves_with_a_heartbeat;
    [14] next_due_forgets_what_has_ended;
    [14] next_due_forgets_the_timeout_of_a_completed_step;
    [14] nothing_is_due_after_everything_was_reaped;
}

const TIMEOUT: Duration = Duration::from_secs(10);

fn bounded(s: &Scenario) -> StartRun {
    StartRun { run_timeout: Some(TIMEOUT), ..s.start_request() }
}

async fn timed_out(s: &Scenario, run_id: kagzi_core::RunId) -> Verdict {
    let run = s.run(run_id).await?.run;
    let found = (run.state, run.dead_letter);
    equal(
        "a run past its deadline is a dead letter",
        &(RunState::Failed, Some(DeadLetterReason::RunTimeout)),
        &found,
    )?;
    equal("of kind timeout", &Some(FailureKind::Timeout), &run.failure.map(|failure| failure.kind))?;
    equal("that ended when it was reaped", &Some(s.now()), &run.finished_at)
}

async fn a_run_times_out_at_the_microsecond_of_its_deadline(s: Scenario) -> Verdict {
    let run_id = s.start(bounded(&s)).await?.run_id;
    s.turn_almost(TIMEOUT);
    equal("not a microsecond early", &0, &s.reap(10).await?.total())?;
    s.turn(Duration::from_micros(1));
    equal("but then", &1, &s.reap(10).await?.runs_timed_out)?;
    under("a run times out at its deadline and not a microsecond earlier", timed_out(&s, run_id).await)
}

async fn a_pending_run_times_out(s: Scenario) -> Verdict {
    let run_id = s.start(bounded(&s)).await?.run_id;
    s.turn(TIMEOUT * 2);
    equal("waiting for a worker does not stop the time", &1, &s.reap(10).await?.runs_timed_out)?;
    timed_out(&s, run_id).await?;
    s.nothing_claimable("and it is not claimable [6]").await
}

async fn a_held_run_times_out_and_its_attempts_are_abandoned(s: Scenario) -> Verdict {
    s.start(bounded(&s)).await?;
    let held = s.claim_one("w1").await?;
    held.step("done", "1").await?;
    held.begin("open").await?;
    s.turn(TIMEOUT);
    equal("a lease in force does not stop the time", &1, &s.reap(10).await?.runs_timed_out)?;
    timed_out(&s, held.run_id()).await?;
    let states: Vec<_> = s.attempts(held.run_id()).await?.iter().map(|a| a.state).collect();
    equal(
        "open attempts are abandoned [5]",
        &vec![AttemptState::Completed, AttemptState::Abandoned],
        &states,
    )?;
    let answer = held.store().complete_step(held.complete_request("open", 1, "1")?).await;
    lease_lost(&answer, "and its worker is told [2]").map(drop)
}

async fn a_deadline_that_passed_with_the_lease_is_a_timeout(s: Scenario) -> Verdict {
    s.start(bounded(&s)).await?;
    let held = s.claim_one("w1").await?;
    s.turn(LEASE);
    let reaped = s.reap(10).await?;
    equal(
        "a run is treated once, as what it is [14]",
        &(1, 0),
        &(reaped.runs_timed_out, reaped.leases_expired),
    )?;
    timed_out(&s, held.run_id()).await
}

async fn begin_bounded(held: &Held, step: &str, retry: Option<RetryPolicy>) -> Verdict {
    let mut request: BeginStep = held.begin_request(step)?;
    request.step.timeout = Some(TIMEOUT);
    request.step.retry = retry;
    held.store().begin_step(request).await.map(drop).map_err(|e| Violation::refused("a begin", &e))
}

async fn a_step_times_out_at_the_microsecond_of_its_deadline(s: Scenario) -> Verdict {
    let held = s.held().await?;
    begin_bounded(&held, "a", None).await?;
    s.turn_almost(TIMEOUT);
    equal("not a microsecond early", &0, &s.reap(10).await?.total())?;
    s.turn(Duration::from_micros(1));
    equal("but then", &1, &s.reap(10).await?.steps_timed_out)?;
    let attempt = s.attempts(held.run_id()).await?.remove(0);
    let kind = attempt.failure.map(|failure| failure.kind);
    equal(
        "the attempt failed of a timeout",
        &(AttemptState::Failed, Some(FailureKind::Timeout)),
        &(attempt.state, kind),
    )?;
    let answer = held.store().complete_step(held.complete_request("a", 1, "1")?).await;
    lease_lost(&answer, "and its worker is told [2]").map(drop)
}

async fn a_step_that_a_completion_begins_times_out(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.begin("a").await?;
    let next = NextStep { timeout: Some(TIMEOUT), ..NextStep::new(step_id("b")?, 1) };
    held.complete_then("a", 1, "1", Then::Begin(next)).await?;
    let due_at = s.now().saturating_add(TIMEOUT);
    equal("the nearest moment is the timeout of the next step [14]", &Some(due_at), &s.next_due().await?)?;
    s.turn(TIMEOUT);
    let reaped = s.reap(10).await?.steps_timed_out;
    equal("a step that was begun with a completion times out like any other [5, 14]", &1, &reaped)
}

async fn a_timed_out_step_is_retried_by_its_policy(s: Scenario) -> Verdict {
    s.start_one().await?;
    let policy = RetryPolicy { max_attempts: 2, first_delay: TIMEOUT, jitter: 0.0, ..RetryPolicy::default() };
    for attempt in 1..=2 {
        let held = s.claim_one("w1").await?;
        begin_bounded(&held, "a", Some(policy.clone())).await?;
        s.turn(TIMEOUT);
        let reaped = s.reap(10).await?;
        let given_up = StepsGivenUp { retries_exhausted: attempt - 1, ..StepsGivenUp::default() };
        equal("what was given up is told apart", &given_up, &reaped.steps_given_up)?;
        let run = s.run(held.run_id()).await?.run;
        let found = (run.state, run.due_at, run.dead_letter);
        if attempt == 1 {
            let due_at = s.now().saturating_add(TIMEOUT);
            equal(
                "a timed out step is tried again by its policy",
                &(RunState::Sleeping, due_at, None),
                &found,
            )?;
            s.turn(TIMEOUT);
        } else {
            let reason = Some(DeadLetterReason::RetriesExhausted);
            equal("until its attempts are used up", &(RunState::Failed, reason), &(found.0, found.2))?;
        }
    }
    Ok(())
}

async fn a_run_with_two_timed_out_steps_is_treated_once(s: Scenario) -> Verdict {
    let held = s.held().await?;
    begin_bounded(&held, "a", None).await?;
    begin_bounded(&held, "b", None).await?;
    s.turn(TIMEOUT);
    equal("one run, one treatment [14]", &1, &s.reap(10).await?.total())?;
    let mut states: Vec<_> = s.attempts(held.run_id()).await?.iter().map(|a| a.state).collect();
    states.sort_unstable();
    equal(
        "one timed out, the other went with it [5]",
        &vec![AttemptState::Failed, AttemptState::Abandoned],
        &states,
    )?;
    equal("and nothing is left to do", &0, &s.reap(10).await?.total())
}

async fn of_two_late_steps_the_one_that_is_late_longest_has_timed_out(s: Scenario) -> Verdict {
    let held = s.held().await?;
    // Neither the order of their names nor that of their beginnings, but that of their timeouts.
    for (step, timeout) in [("a", TIMEOUT), ("z", TIMEOUT / 2), ("b", TIMEOUT)] {
        let mut request = held.begin_request(step)?;
        request.step.timeout = Some(timeout);
        held.store().begin_step(request).await.map_err(|e| Violation::refused("a begin", &e))?;
    }
    s.turn(TIMEOUT);
    equal("the run is treated once [14]", &1, &s.reap(10).await?.steps_timed_out)?;
    let attempts = s.attempts(held.run_id()).await?;
    let failed = attempts.iter().filter(|attempt| attempt.state == AttemptState::Failed);
    let failed: Vec<&str> = failed.map(|attempt| attempt.step_id.as_str()).collect();
    equal("of several late steps the one that is late longest has timed out [5]", &vec!["z"], &failed)
}

async fn a_run_with_many_late_steps_hides_no_other(s: Scenario) -> Verdict {
    let long = |limit| Ok(Claim { lease_length: LEASE * 9, ..s.claim_request("w1", limit)? });
    s.start_many(2).await?;
    let claimed = s.claim_as(long(2)?).await?;
    let mut held = claimed.into_iter().map(|run| Held::new(s.clone(), run));
    let (Some(first), Some(second)) = (held.next(), held.next()) else {
        return Err(Violation::new("two due runs are claimable [10]", "2 claimed runs", "fewer"));
    };
    for step in ["a", "b", "c"] {
        begin_bounded(&first, step, None).await?;
    }
    s.turn(Duration::from_millis(1));
    begin_bounded(&second, "a", None).await?;
    s.turn(TIMEOUT);
    let reaped = s.reap(3).await?;
    equal(
        "a reap with room for two runs treats both, however many late steps the first has [14]",
        &(2, MoreDue::No),
        &(reaped.steps_timed_out, reaped.more),
    )
}

/// Holds `count` runs with an open step whose timeout has passed, under leases that last.
async fn late_steps(s: &Scenario, count: u32) -> Verdict {
    s.start_many(count as usize).await?;
    for run in s.claim_as(Claim { lease_length: LEASE * 9, ..s.claim_request("w1", count)? }).await? {
        begin_bounded(&Held::new(s.clone(), run), "a", None).await?;
    }
    Ok(())
}

async fn timed_out_steps_count_against_the_limit(s: Scenario) -> Verdict {
    late_steps(&s, 7).await?;
    s.turn(TIMEOUT);
    let mut treated = Vec::new();
    for _ in 0..4 {
        treated.push(s.reap(3).await?.steps_timed_out);
    }
    equal("a reap treats at most its limit of timed out steps [14]", &vec![3, 3, 1, 0], &treated)
}

async fn the_limit_holds_over_leases_and_steps_together(s: Scenario) -> Verdict {
    s.on_queue("leases")?.start_many(2).await?;
    s.on_queue("leases")?.claim("w1", 2).await?;
    late_steps(&s, 3).await?;
    s.turn(LEASE);
    let (first, second) = (s.reap(4).await?, s.reap(4).await?);
    equal("the limit is of the reap, not of each kind [14]", &(4, 1), &(first.total(), second.total()))?;
    let kinds =
        (first.leases_expired + second.leases_expired, first.steps_timed_out + second.steps_timed_out);
    equal("and nothing is left out", &(2, 3), &kinds)
}

async fn the_longest_overdue_is_treated_first_whatever_it_is(s: Scenario) -> Verdict {
    // In the order of their moments: a sleeper, a step, a lease, a step, a lease.
    let sleeper = s.on_queue("sleepers")?.held().await?;
    sleeper.sleep("nap", Duration::from_secs(1)).await?;
    late_steps(&s, 1).await?;
    s.turn(Duration::from_secs(1));
    let leases = s.on_queue("leases")?;
    leases.start_many(2).await?;
    let claim = || Ok(Claim { lease_length: TIMEOUT, ..leases.claim_request("w1", 1)? });
    leases.claim_as(claim()?).await?;
    s.turn(Duration::from_secs(1));
    late_steps(&s, 1).await?;
    s.turn(Duration::from_secs(1));
    leases.claim_as(claim()?).await?;
    s.turn(TIMEOUT);
    let mut order = Vec::new();
    for _ in 0..5 {
        let one = s.reap(1).await?;
        equal("one at a time [14]", &1, &one.total())?;
        order.push((one.woken, one.steps_timed_out, one.leases_expired));
    }
    let by_time = vec![(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 0), (0, 0, 1)];
    equal("the longest overdue goes first, be it a sleeper, a step or a lease [14]", &by_time, &order)
}

async fn the_steps_that_are_late_longest_come_first_whatever_the_ids_of_their_runs(s: Scenario) -> Verdict {
    s.start_many(10).await?;
    let claimed = s.claim_as(Claim { lease_length: LEASE * 9, ..s.claim_request("w1", 10)? }).await?;
    let mut held: Vec<Held> = claimed.into_iter().map(|run| Held::new(s.clone(), run)).collect();
    // The step of the largest id is late first.
    held.sort_unstable_by_key(|held| std::cmp::Reverse(held.run_id()));
    for one in &held {
        begin_bounded(one, "a", None).await?;
        s.turn(Duration::from_millis(1));
    }
    s.turn(TIMEOUT);
    for treated in 1..=held.len() {
        equal("one late step is treated", &1, &s.reap(1).await?.steps_timed_out)?;
        let mut states = Vec::new();
        for one in &held {
            states.push(s.run(one.run_id()).await?.run.state);
        }
        let expected = (0..held.len())
            .map(|place| if place < treated { RunState::Sleeping } else { RunState::Running })
            .collect();
        let rule = "the step that is late longest is treated first, whatever the id of its run [14]";
        equal(rule, &expected, &states)?;
    }
    Ok(())
}

async fn a_completed_step_times_out_no_more(s: Scenario) -> Verdict {
    let held = s.held().await?;
    begin_bounded(&held, "a", None).await?;
    held.complete("a", 1, "1").await?;
    let before = held.snapshot().await?;
    s.turn(TIMEOUT);
    equal("a completed step has all the time", &0, &s.reap(10).await?.total())?;
    s.unchanged(&before, "and nothing changes [4]").await
}

async fn an_abandoned_attempt_times_out_no_more(s: Scenario) -> Verdict {
    let first = s.held().await?;
    begin_bounded(&first, "a", None).await?;
    first.release().await?;
    let second = s.claim_one("w2").await?;
    second.begin("b").await?;
    let before = second.snapshot().await?;
    s.turn(TIMEOUT);
    equal("the timeout of an older lease's attempt is over [5]", &0, &s.reap(10).await?.total())?;
    s.unchanged(&before, "and the new holder is untouched [2]").await
}

async fn a_step_past_its_timeout_that_nobody_reaped_may_still_complete(s: Scenario) -> Verdict {
    let held = s.held().await?;
    begin_bounded(&held, "a", None).await?;
    s.turn(TIMEOUT + Duration::from_secs(1));
    held.complete("a", 1, "1").await?;
    under(
        "a step past its timeout may complete until somebody reaps it [2]",
        equal("safety never depends on a clock [2]", &0, &s.reap(10).await?.total()),
    )
}

async fn due(s: &Scenario, rule: &str, expected: Option<Timestamp>) -> Verdict {
    equal(rule, &expected, &s.next_due().await?)
}

async fn next_due_is_nothing_when_there_is_nothing(s: Scenario) -> Verdict {
    due(&s, "an empty store waits for nothing", None).await?;
    s.start_one().await?;
    due(&s, "a run that waits for a worker waits for no time", None).await?;
    s.claim_one("w1").await?.complete_run("1").await?;
    due(&s, "a finished run waits for nothing", None).await
}

async fn next_due_names_the_nearest_sleeper(s: Scenario) -> Verdict {
    for seconds in [30, 10, 20] {
        let start_at = StartAt::After(Duration::from_secs(seconds));
        s.start(StartRun { start_at, ..s.start_request() }).await?;
    }
    let nearest = s.now().saturating_add(Duration::from_secs(10));
    due(&s, "the nearest sleeper, to the microsecond [10]", Some(nearest)).await?;
    let other = s.in_namespace("globex")?;
    let start_at = StartAt::After(Duration::from_secs(5));
    other.start(StartRun { start_at, ..other.start_request() }).await?;
    let nearest = s.now().saturating_add(Duration::from_secs(5));
    due(&s, "over every namespace, since one reaper serves all", Some(nearest)).await
}

async fn next_due_names_the_nearest_lease(s: Scenario) -> Verdict {
    s.held().await?;
    let nearest = s.now().saturating_add(LEASE);
    s.turn(Duration::from_secs(5));
    s.held().await?;
    due(&s, "the lease that expires first [14]", Some(nearest)).await?;
    s.turn(LEASE * 2);
    due(&s, "also when it is overdue", Some(nearest)).await
}

async fn next_due_names_the_nearest_deadline_and_step_timeout(s: Scenario) -> Verdict {
    let request = StartRun { run_timeout: Some(TIMEOUT * 2), ..s.start_request() };
    s.start(request).await?;
    let deadline = s.now().saturating_add(TIMEOUT * 2);
    due(&s, "the deadline of a run that waits [14]", Some(deadline)).await?;
    let claim = Claim { lease_length: LEASE * 9, ..s.claim_request("w1", 1)? };
    let held = s.claim_as(claim).await?.pop().map(|run| Held::new(s.clone(), run));
    let held = held.ok_or_else(|| Violation::new("a due run is claimable [10]", "1", "0"))?;
    due(&s, "or of one that is held, before its lease [14]", Some(deadline)).await?;
    begin_bounded(&held, "a", None).await?;
    due(&s, "and before it, that of a step [14]", Some(s.now().saturating_add(TIMEOUT))).await?;
    held.complete("a", 1, "1").await?;
    due(&s, "until the step has ended [14]", Some(deadline)).await
}

async fn next_due_moves_with_a_heartbeat(s: Scenario) -> Verdict {
    let held = s.held().await?;
    s.turn(Duration::from_secs(20));
    let granted = held.heartbeat().await?;
    due(&s, "a heartbeat moves the moment [14]", Some(granted.expires_at)).await
}

async fn next_due_forgets_what_has_ended(s: Scenario) -> Verdict {
    let held = s.held().await?;
    begin_bounded(&held, "a", None).await?;
    held.release().await?;
    due(&s, "a released run waits for no time [14]", None).await?;
    let start_at = StartAt::After(Duration::from_secs(5));
    let sleeper = s.start(StartRun { start_at, ..s.start_request() }).await?.run_id;
    s.cancel(sleeper).await?;
    due(&s, "nor does a cancelled one [6]", None).await?;
    s.claim_one("w1").await?.complete_run("1").await?;
    due(&s, "nor a completed one [6]", None).await
}

async fn nothing_is_due_after_everything_was_reaped(s: Scenario) -> Verdict {
    s.start_many(10).await?;
    s.claim("w1", 5).await?;
    for run in s.claim("w1", 5).await? {
        Held::new(s.clone(), run).sleep("nap", TIMEOUT).await?;
    }
    s.turn(LEASE);
    s.reap_all().await?;
    due(&s, "a reaper that has done everything may sleep [14]", None).await
}

async fn a_held_run_that_beats_times_out(s: Scenario) -> Verdict {
    s.start(bounded(&s)).await?;
    let deadline = s.now().saturating_add(TIMEOUT);
    let held = s.claim_one("w1").await?;
    s.turn(Duration::from_secs(1));
    held.heartbeat().await?;
    due(&s, "a heartbeat moves the lease, not the deadline [14]", Some(deadline)).await?;
    s.turn(TIMEOUT);
    equal(
        "a worker that lives does not keep its run from timing out",
        &1,
        &s.reap(10).await?.runs_timed_out,
    )?;
    timed_out(&s, held.run_id()).await
}

async fn next_due_forgets_the_timeout_of_a_completed_step(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let expiry = s.now().saturating_add(LEASE);
    begin_bounded(&held, "a", None).await?;
    held.complete("a", 1, "1").await?;
    due(&s, "a completed step waits for no time [14]", Some(expiry)).await?;
    let mut next = NextStep::new(step_id("c")?, 2);
    next.timeout = Some(TIMEOUT);
    begin_bounded(&held, "b", None).await?;
    held.complete_then("b", 1, "1", Then::Begin(next)).await?;
    held.complete("c", 1, "1").await?;
    due(&s, "nor does one that was begun with the end of another [14]", Some(expiry)).await
}
