//! A client's session without a network; time is tokio's, paused.

use std::time::Duration;

use futures::StreamExt as _;
use kagzi_core::RunState;
use kagzi_sdk::wire::duration_to_wire;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::*;
use crate::config::{LoadLimits, ServerConfig};
use crate::service::tests::{claim, services, services_of, states};
use crate::shutdown::Drained;

const HOUR: Duration = Duration::from_hours(1);

/// The client's end of a stream.
struct Wire {
    requests: mpsc::UnboundedSender<Result<v1::StreamWorkflowsRequest, Status>>,
    answers: Answers<v1::StreamWorkflowsResponse>,
}

fn start(input_bytes: usize) -> Request {
    let start = v1::StartWorkflowRequest {
        namespace: "default".to_owned(),
        queue: "q".to_owned(),
        workflow_type: "t".to_owned(),
        input: Some(v1::Payload { data: vec![7; input_bytes].into(), ..Default::default() }),
        operation_id: kagzi_core::OperationId::generate().to_string(),
        ..Default::default()
    };
    Request::Start(v1::StartWorkflowsRequest { starts: vec![start] })
}

fn get(run_id: &str, wait: Duration) -> Request {
    let wait = (!wait.is_zero()).then(|| duration_to_wire(wait));
    Request::Get(v1::GetWorkflowRequest { namespace: "default".to_owned(), run_id: run_id.to_owned(), wait })
}

fn wire(services: &Services) -> Wire {
    let (requests, mut queue) = mpsc::unbounded_channel();
    let incoming = futures::stream::poll_fn(move |context| queue.poll_recv(context));
    let answers = services.open_client_stream(Origin::of(Caller::anyone(None), None), incoming);
    Wire { requests, answers }
}

impl Wire {
    fn ask(&self, id: u64, request: Request) {
        self.requests
            .send(Ok(v1::StreamWorkflowsRequest { id, trace_context: None, request: Some(request) }))
            .unwrap();
    }

    /// The next answer, and the request that it is to.
    async fn hear(&mut self) -> (u64, Response) {
        let answer = self.answers.next().await.unwrap().unwrap();
        (answer.id, answer.response.unwrap())
    }

    /// Starts a run as request `id`; nothing else is answered meanwhile.
    async fn start(&mut self, id: u64, input_bytes: usize) -> String {
        self.ask(id, start(input_bytes));
        match self.hear().await {
            (heard, Response::Started(started)) if heard == id => started.started[0].run_id.clone(),
            other => panic!("{other:?}"),
        }
    }

    async fn state(&mut self) -> (u64, RunState) {
        match self.hear().await {
            (id, Response::Workflow(workflow)) => {
                let record = kagzi_core::RunRecord::from_wire(workflow).unwrap();
                (id, record.run.state)
            }
            other => panic!("{other:?}"),
        }
    }
}

async fn cancel(services: &Services, run_id: &str) {
    let cancel = kagzi_core::CancelRun {
        namespace: kagzi_core::Namespace::new("default").unwrap(),
        run_id: run_id.parse().unwrap(),
        reason: String::new(),
        operation: kagzi_core::OperationId::generate(),
    };
    services.store().cancel(cancel).await.unwrap();
}

/// Lets everybody do what they can, until all wait.
async fn quiet() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn an_end_is_told_to_whoever_waits_for_it_and_waits_hold_up_nothing() {
    let services = services();
    let room = u64::try_from(services.limits().max_stream_requests).unwrap();
    let mut wire = wire(&services);
    let mut runs = Vec::new();
    for id in 0..2 {
        runs.push(wire.start(id, 0).await);
    }
    // More waits than there is room for answers, of which none comes.
    for id in 0..room * 2 {
        wire.ask(10 + id, get(&runs[0], HOUR));
    }
    wire.ask(5, get(&runs[1], HOUR));
    quiet().await;
    let third = wire.start(6, 0).await;
    assert_eq!(states(&services).await, [RunState::Pending; 3]);
    let before = Instant::now();
    cancel(&services, &runs[1]).await;
    assert_eq!(wire.state().await, (5, RunState::Cancelled));
    assert_eq!(before.elapsed(), Duration::ZERO, "told, not found by looking");
    cancel(&services, &runs[0]).await;
    let mut heard = std::collections::BTreeSet::new();
    for _ in 0..room * 2 {
        let (id, state) = wire.state().await;
        assert_eq!(state, RunState::Cancelled);
        heard.insert(id);
    }
    assert_eq!(heard, (10..10 + room * 2).collect());
    wire.ask(7, get(&third, Duration::ZERO));
    assert_eq!(wire.state().await, (7, RunState::Pending));
}

