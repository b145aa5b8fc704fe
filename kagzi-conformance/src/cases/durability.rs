//! Durability: what was acknowledged is there after the data was opened again.

use std::time::Duration;

use kagzi_core::{
    AttemptScope, BeginOutcome, DeleteFinished, IdempotencyKey, ListAttempts, ListRuns, NextStep,
    PageRequest, Payload, ReleaseOutcome, RunFilter, RunState, SleepUntil, StartOutcome, StartRun,
    StoreError, Then,
};

use super::fencing::Operation;
use crate::case::{Case, cases};
use crate::fixture::Capability;
use crate::scenario::{
    LEASE, Scenario, Snapshot, equal, fatal, hiccup, refused, run_not_found, step_id, under,
};
use crate::violation::{Verdict, Violation};

cases! {
    "durability";
    [9] start_is_there_after_a_reopen needs Reopen;
    [9] a_whole_batch_of_starts_is_there_after_a_reopen needs Reopen;
    [9] claim_is_there_after_a_reopen needs Reopen;
    [9] cancel_is_there_after_a_reopen needs Reopen;
    [9] requeue_is_there_after_a_reopen needs Reopen;
    [9] reap_is_there_after_a_reopen needs Reopen;
    [9] a_removal_is_there_after_a_reopen needs Reopen;
    [4, 9] memoized_outputs_are_there_after_a_reopen needs Reopen;
    [7, 9] keys_stay_bound_after_a_reopen needs Reopen;
    [8, 9] answers_are_remembered_after_a_reopen needs Reopen;
    [2, 9] a_lease_outlives_a_reopen needs Reopen;
    [9, 14] an_expired_lease_is_found_after_a_reopen needs Reopen;
    [9] a_closed_store_loses_nothing needs Reopen;
    [9] concurrent_writes_that_were_acknowledged_are_all_there needs Reopen;
    [9] what_one_handle_wrote_the_other_reads needs SecondHandle;
    [7, 9] eight_handles_opened_at_once_find_all_that_was_there_and_work needs SecondHandle;
    [] a_closed_store_answers_unavailable;
    [] no_call_to_a_closed_store_is_answered_as_if_it_were_open;
}

/// Every worker operation, acknowledged and then found again.
pub(super) fn operation_cases() -> Vec<Case> {
    Operation::ALL
        .into_iter()
        .map(|operation| {
            let name = format!("{}_is_there_after_a_reopen", operation.name());
            let needs = &[Capability::Reopen];
            Case::new("durability", name, &[9], needs, move |s| Box::pin(survives(s, operation)))
        })
        .collect()
}

async fn survives(s: Scenario, operation: Operation) -> Verdict {
    let held = s.held().await?;
    held.step("done", "1").await?;
    held.begin("open").await?;
    s.turn(Duration::from_secs(1));
    operation.send(&held).await?.map_err(|e| Violation::refused(operation.name(), &e))?;
    let before = held.snapshot().await?;
    drop(held);
    let rule = format!("what {} wrote is there after a reopen [9]", operation.name());
    s.reopen().await?.unchanged(&before, &rule).await
}

/// Reopens without closing, and asserts that every row of a run is as it was.
async fn reopened(s: Scenario, before: Snapshot) -> Result<Scenario, Violation> {
    let s = s.reopen().await?;
    s.unchanged(&before, "what was acknowledged is there after a reopen [9]").await?;
    Ok(s)
}

async fn start_is_there_after_a_reopen(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    let before = s.snapshot(run_id).await?;
    let s = reopened(s, before).await?;
    equal("and is claimable [10]", &run_id, &s.claim_one("w1").await?.run_id())
}

async fn a_whole_batch_of_starts_is_there_after_a_reopen(s: Scenario) -> Verdict {
    s.start_many(500).await?;
    let s = s.reopen().await?;
    equal("all of it [9, 15]", &500, &s.claim("w1", 1000).await?.len())
}

async fn claim_is_there_after_a_reopen(s: Scenario) -> Verdict {
    s.start_one().await?;
    let request = s.claim_request("w1", 1)?;
    let first = s.claim_as(request.clone()).await?;
    let before = s.snapshot(first[0].run.run_id).await?;
    let s = reopened(s, before).await?;
    s.nothing_claimable("the lease is in force [1]").await?;
    equal("and the claim sent again gets its first answer [8]", &first, &s.claim_as(request).await?)
}

async fn cancel_is_there_after_a_reopen(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    s.cancel(run_id).await?;
    let before = s.snapshot(run_id).await?;
    under(
        "a cancellation is there after a reopen [9]",
        reopened(s, before).await?.nothing_claimable("cancelled stays [6]").await,
    )
}

async fn requeue_is_there_after_a_reopen(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.fail_run(fatal()).await?;
    s.requeue(held.run_id()).await?;
    let before = held.snapshot().await?;
    drop(held);
    let s = reopened(s, before).await?;
    under("a requeue is there after a reopen [9]", s.claim_one("w2").await?.complete_run("1").await)
}

