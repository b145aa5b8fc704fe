//! The engine over the reference store. Time is tokio's, paused: it moves only when everything waits,
//! so a wait that took no time was ended by a wake-up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use super::{Engine, EngineOptions};
use crate::clock::{Clock, ManualClock, Timestamp};
use crate::id::{OperationId, RunId};
use crate::limits::Rules;
use crate::memory::MemoryStore;
use crate::name::{Namespace, QueueName, WorkerId, WorkflowType};
use crate::op::{CancelRun, Claim, StartAt, StartRun};
use crate::payload::Payload;
use crate::run::RunState;
use crate::store::SharedStore;

/// Counts how often it is asked: the reference store asks once an operation.
#[derive(Clone, Debug, Default)]
struct CountingClock {
    face: ManualClock,
    asked: Arc<AtomicU64>,
}

impl Clock for CountingClock {
    fn now(&self) -> Timestamp {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.face.now()
    }
}

fn namespace() -> Namespace {
    Namespace::new("n").unwrap()
}

fn queue() -> QueueName {
    QueueName::new("q").unwrap()
}

fn engine(options: EngineOptions) -> (Engine, CountingClock) {
    let clock = CountingClock::default();
    let store = MemoryStore::new(Arc::new(clock.clone()), Rules::default());
    (Engine::new(Arc::new(store), options), clock)
}

async fn start(store: &SharedStore, start_at: StartAt) -> RunId {
    let start_run = StartRun {
        start_at,
        ..StartRun::new(namespace(), queue(), WorkflowType::new("t").unwrap(), Payload::empty())
    };
    store.start(vec![start_run]).await.unwrap()[0].run_id
}

fn claim() -> Claim {
    Claim {
        namespace: namespace(),
        queues: vec![queue()],
        workflow_types: Vec::new(),
        worker_id: WorkerId::new("w").unwrap(),
        lease_length: Duration::from_secs(30),
        limit: 10,
        steps_limit: 100,
        operation: OperationId::generate(),
    }
}

fn rarely() -> EngineOptions {
    EngineOptions { poll_interval: Duration::from_hours(1), ..EngineOptions::default() }
}

