//! A server, its clients, and requests that are complete.

use std::time::Duration;

use kagzi_proto::v1;
use kagzi_proto::v1::admin_service_client::AdminServiceClient;
use kagzi_proto::v1::worker_service_client::WorkerServiceClient;
use kagzi_proto::v1::workflow_service_client::WorkflowServiceClient;
use kagzi_server::{Server, ServerConfig, ServerHandle};
use kagzi_testkit::TestDatabase;
use tempfile::TempDir;
use tonic::Status;
use tonic::transport::Channel;
use tonic_types::{ErrorInfo, StatusExt as _};

/// A server in this process.
pub struct TestServer {
    pub handle: ServerHandle,
    pub channel: Channel,
    pub workflows: WorkflowServiceClient<Channel>,
    pub workers: WorkerServiceClient<Channel>,
    pub admin: AdminServiceClient<Channel>,
    /// Holds the database, until the test ends.
    _place: Place,
}

/// The stores that every test of a call runs over.
#[derive(Clone, Copy, Debug)]
pub enum Backend {
    Memory,
    Sqlite,
    Postgres,
}

pub const BACKENDS: [Backend; 3] = [Backend::Memory, Backend::Sqlite, Backend::Postgres];

/// Where a store keeps its rows.
enum Place {
    Nowhere,
    Directory(TempDir),
    Database(TestDatabase),
}

impl Place {
    async fn of(backend: Backend) -> Self {
        match backend {
            Backend::Memory => Self::Nowhere,
            Backend::Sqlite => Self::Directory(tempfile::tempdir().unwrap()),
            Backend::Postgres => {
                let server = kagzi_testkit::postgres().await.unwrap();
                Self::Database(server.fresh_database().await.unwrap())
            }
        }
    }

    fn url(&self) -> String {
        match self {
            Self::Nowhere => "memory:".to_owned(),
            Self::Directory(directory) => format!("sqlite://{}/kagzi.db", directory.path().display()),
            Self::Database(database) => database.url(),
        }
    }
}

pub async fn serve(backend: Backend) -> TestServer {
    serve_with(backend, ServerConfig::default()).await
}

pub async fn serve_with(backend: Backend, config: ServerConfig) -> TestServer {
    let place = Place::of(backend).await;
    let config = ServerConfig { listen: "127.0.0.1:0".to_owned(), store: place.url(), ..config };
    let handle = Server::bind(config).await.unwrap().spawn();
    let channel = Channel::from_shared(handle.url()).unwrap().connect().await.unwrap();
    TestServer {
        workflows: WorkflowServiceClient::new(channel.clone()),
        workers: WorkerServiceClient::new(channel.clone()),
        admin: AdminServiceClient::new(channel.clone()),
        channel,
        handle,
        _place: place,
    }
}

impl TestServer {
    /// Starts a run of type `t` in queue `q`.
    pub async fn start(&mut self) -> String {
        self.workflows.start_workflow(start()).await.unwrap().into_inner().run_id
    }

    /// Claims one run that is due.
    pub async fn claim(&mut self) -> v1::ClaimedRun {
        let mut runs = self.workers.poll_activity(poll()).await.unwrap().into_inner().runs;
        assert_eq!(runs.len(), 1);
        runs.remove(0)
    }

    pub async fn get(&mut self, run_id: &str) -> v1::RunRecord {
        let get =
            v1::GetWorkflowRequest { namespace: "default".to_owned(), run_id: run_id.to_owned(), wait: None };
        self.workflows.get_workflow(get).await.unwrap().into_inner().record.unwrap()
    }

    pub async fn state(&mut self, run_id: &str) -> v1::RunState {
        self.get(run_id).await.run.unwrap().state()
    }
}

pub fn start() -> v1::StartWorkflowRequest {
    v1::StartWorkflowRequest {
        namespace: "default".to_owned(),
        queue: "q".to_owned(),
        workflow_type: "t".to_owned(),
        input: Some(payload(b"in")),
        ..Default::default()
    }
}

pub fn poll() -> v1::PollActivityRequest {
    v1::PollActivityRequest {
        namespace: "default".to_owned(),
        queues: vec!["q".to_owned()],
        worker_id: "w".to_owned(),
        ..Default::default()
    }
}

pub fn lease(run: &v1::ClaimedRun) -> Option<v1::Lease> {
    run.lease.clone().unwrap().lease
}

pub fn payload(data: &'static [u8]) -> v1::Payload {
    v1::Payload { content_type: "text/plain".to_owned(), data: data.into() }
}

pub fn next(step_id: &str, position: u32) -> v1::NextStep {
    v1::NextStep { step_id: step_id.to_owned(), position, ..Default::default() }
}

pub fn failure(kind: v1::FailureKind) -> v1::Failure {
    let (code, message) = ("broken".to_owned(), "it broke".to_owned());
    v1::Failure { kind: kind.into(), code, message, details: Some(payload(b"\0\xff")) }
}

pub fn seconds(seconds: i64) -> kagzi_proto::Duration {
    kagzi_proto::Duration { seconds, nanos: 0 }
}

pub fn info(status: &Status) -> ErrorInfo {
    status.get_details_error_info().unwrap_or_else(|| panic!("no details: {status:?}"))
}

/// The field that a status names as being at fault.
pub fn field(status: &Status) -> String {
    let violations = status.get_details_bad_request().unwrap_or_else(|| panic!("no field: {status:?}"));
    violations.field_violations[0].field.clone()
}

/// Fails a test that would hang instead of letting it.
pub async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_mins(1), work).await.unwrap()
}
