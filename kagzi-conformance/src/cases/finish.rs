//! The ends of a run: completed, failed, cancelled, and that nothing moves it after.

use std::time::Duration;

use kagzi_core::{
    AttemptState, CancelOutcome, CompleteRunOutcome, DeadLetterReason, Failure, FailureKind, FailureOutcome,
    Payload, RequeueOutcome, RunState, StartAt, StartRun,
};

use crate::case::cases;
use crate::scenario::{
    Held, LEASE, Scenario, check, equal, fatal, hiccup, lease_lost, operation_conflict, race, refused, under,
};
use crate::violation::{Verdict, Violation};

cases! {
    "finish";
    [15] completing_sets_output_state_and_time_together;
    [15] failing_sets_failure_reason_state_and_time_together;
    [15] cancelling_sets_reason_state_and_time_together;
    [12] a_run_completes_with_an_empty_output;
    [8] completing_again_with_the_same_operation_agrees;
    [6] completing_again_with_another_operation_is_refused;
    [8] failing_again_with_the_same_operation_agrees;
    [8] a_failure_that_ended_its_run_is_answered_alike_when_sent_again;
    [6] of_many_concurrent_completions_one_wins;
    [6] completing_against_failing_one_wins;
    [5] the_open_attempts_of_a_completed_run_are_abandoned;
    [5] the_open_attempts_of_a_failed_run_are_abandoned;
    [5] the_open_attempts_of_a_cancelled_run_are_abandoned;
    [5] open_attempts_are_abandoned_whatever_another_handle_wrote_meanwhile needs SecondHandle;
    [6] a_pending_run_is_cancelled;
    [6] a_delayed_run_is_cancelled;
    [2, 6] a_running_run_is_cancelled_under_its_worker;
    [6] a_run_that_waits_for_a_retry_is_cancelled_and_never_retried;
    [8] cancelling_again_with_the_same_operation_agrees;
    [6] cancelling_again_with_another_operation_says_it_was_finished;
    [6] cancelling_a_completed_run_says_so_and_changes_nothing;
    [6] cancelling_a_dead_letter_says_so_and_changes_nothing;
    [8] a_cancellation_that_came_late_still_says_so_when_sent_again;
    [6] cancel_against_complete_everyone_sees_the_same_winner;
    [6] cancel_against_claim_a_cancelled_run_is_held_by_nobody;
    [6] many_concurrent_cancellations_are_one;
    [6] a_reap_moves_no_finished_run;
    [6] a_requeue_moves_no_completed_run;
    [6] a_requeue_moves_no_cancelled_run;
    [8] an_operation_id_of_a_cancellation_is_no_requeue;
    [2] a_run_past_its_deadline_that_nobody_reaped_may_still_complete;
    [9] a_completion_whose_reply_was_lost_is_not_undone_by_time;
}

async fn completing_sets_output_state_and_time_together(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let mut expected = held.snapshot().await?;
    s.turn(Duration::from_secs(2));
    let request = held.complete_run_request("{\"ok\":true}");
    let run = &mut expected.record.run;
    run.state = RunState::Completed;
    (run.worker_id, run.lease_expires_at, run.claim_operation) = (None, None, None);
    run.finish_operation = Some(request.operation);
    run.updated_at = s.now();
    run.finished_at = Some(s.now());
    expected.record.output = Some(Payload::json("{\"ok\":true}"));
    held.store().complete_run(request).await.map_err(|e| Violation::refused("completing a run", &e))?;
    s.unchanged(&expected, "a completion writes output, state and time, and nothing else [15]").await
}

async fn failing_sets_failure_reason_state_and_time_together(s: Scenario) -> Verdict {
    let held = s.held().await?;
    s.turn(Duration::from_secs(2));
    let answer = held.fail_run(fatal()).await?;
    equal(
        "the answer says what became of it",
        &FailureOutcome::DeadLetter(DeadLetterReason::NonRetryable),
        &answer,
    )?;
    let record = s.run(held.run_id()).await?;
    let run = record.run;
    equal("the run is FAILED", &RunState::Failed, &run.state)?;
    equal("with its failure [12]", &Some(fatal()), &run.failure)?;
    equal("as a dead letter with its reason", &Some(DeadLetterReason::NonRetryable), &run.dead_letter)?;
    equal("at its time", &(s.now(), Some(s.now())), &(run.updated_at, run.finished_at))?;
    equal(
        "held by nobody [1]",
        &(None, None, None),
        &(run.worker_id, run.lease_expires_at, run.claim_operation),
    )?;
    equal("without output", &None, &record.output)
}

