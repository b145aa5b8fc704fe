//! Losing, keeping and giving back the right to a run.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Fault, Tally, Watched, until, with, work, work_counted, world};
use kagzi_core::{Claim, Lease, OperationId, ReleaseRun, Store as _, WorkerId};
use kagzi_sdk::{AttemptState, ClientError, Context, FailureKind, RunState, WorkflowError};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

#[tokio::test(start_paused = true)]
async fn heartbeats_keep_a_lease_through_a_long_step() {
    let world = world();
    let _worker = work(world.worker().register("w", |ctx: Context, (): ()| async move {
        ctx.step("long", || async {
            sleep(Duration::from_mins(10)).await;
            Ok(())
        })
        .await
    }));
    let run = world.start("w").await;
    run.result::<()>().await.unwrap();
    assert_eq!(run.record().await.unwrap().run.claims, 1, "nobody took it over");
    assert!(world.store.calls("heartbeat") >= 59, "every ten seconds");
}

#[tokio::test(start_paused = true)]
async fn many_leases_go_into_one_heartbeat() {
    let world = world();
    let _worker = work(world.worker().register("w", |ctx: Context, (): ()| async move {
        ctx.step("long", || async {
            sleep(Duration::from_secs(25)).await;
            Ok(())
        })
        .await
    }));
    let mut runs = Vec::new();
    for _ in 0..20 {
        runs.push(world.start("w").await);
    }
    for run in &runs {
        run.result::<()>().await.unwrap();
    }
    assert_eq!(world.store.calls("heartbeat"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_run_stops_and_its_step_is_told() {
    let world = world();
    let (told, later) = (Tally::default(), Tally::default());
    let workflow = with((told.clone(), later.clone()), |ctx: Context, (): (), (told, later)| async move {
        ctx.step("watchful", || async {
            ctx.cancelled().await;
            told.one();
            Ok(())
        })
        .await?;
        ctx.step("later", || async { Ok(later.one()) }).await
    });
    let stats = work_counted(world.worker().register("w", workflow));
    let run = world.start("w").await;
    until(|| async { world.store.calls("begin_step") == 1 }).await;
    run.cancel("changed my mind").await.unwrap();
    let ClientError::WorkflowFailed(failed) = run.result::<usize>().await.unwrap_err() else { panic!() };
    assert_eq!((failed.state, failed.kind), (RunState::Cancelled, FailureKind::Cancelled));
    assert_eq!((failed.message.as_str(), failed.dead_letter), ("changed my mind", None));

    until(|| async { stats.now().leases_lost == 1 }).await;
    assert_eq!((told.count(), later.count()), (1, 0));
    assert_eq!(world.store.writes(), [("begin_step", 1)], "nothing was written after the cancellation");
}

#[tokio::test(start_paused = true)]
async fn a_step_that_does_not_listen_is_dropped_after_the_grace() {
    struct Dropped(Option<oneshot::Sender<Instant>>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.take().unwrap().send(Instant::now()).unwrap();
        }
    }
    let world = world();
    let (sender, dropped) = oneshot::channel();
    let sender = std::sync::Mutex::new(Some(sender));
    let worker =
        world.worker().cancel_grace(Duration::from_secs(3)).register("w", move |ctx: Context, (): ()| {
            let guard = Dropped(sender.lock().unwrap().take());
            async move {
                ctx.step("deaf", || async {
                    let _guard = guard;
                    std::future::pending::<()>().await;
                    Ok(())
                })
                .await
            }
        });
    let _worker = work(worker);
    let run = world.start("w").await;
    until(|| async { world.store.calls("begin_step") == 1 }).await;
    run.cancel("").await.unwrap();
    let cancelled = Instant::now();
    let waited = dropped.await.unwrap() - cancelled;
    // The next heartbeat tells, at most ten seconds later.
    assert!((Duration::from_secs(3)..=Duration::from_secs(13)).contains(&waited), "{waited:?}");
}

/// Takes the lease of the only run away from whoever holds it, as an operator's mistake or a frozen
/// worker would let happen, and gives it back so that another worker can have it.
async fn steal(world: &common::World, run: &kagzi_sdk::RunHandle) {
    let held = run.record().await.unwrap().run;
    let lease = Lease {
        namespace: held.namespace.clone(),
        run_id: held.run_id,
        worker_id: held.worker_id.unwrap(),
        fencing_token: held.fencing_token,
    };
    world.store.release(ReleaseRun { lease, operation: OperationId::generate() }).await.unwrap();
    let claim = Claim {
        namespace: held.namespace,
        queues: vec![held.queue],
        workflow_types: Vec::new(),
        worker_id: WorkerId::new("thief").unwrap(),
        lease_length: Duration::from_hours(1),
        limit: 1,
        steps_limit: 1,
        operation: OperationId::generate(),
    };
    assert_eq!(world.store.claim(claim).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_stops_the_run_before_its_next_step() {
    let world = world();
    let (go, later) = (Tally::default(), Tally::default());
    let workflow = with((go.clone(), later.clone()), |ctx: Context, (): (), (go, later)| async move {
        ctx.step("a", || async {
            until(|| async { go.count() > 0 }).await;
            Ok(())
        })
        .await?;
        ctx.step("b", || async { Ok(later.one()) }).await
    });
    let stats = work_counted(world.worker().register("w", workflow));
    let run = world.start("w").await;
    until(|| async { world.store.calls("begin_step") == 1 }).await;
    steal(&world, &run).await;
    let before = run.record().await.unwrap();
    go.one();
    until(|| async { stats.now().leases_lost == 1 }).await;
    sleep(Duration::from_mins(1)).await;
    assert_eq!(later.count(), 0, "the next step did not run");
    assert_eq!(run.record().await.unwrap(), before, "the new holder's run is untouched");
    assert_eq!(world.store.calls("complete_step"), 1, "refused once, and not repeated");
    assert_eq!(stats.now().calls_failed, 1);
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_that_finds_the_lease_lost_stops_a_step_in_flight() {
    let world = world();
    let ticks = Tally::default();
    let worker = world.worker().register(
        "w",
        with(ticks.clone(), |ctx: Context, (): (), ticks| async move {
            ctx.step("ticking", || async {
                loop {
                    sleep(Duration::from_secs(1)).await;
                    ticks.one();
                }
                #[allow(unreachable_code, reason = "it names the type")]
                Ok(())
            })
            .await
        }),
    );
    let stats = work_counted(worker);
    let run = world.start("w").await;
    until(|| async { world.store.calls("begin_step") == 1 }).await;
    steal(&world, &run).await;
    until(|| async { stats.now().leases_lost == 1 }).await;
    let ticked = ticks.count();
    assert!(ticked <= 10, "within a third of the lease");
    sleep(Duration::from_mins(1)).await;
    assert_eq!(ticks.count(), ticked, "it was dropped");
}

#[tokio::test(start_paused = true)]
async fn a_drain_lets_steps_in_flight_finish_and_gives_the_run_back() {
    let world = world();
    let (first, second) = (Tally::default(), Tally::default());
    let workflow =
        with((first.clone(), second.clone()), |ctx: Context, (): (), (first, second)| async move {
            ctx.step("first", || async {
                first.one();
                // Longer than the lease: the heart must go on beating while the worker drains.
                sleep(Duration::from_secs(100)).await;
                Ok(())
            })
            .await?;
            ctx.step("second", || async { Ok(second.one()) }).await
        });
    let worker = world.worker().drain_timeout(Duration::from_mins(5)).register("w", workflow.clone());
    let worker = worker.build().unwrap();
    let stats = worker.stats();
    let (stop, stopped) = oneshot::channel::<()>();
    let draining = tokio::spawn(worker.run_until(async { stopped.await.unwrap() }));
    let run = world.start("w").await;
    until(|| async { first.count() == 1 }).await;
    stop.send(()).unwrap();
    draining.await.unwrap().unwrap();

    let stats = stats.now();
    assert_eq!((stats.runs_released, stats.runs_active, stats.leases_lost), (1, 0, 0));
    assert_eq!(run.state().await.unwrap(), RunState::Pending);
    assert_eq!(world.history(&run).await, ["first/1 COMPLETED"]);
    assert_eq!(second.count(), 0, "the run was not run to its end");
    let waiting = world.start("w").await;
    sleep(Duration::from_mins(1)).await;
    assert_eq!(waiting.state().await.unwrap(), RunState::Pending, "a drained worker takes nothing");

    let _next = work(world.worker().register("w", workflow));
    assert_eq!(run.result::<usize>().await.unwrap(), 1);
    assert_eq!(world.history(&run).await, ["first/1 COMPLETED", "second/1 COMPLETED"]);
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_takes_too_long_drops_the_step_and_gives_the_run_back() {
    let world = world();
    let worker = world.worker().drain_timeout(Duration::from_secs(7)).register(
        "w",
        |ctx: Context, (): ()| async move {
            ctx.step("endless", || async { std::future::pending::<Result<(), _>>().await }).await
        },
    );
    let (stop, stopped) = oneshot::channel::<()>();
    let draining = tokio::spawn(worker.build().unwrap().run_until(async { stopped.await.unwrap() }));
    let run = world.start("w").await;
    until(|| async { world.store.calls("begin_step") == 1 }).await;
    let began = Instant::now();
    stop.send(()).unwrap();
    draining.await.unwrap().unwrap();
    assert_eq!(began.elapsed(), Duration::from_secs(7));
    assert_eq!(run.state().await.unwrap(), RunState::Pending);
    assert_eq!(run.attempts().await.unwrap()[0].state, AttemptState::Abandoned);
}

#[tokio::test(start_paused = true)]
async fn runs_of_a_poll_whose_answer_is_lost_are_not_lost() {
    let world = world();
    let _worker =
        work(world.worker().register("w", |_: Context, (): ()| async move { Ok::<_, WorkflowError>(()) }));
    until(|| async { world.store.calls("claim") > 0 }).await;
    world.store.fail("claim", Fault::AnswerLost, 1);
    let began = Instant::now();
    let run = world.start("w").await;
    run.result::<()>().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "long before the lease would have expired");
    assert_eq!(run.record().await.unwrap().run.claims, 1);
}

#[tokio::test(start_paused = true)]
async fn polls_that_are_refused_for_a_moment_cost_no_heartbeats() {
    let world = world();
    let _worker = work(world.worker().register("w", |ctx: Context, (): ()| async move {
        ctx.step("long", || async {
            sleep(Duration::from_secs(25)).await;
            Ok(())
        })
        .await
    }));
    let first = world.start("w").await;
    until(|| async { world.store.calls("begin_step") == 1 }).await;
    let claims = world.store.calls("claim");
    world.store.fail("claim", Fault::Unreachable, 3);
    let second = world.start("w").await;
    for run in [first, second] {
        run.result::<()>().await.unwrap();
    }
    assert!(world.store.calls("claim") > claims + 3);
    assert_eq!(world.store.calls("heartbeat"), 2, "one every ten seconds");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_not_extended_for_a_moment_is_tried_again_before_the_next_beat_is_due() {
    let world = world();
    let _worker = work(world.worker().register("w", |ctx: Context, (): ()| async move {
        ctx.step("long", || async {
            sleep(Duration::from_secs(25)).await;
            Ok(())
        })
        .await
    }));
    world.store.fail(Watched::EACH_BEAT, Fault::Unreachable, 2);
    let run = world.start("w").await;
    run.result::<()>().await.unwrap();
    assert_eq!(run.record().await.unwrap().run.claims, 1, "nobody took it over");
    assert!(world.store.calls("heartbeat") >= 4, "{} in 25 seconds", world.store.calls("heartbeat"));
}

#[tokio::test(start_paused = true)]
async fn no_more_runs_than_the_limit_execute_side_by_side() {
    let world = world();
    let done = Tally::default();
    let (active, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let workflow = with(
        (active.clone(), most.clone(), done.clone()),
        |ctx: Context, (): (), (active, most, done)| async move {
            ctx.step("busy", || async {
                let others = active.fetch_add(1, Ordering::SeqCst);
                most.fetch_max(others + 1, Ordering::SeqCst);
                sleep(Duration::from_secs(1)).await;
                active.fetch_sub(1, Ordering::SeqCst);
                Ok(done.one())
            })
            .await
        },
    );
    let _worker = work(world.worker().max_concurrent_runs(3).register("w", workflow));
    let mut runs = Vec::new();
    for _ in 0..10 {
        runs.push(world.start("w").await);
    }
    for run in runs {
        run.result::<usize>().await.unwrap();
    }
    assert_eq!((most.load(Ordering::SeqCst), done.count()), (3, 10));
}
