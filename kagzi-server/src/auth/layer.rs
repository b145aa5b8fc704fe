//! Looks at a call before its body is read: who makes it, and whether they may make it at all.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures::future::{BoxFuture, Either};
use kagzi_sdk::wire::error::{Refusal, UNAUTHENTICATED, limit_reached};
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use super::{Audited, Auth, Caller, Mode, NoCaller, right};
use crate::metrics::Metrics;
use crate::transport::{Peer, host};

/// Whoever asks for health may be a machine that knows nothing but the address. Who watches it stays, and costs memory
/// meanwhile, some kilobytes for each of thousands of streams: that is for those who are known.
const OPEN_TO_ALL: &str = "/grpc.health.v1.Health/Check";

/// What the calls of the protocol begin with.
const OURS: &str = "/kagzi.v1.";

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct AuthLayer {
    pub(crate) auth: Auth,
    /// Where refusals are counted.
    pub(crate) metrics: Metrics,
}

impl<S> Layer<S> for AuthLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, auth: self.auth.clone(), metrics: self.metrics.clone() }
    }
}

/// A service that is reached by those who may, each with its [`Caller`] in the request's extensions.
#[derive(Clone, Debug)]
pub(crate) struct Guarded<S> {
    inner: S,
    auth: Auth,
    metrics: Metrics,
}

impl<S, B> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, BoxFuture<'static, Result<Self::Response, Infallible>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match self.auth.admit(&request) {
            Admission::OpenToAll => Either::Left(self.inner.call(request)),
            Admission::Known(caller) => {
                request.extensions_mut().insert(caller);
                Either::Left(self.inner.call(request))
            }
            Admission::Refused(refusal) => {
                self.metrics.refused(&refusal);
                Either::Right(Box::pin(async { Ok(answer(refusal)) }))
            }
            Admission::Later => {
                // The one that is ready makes this call, and its clone the next.
                let clone = self.inner.clone();
                let (mut inner, auth) = (std::mem::replace(&mut self.inner, clone), self.auth.clone());
                let metrics = self.metrics.clone();
                Either::Right(Box::pin(async move {
                    match auth.admit_later(request, &metrics).await {
                        Ok(request) => inner.call(request).await,
                        Err(refusal) => {
                            metrics.refused(&refusal);
                            Ok(answer(refusal))
                        }
                    }
                }))
            }
        }
    }
}

fn answer(refusal: Refusal) -> Response<Body> {
    refusal.into_status().into_http()
}

/// Whether a call may go on.
enum Admission {
    OpenToAll,
    Known(Caller),
    Refused(Refusal),
    /// That is known once the keys of JWTs were looked at again.
    Later,
}

impl Auth {
    fn admit<B>(&self, request: &Request<B>) -> Admission {
        if request.uri().path() == OPEN_TO_ALL {
            return Admission::OpenToAll;
        }
        let admitted = match self.authenticate(request.headers(), request.extensions().get::<Peer>()) {
            Ok(caller) => self.may_call(caller, request),
            Err(NoCaller::Refused(refusal)) => Err(self.unknown(refusal, request)),
            Err(NoCaller::UnknownKey) => return Admission::Later,
        };
        admitted.map_or_else(Admission::Refused, Admission::Known)
    }

    async fn admit_later<B>(&self, request: Request<B>, metrics: &Metrics) -> Result<Request<B>, Refusal> {
        let (mut parts, body) = request.into_parts();
        let peer = parts.extensions.get::<Peer>().cloned();
        let caller = self.authenticate_later(&parts.headers, peer.as_ref(), metrics).await;
        let request = Request::from_parts(parts.clone(), ());
        let caller = match caller {
            Ok(caller) => self.may_call(caller, &request)?,
            Err(refusal) => return Err(self.unknown(refusal, &request)),
        };
        parts.extensions.insert(caller);
        Ok(Request::from_parts(parts, body))
    }

    /// Counts and reports a call of somebody who is not known. Beyond the limit of their address the refusal says
    /// no more than when to come again.
    fn unknown<B>(&self, refusal: Refusal, request: &Request<B>) -> Refusal {
        let peer = request.extensions().get::<Peer>().and_then(|peer| peer.address);
        let path = request.uri().path();
        if let (Mode::Closed(closed), Some(peer), UNAUTHENTICATED) = (&self.0.mode, peer, refusal.reason())
            && let Err(retry_after) = closed.failures.count(host(peer.ip()))
        {
            tracing::debug!(%peer, path, "call refused: too many of this address show credentials that nobody knows");
            return limit_reached("rate_auth_failures", retry_after);
        }
        tracing::info!(
            peer = peer.map(tracing::field::display),
            path,
            reason = refusal.reason(),
            "call refused"
        );
        refusal
    }

    /// Whether there is anything that a caller may do by a call.
    fn may_call<B>(&self, caller: Caller, request: &Request<B>) -> Result<Caller, Refusal> {
        let path = request.uri().path();
        let method = path.rsplit('/').next().unwrap_or_default();
        // What goes on record is denied once it is read, so that the record says what it was about.
        let denied_unread = right(method).is_some_and(|right| right.audited == Audited::No);
        if path.starts_with(OURS) && denied_unread && !caller.may_ever(method) {
            return Err(self.deny(&caller, method));
        }
        Ok(caller)
    }
}
