//! Workers of the SDK on their stream: what breaks on the way costs nothing.

use std::sync::Arc;
use std::time::Duration;

use kagzi_proto::v1;
use kagzi_proto::v1::worker_service_client::WorkerServiceClient;
use kagzi_proto::v1::worker_service_server::{WorkerService, WorkerServiceServer};
use kagzi_sdk::{
    Backoff, Client, ClientError, Context, RunState, Start, Worker, WorkerBuilder, WorkflowError,
};
use kagzi_testkit::Proxy;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::yield_now;
use tonic::codegen::BoxStream;
use tonic::transport::Channel;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::support::*;

/// A step `a` that waits until it may go on, and a step `b`.
#[derive(Clone)]
struct Gated {
    began: Arc<Semaphore>,
    go: Arc<Semaphore>,
}

impl Gated {
    fn new() -> Self {
        Self { began: Arc::new(Semaphore::new(0)), go: Arc::new(Semaphore::new(0)) }
    }

    async fn run(self, ctx: Context) -> Result<u32, WorkflowError> {
        let a = ctx
            .step("a", || async {
                self.began.add_permits(1);
                self.go.acquire().await.unwrap().forget();
                Ok(1)
            })
            .await?;
        ctx.step("b", || async move { Ok(a + 1) }).await
    }
}

fn worker(client: Client, gated: &Gated) -> WorkerBuilder {
    let gated = gated.clone();
    Worker::builder(client)
        .queue("q")
        .backoff(Backoff { first: Duration::from_millis(1), max: Duration::from_millis(20) })
        .register("t", move |ctx: Context, (): ()| gated.clone().run(ctx))
}

