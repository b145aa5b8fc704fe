//! Reading and keeping: histories in pages, queue depths, and the removal of finished runs.

use std::time::Duration;

use kagzi_core::{
    Attempt, AttemptScope, AttemptState, CancelRun, Cursor, DeleteFinished, IdempotencyKey, ListAttempts,
    OperationId, PageRequest, Payload, QueueDepth, RunId, RunState, StartAt, StartOutcome, StartRun,
};

use crate::case::cases;
use crate::scenario::{Held, LEASE, Scenario, equal, fatal, invalid, queue, refused, run_not_found, under};
use crate::violation::{Verdict, Violation};

cases! {
    "reading";
    [5] attempts_are_paged_without_gap_or_repeat;
    [5] the_latest_attempts_are_paged_without_gap_or_repeat;
    [11] a_cursor_of_another_run_is_refused;
    [12] a_cursor_of_another_scope_is_refused;
    [13] queue_depths_count_what_lives_by_queue_name;
    [13] the_oldest_due_run_is_the_pending_one_that_waits_longest;
    [9] a_removal_takes_runs_with_their_history;
    [14] a_removal_is_bounded_and_takes_the_longest_finished_first;
    [14] the_longest_finished_are_removed_first_whatever_their_ids;
    [9] a_removal_never_touches_a_live_run;
    [9] a_removal_takes_only_what_finished_before;
    [9] a_removal_takes_only_the_asked_states;
    [9] a_removal_of_one_state_takes_that_one_alone;
    [14] the_limit_of_a_removal_counts_what_it_removes;
    [5, 8] a_removed_run_leaves_no_answers_behind;
    [11] a_removal_without_namespace_takes_from_all;
    [7] the_key_of_a_removed_run_may_be_used_again;
    [12] a_removal_of_live_states_is_refused;
    [2] a_late_write_to_a_removed_run_is_not_found;
    [5, 15] a_removed_run_that_is_started_again_begins_without_history;
}

async fn pages(
    s: &Scenario,
    run_id: RunId,
    scope: AttemptScope,
    limit: u32,
) -> Result<Vec<Attempt>, Violation> {
    let mut request =
        ListAttempts { namespace: s.namespace().clone(), run_id, scope, page: PageRequest::first(limit) };
    let mut attempts = Vec::new();
    loop {
        let page = s.store().list_attempts(&request).await;
        let page = page.map_err(|e| Violation::refused("listing attempts", &e))?;
        attempts.extend(page.items);
        request.page.cursor = page.next;
        if request.page.cursor.is_none() {
            return Ok(attempts);
        }
    }
}

/// A run whose steps `a`, `b` and `c`, at the same place, have three attempts each, and `z` before them.
async fn with_history(s: &Scenario) -> Result<Held, Violation> {
    s.start_one().await?;
    for _ in 0..2 {
        let held = s.claim_one("w1").await?;
        for step in ["c", "a", "b"] {
            let mut begin = held.begin_request(step)?;
            begin.step.position = 1;
            s.store().begin_step(begin).await.map_err(|e| Violation::refused("a begin", &e))?;
        }
        held.release().await?;
    }
    let held = s.claim_one("w1").await?;
    for step in ["a", "b", "c", "z"] {
        held.begin(step).await?;
    }
    Ok(held)
}

async fn attempts_are_paged_without_gap_or_repeat(s: Scenario) -> Verdict {
    let held = with_history(&s).await?;
    let expected: Vec<(&str, u32)> = [("z", 1)]
        .into_iter()
        .chain(["a", "b", "c"].into_iter().flat_map(|step| (1..=3).map(move |n| (step, n))))
        .collect();
    for limit in [1, 2, 3, 9, 10, 11] {
        let attempts = pages(&s, held.run_id(), AttemptScope::All, limit).await?;
        let found: Vec<(&str, u32)> = attempts.iter().map(|a| (a.step_id.as_str(), a.attempt)).collect();
        equal("by place, then step, then number, in pages of any size [5]", &expected, &found)?;
    }
    Ok(())
}

async fn the_latest_attempts_are_paged_without_gap_or_repeat(s: Scenario) -> Verdict {
    let held = with_history(&s).await?;
    let running = AttemptState::Running;
    let expected = vec![("z", 1, running), ("a", 3, running), ("b", 3, running), ("c", 3, running)];
    for limit in [1, 2, 4, 5] {
        let attempts = pages(&s, held.run_id(), AttemptScope::Latest, limit).await?;
        let found: Vec<_> = attempts.iter().map(|a| (a.step_id.as_str(), a.attempt, a.state)).collect();
        equal("the latest of each step, in pages of any size [5]", &expected, &found)?;
    }
    Ok(())
}

