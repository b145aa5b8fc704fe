//! Names that are nearly the same are different names, side by side in one namespace.

use std::collections::BTreeMap;

use kagzi_core::{
    CancelOutcome, CancelRun, Claim, Labels, Lease, ListRuns, OperationId, PageRequest, QueueChange,
    RunFilter, RunId, SetQueueState, StartRun,
};
use uuid::Uuid;

use super::start::{again, keyed};
use crate::case::cases;
use crate::scenario::{Scenario, equal, lease_lost, queue, worker, workflow_type};
use crate::violation::{Verdict, Violation};

cases! {
    "isolation";
    [12] types_that_are_nearly_the_same_are_claimed_apart;
    [12] types_that_are_nearly_the_same_are_listed_apart;
    [12] queues_that_are_nearly_the_same_are_claimed_apart;
    [7, 12] keys_that_are_nearly_the_same_name_runs_of_their_own;
    [12] queues_that_are_nearly_the_same_are_paused_apart;
    [12] labels_that_are_nearly_the_same_are_found_apart;
    [2, 12] workers_whose_names_are_nearly_the_same_hold_leases_of_their_own;
    [1, 8] operations_that_are_nearly_the_same_are_different_ones;
}

/// What a comparison without case, a pattern, a trimmed or cut text, or Unicode's normal form would take for one.
fn nearly_the_same(longest: usize) -> Vec<String> {
    let long = "x".repeat(longest - 1);
    let mut names: Vec<String> = [
        "order", "Order", "ORDER", "orde_", "or%", "orders", "a b", "a  b", "\u{e9}", "e\u{301}", "\u{df}",
        "ss",
    ]
    .map(str::to_owned)
    .to_vec();
    names.extend([format!("{long}1"), format!("{long}2"), long]);
    names
}

fn id(taken: &[kagzi_core::ClaimedRun]) -> Vec<RunId> {
    taken.iter().map(|run| run.run.run_id).collect()
}

async fn types_that_are_nearly_the_same_are_claimed_apart(s: Scenario) -> Verdict {
    let mut runs = Vec::new();
    for name in nearly_the_same(128) {
        let kind = workflow_type(&name)?;
        let run_id = s.start(StartRun { workflow_type: kind.clone(), ..s.start_request() }).await?.run_id;
        runs.push((kind, run_id));
    }
    // Both ends: a name that takes others as well leaves nothing for them.
    for (kind, run_id) in runs.iter().rev() {
        let claim = Claim { workflow_types: vec![kind.clone()], ..s.claim_request("w1", 100)? };
        let taken = id(&s.claim_as(claim).await?);
        equal(
            "a claim of a type takes its runs, and none of a type that is nearly the same [12]",
            &(kind, vec![*run_id]),
            &(kind, taken),
        )?;
    }
    Ok(())
}

async fn types_that_are_nearly_the_same_are_listed_apart(s: Scenario) -> Verdict {
    let mut runs = Vec::new();
    for name in nearly_the_same(128) {
        let kind = workflow_type(&name)?;
        let run_id = s.start(StartRun { workflow_type: kind.clone(), ..s.start_request() }).await?.run_id;
        runs.push((kind, run_id));
    }
    for (kind, run_id) in runs {
        let filter = RunFilter { workflow_type: Some(kind.clone()), ..RunFilter::default() };
        let page = PageRequest { limit: 100, cursor: None };
        let list = ListRuns { namespace: s.namespace().clone(), filter: filter.clone(), page };
        let listed = s.store().list_runs(&list).await.map_err(|e| Violation::refused("a listing", &e))?;
        let ids: Vec<RunId> = listed.items.iter().map(|run| run.run_id).collect();
        equal(
            "a listing of a type has none of a type that is nearly the same [12]",
            &(&kind, vec![run_id]),
            &(&kind, ids),
        )?;
        let count = s.store().count_runs(s.namespace(), &filter).await;
        let count = count.map_err(|e| Violation::refused("a count", &e))?;
        equal("and a count of a type counts its runs alone [12]", &(&kind, 1), &(&kind, count))?;
    }
    Ok(())
}

