//! The steps that a claim hands over, so that a replay costs no round trip per finished step.

use std::time::Duration;

use kagzi_core::{
    Attempt, AttemptScope, AttemptState, Claim, CompleteStep, Cursor, ListAttempts, Page, PageRequest,
    Payload, RunId, StartRun,
};

use crate::case::cases;
use crate::scenario::{Held, LEASE, Scenario, check, equal, hiccup, pausing, suite_rules};
use crate::violation::{Verdict, Violation};

cases! {
    "claim";
    [4] carries_the_memoized_steps_complete_and_in_order;
    [4, 5] carries_the_latest_attempt_of_each_step;
    [4] says_how_to_get_the_steps_beyond_the_limit;
    [4] exactly_as_many_steps_as_the_limit_leave_no_more;
    [4, 8] a_first_claim_sent_again_carries_the_steps_made_since;
    [4] says_how_to_get_the_steps_without_room;
    [8] a_claim_sent_again_charges_the_inputs_to_its_room;
    [4, 15] a_claim_that_pauses_tells_nothing_of_what_the_next_holder_did;
}

/// Completes steps `0..count`, begun in an order that neither place nor name gives.
async fn many_steps(held: &Held, count: u32) -> Verdict {
    for step in (0..count).map(|n| (n * 7) % count) {
        let mut request = held.begin_request(&format!("step-{:03}", count - step))?;
        request.step.position = step;
        let name = request.step.step_id.to_string();
        held.store().begin_step(request).await.map_err(|e| Violation::refused("a begin", &e))?;
        held.complete(&name, 1, &format!("\"{step}\"")).await?;
    }
    Ok(())
}

async fn carries_the_memoized_steps_complete_and_in_order(s: Scenario) -> Verdict {
    let held = s.held().await?;
    many_steps(&held, 40).await?;
    held.release().await?;
    let again = s.claim_one("w2").await?;
    let recorded = s.attempts_in(held.run_id(), AttemptScope::Latest).await?;
    equal("a claim carries every recorded step, as recorded [4]", &recorded, &again.claimed.steps)?;
    let positions: Vec<u32> = again.claimed.steps.iter().map(|step| step.position).collect();
    equal("in the order of their places", &(0..40).collect(), &positions)?;
    let outputs: Vec<Option<Payload>> = again.claimed.steps.iter().map(|step| step.output.clone()).collect();
    let expected = (0..40).map(|n| Some(Payload::json(format!("\"{n}\"")))).collect();
    equal("with their outputs [4]", &expected, &outputs)
}

async fn carries_the_latest_attempt_of_each_step(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.step("done", "1").await?;
    held.begin("flaky").await?;
    held.fail("flaky", 1, hiccup()).await?;
    s.turn(Duration::from_secs(10));
    let again = s.claim_one("w1").await?;
    let steps: Vec<_> =
        again.claimed.steps.iter().map(|a| (a.step_id.as_str(), a.attempt, a.state)).collect();
    let expected = vec![("done", 1, AttemptState::Completed), ("flaky", 1, AttemptState::Failed)];
    equal("a claim carries the latest attempt of each step [5]", &expected, &steps)?;
    equal("a failed attempt begins anew [5]", &2, &again.begin("flaky").await?)?;
    again.release().await?;
    let third = s.claim_one("w1").await?;
    let steps: Vec<_> =
        third.claimed.steps.iter().map(|a| (a.step_id.as_str(), a.attempt, a.state)).collect();
    let expected = vec![("done", 1, AttemptState::Completed), ("flaky", 2, AttemptState::Abandoned)];
    equal("and no older one [5]", &expected, &steps)
}

