//! The HTTP endpoint of a running server: on an address of its own, over every store.

use std::net::SocketAddr;

use kagzi_proto::v1;
use kagzi_server::ServerConfig;
use tokio::net::TcpStream;

use crate::support::*;

fn with_http() -> ServerConfig {
    ServerConfig { http_listen: Some("127.0.0.1:0".to_owned()), ..ServerConfig::default() }
}

async fn get(address: SocketAddr, path: &str) -> String {
    kagzi_testkit::http_get(address, path).await.unwrap()
}

#[tokio::test]
async fn what_a_server_did_stands_on_its_metrics_page() {
    for backend in BACKENDS {
        let mut server = serve_with(backend, with_http()).await;
        let http = server.handle.http_addr().unwrap();
        assert_ne!(http, server.handle.local_addr());
        assert!(get(http, "/livez").await.starts_with("HTTP/1.1 200"));
        assert!(get(http, "/readyz").await.starts_with("HTTP/1.1 200"));

        server.start().await;
        server.start().await;
        server.claim().await;
        let unknown = v1::StartWorkflowRequest { namespace: "elsewhere".to_owned(), ..start() };
        server.workflows.start_workflow(unknown).await.unwrap_err();
        let page = get(http, "/metrics").await;
        assert!(page.contains("content-type: text/plain; version=0.0.4"), "{page}");
        for line in [
            "kagzi_requests_total{method=\"StartWorkflow\",code=\"OK\"} 2",
            "kagzi_requests_total{method=\"StartWorkflow\",code=\"NOT_FOUND\"} 1",
            "kagzi_requests_total{method=\"PollActivity\",code=\"OK\"} 1",
            "kagzi_refusals_total{reason=\"unknown_namespace\"} 1",
            "kagzi_starts_total{namespace=\"default\",queue=\"q\",outcome=\"created\"} 2",
            "kagzi_runs_claimed_total{namespace=\"default\",queue=\"q\"} 1",
            "kagzi_requests_in_flight 0",
        ] {
            assert!(page.lines().any(|said| said == line), "{backend:?}: {line} in {page}");
        }
        let batches = page.lines().find_map(|line| line.strip_prefix("kagzi_store_batches_total "));
        match backend {
            Backend::Memory => assert_eq!(batches, None),
            Backend::Sqlite | Backend::Postgres => {
                assert!(batches.unwrap().parse::<u64>().unwrap() >= 2, "{page}");
                assert!(page.contains("kagzi_store_connections{state=\"idle\"}"), "{page}");
            }
        }
        server.handle.shutdown().await.unwrap();
        assert!(TcpStream::connect(http).await.is_err(), "it ends with its server");
    }
}

#[tokio::test]
async fn a_server_that_was_not_told_to_has_no_http_endpoint() {
    let server = serve(Backend::Memory).await;
    assert_eq!(server.handle.http_addr(), None);
}
