//! Dead letters: found, and put back to work.

use std::time::Duration;

use kagzi_core::{
    AttemptState, BeginOutcome, DeadLetterReason, DeleteFinished, FailureOutcome, FencingToken, ListRuns,
    PageRequest, RequeueOutcome, RunFilter, RunId, RunState, StartRun,
};

use crate::case::cases;
use crate::scenario::{
    Held, LEASE, Scenario, check, equal, fatal, hiccup, in_turn, lease_lost, race, refused, run_not_found,
    under,
};
use crate::violation::{Verdict, Violation};

cases! {
    "dead_letters";
    [6] every_failed_run_is_a_dead_letter_with_its_reason;
    [14] dead_letters_are_listed_in_pages;
    [15] a_requeue_makes_the_run_due_and_clears_its_failure;
    [4] a_requeued_run_resumes_at_the_step_that_failed;
    [5] attempt_numbers_go_on_after_a_requeue;
    [14] a_requeue_gives_the_step_a_fresh_budget;
    [14] a_requeue_gives_the_run_a_fresh_budget;
    [14] a_requeue_gives_the_poison_count_a_fresh_start;
    [14] a_requeue_gives_a_fresh_deadline;
    [1] a_requeue_keeps_the_token_growing;
    [6] a_requeue_of_a_live_run_is_refused;
    [8] the_same_requeue_again_agrees;
    [8] the_same_requeue_again_after_another_failure_has_no_second_effect;
    [6] a_second_requeue_with_another_operation_is_refused;
    [6] of_many_concurrent_requeues_one_wins;
    [1] a_requeue_against_claims_hands_the_run_out_once;
    [15] a_requeue_against_a_removal_keeps_the_run_or_finds_it_gone;
    [2] the_worker_that_failed_the_run_has_no_lease_after_the_requeue;
    [6] a_requeued_run_can_be_cancelled;
}

/// A run given up after completing step `done` and failing step `flaky`.
async fn dead_letter(s: &Scenario) -> Result<Held, Violation> {
    let held = s.held().await?;
    held.step("done", "\"kept\"").await?;
    held.begin("flaky").await?;
    held.fail("flaky", 1, fatal()).await?;
    Ok(held)
}

async fn every_failed_run_is_a_dead_letter_with_its_reason(s: Scenario) -> Verdict {
    let exhausted = s.held().await?;
    let mut begin = exhausted.begin_request("a")?;
    begin.step.retry = Some(kagzi_core::RetryPolicy::never());
    s.store().begin_step(begin).await.map_err(|e| Violation::refused("a begin", &e))?;
    exhausted.fail("a", 1, hiccup()).await?;
    let non_retryable = s.held().await?;
    non_retryable.fail_run(fatal()).await?;
    s.start(StartRun { run_timeout: Some(LEASE), ..s.start_request() }).await?;
    let late = s.claim_one("w1").await?;
    s.turn(LEASE);
    s.reap_all().await?;
    let poison = s.held().await?;
    for _ in 0..2 {
        s.turn(LEASE);
        s.claim_one("w1").await?;
    }
    s.turn(LEASE);
    s.reap_all().await?;
    let expected = [
        (exhausted, DeadLetterReason::RetriesExhausted),
        (non_retryable, DeadLetterReason::NonRetryable),
        (late, DeadLetterReason::RunTimeout),
        (poison, DeadLetterReason::Poison),
    ];
    for (held, reason) in expected {
        let run = s.run(held.run_id()).await?.run;
        let found = (run.state, run.dead_letter, run.failure.is_some());
        equal("a FAILED run says why it was given up [6]", &(RunState::Failed, Some(reason), true), &found)?;
    }
    Ok(())
}

