//! A worker's session without a network: its requests come from a channel, its answers are taken one by one.
//!
//! Time is tokio's, paused: it moves only when everything waits.

use std::time::Duration;

use futures::StreamExt as _;
use kagzi_core::RunState;
use kagzi_proto::v1;
use kagzi_proto::v1::begin_outcome::Outcome;
use kagzi_proto::v1::complete_step_request::Then;
use kagzi_proto::v1::complete_step_response::Then as Happened;
use kagzi_proto::v1::stream_work_request::Request;
use kagzi_proto::v1::stream_work_response::Response;
use kagzi_sdk::wire::{IntoWire as _, duration_to_wire};
use tonic::Code;
use tonic_types::StatusExt as _;

use super::*;
use crate::config::{LoadLimits, ServerConfig};
use crate::service::tests::{anyone_polls, claim, services, services_of, start, states};
use crate::service::told::Origin;
use crate::shutdown::Drained;

const HOUR: Duration = Duration::from_hours(1);

/// The worker's end of a stream.
struct Wire {
    requests: mpsc::UnboundedSender<Result<v1::StreamWorkRequest, Status>>,
    answers: Answers<v1::StreamWorkResponse>,
}

fn open() -> Request {
    Request::Open(v1::OpenWork {
        namespace: "default".to_owned(),
        queues: vec!["q".to_owned()],
        worker_id: "w".to_owned(),
        ..Default::default()
    })
}

fn take(limit: u32, wait: Duration) -> Request {
    let wait = Some(duration_to_wire(wait));
    Request::Take(v1::TakeRuns { limit, wait, operation_id: String::new() })
}

async fn open_as(services: &Services, origin: Origin, first: Request) -> Result<Wire, Status> {
    let (requests, mut queue) = mpsc::unbounded_channel();
    requests.send(Ok(v1::StreamWorkRequest { id: 0, trace_context: None, request: Some(first) })).unwrap();
    let incoming = futures::stream::poll_fn(move |context| queue.poll_recv(context));
    let answers = services.open_stream(origin, incoming).await?;
    Ok(Wire { requests, answers })
}

async fn try_open(services: &Services, first: Request) -> Result<Wire, Status> {
    open_as(services, anyone(), first).await
}

async fn wire(services: &Services) -> Wire {
    try_open(services, open()).await.unwrap_or_else(|status| panic!("{status:?}"))
}

impl Wire {
    fn ask(&self, id: u64, request: Request) {
        self.requests
            .send(Ok(v1::StreamWorkRequest { id, trace_context: None, request: Some(request) }))
            .unwrap();
    }

    /// The next answer, and the request that it is to.
    async fn hear(&mut self) -> (u64, Response) {
        let answer = self.answers.next().await.unwrap().unwrap();
        (answer.id, answer.response.unwrap())
    }

    async fn runs(&mut self) -> (u64, Vec<v1::ClaimedRun>) {
        match self.hear().await {
            (id, Response::Runs(runs)) => (id, runs.runs),
            other => panic!("{other:?}"),
        }
    }
}

fn begin(lease: &kagzi_core::Lease, step_id: &str, operation: &str) -> Request {
    Request::BeginStep(v1::BeginStepRequest {
        lease: Some(lease.clone().into_wire()),
        step: Some(v1::NextStep { step_id: step_id.to_owned(), ..Default::default() }),
        operation_id: operation.to_owned(),
    })
}

fn executes(response: Response) -> bool {
    let Response::BeginStep(begun) = response else { panic!("{response:?}") };
    matches!(begun.outcome.unwrap().outcome.unwrap(), Outcome::Execute(_))
}

