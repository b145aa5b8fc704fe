//! What goes and what stays. The store's clock is turned by hand, the runtime's is paused.

use std::sync::Arc;

use kagzi_core::memory::MemoryStore;
use kagzi_core::{
    CancelRun, Claim, CompleteRun, FailRun, Failure, Lease, ListRuns, ManualClock, OperationId, PageRequest,
    Payload, QueueName, Rules, RunFilter, RunId, StartRun, WorkerId, WorkflowType,
};

use super::*;

const DAY: Duration = Duration::from_hours(24);

struct World {
    clock: ManualClock,
    store: SharedStore,
    metrics: Metrics,
}

fn world() -> World {
    let clock = ManualClock::default();
    let store: SharedStore = Arc::new(MemoryStore::new(Arc::new(clock.clone()), Rules::default()));
    let metrics = Metrics::new(&store);
    World { clock, store, metrics }
}

fn namespace(name: &str) -> Namespace {
    Namespace::new(name).unwrap()
}

impl World {
    fn keeper(&self, retention: &Retention) -> Keeper {
        Keeper::new(self.store.clone(), self.metrics.clone(), &[namespace("a"), namespace("b")], retention)
    }

    async fn start(&self, name: &str) -> RunId {
        let (queue, workflow_type) = (QueueName::new("q").unwrap(), WorkflowType::new("t").unwrap());
        let start = StartRun::new(namespace(name), queue, workflow_type, Payload::json("1"));
        self.store.start(vec![start]).await.unwrap()[0].run_id
    }

    async fn lease(&self, name: &str) -> Lease {
        let claim = Claim {
            namespace: namespace(name),
            queues: vec![QueueName::new("q").unwrap()],
            workflow_types: Vec::new(),
            worker_id: WorkerId::new("w").unwrap(),
            lease_length: DAY * 365,
            limit: 1,
            steps_limit: 1,
            operation: OperationId::generate(),
        };
        self.store.claim(claim).await.unwrap().remove(0).lease.lease
    }

    /// A run that ends now in this state.
    async fn finished(&self, name: &str, state: RunState) -> RunId {
        let run_id = self.start(name).await;
        let operation = OperationId::generate();
        match state {
            RunState::Cancelled => {
                let cancel =
                    CancelRun { namespace: namespace(name), run_id, reason: String::new(), operation };
                self.store.cancel(cancel).await.unwrap();
            }
            RunState::Failed => {
                let (lease, failure) = (self.lease(name).await, Failure::non_retryable("x", "x"));
                self.store.fail_run(FailRun { lease, failure, operation }).await.unwrap();
            }
            _ => {
                let (lease, output) = (self.lease(name).await, Payload::json("2"));
                self.store.complete_run(CompleteRun { lease, output, operation }).await.unwrap();
            }
        }
        run_id
    }

    async fn runs(&self, name: &str) -> Vec<RunId> {
        let filter = RunFilter::default();
        let list = ListRuns { namespace: namespace(name), filter, page: PageRequest::first(1000) };
        let mut runs: Vec<RunId> =
            self.store.list_runs(&list).await.unwrap().items.iter().map(|run| run.run_id).collect();
        runs.sort();
        runs
    }
}

fn sorted<const N: usize>(mut runs: [RunId; N]) -> Vec<RunId> {
    runs.sort();
    runs.to_vec()
}

#[tokio::test(start_paused = true)]
async fn each_state_has_its_own_time_and_what_lives_or_is_kept_for_ever_stays() {
    let world = world();
    let keeper =
        world.keeper(&Retention { completed: Some(DAY), cancelled: Some(DAY * 3), ..Retention::default() });
    let live = world.start("a").await;
    world.lease("a").await;
    let completed = world.finished("a", RunState::Completed).await;
    let failed = world.finished("a", RunState::Failed).await;
    let cancelled = world.finished("a", RunState::Cancelled).await;
    let elsewhere = world.finished("b", RunState::Completed).await;

    world.clock.advance(DAY);
    keeper.sweep().await.unwrap();
    assert_eq!(world.runs("a").await, sorted([live, completed, failed, cancelled]), "its time is not over");
    assert_eq!(world.runs("b").await, [elsewhere]);

    world.clock.advance(Duration::from_secs(1));
    let young = world.finished("a", RunState::Completed).await;
    keeper.sweep().await.unwrap();
    assert_eq!(world.runs("a").await, sorted([live, failed, cancelled, young]));
    assert!(world.runs("b").await.is_empty(), "every namespace that is served");

    world.clock.advance(DAY * 2);
    keeper.sweep().await.unwrap();
    assert_eq!(world.runs("a").await, sorted([live, failed]));
    let text = world.metrics.text().unwrap();
    for (state, removed) in [("completed", 3), ("cancelled", 1), ("failed", 0)] {
        let shown = format!("kagzi_runs_expired_total{{state=\"{state}\"}} {removed}\n");
        assert!(text.contains(&shown), "{shown} in {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn many_go_in_batches_with_a_pause_after_each() {
    let world = world();
    let completed = Some(DAY);
    let keeper = world.keeper(&Retention { completed, batch: 10, ..Retention::default() });
    for _ in 0..25 {
        world.finished("a", RunState::Completed).await;
    }
    world.clock.advance(DAY * 2);
    let began = Instant::now();
    keeper.sweep().await.unwrap();
    assert!(world.runs("a").await.is_empty());
    // Ten, ten, five, none; and none in the other namespace.
    assert_eq!(began.elapsed(), SHORTEST_PAUSE * 5);
}

#[test]
fn the_store_is_left_alone_for_four_times_as_long_as_a_batch_took() {
    assert_eq!(pause(Duration::from_millis(250)), Duration::from_secs(1));
    assert_eq!(pause(Duration::ZERO), SHORTEST_PAUSE);
}

#[tokio::test(start_paused = true)]
async fn it_looks_again_and_again_and_an_error_only_costs_one_turn() {
    let world = world();
    let completed = Some(DAY);
    let interval = Duration::from_mins(5);
    let keeper = world.keeper(&Retention { completed, interval, ..Retention::default() });
    world.finished("a", RunState::Completed).await;
    let keeping = tokio::spawn(async move { keeper.run().await });
    sleep(interval * 2).await;
    assert_eq!(world.runs("a").await.len(), 1);
    world.clock.advance(DAY * 2);
    sleep(interval * 2).await;
    assert!(world.runs("a").await.is_empty());
    world.store.close().await.unwrap();
    sleep(interval * 3).await;
    assert!(!keeping.is_finished(), "it does not give up");
    keeping.abort();
}

#[test]
fn servers_that_began_together_look_at_different_moments_and_none_later_than_it_should() {
    let interval = Duration::from_mins(1);
    let mut moments: Vec<Duration> = (0..100).map(|_| spread(interval)).collect();
    assert!(moments.iter().all(|moment| (interval * 3 / 4..=interval).contains(moment)), "{moments:?}");
    moments.sort_unstable();
    moments.dedup();
    assert!(moments.len() > 90, "{}", moments.len());
}

#[tokio::test(start_paused = true)]
async fn nothing_goes_unless_a_setting_says_so() {
    let world = world();
    let keeper = world.keeper(&Retention::default());
    let kept = world.finished("a", RunState::Completed).await;
    world.clock.advance(DAY * 10_000);
    tokio::time::timeout(DAY, keeper.run()).await.unwrap_err();
    assert_eq!(world.runs("a").await, [kept]);
}
