//! How many streams are open, in all and of one principal.
//!
//! A stream costs memory for as long as it lives, some 66 KB, and one connection may open thousands. So each takes a
//! place before anything of it is read, and keeps it until both its answers and what it asked for have ended, whoever
//! ends it.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::{BoxFuture, Either};
use http_body_util::BodyExt as _;
use kagzi_sdk::wire::error::Refusal;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use super::super::Services;
use super::super::load::Place;
use crate::auth::Caller;

/// The calls whose answers are streams.
const STREAMS: [&str; 4] = [
    "/kagzi.v1.WorkerService/StreamWork",
    "/kagzi.v1.WorkflowService/StreamWorkflows",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
];

/// A place among the streams that are open, until the last of its copies is dropped.
#[derive(Clone, Debug)]
pub(in super::super) struct StreamPlace(#[expect(dead_code, reason = "held, not read")] Arc<Place>);

impl StreamPlace {
    pub(in super::super) fn of(place: Place) -> Self {
        Self(Arc::new(place))
    }
}

/// See the module. It goes behind the one that finds out who calls.
#[derive(Clone, Debug)]
pub(crate) struct StreamLayer(pub(crate) Services);

impl<S> Layer<S> for StreamLayer {
    type Service = Bounded<S>;

    fn layer(&self, inner: S) -> Bounded<S> {
        Bounded { inner, services: self.0.clone() }
    }
}

/// A service whose streams are counted.
#[derive(Clone, Debug)]
pub(crate) struct Bounded<S> {
    inner: S,
    services: Services,
}

impl<S, B> Service<Request<B>> for Bounded<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, BoxFuture<'static, Result<Self::Response, Infallible>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if !STREAMS.contains(&request.uri().path()) {
            return Either::Left(self.inner.call(request));
        }
        let place = match self.services.stream_place(&request) {
            Ok(place) => place,
            Err(refusal) => {
                self.services.metrics().refused(&refusal);
                return Either::Right(Box::pin(async { Ok(refusal.into_status().into_http()) }));
            }
        };
        request.extensions_mut().insert(place.clone());
        let answering = self.inner.call(request);
        Either::Right(Box::pin(async move {
            let answer = answering.await?;
            Ok(answer.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _held = &place;
                    frame
                }))
            }))
        }))
    }
}

impl Services {
    /// A place for the stream that a call is to open.
    fn stream_place<B>(&self, request: &Request<B>) -> Result<StreamPlace, Refusal> {
        let place = match request.extensions().get::<Caller>() {
            Some(caller) => self.0.load.stream(caller),
            None => self.0.load.stream(&self.0.auth.unseen()?),
        };
        place.map(StreamPlace::of)
    }
}

#[cfg(test)]
mod tests {
    use kagzi_proto::FILE_DESCRIPTOR_SET;
    use prost::Message as _;

    use super::*;

    #[test]
    fn every_call_that_answers_by_a_stream_is_counted_as_one() {
        let mut answered_by_streams = Vec::new();
        let reflection = tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET;
        for set in [FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET, reflection] {
            for file in prost_types::FileDescriptorSet::decode(set).unwrap().file {
                for service in &file.service {
                    let streams = service.method.iter().filter(|method| method.server_streaming());
                    let path = |name| format!("/{}.{}/{name}", file.package(), service.name());
                    answered_by_streams.extend(streams.map(|method| path(method.name())));
                }
            }
        }
        answered_by_streams.sort();
        let mut counted = STREAMS.map(ToOwned::to_owned);
        counted.sort();
        assert_eq!(answered_by_streams, counted);
    }
}
