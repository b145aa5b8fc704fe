//! An account of the bytes that calls hold ([`load`](super::load)): a message is charged for once its length is known, since
//! memory is taken for all of it then, and an answer until it was sent.
//!
//! What is charged for a request is held until it is done, whatever it waits for meanwhile; on a stream, each message by
//! itself. What is charged for an answer is held by its bytes, so that it ends when the transport drops them, sent or not:
//! HTTP/2 takes a whole answer from us as soon as its client would read the first byte.
//!
//! A call costs memory by being there, so each is charged for from its headers on, until nothing of it is left.
//!
//! What finishes work is not refused at once where there is no room: it waits, which costs its caller alone, as HTTP/2
//! takes no more of it than its window meanwhile (and whoever shares the connection: a proxy gives each caller its own).
//!
//! It goes behind the layer that finds out who calls. Strangers, who may ask for the health alone, have an account of
//! their own, a small one, and little time.

mod answer;
mod framing;
mod request;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tower::{Layer, Service};

use super::Services;
use super::load::{CALL_BYTES, MESSAGE_HEADER_BYTES};
use crate::auth::Caller;
use crate::transport::{Peer, host};
use answer::Answer;
use request::{Bounds, Incoming, Times};

pub(super) use request::RequestBytes;

/// What workers say. Its calls are those that finish work, and polls, which wait anyway.
const OF_WORKERS: &str = "/kagzi.v1.WorkerService/";

/// For how long a call of a worker waits for room.
const ROOM_WITHIN: Duration = Duration::from_secs(5);

/// What a header holds beside its name and its value: some 230 bytes, measured.
const HEADER_BYTES: usize = 256;

/// What the headers of an ordinary call hold, with a token and a trace.
const USUAL_HEADERS_BYTES: usize = 6 * 1024;

/// How long the question of a stranger has to arrive whole. It is a packet or two.
const STRANGERS_WITHIN: Duration = Duration::from_secs(2);

/// Streams whose messages are done one by one.
const SESSIONS: [&str; 2] =
    ["/kagzi.v1.WorkerService/StreamWork", "/kagzi.v1.WorkflowService/StreamWorkflows"];

/// Streams of questions, each answered as it comes.
const QUESTIONS: [&str; 1] = ["/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"];

/// How a call uses its bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// One request, which comes whole before anything is done.
    Call,
    /// One of [`SESSIONS`].
    Session,
    /// One of [`QUESTIONS`].
    Questions,
}

impl Kind {
    fn of(path: &str) -> Self {
        if SESSIONS.contains(&path) {
            Self::Session
        } else if QUESTIONS.contains(&path) {
            Self::Questions
        } else {
            Self::Call
        }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct BytesLayer {
    pub(crate) services: Services,
    /// How long a request has to arrive whole.
    pub(crate) within: Duration,
}

impl<S> Layer<S> for BytesLayer {
    type Service = Charged<S>;

    fn layer(&self, inner: S) -> Charged<S> {
        Charged { inner, services: self.services.clone(), within: self.within }
    }
}

/// A service whose requests and answers are charged for.
#[derive(Clone, Debug)]
pub(crate) struct Charged<S> {
    inner: S,
    services: Services,
    within: Duration,
}

impl<S> Service<Request<Body>> for Charged<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let kind = Kind::of(request.uri().path());
        let (load, metrics) = (&self.services.0.load, self.services.metrics().clone());
        let (payer, within) = if let Some(caller) = request.extensions().get::<Caller>() {
            (load.payer(caller, &metrics), self.within)
        } else {
            let address = request.extensions().get::<Peer>().and_then(|peer| peer.address);
            let payer = load.stranger(address.map(|address| host(address.ip())), &metrics);
            (payer, self.within.min(STRANGERS_WITHIN))
        };
        let for_room = match kind {
            Kind::Session => within,
            Kind::Call if request.uri().path().starts_with(OF_WORKERS) => ROOM_WITHIN,
            Kind::Call | Kind::Questions => Duration::ZERO,
        };
        let held = RequestBytes::of(&payer);
        let call = held.call();
        let most = self.services.limits().max_message_bytes.saturating_add(MESSAGE_HEADER_BYTES);
        let bounds = Bounds { most, times: Times { within, for_room } };
        let owed = CALL_BYTES + beyond_what_is_usual(request.headers());
        let mut request =
            request.map(|body| Body::new(Incoming::new(body, kind, held.clone(), owed, bounds, metrics)));
        if kind == Kind::Session {
            request.extensions_mut().insert(held.clone());
        }
        let answering = self.inner.call(request);
        Box::pin(async move {
            let answer = answering.await?;
            // Before the answer is charged for.
            drop(held);
            Ok(answer.map(|body| Body::new(Answer::new(body, kind, payer, call))))
        })
    }
}

/// What the headers of a call hold more than those of an ordinary one, which [`CALL_BYTES`] pay for: they may be few bytes
/// on the wire and a hundred times as many here.
fn beyond_what_is_usual(headers: &HeaderMap) -> usize {
    let held: usize =
        headers.iter().map(|(name, value)| HEADER_BYTES + name.as_str().len() + value.len()).sum();
    held.saturating_sub(USUAL_HEADERS_BYTES)
}