async fn cancelling_sets_reason_state_and_time_together(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let mut expected = held.snapshot().await?;
    s.turn(Duration::from_secs(2));
    let run = &mut expected.record.run;
    run.state = RunState::Cancelled;
    (run.worker_id, run.lease_expires_at, run.claim_operation) = (None, None, None);
    run.failure = Some(Failure::new(FailureKind::Cancelled, "cancelled", "no longer wanted"));
    run.updated_at = s.now();
    run.finished_at = Some(s.now());
    equal("a live run is cancelled", &CancelOutcome::Cancelled, &s.cancel(held.run_id()).await?)?;
    s.unchanged(&expected, "a cancellation writes reason, state and time, and nothing else [15]").await
}

async fn a_run_completes_with_an_empty_output(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let request = kagzi_core::CompleteRun { output: Payload::empty(), ..held.complete_run_request("") };
    held.store().complete_run(request).await.map_err(|e| Violation::refused("an empty output", &e))?;
    equal("no bytes are an output too [12]", &Some(Payload::empty()), &s.run(held.run_id()).await?.output)
}

async fn completing_again_with_the_same_operation_agrees(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let request = held.complete_run_request("1");
    let send = async || {
        held.store().complete_run(request.clone()).await.map_err(|e| Violation::refused("completing", &e))
    };
    equal("a run completes", &CompleteRunOutcome::Completed, &send().await?)?;
    let before = held.snapshot().await?;
    s.turn(LEASE * 2);
    equal("a repeat agrees [8]", &CompleteRunOutcome::Completed, &send().await?)?;
    s.unchanged(&before, "and has no second effect [6, 8]").await
}

async fn completing_again_with_another_operation_is_refused(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.complete_run("1").await?;
    let before = held.snapshot().await?;
    let answer = held.store().complete_run(held.complete_run_request("2")).await;
    lease_lost(&answer, "a finished run is not finished again [6]")?;
    s.unchanged(&before, "and its output stays [6]").await
}

async fn failing_again_with_the_same_operation_agrees(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let request = held.fail_run_request(hiccup());
    let send =
        async || held.store().fail_run(request.clone()).await.map_err(|e| Violation::refused("failing", &e));
    let first = send().await?;
    let before = held.snapshot().await?;
    s.turn(Duration::from_secs(1));
    equal("a repeat gets the first answer [8]", &first, &send().await?)?;
    s.unchanged(&before, "and uses up no second attempt [8]").await?;
    s.turn(Duration::from_secs(9));
    let second = s.claim_one("w2").await?;
    let before = second.snapshot().await?;
    equal("even under the next lease [8]", &first, &send().await?)?;
    s.unchanged(&before, "which it does not touch [2]").await
}

async fn a_failure_that_ended_its_run_is_answered_alike_when_sent_again(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let request = held.fail_run_request(fatal());
    let send =
        async || held.store().fail_run(request.clone()).await.map_err(|e| Violation::refused("failing", &e));
    let first = send().await?;
    let before = held.snapshot().await?;
    equal("a failure that ended its run gets the first answer again [8]", &first, &send().await?)?;
    s.unchanged(&before, "and ends it once [6]").await?;
    s.requeue(held.run_id()).await?;
    equal("even after the run was requeued [8]", &first, &send().await?)
}

async fn of_many_concurrent_completions_one_wins(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let answers = race(32, |number| {
        let held = held.clone();
        async move {
            let request = held.complete_run_request(&number.to_string());
            Ok(held.store().complete_run(request).await.map(|_| number))
        }
    })
    .await?;
    let winners: Vec<usize> = answers.iter().filter_map(|answer| answer.as_ref().ok().copied()).collect();
    equal("one completion wins [6]", &1, &winners.len())?;
    let output = s.run(held.run_id()).await?.output;
    equal("and the output is the winner's [15]", &Some(Payload::json(winners[0].to_string())), &output)
}

/// Many held runs.
async fn many_held(s: &Scenario, count: u32) -> Result<Vec<Held>, Violation> {
    s.start_many(count as usize).await?;
    Ok(s.claim("w1", count).await?.into_iter().map(|run| Held::new(s.clone(), run)).collect())
}