async fn dead_letters_are_listed_in_pages(s: Scenario) -> Verdict {
    s.start_many(12).await?;
    let mut failed = Vec::new();
    for (number, run) in s.claim("w1", 12).await?.into_iter().enumerate() {
        let held = Held::new(s.clone(), run);
        if number % 2 == 0 {
            held.fail_run(fatal()).await?;
            failed.push(held.run_id());
        } else {
            held.complete_run("1").await?;
        }
    }
    let mut request = ListRuns {
        namespace: s.namespace().clone(),
        filter: RunFilter { states: vec![RunState::Failed], ..RunFilter::default() },
        page: PageRequest::first(4),
    };
    let mut listed: Vec<RunId> = Vec::new();
    loop {
        let page = s.store().list_runs(&request).await.map_err(|e| Violation::refused("a listing", &e))?;
        let dead = page.items.iter().all(|run| run.dead_letter == Some(DeadLetterReason::NonRetryable));
        check(dead, "each says why it was given up", "NON_RETRYABLE", &page.items)?;
        listed.extend(page.items.iter().map(|run| run.run_id));
        request.page.cursor = page.next;
        if request.page.cursor.is_none() {
            break;
        }
    }
    listed.sort_unstable();
    failed.sort_unstable();
    equal("dead letters are the runs that FAILED, each once", &failed, &listed)
}

async fn a_requeue_makes_the_run_due_and_clears_its_failure(s: Scenario) -> Verdict {
    let held = dead_letter(&s).await?;
    s.turn(Duration::from_mins(5));
    let mut expected = held.snapshot().await?;
    let run = &mut expected.record.run;
    run.state = RunState::Pending;
    run.due_at = s.now();
    run.updated_at = s.now();
    run.budget_token = run.fencing_token;
    (run.failure, run.dead_letter, run.finished_at) = (None, None, None);
    equal("a dead letter is put back to work", &RequeueOutcome::Requeued, &s.requeue(held.run_id()).await?)?;
    s.unchanged(&expected, "a requeue makes the run due and fresh, and keeps its history [15]").await
}

async fn a_requeued_run_resumes_at_the_step_that_failed(s: Scenario) -> Verdict {
    let held = dead_letter(&s).await?;
    s.requeue(held.run_id()).await?;
    let again = s.claim_one("w2").await?;
    equal("the claim carries the history [4]", &2, &again.claimed.steps.len())?;
    match again.begin_any("done").await? {
        BeginOutcome::Memoized { attempt: 1, .. } => {}
        other => return check(false, "completed steps are kept [4]", "Memoized 1", other),
    }
    again.step("flaky", "1").await?;
    again.complete_run("1").await?;
    equal("and the run may complete", &RunState::Completed, &s.run(held.run_id()).await?.run.state)
}

async fn attempt_numbers_go_on_after_a_requeue(s: Scenario) -> Verdict {
    let held = dead_letter(&s).await?;
    s.requeue(held.run_id()).await?;
    let again = s.claim_one("w2").await?;
    equal("the failed attempt keeps its number [5]", &2, &again.begin("flaky").await?)?;
    let states: Vec<_> = s.attempts(held.run_id()).await?.iter().map(|a| (a.attempt, a.state)).collect();
    let expected = vec![(1, AttemptState::Completed), (1, AttemptState::Failed), (2, AttemptState::Running)];
    equal("the history is appended to [5]", &expected, &states)
}

async fn a_requeue_gives_the_step_a_fresh_budget(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    let mut number = 0;
    for round in 0..2 {
        for failure in 1..=3 {
            let held = s.claim_one("w1").await?;
            number += 1;
            equal("numbers go on [5]", &number, &held.begin("a").await?)?;
            let answer = held.fail("a", number, hiccup()).await?;
            let last = answer == FailureOutcome::DeadLetter(DeadLetterReason::RetriesExhausted);
            let rule = "three failures use up a budget, after a requeue too [14]";
            equal(rule, &(round, failure == 3), &(round, last))?;
            s.turn(Duration::from_mins(1));
        }
        s.requeue(run_id).await?;
    }
    Ok(())
}

async fn a_requeue_gives_the_run_a_fresh_budget(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    for _ in 0..2 {
        for failure in 1..=3 {
            let answer = s.claim_one("w1").await?.fail_run(hiccup()).await?;
            let last = answer == FailureOutcome::DeadLetter(DeadLetterReason::RetriesExhausted);
            equal("three failures use up a run's budget, after a requeue too [14]", &(failure == 3), &last)?;
            s.turn(Duration::from_mins(1));
        }
        s.requeue(run_id).await?;
    }
    Ok(())
}

