//! A worker's stream: many requests of one worker at once, each answered when it is done.
//!
//! A session is a task of its own, so that what it asks of the store goes on while the network is slow.
//! It takes a request only when it has room for the answer; so a worker that does not read costs a
//! bounded number of answers, and is not read from until it does. Nor is one whose requests hold much
//! memory already, as when the database stalls.

mod held;
mod respond;
#[cfg(test)]
mod tests;

use std::mem::replace;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{Stream, StreamExt as _};
use kagzi_core::{Claim, StoreError};
use kagzi_proto::v1;
use kagzi_proto::v1::stream_work_request::Request;
use kagzi_proto::v1::stream_work_response::Response;
use kagzi_sdk::wire::error::{Refusal, explained, unauthenticated};
use kagzi_sdk::wire::{IntoWire as _, open_from_wire};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use held::HeldBytes;

use super::Services;
use super::poll::Handover;
use crate::auth::Caller;
use crate::metrics::OpenStream;
use crate::shutdown::shutting_down_now;

/// How long a worker has, from the beginning of its stream, to say who it is.
const OPEN_WITHIN: Duration = Duration::from_secs(10);

/// How often a stream looks whether the credential that opened it has expired.
const LOOK_AT_THE_CLOCK: Duration = Duration::from_mins(1);

/// The answers of a session, as the transport takes them.
pub(super) type Answers = BoxStream<'static, Result<v1::StreamWorkResponse, Status>>;

type Room = mpsc::OwnedPermit<Outbound>;

/// What goes to the worker.
#[derive(Debug)]
enum Outbound {
    Answer(v1::StreamWorkResponse),
    /// Claimed runs stay ours until the transport takes them: dropped before, they are given back.
    Runs {
        id: u64,
        runs: Handover,
    },
    /// The stream ends, for this reason.
    End(Status),
}

/// One worker's stream.
struct Session<S> {
    services: Services,
    /// Whom the credential that opened the stream belongs to, as far as is known now.
    caller: Caller,
    requests: S,
    answers: mpsc::Sender<Outbound>,
    /// What the worker takes, for every one of its claims.
    opened: Arc<Claim>,
    /// Each answers how many bytes its request held.
    work: FuturesUnordered<BoxFuture<'static, usize>>,
    held: HeldBytes,
    /// Ends the wait of the last `take`.
    stop_taking: CancellationToken,
    /// Claims one after the other, so that one sent again finds what the first took.
    claiming: Arc<Mutex<()>>,
    _counted: OpenStream,
}

/// Why a session takes no more requests.
enum End {
    /// The worker will not ask any more, or is gone.
    Worker,
    /// A request could not be read.
    Unreadable(Status),
    /// The server shuts down.
    Drain,
    /// The credential that opened the stream counts no more.
    Refused(Refusal),
}

impl Services {
    /// Opens a worker's stream: reads who it is, and serves it until it ends.
    pub(super) async fn open_stream<S>(&self, caller: Caller, mut requests: S) -> Result<Answers, Status>
    where
        S: Stream<Item = Result<v1::StreamWorkRequest, Status>> + Send + Unpin + 'static,
    {
        let first = tokio::time::timeout(OPEN_WITHIN, requests.next()).await;
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
        let opened = self.reply(&caller, "StreamWork", read, |claim| async { Ok(claim) }).await;
        let opened = opened.map_err(Refusal::into_status)?;
        let (answers, mut outbound) = mpsc::channel(self.limits().max_stream_requests);
        let session = Session {
            services: self.clone(),
            caller,
            requests,
            answers,
            opened: Arc::new(opened),
            work: FuturesUnordered::new(),
            held: HeldBytes::up_to(self.limits().max_stream_bytes),
            stop_taking: CancellationToken::new(),
            claiming: Arc::default(),
            _counted: self.0.metrics.stream(),
        };
        self.0.drain.spawn(&Handle::current(), session.run());
        let services = self.clone();
        let outbound = futures::stream::poll_fn(move |context| outbound.poll_recv(context));
        Ok(outbound.map(move |outbound| outbound.into_message(&services)).boxed())
    }

    fn read_open(&self, open: v1::OpenWork) -> Result<Claim, StoreError> {
        let mut claim = open_from_wire(open, self.limits().default_lease)?;
        self.limits().check_lease_length("lease_length", claim.lease_length)?;
        claim.steps_limit = claim.steps_limit.min(self.limits().max_batch);
        Ok(claim)
    }
}