async fn completing_against_failing_one_wins(s: Scenario) -> Verdict {
    let held = many_held(&s, 20).await?;
    let told = race(40, |number| {
        let held = held[number / 2].clone();
        async move {
            Ok(if number % 2 == 0 {
                held.store().complete_run(held.complete_run_request("1")).await.is_ok()
            } else {
                held.store().fail_run(held.fail_run_request(fatal())).await.is_ok()
            })
        }
    })
    .await?;
    for (held, told) in held.iter().zip(told.chunks(2)) {
        let record = s.run(held.run_id()).await?;
        let found = (record.run.state, record.output.is_some(), record.run.failure.is_some());
        let expected = match told {
            [true, false] => (RunState::Completed, true, false),
            [false, true] => (RunState::Failed, false, true),
            both => return check(false, "a run is completed or failed, never both [6]", "one of them", both),
        };
        equal("and everyone sees the same winner, whole [6, 15]", &expected, &found)?;
    }
    Ok(())
}

/// A held run with a completed and an open attempt.
async fn with_an_open_attempt(s: &Scenario) -> Result<Held, Violation> {
    let held = s.held().await?;
    held.step("done", "1").await?;
    held.begin("open").await?;
    s.turn(Duration::from_secs(1));
    Ok(held)
}

async fn open_is_abandoned(s: &Scenario, held: &Held) -> Verdict {
    let attempts = s.attempts(held.run_id()).await?;
    let states: Vec<_> = attempts.iter().map(|a| a.state).collect();
    let expected = vec![AttemptState::Completed, AttemptState::Abandoned];
    equal("a finished run has no open attempts, and keeps its completed ones [4, 5]", &expected, &states)?;
    equal("abandoned at the moment of the end", &Some(s.now()), &attempts[1].finished_at)
}

async fn the_open_attempts_of_a_completed_run_are_abandoned(s: Scenario) -> Verdict {
    let held = with_an_open_attempt(&s).await?;
    held.complete_run("1").await?;
    under("completing a run abandons its open attempts [5]", open_is_abandoned(&s, &held).await)
}

async fn the_open_attempts_of_a_failed_run_are_abandoned(s: Scenario) -> Verdict {
    let held = with_an_open_attempt(&s).await?;
    held.fail_run(fatal()).await?;
    under("failing a run abandons its open attempts [5]", open_is_abandoned(&s, &held).await)
}

async fn the_open_attempts_of_a_cancelled_run_are_abandoned(s: Scenario) -> Verdict {
    let held = with_an_open_attempt(&s).await?;
    s.cancel(held.run_id()).await?;
    under("cancelling a run abandons its open attempts [5]", open_is_abandoned(&s, &held).await)
}

async fn open_attempts_are_abandoned_whatever_another_handle_wrote_meanwhile(s: Scenario) -> Verdict {
    let held = with_an_open_attempt(&s).await?;
    // What this handle remembers of the attempts is put to the test.
    s.second_handle().await?.on_queue("elsewhere")?.start_one().await?;
    held.complete_run("1").await?;
    let rule = "completing a run abandons attempts that were begun before another handle wrote [5]";
    under(rule, open_is_abandoned(&s, &held).await)
}

async fn a_pending_run_is_cancelled(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    equal("a run that waits is cancelled", &CancelOutcome::Cancelled, &s.cancel(run_id).await?)?;
    equal("at once", &RunState::Cancelled, &s.run(run_id).await?.run.state)?;
    s.nothing_claimable("and never taken [6]").await
}

async fn a_delayed_run_is_cancelled(s: Scenario) -> Verdict {
    let start_at = StartAt::After(Duration::from_secs(5));
    let run_id = s.start(StartRun { start_at, ..s.start_request() }).await?.run_id;
    equal("a run that is not yet due is cancelled", &CancelOutcome::Cancelled, &s.cancel(run_id).await?)?;
    s.turn(Duration::from_secs(5));
    equal("its time wakes it no more [6]", &0, &s.reap(10).await?.total())?;
    s.nothing_claimable("and it is never taken [6]").await
}

async fn a_running_run_is_cancelled_under_its_worker(s: Scenario) -> Verdict {
    let held = s.held().await?;
    s.cancel(held.run_id()).await?;
    let answer = held.store().begin_step(held.begin_request("a")?).await;
    lease_lost(&answer, "its worker learns of it with the next write [2]")?;
    s.turn(LEASE);
    equal("and its lease expires no more", &0, &s.reap(10).await?.total())?;
    s.nothing_claimable("and nobody takes it [6]").await
}

