//! Steps: who executes, what is remembered.

use std::collections::HashSet;
use std::time::Duration;

use kagzi_core::{Attempt, AttemptState, BeginOutcome, Payload, StepKind};

use crate::case::cases;
use crate::scenario::{Held, LEASE, Scenario, check, equal, hiccup, race, refused, step_id, under};
use crate::violation::{Verdict, Violation};

cases! {
    "step";
    [5] the_first_begin_says_execute_attempt_1;
    [8] the_same_begin_again_gets_the_same_answer;
    [3] another_begin_under_the_same_lease_is_told_it_is_in_progress;
    [3] thirty_two_concurrent_begins_of_one_step_make_one_executor;
    [3] thirty_two_concurrent_begins_of_different_steps_all_execute;
    [3, 8] concurrent_repeats_of_one_begin_are_one_attempt;
    [4] begin_after_complete_gives_the_recorded_bytes;
    [4] begin_after_complete_gives_them_under_every_later_lease;
    [5] begin_under_a_new_lease_abandons_the_old_attempt;
    [5] the_place_of_the_first_begin_is_kept;
    [15] complete_records_output_operation_and_time;
    [8] the_same_complete_again_agrees;
    [8] the_same_complete_again_agrees_even_after_the_lease_was_lost;
    [3, 4] concurrent_completes_with_different_outputs_one_wins;
    [3, 8] concurrent_repeats_of_one_complete_all_agree;
    [3, 15] complete_against_fail_of_one_attempt_one_wins;
    [5] fail_then_begin_gives_the_next_number_and_keeps_the_failure;
    [8] the_same_fail_again_gives_the_same_answer;
    [2, 5] a_fail_ends_the_lease_and_abandons_the_other_attempts;
    [5] a_hundred_attempts_are_dense_and_listed_in_order;
    [3] never_more_than_one_attempt_of_a_step_runs_or_completes;
    [3] the_same_step_id_in_two_runs_is_two_steps;
}

/// The store's attempts of one step.
fn of<'a>(attempts: &'a [Attempt], step: &str) -> Vec<&'a Attempt> {
    attempts.iter().filter(|attempt| attempt.step_id.as_str() == step).collect()
}

async fn the_first_begin_says_execute_attempt_1(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let mut request = held.begin_request("a")?;
    request.step.position = 3;
    request.step.timeout = Some(Duration::from_mins(1));
    let operation = request.operation;
    let answer = held.store().begin_step(request).await.map_err(|e| Violation::refused("a begin", &e))?;
    equal("a first begin executes attempt 1 [5]", &BeginOutcome::Execute { attempt: 1 }, &answer)?;
    let expected = Attempt {
        run_id: held.run_id(),
        step_id: step_id("a")?,
        position: 3,
        kind: StepKind::Task,
        attempt: 1,
        state: AttemptState::Running,
        fencing_token: held.lease.fencing_token,
        worker_id: held.lease.worker_id.clone(),
        retry: None,
        deadline_at: Some(s.now().saturating_add(Duration::from_mins(1))),
        begin_operation: operation,
        end_operation: None,
        output: None,
        failure: None,
        created_at: s.now(),
        updated_at: s.now(),
        finished_at: None,
    };
    equal("and is recorded in every field [5]", &vec![expected], &s.attempts(held.run_id()).await?)
}

async fn the_same_begin_again_gets_the_same_answer(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let request = held.begin_request("a")?;
    let send = async || {
        held.store().begin_step(request.clone()).await.map_err(|e| Violation::refused("a begin", &e))
    };
    let first = send().await?;
    let before = held.snapshot().await?;
    s.turn(Duration::from_secs(1));
    equal("a begin sent again gets the first answer [8]", &first, &send().await?)?;
    s.unchanged(&before, "and has no second effect [8]").await
}

async fn another_begin_under_the_same_lease_is_told_it_is_in_progress(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.begin("a").await?;
    let before = held.snapshot().await?;
    s.turn(Duration::from_secs(1));
    let expected = BeginOutcome::InProgress { attempt: 1 };
    equal("a second executor is not made [3]", &expected, &held.begin_any("a").await?)?;
    s.unchanged(&before, "and nothing changes").await
}

async fn begins(
    held: &Held,
    count: usize,
    step: impl Fn(usize) -> String,
) -> Result<Vec<BeginOutcome>, Violation> {
    race(count, |number| {
        let (held, step) = (held.clone(), step(number));
        async move { held.begin_any(&step).await }
    })
    .await
}

