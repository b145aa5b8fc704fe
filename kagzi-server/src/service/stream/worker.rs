//! A worker's stream: who it is, said once, then its claims, heartbeats and writes.

use std::mem::replace;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{Stream, StreamExt as _};
use kagzi_core::{Claim, StoreError};
use kagzi_proto::v1;
use kagzi_proto::v1::stream_work_request::Request;
use kagzi_proto::v1::stream_work_response::Response;
use kagzi_sdk::wire::error::Refusal;
use kagzi_sdk::wire::{IntoWire as _, open_from_wire};
use prost::Message as _;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::super::Services;
use super::super::bytes::RequestBytes;
use super::super::load::Charge;
use super::super::poll::Handover;
use super::super::subject::NAME_BYTES;
use super::super::told::Origin;
use super::{Answers, Room, Talk, explain};
use crate::auth::Caller;
use crate::metrics::{Metrics, Shown};

/// How long a worker has, from the beginning of its stream, to say who it is.
const OPEN_WITHIN: Duration = Duration::from_secs(10);

/// What goes to the worker.
#[derive(Debug)]
pub(super) enum Outbound {
    Answer(v1::StreamWorkResponse),
    /// Claimed runs stay ours until the transport takes them: dropped before, they are given back.
    Runs {
        id: u64,
        runs: Handover,
    },
}

/// A worker that has said who it is.
struct Worker {
    /// What it takes, for every one of its claims.
    opened: Arc<Claim>,
    /// For the names in it.
    _charged: Charge,
    /// Ends the wait of the last `take`.
    stop_taking: CancellationToken,
    /// Claims one after the other, so that one sent again finds what the first took.
    claiming: Arc<Mutex<()>>,
}

impl Services {
    /// Opens a worker's stream: reads who it is, and serves it until it ends.
    pub(in super::super) async fn open_stream<S>(
        &self,
        origin: Origin,
        mut requests: S,
    ) -> Result<Answers<v1::StreamWorkResponse>, Status>
    where
        S: Stream<Item = Result<v1::StreamWorkRequest, Status>> + Send + Unpin + 'static,
    {
        let first = tokio::time::timeout(OPEN_WITHIN, requests.next()).await;
        // It is not done by itself.
        drop(origin.held.as_ref().map(RequestBytes::take));
        let in_time = first.is_ok();
        let first = first.ok().flatten().transpose().map_err(explain)?;
        let read = match first.and_then(|message| message.request) {
            Some(Request::Open(open)) => self.read_open(open),
            _ => Err(StoreError::InvalidArgument {
                field: "open".to_owned(),
                expected: "who the worker is, as the first message of its stream".to_owned(),
                got: if in_time {
                    "something else, or nothing".to_owned()
                } else {
                    format!("nothing within {OPEN_WITHIN:?}")
                },
            }),
        };
        let opened =
            self.reply(&origin, "StreamWork", read, |claim| async { Ok::<_, StoreError>(claim) }).await;
        let opened = opened.map_err(Refusal::into_status)?;
        let worker = Worker {
            _charged: self.0.load.payer(&origin.caller, &self.0.metrics).anyway(names_bytes(&opened)),
            opened: Arc::new(opened),
            stop_taking: CancellationToken::new(),
            claiming: Arc::default(),
        };
        Ok(self.talk(origin, requests, worker))
    }

    fn read_open(&self, open: v1::OpenWork) -> Result<Claim, StoreError> {
        let mut claim = open_from_wire(open, self.limits().default_lease)?;
        self.limits().check_lease_length("lease_length", claim.lease_length)?;
        claim.steps_limit = claim.steps_limit.min(self.limits().max_batch);
        Ok(claim)
    }
}

/// What the names that a worker says at first hold for as long as its stream is open.
fn names_bytes(opened: &Claim) -> usize {
    let queues = opened.queues.iter().map(|queue| queue.as_str().len());
    let types = opened.workflow_types.iter().map(|workflow_type| workflow_type.as_str().len());
    queues.chain(types).map(|length| NAME_BYTES + length).sum()
}

impl Talk for Worker {
    type Request = v1::StreamWorkRequest;
    type Answer = Outbound;
    type Response = v1::StreamWorkResponse;

    fn count(metrics: &Metrics) -> Shown {
        metrics.worker_stream()
    }

    fn begin(
        &mut self,
        services: &Services,
        caller: &Caller,
        message: v1::StreamWorkRequest,
        room: Room<Self>,
    ) -> BoxFuture<'static, ()> {
        let (services, id) = (services.clone(), message.id);
        let origin = Origin::of(caller.clone(), message.trace_context);
        match message.request {
            Some(Request::Take(take)) => {
                let stop = CancellationToken::new();
                replace(&mut self.stop_taking, stop.clone()).cancel();
                let (opened, claiming) = (Arc::clone(&self.opened), Arc::clone(&self.claiming));
                Box::pin(async move {
                    let taken = services.take_runs(&origin, &take, &opened, &claiming, &stop).await;
                    room.send(match taken {
                        Ok(runs) => Outbound::Runs { id, runs },
                        Err(refusal) => Outbound::Answer(refused(id, refusal)),
                    });
                })
            }
            request => Box::pin(async move {
                let answer = match services.respond(&origin, request).await {
                    Ok(response) => v1::StreamWorkResponse { id, response: Some(response) },
                    Err(refusal) => refused(id, refusal),
                };
                room.send(Outbound::Answer(answer));
            }),
        }
    }

    fn ended(&mut self) {
        self.stop_taking.cancel();
    }

    /// Its writes are done all the same.
    fn unheard(&mut self) {}

    fn bytes(answer: &Outbound) -> usize {
        match answer {
            Outbound::Answer(answer) => answer.encoded_len(),
            Outbound::Runs { runs, .. } => runs.bytes(),
        }
    }

    /// Runs for which there is no room are given back.
    fn instead(answer: Outbound, refusal: Refusal) -> Outbound {
        let (Outbound::Answer(v1::StreamWorkResponse { id, .. }) | Outbound::Runs { id, .. }) = answer;
        Outbound::Answer(refused(id, refusal))
    }

    fn write(answer: Outbound) -> v1::StreamWorkResponse {
        match answer {
            Outbound::Answer(answer) => answer,
            Outbound::Runs { id, runs } => {
                let runs = runs.hand_over().into_wire();
                v1::StreamWorkResponse { id, response: Some(Response::Runs(runs)) }
            }
        }
    }
}

fn refused(id: u64, refusal: Refusal) -> v1::StreamWorkResponse {
    v1::StreamWorkResponse { id, response: Some(Response::Refused(refusal.into_item())) }
}
