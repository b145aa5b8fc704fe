//! Completing a step together with what follows: the next step's begin, or the end of the run.

use std::time::Duration;

use kagzi_core::{
    AttemptState, BeginOutcome, CompleteStep, CompleteStepOutcome, NextStep, Payload, RunState, Then,
};

use crate::case::cases;
use crate::scenario::{
    Held, LEASE, Scenario, equal, invalid, lease_lost, operation_conflict, race, refused, step_id, too_large,
    under,
};
use crate::violation::{Verdict, Violation};

cases! {
    "step";
    [15] complete_and_begin_next_does_both;
    [4] complete_and_begin_next_gives_a_memoized_next;
    [3] complete_and_begin_next_tells_of_a_next_in_progress;
    [5] complete_and_begin_next_opens_the_next_number_of_an_abandoned_step;
    [8] complete_and_begin_next_sent_again_gives_the_same_answer;
    [8] complete_and_begin_next_sent_again_later_still_says_execute;
    [8] complete_and_begin_next_sent_again_gives_the_memoized_next_again;
    [15] if_the_next_step_is_a_sleep_the_completion_did_not_happen;
    [15] if_the_next_step_is_invalid_the_completion_did_not_happen;
    [15] the_next_step_is_not_the_one_that_completes;
    [15] if_the_completion_is_refused_the_next_step_was_not_begun;
    [15] complete_and_finish_run_does_both;
    [15] complete_and_finish_run_abandons_the_other_open_attempts;
    [8] complete_and_finish_run_sent_again_gives_the_same_answer;
    [15] if_the_run_output_is_too_large_the_step_did_not_complete;
    [15] if_the_completion_is_refused_the_run_did_not_finish;
    [8] a_completion_sent_again_with_another_sequel_is_refused;
    [2, 6] concurrent_complete_and_finish_runs_one_wins;
    [3] a_chain_of_steps_costs_one_operation_each;
}

fn next(step: &str) -> Result<NextStep, Violation> {
    Ok(NextStep::new(step_id(step)?, 1))
}

fn begins(answer: BeginOutcome) -> CompleteStepOutcome {
    CompleteStepOutcome::RecordedAndNext(answer)
}

/// A held run with an open attempt of step `a`.
async fn at_a(s: &Scenario) -> Result<Held, Violation> {
    let held = s.held().await?;
    held.begin("a").await?;
    Ok(held)
}

fn request(held: &Held, then: Then) -> Result<CompleteStep, Violation> {
    Ok(CompleteStep { then, ..held.complete_request("a", 1, "1")? })
}

async fn send(held: &Held, request: &CompleteStep) -> Result<CompleteStepOutcome, Violation> {
    held.store().complete_step(request.clone()).await.map_err(|e| Violation::refused("completing a step", &e))
}

async fn complete_and_begin_next_does_both(s: Scenario) -> Verdict {
    let held = at_a(&s).await?;
    s.turn(Duration::from_secs(1));
    let mut step = next("b")?;
    step.timeout = Some(Duration::from_secs(9));
    let request = request(&held, Then::Begin(step))?;
    let answer = send(&held, &request).await?;
    equal("the next step is begun [15]", &begins(BeginOutcome::Execute { attempt: 1 }), &answer)?;
    let attempts = s.attempts(held.run_id()).await?;
    let states: Vec<_> = attempts.iter().map(|a| (a.step_id.as_str(), a.state)).collect();
    let expected = vec![("a", AttemptState::Completed), ("b", AttemptState::Running)];
    equal("both are recorded [15]", &expected, &states)?;
    let found =
        (attempts[1].position, attempts[1].begin_operation, attempts[1].created_at, attempts[1].deadline_at);
    let deadline = Some(s.now().saturating_add(Duration::from_secs(9)));
    equal("the next step as it was asked for", &(1, request.operation, s.now(), deadline), &found)?;
    held.complete("b", 1, "2").await
}

async fn complete_and_begin_next_gives_a_memoized_next(s: Scenario) -> Verdict {
    let held = at_a(&s).await?;
    held.step("b", "\"known\"").await?;
    let answer = send(&held, &request(&held, Then::Begin(next("b")?))?).await?;
    let memo = BeginOutcome::Memoized { attempt: 1, output: Payload::json("\"known\"") };
    equal("a next step that was completed gives its output [4]", &begins(memo), &answer)
}

async fn complete_and_begin_next_tells_of_a_next_in_progress(s: Scenario) -> Verdict {
    let held = at_a(&s).await?;
    held.begin("b").await?;
    let answer = send(&held, &request(&held, Then::Begin(next("b")?))?).await?;
    equal(
        "no second executor of the next step [3]",
        &begins(BeginOutcome::InProgress { attempt: 1 }),
        &answer,
    )?;
    let states: Vec<_> = s.attempts(held.run_id()).await?.iter().map(|a| a.state).collect();
    equal("and the completion counts", &vec![AttemptState::Completed, AttemptState::Running], &states)
}