async fn thirty_two_concurrent_begins_of_one_step_make_one_executor(s: Scenario) -> Verdict {
    let held = s.held().await?;
    for round in 0..5 {
        let step = format!("step{round}");
        let answers = begins(&held, 32, |_| step.clone()).await?;
        let executors = answers.iter().filter(|a| **a == BeginOutcome::Execute { attempt: 1 }).count();
        let waiting = answers.iter().filter(|a| **a == BeginOutcome::InProgress { attempt: 1 }).count();
        equal(
            "one begin executes, the others are told that it is in progress [3]",
            &(1, 31),
            &(executors, waiting),
        )?;
    }
    equal("one attempt each is recorded [5]", &5, &s.attempts(held.run_id()).await?.len())
}

async fn thirty_two_concurrent_begins_of_different_steps_all_execute(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let answers = begins(&held, 32, |number| format!("step{number}")).await?;
    let executors = answers.iter().filter(|a| **a == BeginOutcome::Execute { attempt: 1 }).count();
    equal("parallel steps do not stand in each other's way [3]", &32, &executors)?;
    equal("each is recorded once [5]", &32, &s.attempts(held.run_id()).await?.len())
}

async fn concurrent_repeats_of_one_begin_are_one_attempt(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let request = held.begin_request("a")?;
    let answers = race(16, |_| {
        let (held, request) = (held.clone(), request.clone());
        async move { held.store().begin_step(request).await.map_err(|e| Violation::refused("a begin", &e)) }
    })
    .await?;
    let right = answers.iter().all(|a| *a == BeginOutcome::Execute { attempt: 1 });
    check(right, "every repeat gets the first answer [8]", "Execute 1", &answers)?;
    equal("and there is one attempt [3]", &1, &s.attempts(held.run_id()).await?.len())
}

async fn begin_after_complete_gives_the_recorded_bytes(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.step("a", "{\"n\": 1}").await?;
    let before = held.snapshot().await?;
    s.turn(Duration::from_secs(1));
    let expected = BeginOutcome::Memoized { attempt: 1, output: Payload::json("{\"n\": 1}") };
    equal("a completed step gives its recorded output [4]", &expected, &held.begin_any("a").await?)?;
    s.unchanged(&before, "and no further attempt is made [4]").await
}

async fn begin_after_complete_gives_them_under_every_later_lease(s: Scenario) -> Verdict {
    let mut held = s.held().await?;
    held.step("a", "1").await?;
    let expected = BeginOutcome::Memoized { attempt: 1, output: Payload::json("1") };
    for worker in ["w2", "w3", "w4"] {
        s.turn(LEASE);
        held = s.claim_one(worker).await?;
        equal("memoized for ever [4]", &expected, &held.begin_any("a").await?)?;
        held.step(worker, "2").await?;
    }
    Ok(())
}

async fn begin_under_a_new_lease_abandons_the_old_attempt(s: Scenario) -> Verdict {
    let first = s.held().await?;
    first.begin("a").await?;
    s.turn(LEASE);
    let second = s.claim_one("w2").await?;
    equal("the next number is opened [5]", &2, &second.begin("a").await?)?;
    let attempts = s.attempts(first.run_id()).await?;
    let found: Vec<_> = attempts.iter().map(|a| (a.attempt, a.state, a.worker_id.as_str())).collect();
    let expected = vec![(1, AttemptState::Abandoned, "w1"), (2, AttemptState::Running, "w2")];
    equal("the old attempt is ABANDONED, the new one RUNNING [5]", &expected, &found)?;
    equal("under the new token [2]", &second.lease.fencing_token, &attempts[1].fencing_token)
}

async fn the_place_of_the_first_begin_is_kept(s: Scenario) -> Verdict {
    let first = s.held().await?;
    let mut request = first.begin_request("a")?;
    request.step.position = 5;
    first.store().begin_step(request).await.map_err(|e| Violation::refused("a begin", &e))?;
    first.release().await?;
    let second = s.claim_one("w2").await?;
    let mut request = second.begin_request("a")?;
    request.step.position = 9;
    second.store().begin_step(request).await.map_err(|e| Violation::refused("a begin", &e))?;
    let places: Vec<u32> = s.attempts(first.run_id()).await?.iter().map(|a| a.position).collect();
    equal("later attempts keep the step's place", &vec![5, 5], &places)
}

async fn complete_records_output_operation_and_time(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.begin("a").await?;
    let mut expected = held.snapshot().await?;
    s.turn(Duration::from_secs(7));
    let request = held.complete_request("a", 1, "42")?;
    let attempt = &mut expected.attempts[0];
    attempt.state = AttemptState::Completed;
    attempt.output = Some(Payload::json("42"));
    attempt.end_operation = Some(request.operation);
    attempt.updated_at = s.now();
    attempt.finished_at = Some(s.now());
    held.store().complete_step(request).await.map_err(|e| Violation::refused("completing a step", &e))?;
    s.unchanged(&expected, "a completion writes output, operation, time and state, and nothing else [15]")
        .await
}

