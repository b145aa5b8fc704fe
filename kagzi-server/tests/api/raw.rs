//! Requests that no generated client sends: the bytes of the call are made by hand.

use kagzi_proto::v1;
use kagzi_server::ServerConfig;
use tonic::codegen::{Service as _, http};
use tonic::service::AxumBody;
use tonic::{Code, Status};

use crate::support::*;

/// Calls with exactly this body, frame header and all, and gives the status that comes back.
async fn call(server: &TestServer, method: &str, body: Vec<u8>) -> Status {
    let request = http::Request::post(format!("{}/kagzi.v1.{method}", server.handle.url()))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(tonic::body::Body::new(AxumBody::from(body)))
        .unwrap();
    let mut channel = server.channel.clone();
    std::future::poll_fn(|context| channel.poll_ready(context)).await.unwrap();
    let response = soon(channel.call(request)).await.unwrap();
    Status::from_header_map(response.headers()).unwrap()
}

/// A message with the header of its frame: not compressed, and so long.
fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], &length[..], message].concat()
}

fn assert_unreadable(refused: &Status, expected: &str) {
    assert_eq!((refused.code(), field(refused).as_str()), (Code::InvalidArgument, expected), "{refused:?}");
    let info = info(refused);
    assert_eq!((info.domain.as_str(), info.reason.as_str()), ("kagzi", "INVALID_ARGUMENT"));
    assert!(info.metadata["expected"].contains("generate the client"), "{info:?}");
    assert!(!info.metadata["got"].is_empty());
}

#[tokio::test]
async fn unreadable_messages_are_refused_with_the_field_and_the_remedy() {
    let server = serve(Backend::Memory).await;
    let start = "WorkflowService/StartWorkflow";
    // Field 2 is the queue; a byte that is no UTF-8.
    let refused = call(&server, start, framed(&[0x12, 1, 0xff])).await;
    assert_unreadable(&refused, "queue");
    assert!(refused.message().contains("StartWorkflowRequest.queue"), "{refused:?}");
    assert!(refused.message().contains("UTF-8"), "{refused:?}");
    // The same inside the lease of a begin.
    let refused = call(&server, "WorkerService/BeginStep", framed(&[0x0a, 3, 0x0a, 1, 0xff])).await;
    assert_unreadable(&refused, "lease.namespace");
    // A queue as a number; a length beyond the end; no field at all.
    assert_unreadable(&call(&server, start, framed(&[0x10, 1])).await, "queue");
    assert_unreadable(&call(&server, start, framed(&[0x12, 100, b'q'])).await, "queue");
    assert_unreadable(&call(&server, start, framed(&[0xff; 12])).await, "request");
}

#[tokio::test]
async fn broken_frames_are_refused_like_any_bad_request() {
    let server = serve(Backend::Memory).await;
    let start = "WorkflowService/StartWorkflow";
    let cut_off = framed(&[0x12, 1, b'q'])[..6].to_vec();
    let compressed = vec![1, 0, 0, 0, 0];
    let of_no_kind = vec![7, 0, 0, 0, 0];
    for body in [Vec::new(), cut_off, compressed, of_no_kind] {
        assert_unreadable(&call(&server, start, body).await, "request");
    }
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_with_both_sizes() {
    let mut server = serve(Backend::Memory).await;
    let limit = ServerConfig::default().max_message_bytes;
    // The announcement alone is enough: nobody waits for 4 GiB, or makes room for them.
    let announced = vec![0, 0xff, 0xff, 0xff, 0xff];
    let alone = call(&server, "WorkflowService/StartWorkflow", announced).await;
    let huge = v1::Payload { data: vec![0; limit].into(), ..Default::default() };
    let sent = server.workflows.start_workflow(v1::StartWorkflowRequest { input: Some(huge), ..start() });
    for (refused, at_least) in [(alone, u32::MAX as usize), (sent.await.unwrap_err(), limit)] {
        assert_eq!((refused.code(), field(&refused).as_str()), (Code::InvalidArgument, "request"));
        let info = info(&refused);
        assert_eq!(info.reason, "TOO_LARGE");
        assert_eq!(info.metadata["limit_bytes"], limit.to_string());
        assert!(info.metadata["actual_bytes"].parse::<usize>().unwrap() >= at_least, "{info:?}");
        assert!(refused.message().contains("pass a reference"), "{refused:?}");
    }
}