async fn a_requeue_gives_the_poison_count_a_fresh_start(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    for _ in 0..3 {
        s.claim_one("w1").await?;
        s.turn(LEASE);
    }
    s.reap_all().await?;
    s.requeue(run_id).await?;
    for _ in 0..2 {
        s.claim_one("w1").await?;
        s.turn(LEASE);
    }
    s.reap_all().await?;
    let run = s.run(run_id).await?.run;
    equal("lost leases count from the requeue [14]", &(RunState::Pending, 2), &(run.state, run.lost_leases))
}

async fn a_requeue_gives_a_fresh_deadline(s: Scenario) -> Verdict {
    let run_timeout = Some(Duration::from_secs(10));
    let run_id = s.start(StartRun { run_timeout, ..s.start_request() }).await?.run_id;
    s.turn(Duration::from_secs(10));
    s.reap_all().await?;
    s.turn(Duration::from_secs(7));
    s.requeue(run_id).await?;
    let deadline = s.now().saturating_add(Duration::from_secs(10));
    equal(
        "the timeout counts from the requeue [14]",
        &Some(deadline),
        &s.run(run_id).await?.run.deadline_at,
    )?;
    equal("and is waited for", &Some(deadline), &s.next_due().await?)?;
    s.turn_almost(Duration::from_secs(10));
    s.claim_one("w1").await?.complete_run("1").await
}

async fn a_requeue_keeps_the_token_growing(s: Scenario) -> Verdict {
    let held = dead_letter(&s).await?;
    s.requeue(held.run_id()).await?;
    let tokens: (FencingToken, FencingToken) =
        (held.lease.fencing_token, s.claim_one("w1").await?.lease.fencing_token);
    under(
        "tokens grow over a requeue [1]",
        check(tokens.1 > tokens.0, "tokens only grow [1]", "a larger token", tokens),
    )
}

async fn a_requeue_of_a_live_run_is_refused(s: Scenario) -> Verdict {
    let pending = s.start_one().await?;
    let running = s.on_queue("running")?.held().await?.run_id();
    let asleep = s.on_queue("asleep")?.held().await?;
    asleep.sleep("nap", LEASE).await?;
    for run_id in [pending, running, asleep.run_id()] {
        let before = s.snapshot(run_id).await?;
        let answer = s.store().requeue(s.requeue_request(run_id)).await;
        refused(&answer, "WRONG_STATE", "a live run is not put back to work [6]")?;
        s.unchanged(&before, "and the refusal changes nothing [15]").await?;
    }
    Ok(())
}

async fn the_same_requeue_again_agrees(s: Scenario) -> Verdict {
    let held = dead_letter(&s).await?;
    let request = s.requeue_request(held.run_id());
    let send =
        async || s.store().requeue(request.clone()).await.map_err(|e| Violation::refused("a requeue", &e));
    send().await?;
    let again = s.claim_one("w2").await?;
    again.begin("flaky").await?;
    let before = again.snapshot().await?;
    equal("a repeat gets the first answer [8]", &RequeueOutcome::Requeued, &send().await?)?;
    s.unchanged(&before, "and does not take the run from its new holder [2, 8]").await
}

async fn the_same_requeue_again_after_another_failure_has_no_second_effect(s: Scenario) -> Verdict {
    let held = dead_letter(&s).await?;
    let request = s.requeue_request(held.run_id());
    let send =
        async || s.store().requeue(request.clone()).await.map_err(|e| Violation::refused("a requeue", &e));
    send().await?;
    s.claim_one("w2").await?.fail_run(fatal()).await?;
    let before = held.snapshot().await?;
    equal("a repeat gets the first answer [8]", &RequeueOutcome::Requeued, &send().await?)?;
    s.unchanged(&before, "and does not requeue a second time [8]").await
}

async fn a_second_requeue_with_another_operation_is_refused(s: Scenario) -> Verdict {
    let held = dead_letter(&s).await?;
    s.requeue(held.run_id()).await?;
    let before = held.snapshot().await?;
    let answer = s.store().requeue(s.requeue_request(held.run_id())).await;
    refused(&answer, "WRONG_STATE", "a run that is back at work is no dead letter [6]")?;
    s.unchanged(&before, "and the refusal changes nothing [15]").await
}

