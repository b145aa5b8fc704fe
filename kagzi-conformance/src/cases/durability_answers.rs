//! Durability of what makes repeats harmless: answers and keys, however late somebody asks.

use std::time::Duration;

use kagzi_core::{
    FailureOutcome, ReleaseOutcome, RequeueOutcome, RunState, SleepOutcome, SleepUntil, StartOutcome,
};

use super::start::{again, keyed};
use crate::case::cases;
use crate::scenario::{Held, Scenario, equal, fatal, hiccup};
use crate::violation::{Verdict, Violation};

cases! {
    "durability";
    [8, 9] an_answer_is_remembered_however_long_ago_it_was_given;
    [8, 9] an_answer_is_remembered_whatever_came_after_it;
    [8, 9] the_answers_of_a_run_are_remembered_when_it_has_completed;
    [7, 9] a_key_names_its_run_however_long_ago_that_finished;
}

/// Longer than anybody would keep what is not to be kept.
const LONG: Duration = Duration::from_hours(24 * 400);

fn refused(what: &'static str) -> impl Fn(kagzi_core::StoreError) -> Violation {
    move |error| Violation::refused(what, &error)
}

/// Sends a release of long ago again, while another holds the run.
async fn still_answered(s: &Scenario, first: &Held, release: kagzi_core::ReleaseRun, rule: &str) -> Verdict {
    let holder = s.claim_one("w2").await?;
    let before = holder.snapshot().await?;
    let again = first.store().release(release).await.map_err(refused("a release sent again"))?;
    equal(rule, &ReleaseOutcome::Released, &again)?;
    s.unchanged(&before, "and has no second effect [8]").await
}

async fn an_answer_is_remembered_however_long_ago_it_was_given(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let release = held.release_request();
    held.store().release(release.clone()).await.map_err(refused("a release"))?;
    s.turn(LONG);
    // Who tidies up may do so when the next answer is written.
    s.claim_one("w2").await?.release().await?;
    let rule = "a repeat gets its first answer, however much time went by [8]";
    still_answered(&s, &held, release, rule).await
}

async fn an_answer_is_remembered_whatever_came_after_it(s: Scenario) -> Verdict {
    /// More than a store that keeps the last few would keep.
    const OTHERS: usize = 50;
    let held = s.held().await?;
    let release = held.release_request();
    held.store().release(release.clone()).await.map_err(refused("a release"))?;
    for _ in 0..OTHERS {
        s.turn(Duration::from_millis(1));
        s.claim_one("w2").await?.release().await?;
    }
    let rule = "a repeat gets its first answer, however many others were given since [8]";
    still_answered(&s, &held, release, rule).await
}

async fn the_answers_of_a_run_are_remembered_when_it_has_completed(s: Scenario) -> Verdict {
    let run_id = s.start_one().await?;
    let held = s.claim_one("w1").await?;
    let release = held.release_request();
    held.store().release(release.clone()).await.map_err(refused("a release"))?;
    let held = s.claim_one("w1").await?;
    held.begin("a").await?;
    let fail_step = held.fail_request("a", 1, hiccup())?;
    let retried = held.store().fail_step(fail_step.clone()).await.map_err(refused("a failure"))?;
    s.turn(Duration::from_mins(1));
    let fail_run = s.claim_one("w1").await?.fail_run_request(fatal());
    let dead = s.store().fail_run(fail_run.clone()).await.map_err(refused("a failure"))?;
    let requeue = s.requeue_request(run_id);
    s.store().requeue(requeue.clone()).await.map_err(refused("a requeue"))?;
    let sleep = s.claim_one("w1").await?.sleep_request("nap", SleepUntil::After(Duration::from_secs(1)))?;
    let slept = s.store().sleep(sleep.clone()).await.map_err(refused("a sleep"))?;
    s.turn(Duration::from_secs(1));
    s.claim_one("w1").await?.complete_run("1").await?;
    let before = s.snapshot(run_id).await?;
    equal("the run has ended", &RunState::Completed, &before.record.run.state)?;

    let first: (_, FailureOutcome, FailureOutcome, RequeueOutcome, SleepOutcome) =
        (ReleaseOutcome::Released, retried, dead, RequeueOutcome::Requeued, slept);
    let again = (
        s.store().release(release).await.map_err(refused("a release sent again"))?,
        s.store().fail_step(fail_step).await.map_err(refused("a failure of a step sent again"))?,
        s.store().fail_run(fail_run).await.map_err(refused("a failure of a run sent again"))?,
        s.store().requeue(requeue).await.map_err(refused("a requeue sent again"))?,
        s.store().sleep(sleep).await.map_err(refused("a sleep sent again"))?,
    );
    equal("whatever a run answered, it answers when it has completed too [8]", &first, &again)?;
    s.unchanged(&before, "and stays as it ended [6]").await
}

async fn a_key_names_its_run_however_long_ago_that_finished(s: Scenario) -> Verdict {
    let request = keyed(&s, "k")?;
    let first = s.start(request.clone()).await?;
    s.claim_one("w1").await?.complete_run("1").await?;
    let before = s.snapshot(first.run_id).await?;
    s.turn(LONG);
    s.start(keyed(&s, "another")?).await?;
    let late = s.start(again(&request)).await?;
    equal(
        "a key names its run however long ago that finished [7]",
        &(first.run_id, StartOutcome::Existing),
        &(late.run_id, late.outcome),
    )?;
    equal("as does the operation of its start [8]", &first, &s.start(request).await?)?;
    s.unchanged(&before, "and the run stays as it ended [6]").await
}
