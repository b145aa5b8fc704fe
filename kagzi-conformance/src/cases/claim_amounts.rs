//! Claims where there is more than a store first thought of: long histories, long queues, late progress.

use std::time::Duration;

use kagzi_core::{AttemptScope, Claim, NextStep, Payload, Priority, Rules, RunState, StartRun, Then};

use crate::case::cases;
use crate::scenario::{Held, LEASE, Scenario, check, equal, queue, step_id, suite_rules, workflow_type};
use crate::violation::{Verdict, Violation};

cases! {
    "claim";
    [4] a_long_history_is_handed_over_whole;
    [4] a_history_of_hundreds_of_steps_is_handed_over_whole_where_there_is_room;
    [10, 12] an_input_larger_than_all_the_room_is_handed_over_alone;
    [10, 13] a_run_behind_thousands_of_other_types_is_found;
    [1, 8] a_claim_sent_again_does_not_give_what_its_worker_took_anew;
    [10, 13] a_claim_of_one_takes_the_most_urgent_of_the_due_sleepers;
    [14] progress_late_in_a_long_run_is_progress;
    [10] a_claim_of_many_queues_and_types_finds_the_run_of_the_last;
}

/// More than a page, a bound of 100, or what a look at the newest few would show.
const MANY_STEPS: u32 = 150;

/// More than a backend is tempted to look through.
const MANY_RUNS: usize = 2_100;

/// Executes the steps of these numbers, one after the other, each begun with the completion of the one before.
pub(super) async fn many_steps(held: &Held, from: u32, to: u32) -> Verdict {
    let name = |n: u32| format!("step-{n:04}");
    let mut first = held.begin_request(&name(from))?;
    first.step.position = from;
    held.store().begin_step(first).await.map_err(|e| Violation::refused("a begin", &e))?;
    for n in from..to {
        let then =
            if n + 1 < to { Then::Begin(NextStep::new(step_id(name(n + 1))?, n + 1)) } else { Then::Nothing };
        held.complete_then(&name(n), 1, &n.to_string(), then).await?;
    }
    Ok(())
}

async fn a_long_history_is_handed_over_whole(s: Scenario) -> Verdict {
    let held = s.held().await?;
    many_steps(&held, 0, MANY_STEPS).await?;
    held.release().await?;
    let again = s.claim_one("w2").await?;
    let recorded = s.attempts_in(held.run_id(), AttemptScope::Latest).await?;
    equal("the history has every step [5]", &(MANY_STEPS as usize), &recorded.len())?;
    equal("a claim with room for a long history carries all of it [4]", &recorded, &again.claimed.steps)?;
    equal("and says that nothing more follows [4]", &None, &again.claimed.more_steps)
}

async fn a_history_of_hundreds_of_steps_is_handed_over_whole_where_there_is_room(s: Scenario) -> Verdict {
    // The rules of the suite leave room for some 250.
    s.under_rules(Rules::default(), hundreds_are_handed_over).await
}

async fn hundreds_are_handed_over(s: Scenario) -> Verdict {
    const STEPS: u32 = 300;
    let held = s.held().await?;
    many_steps(&held, 0, STEPS).await?;
    held.release().await?;
    let claimed = s.claim_one("w2").await?.claimed;
    let steps: Vec<u32> = claimed.steps.iter().map(|attempt| attempt.position).collect();
    let rule = "a claim with room for hundreds of steps carries each of them [4]";
    check(steps == (0..STEPS).collect::<Vec<_>>(), rule, STEPS, steps.len())?;
    equal("and says that these are all [4]", &None, &claimed.more_steps)
}

async fn an_input_larger_than_all_the_room_is_handed_over_alone(s: Scenario) -> Verdict {
    s.under_rules(Rules { max_claim_bytes: 64, ..suite_rules() }, larger_than_the_room).await
}

async fn larger_than_the_room(s: Scenario) -> Verdict {
    let input = Payload::json(format!("\"{}\"", "x".repeat(200)));
    let large = || StartRun { input: input.clone(), ..s.start_request() };
    let started = s.start_all(vec![large(), large()]).await?;
    let mut ids: Vec<_> = started.iter().map(|started| started.run_id).collect();
    ids.sort_unstable();
    for run_id in ids {
        let taken: Vec<_> = s.claim("w1", 10).await?.iter().map(|run| run.run.run_id).collect();
        equal(
            "an input that is larger than all the room is handed over, and nothing beside it [10, 12]",
            &vec![run_id],
            &taken,
        )?;
    }
    Ok(())
}

