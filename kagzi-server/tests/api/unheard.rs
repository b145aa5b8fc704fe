//! Calls whose answer does not arrive: what they did is unknown to whoever sent them, however that shows.

use std::time::Duration;

use kagzi_core::{Namespace, Payload, QueueName, StartRun, StoreError, WorkflowType};
use kagzi_sdk::DEFAULT_NAMESPACE;
use kagzi_sdk::transport::{Grpc, GrpcOptions, Protocol, Transport as _};
use kagzi_testkit::{Direction, Proxy};
use tokio::task::yield_now;

use crate::support::*;

const LONG: Duration = Duration::from_mins(10);

fn start() -> StartRun {
    let (namespace, queue) = (Namespace::new(DEFAULT_NAMESPACE).unwrap(), QueueName::new("q").unwrap());
    StartRun::new(namespace, queue, WorkflowType::new("t").unwrap(), Payload::json("1"))
}

fn options(keep_alive: Duration, timeout: Duration) -> GrpcOptions {
    let mut options = GrpcOptions::default();
    (options.keep_alive, options.timeout, options.protocol) = (keep_alive, timeout, Protocol::Calls);
    options
}

/// Sends a start that is done and whose answer is kept back; then does `spoil`, and gives what the sender heard.
async fn unheard(options: GrpcOptions, spoil: impl FnOnce(&Proxy)) -> StoreError {
    let server = serve(Backend::Memory).await;
    let near = Grpc::connect(&server.handle.url(), &GrpcOptions::default()).await.unwrap();
    let proxy = Proxy::to(server.handle.local_addr()).await.unwrap();
    let far = Grpc::connect(&proxy.url(), &options).await.unwrap();
    let namespace = Namespace::new(DEFAULT_NAMESPACE).unwrap();
    far.queue_depths(&namespace).await.unwrap();
    proxy.mute();
    let starting = tokio::spawn(async move { far.start(vec![start()]).await });
    soon(async {
        while near.queue_depths(&namespace).await.unwrap().iter().all(|depth| depth.pending == 0) {
            yield_now().await;
        }
    })
    .await;
    spoil(&proxy);
    soon(starting).await.unwrap().unwrap_err()
}

#[tokio::test]
async fn a_call_on_a_silent_link_that_is_given_up_may_have_been_done() {
    let error = unheard(options(Duration::from_millis(100), LONG), |_| {}).await;
    assert!(matches!(error, StoreError::OutcomeUnknown { .. }), "{error:?}");
}

#[tokio::test]
async fn a_call_on_a_link_that_breaks_may_have_been_done() {
    let error = unheard(options(LONG, LONG), |proxy| proxy.cut_after(Direction::Down, 0)).await;
    assert!(matches!(error, StoreError::OutcomeUnknown { .. }), "{error:?}");
}

#[tokio::test]
async fn a_call_whose_time_runs_out_may_have_been_done() {
    let error = unheard(options(LONG, Duration::from_secs(2)), |_| {}).await;
    assert!(matches!(error, StoreError::OutcomeUnknown { .. }), "{error:?}");
}

#[tokio::test]
async fn a_call_that_found_no_connection_was_not_done() {
    let server = serve(Backend::Memory).await;
    let proxy = Proxy::to(server.handle.local_addr()).await.unwrap();
    let far = Grpc::connect(&proxy.url(), &options(LONG, LONG)).await.unwrap();
    drop(proxy);
    // The first may still find the connection that has just been cut.
    soon(async {
        while let error = far.start(vec![start()]).await.unwrap_err()
            && !matches!(error, StoreError::Unavailable { .. })
        {
            assert!(matches!(error, StoreError::OutcomeUnknown { .. }), "{error:?}");
        }
    })
    .await;
}
