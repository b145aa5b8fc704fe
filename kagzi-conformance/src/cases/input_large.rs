//! Input as large as the rules of production allow: what is cut or refused there is whole under the suite's own.

use kagzi_core::{BeginOutcome, CompleteRun, CompleteStep, Failure, Payload, Rules, StartRun};

use crate::case::cases;
use crate::scenario::{Scenario, check, equal, fatal, hiccup};
use crate::violation::{Verdict, Violation};

cases! {
    "input";
    [4, 12] payloads_as_large_as_production_allows_come_back_whole;
    [12] failures_as_large_as_production_allows_come_back_whole;
}

/// Plays on a fresh store under the default rules.
async fn under_default_rules<F>(s: &Scenario, play: impl FnOnce(Scenario, Rules) -> F) -> Verdict
where
    F: Future<Output = Verdict>,
{
    let rules = Rules::default();
    s.under_rules(rules.clone(), |large| play(large, rules)).await
}

/// Bytes of every value that do not repeat.
fn large(length: usize, salt: u64) -> Payload {
    let mut bytes = Vec::with_capacity(length + 8);
    let mut word = salt;
    while bytes.len() < length {
        // An odd number, so that all words are different.
        word = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(length);
    Payload::raw(bytes)
}

/// Tells lengths and no bytes where they differ.
fn whole(rule: &str, given: &Payload, seen: Option<&Payload>) -> Verdict {
    check(seen == Some(given), rule, given, seen)
}

async fn payloads_as_large_as_production_allows_come_back_whole(s: Scenario) -> Verdict {
    under_default_rules(&s, payloads_come_back).await
}

async fn payloads_come_back(s: Scenario, rules: Rules) -> Verdict {
    let [input, step_output, run_output] = [1, 2, 3].map(|salt| large(rules.max_payload_bytes, salt));
    let run_id = s.start(StartRun { input: input.clone(), ..s.start_request() }).await?.run_id;
    whole("an input of 2 MiB comes back to the byte [12]", &input, Some(&s.run(run_id).await?.input))?;
    let held = s.claim_one("w1").await?;
    whole("and is handed over to the byte [12]", &input, Some(&held.claimed.input))?;
    held.begin("a").await?;
    let complete = CompleteStep { output: step_output.clone(), ..held.complete_request("a", 1, "")? };
    let done = held.store().complete_step(complete).await;
    done.map_err(|e| Violation::refused("completing a step with an output at the limit", &e))?;
    let memoized = match held.begin_any("a").await? {
        BeginOutcome::Memoized { output, .. } => Some(output),
        _ => None,
    };
    whole("an output of 2 MiB is memoized to the byte [4]", &step_output, memoized.as_ref())?;
    let recorded = s.attempts(run_id).await?.pop().and_then(|attempt| attempt.output);
    whole("and recorded to the byte [12]", &step_output, recorded.as_ref())?;
    let complete = CompleteRun { output: run_output.clone(), ..held.complete_run_request("") };
    let done = held.store().complete_run(complete).await;
    done.map_err(|e| Violation::refused("completing a run with an output at the limit", &e))?;
    let recorded = s.run(run_id).await?.output;
    whole("so is the output of a run [12]", &run_output, recorded.as_ref())
}

/// The same failure with a message and details at the limit.
fn at_the_limit(failure: Failure, rules: &Rules, salt: u64) -> Failure {
    let message = "🦀".repeat(rules.max_message_bytes / "🦀".len());
    Failure { message, details: Some(large(rules.max_payload_bytes, salt)), ..failure }
}

/// Tells lengths and no bytes where they differ.
fn whole_failure(rule: &str, given: &Failure, seen: Option<&Failure>) -> Verdict {
    let told = |failure: &Failure| (failure.kind, failure.message.len(), failure.details.clone());
    check(seen == Some(given), rule, told(given), seen.map(told))
}

async fn failures_as_large_as_production_allows_come_back_whole(s: Scenario) -> Verdict {
    under_default_rules(&s, failures_come_back).await
}

async fn failures_come_back(s: Scenario, rules: Rules) -> Verdict {
    let held = s.held().await?;
    let run_id = held.run_id();
    held.begin("a").await?;
    let of_step = at_the_limit(hiccup(), &rules, 4);
    held.fail("a", 1, of_step.clone()).await?;
    let recorded = s.attempts(run_id).await?.pop().and_then(|attempt| attempt.failure);
    whole_failure("a message of 64 KiB and details of 2 MiB are kept [12]", &of_step, recorded.as_ref())?;
    s.turn(rules.default_retry.max_delay);
    let held = s.claim_one("w1").await?;
    equal("a step with a large failure is tried again [5]", &2, &held.begin("a").await?)?;
    let of_run = at_the_limit(fatal(), &rules, 5);
    held.fail_run(of_run.clone()).await?;
    whole_failure("those of a run too [12]", &of_run, s.run(run_id).await?.run.failure.as_ref())
}
