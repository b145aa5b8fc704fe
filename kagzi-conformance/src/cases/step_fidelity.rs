//! Fidelity: what goes in comes back to the byte, and limits are enforced before anything is written.

use std::time::Duration;

use kagzi_core::{
    BeginOutcome, CompleteStep, ContentType, Failure, FailureKind, Payload, RetryPolicy, StartRun,
};

use crate::case::cases;
use crate::scenario::{Scenario, equal, step_id, suite_rules, too_large, under};
use crate::violation::{Verdict, Violation};

cases! {
    "step";
    [12] step_ids_of_every_script_are_kept_apart;
    [12] steps_at_one_place_are_listed_by_the_bytes_of_their_ids;
    [12] outputs_come_back_to_the_byte;
    [12] content_types_come_back_as_they_were;
    [12] an_output_at_the_limit_is_kept;
    [12] an_output_one_byte_over_the_limit_is_refused;
    [12] an_input_one_byte_over_the_limit_is_refused;
    [12] a_run_output_one_byte_over_the_limit_is_refused;
    [12] failures_come_back_field_by_field;
    [12] a_failure_over_its_limits_is_refused;
    [12] a_step_policy_comes_back_as_it_was;
    [4] the_first_of_hundreds_of_steps_is_known_to_the_worker_that_did_them;
}

async fn the_first_of_hundreds_of_steps_is_known_to_the_worker_that_did_them(s: Scenario) -> Verdict {
    /// More than a backend is tempted to remember of a run that is held.
    const STEPS: u32 = 300;
    let held = s.held().await?;
    super::claim_amounts::many_steps(&held, 0, STEPS).await?;
    for number in [0, 1, STEPS / 2, STEPS - 1] {
        let known = BeginOutcome::Memoized { attempt: 1, output: Payload::json(number.to_string()) };
        let again = held.begin_any(&format!("step-{number:04}")).await?;
        equal("however many steps a worker did, each is known to it [4]", &known, &again)?;
    }
    Ok(())
}

async fn step_ids_of_every_script_are_kept_apart(s: Scenario) -> Verdict {
    // As long as may be, and one like it but for the last byte.
    let (long, other) = ("x".repeat(256), "x".repeat(255) + "y");
    let composed = "caf\u{e9}";
    let decomposed = "cafe\u{301}";
    let ids = [
        "a",
        "A",
        "a ' b",
        "\"quoted\"",
        "a/b/c",
        "a\\b",
        "%_?*",
        "$1",
        "; DROP TABLE runs; --",
        "a#2",
        "名前",
        "شماره",
        "🦀",
        composed,
        decomposed,
        "i",
        "İ",
        "ı",
        "ß",
        "ss",
        "a\u{200b}",
        "\u{feff}a",
        "null",
        "0",
        &long,
        &other,
    ];
    let held = s.held().await?;
    for (number, id) in ids.iter().enumerate() {
        equal("each is a step of its own [12]", &1, &held.begin(id).await?)?;
        held.complete(id, 1, &number.to_string()).await?;
    }
    for (number, id) in ids.iter().enumerate() {
        let expected = BeginOutcome::Memoized { attempt: 1, output: Payload::json(number.to_string()) };
        let again = (id, held.begin_any(id).await?);
        equal("each step has its own output, whatever script its id is in [4, 12]", &(id, expected), &again)?;
    }
    equal("no two became one [12]", &ids.len(), &s.attempts(held.run_id()).await?.len())
}

async fn steps_at_one_place_are_listed_by_the_bytes_of_their_ids(s: Scenario) -> Verdict {
    let mut ids = vec!["b", "B", "a", "_", "ä", "z", "Z", "a b", "ab", "a-b", "10", "9", "é", "🦀", "中"];
    let held = s.held().await?;
    for id in &ids {
        held.step(id, "1").await?;
    }
    ids.sort_unstable();
    let attempts = s.attempts(held.run_id()).await?;
    let listed: Vec<&str> = attempts.iter().map(|a| a.step_id.as_str()).collect();
    equal("the order is that of the bytes, whatever the database's language is", &ids, &listed)
}

