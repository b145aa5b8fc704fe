//! What an execution writes: one write a step, and each of them arrives.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

mod common;

use std::time::Duration;

use common::{Fault, Tally, until, with, work, world};
use kagzi_sdk::{Context, FailedCall, Step, StepError, WorkflowError};
use tokio::sync::Barrier;
use tokio::time::sleep;

async fn five_steps(ctx: Context, executed: Tally) -> Result<usize, WorkflowError> {
    let mut sum = 0;
    for _ in 0..5 {
        sum += ctx.step("add", || async { Ok(executed.one()) }).await?;
    }
    Ok(sum)
}

#[tokio::test(start_paused = true)]
async fn a_run_of_five_steps_costs_eight_writes() {
    let world = world();
    let executed = Tally::default();
    let counted = executed.clone();
    let _worker = work(world.worker().register("w", move |ctx, (): ()| five_steps(ctx, counted.clone())));
    let run = world.start("w").await;
    assert_eq!(run.result::<usize>().await.unwrap(), 15);
    // With the start and the claim: 5 + 3.
    assert_eq!(world.store.writes(), [("begin_step", 1), ("complete_step", 5)]);
}

#[tokio::test(start_paused = true)]
async fn a_step_that_nothing_follows_at_once_is_recorded_at_once() {
    let world = world();
    let _worker = work(world.worker().register("w", |ctx: Context, (): ()| async move {
        ctx.step("a", || async { Ok(()) }).await?;
        sleep(Duration::from_secs(1)).await; // not durable, and not to be imitated
        ctx.step("b", || async { Ok(()) }).await
    }));
    let run = world.start("w").await;
    run.result::<()>().await.unwrap();
    assert_eq!(world.store.writes(), [("begin_step", 2), ("complete_step", 2)]);
    let attempts = run.attempts().await.unwrap();
    assert_eq!(attempts[0].created_at, attempts[0].finished_at.unwrap(), "not only when b began");
}

#[tokio::test(start_paused = true)]
async fn a_run_without_steps_is_one_write() {
    let world = world();
    let _worker =
        work(world.worker().register("w", |_: Context, n: u32| async move { Ok::<_, WorkflowError>(n + 1) }));
    let start = kagzi_sdk::Start::workflow("w").input(&41).unwrap();
    assert_eq!(world.client.start(start).await.unwrap().result::<u32>().await.unwrap(), 42);
    assert_eq!(world.store.writes(), [("complete_run", 1)]);
}