async fn complete_and_begin_next_opens_the_next_number_of_an_abandoned_step(s: Scenario) -> Verdict {
    let first = s.held().await?;
    first.begin("b").await?;
    first.release().await?;
    let held = s.claim_one("w2").await?;
    held.begin("a").await?;
    let answer = send(&held, &request(&held, Then::Begin(next("b")?))?).await?;
    under(
        "completing a step and beginning an abandoned one opens its next number [5]",
        equal("numbers go on [5]", &begins(BeginOutcome::Execute { attempt: 2 }), &answer),
    )
}

async fn complete_and_begin_next_sent_again_gives_the_same_answer(s: Scenario) -> Verdict {
    let held = at_a(&s).await?;
    let request = request(&held, Then::Begin(next("b")?))?;
    let first = send(&held, &request).await?;
    let before = held.snapshot().await?;
    s.turn(Duration::from_secs(1));
    equal("a repeat gets the first answer [8]", &first, &send(&held, &request).await?)?;
    under(
        "completing and beginning the next, sent again, is answered as before [8]",
        s.unchanged(&before, "and has no second effect [8]").await,
    )
}

async fn complete_and_begin_next_sent_again_later_still_says_execute(s: Scenario) -> Verdict {
    let held = at_a(&s).await?;
    let request = request(&held, Then::Begin(next("b")?))?;
    let first = send(&held, &request).await?;
    held.complete("b", 1, "2").await?;
    s.turn(LEASE);
    let second = s.claim_one("w2").await?;
    let before = second.snapshot().await?;
    equal(
        "what happened is told truly, however late it is asked [8]",
        &first,
        &send(&held, &request).await?,
    )?;
    under(
        "completing and beginning the next, sent again after both were done, is answered as before [8]",
        s.unchanged(&before, "and nothing changes [2]").await,
    )
}

async fn complete_and_begin_next_sent_again_gives_the_memoized_next_again(s: Scenario) -> Verdict {
    let held = at_a(&s).await?;
    held.step("b", "\"known\"").await?;
    let request = request(&held, Then::Begin(next("b")?))?;
    let first = send(&held, &request).await?;
    let memo = BeginOutcome::Memoized { attempt: 1, output: Payload::json("\"known\"") };
    equal("the first answer tells what the next step gave", &begins(memo), &first)?;
    let again = send(&held, &request).await?;
    equal("a completion sent again gives the output of the step that was known next [8]", &first, &again)
}

async fn if_the_next_step_is_a_sleep_the_completion_did_not_happen(s: Scenario) -> Verdict {
    let first = s.held().await?;
    first.sleep("nap", Duration::ZERO).await?;
    let held = s.claim_one("w1").await?;
    held.begin("a").await?;
    let before = held.snapshot().await?;
    let answer = held.store().complete_step(request(&held, Then::Begin(next("nap")?))?).await;
    refused(&answer, "STEP_KIND_MISMATCH", "a sleep is not begun")?;
    s.unchanged(&before, "if the second half is refused, the first did not happen [15]").await?;
    held.complete("a", 1, "1").await
}

async fn if_the_next_step_is_invalid_the_completion_did_not_happen(s: Scenario) -> Verdict {
    let held = at_a(&s).await?;
    let before = held.snapshot().await?;
    let mut step = next("b")?;
    step.timeout = Some(Duration::ZERO);
    let answer = held.store().complete_step(request(&held, Then::Begin(step))?).await;
    invalid(&answer, "timeout", "a timeout is at least a microsecond")?;
    s.unchanged(&before, "if the second half is refused, the first did not happen [15]").await
}

async fn the_next_step_is_not_the_one_that_completes(s: Scenario) -> Verdict {
    let held = at_a(&s).await?;
    let before = held.snapshot().await?;
    let answer = held.store().complete_step(request(&held, Then::Begin(next("a")?))?).await;
    invalid(&answer, "then.step_id", "a step does not follow itself")?;
    s.unchanged(&before, "and nothing happened [15]").await
}

async fn if_the_completion_is_refused_the_next_step_was_not_begun(s: Scenario) -> Verdict {
    let held = at_a(&s).await?;
    held.complete("a", 1, "1").await?;
    let before = held.snapshot().await?;
    let answer = held.store().complete_step(request(&held, Then::Begin(next("b")?))?).await;
    refused(&answer, "ATTEMPT_NOT_RUNNING", "a completed step is not completed again [4]")?;
    s.unchanged(&before, "if the first half is refused, the second did not happen [15]").await?;
    equal("the next step is still open", &1, &held.begin("b").await?)
}

async fn complete_and_finish_run_does_both(s: Scenario) -> Verdict {
    let held = at_a(&s).await?;
    s.turn(Duration::from_secs(1));
    let request = request(&held, Then::CompleteRun(Payload::json("\"all\"")))?;
    let answer = send(&held, &request).await?;
    equal("the run is finished [15]", &CompleteStepOutcome::RecordedAndRunCompleted, &answer)?;
    let after = held.snapshot().await?;
    let run = &after.record.run;
    equal("the run is COMPLETED", &RunState::Completed, &run.state)?;
    equal("with its output [12]", &Some(Payload::json("\"all\"")), &after.record.output)?;
    equal(
        "at its time",
        &(Some(s.now()), Some(request.operation)),
        &(run.finished_at, run.finish_operation),
    )?;
    let found = (after.attempts[0].state, after.attempts[0].output.clone());
    equal("the step too [15]", &(AttemptState::Completed, Some(Payload::json("1"))), &found)?;
    equal("and nobody holds it [1]", &(None, None), &(run.worker_id.clone(), run.lease_expires_at))
}

