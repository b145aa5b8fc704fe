//! Connections of those whom nobody knows, to a server that has as many as may be.

use std::time::Duration;

use hyper_util::rt::TokioIo;
use kagzi_server::{LoadLimits, ServerConfig, ServerHandle};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::support::*;

/// So many connections there may be, in all or from one address.
const MOST: u32 = 3;

/// What every client begins with: the preface, and settings that change nothing.
const BEGIN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A connection on which HTTP/2 has begun, and nothing else.
async fn silent(server: &ServerHandle) -> TcpStream {
    let mut stream = TcpStream::connect(server.local_addr()).await.unwrap();
    stream.write_all(BEGIN).await.unwrap();
    // The server's own settings: it is not only accepted.
    soon(stream.read_exact(&mut [0; 9])).await.unwrap();
    stream
}

/// Until the server ends a connection.
async fn ends(mut stream: TcpStream) {
    let mut said = Vec::new();
    // It is closed, or reset if something that was sent had not been read.
    soon(stream.read_to_end(&mut said)).await.ok();
}

/// A channel over one connection: once it has ended, there is no other.
async fn once(server: &ServerHandle) -> Channel {
    let mut stream = Some(TokioIo::new(TcpStream::connect(server.local_addr()).await.unwrap()));
    let connect = tower::service_fn(move |_| {
        let stream = stream.take().ok_or_else(|| std::io::Error::other("the connection has ended"));
        async { stream }
    });
    soon(Endpoint::from_static("http://kagzi").connect_with_connector(connect)).await.unwrap()
}

fn limits() -> [LoadLimits; 2] {
    [
        LoadLimits { max_connections: MOST, ..LoadLimits::default() },
        LoadLimits { max_connections_per_address: Some(MOST), ..LoadLimits::default() },
    ]
}

#[tokio::test]
async fn silent_connections_give_way_to_a_new_one_that_calls_and_throw_out_nobody_who_is_known() {
    for load in limits() {
        for access in [false, true] {
            let (files, ada) = (Files::new(), known("ada", &["role = 'client'\nnamespaces = ['*']"]));
            let access_file = access.then(|| files.write("access.toml", &ada.entry));
            // Nobody is asked for a sign of life, which would end those who do not give it.
            let keepalive_interval = Duration::from_hours(1);
            let config = ServerConfig { access_file, load: load.clone(), keepalive_interval, ..config() };
            let server = serve(config).await;
            let shown = access.then(|| format!("Bearer {}", ada.token));
            let mut strangers = Vec::new();
            for _ in 0..MOST {
                strangers.push(silent(&server).await);
            }
            let mut known = Vec::new();
            for _ in 0..MOST - 1 {
                let mut caller = Caller::over(&once(&server).await, shown.clone());
                ends(strangers.remove(0)).await;
                soon(caller.ask()).await.unwrap();
                known.push(caller);
            }
            // However many come, they take places from each other.
            for _ in 0..5 {
                let new = silent(&server).await;
                ends(std::mem::replace(&mut strangers[0], new)).await;
            }
            for caller in &mut known {
                soon(caller.ask()).await.unwrap();
            }
            let mut last = Caller::over(&once(&server).await, shown.clone());
            soon(last.ask()).await.unwrap();
            ends(strangers.remove(0)).await;
            // Now all are known, and one too many is closed before anything was said on it.
            let mut stream = TcpStream::connect(server.local_addr()).await.unwrap();
            assert!(!matches!(soon(stream.read(&mut [0; 1])).await, Ok(1)));
            for caller in known.iter_mut().chain([&mut last]) {
                soon(caller.ask()).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn who_shows_what_nobody_knows_or_asks_for_health_stays_a_stranger() {
    let (files, ada) = (Files::new(), known("ada", &["role = 'client'\nnamespaces = ['*']"]));
    let access_file = Some(files.write("access.toml", &ada.entry));
    let load = LoadLimits { max_connections: 2, ..LoadLimits::default() };
    let server = serve(ServerConfig { access_file, load, ..config() }).await;
    let guessing = once(&server).await;
    let guess = Some("Bearer kagzi_guess".to_owned());
    assert_eq!(code(Caller::over(&guessing, guess.clone()).ask().await), Code::Unauthenticated);
    let looking = once(&server).await;
    let check = tonic_health::pb::HealthCheckRequest::default;
    let mut health = tonic_health::pb::health_client::HealthClient::new(looking);
    health.check(check()).await.unwrap();
    let by_token = |channel: &Channel| Caller::over(channel, Some(format!("Bearer {}", ada.token)));
    let mut one = by_token(&once(&server).await);
    soon(one.ask()).await.unwrap();
    let mut other = by_token(&once(&server).await);
    soon(other.ask()).await.unwrap();
    // Both have given way by then.
    soon(async {
        while Caller::over(&guessing, guess.clone()).ask().await.unwrap_err().code() != Code::Unavailable {}
    })
    .await;
    soon(async { while health.check(check()).await.is_ok() {} }).await;
    one.ask().await.unwrap();
    other.ask().await.unwrap();
}
