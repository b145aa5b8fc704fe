//! What orchestrators and Prometheus ask, over plain HTTP on an address of its own: `/metrics`, `/livez`
//! and `/readyz`. It has neither authentication nor TLS, so it listens on this machine unless told that
//! it may do otherwise.
//!
//! Whoever asks is a stranger, so what they may hold is bounded: so many connections, of which the oldest gives way to a
//! new one, so that no number of them keeps a probe out; each for so long, and ended sooner while nothing is asked.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::health::Health;
use crate::metrics::{self, Metrics};
use crate::shutdown::Drain;

/// So many connections may be open.
const MOST_CONNECTIONS: usize = 64;

/// How long a connection waits for the whole head of a request, the first or another.
const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// No head is longer, and no more is read ahead.
const HEAD_BYTES: usize = 16 * 1024;

/// After that a connection takes no more requests.
const LIFE: Duration = Duration::from_mins(1);

/// How long it has to take its last answer.
const FAREWELL: Duration = Duration::from_secs(10);

/// How long accepting pauses after an error that would come again at once, such as too many open files.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);

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
    let (router, mut connections) = (router(told), Connections::default());
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => connections.open(converse(stream, router.clone())),
                Err(error) => {
                    tracing::warn!(%error, "a connection to the HTTP endpoint could not be accepted");
                    sleep(PAUSE_AFTER_ERROR).await;
                }
            },
            Some(()) = connections.ended() => {}
        }
    }
}

/// Those that are open; dropping it ends them.
#[derive(Debug, Default)]
struct Connections {
    tasks: JoinSet<()>,
    /// The oldest first, some of them ended.
    each: VecDeque<AbortHandle>,
}

impl Connections {
    /// Opens one more. Where there are as many as may be, the oldest ends for it.
    fn open(&mut self, connection: impl Future<Output = ()> + Send + 'static) {
        self.each.retain(|connection| !connection.is_finished());
        if self.each.len() >= MOST_CONNECTIONS
            && let Some(oldest) = self.each.pop_front()
        {
            tracing::debug!("the HTTP endpoint has as many connections as may be: the oldest ends");
            oldest.abort();
        }
        self.each.push_back(self.tasks.spawn(connection));
    }

    /// Forgets one that has ended; nothing if none is open. Cancel safe.
    async fn ended(&mut self) -> Option<()> {
        self.tasks.join_next().await.map(drop)
    }
}

/// Answers what is asked on a connection, for as long as it may last.
async fn converse(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, router: Router) {
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).max_buf_size(HEAD_BYTES);
    let mut conversation =
        pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    // Whoever broke off, or was too slow, hears no more.
    tokio::select! {
        _ended = conversation.as_mut() => return,
        () = sleep(LIFE) => conversation.as_mut().graceful_shutdown(),
    }
    drop(timeout(FAREWELL, conversation).await);
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

    use axum::body::Body;
    use axum::http::Request;
    use kagzi_core::SharedStore;
    use kagzi_core::memory::MemoryStore;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;
    use tokio::time::Instant;
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

    /// A connection of its own, and the other end of it.
    fn connected(told: &Told, buffer: usize) -> (tokio::io::DuplexStream, tokio::task::JoinHandle<()>) {
        let (client, server) = tokio::io::duplex(buffer);
        (client, tokio::spawn(converse(server, router(told.clone()))))
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_on_which_no_request_comes_whole_ends_be_it_the_first_or_another() {
        let told = told().0;
        for (said, answers) in [
            ("", 0),
            ("GET /livez HTTP/1.1\r\nhost: x\r\n", 0),
            ("GET /livez HTTP/1.1\r\nhost: x\r\n\r\n", 1),
            ("GET /livez HTTP/1.1\r\nhost: x\r\n\r\nGET", 1),
        ] {
            let (mut client, connection) = connected(&told, 1 << 16);
            let before = Instant::now();
            client.write_all(said.as_bytes()).await.unwrap();
            let mut heard = String::new();
            client.read_to_string(&mut heard).await.unwrap();
            connection.await.unwrap();
            assert_eq!(heard.matches("200 OK").count(), answers, "{said}: {heard}");
            assert_eq!(before.elapsed().as_secs(), HEAD_WITHIN.as_secs(), "{said}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_without_end_is_not_read_to_its_end() {
        let (mut client, connection) = connected(&told().0, 1024);
        client.write_all(b"GET /livez HTTP/1.1\r\nx: ").await.unwrap();
        let endless = client.write_all(&vec![b'x'; 4 * HEAD_BYTES]).await;
        assert!(endless.is_err());
        connection.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_does_not_take_its_answers_or_asks_without_end_ends() {
        let told = told().0;
        let before = Instant::now();
        // Unread.
        let (mut client, connection) = connected(&told, 64);
        client.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        connection.await.unwrap();
        assert_eq!(before.elapsed().as_secs(), (LIFE + FAREWELL).as_secs());
        // Kept busy: it is told that this was the last.
        let (mut client, connection) = connected(&told, 1 << 16);
        let before = Instant::now();
        let mut heard = String::new();
        while !connection.is_finished() {
            if client.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.is_err() {
                break;
            }
            sleep(Duration::from_secs(1)).await;
        }
        client.read_to_string(&mut heard).await.unwrap();
        assert!(heard.matches("200 OK").count() > 50, "{heard}");
        assert!(before.elapsed() <= LIFE + FAREWELL, "{:?}", before.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn where_there_are_as_many_as_may_be_the_oldest_ends_for_a_new_one() {
        let mut connections = Connections::default();
        let mut open = || {
            let (alive, gone) = oneshot::channel::<()>();
            connections.open(async move {
                let _alive = alive;
                std::future::pending::<()>().await;
            });
            gone
        };
        let mut open_ones: Vec<_> = (0..MOST_CONNECTIONS).map(|_| open()).collect();
        let new = open();
        let oldest = open_ones.remove(0);
        timeout(Duration::from_mins(1), oldest).await.unwrap().unwrap_err();
        for left in open_ones.iter_mut().chain([new].iter_mut()) {
            assert_eq!(left.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        }
        // One that has ended by itself leaves its place to another.
        connections.each.back().unwrap().abort();
        for _ in 0..2 {
            connections.ended().await.unwrap();
        }
        connections.open(std::future::pending());
        sleep(Duration::from_millis(1)).await;
        assert_eq!(open_ones[0].try_recv(), Err(oneshot::error::TryRecvError::Empty));
        assert_eq!(connections.each.len(), MOST_CONNECTIONS);
    }

    #[tokio::test]
    async fn strangers_who_hold_connections_keep_no_probe_out_nor_the_newest_of_their_own() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(serve(Some(listener), told().0));
        let mut silent = Vec::new();
        for _ in 0..3 * MOST_CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let probe = kagzi_testkit::http_get(address, "/livez");
        let answer = timeout(Duration::from_mins(1), probe).await.unwrap().unwrap();
        assert!(answer.ends_with("alive\n"), "{answer}");
        let last = silent.last_mut().unwrap();
        last.write_all(b"GET /livez HTTP/1.0\r\n\r\n").await.unwrap();
        let mut heard = String::new();
        last.read_to_string(&mut heard).await.unwrap();
        assert!(heard.ends_with("alive\n"), "{heard}");
        serving.abort();
    }
}