async fn a_run_that_waits_for_a_retry_is_cancelled_and_never_retried(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.begin("a").await?;
    held.fail("a", 1, hiccup()).await?;
    equal("a retry that waits is cancelled", &CancelOutcome::Cancelled, &s.cancel(held.run_id()).await?)?;
    s.turn(Duration::from_hours(1));
    s.reap_all().await?;
    s.nothing_claimable("a cancelled run's retry does not execute [6]").await
}

async fn cancelling_again_with_the_same_operation_agrees(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    let request = s.cancel_request(run_id);
    let send =
        async || s.store().cancel(request.clone()).await.map_err(|e| Violation::refused("cancelling", &e));
    equal("a run is cancelled", &CancelOutcome::Cancelled, &send().await?)?;
    let before = s.snapshot(run_id).await?;
    s.turn(Duration::from_secs(1));
    equal("a repeat gets the first answer [8]", &CancelOutcome::Cancelled, &send().await?)?;
    s.unchanged(&before, "and has no second effect [8]").await
}

/// Asserts that a cancellation finds the run finished and leaves it so.
async fn already_finished(s: &Scenario, held: &Held, state: RunState) -> Verdict {
    let before = held.snapshot().await?;
    s.turn(Duration::from_secs(1));
    let answer = s.cancel(held.run_id()).await?;
    equal("a cancellation that comes late says so [6]", &CancelOutcome::AlreadyFinished(state), &answer)?;
    s.unchanged(&before, "and changes nothing [6]").await
}

async fn cancelling_again_with_another_operation_says_it_was_finished(s: Scenario) -> Verdict {
    let held = s.held().await?;
    s.cancel(held.run_id()).await?;
    under(
        "another cancellation finds the run finished [6]",
        already_finished(&s, &held, RunState::Cancelled).await,
    )
}

async fn cancelling_a_completed_run_says_so_and_changes_nothing(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.complete_run("1").await?;
    under(
        "a cancellation finds a completed run finished [6]",
        already_finished(&s, &held, RunState::Completed).await,
    )
}

async fn cancelling_a_dead_letter_says_so_and_changes_nothing(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.fail_run(fatal()).await?;
    under(
        "a cancellation finds a dead letter finished [6]",
        already_finished(&s, &held, RunState::Failed).await,
    )
}

async fn a_cancellation_that_came_late_still_says_so_when_sent_again(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.fail_run(fatal()).await?;
    let request = s.cancel_request(held.run_id());
    let send =
        async || s.store().cancel(request.clone()).await.map_err(|e| Violation::refused("cancelling", &e));
    let first = send().await?;
    s.requeue(held.run_id()).await?;
    let before = held.snapshot().await?;
    equal("a repeat gets the first answer [8]", &first, &send().await?)?;
    s.unchanged(&before, "and does not cancel the run that was put back to work [8]").await
}

async fn cancel_against_complete_everyone_sees_the_same_winner(s: Scenario) -> Verdict {
    let held = many_held(&s, 24).await?;
    let told = race(48, |number| {
        let (s, held) = (s.clone(), held[number / 2].clone());
        async move {
            Ok(if number % 2 == 0 {
                held.store().complete_run(held.complete_run_request("1")).await.is_ok()
            } else {
                s.cancel(held.run_id()).await? == CancelOutcome::Cancelled
            })
        }
    })
    .await?;
    for (held, told) in held.iter().zip(told.chunks(2)) {
        let record = s.run(held.run_id()).await?;
        let found = (record.run.state, record.output.is_some());
        let expected = match told {
            [true, false] => (RunState::Completed, true),
            [false, true] => (RunState::Cancelled, false),
            both => {
                return check(false, "a run is completed or cancelled, never both [6]", "one of them", both);
            }
        };
        equal("and everyone sees the same one [6, 15]", &expected, &found)?;
    }
    Ok(())
}

async fn cancel_against_claim_a_cancelled_run_is_held_by_nobody(s: Scenario) -> Verdict {
    let ids = s.start_many(24).await?;
    race(48, |number| {
        let (s, run_id) = (s.clone(), ids[number / 2]);
        async move {
            if number % 2 == 0 {
                s.claim("w1", 2).await?;
            } else {
                equal("a live run is cancelled", &CancelOutcome::Cancelled, &s.cancel(run_id).await?)?;
            }
            Ok(())
        }
    })
    .await?;
    for run_id in ids {
        let run = s.run(run_id).await?.run;
        let found = (run.state, run.worker_id, run.lease_expires_at);
        equal("cancelled stays, whichever came first [1, 6]", &(RunState::Cancelled, None, None), &found)?;
    }
    Ok(())
}

