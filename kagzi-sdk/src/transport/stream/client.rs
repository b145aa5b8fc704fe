//! A client's stream: its starts, and the runs whose ends it waits for, over the connection of its calls.
//!
//! A stream is an easier way, never the only one: where it cannot be opened, the request goes by a call, which
//! tells what is wrong.

use std::sync::Arc;
use std::time::Duration;

use kagzi_core::{RunRecord, StartRun, Started, StoreError};
use kagzi_proto::v1;
use kagzi_proto::v1::stream_workflows_request::Request;
use kagzi_proto::v1::stream_workflows_response::Response;
use prost::Message as _;

use super::super::grpc::{GrpcOptions, Way};
use super::connection::Connection;
use super::line::Line;
use super::protocol::Workflows;
use super::{LARGE_BYTES, of_kind};
use crate::backoff::Backoff;
use crate::wire::{GetRun, IntoWire, read_answer};

/// See the module. Cloning gives the same stream.
#[derive(Clone, Debug)]
pub(in super::super) struct ClientStream {
    way: Way,
    line: Arc<Line<Workflows>>,
    max_message_bytes: usize,
    timeout: Duration,
    connect_timeout: Duration,
}

impl ClientStream {
    pub(in super::super) fn over(way: Way, options: &GrpcOptions) -> Self {
        Self {
            way,
            line: Arc::new(Line::new(Backoff::default())),
            max_message_bytes: options.max_message_bytes,
            timeout: options.timeout,
            connect_timeout: options.connect_timeout,
        }
    }

    /// The stream, or nothing if the request is to go by a call.
    async fn connection(&self) -> Option<Arc<Connection<Workflows>>> {
        let open = || Connection::open(self.way.clone(), None, self.max_message_bytes);
        self.line.connection(self.connect_timeout, open).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "no stream for the client: going by calls");
            None
        })
    }

    /// Starts runs; gives the request back if it is to go by a call.
    pub(in super::super) async fn start(
        &self,
        batch: Vec<StartRun>,
    ) -> Result<Result<Vec<Started>, StoreError>, v1::StartWorkflowsRequest> {
        let message: v1::StartWorkflowsRequest = batch.into_wire();
        if message.encoded_len() > LARGE_BYTES {
            return Err(message);
        }
        let Some(connection) = self.connection().await else { return Err(message) };
        Ok(connection.ask(Request::Start(message), self.timeout, of_kind!(Started)).await)
    }

    /// Waits for a run's end; nothing if that is to go by a call.
    pub(in super::super) async fn get(&self, get: GetRun) -> Option<Result<RunRecord, StoreError>> {
        let connection = self.connection().await?;
        let timeout = self.timeout.saturating_add(get.wait);
        let kind = |response| match response {
            Response::Workflow(message) => Some(Some(message)),
            Response::AskByCall(v1::AskByCall {}) => Some(None),
            _ => None,
        };
        match connection.answer(Request::Get(get.into_wire()), timeout, kind).await {
            Ok(message) => message.map(read_answer),
            Err(error) => Some(Err(error)),
        }
    }
}
