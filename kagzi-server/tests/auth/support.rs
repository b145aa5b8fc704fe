//! A server that asks who calls, and callers it knows.

use std::path::PathBuf;
use std::time::Duration;

use kagzi_proto::v1;
use kagzi_proto::v1::admin_service_client::AdminServiceClient;
use kagzi_proto::v1::worker_service_client::WorkerServiceClient;
use kagzi_proto::v1::workflow_service_client::WorkflowServiceClient;
use kagzi_server::{NewToken, Server, ServerConfig, ServerHandle};
use tempfile::TempDir;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

/// A directory for the files of one server.
pub struct Files(TempDir);

impl Files {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file whole, as those who replace files of a running server do.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let (path, new) = (self.path(name), self.path("new"));
        std::fs::write(&new, content).unwrap();
        std::fs::rename(new, &path).unwrap();
        path
    }
}

/// The part of an access file about one principal, with a token of its own.
pub struct Known {
    pub token: String,
    pub entry: String,
}

/// Somebody with a token and with grants, each as it stands in the file.
pub fn known(name: &str, grants: &[&str]) -> Known {
    let token = NewToken::generate().unwrap();
    let grants: Vec<String> = grants.iter().map(|grant| format!("[[principal.grant]]\n{grant}\n")).collect();
    let grants = grants.concat();
    let digest = token.digest();
    let entry = format!("[[principal]]\nname = \"{name}\"\ntokens = [\"{digest}\"]\n{grants}\n");
    Known { token: token.reveal().to_owned(), entry }
}

/// A configuration over a store in memory, on a free port of the loopback.
pub fn config() -> ServerConfig {
    ServerConfig {
        listen: "127.0.0.1:0".to_owned(),
        store: "memory:".to_owned(),
        auth_reload_interval: Duration::from_millis(5),
        ..ServerConfig::default()
    }
}

pub async fn serve(config: ServerConfig) -> ServerHandle {
    Server::bind(config).await.unwrap().spawn()
}

/// Shows a token with every call, or nothing.
#[derive(Clone)]
pub struct Shows(pub Option<String>);

impl Interceptor for Shows {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(authorization) = &self.0 {
            request.metadata_mut().insert("authorization", authorization.parse().unwrap());
        }
        Ok(request)
    }
}

pub type Way = InterceptedService<Channel, Shows>;

/// One caller's clients.
#[derive(Clone)]
pub struct Caller {
    pub workflows: WorkflowServiceClient<Way>,
    pub workers: WorkerServiceClient<Way>,
    pub admin: AdminServiceClient<Way>,
}

impl Caller {
    pub fn over(channel: &Channel, authorization: Option<String>) -> Self {
        let way = InterceptedService::new(channel.clone(), Shows(authorization));
        Self {
            workflows: WorkflowServiceClient::new(way.clone()),
            workers: WorkerServiceClient::new(way.clone()),
            admin: AdminServiceClient::new(way),
        }
    }

    pub async fn with_token(server: &ServerHandle, token: &str) -> Self {
        Self::over(&channel(server).await, Some(format!("Bearer {token}")))
    }

    /// Asks for something that every role may have.
    pub async fn ask(&mut self) -> Result<(), Status> {
        self.admin.get_server_info(v1::GetServerInfoRequest {}).await.map(drop)
    }
}

pub async fn channel(server: &ServerHandle) -> Channel {
    Channel::from_shared(server.url()).unwrap().connect().await.unwrap()
}

/// The code of a refusal, which has its details.
pub fn code<T>(answer: Result<T, Status>) -> Code {
    match answer {
        Ok(_) => Code::Ok,
        Err(status) => {
            assert!(status.get_details_error_info().is_some(), "no details: {status:?}");
            status.code()
        }
    }
}

pub fn start(namespace: &str, queue: &str, workflow_type: &str) -> v1::StartWorkflowRequest {
    v1::StartWorkflowRequest {
        namespace: namespace.to_owned(),
        queue: queue.to_owned(),
        workflow_type: workflow_type.to_owned(),
        ..Default::default()
    }
}

/// Fails a test that would hang instead of letting it.
pub async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_mins(1), work).await.unwrap()
}
