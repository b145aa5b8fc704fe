//! An account of the bytes that calls hold ([`load`](super::load)): a body is charged for as it comes, and an answer until
//! it was sent.
//!
//! What is charged for a request is held until it is done, whatever it waits for meanwhile; on a stream, each message by
//! itself. What is charged for an answer is held by its bytes, so that it ends when the transport drops them, sent or not:
//! HTTP/2 takes a whole answer from us as soon as its client would read the first byte.
//!
//! It goes behind the layer that finds out who calls. Strangers, who may ask for the health alone, have no account: their
//! questions are bounded by themselves, and must come in time as all others.

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
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use super::Services;
use crate::auth::Caller;
use answer::Answer;
use request::Incoming;

pub(super) use request::RequestBytes;

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
        let payer = request.extensions().get::<Caller>().map(|caller| load.payer(caller, &metrics));
        let held = payer.as_ref().map(|payer| RequestBytes::of(payer.charge()));
        let mut request =
            request.map(|body| Body::new(Incoming::new(body, kind, held.clone(), self.within, metrics)));
        if let (Kind::Session, Some(held)) = (kind, &held) {
            request.extensions_mut().insert(held.clone());
        }
        let answering = self.inner.call(request);
        Box::pin(async move {
            let answer = answering.await?;
            // Before the answer is charged for.
            drop(held);
            Ok(match payer {
                Some(payer) => answer.map(|body| Body::new(Answer::new(body, kind, payer))),
                None => answer,
            })
        })
    }
}