fn payloads() -> Vec<Payload> {
    vec![
        Payload::empty(),
        Payload::raw(vec![0]),
        Payload::raw(vec![0, 0, 1, 0]),
        Payload::raw(vec![0xff, 0xfe, 0xC3, 0x28, 0x80]),
        Payload::raw((0..=255).collect::<Vec<u8>>()),
        Payload::json("{ \"b\" : 1.0, \"a\": 1e2,\n\"a\": null }"),
        Payload::json("not json"),
        Payload::raw("\\x00 \\000 E'\\\\'".as_bytes().to_vec()),
        Payload::raw("نص 🦀\u{0}\r\n\t ".as_bytes().to_vec()),
    ]
}

async fn outputs_come_back_to_the_byte(s: Scenario) -> Verdict {
    let held = s.held().await?;
    for (number, payload) in payloads().into_iter().enumerate() {
        let id = format!("step{number:02}");
        held.begin(&id).await?;
        let request = CompleteStep { output: payload, ..held.complete_request(&id, 1, "")? };
        held.store().complete_step(request).await.map_err(|e| Violation::refused("completing", &e))?;
    }
    held.release().await?;
    let again = s.claim_one("w2").await?;
    let attempts = s.attempts(held.run_id()).await?;
    for (number, payload) in payloads().into_iter().enumerate() {
        let expected = Some(payload.bytes.clone());
        let listed = attempts[number].output.as_ref().map(|output| output.bytes.clone());
        equal("a history lists the bytes that were given [12]", &expected, &listed)?;
        let carried = again.claimed.steps[number].output.as_ref().map(|output| output.bytes.clone());
        equal("a claim carries them [12]", &expected, &carried)?;
        match again.begin_any(&format!("step{number:02}")).await? {
            BeginOutcome::Memoized { output, .. } => {
                equal("a begin gives them [4, 12]", &payload.bytes, &output.bytes)?;
            }
            other => {
                return Err(Violation::new(
                    "a completed step is memoized [4]",
                    "Memoized",
                    format!("{other:?}"),
                ));
            }
        }
    }
    Ok(())
}

async fn content_types_come_back_as_they_were(s: Scenario) -> Verdict {
    let kind = |text: &str| ContentType::new(text).map_err(|e| Violation::refused("a content type", &e));
    let long = "t".repeat(128);
    let held = s.held().await?;
    for (number, text) in
        ["application/x-protobuf; messageType=\"a.B\"", "ü/🦀", "x", &long].iter().enumerate()
    {
        let id = format!("step{number}");
        held.begin(&id).await?;
        let output = Payload::new(kind(text)?, vec![1]);
        let request = CompleteStep { output: output.clone(), ..held.complete_request(&id, 1, "")? };
        held.store().complete_step(request).await.map_err(|e| Violation::refused("completing", &e))?;
        equal(
            "a content type is kept [12]",
            &BeginOutcome::Memoized { attempt: 1, output },
            &held.begin_any(&id).await?,
        )?;
    }
    Ok(())
}

async fn an_output_at_the_limit_is_kept(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.begin("a").await?;
    let output = Payload::raw(vec![0xA5; suite_rules().max_payload_bytes]);
    let request = CompleteStep { output: output.clone(), ..held.complete_request("a", 1, "")? };
    held.store()
        .complete_step(request)
        .await
        .map_err(|e| Violation::refused("an output at the limit", &e))?;
    equal("all of it [12]", &BeginOutcome::Memoized { attempt: 1, output }, &held.begin_any("a").await?)
}

fn over() -> Payload {
    Payload::raw(vec![0xA5; suite_rules().max_payload_bytes + 1])
}

async fn an_output_one_byte_over_the_limit_is_refused(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.begin("a").await?;
    let before = held.snapshot().await?;
    let request = CompleteStep { output: over(), ..held.complete_request("a", 1, "")? };
    too_large(&held.store().complete_step(request).await, "output", "the limit holds to the byte [12]")?;
    s.unchanged(&before, "a refused output leaves no trace [12]").await?;
    under("the output of a step is limited to the byte [12]", held.complete("a", 1, "1").await)
}

