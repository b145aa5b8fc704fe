//! What a claim over several partitions costs. Alone in its process: who listens on one thread may not hear what another
//! thread sent first.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kagzi_core::Store;
use kagzi_store_postgres::{Listen, PostgresOptions, PostgresStore};
use support::{claim, database, start};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Counts the statements that this thread's tasks send.
#[derive(Clone, Default)]
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn take(&self) -> usize {
        self.0.swap(0, Ordering::SeqCst)
    }
}

impl Subscriber for Counted {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "kagzi::statements"
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[tokio::test]
async fn a_claim_asks_each_partition_once_and_finds_what_lies_in_one_of_them_at_once() {
    let database = database().await;
    let options =
        PostgresOptions { partitions: Some(32), listen: Listen::Off, ..PostgresOptions::new(database.url()) };
    let store = PostgresStore::connect(options).await.unwrap();
    let counted = Counted::default();
    let _guard = tracing::subscriber::set_default(counted.clone());
    assert!(store.claim(claim("q", 10)).await.unwrap().is_empty());
    assert_eq!(counted.take(), 32 + 1, "a look at each partition, under the lock of the claim");
    for _ in 0..20 {
        let started = store.start(vec![start("q")]).await.unwrap()[0].run_id;
        counted.take();
        let claimed = store.claim(claim("q", 10)).await.unwrap();
        assert_eq!(claimed.iter().map(|one| one.run.run_id).collect::<Vec<_>>(), [started]);
        assert_eq!(counted.take(), 32 + 2, "and one take, where the run is");
    }
}
