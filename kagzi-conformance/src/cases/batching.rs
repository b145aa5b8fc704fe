//! Batching: operations that are in flight together do not harm each other.

use kagzi_core::{
    AttemptState, CancelRun, FailRun, IdempotencyKey, NextStep, OperationId, Payload, ReleaseRun, RunState,
    Sleep, SleepUntil, StartRun, StoreError, Then,
};

use crate::case::cases;
use crate::scenario::{
    Held, LEASE, Scenario, check, equal, fatal, lease_lost, race, refused, step_id, too_large, under,
};
use crate::violation::{Verdict, Violation};

cases! {
    "batching";
    [15] a_refused_operation_does_not_harm_its_neighbours;
    [15] operations_of_every_kind_in_flight_together_all_get_their_own_answer;
    [15] operations_on_one_run_in_flight_together_behave_as_one_after_the_other;
    [15] the_first_of_several_conflicts_in_a_batch_is_told;
    [8] an_operation_id_stands_for_one_write_of_each_run;
    [1, 3, 15] fifty_runs_driven_at_once_all_complete;
    [1, 15] two_servers_drive_runs_together needs SecondHandle;
}

async fn many_held(s: &Scenario, count: u32) -> Result<Vec<Held>, Violation> {
    s.start_many(count as usize).await?;
    Ok(s.claim("w1", count).await?.into_iter().map(|run| Held::new(s.clone(), run)).collect())
}

async fn a_refused_operation_does_not_harm_its_neighbours(s: Scenario) -> Verdict {
    let held = many_held(&s, 64).await?;
    for stale in held.iter().step_by(4) {
        s.cancel(stale.run_id()).await?;
    }
    let answers = race(64, |number| {
        let held = held[number].clone();
        async move {
            if number % 4 == 1 {
                return Ok(held.store().complete_step(held.complete_request("a", 1, "1")?).await.map(drop));
            }
            Ok(held.store().begin_step(held.begin_request("a")?).await.map(drop))
        }
    })
    .await?;
    for (number, answer) in answers.iter().enumerate() {
        match number % 4 {
            0 => drop(lease_lost(answer, "the cancelled are told so, each alone [2, 15]")?),
            1 => refused(answer, "ATTEMPT_NOT_RUNNING", "what was not begun is refused, alone [15]")?,
            _ => check(answer.is_ok(), "a neighbour's refusal harms nobody [15]", "accepted", answer)?,
        }
    }
    for (number, held) in held.iter().enumerate() {
        let attempts = s.attempts(held.run_id()).await?.len();
        equal(
            "what was accepted is recorded, what was refused is not [15]",
            &usize::from(number % 4 > 1),
            &attempts,
        )?;
    }
    Ok(())
}

async fn operations_of_every_kind_in_flight_together_all_get_their_own_answer(s: Scenario) -> Verdict {
    let held = many_held(&s, 60).await?;
    for run in &held {
        run.begin("a").await?;
    }
    race(60, |number| {
        let (s, held) = (s.clone(), held[number].clone());
        async move {
            match number % 10 {
                0 => held.complete("a", 1, "1").await,
                1 => held.complete_run("1").await,
                2 => held.fail("a", 1, crate::scenario::hiccup()).await.map(drop),
                3 => held.fail_run(crate::scenario::fatal()).await.map(drop),
                4 => held.sleep("nap", LEASE).await.map(drop),
                5 => held.release().await,
                6 => held.heartbeat().await.map(drop),
                7 => held.begin("b").await.map(drop),
                8 => s.cancel(held.run_id()).await.map(drop),
                _ => {
                    let mut request = held.complete_request("a", 1, "1")?;
                    request.output = Payload::raw(vec![0; 4097]);
                    too_large(&s.store().complete_step(request).await, "output", "over the limit [12]")
                }
            }
        }
    })
    .await?;
    let running = RunState::Running;
    let expected = [
        running,
        RunState::Completed,
        RunState::Sleeping,
        RunState::Failed,
        RunState::Sleeping,
        RunState::Pending,
        running,
        running,
        RunState::Cancelled,
        running,
    ];
    for (number, held) in held.iter().enumerate() {
        let state = s.run(held.run_id()).await?.run.state;
        equal("each run is where its own operation put it [15]", &expected[number % 10], &state)?;
    }
    Ok(())
}

async fn operations_on_one_run_in_flight_together_behave_as_one_after_the_other(s: Scenario) -> Verdict {
    let held = s.held().await?;
    for number in 0..20 {
        held.begin(&format!("step{number}")).await?;
    }
    let answers = race(40, |number| {
        let held = held.clone();
        async move {
            let step = format!("step{}", number / 2);
            Ok(if number % 2 == 0 {
                held.store().complete_step(held.complete_request(&step, 1, "1")?).await.is_ok()
            } else if number == 21 {
                held.store().release(held.release_request()).await.is_ok()
            } else {
                held.try_heartbeat(held.heartbeat_request()).await?.is_ok()
            })
        }
    })
    .await?;
    check(answers[21], "the release is accepted", true, answers[21])?;
    for attempt in s.attempts(held.run_id()).await? {
        let number: usize = attempt.step_id.as_str().trim_start_matches("step").parse().unwrap_or_default();
        let expected = if answers[number * 2] { AttemptState::Completed } else { AttemptState::Abandoned };
        equal(
            "a completion before the release counts, one after it does not [2, 15]",
            &expected,
            &attempt.state,
        )?;
    }
    equal("and the run is released", &RunState::Pending, &s.run(held.run_id()).await?.run.state)
}