#[tokio::test(start_paused = true)]
async fn a_start_sent_again_on_another_stream_gives_the_first_run() {
    let services = services();
    let request = start(3);
    let first = wire(&services);
    first.ask(1, request.clone());
    quiet().await;
    drop(first);
    let mut second = wire(&services);
    second.ask(1, request);
    let (_, Response::Started(started)) = second.hear().await else { panic!() };
    assert_eq!(started.started.len(), 1);
    assert_eq!(states(&services).await, [RunState::Pending], "one run");
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_given_up_is_not_answered_and_gives_its_place_back() {
    let load = LoadLimits { max_waits: 1, ..LoadLimits::default() };
    let services = services_of(&ServerConfig { load, ..ServerConfig::default() });
    let mut wire = wire(&services);
    let run = wire.start(1, 0).await;
    wire.ask(2, get(&run, HOUR));
    quiet().await;
    wire.ask(3, get(&run, HOUR));
    let (3, Response::Refused(refused)) = wire.hear().await else { panic!() };
    assert_eq!(refused.code, Code::ResourceExhausted as i32, "{refused:?}");
    wire.ask(2, Request::GiveUp(v1::GiveUp {}));
    quiet().await;
    wire.ask(4, get(&run, HOUR));
    quiet().await;
    cancel(&services, &run).await;
    assert_eq!(wire.state().await, (4, RunState::Cancelled));
    // To give up what is answered, or was never asked, is nothing.
    wire.ask(4, Request::GiveUp(v1::GiveUp {}));
    wire.ask(99, Request::GiveUp(v1::GiveUp {}));
    wire.start(5, 0).await;
}

#[tokio::test(start_paused = true)]
async fn the_waits_of_a_client_that_has_gone_end() {
    let load = LoadLimits { max_waits: 1, ..LoadLimits::default() };
    let services = services_of(&ServerConfig { load, ..ServerConfig::default() });
    let mut gone = wire(&services);
    let run = gone.start(1, 0).await;
    gone.ask(2, get(&run, HOUR));
    quiet().await;
    drop(gone);
    quiet().await;
    let mut other = wire(&services);
    other.ask(1, get(&run, HOUR));
    quiet().await;
    cancel(&services, &run).await;
    assert_eq!(other.state().await, (1, RunState::Cancelled), "there was a place for it");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_asks_no_more_still_hears_of_what_it_waits_for() {
    let services = services();
    let mut wire = wire(&services);
    let run = wire.start(1, 0).await;
    wire.ask(2, get(&run, HOUR));
    quiet().await;
    let Wire { requests, answers } = wire;
    drop(requests);
    quiet().await;
    cancel(&services, &run).await;
    let answers: Vec<_> = answers.collect().await;
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].as_ref().unwrap().id, 2);
}

#[tokio::test(start_paused = true)]
async fn a_long_answer_is_left_to_a_call() {
    let services = services();
    let mut wire = wire(&services);
    for (id, bytes) in [(1, LARGE_BYTES - 4096), (3, LARGE_BYTES)] {
        let run = wire.start(id, bytes).await;
        wire.ask(id + 1, get(&run, Duration::ZERO));
        let (heard, answer) = wire.hear().await;
        assert_eq!(heard, id + 1);
        assert_eq!(matches!(answer, Response::AskByCall(_)), bytes >= LARGE_BYTES, "{bytes}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_an_answer_and_the_stream_goes_on() {
    let services = services();
    let mut wire = wire(&services);
    wire.ask(1, Request::Start(v1::StartWorkflowsRequest { starts: Vec::new() }));
    let (1, Response::Refused(refused)) = wire.hear().await else { panic!() };
    assert_eq!(refused.metadata["field"], "starts");
    wire.requests.send(Ok(v1::StreamWorkflowsRequest { id: 2, trace_context: None, request: None })).unwrap();
    let (2, Response::Refused(refused)) = wire.hear().await else { panic!() };
    assert_eq!(refused.metadata["field"], "request");
    wire.ask(3, get("no id", HOUR));
    let (3, Response::Refused(refused)) = wire.hear().await else { panic!() };
    assert_eq!(refused.metadata["field"], "run_id");
    let run = wire.start(4, 0).await;
    assert_eq!(claim(&services).await.run.run_id.to_string(), run);
}

#[tokio::test(start_paused = true)]
async fn a_drain_answers_waits_with_the_run_as_it_stands_and_then_ends_the_stream() {
    let services = services();
    let mut wire = wire(&services);
    let run = wire.start(1, 0).await;
    wire.ask(2, get(&run, HOUR));
    quiet().await;
    let before = Instant::now();
    assert_eq!(services.0.drain.run(Duration::from_secs(10)).await, Drained::Completely);
    assert_eq!(before.elapsed(), Duration::ZERO);
    assert_eq!(wire.state().await, (2, RunState::Pending));
    let end = wire.answers.next().await.unwrap().unwrap_err();
    assert_eq!(end.get_details_error_info().unwrap().reason, "SHUTTING_DOWN");
    assert!(wire.answers.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn answers_that_the_client_does_not_take_are_held_up_to_a_bound_and_refused_beyond_it() {
    let load = LoadLimits { max_bytes_in_flight: 100_000, ..LoadLimits::default() };
    let services = services_of(&ServerConfig { load, ..ServerConfig::default() });
    let mut wire = wire(&services);
    let run_id = wire.start(1, 30_000).await;
    for id in 10..15 {
        wire.ask(id, get(&run_id, Duration::ZERO));
    }
    quiet().await;
    let mut refused = 0;
    for _ in 10..15 {
        match wire.hear().await.1 {
            Response::Workflow(_) => {}
            Response::Refused(item) => {
                assert_eq!((item.reason.as_str(), item.code), ("OVERLOADED", Code::ResourceExhausted.into()));
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, 2, "three of 30,000 bytes fit");
    wire.ask(20, get(&run_id, Duration::ZERO));
    assert_eq!(wire.state().await, (20, RunState::Pending));
}