async fn the_same_complete_again_agrees(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.begin("a").await?;
    let request = held.complete_request("a", 1, "1")?;
    let send = async || {
        held.store().complete_step(request.clone()).await.map_err(|e| Violation::refused("completing", &e))
    };
    let first = send().await?;
    let before = held.snapshot().await?;
    s.turn(Duration::from_secs(1));
    equal("a completion sent again gets the first answer [8]", &first, &send().await?)?;
    s.unchanged(&before, "and has no second effect [8]").await
}

async fn the_same_complete_again_agrees_even_after_the_lease_was_lost(s: Scenario) -> Verdict {
    let first = s.held().await?;
    first.begin("a").await?;
    let request = first.complete_request("a", 1, "1")?;
    let sent = first.store().complete_step(request.clone()).await;
    let answer = sent.map_err(|e| Violation::refused("completing", &e))?;
    s.turn(LEASE);
    let second = s.claim_one("w2").await?;
    let before = second.snapshot().await?;
    let again = first.store().complete_step(request).await.map_err(|e| Violation::refused("a repeat", &e))?;
    equal("what happened is told truly, however late it is asked [8]", &answer, &again)?;
    under(
        "a completion sent again after the lease was lost gets its first answer [8]",
        s.unchanged(&before, "and nothing changes [2]").await,
    )
}

async fn concurrent_completes_with_different_outputs_one_wins(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.begin("a").await?;
    let answers = race(16, |number| {
        let held = held.clone();
        async move {
            let request = held.complete_request("a", 1, &number.to_string())?;
            Ok(held.store().complete_step(request).await.map(|_| number))
        }
    })
    .await?;
    let winners: Vec<usize> = answers.iter().filter_map(|answer| answer.as_ref().ok().copied()).collect();
    equal("one completion wins [3]", &1, &winners.len())?;
    for answer in answers.iter().filter(|answer| answer.is_err()) {
        refused(answer, "ATTEMPT_NOT_RUNNING", "the others are told that the attempt has ended [3]")?;
    }
    let output = Payload::json(winners[0].to_string());
    let memo = held.begin_any("a").await?;
    equal(
        "all later reads agree with the winner [4]",
        &BeginOutcome::Memoized { attempt: 1, output: output.clone() },
        &memo,
    )?;
    let recorded: Vec<_> = s.attempts(held.run_id()).await?.into_iter().map(|a| a.output).collect();
    equal("so does the history [4]", &vec![Some(output)], &recorded)
}

async fn concurrent_repeats_of_one_complete_all_agree(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.begin("a").await?;
    let request = held.complete_request("a", 1, "1")?;
    race(16, |_| {
        let (held, request) = (held.clone(), request.clone());
        async move { held.store().complete_step(request).await.map_err(|e| Violation::refused("a repeat", &e)) }
    })
    .await?;
    let states: Vec<_> = s.attempts(held.run_id()).await?.into_iter().map(|a| (a.attempt, a.state)).collect();
    equal("and one attempt is completed [3]", &vec![(1, AttemptState::Completed)], &states)
}

async fn complete_against_fail_of_one_attempt_one_wins(s: Scenario) -> Verdict {
    s.start_many(16).await?;
    let mut held = Vec::new();
    for run in s.claim("w1", 16).await? {
        let run = Held::new(s.clone(), run);
        run.begin("a").await?;
        held.push(run);
    }
    let answers = race(32, |number| {
        let held = held[number / 2].clone();
        async move {
            Ok(if number % 2 == 0 {
                held.store().complete_step(held.complete_request("a", 1, "1")?).await.is_ok()
            } else {
                held.store().fail_step(held.fail_request("a", 1, hiccup())?).await.is_ok()
            })
        }
    })
    .await?;
    for (held, told) in held.iter().zip(answers.chunks(2)) {
        let state = s.attempts(held.run_id()).await?[0].state;
        let expected = match told {
            [true, false] => AttemptState::Completed,
            [false, true] => AttemptState::Failed,
            both => {
                return check(
                    false,
                    "an attempt is completed or failed, never both [3]",
                    "one of them",
                    both,
                );
            }
        };
        equal("and the history says what the winner was told [15]", &expected, &state)?;
    }
    Ok(())
}

