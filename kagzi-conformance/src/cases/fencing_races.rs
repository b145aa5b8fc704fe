//! Fencing at the very moment of the loss: one of the two orders, never a mix; and long after it.

use std::time::Duration;

use kagzi_core::{AttemptState, DeleteFinished, RunState, StartOutcome};

use super::fencing::Operation;
use crate::case::cases;
use crate::scenario::{Held, LEASE, Scenario, check, equal, lease_lost, race, under};
use crate::violation::{Verdict, Violation};

cases! {
    "fencing";
    [2, 15] completing_a_step_against_a_steal_is_one_order_or_the_other;
    [2, 15] completing_a_step_against_a_steal_on_another_handle_is_one_order needs SecondHandle;
    [2, 15] completing_a_run_against_a_steal_is_one_order_or_the_other;
    [2, 15] beginning_a_step_against_a_steal_is_one_order_or_the_other;
    [2, 15] completing_a_step_against_a_reap_is_one_order_or_the_other;
    [2] a_worker_that_was_frozen_finds_all_its_writes_refused;
    [2] a_batch_of_the_frozen_and_the_living_harms_neither;
    [2] the_lease_of_a_removed_run_is_no_right_to_its_next_life;
}

const RUNS: usize = 24;

/// Runs held by `w1` with an open attempt of step `a`, their leases expired.
async fn stealable(s: &Scenario) -> Result<Vec<Held>, Violation> {
    s.start_many(RUNS).await?;
    let mut held = Vec::new();
    for run in s.claim("w1", 1000).await? {
        let run = Held::new(s.clone(), run);
        run.begin("a").await?;
        held.push(run);
    }
    equal("all are held", &RUNS, &held.len())?;
    s.turn(LEASE);
    Ok(held)
}

/// Lets each old worker do `write` while thieves claim everything, and gives whether it was accepted.
async fn against_thieves<F>(
    held: &[Held],
    thief: &Scenario,
    write: impl Fn(Held) -> F,
) -> Result<Vec<bool>, Violation>
where
    F: Future<Output = Result<bool, Violation>> + Send + 'static,
{
    let answers = race(RUNS * 2, |number| {
        let writing = (number % 2 == 0).then(|| write(held[number / 2].clone()));
        let thief = thief.clone();
        async move {
            match writing {
                Some(writing) => Ok(Some(writing.await?)),
                None => thief.claim("thief", 2).await.map(|_| None),
            }
        }
    })
    .await?;
    Ok(answers.into_iter().flatten().collect())
}

async fn complete_step(held: Held) -> Result<bool, Violation> {
    let answer = held.store().complete_step(held.complete_request("a", 1, "1")?).await;
    if answer.is_err() {
        lease_lost(&answer, "the loser is told that its lease is lost [2]")?;
    }
    Ok(answer.is_ok())
}

/// Whether the attempt is what the answer to its completion says.
async fn step_is_told_truly(s: &Scenario, held: &[Held], accepted: Vec<bool>) -> Verdict {
    for (held, accepted) in held.iter().zip(accepted) {
        let attempts = s.attempts(held.run_id()).await?;
        let states: Vec<_> = attempts.iter().map(|a| (a.attempt, a.state)).collect();
        let state = if accepted { AttemptState::Completed } else { AttemptState::Abandoned };
        equal(
            "an accepted completion stands, a refused one left nothing [2, 15]",
            &vec![(1, state)],
            &states,
        )?;
    }
    Ok(())
}

async fn completing_a_step_against_a_steal_is_one_order_or_the_other(s: Scenario) -> Verdict {
    let held = stealable(&s).await?;
    let accepted = against_thieves(&held, &s, complete_step).await?;
    under(
        "completing a step and a steal at one moment are one order or the other [2, 15]",
        step_is_told_truly(&s, &held, accepted).await,
    )
}

async fn completing_a_step_against_a_steal_on_another_handle_is_one_order(s: Scenario) -> Verdict {
    let thief = s.second_handle().await?;
    let held = stealable(&s).await?;
    let accepted = against_thieves(&held, &thief, complete_step).await?;
    under(
        "completing a step and a steal on another handle at one moment are one order or the other [2, 15]",
        step_is_told_truly(&s, &held, accepted).await,
    )
}

async fn completing_a_run_against_a_steal_is_one_order_or_the_other(s: Scenario) -> Verdict {
    let held = stealable(&s).await?;
    let accepted = against_thieves(&held, &s, |held| async move {
        let answer = held.store().complete_run(held.complete_run_request("1")).await;
        if answer.is_err() {
            lease_lost(&answer, "the loser is told that its lease is lost [2]")?;
        }
        Ok(answer.is_ok())
    })
    .await?;
    for (held, accepted) in held.iter().zip(accepted) {
        let run = s.run(held.run_id()).await?.run;
        let token = run.fencing_token.get();
        let right = if accepted {
            run.state == RunState::Completed && token == 1
        } else {
            // Taken back by one claim and taken by it or another; or taken back, and due for the next.
            matches!((run.state, token), (RunState::Running, 2) | (RunState::Pending, 1))
        };
        check(right, "a run is completed or taken back, never both [2, 6]", accepted, &run)?;
    }
    Ok(())
}

