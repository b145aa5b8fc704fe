//! Clients of the SDK on their stream: what breaks on the way costs nothing, and calls do where there is none.

use std::time::Duration;

use kagzi_proto::v1;
use kagzi_proto::v1::stream_workflows_request::Request as Ask;
use kagzi_proto::v1::workflow_service_client::WorkflowServiceClient;
use kagzi_proto::v1::workflow_service_server::{WorkflowService, WorkflowServiceServer};
use kagzi_sdk::{Client, Start};
use kagzi_server::{LoadLimits, ServerConfig};
use kagzi_testkit::Proxy;
use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::yield_now;
use tonic::codegen::BoxStream;
use tonic::transport::Channel;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::support::*;

fn start(input: &str) -> Start {
    Start::workflow("t").queue("q").input(&input).unwrap()
}

#[tokio::test]
async fn a_start_whose_answer_is_lost_with_the_stream_is_sent_again_and_starts_one_run() {
    for backend in BACKENDS {
        let mut server = serve(backend).await;
        let client = Client::connect(server.handle.url()).await.unwrap();
        let proxy = Proxy::to(server.handle.local_addr()).await.unwrap();
        let cut_off = Client::connect(proxy.url()).await.unwrap();
        // The stream is open.
        let first = cut_off.start(start("first")).await.unwrap();
        proxy.mute();
        let starting = tokio::spawn(async move { cut_off.start(start("second")).await });
        let depths = || async { client.queue_depths().await.unwrap()[0].pending };
        soon(async {
            while depths().await < 2 {
                yield_now().await;
            }
        })
        .await;
        proxy.cut();
        let second = soon(starting).await.unwrap().unwrap();
        assert_ne!(second.run_id(), first.run_id());
        assert_eq!(depths().await, 2, "{backend:?}: started once");
        assert_eq!(server.state(&second.run_id().to_string()).await, v1::RunState::Pending);
    }
}

#[tokio::test]
async fn whoever_waits_hears_of_the_end_though_the_stream_breaks_meanwhile() {
    let server = serve(Backend::Sqlite).await;
    let client = Client::connect(server.handle.url()).await.unwrap();
    let proxy = Proxy::to(server.handle.local_addr()).await.unwrap();
    let cut_off = Client::connect(proxy.url()).await.unwrap();
    let run = cut_off.start(start("")).await.unwrap();
    let run_id = run.run_id();
    let waiting = tokio::spawn(async move { run.finished().await.map(|record| record.run) });
    for _ in 0..3 {
        proxy.cut();
        cut_off.queue_depths().await.unwrap();
    }
    client.cancel(run_id, "").await.unwrap();
    assert_eq!(soon(waiting).await.unwrap().unwrap().state, kagzi_sdk::RunState::Cancelled);
}

#[tokio::test]
async fn a_wait_that_is_dropped_gives_its_place_back() {
    let load = LoadLimits { max_waits: 1, ..LoadLimits::default() };
    let server = serve_with(Backend::Memory, ServerConfig { load, ..ServerConfig::default() }).await;
    let client = Client::connect(server.handle.url()).await.unwrap();
    let run = client.start(start("")).await.unwrap();
    for _ in 0..3 {
        let given_up = tokio::time::timeout(Duration::from_millis(20), run.finished()).await;
        assert!(given_up.is_err(), "it does not finish");
    }
    let waiting = tokio::spawn({
        let run = run.clone();
        async move { run.finished().await.map(|record| record.run.state) }
    });
    run.cancel("").await.unwrap();
    assert_eq!(soon(waiting).await.unwrap().unwrap(), kagzi_sdk::RunState::Cancelled);
}

#[tokio::test]
async fn a_long_input_and_a_long_record_go_by_calls() {
    let server = serve(Backend::Memory).await;
    let client = Client::connect(server.handle.url()).await.unwrap();
    let long = "x".repeat(700 * 1024);
    let run = client.start(start(&long)).await.unwrap();
    run.cancel("").await.unwrap();
    let record = run.finished().await.unwrap();
    assert_eq!(record.input.bytes.len(), long.len() + 2);
}

