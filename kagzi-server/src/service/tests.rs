//! The services without a network: waits, drains, hand-overs and the size of responses.
//!
//! Time is tokio's, paused, so that a wait costs nothing and its length can be read off.

use std::sync::Arc;
use std::time::Duration;

use kagzi_core::engine::EngineOptions;
use kagzi_core::memory::MemoryStore;
use kagzi_core::{
    AttemptScope, BeginStep, Claim, ClaimedRun, CompleteStep, ListAttempts, ManualClock, Namespace, NextStep,
    OperationId, PageRequest, Payload, QueueName, RunState, StartRun, StepId, Then, Topic, WorkerId,
    WorkflowType,
};
use kagzi_proto::v1;
use kagzi_proto::v1::worker_service_server::WorkerService as _;
use kagzi_proto::v1::workflow_service_server::WorkflowService as _;
use prost::Message as _;
use tokio::time::Instant;
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

mod failures;
mod record;
mod wide_claims;

use super::*;
use crate::breaker::Breaker;
use crate::metrics::Metered;
use crate::shutdown::Drained;

pub(super) fn services() -> Services {
    services_with(ServerConfig::default().max_batch)
}

fn services_with(max_batch: u32) -> Services {
    services_of(&ServerConfig { max_batch, ..ServerConfig::default() })
}

/// Services over a store in memory, which let calls wait for hours.
pub(super) fn services_of(config: &ServerConfig) -> Services {
    services_over(config, Arc::new(MemoryStore::new(Arc::new(ManualClock::default()), config.rules.clone())))
}

/// The same over a store that there is.
pub(super) fn services_over(config: &ServerConfig, store: SharedStore) -> Services {
    services_for(config, store, Auth::open())
}

fn services_for(config: &ServerConfig, store: SharedStore, auth: Auth) -> Services {
    let config = ServerConfig { max_poll_wait: Duration::from_hours(2), ..config.clone() };
    let rarely = EngineOptions { poll_interval: Duration::from_hours(1), ..EngineOptions::default() };
    let metrics = Metrics::new(&store);
    let engine = Engine::new(Metered::over(store, metrics.clone()), rarely);
    let (reporter, _) = tonic_health::server::health_reporter();
    let health = Health::new(reporter, Breaker::new(metrics.clone()));
    Services::new(&config, engine, Drain::default(), health, auth, metrics)
}

fn namespace() -> Namespace {
    Namespace::new("default").unwrap()
}

fn queue() -> QueueName {
    QueueName::new("q").unwrap()
}

fn poll(limit: u32, wait: Duration) -> Request<v1::PollActivityRequest> {
    Request::new(v1::PollActivityRequest {
        namespace: "default".to_owned(),
        queues: vec!["q".to_owned()],
        worker_id: "w".to_owned(),
        limit,
        steps_limit: 1000,
        wait: Some(kagzi_sdk::wire::duration_to_wire(wait)),
        ..Default::default()
    })
}

pub(super) async fn start(services: &Services, input_bytes: usize) {
    let input = Payload::raw(vec![7_u8; input_bytes]);
    let start = StartRun::new(namespace(), queue(), WorkflowType::new("t").unwrap(), input);
    services.store().start(vec![start]).await.unwrap();
}

pub(super) async fn claim(services: &Services) -> ClaimedRun {
    let claim = Claim {
        namespace: namespace(),
        queues: vec![queue()],
        workflow_types: Vec::new(),
        worker_id: WorkerId::new("w").unwrap(),
        lease_length: Duration::from_secs(30),
        limit: 1,
        steps_limit: 1,
        operation: OperationId::generate(),
    };
    services.store().claim(claim).await.unwrap().remove(0)
}

/// Claims a run and gives it `count` completed steps with outputs of `bytes` each.
async fn record_steps(services: &Services, count: u32, bytes: usize) -> ClaimedRun {
    let claimed = claim(services).await;
    let lease = claimed.lease.lease.clone();
    for position in 0..count {
        let step_id = StepId::new(format!("step-{position}")).unwrap();
        let operation = OperationId::generate;
        let step = NextStep::new(step_id.clone(), position);
        let begin = BeginStep { lease: lease.clone(), step, operation: operation() };
        services.store().begin_step(begin).await.unwrap();
        let output = Payload::raw(vec![9_u8; bytes]);
        let complete = CompleteStep {
            lease: lease.clone(),
            step_id,
            attempt: 1,
            output,
            then: Then::Nothing,
            operation: operation(),
        };
        services.store().complete_step(complete).await.unwrap();
    }
    claimed
}