/// The steps that a claim handed over, and those that its cursor leads to.
async fn with_the_rest(
    s: &Scenario,
    run_id: RunId,
    mut steps: Vec<Attempt>,
    mut next: Option<Cursor>,
) -> Result<Vec<Attempt>, Violation> {
    while let Some(cursor) = next {
        let page = PageRequest { limit: 3, cursor: Some(cursor) };
        let request =
            ListAttempts { namespace: s.namespace().clone(), run_id, scope: AttemptScope::Latest, page };
        let read = s.store().list_attempts(&request).await;
        let Page { items, next: more } = read.map_err(|e| Violation::refused("the claim's cursor", &e))?;
        steps.extend(items);
        next = more;
    }
    Ok(steps)
}

async fn says_how_to_get_the_steps_beyond_the_limit(s: Scenario) -> Verdict {
    let held = s.held().await?;
    many_steps(&held, 10).await?;
    held.release().await?;
    let mut claimed = s.claim_as(Claim { steps_limit: 4, ..s.claim_request("w2", 1)? }).await?;
    let run = claimed.pop().ok_or_else(|| Violation::new("a released run is claimable [10]", "1", "0"))?;
    equal("a claim carries at most its limit of steps", &4, &run.steps.len())?;
    check(run.more_steps.is_some(), "it says how to get the others [4]", "a cursor", &run.more_steps)?;
    let steps = with_the_rest(&s, held.run_id(), run.steps, run.more_steps).await?;
    let recorded = s.attempts_in(held.run_id(), AttemptScope::Latest).await?;
    equal("together they are all the steps, without gap or repeat [4]", &recorded, &steps)
}

async fn exactly_as_many_steps_as_the_limit_leave_no_more(s: Scenario) -> Verdict {
    let held = s.held().await?;
    many_steps(&held, 4).await?;
    held.release().await?;
    let claimed = s.claim_as(Claim { steps_limit: 4, ..s.claim_request("w2", 1)? }).await?;
    let found: Vec<_> = claimed.iter().map(|run| (run.steps.len(), run.more_steps.clone())).collect();
    equal("all steps fit, so there is no cursor", &vec![(4, None)], &found)
}

async fn a_first_claim_sent_again_carries_the_steps_made_since(s: Scenario) -> Verdict {
    s.start_one().await?;
    let claim = s.claim_request("w1", 1)?;
    let first = s.claim_as(claim.clone()).await?;
    let Some(claimed) = first.first().cloned() else {
        return Err(Violation::new("a due run is claimable [10]", "1 claimed run", "none"));
    };
    equal("a run that was never claimed has no steps", &0, &claimed.steps.len())?;
    let held = Held::new(s.clone(), claimed);
    held.step("a", "1").await?;
    held.begin("b").await?;
    let again = s.claim_as(claim).await?;
    let recorded = s.attempts_in(held.run_id(), AttemptScope::Latest).await?;
    let steps = again.first().map(|claimed| claimed.steps.clone()).unwrap_or_default();
    equal("sent again, the claim carries every recorded step [4, 8]", &recorded, &steps)
}

async fn says_how_to_get_the_steps_without_room(s: Scenario) -> Verdict {
    let rules = suite_rules();
    let output = format!("\"{}\"", "x".repeat(rules.max_payload_bytes - 2));
    let first = s.held().await?;
    for n in 0..=rules.max_claim_bytes / output.len() {
        first.step(&format!("step-{n:03}"), &output).await?;
    }
    let second = s.held().await?;
    second.step("small", "1").await?;
    second.step("large", &output).await?;
    first.release().await?;
    second.release().await?;
    let claimed = s.claim("w2", 2).await?;
    equal("a long history keeps no run from being taken [10]", &2, &claimed.len())?;
    let outputs = claimed.iter().flat_map(|run| &run.steps).filter_map(|step| step.output.as_ref());
    let bytes: usize = outputs.map(Payload::len_bytes).sum();
    check(
        (rules.max_claim_bytes / 2..=rules.max_claim_bytes).contains(&bytes),
        "a claim hands over as many recorded steps as it has room for",
        format!("at most {} bytes, and not much less", rules.max_claim_bytes),
        bytes,
    )?;
    for run in claimed {
        let all = with_the_rest(&s, run.run.run_id, run.steps, run.more_steps).await?;
        let recorded = s.attempts_in(run.run.run_id, AttemptScope::Latest).await?;
        equal(
            "with what the cursor leads to, those with room are all, without gap or repeat [4]",
            &recorded,
            &all,
        )?;
    }
    Ok(())
}