async fn queues_that_are_nearly_the_same_are_claimed_apart(s: Scenario) -> Verdict {
    let mut runs = Vec::new();
    for name in nearly_the_same(128) {
        runs.push((queue(&name)?, s.on_queue(&name)?.start_one().await?));
    }
    for (queue, run_id) in runs.iter().rev() {
        let claim = Claim { queues: vec![queue.clone()], ..s.claim_request("w1", 100)? };
        let taken = id(&s.claim_as(claim).await?);
        equal(
            "a claim of a queue takes its runs, and none of a queue whose name is nearly the same [12]",
            &(queue, vec![*run_id]),
            &(queue, taken),
        )?;
    }
    Ok(())
}

async fn keys_that_are_nearly_the_same_name_runs_of_their_own(s: Scenario) -> Verdict {
    let mut started: Vec<(StartRun, RunId)> = Vec::new();
    for key in nearly_the_same(256) {
        let request = keyed(&s, &key)?;
        let run_id = s.start(request.clone()).await?.run_id;
        let before = started.iter().find(|(_, other)| *other == run_id).map(|(request, _)| request);
        let before = before.and_then(|request| request.idempotency_key.as_ref());
        let rule = "a key names no run of a key that is nearly the same [7, 12]";
        equal(rule, &(&key, None), &(&key, before))?;
        started.push((request, run_id));
    }
    for (request, run_id) in started {
        let found = s.start(again(&request)).await?.run_id;
        equal("each key finds its own run again, with others like it beside [7]", &run_id, &found)?;
    }
    Ok(())
}

async fn queues_that_are_nearly_the_same_are_paused_apart(s: Scenario) -> Verdict {
    let names = nearly_the_same(128);
    for name in &names {
        s.on_queue(name)?.start_one().await?;
    }
    for (place, name) in names.iter().enumerate() {
        let change = async |change| {
            let (namespace, queue) = (s.namespace().clone(), queue(name)?);
            let operation = OperationId::generate();
            let changed = s.store().set_queue_state(SetQueueState { namespace, queue, change, operation });
            changed.await.map(drop).map_err(|e| Violation::refused("changing a queue", &e))
        };
        change(QueueChange::Pause { reason: "to look at it".to_owned() }).await?;
        let depths = s.store().queue_depths(s.namespace()).await;
        let depths = depths.map_err(|e| Violation::refused("queue depths", &e))?;
        let paused: Vec<&str> =
            depths.iter().filter(|depth| depth.pause.is_some()).map(|depth| depth.queue.as_str()).collect();
        equal("a pause is of its queue alone, whatever others are called [12]", &vec![&**name], &paused)?;
        let neighbour = s.on_queue(&names[(place + 1) % names.len()])?;
        neighbour.start_one().await?;
        let held = neighbour.claim_one("w1").await?;
        held.complete_run("1").await?;
        change(QueueChange::Resume).await?;
    }
    Ok(())
}

async fn labels_that_are_nearly_the_same_are_found_apart(s: Scenario) -> Verdict {
    const KEYS: [&str; 4] = ["Tier", "tier_", "tier.", "tie"];
    let values = nearly_the_same(255).into_iter().map(|value| ("tier", value));
    let mut runs = Vec::new();
    for (key, value) in values.chain(KEYS.map(|key| (key, "same".to_owned()))) {
        let pair = BTreeMap::from([(key.to_owned(), value.clone())]);
        runs.push((key, value, labelled(&s, pair).await?));
    }
    for (key, value, (labels, run_id)) in runs {
        let filter = RunFilter { labels, ..RunFilter::default() };
        let page = PageRequest { limit: 100, cursor: None };
        let list = ListRuns { namespace: s.namespace().clone(), filter: filter.clone(), page };
        let listed = s.store().list_runs(&list).await.map_err(|e| Violation::refused("a listing", &e))?;
        let ids: Vec<RunId> = listed.items.iter().map(|run| run.run_id).collect();
        let label = (key, value);
        equal(
            "a label finds no run whose label is nearly the same [12]",
            &(&label, vec![run_id]),
            &(&label, ids),
        )?;
        let count = s.store().count_runs(s.namespace(), &filter).await;
        let count = count.map_err(|e| Violation::refused("a count", &e))?;
        equal("nor counts one [12]", &(&label, 1), &(&label, count))?;
    }
    Ok(())
}

