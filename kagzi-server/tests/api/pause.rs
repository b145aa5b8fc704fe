//! A queue is paused, drained and resumed beside two workers, through a server over every store.

use std::sync::Arc;

use kagzi_proto::v1;
use kagzi_sdk::{
    Client, Context, QueueDepth, QueueOutcome, RunState, Start, StepError, Worker, WorkflowError,
};
use tokio::sync::Semaphore;

use crate::support::*;

/// What a test sees of the workers: who has begun a step, and who may end it.
#[derive(Clone)]
struct Gate {
    begun: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

async fn work(ctx: Context, number: u32, gate: Gate) -> Result<u32, WorkflowError> {
    ctx.step("pass", || async {
        gate.begun.add_permits(1);
        gate.open.acquire().await.map_err(|e| StepError::retryable("closed", e.to_string()))?.forget();
        Ok(number)
    })
    .await
}

async fn depth(client: &Client) -> QueueDepth {
    let mut depths = client.queue_depths().await.unwrap();
    assert_eq!(depths.len(), 1, "{depths:?}");
    depths.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_queue_drains_keeps_what_is_started_and_goes_on_when_it_is_resumed() {
    for backend in BACKENDS {
        let mut server = serve(backend).await;
        let client = Client::connect(server.handle.url()).await.unwrap();
        let gate = Gate { begun: Arc::new(Semaphore::new(0)), open: Arc::new(Semaphore::new(0)) };
        let workers: Vec<_> = (0..2)
            .map(|_| {
                let gate = gate.clone();
                let worker = Worker::builder(client.clone()).queue("default").max_concurrent_runs(1);
                let worker = worker.register("work", move |ctx, number: u32| work(ctx, number, gate.clone()));
                tokio::spawn(worker.build().unwrap().run())
            })
            .collect();
        let start = |number: u32| client.start(Start::workflow("work").input(&number).unwrap());

        let mut runs = vec![start(0).await.unwrap(), start(1).await.unwrap()];
        soon(gate.begun.acquire_many(2)).await.unwrap().forget();
        assert_eq!(client.pause_queue("default", "a test").await.unwrap(), QueueOutcome::Changed);
        for number in 2..20 {
            runs.push(start(number).await.unwrap());
        }
        // The two that are held end, and their workers have room for others, which they do not get.
        gate.open.add_permits(2);
        for run in &runs[..2] {
            soon(run.finished()).await.unwrap();
        }
        let look = v1::PollActivityRequest { queues: vec!["default".to_owned()], ..poll() };
        let found = server.workers.poll_activity(look).await.unwrap().into_inner().runs;
        assert!(found.is_empty(), "{backend:?}: nor does anybody else");
        let drained = depth(&client).await;
        assert_eq!((drained.running, drained.pending), (0, 18), "{backend:?}");
        assert_eq!(drained.pause.unwrap().reason, "a test", "{backend:?}");
        assert_eq!(gate.begun.available_permits(), 0, "{backend:?}: nobody began anything");

        gate.open.add_permits(18);
        assert_eq!(client.resume_queue("default").await.unwrap(), QueueOutcome::Changed);
        for (number, run) in runs.iter().enumerate() {
            let record = soon(run.finished()).await.unwrap();
            assert_eq!((record.run.state, record.run.claims), (RunState::Completed, 1), "{backend:?}");
            let attempts = client.attempts(run.run_id()).await.unwrap();
            assert_eq!(attempts.len(), 1, "{backend:?}: run {number} was worked on once");
        }
        assert!(
            client.queue_depths().await.unwrap().is_empty(),
            "{backend:?}: nothing is left, and it is open"
        );
        workers.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

#[tokio::test]
async fn what_cannot_be_done_to_a_queue_is_refused_by_its_field() {
    for backend in BACKENDS {
        let mut server = serve(backend).await;
        let pause = |queue: &str, reason: String| v1::PauseQueueRequest {
            namespace: "default".to_owned(),
            queue: queue.to_owned(),
            reason,
            ..Default::default()
        };
        for (request, expected) in [
            (pause("", String::new()), "queue"),
            (pause(" q", String::new()), "queue"),
            (pause("q", "x".repeat(513)), "reason"),
            (pause("q", "two\nlines".to_owned()), "reason"),
        ] {
            let refused = server.workflows.pause_queue(request).await.unwrap_err();
            assert_eq!((refused.code(), field(&refused).as_str()), (tonic::Code::InvalidArgument, expected));
        }
        let operation_id = kagzi_core::OperationId::generate().to_string();
        let named = v1::PauseQueueRequest { operation_id: operation_id.clone(), ..pause("q", String::new()) };
        let first = server.workflows.pause_queue(named.clone()).await.unwrap().into_inner();
        assert_eq!(server.workflows.pause_queue(named).await.unwrap().into_inner(), first, "sent again");
        let resume =
            v1::ResumeQueueRequest { namespace: "default".to_owned(), queue: "q".to_owned(), operation_id };
        let refused = server.workflows.resume_queue(resume).await.unwrap_err();
        assert_eq!(
            (refused.code(), info(&refused).reason.as_str()),
            (tonic::Code::AlreadyExists, "OPERATION_CONFLICT")
        );
        assert_eq!(info(&refused).metadata["queue"], "q");
    }
}
