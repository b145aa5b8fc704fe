//! Wake-ups for what the passing of time will do, or has done: deadlines that come by way of other operations,
//! and timeouts of steps.

use std::time::Duration;

use kagzi_core::{Claim, NextStep, Payload, RetryPolicy, StartAt, StartRun, Then};

use super::wake_up::{queue_of, reaper, run_of, woken};
use crate::case::cases;
use crate::scenario::{Held, LEASE, Scenario, equal, fatal, hiccup, queue, step_id, suite_rules};
use crate::violation::{Verdict, Violation};

cases! {
    "wake_up";
    [10, 14] the_timeout_of_a_step_begun_by_a_completion_wakes_the_reaper;
    [10] a_retry_that_waits_wakes_the_reaper;
    [10, 14] the_fresh_deadline_of_a_requeued_run_wakes_the_reaper;
    [10] a_step_timeout_that_ends_the_run_wakes_who_waits_for_it;
    [10] a_step_timeout_that_is_retried_at_once_wakes_the_queue;
    [10] a_claim_that_wakes_more_sleepers_than_it_takes_wakes_the_queue;
    [10] a_claim_without_room_wakes_every_queue_that_it_leaves_runs_in;
    [10] a_claim_that_finds_a_run_past_its_deadline_wakes_who_waits_for_it;
}

async fn the_timeout_of_a_step_begun_by_a_completion_wakes_the_reaper(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.begin("a").await?;
    let waiter = reaper(&s);
    // Nearer than the end of the lease, which the reaper may have heard of.
    let next = NextStep { timeout: Some(LEASE / 2), ..NextStep::new(step_id("b")?, 1) };
    held.complete_then("a", 1, "1", Then::Begin(next)).await?;
    woken(waiter, "a reaper that would sleep past the timeout of the next step is woken [14]").await
}

async fn a_retry_that_waits_wakes_the_reaper(s: Scenario) -> Verdict {
    for fails_by_step in [true, false] {
        let held = s.held().await?;
        held.begin("a").await?;
        let waiter = reaper(&s);
        if fails_by_step {
            held.fail("a", 1, hiccup()).await?;
        } else {
            held.fail_run(hiccup()).await?;
        }
        woken(waiter, "a reaper that would sleep past a retry is woken [10]").await?;
    }
    Ok(())
}

async fn the_fresh_deadline_of_a_requeued_run_wakes_the_reaper(s: Scenario) -> Verdict {
    s.start(StartRun { run_timeout: Some(LEASE), ..s.start_request() }).await?;
    let held = s.claim_one("w1").await?;
    held.fail_run(fatal()).await?;
    let waiter = reaper(&s);
    s.requeue(held.run_id()).await?;
    woken(waiter, "a reaper that would sleep past the deadline of a requeued run is woken [10, 14]").await
}

/// Begins a step that times out after half a lease, under a policy of its own.
async fn begins_with_timeout(held: &Held, retry: RetryPolicy) -> Verdict {
    let mut begin = held.begin_request("a")?;
    begin.step.timeout = Some(LEASE / 2);
    begin.step.retry = Some(retry);
    held.store().begin_step(begin).await.map(drop).map_err(|e| Violation::refused("a begin", &e))
}

async fn a_step_timeout_that_ends_the_run_wakes_who_waits_for_it(s: Scenario) -> Verdict {
    let held = s.held().await?;
    begins_with_timeout(&held, RetryPolicy::never()).await?;
    s.turn(LEASE / 2);
    let waiter = run_of(&s, held.run_id());
    let reaped = s.reap(10).await?;
    equal("the step times out [14]", &1, &reaped.steps_timed_out)?;
    woken(waiter, "the end of a run by the timeout of its step wakes who waits for it [10]").await
}

async fn a_step_timeout_that_is_retried_at_once_wakes_the_queue(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let at_once = RetryPolicy { first_delay: Duration::ZERO, ..suite_rules().default_retry };
    begins_with_timeout(&held, at_once).await?;
    s.turn(LEASE / 2);
    let waiter = queue_of(&s);
    let reaped = s.reap(10).await?;
    equal("the step times out [14]", &1, &reaped.steps_timed_out)?;
    woken(waiter, "a run that is due again because its step timed out wakes its queue [10]").await?;
    s.claim_one("w2").await.map(drop)
}

async fn a_claim_that_wakes_more_sleepers_than_it_takes_wakes_the_queue(s: Scenario) -> Verdict {
    let later = || StartRun { start_at: StartAt::After(LEASE), ..s.start_request() };
    s.start_all(vec![later(), later()]).await?;
    s.turn(LEASE);
    let waiter = queue_of(&s);
    s.claim_one("w1").await?;
    woken(waiter, "a sleeper that a claim wakes and does not take wakes its queue [10]").await?;
    s.claim_one("w2").await.map(drop)
}

async fn a_claim_that_finds_a_run_past_its_deadline_wakes_who_waits_for_it(s: Scenario) -> Verdict {
    let run_id = s.start(StartRun { run_timeout: Some(LEASE), ..s.start_request() }).await?.run_id;
    s.turn(LEASE);
    let waiter = run_of(&s, run_id);
    s.nothing_claimable("a run past its deadline is not claimable [6]").await?;
    woken(waiter, "the end of a run that a claim finds past its deadline wakes who waits for it [10]").await
}

async fn a_claim_without_room_wakes_every_queue_that_it_leaves_runs_in(s: Scenario) -> Verdict {
    let rules = suite_rules();
    let input = Payload::json(format!("\"{}\"", "x".repeat(rules.max_payload_bytes - 2)));
    let fit = rules.max_claim_bytes / input.len_bytes();
    let names = ["first", "second", "third"];
    for name in names {
        let of_queue = s.on_queue(name)?;
        let batch = (0..=fit).map(|_| StartRun { input: input.clone(), ..of_queue.start_request() });
        of_queue.start_all(batch.collect()).await?;
    }
    // A hint may come a moment after its answer: once another write is answered, those of the starts are out.
    s.on_queue("elsewhere")?.nothing_claimable("nothing is there").await?;
    let waiters = names.into_iter().map(|name| Ok(queue_of(&s.on_queue(name)?)));
    let waiters = waiters.collect::<Result<Vec<_>, Violation>>()?;
    let queues = names.into_iter().map(queue).collect::<Result<Vec<_>, _>>()?;
    let claimed = s.claim_as(Claim { queues, ..s.claim_request("w1", 100)? }).await?;
    equal("a claim takes what it has room for [12]", &fit, &claimed.len())?;
    for waiter in waiters {
        woken(waiter, "a claim without room wakes each queue that it leaves runs in [10]").await?;
    }
    Ok(())
}
