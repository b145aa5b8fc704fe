//! Streams: many requests of one caller at once, each answered when it is done.
//!
//! A session is a task of its own, so that what it asks of the store goes on while the network is slow.
//! It takes a request only when it has room for the answer; so a caller that does not read costs a
//! bounded number of answers, and is not read from until it does. Nor is one whose requests hold much
//! memory already, as when the database stalls.
//!
//! What is said on a stream is a [`Talk`]: a worker's ([`worker`]) or a client's ([`client`]).

mod client;
mod held;
mod place;
mod respond;
mod room;
#[cfg(test)]
mod tests;
mod worker;

use std::pin::pin;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{Stream, StreamExt as _};
use kagzi_core::StoreError;
use kagzi_sdk::wire::error::{Refusal, explained, unauthenticated};
use prost::Message;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tonic::Status;

use held::HeldBytes;
use room::{Queued, Room};

pub(crate) use place::StreamLayer;
pub(super) use place::StreamPlace;

use super::Services;
use super::bytes::RequestBytes;
use super::load::Payer;
use super::told::Origin;
use crate::auth::Caller;
use crate::metrics::{Metrics, Shown};
use crate::shutdown::shutting_down_now;

/// How often a stream looks whether the credential that opened it has expired.
const LOOK_AT_THE_CLOCK: Duration = Duration::from_mins(1);

/// The answers of a session, as the transport takes them.
pub(super) type Answers<R> = BoxStream<'static, Result<R, Status>>;

/// What is said on a stream.
trait Talk: Send + Sized + 'static {
    /// A request as it comes.
    type Request: Message + 'static;
    /// An answer that waits to be taken by the transport.
    type Answer: Send + 'static;
    /// An answer as it goes.
    type Response: 'static;

    /// Counts a stream of this kind.
    fn count(metrics: &Metrics) -> Shown;

    /// Begins to do what a request asks; it is done when the future is ready, its answer in `room`.
    fn begin(
        &mut self,
        services: &Services,
        caller: &Caller,
        request: Self::Request,
        room: Room<Self>,
    ) -> BoxFuture<'static, ()>;

    /// No more requests are taken.
    fn ended(&mut self);

    /// Nobody is there to hear the answers that are still to come.
    fn unheard(&mut self);

    /// How many bytes an answer holds until it is taken.
    fn bytes(answer: &Self::Answer) -> usize;

    /// What is said in the place of an answer for which there is no room.
    fn instead(answer: Self::Answer, refusal: Refusal) -> Self::Answer;

    /// The transport takes an answer.
    fn write(answer: Self::Answer) -> Self::Response;
}

/// One stream.
struct Session<S, T: Talk> {
    services: Services,
    /// Whom the credential that opened the stream belongs to, as far as is known now.
    caller: Caller,
    requests: S,
    answers: mpsc::Sender<Queued<T>>,
    payer: Payer,
    talk: T,
    /// Each answers how many bytes its request held.
    work: FuturesUnordered<BoxFuture<'static, usize>>,
    held: HeldBytes,
    /// What is charged for its messages.
    charged: Option<RequestBytes>,
    _counted: Shown,
    /// What was asked for holds memory after its caller has gone, too.
    _place: Option<StreamPlace>,
}

/// Why a session takes no more requests.
enum End {
    /// The caller will not ask any more, or is gone.
    Caller,
    /// A request could not be read.
    Unreadable(Status),
    /// The server shuts down.
    Drain,
    /// The credential that opened the stream counts no more.
    Refused(Refusal),
}