/// Lets everybody do what they can, until all wait.
async fn quiet() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_keeps_its_place_until_what_it_asked_for_has_ended_though_its_worker_has_gone() {
    let load = LoadLimits { max_streams: 1, max_writes_while_claiming: 1, ..LoadLimits::default() };
    let services = services_of(&ServerConfig { load, ..ServerConfig::default() });
    let anyone = Caller::anyone(None);
    let origin = Origin {
        caller: anyone.clone(),
        trace: None,
        place: Some(StreamPlace::of(services.0.load.stream(&anyone).unwrap())),
        held: None,
    };
    let wire = open_as(&services, origin, open()).await.unwrap_or_else(|status| panic!("{status:?}"));
    // It claims once there are fewer writes.
    let namespaces = [kagzi_core::Namespace::new("default").unwrap()];
    let write = services.0.load.turn(super::super::load::Errand::Work, &anyone, namespaces.iter()).await;
    wire.ask(1, take(1, Duration::ZERO));
    quiet().await;
    drop(wire);
    quiet().await;
    services.0.load.stream(&anyone).unwrap_err();
    drop(write);
    quiet().await;
    services.0.load.stream(&anyone).unwrap();
}

#[tokio::test(start_paused = true)]
async fn runs_are_handed_over_as_soon_as_there_are_some_and_never_more_than_there_is_room_for() {
    let services = services();
    let mut wire = wire(&services).await;
    wire.ask(1, take(2, HOUR));
    quiet().await;
    for _ in 0..5 {
        start(&services, 0).await;
        quiet().await;
    }
    let (id, runs) = wire.runs().await;
    assert_eq!((id, runs.len()), (1, 1), "at once");
    wire.ask(2, take(3, HOUR));
    let (id, runs) = wire.runs().await;
    assert_eq!((id, runs.len()), (2, 3), "as many as there is room for");
    quiet().await;
    let pending = states(&services).await.iter().filter(|state| **state == RunState::Pending).count();
    assert_eq!(pending, 1, "nothing is hoarded");
}

#[tokio::test(start_paused = true)]
async fn many_writes_are_in_flight_at_once_and_answered_each_under_its_number() {
    let services = services();
    start(&services, 0).await;
    let lease = claim(&services).await.lease.lease;
    let mut wire = wire(&services).await;
    for id in 1..=100 {
        wire.ask(id, begin(&lease, &format!("step-{id}"), ""));
    }
    let mut heard = std::collections::BTreeSet::new();
    for _ in 1..=100 {
        let (id, response) = wire.hear().await;
        assert!(executes(response));
        heard.insert(id);
    }
    assert_eq!(heard, (1..=100).collect());
}