async fn release(services: &Services, claimed: &ClaimedRun) {
    let lease = claimed.lease.lease.clone();
    let release = kagzi_core::ReleaseRun { lease, operation: OperationId::generate() };
    services.store().release(release).await.unwrap();
}

pub(super) async fn states(services: &Services) -> Vec<RunState> {
    let list = kagzi_core::ListRuns {
        namespace: namespace(),
        filter: kagzi_core::RunFilter::default(),
        page: PageRequest::first(1000),
    };
    services.store().list_runs(&list).await.unwrap().items.iter().map(|run| run.state).collect()
}

/// Whether somebody waits for work.
pub(super) fn anyone_polls(services: &Services) -> bool {
    services.store().wake_hub().anyone_waits(|topic| matches!(topic, Topic::Queue(..)))
}

#[tokio::test(start_paused = true)]
async fn a_poll_is_woken_by_a_start_at_once() {
    let services = services();
    let polling = services.clone();
    let call = tokio::spawn(async move { polling.poll_activity(poll(1, Duration::from_hours(2))).await });
    while !anyone_polls(&services) {
        tokio::task::yield_now().await;
    }
    let before = Instant::now();
    start(&services, 0).await;
    let answer = call.await.unwrap().unwrap().into_inner();
    assert_eq!(answer.runs.len(), 1);
    assert_eq!(before.elapsed(), Duration::ZERO, "woken, not timed out");
}

