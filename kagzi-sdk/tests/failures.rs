//! What becomes of steps and workflows that fail.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

mod common;

use std::time::Duration;

use common::{Tally, with, work, work_counted, world, world_with};
use kagzi_core::Rules;
use kagzi_sdk::{
    ClientError, Context, DeadLetterReason, FailureKind, RetryPolicy, RunHandle, RunState, Start, Step,
    StepError, WorkflowError, WorkflowFailed,
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

async fn failed(run: &RunHandle) -> WorkflowFailed {
    match run.result::<serde_json::Value>().await.unwrap_err() {
        ClientError::WorkflowFailed(failed) => *failed,
        other => panic!("{other}"),
    }
}

fn policy(max_attempts: u32, delay: Duration) -> RetryPolicy {
    RetryPolicy { max_attempts, first_delay: delay, factor: 1.0, jitter: 0.0, ..RetryPolicy::default() }
}

#[tokio::test(start_paused = true)]
async fn a_step_that_fails_is_tried_again_by_its_own_policy() {
    let world = world();
    let before = Tally::default();
    let tries = Tally::default();
    let workflow =
        with((before.clone(), tries.clone()), |ctx: Context, (): (), (before, tries)| async move {
            ctx.step("before", || async { Ok(before.one()) }).await?;
            let step = Step::named("flaky").retry(policy(3, Duration::from_mins(1)));
            ctx.step(step, || async {
                match tries.one() {
                    3 => Ok("done".to_owned()),
                    n => Err(std::io::Error::other(format!("try {n}")).into()),
                }
            })
            .await
        });
    let _worker = work(world.worker().register("w", workflow));
    let began = Instant::now();
    let run = world.start("w").await;
    assert_eq!(run.result::<String>().await.unwrap(), "done");
    assert!(began.elapsed() >= Duration::from_mins(2), "two retries, a minute each");
    assert_eq!((before.count(), tries.count()), (1, 3));
    let attempts = run.attempts().await.unwrap();
    let failure = attempts[1].failure.as_ref().unwrap();
    assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::Retryable, "error"));
    assert_eq!(failure.message, "try 1");
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Decline {
    limit: u32,
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_tells_its_failure_field_by_field() {
    let world = world();
    let _worker = work(world.worker().register("w", |ctx: Context, (): ()| async move {
        ctx.step("charge", || async {
            let declined = StepError::non_retryable("card_declined", "the card was declined");
            Err::<(), _>(declined.with_details(&Decline { limit: 100 })?)
        })
        .await
    }));
    let run = world.start("w").await;
    let failed = failed(&run).await;
    assert_eq!(failed.run_id, run.run_id());
    assert_eq!(failed.state, RunState::Failed);
    assert_eq!((failed.kind, failed.code.as_str()), (FailureKind::NonRetryable, "card_declined"));
    assert_eq!(failed.message, "the card was declined");
    assert_eq!(failed.dead_letter, Some(DeadLetterReason::NonRetryable));
    assert_eq!(failed.details::<Decline>().unwrap(), Some(Decline { limit: 100 }));
}

#[tokio::test(start_paused = true)]
async fn a_requeued_dead_letter_goes_on_at_the_step_that_failed() {
    let world = world();
    let (paid, shipped) = (Tally::default(), Tally::default());
    let workflow =
        with((paid.clone(), shipped.clone()), |ctx: Context, (): (), (paid, shipped)| async move {
            ctx.step("pay", || async { Ok(paid.one()) }).await?;
            ctx.step(Step::named("ship").retry(policy(2, Duration::ZERO)), || async {
                match shipped.one() {
                    n if n > 2 => Ok(n),
                    _ => Err(StepError::retryable("no_truck", "no truck")),
                }
            })
            .await
        });
    let _worker = work(world.worker().register("w", workflow));
    let run = world.start("w").await;
    let failed = failed(&run).await;
    assert_eq!(failed.dead_letter, Some(DeadLetterReason::RetriesExhausted));
    world.client.requeue(run.run_id()).await.unwrap();
    assert_eq!(run.result::<usize>().await.unwrap(), 3);
    assert_eq!(paid.count(), 1, "what was paid is not paid again");
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_step_is_a_failure_and_the_worker_lives_on() {
    let world = world();
    let tries = Tally::default();
    let worker = world.worker().register(
        "w",
        with(tries.clone(), |ctx: Context, (): (), tries| async move {
            ctx.step("fragile", || {
                // Before there is a future at all, and within it.
                assert!(tries.one() != 1, "first {}", 1);
                let tries = tries.clone();
                async move {
                    assert!(tries.count() != 2, "second");
                    Ok(tries.count())
                }
            })
            .await
        }),
    );
    let _worker = work(worker);
    let run = world.start("w").await;
    assert_eq!(run.result::<usize>().await.unwrap(), 3);
    let attempts = run.attempts().await.unwrap();
    for (attempt, said) in attempts.iter().zip(["first 1", "second"]) {
        let failure = attempt.failure.as_ref().unwrap();
        assert_eq!(failure.kind, FailureKind::Panic);
        assert!(failure.message.contains("\"fragile\"") && failure.message.contains(said), "{failure:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_workflow_fails_the_run_and_keeps_what_it_did() {
    let world = world();
    let executed = Tally::default();
    let _worker = work(world.worker().register(
        "w",
        with(executed.clone(), |ctx: Context, (): (), executed| async move {
            let n = ctx.step("a", || async { Ok(executed.one()) }).await?;
            assert!(n != 1 || ctx.attempt() > 1, "the workflow is broken");
            Ok::<_, WorkflowError>(n)
        }),
    ));
    let run = world.start("w").await;
    assert_eq!(run.result::<usize>().await.unwrap(), 1);
    let record = run.record().await.unwrap();
    assert_eq!((record.run.failures, record.run.claims, executed.count()), (1, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_step_that_takes_too_long_is_dropped_and_fails_as_a_timeout() {
    let world = world();
    let tries = Tally::default();
    let worker = world.worker().register(
        "w",
        with(tries.clone(), |ctx: Context, (): (), tries| async move {
            let step = Step::named("slow").timeout(Duration::from_secs(5));
            ctx.step(step, || async {
                if tries.one() == 1 {
                    std::future::pending::<()>().await;
                }
                Ok(tries.count())
            })
            .await
        }),
    );
    let stats = work_counted(worker);
    let run = world.start("w").await;
    assert_eq!(run.result::<usize>().await.unwrap(), 2);
    let attempts = run.attempts().await.unwrap();
    assert_eq!(attempts[0].failure.as_ref().unwrap().kind, FailureKind::Timeout);
    assert_eq!(attempts[0].failure.as_ref().unwrap().code, "step_timeout");
    let took = attempts[0].finished_at.unwrap().saturating_since(attempts[0].created_at);
    assert_eq!(took, Duration::from_secs(5));
    assert_eq!(stats.now().runs_active, 0);
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_workflow_is_retried_by_the_policy_of_the_run() {
    let world = world();
    let _worker = work(world.worker().register("w", |ctx: Context, (): ()| async move {
        ctx.step("a", || async { Ok(()) }).await?;
        Err::<(), _>(WorkflowError::retryable("unlucky", format!("execution {}", ctx.attempt())))
    }));
    let start = Start::workflow("w").retry(policy(3, Duration::from_secs(1)));
    let run = world.client.start(start).await.unwrap();
    let failed = failed(&run).await;
    assert_eq!((failed.code.as_str(), failed.message.as_str()), ("unlucky", "execution 3"));
    assert_eq!(failed.dead_letter, Some(DeadLetterReason::RetriesExhausted));
    assert_eq!(world.history(&run).await, ["a/1 COMPLETED"]);
}

#[tokio::test(start_paused = true)]
async fn an_input_of_another_type_is_a_dead_letter_that_shows_no_payload() {
    let world = world();
    let _worker = work(
        world.worker().register("w", |_: Context, input: u32| async move { Ok::<_, WorkflowError>(input) }),
    );
    let start = Start::workflow("w").input("a secret").unwrap();
    let run = world.client.start(start).await.unwrap();
    let failed = failed(&run).await;
    assert_eq!((failed.kind, failed.code.as_str()), (FailureKind::NonRetryable, "decode"));
    assert!(failed.message.contains("the input") && !failed.message.contains("secret"), "{failed}");
}

#[tokio::test(start_paused = true)]
async fn an_output_over_the_limit_fails_its_step_once_and_for_all() {
    let world = world_with(Rules { max_payload_bytes: 100, ..Rules::default() });
    let executed = Tally::default();
    let _worker = work(world.worker().register(
        "w",
        with(executed.clone(), |ctx: Context, (): (), executed| async move {
            ctx.step("large", || async {
                executed.one();
                Ok("x".repeat(200))
            })
            .await?;
            ctx.step("next", || async { Ok(()) }).await
        }),
    ));
    let run = world.start("w").await;
    let failed = failed(&run).await;
    assert_eq!((failed.kind, failed.code.as_str()), (FailureKind::NonRetryable, "too_large"));
    assert_eq!(world.history(&run).await, ["large/1 FAILED"]);
    assert_eq!(executed.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_run_output_over_the_limit_keeps_the_last_step() {
    let world = world_with(Rules { max_payload_bytes: 100, ..Rules::default() });
    let _worker = work(world.worker().register("w", |ctx: Context, (): ()| async move {
        let part = ctx.step("part", || async { Ok("x".repeat(60)) }).await?;
        Ok::<_, WorkflowError>(part.repeat(2))
    }));
    let run = world.start("w").await;
    assert_eq!(failed(&run).await.code, "too_large");
    assert_eq!(world.history(&run).await, ["part/1 COMPLETED"]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_returned_as_data_is_for_the_workflow_to_handle() {
    let world = world();
    let _worker = work(world.worker().register("w", |ctx: Context, (): ()| async move {
        let charged: Result<(), String> =
            ctx.step("charge", || async { Ok(Err("declined".to_owned())) }).await?;
        if let Err(reason) = charged {
            return ctx.step("undo", || async move { Ok(format!("undone: {reason}")) }).await;
        }
        Ok("charged".to_owned())
    }));
    let run = world.start("w").await;
    assert_eq!(run.result::<String>().await.unwrap(), "undone: declined");
}

#[tokio::test(start_paused = true)]
async fn a_step_name_outside_the_rule_fails_the_run_by_name() {
    let world = world();
    let _worker = work(
        world
            .worker()
            .register("w", |ctx: Context, (): ()| async move { ctx.step(" a", || async { Ok(()) }).await }),
    );
    let run = world.start("w").await;
    let failed = failed(&run).await;
    assert_eq!((failed.kind, failed.code.as_str()), (FailureKind::NonRetryable, "invalid_step_name"));
    assert!(failed.message.contains("step_id"), "{failed}");
}

#[tokio::test(start_paused = true)]
async fn of_two_failures_the_one_that_no_retry_cures_decides() {
    let world = world();
    let _worker = work(world.worker().register("w", |ctx: Context, (): ()| async move {
        let (a, b) = tokio::join!(
            ctx.step("may pass", || async { Err::<(), _>(StepError::retryable("busy", "")) }),
            ctx.step("will not", || async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Err::<(), _>(StepError::non_retryable("forbidden", ""))
            }),
        );
        a.and(b)
    }));
    let run = world.start("w").await;
    assert_eq!(failed(&run).await.code, "forbidden");
    assert_eq!(run.record().await.unwrap().run.claims, 1);
}

#[tokio::test(start_paused = true)]
async fn details_over_the_limit_do_not_keep_a_failure_from_being_told() {
    let world = world_with(Rules { max_payload_bytes: 100, ..Rules::default() });
    let _worker = work(world.worker().register("w", |ctx: Context, (): ()| async move {
        ctx.step("a", || async {
            let error = StepError::non_retryable("declined", "declined");
            Err::<(), _>(error.with_details(&"x".repeat(200))?)
        })
        .await
    }));
    let run = world.start("w").await;
    let failed = failed(&run).await;
    assert_eq!((failed.code.as_str(), failed.details), ("declined", None));
}

#[tokio::test(start_paused = true)]
async fn a_step_with_impossible_settings_fails_the_run_and_not_the_step_before_it() {
    let world = world();
    let _worker = work(world.worker().register("w", |ctx: Context, (): ()| async move {
        ctx.step("before", || async { Ok(()) }).await?;
        ctx.step(Step::named("a").timeout(Duration::ZERO), || async { Ok(()) }).await
    }));
    let run = world.start("w").await;
    let failed = failed(&run).await;
    assert_eq!((failed.kind, failed.code.as_str()), (FailureKind::NonRetryable, "invalid_step"));
    assert!(failed.message.contains("timeout"), "{failed}");
    assert_eq!(world.history(&run).await, ["before/1 COMPLETED"]);
}

#[tokio::test(start_paused = true)]
async fn a_sleep_longer_than_any_fails_the_run() {
    let world = world();
    let _worker = work(
        world.worker().register("w", |ctx: Context, (): ()| async move { ctx.sleep(Duration::MAX).await }),
    );
    let run = world.start("w").await;
    let failed = failed(&run).await;
    assert_eq!((failed.kind, failed.code.as_str()), (FailureKind::NonRetryable, "invalid_argument"));
}