async fn of_many_concurrent_requeues_one_wins(s: Scenario) -> Verdict {
    let held = dead_letter(&s).await?;
    let answers = race(16, |_| {
        let (s, run_id) = (s.clone(), held.run_id());
        async move { Ok(s.store().requeue(s.requeue_request(run_id)).await) }
    })
    .await?;
    let won = answers.iter().filter(|answer| answer.is_ok()).count();
    equal("one requeue wins [6]", &1, &won)?;
    for answer in answers.iter().filter(|answer| answer.is_err()) {
        refused(answer, "WRONG_STATE", "the others are told that it is no dead letter [6]")?;
    }
    Ok(())
}

async fn a_requeue_against_claims_hands_the_run_out_once(s: Scenario) -> Verdict {
    let held = dead_letter(&s).await?;
    let taken = race(16, |number| {
        let (s, run_id) = (s.clone(), held.run_id());
        async move {
            if number == 0 {
                s.requeue(run_id).await?;
            }
            Ok(s.claim(&format!("w{number}"), 1).await?.len())
        }
    })
    .await?;
    equal("a requeued run is handed out once [1]", &1, &taken.iter().sum::<usize>())?;
    equal("under one new token [1]", &2, &s.run(held.run_id()).await?.run.fencing_token.get())
}

async fn a_requeue_against_a_removal_keeps_the_run_or_finds_it_gone(s: Scenario) -> Verdict {
    const RULE: &str = "a run that was requeued beside a removal is there, one that was not is gone [15]";
    const RUNS: usize = 64;
    const REMOVERS: usize = 4;
    for on_one_thread in [false, true] {
        s.start_many(RUNS).await?;
        let mut dead = Vec::new();
        for run in s.claim("w1", 1000).await? {
            let held = Held::new(s.clone(), run);
            held.fail_run(fatal()).await?;
            dead.push(held.run_id());
        }
        s.turn(Duration::from_micros(1));
        let removal = DeleteFinished {
            namespace: Some(s.namespace().clone()),
            states: Vec::new(),
            before: s.now(),
            limit: u32::try_from(RUNS / 8).unwrap_or(1),
        };
        let both = |number: usize| {
            // The removers begin first: what they found is requeued while they are at it.
            let run_id = number.checked_sub(REMOVERS).and_then(|number| dead.get(number).copied());
            let (s, removal) = (s.clone(), removal.clone());
            async move {
                let Some(run_id) = run_id else {
                    // Small removals, one after the other, so that requeues come in between.
                    while s
                        .store()
                        .delete_finished(&removal)
                        .await
                        .map_err(|e| Violation::refused("a removal", &e))?
                        > 0
                    {}
                    return Ok(None);
                };
                let answer = s.store().requeue(s.requeue_request(run_id)).await;
                if answer.is_err() {
                    run_not_found(&answer, "a dead letter that a removal took cannot be requeued")?;
                }
                Ok(Some((run_id, answer.is_ok())))
            }
        };
        let tasks = REMOVERS + dead.len();
        let requeued = if on_one_thread { in_turn(tasks, both).await? } else { race(tasks, both).await? };
        for (run_id, requeued) in requeued.into_iter().flatten() {
            let read = s.store().get_run(s.namespace(), run_id).await;
            let found = read.as_ref().map(|record| record.run.state).ok();
            equal(RULE, &requeued.then_some(RunState::Pending), &found)?;
        }
    }
    Ok(())
}

async fn the_worker_that_failed_the_run_has_no_lease_after_the_requeue(s: Scenario) -> Verdict {
    let held = dead_letter(&s).await?;
    s.requeue(held.run_id()).await?;
    let before = held.snapshot().await?;
    let beat = held.try_heartbeat(held.heartbeat_request()).await?;
    lease_lost(&beat, "a requeue revives no lease [2]")?;
    s.unchanged(&before, "and nothing changes [2]").await
}

async fn a_requeued_run_can_be_cancelled(s: Scenario) -> Verdict {
    let held = dead_letter(&s).await?;
    s.requeue(held.run_id()).await?;
    s.cancel(held.run_id()).await?;
    let run = s.run(held.run_id()).await?.run;
    equal("it is a run like any other [6]", &(RunState::Cancelled, None), &(run.state, run.dead_letter))?;
    let answer = s.store().requeue(s.requeue_request(held.run_id())).await;
    refused(&answer, "WRONG_STATE", "and cancelled is final [6]")
}