async fn an_input_one_byte_over_the_limit_is_refused(s: Scenario) -> Verdict {
    let request = StartRun { input: over(), ..s.start_request() };
    too_large(&s.store().start(vec![request]).await, "input", "the limit holds to the byte [12]")?;
    s.nothing_claimable("a refused run leaves no trace [12]").await?;
    let input = Payload::raw(vec![1; suite_rules().max_payload_bytes]);
    let run_id = s.start(StartRun { input: input.clone(), ..s.start_request() }).await?.run_id;
    equal("at the limit it is kept [12]", &input, &s.run(run_id).await?.input)
}

async fn a_run_output_one_byte_over_the_limit_is_refused(s: Scenario) -> Verdict {
    let held = s.held().await?;
    let before = held.snapshot().await?;
    let request = kagzi_core::CompleteRun { output: over(), ..held.complete_run_request("") };
    too_large(&held.store().complete_run(request).await, "run_output", "the limit holds to the byte [12]")?;
    under(
        "the output of a run is limited to the byte [12]",
        s.unchanged(&before, "a refused output leaves no trace [12]").await,
    )
}

/// Fails a step of a fresh run and gives what the history keeps.
async fn recorded(s: &Scenario, failure: &Failure) -> Result<Option<Failure>, Violation> {
    let held = s.held().await?;
    held.begin("a").await?;
    held.fail("a", 1, failure.clone()).await?;
    Ok(s.attempts(held.run_id()).await?.pop().and_then(|attempt| attempt.failure))
}

async fn failures_come_back_field_by_field(s: Scenario) -> Verdict {
    for kind in FailureKind::ALL {
        let failure = Failure {
            kind,
            code: "código 'x'".to_owned(),
            message: "line one\nline two\t\u{0}نص \"🦀\"".replace('\u{0}', "\u{1}"),
            details: Some(Payload::raw(vec![0, 255, 7])),
        };
        equal("a failure keeps every field [12]", &Some(failure.clone()), &recorded(&s, &failure).await?)?;
    }
    let bare = Failure::retryable("", "");
    equal("empty fields stay empty [12]", &Some(bare.clone()), &recorded(&s, &bare).await?)?;
    let held = s.held().await?;
    let failure = Failure { details: Some(Payload::json("[1]")), ..Failure::non_retryable("c", "m") };
    held.fail_run(failure.clone()).await?;
    equal("a run's failure too [12]", &Some(failure), &s.run(held.run_id()).await?.run.failure)
}

async fn a_failure_over_its_limits_is_refused(s: Scenario) -> Verdict {
    let held = s.held().await?;
    held.begin("a").await?;
    let before = held.snapshot().await?;
    let rules = suite_rules();
    let base = Failure::retryable("c", "m");
    let broken = [
        ("failure.code", Failure { code: "c".repeat(129), ..base.clone() }),
        ("failure.message", Failure { message: "m".repeat(rules.max_message_bytes + 1), ..base.clone() }),
        ("failure.details", Failure { details: Some(over()), ..base }),
    ];
    for (field, failure) in broken {
        let answer = held.store().fail_step(held.fail_request("a", 1, failure.clone())?).await;
        too_large(&answer, field, "the limit holds to the byte [12]")?;
        let answer = held.store().fail_run(held.fail_run_request(failure)).await;
        too_large(&answer, field, "for runs as for steps [12]")?;
    }
    s.unchanged(&before, "a refused failure leaves no trace [12]").await
}

async fn a_step_policy_comes_back_as_it_was(s: Scenario) -> Verdict {
    let policy = RetryPolicy {
        max_attempts: 7,
        first_delay: Duration::from_micros(1),
        factor: 1.000_000_1,
        max_delay: Duration::from_micros(86_400_000_001),
        jitter: 0.1 + 0.2,
        non_retryable_codes: vec![String::new(), "a,b".to_owned()],
    };
    let held = s.held().await?;
    let mut request = held.begin_request("a")?;
    request.step.step_id = step_id("a")?;
    request.step.retry = Some(policy.clone());
    held.store().begin_step(request).await.map_err(|e| Violation::refused("a begin", &e))?;
    equal("a policy is kept to the last bit [12]", &Some(policy), &s.attempts(held.run_id()).await?[0].retry)
}
