//! More connections than there may be, to a real server.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use kagzi_sdk::{Client, ClientError, Start};
use kagzi_server::{LoadLimits, ServerConfig};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::task::yield_now;

use crate::support::*;

/// Room for two connections in all, or from one address.
fn two() -> [LoadLimits; 2] {
    [
        LoadLimits { max_connections: 2, ..LoadLimits::default() },
        LoadLimits { max_connections_per_address: Some(2), ..LoadLimits::default() },
    ]
}

/// Whether a connection is closed before anything was said on it.
async fn is_closed_at_once(server: SocketAddr) -> bool {
    let mut connection = TcpStream::connect(server).await.unwrap();
    let mut said = [0; 1];
    match soon(connection.read(&mut said)).await {
        Ok(said) => said == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

async fn shown(http: SocketAddr, series: &str) -> u32 {
    let page = kagzi_testkit::http_get(http, "/metrics").await.unwrap();
    let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{series} in {page}")).parse().unwrap()
}

#[tokio::test]
async fn one_more_than_may_be_is_closed_at_once_and_gets_in_when_another_has_gone() {
    for load in two() {
        let config = ServerConfig {
            load: load.clone(),
            http_listen: Some("127.0.0.1:0".to_owned()),
            ..Default::default()
        };
        let mut server = serve_with(Backend::Memory, config).await;
        let (address, http) = (server.handle.local_addr(), server.handle.http_addr().unwrap());
        // The first is the test's own. Who has not called would give way.
        server.start().await;
        let second = Client::connect(server.handle.url()).await.unwrap();
        second.queue_depths().await.unwrap();
        assert_eq!(shown(http, "kagzi_connections").await, 2, "{load:?}");

        assert!(is_closed_at_once(address).await, "{load:?}");
        assert_eq!(shown(http, "kagzi_refusals_total{reason=\"connections\"}").await, 1);
        let third = Client::connect_lazy(server.handle.url()).unwrap();
        let refused = third.clone().with_patience(Duration::ZERO).queue_depths().await.unwrap_err();
        assert!(
            matches!(&refused, ClientError::Call(error) if error.is_retryable()),
            "{load:?}: a call that found no room may be repeated: {refused:?}"
        );
        // Those that were there are served as before.
        server.start().await;
        second.queue_depths().await.unwrap();

        let waiting = third.clone().with_patience(Duration::from_mins(1));
        let waiting = tokio::spawn(async move {
            waiting.start(Start::workflow("t").queue("q")).await.map(|run| run.run_id())
        });
        while shown(http, "kagzi_refusals_total{reason=\"connections\"}").await < 3 {
            yield_now().await;
        }
        drop(second);
        let run_id = soon(waiting).await.unwrap().unwrap();
        assert_eq!(server.state(&run_id.to_string()).await, kagzi_proto::v1::RunState::Pending);
        assert_eq!(shown(http, "kagzi_connections").await, 2);
        assert!(is_closed_at_once(address).await, "{load:?}: it is full again");
    }
}