/// What stands between a client and its server: each call goes to the one behind it, and the stream nowhere.
struct Between {
    behind: WorkflowServiceClient<Channel>,
    /// Who hears what is said on streams; nothing for a server of the time before clients had them.
    heard: Option<UnboundedSender<v1::StreamWorkflowsRequest>>,
}

impl Between {
    /// Gives its URL. It ends with the test.
    async fn serve(self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = tonic::transport::Server::builder().add_service(WorkflowServiceServer::new(self));
        tokio::spawn(router.serve_with_incoming(TcpIncoming::from(listener)));
        url
    }
}

macro_rules! calls {
    ($($name:ident($request:ident) -> $response:ident;)*) => {
        #[async_trait]
        impl WorkflowService for Between {
            $(async fn $name(&self, request: Request<v1::$request>) -> Result<Response<v1::$response>, Status> {
                self.behind.clone().$name(request).await
            })*

            type StreamWorkflowsStream = BoxStream<v1::StreamWorkflowsResponse>;

            async fn stream_workflows(
                &self,
                requests: Request<Streaming<v1::StreamWorkflowsRequest>>,
            ) -> Result<Response<Self::StreamWorkflowsStream>, Status> {
                let heard = self.heard.clone();
                let heard = heard.ok_or_else(|| Status::unimplemented("unknown method StreamWorkflows"))?;
                let mut requests = requests.into_inner();
                tokio::spawn(async move {
                    while let Ok(Some(request)) = requests.message().await {
                        heard.send(request).ok();
                    }
                });
                Ok(Response::new(Box::pin(tokio_stream::pending())))
            }
        }
    };
}

calls! {
    start_workflow(StartWorkflowRequest) -> StartWorkflowResponse;
    start_workflows(StartWorkflowsRequest) -> StartWorkflowsResponse;
    get_workflow(GetWorkflowRequest) -> GetWorkflowResponse;
    list_workflows(ListWorkflowsRequest) -> ListWorkflowsResponse;
    count_workflows(CountWorkflowsRequest) -> CountWorkflowsResponse;
    cancel_workflow(CancelWorkflowRequest) -> CancelWorkflowResponse;
    requeue_workflow(RequeueWorkflowRequest) -> RequeueWorkflowResponse;
    list_step_attempts(ListStepAttemptsRequest) -> ListStepAttemptsResponse;
    get_queue_depths(GetQueueDepthsRequest) -> GetQueueDepthsResponse;
    pause_queue(PauseQueueRequest) -> PauseQueueResponse;
    resume_queue(ResumeQueueRequest) -> ResumeQueueResponse;
}

#[tokio::test]
async fn a_server_without_streams_for_clients_is_asked_by_calls() {
    let server = serve(Backend::Memory).await;
    let old = Between { behind: server.workflows.clone(), heard: None };
    let client = Client::connect(old.serve().await).await.unwrap();
    let run = client.start(start("")).await.unwrap();
    run.cancel("").await.unwrap();
    assert_eq!(soon(run.finished()).await.unwrap().run.state, kagzi_sdk::RunState::Cancelled);
}

#[tokio::test]
async fn a_wait_that_is_dropped_is_given_up_and_a_start_that_is_long_is_not_said_on_the_stream() {
    let server = serve(Backend::Memory).await;
    let (sender, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let deaf = Between { behind: server.workflows.clone(), heard: Some(sender) };
    let client = Client::connect(deaf.serve().await).await.unwrap();
    // By a call: it would never be answered otherwise.
    let run = soon(client.start(start(&"x".repeat(700 * 1024)))).await.unwrap();
    assert!(heard.try_recv().is_err());

    let waiting = tokio::spawn(async move { run.finished().await.map(drop) });
    let wait = soon(heard.recv()).await.unwrap();
    assert!(matches!(wait.request, Some(Ask::Get(_))), "{wait:?}");
    waiting.abort();
    let given_up = soon(heard.recv()).await.unwrap();
    assert!(matches!(given_up.request, Some(Ask::GiveUp(_))), "{given_up:?}");
    assert_eq!(given_up.id, wait.id);

    let starting = tokio::spawn(async move { client.start(start("short")).await.map(drop) });
    let said = soon(heard.recv()).await.unwrap();
    assert!(matches!(said.request, Some(Ask::Start(_))), "{said:?}");
    starting.abort();
}