impl Outbound {
    fn into_message(self, services: &Services) -> Result<v1::StreamWorkResponse, Status> {
        match self {
            Self::Answer(answer) => Ok(answer),
            Self::Runs { id, runs } => {
                let runs = runs.hand_over(services).into_wire();
                Ok(v1::StreamWorkResponse { id, response: Some(Response::Runs(runs)) })
            }
            Self::End(status) => Err(status),
        }
    }
}

fn explain(status: Status) -> Status {
    explained(&status).unwrap_or(status)
}

impl<S> Session<S>
where
    S: Stream<Item = Result<v1::StreamWorkRequest, Status>> + Send + Unpin + 'static,
{
    async fn run(mut self) {
        let end = self.take_requests().await;
        self.stop_taking.cancel();
        // What was asked for is done, whoever is there to hear of it.
        while self.work.next().await.is_some() {}
        let status = match end {
            End::Worker => return,
            End::Unreadable(status) => status,
            End::Drain => shutting_down_now().into_status(),
            End::Refused(refusal) => refusal.into_status(),
        };
        // A worker that has gone needs no reason.
        self.answers.send(Outbound::End(status)).await.ok();
    }

    async fn take_requests(&mut self) -> End {
        let (drain, answers) = (self.services.0.drain.clone(), self.answers.clone());
        let (mut begun, mut gone) = (pin!(drain.begun()), pin!(answers.closed()));
        let auth = self.services.0.auth.clone();
        let (mut changes, mut expired) = (auth.changes(), pin!(until(self.caller.until)));
        let mut room: Option<Room> = None;
        loop {
            tokio::select! {
                biased;
                () = &mut begun => return End::Drain,
                () = &mut gone => return End::Worker,
                () = changes.next() => match auth.renew(&self.caller) {
                    Ok(caller) => self.caller = caller,
                    Err(refusal) => return End::Refused(refusal),
                },
                () = &mut expired => return End::Refused(unauthenticated("one that has expired")),
                Some(done) = self.work.next() => self.held.release(done),
                reserved = answers.clone().reserve_owned(), if room.is_none() => match reserved {
                    Ok(reserved) => room = Some(reserved),
                    Err(_) => return End::Worker,
                },
                request = self.requests.next(), if room.is_some() && self.held.has_room() => match request {
                    Some(Ok(request)) => self.begin(request, room.take()),
                    // A connection that broke and a request that is none end the stream alike.
                    Some(Err(status)) => return End::Unreadable(explain(status)),
                    None => return End::Worker,
                },
            }
        }
    }

    /// Begins to do what a request asks.
    fn begin(&mut self, message: v1::StreamWorkRequest, room: Option<Room>) {
        let (Some(room), id) = (room, message.id) else { return };
        let held = self.held.take(&message);
        let (services, caller) = (self.services.clone(), self.caller.clone());
        self.work.push(match message.request {
            Some(Request::Take(take)) => {
                let stop = CancellationToken::new();
                replace(&mut self.stop_taking, stop.clone()).cancel();
                let (opened, claiming) = (Arc::clone(&self.opened), Arc::clone(&self.claiming));
                Box::pin(async move {
                    let taken = services.take_runs(&caller, &take, &opened, &claiming, &stop).await;
                    room.send(match taken {
                        Ok(runs) => Outbound::Runs { id, runs },
                        Err(refusal) => Outbound::Answer(refused(id, refusal)),
                    });
                    held
                })
            }
            request => Box::pin(async move {
                let answer = match services.respond(&caller, request).await {
                    Ok(response) => v1::StreamWorkResponse { id, response: Some(response) },
                    Err(refusal) => refused(id, refusal),
                };
                room.send(Outbound::Answer(answer));
                held
            }),
        });
    }
}

/// Ready at that moment by the clock on the wall, or never.
async fn until(moment: Option<SystemTime>) {
    let Some(moment) = moment else { return std::future::pending().await };
    while let Ok(left) = moment.duration_since(SystemTime::now()) {
        if left.is_zero() {
            return;
        }
        // In pieces, since the clock on the wall may be set meanwhile.
        tokio::time::sleep(left.min(LOOK_AT_THE_CLOCK)).await;
    }
}

fn refused(id: u64, refusal: Refusal) -> v1::StreamWorkResponse {
    v1::StreamWorkResponse { id, response: Some(Response::Refused(refusal.into_item())) }
}