#[tokio::test(start_paused = true)]
async fn what_an_outage_held_up_is_delivered_after_it_and_nothing_is_done_twice() {
    let operations =
        ["start", "claim", "begin_step", "complete_step", "sleep", "fail_step", "complete_run", "fail_run"];
    for operation in operations {
        for fault in [Fault::Unreachable, Fault::AnswerLost] {
            let world = world();
            let (executed, flaky) = (Tally::default(), Tally::default());
            let workflow = with(
                (executed.clone(), flaky.clone()),
                |ctx: Context, (): (), (executed, flaky)| async move {
                    let sum = five_steps(ctx.clone(), executed).await?;
                    ctx.sleep(Duration::from_secs(1)).await?;
                    ctx.step("flaky", || async {
                        match flaky.one() {
                            1 => Err(StepError::retryable("once", "once")),
                            n => Ok(n),
                        }
                    })
                    .await?;
                    if ctx.attempt() == 3 {
                        return Err(WorkflowError::retryable("again", "again"));
                    }
                    // Nothing is left to record but the end of the run itself.
                    Ok(sum)
                },
            );
            world.store.fail(operation, fault, 4);
            let _worker = work(world.worker().register("w", workflow));
            let run = world.start("w").await;
            assert_eq!(run.result::<usize>().await.unwrap(), 15, "{operation} {fault:?}");
            assert_eq!((executed.count(), flaky.count()), (5, 2), "{operation} {fault:?}");
            let record = run.record().await.unwrap();
            assert_eq!(record.run.claims, 4, "{operation} {fault:?}: no lease was lost on the way");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_longer_than_the_lease_loses_no_finished_step() {
    let world = world();
    let (executed, failed_calls) = (Tally::default(), Tally::default());
    let (counted, observed) = (executed.clone(), failed_calls.clone());
    let workflow = move |ctx: Context, (): ()| {
        let executed = counted.clone();
        async move {
            let a = ctx
                .step("a", || async {
                    sleep(Duration::from_secs(1)).await;
                    Ok(executed.one())
                })
                .await?;
            ctx.step("b", || async { Ok(a + executed.one()) }).await
        }
    };
    let worker = world.worker().register("w", workflow);
    let observe = move |_: &FailedCall<'_>| {
        observed.one();
    };
    let worker = worker.on_failed_call(observe).build().unwrap();
    let stats = worker.stats();
    tokio::spawn(worker.run());
    let run = world.start("w").await;
    until(|| async { world.store.calls("begin_step") == 1 }).await;
    // The whole store is away, and no reaper elsewhere gives the run to others meanwhile.
    world.store.be_away(Duration::from_mins(5));
    world.store.fail("reap", Fault::Unreachable, usize::MAX);
    sleep(Duration::from_mins(5)).await;
    assert_eq!(run.result::<usize>().await.unwrap(), 3);
    assert_eq!(executed.count(), 2);
    assert_eq!(run.record().await.unwrap().run.claims, 1, "the worker did not take it from itself");
    assert!(failed_calls.count() > 100);
    assert_eq!(stats.now().calls_failed, failed_calls.count() as u64);
}

#[tokio::test(start_paused = true)]
async fn steps_side_by_side_run_at_the_same_time() {
    let world = world();
    let _worker = work(world.worker().register("w", |ctx: Context, (): ()| async move {
        let meet = Barrier::new(3);
        let step = |name: &'static str| {
            let meet = &meet;
            ctx.step(name, move || async move {
                meet.wait().await; // it takes all three of them
                Ok(name.len())
            })
        };
        let (a, b, c) = tokio::join!(step("a"), step("bb"), step("ccc"));
        Ok::<_, WorkflowError>(a? + b? + c?)
    }));
    let run = world.start("w").await;
    assert_eq!(run.result::<usize>().await.unwrap(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_failure_waits_for_the_steps_beside_it_to_be_recorded() {
    let world = world();
    let (slow, bad) = (Tally::default(), Tally::default());
    let workflow = with((slow.clone(), bad.clone()), |ctx: Context, (): (), (slow, bad)| async move {
        let (a, b) = tokio::join!(
            ctx.step("slow", || async {
                sleep(Duration::from_secs(20)).await;
                Ok(slow.one())
            }),
            ctx.step(Step::named("bad"), || async {
                match bad.one() {
                    1 => Err(StepError::retryable("bad", "bad")),
                    n => Ok(n),
                }
            }),
        );
        Ok::<_, WorkflowError>((a?, b?))
    });
    let _worker = work(world.worker().register("w", workflow));
    let run = world.start("w").await;
    assert_eq!(run.result::<(usize, usize)>().await.unwrap(), (1, 2));
    assert_eq!(world.history(&run).await, ["slow/1 COMPLETED", "bad/1 FAILED", "bad/2 COMPLETED"]);
}

#[tokio::test(start_paused = true)]
async fn the_loser_of_a_race_is_not_begun_again_in_a_replay() {
    let world = world();
    let (quick, slow) = (Tally::default(), Tally::default());
    let workflow = with((quick.clone(), slow.clone()), |ctx: Context, (): (), (quick, slow)| async move {
        let winner = tokio::select! {
            biased;
            slow = ctx.step("slow", || async {
                slow.one();
                sleep(Duration::from_mins(1)).await;
                Ok("slow".to_owned())
            }) => slow?,
            quick = ctx.step("quick", || async {
                quick.one();
                Ok("quick".to_owned())
            }) => quick?,
        };
        ctx.sleep(Duration::from_hours(1)).await?;
        Ok::<_, WorkflowError>(winner)
    });
    let _worker = work(world.worker().register("w", workflow));
    let run = world.start("w").await;
    assert_eq!(run.result::<String>().await.unwrap(), "quick");
    assert_eq!((quick.count(), slow.count()), (1, 1));
}
