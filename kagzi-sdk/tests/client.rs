//! What a client can ask, and what it is told about its mistakes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

mod common;

use std::time::Duration;

use common::{Fault, until, work, world};
use kagzi_core::WorkflowType;
use kagzi_sdk::{
    CancelOutcome, ClientError, Context, RunFilter, RunState, Start, StartOutcome, StoreError, WorkerError,
    WorkflowError,
};

async fn double(_: Context, n: u32) -> Result<u32, WorkflowError> {
    Ok(2 * n)
}

fn start(n: u32) -> Start {
    Start::workflow("double").input(&n).unwrap()
}

#[tokio::test(start_paused = true)]
async fn one_key_names_one_run_and_another_request_under_it_is_a_conflict() {
    let world = world();
    let one = world.client.start(start(1).idempotency_key("k")).await.unwrap();
    let again = world.client.start(start(1).idempotency_key("k")).await.unwrap();
    assert_eq!(one.start_outcome(), Some(StartOutcome::Created));
    assert_eq!((again.run_id(), again.start_outcome()), (one.run_id(), Some(StartOutcome::Existing)));
    let error = world.client.start(start(2).idempotency_key("k")).await.unwrap_err();
    assert!(matches!(&error, ClientError::Call(StoreError::IdempotencyConflict { .. })), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_start_whose_answer_is_lost_makes_one_run() {
    let world = world();
    world.store.fail("start", Fault::AnswerLost, 2);
    world.client.start(start(1)).await.unwrap();
    assert_eq!(world.client.count(&RunFilter::default()).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn patience_ends() {
    let world = world();
    let client = world.client.clone().with_patience(Duration::from_secs(3));
    world.store.be_away(Duration::from_hours(1));
    let began = tokio::time::Instant::now();
    let error = client.start(start(1)).await.unwrap_err();
    assert!(matches!(&error, ClientError::Call(StoreError::Unavailable { .. })), "{error}");
    assert!(began.elapsed() <= Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn where_patience_ends_an_outcome_that_was_unknown_before_is_still_unknown() {
    let world = world();
    world.store.fail("start", Fault::AnswerLost, 1);
    let away_after_the_first = async {
        while world.store.calls("start") == 0 {
            tokio::task::yield_now().await;
        }
        world.store.be_away(Duration::from_mins(1));
    };
    let (started, ()) = tokio::join!(world.client.start(start(1)), away_after_the_first);
    let error = started.unwrap_err();
    assert!(world.store.calls("start") > 1);
    assert!(matches!(&error, ClientError::Call(StoreError::OutcomeUnknown { .. })), "{error}");
    tokio::time::advance(Duration::from_mins(1)).await;
    assert_eq!(world.client.count(&RunFilter::default()).await.unwrap(), 1, "it was started");
}

#[tokio::test(start_paused = true)]
async fn runs_are_listed_counted_and_kept_apart_by_namespace() {
    let world = world();
    let starts = (0..5).map(|n| start(n).label("parity", if n % 2 == 0 { "even" } else { "odd" })).collect();
    let runs = world.client.start_many(starts).await.unwrap();
    let elsewhere = world.client.clone().in_namespace("elsewhere").unwrap();
    let all = RunFilter::default();
    assert_eq!(elsewhere.count(&all).await.unwrap(), 0);
    let error = elsewhere.get(runs[0].run_id()).await.unwrap_err();
    assert!(matches!(&error, ClientError::Call(StoreError::RunNotFound { .. })), "{error}");

    let mut listed = Vec::new();
    let mut cursor = None;
    loop {
        let page = world.client.list(&all, 2, cursor).await.unwrap();
        listed.extend(page.items.into_iter().map(|run| run.run_id));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    listed.sort_unstable();
    let mut started: Vec<_> = runs.iter().map(kagzi_sdk::RunHandle::run_id).collect();
    started.sort_unstable();
    assert_eq!(listed, started);

    let depths = world.client.queue_depths().await.unwrap();
    assert_eq!((depths.len(), depths[0].pending), (1, 5));
    let _worker = work(world.worker().register("double", double));
    for (n, run) in (0..).zip(&runs) {
        assert_eq!(run.result::<u32>().await.unwrap(), 2 * n);
    }
    let done = RunFilter { states: vec![RunState::Completed], ..RunFilter::default() };
    assert_eq!(world.client.count(&done).await.unwrap(), 5);
    let late = world.client.cancel(runs[0].run_id(), "too late").await.unwrap();
    assert_eq!(late, CancelOutcome::AlreadyFinished(RunState::Completed));
}

#[tokio::test(start_paused = true)]
async fn one_worker_serves_many_types_and_queues_and_leaves_the_others() {
    let world = world();
    let triple = |_: Context, n: u32| async move { Ok::<_, WorkflowError>(3 * n) };
    let worker = world.worker().queue("express").register("double", double).register("triple", triple);
    let _worker = work(worker);
    let express = Start::workflow("triple").queue("express").input(&5).unwrap();
    let foreign = Start::workflow("unknown").input(&5).unwrap();
    let elsewhere = start(5).queue("elsewhere");
    let runs = world.client.start_many(vec![foreign, elsewhere, start(5), express]).await.unwrap();
    assert_eq!(runs[2].result::<u32>().await.unwrap(), 10);
    assert_eq!(runs[3].result::<u32>().await.unwrap(), 15);
    for waiting in &runs[..2] {
        assert_eq!(waiting.state().await.unwrap(), RunState::Pending);
    }
}

#[tokio::test(start_paused = true)]
async fn a_delayed_run_starts_at_its_time() {
    let world = world();
    let _worker = work(world.worker().register("double", double));
    let run = world.client.start(start(1).after(Duration::from_mins(1))).await.unwrap();
    run.result::<u32>().await.unwrap();
    let record = run.record().await.unwrap().run;
    let waited = record.finished_at.unwrap().saturating_since(record.created_at);
    assert!((Duration::from_mins(1)..Duration::from_secs(61)).contains(&waited), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn bad_names_are_told_by_field() {
    let world = world();
    let bad = [
        ("queue", Start::workflow("w").queue("")),
        ("workflow_type", Start::workflow(" w")),
        ("idempotency_key", Start::workflow("w").idempotency_key("a\n")),
        ("priority", Start::workflow("w").priority(10)),
        ("labels", Start::workflow("w").label("not a key", "")),
    ];
    for (field, start) in bad {
        let error = world.client.start(start).await.unwrap_err().to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
    assert_eq!(world.store.calls("start"), 0);
    assert!(world.client.clone().in_namespace("").is_err());
}

#[tokio::test(start_paused = true)]
async fn mistakes_in_a_worker_are_told_when_it_is_built() {
    let world = world();
    let good = || world.worker().register("double", double);
    assert!(good().build().is_ok());
    assert!(matches!(world.worker().build(), Err(WorkerError::NoWorkflow)));
    let no_queue = kagzi_sdk::Worker::builder(world.client.clone()).register("double", double);
    assert!(matches!(no_queue.build(), Err(WorkerError::NoQueue)));
    let twice = good().register("double", double).build();
    assert!(
        matches!(twice, Err(WorkerError::RegisteredTwice { workflow_type }) if workflow_type == "double")
    );
    let wrong = [
        ("max_concurrent_runs", good().max_concurrent_runs(0)),
        ("lease", good().lease(Duration::ZERO)),
        ("steps_per_claim", good().steps_per_claim(10_001)),
        ("queue", good().queue("")),
        ("worker_id", good().worker_id("")),
        ("workflow_type", good().register("", double)),
    ];
    for (field, builder) in wrong {
        let error = builder.build().unwrap_err().to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_refused_work_ends_with_the_reason() {
    let world = world();
    let mut too_many = world.worker();
    for queue in 0..1_001 {
        too_many = too_many.queue(format!("queue-{queue}"));
    }
    let worker = too_many.register("double", double).build().unwrap();
    let error = worker.run().await.unwrap_err();
    assert!(matches!(&error, WorkerError::Refused(StoreError::InvalidArgument { .. })), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_context_knows_its_run() {
    let world = world();
    let _worker = work(world.worker().register("w", |ctx: Context, (): ()| async move {
        let label = ctx.labels().as_map()["colour"].clone();
        Ok::<_, WorkflowError>((ctx.run_id().to_string(), ctx.attempt(), ctx.queue().to_string(), label))
    }));
    let run = world.client.start(Start::workflow("w").label("colour", "blue")).await.unwrap();
    let expected = (run.run_id().to_string(), 1, "default".to_owned(), "blue".to_owned());
    assert_eq!(run.result::<(String, u32, String, String)>().await.unwrap(), expected);
    let found = RunFilter {
        workflow_type: Some(WorkflowType::new("w").unwrap()),
        labels: run.record().await.unwrap().run.labels,
        ..RunFilter::default()
    };
    until(|| async { world.client.count(&found).await.unwrap() == 1 }).await;
}
