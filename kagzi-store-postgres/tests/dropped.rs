//! A caller may go away at any moment.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod support;

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use kagzi_core::{FailStep, Failure, OperationId, StepId, Store as _, StoreError};
use kagzi_store_postgres::{Listen, PostgresOptions, PostgresStore};
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};

use support::{begin, database, held};

/// How often all points are tried at most.
const ROUNDS: usize = 20;

/// Goes away when the future has been polled `points` times, unless it has ended by then.
async fn dropped_after<T>(points: u32, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut polled = 0;
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if polled == points => Poll::Ready(None),
        Poll::Pending => {
            polled += 1;
            Poll::Pending
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_after_a_call_was_dropped_at_any_point_is_committed() {
    let database = database().await;
    let options =
        PostgresOptions { max_connections: 2, listen: Listen::Off, ..PostgresOptions::new(database.url()) };
    let store = PostgresStore::connect(options).await.unwrap();
    let lease = held(&store, 1).await.remove(0);
    let mut outside = PgConnection::connect(&database.url()).await.unwrap();
    let mut begun = 0;
    let mut deepest = 0;
    // Where the machine has much else to do an answer may be there before it is waited for: then there are fewer
    // points, and another round finds more.
    for _ in 0..ROUNDS {
        let mut points = 0;
        loop {
            let fail = FailStep {
                lease: lease.clone(),
                step_id: StepId::new("never-begun").unwrap(),
                attempt: 1,
                failure: Failure::retryable("", ""),
                operation: OperationId::generate(),
            };
            let ended = dropped_after(points, store.fail_step(fail)).await;
            // The connections take turns, so one of these has the one that was dropped.
            for _ in 0..3 {
                begin(&store, &lease, begun).await.unwrap();
                begun += 1;
            }
            let seen = outside.fetch_one("SELECT count(*) FROM steps").await.unwrap().get::<i64, _>(0);
            assert_eq!(seen, i64::from(begun), "after a call that was dropped at point {points}");
            if let Some(answer) = ended {
                assert!(matches!(answer, Err(StoreError::AttemptNotRunning { .. })), "{answer:?}");
                break;
            }
            points += 1;
        }
        deepest = deepest.max(points);
        if deepest > 2 {
            return;
        }
    }
    panic!("the call waits for BEGIN, for the run and for the attempt: {deepest}");
}
