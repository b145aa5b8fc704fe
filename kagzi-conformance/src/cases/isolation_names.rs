//! Names that are nearly the same are different names, side by side in one namespace.

use kagzi_core::{Claim, ListRuns, PageRequest, RunFilter, RunId, StartRun};

use super::start::{again, keyed};
use crate::case::cases;
use crate::scenario::{Scenario, equal, queue, workflow_type};
use crate::violation::{Verdict, Violation};

cases! {
    "isolation";
    [12] types_that_are_nearly_the_same_are_claimed_apart;
    [12] types_that_are_nearly_the_same_are_listed_apart;
    [12] queues_that_are_nearly_the_same_are_claimed_apart;
    [7, 12] keys_that_are_nearly_the_same_name_runs_of_their_own;
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