async fn history(client: &Client, run: &kagzi_sdk::RunHandle) -> Vec<String> {
    let attempts = client.attempts(run.run_id()).await.unwrap();
    attempts.iter().map(|a| format!("{}/{} {}", a.step_id, a.attempt, a.state)).collect()
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_with_the_stream_is_delivered_again_and_done_once() {
    for backend in BACKENDS {
        let server = serve(backend).await;
        let client = Client::connect(server.handle.url()).await.unwrap();
        let proxy = Proxy::to(server.handle.local_addr()).await.unwrap();
        let gated = Gated::new();
        let worker = worker(Client::connect(proxy.url()).await.unwrap(), &gated).build().unwrap();
        let stats = worker.stats();
        let working = tokio::spawn(worker.run());
        let run = client.start(Start::workflow("t").queue("q")).await.unwrap();
        soon(gated.began.acquire()).await.unwrap().forget();

        proxy.mute();
        gated.go.add_permits(1);
        soon(async {
            while !history(&client, &run).await.iter().any(|line| line == "a/1 COMPLETED") {
                yield_now().await;
            }
        })
        .await;
        proxy.cut();

        assert_eq!(soon(run.result::<u32>()).await.unwrap(), 2, "{backend:?}");
        assert_eq!(history(&client, &run).await, ["a/1 COMPLETED", "b/1 COMPLETED"], "{backend:?}");
        assert_eq!(run.record().await.unwrap().run.claims, 1, "the same execution went on");
        assert!(stats.now().calls_failed > 0, "the break was noticed");
        working.abort();
    }
}

#[tokio::test]
async fn a_worker_whose_stream_breaks_again_and_again_finishes_everything_once() {
    let server = serve(Backend::Sqlite).await;
    let client = Client::connect(server.handle.url()).await.unwrap();
    let proxy = Proxy::to(server.handle.local_addr()).await.unwrap();
    let gated = Gated::new();
    let worker = worker(Client::connect(proxy.url()).await.unwrap(), &gated);
    let working = tokio::spawn(worker.build().unwrap().run());
    let mut runs = Vec::new();
    for _ in 0..40 {
        runs.push(client.start(Start::workflow("t").queue("q")).await.unwrap());
    }
    for run in 0..runs.len() {
        soon(gated.began.acquire()).await.unwrap().forget();
        if run % 8 == 0 {
            proxy.cut();
        }
        gated.go.add_permits(1);
    }
    for run in &runs {
        assert_eq!(soon(run.result::<u32>()).await.unwrap(), 2);
        assert_eq!(history(&client, run).await, ["a/1 COMPLETED", "b/1 COMPLETED"]);
    }
    working.abort();
}

#[tokio::test]
async fn a_drained_worker_gives_back_what_it_began_and_takes_nothing_more() {
    let server = serve(Backend::Sqlite).await;
    let client = Client::connect(server.handle.url()).await.unwrap();
    let gated = Gated::new();
    let worker = worker(client.clone(), &gated).build().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let draining = tokio::spawn(worker.run_until(async { stopped.await.unwrap() }));
    let run = client.start(Start::workflow("t").queue("q")).await.unwrap();
    soon(gated.began.acquire()).await.unwrap().forget();
    stop.send(()).unwrap();
    gated.go.add_permits(1);
    soon(draining).await.unwrap().unwrap();
    assert_eq!(run.state().await.unwrap(), RunState::Pending);
    assert!(history(&client, &run).await.contains(&"a/1 COMPLETED".to_owned()));
    let other = client.start(Start::workflow("t").queue("q")).await.unwrap();
    // Whoever still waited for work would have taken it before this answer.
    assert_eq!(client.queue_depths().await.unwrap()[0].pending, 2);
    assert_eq!(other.state().await.unwrap(), RunState::Pending);
}

#[tokio::test]
async fn an_output_too_long_for_any_message_fails_its_run_and_breaks_nothing() {
    let server = serve(Backend::Memory).await;
    let client = Client::connect(server.handle.url()).await.unwrap();
    let large = |ctx: Context, bytes: usize| async move {
        let text = ctx.step("large", || async { Ok("x".repeat(bytes)) }).await?;
        Ok::<_, WorkflowError>(text.len())
    };
    let worker = Worker::builder(client.clone()).queue("q").register("t", large).build().unwrap();
    let stats = worker.stats();
    let working = tokio::spawn(worker.run());
    let sized = |bytes: usize| client.start(Start::workflow("t").queue("q").input(&bytes).unwrap());
    let (huge, large) = (sized(17 << 20).await.unwrap(), sized(1 << 20).await.unwrap());
    let ClientError::WorkflowFailed(failed) = soon(huge.result::<usize>()).await.unwrap_err() else {
        panic!()
    };
    assert_eq!(failed.code, "too_large");
    assert!(stats.now().calls_failed <= 2, "refused, with the run's output and without it");
    assert_eq!(soon(large.result::<usize>()).await.unwrap(), 1 << 20);
    working.abort();
}

/// A server of the time before streams: each call goes to the one behind it.
struct NoStreams(WorkerServiceClient<Channel>);

macro_rules! calls {
    ($($name:ident($request:ident) -> $response:ident;)*) => {
        #[async_trait]
        impl WorkerService for NoStreams {
            $(async fn $name(&self, request: Request<v1::$request>) -> Result<Response<v1::$response>, Status> {
                self.0.clone().$name(request).await
            })*

            type StreamWorkStream = BoxStream<v1::StreamWorkResponse>;

            async fn stream_work(
                &self,
                _: Request<Streaming<v1::StreamWorkRequest>>,
            ) -> Result<Response<Self::StreamWorkStream>, Status> {
                Err(Status::unimplemented("unknown method StreamWork"))
            }
        }
    };
}

calls! {
    poll_activity(PollActivityRequest) -> PollActivityResponse;
    record_heartbeat(RecordHeartbeatRequest) -> RecordHeartbeatResponse;
    begin_step(BeginStepRequest) -> BeginStepResponse;
    complete_step(CompleteStepRequest) -> CompleteStepResponse;
    fail_step(FailStepRequest) -> FailStepResponse;
    schedule_sleep(ScheduleSleepRequest) -> ScheduleSleepResponse;
    complete_workflow(CompleteWorkflowRequest) -> CompleteWorkflowResponse;
    fail_workflow(FailWorkflowRequest) -> FailWorkflowResponse;
    release_workflow(ReleaseWorkflowRequest) -> ReleaseWorkflowResponse;
}

#[tokio::test]
async fn a_server_without_streams_is_worked_with_by_calls() {
    let server = serve(Backend::Memory).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let old = WorkerServiceServer::new(NoStreams(server.workers.clone()));
    let serving = tokio::spawn(
        tonic::transport::Server::builder().add_service(old).serve_with_incoming(TcpIncoming::from(listener)),
    );
    let gated = Gated::new();
    gated.go.add_permits(1);
    let worker = worker(Client::connect(url).await.unwrap(), &gated).build().unwrap();
    let stats = worker.stats();
    let working = tokio::spawn(worker.run());
    let client = Client::connect(server.handle.url()).await.unwrap();
    let run = client.start(Start::workflow("t").queue("q")).await.unwrap();
    assert_eq!(soon(run.result::<u32>()).await.unwrap(), 2);
    assert_eq!(stats.now().calls_failed, 0);
    working.abort();
    serving.abort();
}
