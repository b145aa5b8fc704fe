//! What a claim puts in order on its way, so that it depends on no reaper and on no memory of its own.

use std::time::Duration;

use kagzi_core::{Claim, OperationId, RunId, StartAt, StartRun};

use crate::case::cases;
use crate::scenario::{LEASE, Scenario, equal, queue};
use crate::violation::Verdict;

cases! {
    "claim";
    [10] a_claim_finds_the_due_sleepers_of_all_its_queues;
    [10] a_sleeper_that_another_handle_started_is_claimable_at_its_time needs SecondHandle;
    [10] a_long_held_run_stands_before_nothing_that_is_due;
    [10] a_handle_that_started_something_for_later_finds_what_comes_due_before needs SecondHandle;
    [10] a_claim_of_hundreds_takes_as_many_due_sleepers;
    [6] more_dead_runs_than_a_claim_puts_in_order_are_handed_out_to_nobody;
}

async fn a_claim_finds_the_due_sleepers_of_all_its_queues(s: Scenario) -> Verdict {
    const NAMES: [&str; 3] = ["first", "second", "third"];
    let mut asleep: Vec<RunId> = Vec::new();
    for name in NAMES {
        let of_queue = s.on_queue(name)?;
        asleep.push(of_queue.start_one().await?);
        of_queue.claim_one("w1").await?.sleep("nap", LEASE).await?;
    }
    s.turn(LEASE);
    let queues = NAMES.into_iter().map(queue).collect::<Result<Vec<_>, _>>()?;
    let claimed = s.claim_as(Claim { queues, ..s.claim_request("w2", 10)? }).await?;
    let mut taken: Vec<RunId> = claimed.iter().map(|run| run.run.run_id).collect();
    taken.sort_unstable();
    asleep.sort_unstable();
    equal("a claim finds the due sleepers of each of its queues, though nobody reaped [10]", &asleep, &taken)
}

async fn a_sleeper_that_another_handle_started_is_claimable_at_its_time(s: Scenario) -> Verdict {
    const RULE: &str = "a handle that looked in vain finds the sleeper that another one started since [10]";
    let other = s.second_handle().await?;
    // What this handle remembers of the empty queue is put to the test.
    s.nothing_claimable("nothing is there yet").await?;
    let later = StartRun { start_at: StartAt::After(LEASE), ..s.start_request() };
    let run_id = other.start(later).await?.run_id;
    s.turn_almost(LEASE);
    s.nothing_claimable("and it is not there before its time [10]").await?;
    s.turn(Duration::from_micros(1));
    let taken: Vec<RunId> = s.claim("w1", 10).await?.iter().map(|run| run.run.run_id).collect();
    equal(RULE, &vec![run_id], &taken)
}

async fn a_long_held_run_stands_before_nothing_that_is_due(s: Scenario) -> Verdict {
    // More than a sweep should look through before it gives up.
    const BEATS: u32 = 300;
    const SHORTLY: Duration = Duration::from_secs(1);
    let held = s.held().await?;
    for _ in 0..BEATS {
        s.turn(LEASE / 2);
        held.heartbeat().await?;
    }
    // The moments at which its former leases would have ended are past, and nothing is due at them any more.
    for by in ["a reap", "a claim"] {
        let later = StartRun { start_at: StartAt::After(SHORTLY), ..s.start_request() };
        let asleep = s.start(later).await?.run_id;
        s.turn(SHORTLY);
        if by == "a reap" {
            let woken = s.reap(1).await?.woken;
            equal("a reap wakes the sleeper behind the leases that were extended since [14]", &1, &woken)?;
        }
        let taken: Vec<RunId> = s.claim("w2", 1).await?.iter().map(|run| run.run.run_id).collect();
        equal(
            "a claim takes what comes due behind leases that were extended since [10]",
            &vec![asleep],
            &taken,
        )?;
    }
    held.heartbeat().await.map(drop)
}

async fn a_handle_that_started_something_for_later_finds_what_comes_due_before(s: Scenario) -> Verdict {
    const RULE: &str = "a handle that has started something for later finds what comes due before that [10]";
    let held = s.held().await?;
    // It has looked at nothing yet: what it starts is all that it knows of.
    let other = s.second_handle().await?;
    other.start(StartRun { start_at: StartAt::After(LEASE * 3), ..s.start_request() }).await?;
    s.turn(LEASE);
    let taken: Vec<RunId> = other.claim("w2", 10).await?.iter().map(|run| run.run.run_id).collect();
    equal(RULE, &vec![held.run_id()], &taken)
}

async fn a_claim_of_hundreds_takes_as_many_due_sleepers(s: Scenario) -> Verdict {
    // More than a claim puts in order in passing, and no more than it asks for.
    const SLEEPERS: u32 = 400;
    let later = StartRun { start_at: StartAt::After(LEASE), ..s.start_request() };
    let asleep = (0..SLEEPERS).map(|_| StartRun { operation: OperationId::generate(), ..later.clone() });
    s.start_all(asleep.collect()).await?;
    s.turn(LEASE);
    let taken = s.claim("w1", SLEEPERS).await?.len();
    equal(
        "a claim takes as many due sleepers as it asks for, though nobody reaped [10]",
        &(SLEEPERS as usize),
        &taken,
    )
}

async fn more_dead_runs_than_a_claim_puts_in_order_are_handed_out_to_nobody(s: Scenario) -> Verdict {
    // More than a claim is tempted to repair before it takes what is ready.
    const DEAD: usize = 1_100;
    const SHORTLY: Duration = Duration::from_secs(1);
    for by_type in [false, true] {
        let s = s.on_queue(if by_type { "of types" } else { "of any type" })?;
        let bounded = StartRun { run_timeout: Some(SHORTLY), ..s.start_request() };
        let dead = (0..DEAD).map(|_| StartRun { operation: OperationId::generate(), ..bounded.clone() });
        s.start_all(dead.collect()).await?;
        let behind = s.start_one().await?;
        s.turn(SHORTLY);
        let mut claim = s.claim_request("w1", 10)?;
        if by_type {
            claim.workflow_types.push(bounded.workflow_type);
        }
        let taken: Vec<RunId> = s.claim_as(claim).await?.iter().map(|run| run.run.run_id).collect();
        equal(
            "of more runs past their deadline than a claim repairs it hands out none, and finds what is behind [6]",
            &vec![behind],
            &taken,
        )?;
    }
    Ok(())
}
