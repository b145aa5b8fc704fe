//! What a replay gives back, and what it refuses.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

mod common;

use std::time::Duration;

use common::{Tally, crash, until, with, work, work_counted, world};
use kagzi_sdk::{ClientError, Context, FailureKind, RunState, Step, WorkflowError};
use tokio::time::{Instant, sleep};

const HOUR: Duration = Duration::from_hours(1);

#[tokio::test(start_paused = true)]
async fn a_crash_costs_the_step_in_flight_and_no_other() {
    let world = world();
    let (first, second) = (Tally::default(), Tally::default());
    let workflow =
        with((first.clone(), second.clone()), |ctx: Context, (): (), (first, second)| async move {
            let a = ctx.step("a", || async { Ok(first.one()) }).await?;
            let b = ctx
                .step("b", || async {
                    if second.one() == 1 {
                        std::future::pending::<()>().await;
                    }
                    Ok(a + 10)
                })
                .await?;
            Ok::<_, WorkflowError>((a, b))
        });
    let crashing = work(world.worker().register("w", workflow.clone()));
    let run = world.start("w").await;
    until(|| async { second.count() == 1 }).await;
    crash(crashing).await;

    let stats = work_counted(world.worker().register("w", workflow));
    assert_eq!(run.result::<(usize, usize)>().await.unwrap(), (1, 11));
    assert_eq!((first.count(), second.count()), (1, 2));
    assert_eq!(world.history(&run).await, ["a/1 COMPLETED", "b/1 ABANDONED", "b/2 COMPLETED"]);
    let stats = stats.now();
    assert_eq!((stats.steps_replayed, stats.steps_executed, stats.runs_completed), (1, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn loops_of_steps_and_sleeps_get_an_occurrence_each() {
    let world = world();
    let ticks = Tally::default();
    let _worker = work(world.worker().register(
        "w",
        with(ticks.clone(), |ctx: Context, rounds: u32, ticks| async move {
            let mut seen = Vec::new();
            for _ in 0..rounds {
                seen.push(ctx.step("tick", || async { Ok(ticks.one()) }).await?);
                ctx.sleep(HOUR).await?;
            }
            Ok::<_, WorkflowError>((seen, ctx.attempt()))
        }),
    ));
    let began = Instant::now();
    let start = kagzi_sdk::Start::workflow("w").input(&3).unwrap();
    let run = world.client.start(start).await.unwrap();
    assert_eq!(run.result::<(Vec<usize>, u32)>().await.unwrap(), (vec![1, 2, 3], 4));
    assert_eq!(ticks.count(), 3, "each tick was executed once");
    assert!(began.elapsed() >= 3 * HOUR && began.elapsed() < 3 * HOUR + Duration::from_secs(5));
    let ids: Vec<String> =
        run.attempts().await.unwrap().iter().map(|attempt| attempt.step_id.to_string()).collect();
    assert_eq!(ids, ["tick", "sleep", "tick#2", "sleep#2", "tick#3", "sleep#3"]);
}

#[tokio::test(start_paused = true)]
async fn a_sleep_ends_at_its_moment_to_the_millisecond() {
    let world = world();
    let _worker = work(world.worker().register("w", |ctx: Context, (): ()| async move {
        ctx.sleep(Duration::from_millis(3)).await?;
        ctx.sleep_until(ctx.started_at().saturating_add(Duration::from_millis(10))).await?;
        ctx.sleep_until(ctx.started_at()).await?; // long past
        Ok::<_, WorkflowError>(())
    }));
    let run = world.start("w").await;
    let record = run.finished().await.unwrap();
    assert_eq!(record.run.state, RunState::Completed);
    let took = record.run.finished_at.unwrap().saturating_since(record.run.created_at);
    assert!((Duration::from_millis(10)..Duration::from_millis(20)).contains(&took), "{took:?}");
}

/// Two branches of several steps each, whose results come in another order than their calls.
async fn branches(ctx: Context, crash: Tally) -> Result<Vec<u64>, WorkflowError> {
    let step = |name: &'static str, millis: u64| {
        ctx.step(name, move || async move {
            sleep(Duration::from_millis(millis)).await;
            Ok(millis)
        })
    };
    let (a, b) = tokio::join!(
        async {
            let mut got = vec![step("slow", 50).await?];
            got.push(step("after slow", 5).await?);
            got.push(step("after slow", 40).await?);
            Ok::<_, WorkflowError>(got)
        },
        async {
            let mut got = Vec::new();
            for millis in [20, 10, 30, 15] {
                got.push(step("quick", millis).await?);
            }
            Ok::<_, WorkflowError>(got)
        },
    );
    let last = ctx
        .step("last", || async {
            if crash.one() == 1 {
                std::future::pending::<()>().await;
            }
            Ok(0)
        })
        .await?;
    Ok([a?, b?, vec![last]].concat())
}

#[tokio::test(start_paused = true)]
async fn branches_meet_their_results_in_the_same_order_again() {
    // Crash at every millisecond of the run: wherever that is, the replay goes on without a complaint.
    for crash_after in (1..=100).step_by(3) {
        let world = world();
        let tally = Tally::default();
        let workflow = {
            let tally = tally.clone();
            move |ctx: Context, (): ()| branches(ctx, tally.clone())
        };
        let crashing = work(world.worker().register("w", workflow.clone()));
        let run = world.start("w").await;
        sleep(Duration::from_millis(crash_after)).await;
        crash(crashing).await;
        if tally.count() == 0 {
            tally.one();
        }
        let _survivor = work(world.worker().register("w", workflow));
        let got: Vec<u64> = run.result().await.unwrap();
        assert_eq!(got, [50, 5, 40, 20, 10, 30, 15, 0], "crashed after {crash_after} ms");
        let history = world.history(&run).await;
        assert_eq!(history.iter().filter(|line| line.ends_with("COMPLETED")).count(), 8, "{history:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn steps_beyond_those_that_a_claim_brings_are_fetched() {
    let world = world();
    let executed = Tally::default();
    let worker = world.worker().steps_per_claim(2);
    let _worker = work(worker.register(
        "w",
        with(executed.clone(), |ctx: Context, (): (), executed| async move {
            let mut sum = 0;
            for _ in 0..7 {
                sum += ctx.step("add", || async { Ok(executed.one()) }).await?;
            }
            ctx.sleep(HOUR).await?;
            Ok::<_, WorkflowError>(sum)
        }),
    ));
    let run = world.start("w").await;
    assert_eq!(run.result::<usize>().await.unwrap(), 28);
    assert_eq!(executed.count(), 7);
}

#[tokio::test(start_paused = true)]
async fn sleeps_side_by_side_count_from_one_moment() {
    let world = world();
    let _worker = work(world.worker().register("w", |ctx: Context, (): ()| async move {
        let (a, b, c) = tokio::join!(
            ctx.sleep(HOUR),
            ctx.sleep(2 * HOUR),
            ctx.step("work", || async {
                sleep(HOUR / 2).await;
                Ok(())
            })
        );
        a.and(b).and(c)
    }));
    let began = Instant::now();
    let run = world.start("w").await;
    run.result::<()>().await.unwrap();
    assert!(began.elapsed() >= 2 * HOUR && began.elapsed() < 2 * HOUR + Duration::from_secs(5));
}

/// Runs `first` up to its sleep, then `second` in its place, and gives the failure that this ends with.
macro_rules! changed {
    ($first:expr, $second:expr) => {{
        let world = world();
        let before = work(world.worker().register("w", $first));
        let run = world.start("w").await;
        until(|| async { run.state().await.unwrap() == RunState::Sleeping }).await;
        crash(before).await;
        let _after = work(world.worker().register("w", $second));
        let error = run.result::<u32>().await.unwrap_err();
        let ClientError::WorkflowFailed(failed) = error else { panic!("{error}") };
        assert_eq!((failed.kind, failed.code.as_str()), (FailureKind::NonRetryable, "nondeterminism"));
        failed.message
    }};
}

async fn one(ctx: &Context, name: &str) -> Result<u32, WorkflowError> {
    ctx.step(Step::named(name), || async { Ok(1) }).await
}

async fn a_then_b(ctx: Context, (): ()) -> Result<u32, WorkflowError> {
    one(&ctx, "a").await?;
    one(&ctx, "b").await?;
    ctx.sleep(HOUR).await?;
    Ok(2)
}

#[tokio::test(start_paused = true)]
async fn another_step_at_a_recorded_position_is_nondeterminism() {
    let message = changed!(a_then_b, |ctx: Context, (): ()| async move {
        one(&ctx, "a").await?;
        one(&ctx, "x").await?;
        Ok::<_, WorkflowError>(2)
    });
    for part in ["position 1", "\"b\"", "\"x\""] {
        assert!(message.contains(part), "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn swapped_steps_are_nondeterminism() {
    let message = changed!(a_then_b, |ctx: Context, (): ()| async move {
        one(&ctx, "b").await?;
        one(&ctx, "a").await
    });
    assert!(message.contains("position 0"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_recorded_step_at_a_position_where_nothing_is_recorded_is_nondeterminism() {
    // Of two steps side by side, a crash may have kept the first from being begun: a gap is no fault,
    // but a step that moves into it is.
    let message = changed!(
        |ctx: Context, (): ()| async move {
            let never_polled = ctx.step("a", || async { Ok(1) });
            one(&ctx, "b").await?;
            ctx.sleep(HOUR).await?;
            never_polled.await
        },
        |ctx: Context, (): ()| async move { one(&ctx, "b").await }
    );
    assert!(message.contains("position 0") && message.contains("recorded at position 1"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_sleep_in_the_place_of_a_step_is_nondeterminism() {
    let message = changed!(a_then_b, |ctx: Context, (): ()| async move {
        one(&ctx, "a").await?;
        ctx.sleep(HOUR).await?;
        Ok::<_, WorkflowError>(2)
    });
    assert!(message.contains("step \"b\"") && message.contains("sleep \"sleep\""), "{message}");
}

#[tokio::test(start_paused = true)]
async fn an_end_before_all_that_is_recorded_is_nondeterminism() {
    let message = changed!(a_then_b, |ctx: Context, (): ()| async move { one(&ctx, "a").await });
    assert!(message.contains("position 1") && message.contains("\"b\""), "{message}");
}

#[tokio::test(start_paused = true)]
async fn code_that_swallows_errors_cannot_hide_nondeterminism() {
    let message = changed!(a_then_b, |ctx: Context, (): ()| async move {
        let (x, y) = tokio::join!(one(&ctx, "x"), one(&ctx, "y"));
        Ok::<_, WorkflowError>(x.unwrap_or(0) + y.unwrap_or(0))
    });
    assert!(message.contains("position 0"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_run_stopped_by_changed_code_goes_on_once_the_code_is_back() {
    let world = world();
    let before = work(world.worker().register("w", a_then_b));
    let run = world.start("w").await;
    until(|| async { run.state().await.unwrap() == RunState::Sleeping }).await;
    before.abort();
    let changed = |ctx: Context, (): ()| async move { one(&ctx, "other").await };
    let after = work(world.worker().register("w", changed));
    run.result::<u32>().await.unwrap_err();
    crash(after).await;

    world.client.requeue(run.run_id()).await.unwrap();
    let _repaired = work(world.worker().register("w", a_then_b));
    assert_eq!(run.result::<u32>().await.unwrap(), 2);
}