async fn a_run_behind_thousands_of_other_types_is_found(s: Scenario) -> Verdict {
    let foreign = StartRun { workflow_type: workflow_type("bill")?, ..s.start_request() };
    let batch = || (0..MANY_RUNS / 3).map(|_| StartRun { operation: new(), ..foreign.clone() }).collect();
    for _ in 0..3 {
        s.start_all(batch()).await?;
    }
    s.turn(Duration::from_secs(1));
    let wanted =
        s.start(StartRun { workflow_type: workflow_type("ship")?, ..s.start_request() }).await?.run_id;
    let claim = Claim { workflow_types: vec![workflow_type("ship")?], ..s.claim_request("w1", 1)? };
    let taken: Vec<_> = s.claim_as(claim).await?.iter().map(|run| run.run.run_id).collect();
    equal("a claim finds its types however many others stand in front [10]", &vec![wanted], &taken)
}

fn new() -> kagzi_core::OperationId {
    kagzi_core::OperationId::generate()
}

async fn a_claim_sent_again_does_not_give_what_its_worker_took_anew(s: Scenario) -> Verdict {
    s.start_one().await?;
    let request = s.claim_request("w1", 1)?;
    let first = s.claim_as(request.clone()).await?;
    let Some(first) = first.first().cloned() else {
        return Err(Violation::new("a due run is claimable [10]", "1 claimed run", "none"));
    };
    Held::new(s.clone(), first).release().await?;
    let held = s.claim_one("w1").await?;
    let again: Vec<_> = s.claim_as(request).await?.iter().map(|run| run.lease.lease.clone()).collect();
    equal(
        "a claim sent again gives no lease that a later claim of its worker took [1]",
        &Vec::new(),
        &again,
    )?;
    held.complete_run("1").await
}

async fn a_claim_of_one_takes_the_most_urgent_of_the_due_sleepers(s: Scenario) -> Verdict {
    let urgent = Priority::new(5).map_err(|e| Violation::refused("a priority", &e))?;
    let mut ids = Vec::new();
    for priority in [Priority::default(), urgent] {
        ids.push(s.start(StartRun { priority, ..s.start_request() }).await?.run_id);
        let held = s.claim_one("w1").await?;
        // The one that is less urgent is due first, so that it is found first.
        held.sleep("nap", LEASE.saturating_mul(u32::try_from(ids.len()).unwrap_or(1))).await?;
    }
    s.turn(LEASE * 3);
    let taken: Vec<_> = s.claim("w2", 1).await?.iter().map(|run| run.run.run_id).collect();
    equal("of due sleepers that nobody reaped the most urgent goes first [13]", &ids[1..].to_vec(), &taken)
}

async fn progress_late_in_a_long_run_is_progress(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let run_id = held.run_id();
    many_steps(&held, 0, 40).await?;
    s.turn(LEASE);
    s.reap_all().await?;
    // Each lease finishes one step and is lost: more often than a run without progress may lose one.
    for n in 40..48 {
        let held = s.claim_one("w1").await?;
        many_steps(&held, n, n + 1).await?;
        s.turn(LEASE);
        s.reap_all().await?;
    }
    let run = s.run(run_id).await?.run;
    check(
        run.state == RunState::Pending,
        "a step that is finished late in a long run is progress as the first one is [14]",
        RunState::Pending,
        &run,
    )
}

async fn a_claim_of_many_queues_and_types_finds_the_run_of_the_last(s: Scenario) -> Verdict {
    const RULE: &str = "a claim looks into all of its queues, and for all of its types [10]";
    let queues = (0..100).map(|n| queue(format!("queue{n:02}"))).collect::<Result<Vec<_>, _>>()?;
    let types = (0..100).map(|n| workflow_type(format!("type{n:02}"))).collect::<Result<Vec<_>, _>>()?;
    for turned in [false, true] {
        let (mut queues, mut types) = (queues.clone(), types.clone());
        if turned {
            queues.reverse();
            types.reverse();
        }
        for by_type in [false, true] {
            let mut start = s.start_request();
            let mut claim = s.claim_request("w1", 1)?;
            if by_type {
                start.workflow_type.clone_from(&types[99]);
                claim.workflow_types.clone_from(&types);
            } else {
                start.queue.clone_from(&queues[99]);
                claim.queues.clone_from(&queues);
            }
            let run_id = s.start(start).await?.run_id;
            let taken: Vec<_> = s.claim_as(claim).await?.iter().map(|run| run.run.run_id).collect();
            equal(RULE, &vec![run_id], &taken)?;
        }
    }
    Ok(())
}