impl Services {
    /// Serves a stream until it ends; gives its answers.
    fn talk<S, T>(&self, origin: Origin, requests: S, talk: T) -> Answers<T::Response>
    where
        S: Stream<Item = Result<T::Request, Status>> + Send + Unpin + 'static,
        T: Talk,
    {
        let (answers, mut outbound) = mpsc::channel(self.limits().max_stream_requests);
        let session = Session {
            services: self.clone(),
            payer: self.0.load.payer(&origin.caller, &self.0.metrics),
            caller: origin.caller,
            requests,
            answers,
            talk,
            work: FuturesUnordered::new(),
            held: HeldBytes::up_to(self.limits().max_stream_bytes),
            charged: origin.held,
            _counted: T::count(&self.0.metrics),
            _place: origin.place,
        };
        self.0.drain.spawn(&Handle::current(), session.run());
        let outbound = futures::stream::poll_fn(move |context| outbound.poll_recv(context));
        outbound.map(|queued| queued.map(|(answer, _charge)| T::write(answer))).boxed()
    }
}

fn explain(status: Status) -> Status {
    explained(&status).unwrap_or(status)
}

/// The refusal of a request that does not belong where it came.
fn misplaced(expected: &str) -> Refusal {
    Refusal::from(&StoreError::InvalidArgument {
        field: "request".to_owned(),
        expected: expected.to_owned(),
        got: "another one".to_owned(),
    })
}

impl<S, T> Session<S, T>
where
    S: Stream<Item = Result<T::Request, Status>> + Send + Unpin + 'static,
    T: Talk,
{
    async fn run(mut self) {
        let end = self.take_requests().await;
        self.talk.ended();
        self.finish_work().await;
        let status = match end {
            End::Caller => return,
            End::Unreadable(status) => status,
            End::Drain => shutting_down_now().into_status(),
            End::Refused(refusal) => refusal.into_status(),
        };
        // A caller that has gone needs no reason.
        self.answers.send(Err(status)).await.ok();
    }

    async fn take_requests(&mut self) -> End {
        let (drain, answers) = (self.services.0.drain.clone(), self.answers.clone());
        let (mut begun, mut gone) = (pin!(drain.begun()), pin!(answers.closed()));
        let auth = self.services.0.auth.clone();
        let (mut changes, mut expired) = (auth.changes(&self.caller), pin!(until(self.caller.until)));
        let mut room: Option<Room<T>> = None;
        loop {
            tokio::select! {
                biased;
                () = &mut begun => return End::Drain,
                () = &mut gone => return End::Caller,
                () = changes.next() => match auth.renew(&self.caller) {
                    Ok(caller) => self.caller = caller,
                    Err(refusal) => return End::Refused(refusal),
                },
                () = &mut expired => return End::Refused(unauthenticated("one that has expired")),
                Some(done) = self.work.next() => self.held.release(done),
                reserved = answers.clone().reserve_owned(), if room.is_none() => match reserved {
                    Ok(permit) => room = Some(Room { permit, payer: self.payer.clone() }),
                    Err(_) => return End::Caller,
                },
                request = self.requests.next(), if room.is_some() && self.held.has_room() => match request {
                    Some(Ok(request)) => self.begin(request, room.take()),
                    // A connection that broke and a request that is none end the stream alike.
                    Some(Err(status)) => return End::Unreadable(explain(status)),
                    None => return End::Caller,
                },
            }
        }
    }

    /// Begins to do what a request asks.
    fn begin(&mut self, request: T::Request, room: Option<Room<T>>) {
        let Some(room) = room else { return };
        let (held, message) = (self.held.take(&request), self.charged.as_ref().map(RequestBytes::take));
        let done = self.talk.begin(&self.services, &self.caller, request, room);
        self.work.push(Box::pin(async move {
            done.await;
            drop(message);
            held
        }));
    }

    /// What was asked for is done, whoever is there to hear of it.
    async fn finish_work(&mut self) {
        let answers = self.answers.clone();
        let mut gone = pin!(answers.closed());
        let mut heard = true;
        loop {
            tokio::select! {
                biased;
                () = &mut gone, if heard => {
                    heard = false;
                    self.talk.unheard();
                }
                done = self.work.next() => if done.is_none() { return },
            }
        }
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