async fn reap_is_there_after_a_reopen(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.begin("a").await?;
    s.turn(LEASE);
    s.reap(10).await?;
    let before = held.snapshot().await?;
    drop(held);
    let s = reopened(s, before).await?;
    equal("and is not done again [14]", &0, &s.reap(10).await?.total())
}

async fn a_removal_is_there_after_a_reopen(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let run_id = held.run_id();
    held.complete_run("1").await?;
    drop(held);
    s.turn(Duration::from_secs(1));
    let request = DeleteFinished { namespace: None, states: Vec::new(), before: s.now(), limit: 10 };
    s.store().delete_finished(&request).await.map_err(|e| Violation::refused("a removal", &e))?;
    let s = s.reopen().await?;
    run_not_found(&s.store().get_run(s.namespace(), run_id).await, "a removed run stays removed [9]")
}

async fn memoized_outputs_are_there_after_a_reopen(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.begin("a").await?;
    let then = Then::Begin(NextStep::new(step_id("b")?, 1));
    held.complete_then("a", 1, "{\"n\":1}", then).await?;
    drop(held);
    s.turn(LEASE);
    let s = s.reopen().await?;
    let again = s.claim_one("w2").await?;
    let expected = BeginOutcome::Memoized { attempt: 1, output: Payload::json("{\"n\":1}") };
    equal("a completed step is never executed again [4, 9]", &expected, &again.begin_any("a").await?)?;
    equal("an open one is [5]", &2, &again.begin("b").await?)
}

async fn keys_stay_bound_after_a_reopen(s: Scenario) -> Verdict {
    let key = IdempotencyKey::new("k").map_err(|e| Violation::refused("a key", &e))?;
    let request = StartRun { idempotency_key: Some(key), ..s.start_request() };
    let first = s.start(request.clone()).await?;
    let s = s.reopen().await?;
    equal("a start sent again gets its first answer [8]", &first, &s.start(request.clone()).await?)?;
    let again = StartRun { operation: kagzi_core::OperationId::generate(), ..request };
    let second = s.start(again).await?;
    equal(
        "and the key names its run [7]",
        &(first.run_id, StartOutcome::Existing),
        &(second.run_id, second.outcome),
    )
}

async fn answers_are_remembered_after_a_reopen(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let request = held.release_request();
    s.store().release(request.clone()).await.map_err(|e| Violation::refused("a release", &e))?;
    drop(held);
    let s = s.reopen().await?;
    let held = s.claim_one("w1").await?;
    let before = held.snapshot().await?;
    let again = s.store().release(request).await.map_err(|e| Violation::refused("a repeat", &e))?;
    equal("a repeat gets its first answer over a restart [8, 9]", &ReleaseOutcome::Released, &again)?;
    s.unchanged(&before, "and has no second effect [8]").await
}

async fn a_lease_outlives_a_reopen(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let lease = held.lease.clone();
    drop(held);
    let s = s.reopen().await?;
    s.nothing_claimable("a restart of the server takes no lease away [1]").await?;
    let beat = kagzi_core::Heartbeat { lease, lease_length: LEASE };
    let verdicts = s.store().heartbeat(vec![beat]).await.map_err(|e| Violation::refused("a batch", &e))?;
    for verdict in verdicts {
        verdict.map_err(|e| Violation::refused("the heartbeat of a worker that outlived the server", &e))?;
    }
    Ok(())
}

async fn an_expired_lease_is_found_after_a_reopen(s: Scenario) -> Verdict {
    s.start_many(20).await?;
    s.claim("w1", 20).await?;
    s.turn(LEASE);
    // Half of them are recovered when the store goes down.
    s.reap(10).await?;
    let s = s.reopen().await?;
    equal("recovery goes on where it was [14]", &10, &s.reap_all().await?.leases_expired)?;
    equal("and no run is stuck [10]", &20, &s.claim("w2", 100).await?.len())
}

async fn a_closed_store_loses_nothing(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.step("a", "1").await?;
    let before = held.snapshot().await?;
    drop(held);
    s.store().close().await.map_err(|e| Violation::refused("closing", &e))?;
    under(
        "what was acknowledged is there after the store was closed [9]",
        reopened(s, before).await.map(drop),
    )
}

async fn concurrent_writes_that_were_acknowledged_are_all_there(s: Scenario) -> Verdict {
    let acknowledged = crate::scenario::race(32, |number| {
        let s = s.clone();
        async move {
            let mut runs = Vec::new();
            for _ in 0..4 {
                let queue = s.on_queue(&format!("q{number}"))?;
                let held = {
                    queue.start_one().await?;
                    queue.claim_one("w1").await?
                };
                held.step("a", "1").await?;
                held.complete_run("1").await?;
                runs.push(held.run_id());
            }
            Ok(runs)
        }
    })
    .await?;
    let s = s.reopen().await?;
    for run_id in acknowledged.into_iter().flatten() {
        equal(
            "every acknowledged run is complete [9]",
            &RunState::Completed,
            &s.run(run_id).await?.run.state,
        )?;
        equal("with its step [9, 15]", &1, &s.attempts(run_id).await?.len())?;
    }
    Ok(())
}

