//! Binding, health, reflection, and the end.

use std::time::Duration;

use kagzi_core::Topic;
use kagzi_proto::v1;
use kagzi_server::{Server, ServerConfig, ServerError};
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::*;

#[tokio::test]
async fn an_address_in_use_is_named_with_the_remedy() {
    let server = serve(Backend::Memory).await;
    let config = ServerConfig {
        listen: server.handle.local_addr().to_string(),
        store: "memory:".to_owned(),
        ..ServerConfig::default()
    };
    let error = Server::bind(config).await.unwrap_err();
    assert!(matches!(error, ServerError::AddressInUse { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&server.handle.local_addr().to_string()) && text.contains("--listen"), "{text}");
}

#[tokio::test]
async fn an_address_that_is_none_is_named_with_the_remedy() {
    let config =
        ServerConfig { listen: "nowhere".to_owned(), store: "memory:".to_owned(), ..ServerConfig::default() };
    let text = Server::bind(config).await.unwrap_err().to_string();
    assert!(text.contains("nowhere") && text.contains("listen: expected HOST:PORT"), "{text}");
}

#[tokio::test]
async fn a_shutdown_answers_polls_at_once_with_nothing() {
    for backend in BACKENDS {
        let server = serve(backend).await;
        let mut polling = server.workers.clone();
        let long = v1::PollActivityRequest { wait: Some(seconds(3600)), ..poll() };
        let call = tokio::spawn(async move { polling.poll_activity(long).await });
        soon(async {
            while !server.handle.store().wake_hub().anyone_waits(|topic| matches!(topic, Topic::Queue(..))) {
                tokio::task::yield_now().await;
            }
        })
        .await;
        soon(server.handle.shutdown()).await.unwrap();
        assert!(soon(call).await.unwrap().unwrap().into_inner().runs.is_empty());
    }
}

#[tokio::test]
async fn what_was_started_before_a_shutdown_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let config = ServerConfig {
        listen: "127.0.0.1:0".to_owned(),
        store: format!("sqlite://{}/kagzi.db", directory.path().display()),
        ..ServerConfig::default()
    };
    let connect = async |url: String| {
        let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
        v1::workflow_service_client::WorkflowServiceClient::new(channel)
    };
    let first = Server::bind(config.clone()).await.unwrap().spawn();
    let started = connect(first.url()).await.start_workflow(start()).await.unwrap().into_inner();
    soon(first.shutdown()).await.unwrap();
    let second = Server::bind(config).await.unwrap().spawn();
    let get = v1::GetWorkflowRequest {
        namespace: "default".to_owned(),
        run_id: started.run_id.clone(),
        wait: None,
    };
    let record = connect(second.url()).await.get_workflow(get).await.unwrap().into_inner().record.unwrap();
    assert_eq!(record.run.unwrap().run_id, started.run_id);
}

#[tokio::test]
async fn health_follows_the_store() {
    let config = ServerConfig { health_interval: Duration::from_millis(1), ..ServerConfig::default() };
    let server = serve_with(Backend::Memory, config).await;
    let mut health = HealthClient::new(server.channel.clone());
    for service in ["", "kagzi.v1.WorkflowService", "kagzi.v1.WorkerService", "kagzi.v1.AdminService"] {
        let check = HealthCheckRequest { service: service.to_owned() };
        let mut updates = health.watch(check).await.unwrap().into_inner();
        soon(async { while updates.message().await.unwrap().unwrap().status() != ServingStatus::Serving {} })
            .await;
    }
    let mut updates = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    // A closed store answers UNAVAILABLE, as one that cannot be reached.
    server.handle.store().close().await.unwrap();
    soon(async { while updates.message().await.unwrap().unwrap().status() != ServingStatus::NotServing {} })
        .await;
}

#[tokio::test]
async fn reflection_lists_the_services() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let server = serve(Backend::Memory).await;
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let requests = tokio_stream::iter([list]);
    let mut client = ServerReflectionClient::new(server.channel.clone());
    let mut answers = client.server_reflection_info(requests).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(listed) = answer else { panic!("{answer:?}") };
    let names: Vec<_> = listed.service.into_iter().map(|service| service.name).collect();
    for expected in [
        "kagzi.v1.WorkflowService",
        "kagzi.v1.WorkerService",
        "kagzi.v1.AdminService",
        "grpc.health.v1.Health",
    ] {
        assert!(names.iter().any(|name| name == expected), "{names:?}");
    }
}