#[tokio::test(start_paused = true)]
async fn a_start_wakes_a_poll_at_once() {
    let (engine, _) = engine(rarely());
    let polling = engine.clone();
    let poll = tokio::spawn(async move { polling.poll(claim(), Duration::from_hours(2)).await });
    yield_now().await;
    let before = Instant::now();
    let run_id = start(engine.store(), StartAt::Now).await;
    let claimed = poll.await.unwrap().unwrap();
    assert_eq!(claimed[0].run.run_id, run_id);
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_poll_without_work_ends_empty_after_its_wait() {
    let (engine, _) = engine(EngineOptions::default());
    let before = Instant::now();
    assert!(engine.poll(claim(), Duration::from_secs(20)).await.unwrap().is_empty());
    assert_eq!(before.elapsed(), Duration::from_secs(20));
}

#[tokio::test(start_paused = true)]
async fn a_poll_finds_what_no_hint_told_of_within_its_interval() {
    let (engine, clock) = engine(EngineOptions::default());
    start(engine.store(), StartAt::After(Duration::from_secs(1))).await;
    let polling = engine.clone();
    let poll = tokio::spawn(async move { polling.poll(claim(), Duration::from_hours(1)).await });
    yield_now().await;
    // No reaper runs: only the poll's own look can find the sleeper.
    clock.face.advance(Duration::from_secs(1));
    let before = Instant::now();
    assert_eq!(poll.await.unwrap().unwrap().len(), 1);
    assert!(before.elapsed() <= engine.options().poll_interval);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_idle_polls_cost_one_look_an_interval_together() {
    let (engine, clock) = engine(EngineOptions::default());
    let polls: Vec<_> = (0..100)
        .map(|_| {
            let polling = engine.clone();
            tokio::spawn(async move { polling.poll(claim(), Duration::from_mins(1)).await })
        })
        .collect();
    for poll in polls {
        assert!(poll.await.unwrap().unwrap().is_empty());
    }
    let looks = clock.asked.load(Ordering::SeqCst);
    assert!((60..=200).contains(&looks), "{looks} looks in 60 intervals");
}

#[tokio::test(start_paused = true)]
async fn idle_polls_drift_apart_as_far_as_the_store_lets_them_and_a_hint_brings_them_back() {
    let (engine, clock) = engine(EngineOptions::default());
    engine.store().wake_hub().let_rest(Duration::from_secs(8));
    start(engine.store(), StartAt::After(Duration::from_secs(1))).await;
    let before = clock.asked.load(Ordering::SeqCst);
    let polls: Vec<_> = (0..2)
        .map(|_| {
            let polling = engine.clone();
            tokio::spawn(async move { polling.poll(claim(), Duration::from_hours(2)).await })
        })
        .collect();
    sleep(Duration::from_mins(10)).await;
    let looks = clock.asked.load(Ordering::SeqCst) - before;
    assert!((70..=85).contains(&looks), "{looks} looks in 600 s that are at most 8 s apart");

    start(engine.store(), StartAt::Now).await;
    sleep(Duration::from_millis(1)).await;
    let ended = || polls.iter().filter(|poll| poll.is_finished()).count();
    assert_eq!(ended(), 1, "a hint is heard at once");
    // Nothing tells of the sleeper, so this is found by a look.
    clock.face.advance(Duration::from_secs(1));
    sleep(engine.options().poll_interval).await;
    assert_eq!(ended(), 2, "after work was found, looks are an interval apart");
}

#[tokio::test(start_paused = true)]
async fn one_start_among_a_hundred_waiting_polls_costs_a_few_looks() {
    let (engine, clock) = engine(rarely());
    let polls: Vec<_> = (0..100)
        .map(|_| {
            let polling = engine.clone();
            tokio::spawn(async move { polling.poll(claim(), Duration::from_mins(1)).await })
        })
        .collect();
    sleep(Duration::from_secs(1)).await;
    let before = clock.asked.load(Ordering::SeqCst);
    start(engine.store(), StartAt::Now).await;
    let mut claimed = 0;
    for poll in polls {
        claimed += poll.await.unwrap().unwrap().len();
    }
    assert_eq!(claimed, 1);
    let looks = clock.asked.load(Ordering::SeqCst) - before;
    assert!(looks <= 4, "{looks} operations");
}

#[tokio::test(start_paused = true)]
async fn waiting_for_the_end_of_a_run_ends_with_it() {
    let (engine, _) = engine(rarely());
    let run_id = start(engine.store(), StartAt::Now).await;
    let waiting = engine.clone();
    let waiter =
        tokio::spawn(
            async move { waiting.await_finished(&namespace(), run_id, Duration::from_hours(2)).await },
        );
    yield_now().await;
    let before = Instant::now();
    let cancel = CancelRun {
        namespace: namespace(),
        run_id,
        reason: String::new(),
        operation: OperationId::generate(),
    };
    engine.store().cancel(cancel).await.unwrap();
    assert_eq!(waiter.await.unwrap().unwrap().run.state, RunState::Cancelled);
    assert_eq!(before.elapsed(), Duration::ZERO);
}

fn start_now() -> StartRun {
    StartRun::new(namespace(), queue(), WorkflowType::new("t").unwrap(), Payload::empty())
}

async fn cancel(store: &SharedStore, run_id: RunId) {
    let reason = String::new();
    let cancel = CancelRun { namespace: namespace(), run_id, reason, operation: OperationId::generate() };
    store.cancel(cancel).await.unwrap();
}

fn wait_for(engine: &Engine, run_id: RunId) -> tokio::task::JoinHandle<RunState> {
    let engine = engine.clone();
    tokio::spawn(async move {
        let wait = Duration::from_hours(2);
        engine.await_finished(&namespace(), run_id, wait).await.unwrap().run.state
    })
}

#[tokio::test(start_paused = true)]
async fn a_run_that_was_started_here_is_looked_at_once_it_has_finished() {
    let (engine, clock) = engine(rarely());
    let run_id = engine.start(vec![start_now()]).await.unwrap()[0].run_id;
    let waiter = wait_for(&engine, run_id);
    sleep(Duration::from_millis(1)).await;
    let before = clock.asked.load(Ordering::SeqCst);
    cancel(engine.store(), run_id).await;
    assert_eq!(waiter.await.unwrap(), RunState::Cancelled);
    assert_eq!(clock.asked.load(Ordering::SeqCst) - before, 2, "the cancellation and one look");
    assert_eq!(before, 1, "the start and no look");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_run_before_anybody_waits_for_it_is_not_missed() {
    let (engine, _) = engine(rarely());
    let run_id = engine.start(vec![start_now()]).await.unwrap()[0].run_id;
    cancel(engine.store(), run_id).await;
    let before = Instant::now();
    assert_eq!(wait_for(&engine, run_id).await.unwrap(), RunState::Cancelled);
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn an_end_that_no_hint_told_of_is_found_within_the_poll_interval() {
    let (engine, _) = engine(EngineOptions::default());
    let start = start_now();
    let run_id = start.run_id();
    let fresh = super::fresh::Fresh::default();
    // Its hints go nowhere, as those of another process may.
    let deaf = super::fresh::Fresh::listen(std::slice::from_ref(&start), &crate::wake::WakeHub::new());
    let started = engine.store().start(vec![start]).await.unwrap();
    fresh.keep(deaf, &started);
    let engine = Engine { fresh: Arc::new(fresh), ..engine };
    let waiter = wait_for(&engine, run_id);
    yield_now().await;
    cancel(engine.store(), run_id).await;
    let before = Instant::now();
    assert_eq!(waiter.await.unwrap(), RunState::Cancelled);
    assert_eq!(before.elapsed(), engine.options().poll_interval);
}

#[tokio::test(start_paused = true)]
async fn nobody_listens_for_long_for_runs_that_nobody_waits_for() {
    let (engine, _) = engine(rarely());
    engine.start(vec![start_now()]).await.unwrap();
    let waits = || engine.store().wake_hub().anyone_waits(|topic| matches!(topic, crate::Topic::Run(_)));
    assert!(waits());
    engine.run_reaper(sleep(Duration::from_secs(11))).await;
    assert!(!waits());
}

#[tokio::test(start_paused = true)]
async fn the_runs_of_another_namespace_are_not_found_at_once() {
    let (engine, _) = engine(rarely());
    let run_id = engine.start(vec![start_now()]).await.unwrap()[0].run_id;
    let other = Namespace::new("other").unwrap();
    let error = engine.await_finished(&other, run_id, Duration::from_hours(2)).await.unwrap_err();
    assert!(matches!(error, crate::StoreError::RunNotFound { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn many_who_look_at_the_same_time_share_a_few_reads() {
    let (engine, clock) = engine(rarely());
    let mut runs = Vec::new();
    for _ in 0..64 {
        runs.push(start(engine.store(), StartAt::Now).await);
    }
    let before = clock.asked.load(Ordering::SeqCst);
    let waiters: Vec<_> = runs.iter().map(|run_id| wait_for(&engine, *run_id)).collect();
    sleep(Duration::from_millis(1)).await;
    let looked = clock.asked.load(Ordering::SeqCst) - before;
    assert!(looked <= 3, "{looked} reads for 64 waiters");
    for run_id in runs {
        cancel(engine.store(), run_id).await;
    }
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap(), RunState::Cancelled);
    }
}

#[tokio::test(start_paused = true)]
async fn the_reaper_hears_of_a_deadline_written_after_it_went_to_sleep() {
    let options = EngineOptions { reap_interval: Duration::from_hours(1), ..EngineOptions::default() };
    let (engine, clock) = engine(options);
    let reaping = engine.clone();
    let reaper = tokio::spawn(async move { reaping.run_reaper(std::future::pending()).await });
    yield_now().await;
    let run_id = start(engine.store(), StartAt::After(Duration::from_millis(50))).await;
    // Let it hear of the deadline before the clock is turned to it.
    sleep(Duration::from_millis(1)).await;
    clock.face.advance(Duration::from_millis(50));
    sleep(Duration::from_millis(50)).await;
    let record = engine.store().get_run(&namespace(), run_id).await.unwrap();
    assert_eq!(record.run.state, RunState::Pending);
    reaper.abort();
}

#[tokio::test(start_paused = true)]
async fn an_idle_reaper_asks_once_an_interval() {
    let (engine, clock) = engine(EngineOptions::default());
    engine.run_reaper(sleep(Duration::from_mins(1))).await;
    let asked = clock.asked.load(Ordering::SeqCst);
    assert!((12..=13).contains(&asked), "{asked} questions in 12 intervals");
}

#[tokio::test(start_paused = true)]
async fn a_stopped_poll_ends_its_wait_empty_but_hands_over_what_its_claim_took() {
    let (engine, _) = engine(rarely());
    let before = Instant::now();
    let stop = sleep(Duration::from_secs(3));
    assert!(engine.poll_until(claim(), Duration::from_hours(2), stop).await.unwrap().is_empty());
    assert_eq!(before.elapsed(), Duration::from_secs(3));

    let run_id = start(engine.store(), StartAt::Now).await;
    let stopped = async {};
    let claimed = engine.poll_until(claim(), Duration::from_hours(2), stopped).await.unwrap();
    assert_eq!(claimed[0].run.run_id, run_id, "stopped before it began, but it claimed");
}