async fn many_concurrent_cancellations_are_one(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let answers = race(16, |_| {
        let (s, run_id) = (s.clone(), held.run_id());
        async move { s.cancel(run_id).await }
    })
    .await?;
    let won = answers.iter().filter(|answer| **answer == CancelOutcome::Cancelled).count();
    equal("one cancels, the others are told that it is finished [6]", &1, &won)
}

async fn a_reap_moves_no_finished_run(s: Scenario) -> Verdict {
    let timeout = StartRun { run_timeout: Some(LEASE), ..s.start_request() };
    let mut before = Vec::new();
    for state in [RunState::Completed, RunState::Failed, RunState::Cancelled] {
        s.start(StartRun { operation: kagzi_core::OperationId::generate(), ..timeout.clone() }).await?;
        let held = s.claim_one("w1").await?;
        let mut begin = held.begin_request("a")?;
        begin.step.timeout = Some(Duration::from_secs(1));
        held.store().begin_step(begin).await.map_err(|e| Violation::refused("a begin", &e))?;
        match state {
            RunState::Completed => held.complete_run("1").await?,
            RunState::Failed => drop(held.fail_run(fatal()).await?),
            _ => drop(s.cancel(held.run_id()).await?),
        }
        before.push(held.snapshot().await?);
    }
    s.turn(LEASE * 10);
    equal("time has nothing to say about a finished run [6]", &0, &s.reap(10).await?.total())?;
    equal("nor will it", &None, &s.next_due().await?)?;
    for before in &before {
        s.unchanged(before, "terminal states are final [6]").await?;
    }
    Ok(())
}

async fn not_requeued(s: &Scenario, held: &Held) -> Verdict {
    let before = held.snapshot().await?;
    let answer = s.store().requeue(s.requeue_request(held.run_id())).await;
    refused(&answer, "WRONG_STATE", "only a dead letter is put back to work [6]")?;
    s.unchanged(&before, "and the refusal changes nothing [15]").await
}

async fn a_requeue_moves_no_completed_run(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.complete_run("1").await?;
    under("a requeue moves no completed run [6]", not_requeued(&s, &held).await)
}

async fn a_requeue_moves_no_cancelled_run(s: Scenario) -> Verdict {
    let held = s.held().await?;
    s.cancel(held.run_id()).await?;
    under("a requeue moves no cancelled run [6]", not_requeued(&s, &held).await)
}

async fn an_operation_id_of_a_cancellation_is_no_requeue(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.fail_run(fatal()).await?;
    let cancel = s.cancel_request(held.run_id());
    s.store().cancel(cancel.clone()).await.map_err(|e| Violation::refused("cancelling", &e))?;
    let before = held.snapshot().await?;
    let requeue = kagzi_core::RequeueRun { operation: cancel.operation, ..s.requeue_request(held.run_id()) };
    operation_conflict(&s.store().requeue(requeue).await, "an operation id names one operation [8]")?;
    s.unchanged(&before, "and the refusal changes nothing [15]").await?;
    equal("an id of its own is accepted", &RequeueOutcome::Requeued, &s.requeue(held.run_id()).await?)
}

async fn a_run_past_its_deadline_that_nobody_reaped_may_still_complete(s: Scenario) -> Verdict {
    s.start(StartRun { run_timeout: Some(Duration::from_secs(5)), ..s.start_request() }).await?;
    let held = s.claim_one("w1").await?;
    s.turn(Duration::from_secs(6));
    held.complete_run("1").await?;
    equal(
        "safety never depends on a clock [2]",
        &RunState::Completed,
        &s.run(held.run_id()).await?.run.state,
    )?;
    equal("and a completed run times out no more [6]", &0, &s.reap(10).await?.total())
}

async fn a_completion_whose_reply_was_lost_is_not_undone_by_time(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let request = held.complete_run_request("1");
    held.store().complete_run(request.clone()).await.map_err(|e| Violation::refused("completing", &e))?;
    // The worker did not hear the answer and goes on to beat for its lease.
    let beat = held.try_heartbeat(held.heartbeat_request()).await?;
    lease_lost(&beat, "a heartbeat does not revive a finished run [6]")?;
    s.turn(LEASE);
    s.reap_all().await?;
    let answer = held.store().complete_run(request).await.map_err(|e| Violation::refused("a repeat", &e))?;
    equal("the repeat gets the first answer [8]", &CompleteRunOutcome::Completed, &answer)
}