async fn what_one_handle_wrote_the_other_reads(s: Scenario) -> Verdict {
    let second = s.second_handle().await?;
    let held = s.held().await?;
    held.begin("a").await?;
    for n in 0..10 {
        let (writer, reader) = if n % 2 == 0 { (&s, &second) } else { (&second, &s) };
        let run_id = writer.start_one().await?;
        let written = writer.snapshot(run_id).await?;
        reader.unchanged(&written, "an answer is true for every handle at once [9]").await?;
    }
    held.complete("a", 1, "1").await?;
    let written = held.snapshot().await?;
    second.unchanged(&written, "for steps too [9]").await
}

async fn eight_handles_opened_at_once_find_all_that_was_there_and_work(s: Scenario) -> Verdict {
    const HANDLES: usize = 8;
    let held = s.held().await?;
    held.step("a", "1").await?;
    held.begin("b").await?;
    let before = held.snapshot().await?;
    let key = IdempotencyKey::new("k").map_err(|e| Violation::refused("a key", &e))?;
    let keyed = StartRun { idempotency_key: Some(key), ..s.start_request() };
    let opened = crate::scenario::race(HANDLES, |number| {
        let (s, before, keyed) = (s.clone(), before.clone(), keyed.clone());
        async move {
            let handle = s.second_handle().await?;
            handle.unchanged(&before, "whoever opens a store finds all that was there [9]").await?;
            let operation = kagzi_core::OperationId::generate();
            let started = handle.start(StartRun { operation, ..keyed }).await?;
            let own = handle.on_queue(&format!("q{number}"))?;
            own.start_one().await?;
            let run = own.claim_one("w1").await?;
            run.step("a", "1").await?;
            run.complete_run("1").await?;
            Ok((handle, started.run_id, run.run_id()))
        }
    })
    .await?;
    let first = opened.first().map(|(_, keyed, _)| *keyed);
    for (handle, keyed, _) in &opened {
        equal("all of them mean one store: one key names one run [7]", &first, &Some(*keyed))?;
        for (_, _, finished) in &opened {
            let state = handle.run(*finished).await?.run.state;
            equal("and what one wrote every other reads [9]", &RunState::Completed, &state)?;
        }
    }
    s.unchanged(&before, "and nothing that was there has changed [9]").await?;
    held.complete("b", 1, "1").await?;
    drop(opened);
    held.complete_run("1").await
}

async fn a_closed_store_answers_unavailable(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    s.store().close().await.map_err(|e| Violation::refused("closing", &e))?;
    let rule = "a closed store says so";
    refused(&s.store().get_run(s.namespace(), run_id).await, "UNAVAILABLE", rule)?;
    refused(&s.store().start(vec![s.start_request()]).await, "UNAVAILABLE", rule)?;
    refused(&s.store().claim(s.claim_request("w1", 1)?).await, "UNAVAILABLE", rule)?;
    refused(&s.store().reap(10).await, "UNAVAILABLE", rule)
}

async fn no_call_to_a_closed_store_is_answered_as_if_it_were_open(s: Scenario) -> Verdict {
    const RULE: &str = "each call to a closed store is told that it is closed";
    fn told<T: std::fmt::Debug>(answer: &Result<T, StoreError>) -> Verdict {
        refused(answer, "UNAVAILABLE", RULE)
    }
    let held = s.held().await?;
    let (store, namespace, run_id) = (s.store(), s.namespace(), held.run_id());
    store.close().await.map_err(|e| Violation::refused("closing", &e))?;
    told(&store.now().await)?;
    told(&store.next_due().await)?;
    told(&store.queue_depths(namespace).await)?;
    told(&store.count_runs(namespace, &RunFilter::default()).await)?;
    let page = PageRequest::first(1);
    let list = ListRuns { namespace: namespace.clone(), filter: RunFilter::default(), page: page.clone() };
    told(&store.list_runs(&list).await)?;
    let scope = AttemptScope::All;
    told(&store.list_attempts(&ListAttempts { namespace: namespace.clone(), run_id, scope, page }).await)?;
    told(&store.cancel(s.cancel_request(run_id)).await)?;
    told(&store.requeue(s.requeue_request(run_id)).await)?;
    told(&store.begin_step(held.begin_request("a")?).await)?;
    told(&store.complete_step(held.complete_request("a", 1, "1")?).await)?;
    told(&store.fail_step(held.fail_request("a", 1, hiccup())?).await)?;
    told(&store.sleep(held.sleep_request("nap", SleepUntil::After(LEASE))?).await)?;
    told(&store.complete_run(held.complete_run_request("1")).await)?;
    told(&store.fail_run(held.fail_run_request(hiccup())).await)?;
    told(&store.release(held.release_request()).await)?;
    told(&store.heartbeat(vec![held.heartbeat_request()]).await)
}