/// Claims and completes runs of three steps until there are none; gives how many.
async fn work(s: &Scenario, worker: &str) -> Result<usize, Violation> {
    let mut done = 0;
    loop {
        let claimed = s.claim(worker, 3).await?;
        if claimed.is_empty() {
            return Ok(done);
        }
        for run in claimed {
            let held = Held::new(s.clone(), run);
            held.begin("step0").await?;
            for number in 1..3 {
                let then = Then::Begin(NextStep::new(step_id(format!("step{number}"))?, number));
                held.complete_then(&format!("step{}", number - 1), 1, "1", then).await?;
            }
            held.complete_then("step2", 1, "1", Then::CompleteRun(Payload::json("\"all\""))).await?;
            done += 1;
        }
    }
}

async fn all_complete(s: &Scenario, ids: Vec<kagzi_core::RunId>, done: Vec<usize>) -> Verdict {
    equal("each run is driven once [1]", &ids.len(), &done.iter().sum::<usize>())?;
    for run_id in ids {
        let snapshot = s.snapshot(run_id).await?;
        let states: Vec<_> = snapshot.attempts.iter().map(|a| (a.attempt, a.state)).collect();
        equal("each step is completed once [3]", &vec![(1, AttemptState::Completed); 3], &states)?;
        equal("and the run with its output [15]", &Some(Payload::json("\"all\"")), &snapshot.record.output)?;
    }
    Ok(())
}

async fn the_first_of_several_conflicts_in_a_batch_is_told(s: Scenario) -> Verdict {
    let keyed = |number: u32| {
        let key = IdempotencyKey::new(format!("key-{number}"));
        let key = key.map_err(|error| Violation::refused("making a key", &error))?;
        Ok(StartRun { idempotency_key: Some(key), ..s.start_request() })
    };
    let known: Vec<StartRun> = (0..8).map(keyed).collect::<Result<_, _>>()?;
    s.start_all(known.clone()).await?;
    let other = |one: &StartRun| StartRun {
        input: Payload::empty(),
        operation: OperationId::generate(),
        ..one.clone()
    };
    let forwards: Vec<StartRun> = known.iter().map(other).collect();
    let backwards: Vec<StartRun> = known.iter().rev().map(other).collect();
    for batch in [forwards, backwards] {
        let first = batch.first().and_then(|start| start.idempotency_key.clone());
        let told = match s.store().start(batch).await {
            Err(StoreError::IdempotencyConflict { key, .. }) => Some(key),
            _ => None,
        };
        equal("a batch is refused for the first of it that conflicts [15]", &first, &told)?;
    }
    Ok(())
}

async fn an_operation_id_stands_for_one_write_of_each_run(s: Scenario) -> Verdict {
    const RULE: &str = "an id that another run's write went by is a new one for this run [8]";
    let operation = OperationId::generate();
    let mut cancelled = Vec::new();
    for run_id in s.start_many(2).await? {
        let answer = s.store().cancel(CancelRun { operation, ..s.cancel_request(run_id) }).await;
        answer.map_err(|error| Violation::refused("cancelling a run", &error))?;
        cancelled.push(s.run(run_id).await?.run.state);
    }
    equal(RULE, &vec![RunState::Cancelled; 2], &cancelled)?;
    let held = many_held(&s, 3).await?;
    let release = ReleaseRun { operation, ..held[0].release_request() };
    s.store().release(release).await.map_err(|e| Violation::refused("a release", &e))?;
    let fail = FailRun { operation, ..held[1].fail_run_request(fatal()) };
    s.store().fail_run(fail).await.map_err(|e| Violation::refused("failing a run", &e))?;
    let sleep = Sleep { operation, ..held[2].sleep_request("nap", SleepUntil::After(LEASE))? };
    s.store().sleep(sleep).await.map_err(|e| Violation::refused("a sleep", &e))?;
    let mut states = Vec::new();
    for held in &held {
        states.push(s.run(held.run_id()).await?.run.state);
    }
    equal("whatever the writes are", &vec![RunState::Pending, RunState::Failed, RunState::Sleeping], &states)
}

async fn fifty_runs_driven_at_once_all_complete(s: Scenario) -> Verdict {
    let ids = s.start_many(50).await?;
    let done = race(16, |number| {
        let s = s.clone();
        async move { work(&s, &format!("w{number}")).await }
    })
    .await?;
    under("fifty runs driven at once all complete [1, 3, 15]", all_complete(&s, ids, done).await)
}

async fn two_servers_drive_runs_together(s: Scenario) -> Verdict {
    let second = s.second_handle().await?;
    let ids = s.start_many(50).await?;
    let done = race(8, |number| {
        let s = if number % 2 == 0 { s.clone() } else { second.clone() };
        async move { work(&s, &format!("w{number}")).await }
    })
    .await?;
    under("two servers drive runs together, each once [1, 3, 15]", all_complete(&s, ids, done).await)
}