async fn complete_and_finish_run_abandons_the_other_open_attempts(s: Scenario) -> Verdict {
    let held = at_a(&s).await?;
    held.begin("b").await?;
    send(&held, &request(&held, Then::CompleteRun(Payload::empty()))?).await?;
    let states: Vec<_> = s.attempts(held.run_id()).await?.iter().map(|a| a.state).collect();
    equal(
        "no attempt runs on in a finished run [5]",
        &vec![AttemptState::Completed, AttemptState::Abandoned],
        &states,
    )
}

async fn complete_and_finish_run_sent_again_gives_the_same_answer(s: Scenario) -> Verdict {
    let held = at_a(&s).await?;
    let request = request(&held, Then::CompleteRun(Payload::json("1")))?;
    let first = send(&held, &request).await?;
    let before = held.snapshot().await?;
    s.turn(LEASE * 2);
    equal("a repeat gets the first answer [8]", &first, &send(&held, &request).await?)?;
    under(
        "completing a step and its run, sent again, is answered as before [8]",
        s.unchanged(&before, "and has no second effect [6, 8]").await,
    )
}

async fn if_the_run_output_is_too_large_the_step_did_not_complete(s: Scenario) -> Verdict {
    let held = at_a(&s).await?;
    let before = held.snapshot().await?;
    let then = Then::CompleteRun(Payload::raw(vec![1; 4097]));
    let answer = held.store().complete_step(request(&held, then)?).await;
    too_large(&answer, "run_output", "limits are enforced before anything is written [12]")?;
    s.unchanged(&before, "if the second half is refused, the first did not happen [15]").await
}

async fn if_the_completion_is_refused_the_run_did_not_finish(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let before = held.snapshot().await?;
    let answer = held.store().complete_step(request(&held, Then::CompleteRun(Payload::empty()))?).await;
    refused(&answer, "ATTEMPT_NOT_RUNNING", "what was not begun cannot be completed")?;
    s.unchanged(&before, "if the first half is refused, the second did not happen [15]").await
}

async fn a_completion_sent_again_with_another_sequel_is_refused(s: Scenario) -> Verdict {
    let held = at_a(&s).await?;
    let plain = request(&held, Then::Nothing)?;
    send(&held, &plain).await?;
    let before = held.snapshot().await?;
    let rule = "an operation id names one operation, sequel included [8]";
    let finish = CompleteStep { then: Then::CompleteRun(Payload::empty()), ..plain.clone() };
    operation_conflict(&held.store().complete_step(finish).await, rule)?;
    let begin = CompleteStep { then: Then::Begin(next("b")?), ..plain };
    operation_conflict(&held.store().complete_step(begin).await, rule)?;
    s.unchanged(&before, "and the refusal changes nothing [15]").await
}

async fn concurrent_complete_and_finish_runs_one_wins(s: Scenario) -> Verdict {
    let held = s.held().await?;
    for number in 0..8 {
        held.begin(&format!("step{number}")).await?;
    }
    let answers = race(8, |number| {
        let held = held.clone();
        async move {
            let then = Then::CompleteRun(Payload::json(number.to_string()));
            let complete = held.complete_request(&format!("step{number}"), 1, "1")?;
            Ok(held.store().complete_step(CompleteStep { then, ..complete }).await.map(|_| number))
        }
    })
    .await?;
    let winners: Vec<usize> = answers.iter().filter_map(|answer| answer.as_ref().ok().copied()).collect();
    equal("one of them finishes the run [6]", &1, &winners.len())?;
    for answer in answers.iter().filter(|answer| answer.is_err()) {
        lease_lost(answer, "the others are told that the run is finished [2]")?;
    }
    let output = s.run(held.run_id()).await?.output;
    equal("and the output is the winner's [15]", &Some(Payload::json(winners[0].to_string())), &output)?;
    let completed =
        s.attempts(held.run_id()).await?.iter().filter(|a| a.state == AttemptState::Completed).count();
    equal("of the steps, only the winner's is completed [15]", &1, &completed)
}

async fn a_chain_of_steps_costs_one_operation_each(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.begin("step0").await?;
    for number in 1..20 {
        let then = Then::Begin(NextStep::new(step_id(format!("step{number}"))?, number));
        let answer = held.complete_then(&format!("step{}", number - 1), 1, "1", then).await?;
        equal("each completion begins the next", &begins(BeginOutcome::Execute { attempt: 1 }), &answer)?;
    }
    held.complete_then("step19", 1, "1", Then::CompleteRun(Payload::empty())).await?;
    let completed =
        s.attempts(held.run_id()).await?.iter().filter(|a| a.state == AttemptState::Completed).count();
    equal("all steps are completed", &20, &completed)?;
    equal("and the run is", &RunState::Completed, &s.run(held.run_id()).await?.run.state)
}