async fn beginning_a_step_against_a_steal_is_one_order_or_the_other(s: Scenario) -> Verdict {
    let held = stealable(&s).await?;
    let accepted = against_thieves(&held, &s, |held| async move {
        let answer = held.store().begin_step(held.begin_request("b")?).await;
        if answer.is_err() {
            lease_lost(&answer, "the loser is told that its lease is lost [2]")?;
        }
        Ok(answer.is_ok())
    })
    .await?;
    for (held, accepted) in held.iter().zip(accepted) {
        let attempts = s.attempts(held.run_id()).await?;
        let of_b: Vec<_> = attempts.iter().filter(|a| a.step_id.as_str() == "b").map(|a| a.state).collect();
        let expected = if accepted { vec![AttemptState::Abandoned] } else { Vec::new() };
        equal(
            "an accepted begin is recorded and abandoned, a refused one left nothing [2, 5]",
            &expected,
            &of_b,
        )?;
    }
    Ok(())
}

async fn completing_a_step_against_a_reap_is_one_order_or_the_other(s: Scenario) -> Verdict {
    let held = stealable(&s).await?;
    let answers = race(RUNS * 2, |number| {
        let (s, held) = (s.clone(), held[number / 2].clone());
        async move {
            if number % 2 == 0 {
                return complete_step(held).await.map(Some);
            }
            s.reap(3).await.map(|_| None)
        }
    })
    .await?;
    under(
        "completing a step and a reap at one moment are one order or the other [2, 15]",
        step_is_told_truly(&s, &held, answers.into_iter().flatten().collect()).await,
    )
}

async fn a_worker_that_was_frozen_finds_all_its_writes_refused(s: Scenario) -> Verdict {
    let frozen = s.held().await?;
    frozen.begin("a").await?;
    s.turn(LEASE * 10);
    let living = s.claim_one("w2").await?;
    equal("the next holder begins anew [5]", &2, &living.begin("a").await?)?;
    living.complete("a", 2, "\"living\"").await?;
    living.complete_run("\"living\"").await?;
    let before = living.snapshot().await?;
    for operation in super::fencing::Operation::ALL {
        lease_lost(&operation.send(&frozen).await?, "each of a frozen worker's writes is refused [2]")?;
    }
    let late = frozen.store().complete_step(frozen.complete_request("a", 1, "\"frozen\"")?).await;
    lease_lost(&late, "so is the completion of the step it was at [2]")?;
    s.unchanged(&before, "and the work of its successor is untouched [2, 6]").await
}

async fn a_batch_of_the_frozen_and_the_living_harms_neither(s: Scenario) -> Verdict {
    let frozen = s.held().await?;
    s.turn(LEASE);
    let living = s.claim_one("w2").await?;
    s.turn(std::time::Duration::from_secs(1));
    let batch = vec![frozen.heartbeat_request(), living.heartbeat_request(), frozen.heartbeat_request()];
    let verdicts = s.store().heartbeat(batch).await.map_err(|e| Violation::refused("a batch", &e))?;
    let granted: Vec<bool> = verdicts.iter().map(Result::is_ok).collect();
    equal("only the living lease is extended [2]", &vec![false, true, false], &granted)?;
    let run = s.run(living.run_id()).await?.run;
    equal("to its own length [1]", &Some(s.now().saturating_add(LEASE)), &run.lease_expires_at)
}

async fn the_lease_of_a_removed_run_is_no_right_to_its_next_life(s: Scenario) -> Verdict {
    const RULE: &str = "a lease of a run that was removed is none of the run that was started again [2]";
    let start = s.start_request();
    s.start(start.clone()).await?;
    let old = s.claim_one("w1").await?;
    old.begin("open").await?;
    s.cancel(old.run_id()).await?;
    s.turn(Duration::from_micros(1));
    let removal = DeleteFinished {
        namespace: Some(s.namespace().clone()),
        states: Vec::new(),
        before: s.now(),
        limit: 10,
    };
    let removed = s.store().delete_finished(&removal).await;
    let removed = removed.map_err(|e| Violation::refused("a removal", &e))?;
    equal("one run is removed", &1, &removed)?;
    equal("and started again", &StartOutcome::Created, &s.start(start).await?.outcome)?;
    let before = s.snapshot(old.run_id()).await?;
    for operation in Operation::ALL {
        lease_lost(&operation.send(&old).await?, RULE)?;
    }
    s.unchanged(&before, "nor does it change it while nobody holds it [2]").await?;
    let new = s.claim_one("w2").await?;
    new.begin("open").await?;
    let before = new.snapshot().await?;
    for operation in Operation::ALL {
        lease_lost(&operation.send(&old).await?, RULE)?;
    }
    s.unchanged(&before, "nor while another worker holds it [2]").await
}