async fn labelled(s: &Scenario, pair: BTreeMap<String, String>) -> Result<(Labels, RunId), Violation> {
    let labels = Labels::new(pair).map_err(|e| Violation::refused("making a label", &e))?;
    let started = s.start(StartRun { labels: labels.clone(), ..s.start_request() }).await?;
    Ok((labels, started.run_id))
}

async fn workers_whose_names_are_nearly_the_same_hold_leases_of_their_own(s: Scenario) -> Verdict {
    const RULE: &str = "a worker whose name is nearly the holder's holds nothing [2]";
    let names = nearly_the_same(128);
    for (place, name) in names.iter().enumerate() {
        s.start_one().await?;
        let held = s.claim_one(name).await?;
        held.begin("open").await?;
        let before = held.snapshot().await?;
        for other in [&names[(place + 1) % names.len()], &names[(place + 2) % names.len()]] {
            let mut stray = held.clone();
            stray.lease = Lease { worker_id: worker(other)?, ..held.lease.clone() };
            lease_lost(&stray.try_heartbeat(stray.heartbeat_request()).await?, RULE)?;
            lease_lost(&stray.store().begin_step(stray.begin_request("next")?).await, RULE)?;
            let complete = stray.complete_request("open", 1, "1")?;
            lease_lost(&stray.store().complete_step(complete).await, RULE)?;
            lease_lost(&stray.store().release(stray.release_request()).await, RULE)?;
        }
        s.unchanged(&before, "and changes nothing [2]").await?;
        held.complete_run("1").await?;
    }
    Ok(())
}

/// The id of an operation that differs in one byte alone.
fn but_for_one_byte(operation: OperationId, place: usize) -> OperationId {
    let mut bytes = *operation.as_uuid().as_bytes();
    bytes[place] ^= 1;
    OperationId::from_uuid(Uuid::from_bytes(bytes))
}

async fn operations_that_are_nearly_the_same_are_different_ones(s: Scenario) -> Verdict {
    // A byte of the time, one of what is drawn by lot, and the last.
    for place in [5, 9, 15] {
        let start = s.start_request();
        let twin = StartRun { operation: but_for_one_byte(start.operation, place), ..start.clone() };
        let started = s.start_all(vec![start, twin]).await?;
        let ids = [started[0].run_id, started[1].run_id];
        equal("starts by operations that are nearly the same are two [8]", &false, &(ids[0] == ids[1]))?;
        let claim = s.claim_request("w1", 1)?;
        let twin = Claim { operation: but_for_one_byte(claim.operation, place), ..claim.clone() };
        let (first, second) = (id(&s.claim_as(claim).await?), id(&s.claim_as(twin).await?));
        let mut taken = [first, second].concat();
        taken.sort_unstable();
        let mut both = ids.to_vec();
        both.sort_unstable();
        equal("claims by operations that are nearly the same take a run each [1, 8]", &both, &taken)?;
        let cancel = s.cancel_request(ids[0]);
        let twin = CancelRun { operation: but_for_one_byte(cancel.operation, place), ..cancel.clone() };
        let answers = [s.store().cancel(cancel).await, s.store().cancel(twin).await];
        let same = matches!(&answers, [Ok(CancelOutcome::Cancelled), Ok(CancelOutcome::Cancelled)]);
        equal("nor does the second of two cancellations get the answer of the first [8]", &false, &same)?;
        s.cancel(ids[1]).await?;
    }
    Ok(())
}
