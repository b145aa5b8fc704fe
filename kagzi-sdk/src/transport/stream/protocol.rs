//! The calls that are streams: how their messages carry a request, an answer, a refusal.

use futures::Stream;
use futures::future::BoxFuture;
use kagzi_proto::v1;
use kagzi_proto::v1::worker_service_client::WorkerServiceClient;
use kagzi_proto::v1::workflow_service_client::WorkflowServiceClient;
use kagzi_proto::v1::{stream_work_request, stream_work_response};
use kagzi_proto::v1::{stream_workflows_request, stream_workflows_response};
use tonic::{Response, Status, Streaming};

use super::super::grpc::Way;

/// One streaming call.
pub(super) trait Protocol: Send + Sync + 'static {
    /// What is asked.
    type Ask: Send + 'static;
    /// What is answered.
    type Answer: Send + 'static;
    /// A request as it is sent.
    type Request: Send + 'static;
    /// An answer as it comes.
    type Response: Send + 'static;

    /// Whose stream it is, for those who are told that it broke.
    const NAME: &'static str;

    /// Makes the call; ready when the server has accepted it.
    fn call(
        way: Way,
        max_message_bytes: usize,
        requests: impl Stream<Item = Self::Request> + Send + 'static,
    ) -> BoxFuture<'static, Result<Response<Streaming<Self::Response>>, Status>>;

    /// The request of this number, as part of this trace.
    fn write(id: u64, ask: Self::Ask, trace_context: Option<String>) -> Self::Request;

    /// Which request this answers, and how; nothing if this version does not know that kind of answer.
    fn read(response: Self::Response) -> (u64, Option<Self::Answer>);

    /// The refusal, if it is one.
    fn refusal(answer: &Self::Answer) -> Option<&v1::ItemError>;

    /// What tells the server that nobody waits any more for the answer to a request. Nothing, the default, if
    /// each request is soon done anyway.
    fn give_up() -> Option<Self::Ask> {
        None
    }
}

/// `StreamWork`.
#[derive(Debug)]
pub(super) struct Work;

impl Protocol for Work {
    type Ask = stream_work_request::Request;
    type Answer = stream_work_response::Response;
    type Request = v1::StreamWorkRequest;
    type Response = v1::StreamWorkResponse;

    const NAME: &'static str = "the worker's stream";

    fn call(
        way: Way,
        max_message_bytes: usize,
        requests: impl Stream<Item = Self::Request> + Send + 'static,
    ) -> BoxFuture<'static, Result<Response<Streaming<Self::Response>>, Status>> {
        let mut client = WorkerServiceClient::new(way).max_decoding_message_size(max_message_bytes);
        Box::pin(async move { client.stream_work(requests).await })
    }

    fn write(id: u64, ask: Self::Ask, trace_context: Option<String>) -> Self::Request {
        v1::StreamWorkRequest { id, trace_context, request: Some(ask) }
    }

    fn read(response: Self::Response) -> (u64, Option<Self::Answer>) {
        (response.id, response.response)
    }

    fn refusal(answer: &Self::Answer) -> Option<&v1::ItemError> {
        match answer {
            stream_work_response::Response::Refused(item) => Some(item),
            _ => None,
        }
    }
}

/// `StreamWorkflows`.
#[derive(Debug)]
pub(super) struct Workflows;

impl Protocol for Workflows {
    type Ask = stream_workflows_request::Request;
    type Answer = stream_workflows_response::Response;
    type Request = v1::StreamWorkflowsRequest;
    type Response = v1::StreamWorkflowsResponse;

    const NAME: &'static str = "the client's stream";

    fn call(
        way: Way,
        max_message_bytes: usize,
        requests: impl Stream<Item = Self::Request> + Send + 'static,
    ) -> BoxFuture<'static, Result<Response<Streaming<Self::Response>>, Status>> {
        let mut client = WorkflowServiceClient::new(way).max_decoding_message_size(max_message_bytes);
        Box::pin(async move { client.stream_workflows(requests).await })
    }

    fn write(id: u64, ask: Self::Ask, trace_context: Option<String>) -> Self::Request {
        v1::StreamWorkflowsRequest { id, trace_context, request: Some(ask) }
    }

    fn read(response: Self::Response) -> (u64, Option<Self::Answer>) {
        (response.id, response.response)
    }

    fn refusal(answer: &Self::Answer) -> Option<&v1::ItemError> {
        match answer {
            stream_workflows_response::Response::Refused(item) => Some(item),
            _ => None,
        }
    }

    fn give_up() -> Option<Self::Ask> {
        Some(stream_workflows_request::Request::GiveUp(v1::GiveUp {}))
    }
}
