//! What orchestrators and Prometheus ask, over plain HTTP on an address of its own: `/metrics`, `/livez`
//! and `/readyz`. It has neither authentication nor TLS, so it listens on this machine unless told that
//! it may do otherwise.

use std::io;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::health::Health;
use crate::metrics::{self, Metrics};
use crate::shutdown::Drain;

/// What the answers are made of. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) metrics: Metrics,
    pub(crate) health: Health,
    pub(crate) drain: Drain,
}

/// Answers on `listener`, where there is one, until it is dropped.
pub(crate) async fn serve(listener: Option<TcpListener>, told: Told) -> io::Result<()> {
    let Some(listener) = listener else { return std::future::pending().await };
    axum::serve(listener, router(told)).await
}

fn router(told: Told) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .with_state(told)
}

async fn metrics(State(told): State<Told>) -> Response {
    match told.metrics.text() {
        Ok(text) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// Whether new calls would be taken; if not, why.
async fn readyz(State(told): State<Told>) -> (StatusCode, &'static str) {
    if told.drain.has_begun() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining: the server is shutting down\n")
    } else if told.health.is_away() {
        (StatusCode::SERVICE_UNAVAILABLE, "store: it does not answer; see the server's log\n")
    } else {
        (StatusCode::OK, "ready\n")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use axum::body::Body;
    use axum::http::Request;
    use kagzi_core::SharedStore;
    use kagzi_core::memory::MemoryStore;
    use tower::ServiceExt as _;

    use super::*;
    use crate::breaker::Breaker;

    fn told() -> (Told, SharedStore) {
        let store: SharedStore = Arc::new(MemoryStore::default());
        let (reporter, _) = tonic_health::server::health_reporter();
        let metrics = Metrics::new(&store);
        let health = Health::new(reporter, Breaker::new(metrics.clone()));
        (Told { metrics, health, drain: Drain::default() }, store)
    }

    async fn get(told: &Told, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router(told.clone()).oneshot(request).await.unwrap();
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn ready_is_who_would_take_a_call_and_alive_is_who_answers() {
        let (told, store) = told();
        let second = Duration::from_secs(1);
        told.health.check(&store).await;
        assert_eq!(get(&told, "/readyz").await, (StatusCode::OK, "ready\n".to_owned()));

        store.close().await.unwrap();
        told.health.check(&store).await;
        let (status, why) = get(&told, "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(why.starts_with("store: "), "{why}");

        told.drain.run(second).await;
        let (status, why) = get(&told, "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(why.starts_with("draining: "), "{why}");
        assert_eq!(get(&told, "/livez").await, (StatusCode::OK, "alive\n".to_owned()));
        assert_eq!(get(&told, "/").await.0, StatusCode::NOT_FOUND);
    }
}
