//! A world for a test: a store in memory whose clock is tokio's, paused. Time moves only when everything
//! waits, and then at once to the next moment that somebody waits for, so an hour costs nothing and no
//! test depends on how fast it runs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]
#![allow(dead_code, unused_imports, reason = "every test target uses its own part")]

mod watched;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kagzi_core::{Clock, Rules, Timestamp};
use kagzi_sdk::{Client, Context, MemoryStore, RunHandle, Start, StatsHandle, Worker, WorkerBuilder};
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use watched::{Fault, Watched};

/// Tells tokio's time from a fixed moment on.
#[derive(Debug)]
struct TokioClock(Instant);

impl Clock for TokioClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(1_767_225_600_000_000).unwrap().saturating_add(self.0.elapsed())
    }
}

pub struct World {
    pub store: Arc<Watched>,
    pub client: Client,
}

pub fn world() -> World {
    world_with(Rules::default())
}

pub fn world_with(rules: Rules) -> World {
    let memory = MemoryStore::new(Arc::new(TokioClock(Instant::now())), rules);
    let store = Arc::new(Watched::new(memory));
    let client = Client::embedded(store.clone());
    World { store, client }
}

impl World {
    /// A worker on the queue `default`, to be given workflows.
    pub fn worker(&self) -> WorkerBuilder {
        Worker::builder(self.client.clone()).queue("default").lease(Duration::from_secs(30))
    }

    pub async fn start(&self, workflow_type: &str) -> RunHandle {
        self.client.start(Start::workflow(workflow_type)).await.unwrap()
    }

    /// The steps of a run as `id/attempt STATE`, in the order of its history.
    pub async fn history(&self, run: &RunHandle) -> Vec<String> {
        let attempts = run.attempts().await.unwrap();
        attempts.iter().map(|a| format!("{}/{} {}", a.step_id, a.attempt, a.state)).collect()
    }
}

/// Works in the background. Aborting the handle is a crash: nothing is released or finished.
pub fn work(builder: WorkerBuilder) -> JoinHandle<()> {
    let worker = builder.build().unwrap();
    tokio::spawn(async move { worker.run().await.unwrap() })
}

/// Ends a worker as a crash would.
pub async fn crash(worker: JoinHandle<()>) {
    worker.abort();
    worker.await.unwrap_err();
}

/// Works in the background, and gives the counters to look at.
pub fn work_counted(builder: WorkerBuilder) -> StatsHandle {
    let worker = builder.build().unwrap();
    let stats = worker.stats();
    tokio::spawn(worker.run());
    stats
}

/// A workflow of which each execution gets a clone of what the test looks at.
pub fn with<S, In, F, Fut>(
    seen: S,
    workflow: F,
) -> impl Fn(Context, In) -> Fut + Clone + Send + Sync + 'static
where
    S: Clone + Send + Sync + 'static,
    F: Fn(Context, In, S) -> Fut + Clone + Send + Sync + 'static,
{
    move |ctx, input| workflow(ctx, input, seen.clone())
}

/// How often something happened.
#[derive(Clone, Debug, Default)]
pub struct Tally(Arc<AtomicUsize>);

impl Tally {
    /// Counts one, and answers which one it is, from 1.
    pub fn one(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// Waits, in paused time, until something holds.
pub async fn until<F: Future<Output = bool>>(mut holds: impl FnMut() -> F) {
    for _ in 0..100_000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it never came to hold");
}