#[tokio::test(start_paused = true)]
async fn a_poll_waits_as_long_as_its_caller_asks_but_no_longer_than_allowed() {
    let services = services();
    for (asked, expected) in [(0, 0), (20, 20), (100_000, 7_200)] {
        let before = Instant::now();
        let answer = services.poll_activity(poll(1, Duration::from_secs(asked))).await.unwrap();
        assert!(answer.into_inner().runs.is_empty());
        assert_eq!(before.elapsed(), Duration::from_secs(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_waits_at_once_and_refuses_new_calls_with_a_delay() {
    let services = services();
    start(&services, 0).await;
    let run_id = claim(&services).await.run.run_id.to_string();
    let (polling, waiting) = (services.clone(), services.clone());
    let polls = tokio::spawn(async move { polling.poll_activity(poll(1, Duration::from_hours(2))).await });
    let get = v1::GetWorkflowRequest {
        namespace: "default".to_owned(),
        run_id,
        wait: Some(kagzi_sdk::wire::duration_to_wire(Duration::from_hours(1))),
    };
    let gets = get.clone();
    let waits = tokio::spawn(async move { waiting.get_workflow(Request::new(gets)).await });
    while !(anyone_polls(&services)
        && services.store().wake_hub().anyone_waits(|topic| matches!(topic, Topic::Run(_))))
    {
        tokio::task::yield_now().await;
    }

    let before = Instant::now();
    assert_eq!(services.0.drain.run(Duration::from_secs(10)).await, Drained::Completely);
    assert_eq!(before.elapsed(), Duration::ZERO);
    assert!(polls.await.unwrap().unwrap().into_inner().runs.is_empty());
    let record = waits.await.unwrap().unwrap().into_inner().record.unwrap();
    assert_eq!(record.run.unwrap().state(), v1::RunState::Running, "the run as it stands");

    let refused = services.get_workflow(Request::new(get)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.get_details_retry_info().unwrap().retry_delay.is_some());
    assert_eq!(refused.get_details_error_info().unwrap().reason, "SHUTTING_DOWN");
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_calls_in_flight_up_to_its_timeout() {
    let services = services();
    let in_flight = services.0.drain.admit().unwrap();
    let before = Instant::now();
    let drained = services.0.drain.run(Duration::from_secs(10)).await;
    assert_eq!(drained, Drained::WithCallsLeft(1));
    assert_eq!(before.elapsed(), Duration::from_secs(10));
    drop(in_flight);
    assert_eq!(services.0.drain.run(Duration::from_secs(10)).await, Drained::Completely);
}

#[tokio::test(start_paused = true)]
async fn a_poll_whose_caller_has_gone_stops_waiting_and_takes_nothing() {
    let services = services();
    let polling = services.clone();
    let call = tokio::spawn(async move { polling.poll_activity(poll(1, Duration::from_hours(2))).await });
    while !anyone_polls(&services) {
        tokio::task::yield_now().await;
    }
    call.abort();
    while anyone_polls(&services) {
        tokio::task::yield_now().await;
    }
    start(&services, 0).await;
    assert_eq!(states(&services).await, [RunState::Pending]);
}

#[tokio::test(start_paused = true)]
async fn runs_that_nobody_took_over_are_given_back() {
    let services = services();
    start(&services, 0).await;
    let hold = services.0.claims.hold(OperationId::generate());
    let handover = poll::Handover::new(vec![claim(&services).await], hold, &services);
    assert_eq!(states(&services).await, [RunState::Running]);
    drop(handover);
    services.0.drain.run(Duration::from_secs(1)).await;
    assert_eq!(states(&services).await, [RunState::Pending], "a drain waits for it");
}

#[tokio::test(start_paused = true)]
async fn what_the_same_claim_sent_again_handed_over_is_not_given_back() {
    let services = services();
    start(&services, 0).await;
    let (operation, claimed) = (OperationId::generate(), claim(&services).await);
    let sent = || poll::Handover::new(vec![claimed.clone()], services.0.claims.hold(operation), &services);
    let (first, again) = (sent(), sent());
    assert_eq!(again.hand_over(), vec![claimed.clone()]);
    drop(first);
    services.0.drain.run(Duration::from_secs(1)).await;
    assert_eq!(states(&services).await, [RunState::Running], "a worker has it");
}

#[tokio::test(start_paused = true)]
async fn what_is_being_given_back_is_not_handed_over_by_the_same_claim_sent_again() {
    let services = services();
    start(&services, 0).await;
    let (operation, claimed) = (OperationId::generate(), claim(&services).await);
    let sent = || poll::Handover::new(vec![claimed.clone()], services.0.claims.hold(operation), &services);
    let (first, again) = (sent(), sent());
    drop(first);
    assert_eq!(again.hand_over(), Vec::new());
    services.0.drain.run(Duration::from_secs(1)).await;
    assert_eq!(states(&services).await, [RunState::Pending]);
}

#[tokio::test(start_paused = true)]
async fn long_histories_are_cut_where_a_cursor_takes_them_up() {
    const STEPS: u32 = 20;
    let services = services();
    start(&services, 10).await;
    let claimed = record_steps(&services, STEPS, 500_000).await;
    release(&services, &claimed).await;
    let answer = services.poll_activity(poll(1, Duration::ZERO)).await.unwrap().into_inner();
    assert!(answer.encoded_len() < 4 << 20, "{} bytes", answer.encoded_len());
    let run = &answer.runs[0];
    assert!((5..STEPS as usize).contains(&run.steps.len()), "{} steps", run.steps.len());

    let mut steps: Vec<String> = run.steps.iter().map(|step| step.step_id.clone()).collect();
    let mut cursor = run.more_steps_cursor.clone();
    while !cursor.is_empty() {
        let list = v1::ListStepAttemptsRequest {
            namespace: "default".to_owned(),
            run_id: run.run.as_ref().unwrap().run_id.clone(),
            scope: v1::AttemptScope::Latest.into(),
            page: Some(v1::PageRequest { limit: 1000, cursor }),
        };
        let page = services.list_step_attempts(Request::new(list)).await.unwrap().into_inner();
        assert!(page.encoded_len() < 4 << 20, "{} bytes", page.encoded_len());
        steps.extend(page.attempts.iter().map(|step| step.step_id.clone()));
        cursor = page.next_cursor;
    }
    let expected: Vec<String> = (0..STEPS).map(|n| format!("step-{n}")).collect();
    assert_eq!(steps, expected, "every step once, in order");
}

#[tokio::test(start_paused = true)]
async fn runs_whose_inputs_do_not_fit_together_are_given_back_and_come_later() {
    let services = services();
    for _ in 0..5 {
        start(&services, 1_500_000).await;
    }
    let mut seen = Vec::new();
    while seen.len() < 5 {
        let answer = services.poll_activity(poll(100, Duration::ZERO)).await.unwrap().into_inner();
        assert!(answer.encoded_len() < 4 << 20, "{} bytes", answer.encoded_len());
        assert!(!answer.runs.is_empty());
        seen.extend(answer.runs.into_iter().map(|run| run.run.unwrap().run_id));
        // The giving back runs beside the answer.
        while states(&services).await.iter().filter(|state| **state == RunState::Running).count() > seen.len()
        {
            tokio::task::yield_now().await;
        }
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 5);
}

#[tokio::test(start_paused = true)]
async fn runs_whose_steps_do_not_fit_together_say_where_these_begin() {
    let services = services();
    let mut claimed = Vec::new();
    for _ in 0..4 {
        start(&services, 0).await;
        claimed.push(record_steps(&services, 2, 1_400_000).await);
    }
    for run in &claimed {
        release(&services, run).await;
    }
    let answer = services.poll_activity(poll(100, Duration::ZERO)).await.unwrap().into_inner();
    assert!(answer.encoded_len() < 4 << 20, "{} bytes", answer.encoded_len());
    let steps: Vec<usize> = answer.runs.iter().map(|run| run.steps.len()).collect();
    assert_eq!(steps, [2, 0, 0, 0], "there is room for two steps in all");
    let says_where = |run: &v1::ClaimedRun| !run.more_steps_cursor.is_empty();
    assert_eq!(answer.runs.iter().map(says_where).collect::<Vec<_>>(), [false, true, true, true]);
}

#[tokio::test(start_paused = true)]
async fn weights_are_never_below_what_the_wire_takes() {
    use kagzi_sdk::wire::IntoWire as _;
    let services = services();
    start(&services, 12_345).await;
    let claimed = record_steps(&services, 3, 77).await;
    let on_wire: v1::ClaimedRun = claimed.clone().into_wire();
    assert!(weight::claimed(&claimed) >= on_wire.encoded_len());
    let list = ListAttempts {
        namespace: namespace(),
        run_id: claimed.run.run_id,
        scope: AttemptScope::All,
        page: PageRequest::first(10),
    };
    for attempt in services.store().list_attempts(&list).await.unwrap().items {
        let on_wire: v1::Attempt = attempt.clone().into_wire();
        assert!(weight::attempt(&attempt) >= on_wire.encoded_len());
    }
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_more_than_an_answer_holds_gets_what_it_holds_and_a_cursor() {
    let services = services_with(3);
    for _ in 0..7 {
        start(&services, 0).await;
    }
    let (mut sizes, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = Some(v1::PageRequest { limit: 100, cursor });
        let list = v1::ListWorkflowsRequest { namespace: "default".to_owned(), filter: None, page };
        let page = services.list_workflows(Request::new(list)).await.unwrap().into_inner();
        sizes.push(page.runs.len());
        cursor = page.next_cursor;
        if cursor.is_empty() {
            break;
        }
    }
    assert_eq!(sizes, [3, 3, 1]);
    let answer = services.poll_activity(poll(100, Duration::ZERO)).await.unwrap().into_inner();
    assert_eq!(answer.runs.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_away_calls_are_refused_at_once_with_a_delay() {
    let services = services();
    let health = &services.0.health;
    assert_eq!(health.check(services.store()).await, tonic_health::ServingStatus::Serving);
    // A closed store answers UNAVAILABLE, as one that cannot be reached.
    services.store().close().await.unwrap();
    let depths = || Request::new(v1::GetQueueDepthsRequest { namespace: "default".to_owned() });
    let found_away = services.get_queue_depths(depths()).await.unwrap_err();
    assert!(found_away.message().contains("the store is closed"), "{found_away:?}");

    assert_eq!(health.check(services.store()).await, tonic_health::ServingStatus::NotServing);
    let refused = services.get_queue_depths(depths()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("cannot reach its store"), "the store is not asked: {refused:?}");
    let delay = refused.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert!(!delay.is_zero() && delay <= Duration::from_secs(1), "{delay:?}");
}