async fn first_cursor(s: &Scenario, run_id: RunId) -> Result<Cursor, Violation> {
    let request = ListAttempts {
        namespace: s.namespace().clone(),
        run_id,
        scope: AttemptScope::All,
        page: PageRequest::first(1),
    };
    let page =
        s.store().list_attempts(&request).await.map_err(|e| Violation::refused("listing attempts", &e))?;
    page.next.ok_or_else(|| Violation::new("a full page says how to go on", "a cursor", "none"))
}

async fn refuses(s: &Scenario, run_id: RunId, scope: AttemptScope, cursor: Cursor) -> Verdict {
    let page = PageRequest { limit: 1, cursor: Some(cursor) };
    let request = ListAttempts { namespace: s.namespace().clone(), run_id, scope, page };
    refused(
        &s.store().list_attempts(&request).await,
        "BAD_CURSOR",
        "a cursor is good for its own listing only",
    )
}

async fn a_cursor_of_another_run_is_refused(s: Scenario) -> Verdict {
    let held = with_history(&s).await?;
    let other = s.held().await?;
    let cursor = first_cursor(&s, held.run_id()).await?;
    under("a cursor of another run is refused", refuses(&s, other.run_id(), AttemptScope::All, cursor).await)
}

async fn a_cursor_of_another_scope_is_refused(s: Scenario) -> Verdict {
    let held = with_history(&s).await?;
    let cursor = first_cursor(&s, held.run_id()).await?;
    under(
        "a cursor of another scope is refused",
        refuses(&s, held.run_id(), AttemptScope::Latest, cursor).await,
    )
}

async fn depths(s: &Scenario) -> Result<Vec<QueueDepth>, Violation> {
    s.store().queue_depths(s.namespace()).await.map_err(|e| Violation::refused("queue depths", &e))
}

async fn queue_depths_count_what_lives_by_queue_name(s: Scenario) -> Verdict {
    let due_at = s.now();
    for name in ["b", "B", "ä", "a"] {
        let s = s.on_queue(name)?;
        s.held().await?.complete_run("1").await?;
        s.held().await?.fail_run(fatal()).await?;
        s.cancel(s.start_one().await?).await?;
        s.held().await?;
        s.held().await?.sleep("nap", LEASE).await?;
        s.start_many(3).await?;
    }
    let expected = ["B", "a", "b", "ä"].into_iter().map(|name| {
        let queue = queue(name)?;
        let oldest_due_at = Some(due_at);
        Ok(QueueDepth { pending: 3, sleeping: 1, running: 1, oldest_due_at, ..QueueDepth::empty(queue) })
    });
    let expected = expected.collect::<Result<Vec<_>, Violation>>()?;
    equal("what lives is counted by queue, in the order of the names' bytes", &expected, &depths(&s).await?)
}

async fn the_oldest_due_run_is_the_pending_one_that_waits_longest(s: Scenario) -> Verdict {
    let delayed =
        |seconds| StartRun { start_at: StartAt::After(Duration::from_secs(seconds)), ..s.start_request() };
    s.start(delayed(1000)).await?;
    let found: Vec<_> = depths(&s).await?.iter().map(|d| (d.pending, d.sleeping, d.oldest_due_at)).collect();
    equal("a sleeper is not due", &vec![(0, 1, None)], &found)?;
    s.turn(Duration::from_secs(5));
    let oldest = s.now();
    s.start_one().await?;
    s.turn(Duration::from_secs(5));
    s.start_one().await?;
    let found: Vec<_> = depths(&s).await?.iter().map(|d| (d.pending, d.oldest_due_at)).collect();
    equal("the one that waits longest", &vec![(2, Some(oldest))], &found)
}

fn removal(s: &Scenario, limit: u32) -> DeleteFinished {
    DeleteFinished { namespace: Some(s.namespace().clone()), states: Vec::new(), before: s.now(), limit }
}

async fn remove(s: &Scenario, request: &DeleteFinished) -> Result<u64, Violation> {
    s.store().delete_finished(request).await.map_err(|e| Violation::refused("a removal", &e))
}

async fn gone(s: &Scenario, run_id: RunId) -> Verdict {
    run_not_found(&s.store().get_run(s.namespace(), run_id).await, "a removed run is gone")
}

/// A run that was completed, a microsecond ago.
async fn finished(s: &Scenario) -> Result<Held, Violation> {
    let held = s.held().await?;
    held.step("a", "1").await?;
    held.complete_run("1").await?;
    s.turn(Duration::from_micros(1));
    Ok(held)
}