#[tokio::test(start_paused = true)]
async fn a_stream_on_which_nobody_says_who_they_are_ends() {
    let services = services();
    let nothing = futures::stream::pending::<Result<v1::StreamWorkRequest, Status>>();
    let Err(status) = services.open_stream(anyone(), nothing).await else { panic!("it opened") };
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("nothing within 10s"), "{status:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_an_answer_and_the_stream_goes_on() {
    let services = services();
    start(&services, 0).await;
    let lease = claim(&services).await.lease.lease;
    let mut wire = wire(&services).await;
    let stolen =
        kagzi_core::Lease { worker_id: kagzi_core::WorkerId::new("thief").unwrap(), ..lease.clone() };
    wire.ask(1, begin(&stolen, "s", ""));
    let (id, Response::Refused(refused)) = wire.hear().await else { panic!() };
    assert_eq!((id, refused.reason.as_str()), (1, "LEASE_LOST"));
    wire.ask(2, begin(&lease, "", ""));
    let (_, Response::Refused(refused)) = wire.hear().await else { panic!() };
    assert_eq!(refused.metadata["field"], "step.step_id");
    wire.ask(3, begin(&lease, "s", ""));
    assert!(executes(wire.hear().await.1));
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_answer_was_lost_with_its_stream_gets_the_first_answer_on_the_next() {
    let services = services();
    start(&services, 0).await;
    let lease = claim(&services).await.lease.lease;
    let mut first = wire(&services).await;
    first.ask(1, begin(&lease, "a", ""));
    assert!(executes(first.hear().await.1));
    let operation = kagzi_core::OperationId::generate().to_string();
    let complete = Request::CompleteStep(v1::CompleteStepRequest {
        lease: Some(lease.clone().into_wire()),
        step_id: "a".to_owned(),
        attempt: 1,
        then: Some(Then::Begin(v1::NextStep { step_id: "b".to_owned(), position: 1, ..Default::default() })),
        operation_id: operation,
        ..Default::default()
    });
    first.ask(2, complete.clone());
    quiet().await;
    drop(first);

    let mut second = wire(&services).await;
    second.ask(1, complete);
    let (_, Response::CompleteStep(answer)) = second.hear().await else { panic!() };
    let Some(Happened::Begun(begun)) = answer.then else { panic!("{answer:?}") };
    assert!(matches!(begun.outcome, Some(Outcome::Execute(_))), "{begun:?}");
}

#[tokio::test(start_paused = true)]
async fn runs_that_the_worker_did_not_live_to_take_are_given_back() {
    let services = services();
    let wire = wire(&services).await;
    wire.ask(1, take(2, HOUR));
    quiet().await;
    start(&services, 0).await;
    quiet().await;
    assert_eq!(states(&services).await, [RunState::Running], "claimed, and waiting to be taken");
    drop(wire);
    quiet().await;
    assert_eq!(states(&services).await, [RunState::Pending]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_has_gone_takes_nothing_more() {
    let services = services();
    let wire = wire(&services).await;
    wire.ask(1, take(2, HOUR));
    quiet().await;
    assert!(anyone_polls(&services));
    drop(wire);
    quiet().await;
    assert!(!anyone_polls(&services));
    start(&services, 0).await;
    quiet().await;
    assert_eq!(states(&services).await, [RunState::Pending]);
}

#[tokio::test(start_paused = true)]
async fn a_new_take_ends_the_wait_of_the_one_before() {
    let services = services();
    let mut wire = wire(&services).await;
    wire.ask(1, take(2, HOUR));
    quiet().await;
    wire.ask(2, take(1, Duration::ZERO));
    let (first, second) = (wire.runs().await, wire.runs().await);
    assert_eq!((first.0, first.1.len(), second.0, second.1.len()), (1, 0, 2, 0));
    assert!(!anyone_polls(&services));
}

#[tokio::test(start_paused = true)]
async fn a_take_sent_again_on_another_stream_gets_what_the_first_one_took() {
    let services = services();
    let operation_id = kagzi_core::OperationId::generate().to_string();
    let again = || Request::Take(v1::TakeRuns { limit: 5, wait: None, operation_id: operation_id.clone() });
    start(&services, 0).await;
    let mut first = wire(&services).await;
    first.ask(1, again());
    let taken = first.runs().await.1;
    drop(first);
    let mut second = wire(&services).await;
    second.ask(1, again());
    assert_eq!(second.runs().await.1[0].lease, taken[0].lease);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_does_not_read_is_not_read_from_and_loses_nothing() {
    let services = services();
    start(&services, 0).await;
    let lease = claim(&services).await.lease.lease;
    let mut wire = wire(&services).await;
    let room = services.limits().max_stream_requests;
    let asked = u64::try_from(room).unwrap() * 2;
    for id in 1..=asked {
        wire.ask(id, begin(&lease, &format!("step-{id}"), ""));
    }
    quiet().await;
    let list = kagzi_core::ListAttempts {
        namespace: lease.namespace.clone(),
        run_id: lease.run_id,
        scope: kagzi_core::AttemptScope::All,
        page: kagzi_core::PageRequest::first(10_000),
    };
    let begun = services.store().list_attempts(&list).await.unwrap().items.len();
    assert_eq!(begun, room, "as many as there is room for answers");
    let mut heard = std::collections::BTreeSet::new();
    for _ in 1..=asked {
        heard.insert(wire.hear().await.0);
    }
    assert_eq!(heard, (1..=asked).collect());
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_takes_empty_answers_what_is_in_flight_and_then_ends_the_stream() {
    let services = services();
    start(&services, 0).await;
    let lease = claim(&services).await.lease.lease;
    let mut wire = wire(&services).await;
    wire.ask(1, take(2, HOUR));
    wire.ask(2, begin(&lease, "s", ""));
    quiet().await;
    let before = tokio::time::Instant::now();
    assert_eq!(services.0.drain.run(Duration::from_secs(10)).await, Drained::Completely);
    assert_eq!(before.elapsed(), Duration::ZERO);
    let (id, response) = wire.hear().await;
    assert!(id == 2 && executes(response));
    assert_eq!(wire.runs().await, (1, Vec::new()));
    let end = wire.answers.next().await.unwrap().unwrap_err();
    assert_eq!(end.code(), Code::Unavailable);
    assert_eq!(end.get_details_error_info().unwrap().reason, "SHUTTING_DOWN");
    assert!(end.get_details_retry_info().unwrap().retry_delay.is_some());
    assert!(wire.answers.next().await.is_none());

    let refused = try_open(&services, open()).await.err().unwrap();
    assert_eq!(refused.get_details_error_info().unwrap().reason, "SHUTTING_DOWN");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_does_not_say_who_the_worker_is_is_refused_with_the_field() {
    let services = services();
    let nowhere = Request::Open(v1::OpenWork { namespace: "default".to_owned(), ..Default::default() });
    let unknown = match open() {
        Request::Open(open) => Request::Open(v1::OpenWork { namespace: "sales".to_owned(), ..open }),
        other => other,
    };
    for (first, expected) in [(take(1, HOUR), "open"), (nowhere, "worker_id"), (unknown, "namespace")] {
        let refused = try_open(&services, first).await.err().unwrap();
        let violations = refused.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, expected, "{refused:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_request_ends_the_stream_after_what_was_asked_before() {
    let services = services();
    start(&services, 0).await;
    let lease = claim(&services).await.lease.lease;
    let mut wire = wire(&services).await;
    wire.ask(1, begin(&lease, "s", ""));
    wire.requests.send(Err(Status::out_of_range("found 20 bytes, the limit is: 10 bytes"))).unwrap();
    assert!(executes(wire.hear().await.1));
    let end = wire.answers.next().await.unwrap().unwrap_err();
    assert_eq!(end.get_details_error_info().unwrap().reason, "TOO_LARGE");
}

#[tokio::test(start_paused = true)]
async fn runs_for_which_there_is_no_room_are_given_back_and_the_worker_hears_it() {
    let load = LoadLimits { max_bytes_in_flight: 50_000, ..LoadLimits::default() };
    let services = services_of(&ServerConfig { load, ..ServerConfig::default() });
    let mut wire = wire(&services).await;
    for id in 1..=2 {
        start(&services, 30_000).await;
        wire.ask(id, take(1, Duration::ZERO));
        quiet().await;
    }
    assert_eq!(wire.runs().await.1.len(), 1);
    let (id, Response::Refused(refused)) = wire.hear().await else { panic!() };
    assert_eq!((id, refused.reason.as_str()), (2, "OVERLOADED"));
    let states = states(&services).await;
    assert!(states.contains(&RunState::Pending) && states.contains(&RunState::Running), "{states:?}");
    wire.ask(3, take(1, Duration::ZERO));
    assert_eq!(wire.runs().await.1.len(), 1, "taken again, once there is room");
}

#[tokio::test(start_paused = true)]
async fn many_names_are_charged_for_as_long_as_they_are_remembered_and_waited_for() {
    let services = services();
    let held = || -> usize {
        let text = services.metrics().text().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("kagzi_bytes_in_flight ")).unwrap();
        line.parse().unwrap()
    };
    let queues = (0..1000).map(|number| format!("q-{number}")).collect();
    let Request::Open(open) = open() else { unreachable!() };
    let wire = try_open(&services, Request::Open(v1::OpenWork { queues, ..open })).await.unwrap();
    let remembered = held();
    assert!((40_000..60_000).contains(&remembered), "{remembered}");
    wire.ask(1, take(1, HOUR));
    while !anyone_polls(&services) {
        quiet().await;
    }
    let waited_for = held() - remembered;
    assert!(waited_for > 700_000, "{waited_for}");
    drop(wire);
    services.0.drain.run(HOUR).await;
    assert_eq!(held(), 0);
}

fn anyone() -> Origin {
    Origin::of(Caller::anyone(None), None)
}
