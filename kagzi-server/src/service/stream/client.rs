//! A client's stream: runs that it starts, and runs whose ends it waits for.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::Stream;
use futures::future::BoxFuture;
use kagzi_proto::v1;
use kagzi_proto::v1::stream_workflows_request::Request;
use kagzi_proto::v1::stream_workflows_response::Response;
use kagzi_sdk::wire::error::Refusal;
use kagzi_sdk::wire::{FromWire as _, GetRun, IntoWire as _};
use prost::Message as _;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::super::Services;
use super::super::told::Origin;
use super::{Answers, Room, Talk, misplaced};
use crate::auth::Caller;
use crate::metrics::{Metrics, Shown};

/// Answers that are longer than this are left to a call: they would hold up those behind them, and one that the
/// client refuses for its length would end the stream.
const LARGE_BYTES: usize = 512 * 1024;

/// A client, and what it waits for.
#[derive(Default)]
struct Client {
    /// Ends every wait.
    unheard: CancellationToken,
    waits: Waits,
}

/// The waits under way, by the ids of their requests.
#[derive(Clone, Default)]
struct Waits(Arc<Mutex<HashMap<u64, CancellationToken>>>);

/// A wait under way, until it is dropped.
struct Wait {
    waits: Waits,
    id: u64,
    given_up: CancellationToken,
}

impl Services {
    /// Opens a client's stream and serves it until it ends.
    pub(in super::super) fn open_client_stream<S>(
        &self,
        origin: Origin,
        requests: S,
    ) -> Answers<v1::StreamWorkflowsResponse>
    where
        S: Stream<Item = Result<v1::StreamWorkflowsRequest, Status>> + Send + Unpin + 'static,
    {
        self.talk(origin, requests, Client::default())
    }

    async fn start_streamed(
        &self,
        origin: &Origin,
        starts: v1::StartWorkflowsRequest,
    ) -> Result<Response, Refusal> {
        let read = Vec::from_wire(starts);
        let started = self.reply(origin, "StartWorkflows", read, |starts| self.start_many(starts)).await?;
        Ok(Response::Started(started.into_wire()))
    }

    async fn get_streamed(&self, origin: &Origin, get: v1::GetWorkflowRequest) -> Result<Response, Refusal> {
        let read = GetRun::from_wire(get);
        let record = self.reply(origin, "GetWorkflow", read, |get| self.get_run(get)).await?;
        let workflow: v1::GetWorkflowResponse = record.into_wire();
        Ok(if workflow.encoded_len() > LARGE_BYTES {
            Response::AskByCall(v1::AskByCall {})
        } else {
            Response::Workflow(workflow)
        })
    }
}

impl Talk for Client {
    type Request = v1::StreamWorkflowsRequest;
    type Answer = v1::StreamWorkflowsResponse;
    type Response = v1::StreamWorkflowsResponse;

    fn count(metrics: &Metrics) -> Shown {
        metrics.client_stream()
    }

    fn begin(
        &mut self,
        services: &Services,
        caller: &Caller,
        message: v1::StreamWorkflowsRequest,
        room: Room<Self>,
    ) -> BoxFuture<'static, ()> {
        let (services, id) = (services.clone(), message.id);
        let origin = Origin::of(caller.clone(), message.trace_context);
        match message.request {
            Some(Request::Start(starts)) => Box::pin(async move {
                let answer = services.start_streamed(&origin, starts).await;
                room.send(response(id, answer));
            }),
            Some(Request::Get(get)) => {
                let wait = self.waits.begin(id);
                let unheard = self.unheard.clone();
                // Others may answer meanwhile.
                let answers = room.release();
                Box::pin(async move {
                    let answer = tokio::select! {
                        answer = services.get_streamed(&origin, get) => answer,
                        () = wait.given_up.cancelled() => return,
                        () = unheard.cancelled() => return,
                    };
                    answers.send(response(id, answer)).await;
                })
            }
            Some(Request::GiveUp(v1::GiveUp {})) => {
                self.waits.give_up(id);
                Box::pin(std::future::ready(()))
            }
            None => {
                room.send(response(id, Err(misplaced("a request of a kind that this server knows"))));
                Box::pin(std::future::ready(()))
            }
        }
    }

    /// Waits end by themselves: with the run, at their time, or because the server shuts down.
    fn ended(&mut self) {}

    fn unheard(&mut self) {
        self.unheard.cancel();
    }

    fn bytes(answer: &v1::StreamWorkflowsResponse) -> usize {
        answer.encoded_len()
    }

    fn instead(answer: v1::StreamWorkflowsResponse, refusal: Refusal) -> v1::StreamWorkflowsResponse {
        response(answer.id, Err(refusal))
    }

    fn write(answer: v1::StreamWorkflowsResponse) -> v1::StreamWorkflowsResponse {
        answer
    }
}

impl Waits {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, CancellationToken>> {
        // Entries go in and out whole, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, id: u64) -> Wait {
        let given_up = CancellationToken::new();
        self.lock().insert(id, given_up.clone());
        Wait { waits: self.clone(), id, given_up }
    }

    fn give_up(&self, id: u64) {
        if let Some(given_up) = self.lock().remove(&id) {
            given_up.cancel();
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.waits.lock().remove(&self.id);
    }
}

fn response(id: u64, answer: Result<Response, Refusal>) -> v1::StreamWorkflowsResponse {
    let response = answer.unwrap_or_else(|refusal| Response::Refused(refusal.into_item()));
    v1::StreamWorkflowsResponse { id, response: Some(response) }
}
