//! What a claim puts in order on its way, so that it depends on no reaper and on no memory of its own.

use std::time::Duration;

use kagzi_core::{Claim, RunId, StartAt, StartRun};

use crate::case::cases;
use crate::scenario::{LEASE, Scenario, equal, queue};
use crate::violation::Verdict;

cases! {
    "claim";
    [10] a_claim_finds_the_due_sleepers_of_all_its_queues;
    [10] a_sleeper_that_another_handle_started_is_claimable_at_its_time needs SecondHandle;
    [10] a_long_held_run_stands_before_nothing_that_is_due;
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
