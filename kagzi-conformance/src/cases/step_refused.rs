//! Steps: what is refused, and leaves every row as it was.

use std::time::Duration;

use kagzi_core::{AttemptState, StoreError};

use crate::case::cases;
use crate::proof;
use crate::scenario::{Held, LEASE, Scenario, Snapshot, equal, hiccup, lease_lost, refused};
use crate::violation::{Verdict, Violation};

cases! {
    "step";
    [15] a_complete_without_begin_is_refused;
    [15] a_complete_of_a_number_that_was_never_begun_is_refused;
    [5] a_complete_of_a_failed_attempt_is_refused;
    [5] a_complete_of_an_abandoned_attempt_is_refused;
    [4, 8] a_completed_step_is_neither_completed_again_nor_failed;
    [2, 8] a_begin_sent_again_under_a_lost_lease_is_refused;
    [15] a_task_is_never_a_sleep;
}

/// Asserts that completing and failing the attempt are refused because it is in `state`.
async fn not_running(
    held: &Held,
    step: &str,
    attempt: u32,
    state: Option<AttemptState>,
    rule: &str,
) -> Verdict {
    let before: Snapshot = held.snapshot().await?;
    let complete =
        held.store().complete_step(held.complete_request(step, attempt, "\"late\"")?).await.map(drop);
    let fail = held.store().fail_step(held.fail_request(step, attempt, hiccup())?).await.map(drop);
    for answer in [complete, fail] {
        match &answer {
            Err(StoreError::AttemptNotRunning { state: found, attempt: number, .. }) => {
                equal("the refusal says what the attempt is", &(state, attempt), &(*found, *number))?;
                proof::kept(rule);
            }
            other => refused(other, "ATTEMPT_NOT_RUNNING", rule)?,
        }
    }
    before.compare(&held.snapshot().await?, "a refused write leaves every row as it was [15]")
}

async fn a_complete_without_begin_is_refused(s: Scenario) -> Verdict {
    let held = s.held().await?;
    not_running(&held, "a", 1, None, "what was not begun can neither be completed nor fail").await
}

async fn a_complete_of_a_number_that_was_never_begun_is_refused(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.begin("a").await?;
    not_running(&held, "a", 0, None, "there is no attempt 0 [5]").await?;
    not_running(&held, "a", 2, None, "there is no attempt 2 yet [5]").await?;
    not_running(&held, "a", u32::MAX, None, "nor the last one there could be [5]").await
}

async fn a_complete_of_a_failed_attempt_is_refused(s: Scenario) -> Verdict {
    let first = s.held().await?;
    first.begin("a").await?;
    first.fail("a", 1, hiccup()).await?;
    s.turn(Duration::from_secs(10));
    let second = s.claim_one("w1").await?;
    second.begin("a").await?;
    not_running(&second, "a", 1, Some(AttemptState::Failed), "a failed attempt stays failed [5]").await
}

async fn a_complete_of_an_abandoned_attempt_is_refused(s: Scenario) -> Verdict {
    let first = s.held().await?;
    first.begin("a").await?;
    s.turn(LEASE);
    let second = s.claim_one("w2").await?;
    not_running(&second, "a", 1, Some(AttemptState::Abandoned), "an abandoned attempt stays abandoned [5]")
        .await?;
    second.begin("a").await?;
    not_running(&second, "a", 1, Some(AttemptState::Abandoned), "also beside its successor [5]").await
}

async fn a_completed_step_is_neither_completed_again_nor_failed(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.step("a", "1").await?;
    not_running(&held, "a", 1, Some(AttemptState::Completed), "what is completed stays completed [4]")
        .await?;
    held.step("b", "2").await
}

async fn a_begin_sent_again_under_a_lost_lease_is_refused(s: Scenario) -> Verdict {
    let first = s.held().await?;
    let request = first.begin_request("a")?;
    first.store().begin_step(request.clone()).await.map_err(|e| Violation::refused("a begin", &e))?;
    s.turn(LEASE);
    let second = s.claim_one("w2").await?;
    let before = second.snapshot().await?;
    let again = first.store().begin_step(request).await;
    lease_lost(&again, "a worker without lease is not told to execute, not even again [2]")?;
    s.unchanged(&before, "and nothing changes [2]").await
}

async fn a_task_is_never_a_sleep(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.step("task", "1").await?;
    let before = held.snapshot().await?;
    let until = kagzi_core::SleepUntil::After(Duration::from_secs(1));
    let answer = held.store().sleep(held.sleep_request("task", until)?).await;
    refused(&answer, "STEP_KIND_MISMATCH", "a step id stands for one thing only")?;
    s.unchanged(&before, "the refusal changes nothing [15]").await?;
    held.sleep("nap", Duration::ZERO).await?;
    let again = s.claim_one("w1").await?;
    let before = again.snapshot().await?;
    let answer = again.store().begin_step(again.begin_request("nap")?).await;
    refused(&answer, "STEP_KIND_MISMATCH", "a sleep is not executed")?;
    s.unchanged(&before, "the refusal changes nothing [15]").await
}