async fn a_removal_takes_runs_with_their_history(s: Scenario) -> Verdict {
    let held = finished(&s).await?;
    equal("one run is removed", &1, &remove(&s, &removal(&s, 10)).await?)?;
    gone(&s, held.run_id()).await?;
    let request = ListAttempts {
        namespace: s.namespace().clone(),
        run_id: held.run_id(),
        scope: AttemptScope::All,
        page: PageRequest::first(10),
    };
    run_not_found(&s.store().list_attempts(&request).await, "with its history")?;
    equal("and only once", &0, &remove(&s, &removal(&s, 10)).await?)
}

async fn a_removal_is_bounded_and_takes_the_longest_finished_first(s: Scenario) -> Verdict {
    let mut order = Vec::new();
    for _ in 0..5 {
        order.push(finished(&s).await?.run_id());
    }
    equal("a removal takes at most its limit [14]", &2, &remove(&s, &removal(&s, 2)).await?)?;
    equal(
        "those that finished first are removed first [14]",
        &order[2..].to_vec(),
        &left(&s, &order).await?,
    )?;
    equal("and the next one the rest", &3, &remove(&s, &removal(&s, 10)).await?)
}

/// Those that are still there.
async fn left(s: &Scenario, all: &[RunId]) -> Result<Vec<RunId>, Violation> {
    let mut left = Vec::new();
    for run_id in all {
        match s.store().get_run(s.namespace(), *run_id).await {
            Ok(_) => left.push(*run_id),
            missing => run_not_found(&missing, "a run that is no longer there is not found")?,
        }
    }
    Ok(left)
}

async fn the_longest_finished_are_removed_first_whatever_their_ids(s: Scenario) -> Verdict {
    let mut order = s.start_many(6).await?;
    // The largest id finishes first.
    order.sort_unstable_by(|one, other| other.cmp(one));
    let claimed = s.claim("w1", 6).await?;
    for run_id in &order {
        let run = claimed.iter().find(|run| run.run.run_id == *run_id).cloned();
        let run = run.ok_or_else(|| Violation::new("a due run is claimable [10]", "a lease", "none"))?;
        Held::new(s.clone(), run).complete_run("1").await?;
        s.turn(Duration::from_millis(1));
    }
    for (limit, removed) in [(2, 2), (3, 5)] {
        equal("a removal fills its limit", &u64::from(limit), &remove(&s, &removal(&s, limit)).await?)?;
        equal(
            "the longest finished are removed first, whatever their ids [14]",
            &order[removed..].to_vec(),
            &left(&s, &order).await?,
        )?;
    }
    Ok(())
}

async fn a_removal_never_touches_a_live_run(s: Scenario) -> Verdict {
    let running = s.held().await?;
    running.step("a", "1").await?;
    let asleep = s.held().await?;
    asleep.sleep("nap", LEASE).await?;
    let pending = s.start_one().await?;
    let before = [running.snapshot().await?, asleep.snapshot().await?, s.snapshot(pending).await?];
    s.turn(Duration::from_hours(10_000));
    equal("nothing that lives is removed", &0, &remove(&s, &removal(&s, 10)).await?)?;
    for before in &before {
        s.unchanged(before, "and it stays as it is").await?;
    }
    Ok(())
}

async fn a_removal_takes_only_what_finished_before(s: Scenario) -> Verdict {
    let old = finished(&s).await?;
    let at_the_moment = s.held().await?;
    at_the_moment.complete_run("1").await?;
    equal("before means before", &1, &remove(&s, &removal(&s, 10)).await?)?;
    gone(&s, old.run_id()).await?;
    s.run(at_the_moment.run_id()).await.map(drop)
}

async fn a_removal_takes_only_the_asked_states(s: Scenario) -> Verdict {
    let completed = finished(&s).await?;
    let failed = s.held().await?;
    failed.fail_run(fatal()).await?;
    let cancelled = s.held().await?;
    s.cancel(cancelled.run_id()).await?;
    s.turn(Duration::from_secs(1));
    let states = vec![RunState::Completed, RunState::Cancelled];
    equal("the asked states go", &2, &remove(&s, &DeleteFinished { states, ..removal(&s, 10) }).await?)?;
    gone(&s, completed.run_id()).await?;
    gone(&s, cancelled.run_id()).await?;
    equal("dead letters stay", &RunState::Failed, &s.run(failed.run_id()).await?.run.state)
}

async fn a_removal_of_one_state_takes_that_one_alone(s: Scenario) -> Verdict {
    for state in [RunState::Completed, RunState::Failed, RunState::Cancelled] {
        finished(&s).await?;
        s.held().await?.fail_run(fatal()).await?;
        s.cancel(s.start_one().await?).await?;
        s.turn(Duration::from_secs(1));
        let only = DeleteFinished { states: vec![state], ..removal(&s, 10) };
        let removed = (remove(&s, &only).await?, remove(&s, &removal(&s, 10)).await?);
        equal(
            &format!("a removal of {state:?} runs takes none that ended otherwise [9]"),
            &(1, 2),
            &removed,
        )?;
    }
    Ok(())
}

