//! Looks at a call before its body is read: who makes it, and whether they may make it at all.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use futures::future::Either;
use kagzi_sdk::wire::error::{Refusal, permission_denied};
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use super::{Auth, Caller, right};
use crate::transport::Peer;

/// Whoever asks for health may be a machine that knows nothing but the address.
const OPEN_TO_ALL: &str = "/grpc.health.v1.Health/";

/// What the calls of the protocol begin with.
const OURS: &str = "/kagzi.v1.";

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct AuthLayer(pub(crate) Auth);

impl<S> Layer<S> for AuthLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, auth: self.0.clone() }
    }
}

/// A service that is reached by those who may, each with its [`Caller`] in the request's extensions.
#[derive(Clone, Debug)]
pub(crate) struct Guarded<S> {
    inner: S,
    auth: Auth,
}

impl<S, B> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Ready<Result<Self::Response, Infallible>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match self.auth.admit(&request) {
            Ok(Some(caller)) => {
                request.extensions_mut().insert(caller);
            }
            Ok(None) => {}
            Err(refusal) => return Either::Left(ready(Ok(refusal.into_status().into_http()))),
        }
        Either::Right(self.inner.call(request))
    }
}

impl Auth {
    /// Who makes a call, if that matters.
    fn admit<B>(&self, request: &Request<B>) -> Result<Option<Caller>, Refusal> {
        let path = request.uri().path();
        if path.starts_with(OPEN_TO_ALL) {
            return Ok(None);
        }
        let peer = request.extensions().get::<Peer>();
        let method = path.rsplit('/').next().unwrap_or_default();
        let caller = self.authenticate(request.headers(), peer).inspect_err(|refusal| {
            let peer = peer.and_then(|peer| peer.address).map(tracing::field::display);
            tracing::info!(peer, path, reason = refusal.reason(), "call refused");
        })?;
        if path.starts_with(OURS) && right(method).is_some() && !caller.may_ever(method) {
            return Err(self.deny(&caller, method));
        }
        Ok(Some(caller))
    }

    /// Refuses a call before anything is known of what it asks.
    fn deny(&self, caller: &Caller, method: &str) -> Refusal {
        let refusal = permission_denied(method);
        tracing::info!(method, principal = caller.name(), reason = refusal.reason(), "call refused");
        self.audit().begin(caller, method, None, None).end(refusal.reason());
        refusal
    }
}