async fn fail_then_begin_gives_the_next_number_and_keeps_the_failure(s: Scenario) -> Verdict {
    let first = s.held().await?;
    first.begin("a").await?;
    s.turn(Duration::from_secs(1));
    let failed_at = s.now();
    let request = first.fail_request("a", 1, hiccup())?;
    let operation = request.operation;
    first.store().fail_step(request).await.map_err(|e| Violation::refused("failing a step", &e))?;
    s.turn(Duration::from_secs(10));
    let second = s.claim_one("w1").await?;
    equal("the next number is opened [5]", &2, &second.begin("a").await?)?;
    let attempts = s.attempts(first.run_id()).await?;
    let failed = &attempts[0];
    let found = (failed.state, failed.failure.clone(), failed.finished_at, failed.end_operation);
    equal(
        "the failed attempt keeps its failure, its time and its operation [5]",
        &(AttemptState::Failed, Some(hiccup()), Some(failed_at), Some(operation)),
        &found,
    )?;
    equal("and the new one runs [5]", &AttemptState::Running, &attempts[1].state)
}

async fn the_same_fail_again_gives_the_same_answer(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.begin("a").await?;
    let request = held.fail_request("a", 1, hiccup())?;
    let send = async || {
        held.store().fail_step(request.clone()).await.map_err(|e| Violation::refused("a failure", &e))
    };
    let first = send().await?;
    let before = held.snapshot().await?;
    s.turn(Duration::from_secs(3));
    equal("a failure sent again gets the first answer [8]", &first, &send().await?)?;
    s.unchanged(&before, "and does not use up a second attempt [8]").await?;
    s.turn(Duration::from_secs(7));
    let second = s.claim_one("w2").await?;
    second.begin("a").await?;
    let before = second.snapshot().await?;
    equal("even after the next lease [8]", &first, &send().await?)?;
    s.unchanged(&before, "which it does not touch [2]").await
}

async fn a_fail_ends_the_lease_and_abandons_the_other_attempts(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.begin("a").await?;
    held.begin("b").await?;
    held.fail("a", 1, hiccup()).await?;
    let states: Vec<_> = s.attempts(held.run_id()).await?.iter().map(|a| a.state).collect();
    equal(
        "parallel attempts end with the lease [5]",
        &vec![AttemptState::Failed, AttemptState::Abandoned],
        &states,
    )?;
    let run = s.run(held.run_id()).await?.run;
    equal(
        "nobody holds the run [1]",
        &(None, None, None),
        &(run.worker_id, run.lease_expires_at, run.claim_operation),
    )
}

async fn a_hundred_attempts_are_dense_and_listed_in_order(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    for number in 1..=100 {
        let held = s.claim_one("w1").await?;
        equal("the next begin opens the next number [5]", &number, &held.begin("a").await?)?;
        held.release().await?;
    }
    s.claim_one("w1").await?.step("a", "1").await?;
    let attempts = s.attempts(run_id).await?;
    let numbers: Vec<u32> = attempts.iter().map(|a| a.attempt).collect();
    equal("numbers are dense from 1, in order [5]", &(1..=101).collect(), &numbers)?;
    let (last, others) =
        attempts.split_last().ok_or_else(|| Violation::new("attempts are kept", "101", "0"))?;
    let abandoned = others.iter().all(|a| a.state == AttemptState::Abandoned);
    check(
        abandoned && last.state == AttemptState::Completed,
        "the highest is the latest [5]",
        "COMPLETED",
        last,
    )
}

async fn never_more_than_one_attempt_of_a_step_runs_or_completes(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    for round in 0..10 {
        let held = s.claim_one("w1").await?;
        let answers = begins(&held, 8, |number| format!("step{}", number % 2)).await?;
        let executing = answers.iter().filter(|a| matches!(a, BeginOutcome::Execute { .. })).count();
        equal("one executor a step [3]", &2, &executing)?;
        let attempts = s.attempts(run_id).await?;
        for step in ["step0", "step1"] {
            let numbers: HashSet<u32> = of(&attempts, step).iter().map(|a| a.attempt).collect();
            equal("no number twice [5]", &of(&attempts, step).len(), &numbers.len())?;
            let running = of(&attempts, step).iter().filter(|a| a.state == AttemptState::Running).count();
            equal("one RUNNING attempt a step [3]", &1, &running)?;
        }
        s.turn(LEASE);
        // The count of lost leases must not end the run here.
        if round % 2 == 0 {
            let thief = s.claim_one("w2").await?;
            thief.step(&format!("progress{round}"), "1").await?;
            thief.release().await?;
        } else {
            held.release().await?;
        }
    }
    Ok(())
}

async fn the_same_step_id_in_two_runs_is_two_steps(s: Scenario) -> Verdict {
    let first = s.held().await?;
    let second = s.held().await?;
    first.step("a", "1").await?;
    equal("another run's step is not begun [3]", &1, &second.begin("a").await?)?;
    second.complete("a", 1, "2").await?;
    let output = |n: &str| BeginOutcome::Memoized { attempt: 1, output: Payload::json(n.to_owned()) };
    equal("each has its own output [4]", &output("1"), &first.begin_any("a").await?)?;
    equal("each has its own output [4]", &output("2"), &second.begin_any("a").await?)
}