async fn the_limit_of_a_removal_counts_what_it_removes(s: Scenario) -> Verdict {
    for _ in 0..3 {
        s.held().await?.fail_run(fatal()).await?;
        finished(&s.in_namespace("globex")?).await?;
        s.turn(Duration::from_secs(1));
    }
    let completed = finished(&s).await?;
    s.turn(Duration::from_secs(1));
    let one = DeleteFinished { states: vec![RunState::Completed], ..removal(&s, 1) };
    equal("what is not asked for does not stand in front of what is [14]", &1, &remove(&s, &one).await?)?;
    gone(&s, completed.run_id()).await
}

async fn a_removed_run_leaves_no_answers_behind(s: Scenario) -> Verdict {
    let request = s.start_request();
    let operation = OperationId::generate();
    for _ in 0..2 {
        let run_id = s.start(request.clone()).await?.run_id;
        let answer = s.store().cancel(CancelRun { operation, ..s.cancel_request(run_id) }).await;
        answer.map_err(|error| Violation::refused("cancelling a run", &error))?;
        let state = s.run(run_id).await?.run.state;
        equal("in each of its lives a run is cancelled anew [5, 8]", &RunState::Cancelled, &state)?;
        s.turn(Duration::from_micros(1));
        equal("one run is removed", &1, &remove(&s, &removal(&s, 10)).await?)?;
    }
    Ok(())
}

async fn a_removal_without_namespace_takes_from_all(s: Scenario) -> Verdict {
    finished(&s).await?;
    finished(&s.in_namespace("globex")?).await?;
    equal(
        "no namespace is every namespace [11]",
        &2,
        &remove(&s, &DeleteFinished { namespace: None, ..removal(&s, 10) }).await?,
    )
}

async fn the_key_of_a_removed_run_may_be_used_again(s: Scenario) -> Verdict {
    let key = IdempotencyKey::new("k").map_err(|e| Violation::refused("a key", &e))?;
    let keyed = || StartRun { idempotency_key: Some(key.clone()), ..s.start_request() };
    let first = s.start(keyed()).await?.run_id;
    s.claim_one("w1").await?.complete_run("1").await?;
    s.turn(Duration::from_secs(1));
    remove(&s, &removal(&s, 10)).await?;
    let second = s.start(keyed()).await?;
    equal(
        "a removed run holds no key [7]",
        &(StartOutcome::Created, false),
        &(second.outcome, second.run_id == first),
    )
}

async fn a_removal_of_live_states_is_refused(s: Scenario) -> Verdict {
    finished(&s).await?;
    for state in [RunState::Pending, RunState::Running, RunState::Sleeping] {
        let request = DeleteFinished { states: vec![RunState::Completed, state], ..removal(&s, 10) };
        invalid(&s.store().delete_finished(&request).await, "states", "only final states are removed")?;
    }
    for limit in [0, 10_001] {
        invalid(
            &s.store().delete_finished(&removal(&s, limit)).await,
            "limit",
            "a removal takes 1 to 10,000",
        )?;
    }
    equal("and a refusal removes nothing [15]", &1, &remove(&s, &removal(&s, 10)).await?)
}

async fn a_late_write_to_a_removed_run_is_not_found(s: Scenario) -> Verdict {
    let held = finished(&s).await?;
    remove(&s, &removal(&s, 10)).await?;
    let answer = held.store().begin_step(held.begin_request("b")?).await;
    run_not_found(&answer, "a removed run is gone for its workers too")?;
    let answer = held.try_heartbeat(held.heartbeat_request()).await?;
    run_not_found(&answer, "a removed run is gone for its workers too")
}

async fn a_removed_run_that_is_started_again_begins_without_history(s: Scenario) -> Verdict {
    let request = s.start_request();
    for life in ["the first", "the second"] {
        let started = s.start(request.clone()).await?;
        equal("what was removed can be started again", &StartOutcome::Created, &started.outcome)?;
        equal("with nothing left of it [5]", &0, &s.attempts(started.run_id).await?.len())?;
        equal("nor an output [5]", &None, &s.run(started.run_id).await?.output)?;
        let held = s.claim_one("w1").await?;
        equal("nor handed over [4]", &0, &held.claimed.steps.len())?;
        equal("so that its steps execute", &1, &held.begin("a").await?)?;
        held.complete("a", 1, life).await?;
        held.complete_run(life).await?;
        let output = s.run(started.run_id).await?.output;
        equal("and give what they gave now", &Some(Payload::json(life)), &output)?;
        s.turn(Duration::from_micros(1));
        equal("one run is removed", &1, &remove(&s, &removal(&s, 10)).await?)?;
    }
    Ok(())
}