async fn a_claim_sent_again_charges_the_inputs_to_its_room(s: Scenario) -> Verdict {
    let rules = suite_rules();
    let large = Payload::json(format!("\"{}\"", "x".repeat(rules.max_payload_bytes - 2)));
    // Inputs take three quarters of the room, and steps would fill another three.
    let count = rules.max_claim_bytes / large.len_bytes() * 3 / 4;
    let start = || StartRun { input: large.clone(), ..s.start_request() };
    s.start_all((0..count).map(|_| start()).collect()).await?;
    let claim = s.claim_request("w1", u32::try_from(count).unwrap_or(u32::MAX))?;
    let first = s.claim_as(claim.clone()).await?;
    equal("the inputs have room [12]", &count, &first.len())?;
    for claimed in first {
        let held = Held::new(s.clone(), claimed);
        held.begin("a").await?;
        let complete = CompleteStep { output: large.clone(), ..held.complete_request("a", 1, "1")? };
        held.store().complete_step(complete).await.map_err(|e| Violation::refused("a completion", &e))?;
    }
    let again = s.claim_as(claim).await?;
    equal("sent again, the claim hands over every run [8]", &count, &again.len())?;
    let inputs: usize = again.iter().map(|run| run.input.len_bytes()).sum();
    equal("with their inputs [8]", &(count * large.len_bytes()), &inputs)?;
    let outputs = again.iter().flat_map(|run| &run.steps).filter_map(|step| step.output.as_ref());
    let bytes = inputs + outputs.map(Payload::len_bytes).sum::<usize>();
    check(
        bytes > inputs && bytes <= rules.max_claim_bytes,
        "steps get the room that the inputs of a repeated claim leave, as at first [8]",
        format!("more than the inputs' {inputs} bytes, and at most {}", rules.max_claim_bytes),
        bytes,
    )?;
    for run in again {
        let all = with_the_rest(&s, run.run.run_id, run.steps, run.more_steps).await?;
        equal("a cursor leads to the steps without room [4]", &1, &all.len())?;
    }
    Ok(())
}

/// At how many places a claim is made to pause: beyond the last one it has ended.
const PAUSES: usize = 16;

/// Takes the run, whether the claim that pauses holds it by now or not, and brings it to its end.
async fn take_over(s: Scenario) -> Verdict {
    loop {
        // A claim under way may have the run in its hands still, and its lease begins only when it has ended.
        s.turn(LEASE);
        if let Some(claimed) = s.claim("next", 1).await?.pop() {
            let next = Held::new(s.clone(), claimed);
            next.step("second", "2").await?;
            return next.complete_run("3").await;
        }
        tokio::task::yield_now().await;
    }
}

async fn a_claim_that_pauses_tells_nothing_of_what_the_next_holder_did(s: Scenario) -> Verdict {
    for times in 1..=PAUSES {
        let held = s.held().await?;
        held.step("first", "1").await?;
        held.release().await?;
        let claim = s.claim("slow", 1);
        for claimed in pausing(times, claim, take_over(s.clone())).await? {
            let token = claimed.lease.lease.fencing_token;
            let tokens: Vec<_> = claimed.steps.iter().map(|step| step.fencing_token).collect();
            check(
                tokens.iter().all(|of_step| *of_step <= token),
                "a claim tells of no step that was begun under a later lease [4, 15]",
                format!("tokens up to {token:?}"),
                tokens,
            )?;
        }
    }
    Ok(())
}
