//! What is bounded, for whom, and what is not. Time is tokio's, paused, so that rates are exact.

use std::path::PathBuf;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use kagzi_proto::v1;
use kagzi_proto::v1::worker_service_server::WorkerService as _;
use kagzi_proto::v1::workflow_service_server::WorkflowService as _;
use kagzi_sdk::wire::duration_to_wire;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use super::*;
use crate::config::RateLimit;
use crate::service::Services;
use crate::service::tests::{anyone_polls, claim, services_of, start};
use crate::service::told::Origin;

fn namespace(name: &str) -> Namespace {
    Namespace::new(name).unwrap()
}

/// A server of the namespaces `noisy` and `quiet`, whose callers are asked who they are.
fn of_tenants(load: LoadLimits) -> ServerConfig {
    ServerConfig {
        load,
        namespaces: vec![namespace("noisy"), namespace("quiet"), namespace("default")],
        access_file: Some(PathBuf::from("access.toml")),
        ..ServerConfig::default()
    }
}

fn caller(name: &str) -> Caller {
    Caller::named(name)
}

/// A write, with its turn or without, yet.
type Write = (BoxFuture<'static, Option<Writing>>, Option<Option<Writing>>);

/// A write of `who`, or so many leases that are kept by one heartbeat, about `about`.
fn write(load: &Load, who: &str, about: &str, leases: usize) -> Write {
    let (load, who, about) = (load.clone(), caller(who), vec![namespace(about); leases]);
    let mut turn = async move { load.turn(Errand::Work, &who, about.iter()).await }.boxed();
    let done = (&mut turn).now_or_never();
    (turn, done)
}

/// Lets a request of `who` in, about `about`, or not.
fn admit(load: &Load, errand: Errand, who: &str, about: &str) -> Result<Option<Place>, Status> {
    let namespace = namespace(about);
    let admitted = load.admit(errand, &caller(who), [&namespace].into_iter()).now_or_never();
    admitted.expect("nobody waits").map_err(Refusal::into_status)
}

#[track_caller]
fn assert_refused(refused: &Status, reason: &str, limit: Option<&str>) {
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    let info = refused.get_details_error_info().unwrap();
    assert_eq!((info.reason.as_str(), info.metadata.get("limit").map(String::as_str)), (reason, limit));
    let delay = refused.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert!(delay > Duration::ZERO, "{delay:?}");
}

#[track_caller]
fn assert_counted(services: &Services, reason: &str, refusals: u32) {
    let line = format!("kagzi_refusals_total{{reason=\"{reason}\"}} {refusals}\n");
    let text = services.metrics().text().unwrap();
    assert!(text.contains(&line), "{line} in {text}");
}

#[tokio::test]
async fn claims_wait_while_many_writes_are_in_flight_and_writes_do_not() {
    let load = Load::of(&ServerConfig::default());
    let (anyone, default) = (Caller::anyone(None), namespace("default"));
    let about = || [&default].into_iter();
    let mut writes = Vec::new();
    for _ in 0..=1024 {
        writes.push(load.turn(Errand::Work, &anyone, about()).now_or_never().unwrap());
    }
    let polls = Errand::Claim(Patience::Waits);
    let mut claim = std::pin::pin!(load.admit(polls, &anyone, about()));
    assert!(claim.as_mut().now_or_never().is_none());
    writes.pop();
    assert!(claim.as_mut().now_or_never().is_none(), "still too many");
    writes.pop();
    claim.now_or_never().unwrap().unwrap();
}

#[tokio::test]
async fn who_writes_without_end_keeps_nobody_else_from_claiming() {
    // By its principal's share alone, and by its namespace's alone.
    for (principal_share, namespace_share, others) in [(0.5, 1.0, "noisy"), (1.0, 0.5, "quiet")] {
        let load =
            Load::of(&of_tenants(LoadLimits { principal_share, namespace_share, ..LoadLimits::default() }));
        let claims = |who: &'static str, about: &'static str| {
            let (who, about, load) = (caller(who), namespace(about), load.clone());
            async move {
                let claim = Errand::Claim(Patience::Waits);
                load.admit(claim, &who, [&about].into_iter()).await.map(drop).map_err(Refusal::into_status)
            }
        };
        let mut writes: Vec<_> = (0..5000).map(|_| write(&load, "a", "noisy", 1)).collect();
        claims("b", others).now_or_never().expect("it is not b who writes").unwrap();
        let mut own = std::pin::pin!(claims("a", "noisy"));
        assert!(own.as_mut().now_or_never().is_none(), "it waits for its own");
        writes.truncate(1023);
        own.now_or_never().unwrap().unwrap();
        // Two of them together are as many as there may be.
        let _more: Vec<_> = (0..512).map(|_| write(&load, "c", "default", 1)).collect();
        assert!(claims("b", "quiet").now_or_never().is_none());
        writes.truncate(511);
        claims("b", "quiet").now_or_never().unwrap().unwrap();
    }
}

#[tokio::test]
async fn writes_beyond_the_share_of_their_principal_wait_for_its_own_and_for_nobody_elses() {
    let limits = LoadLimits { max_writes_while_claiming: 8, ..LoadLimits::default() };
    for namespace_share in [0.5, 1.0] {
        let load = Load::of(&of_tenants(LoadLimits { namespace_share, ..limits.clone() }));
        // It does not help to spread them over namespaces.
        let mut held: Vec<_> = (0..4).map(|at| write(&load, "a", ["noisy", "quiet"][at % 2], 1)).collect();
        assert!(held.iter().all(|(_, done)| done.is_some()));
        let mut waits = write(&load, "a", "default", 1);
        assert!(waits.1.is_none());
        // Each lease of a heartbeat is a write.
        let beats = write(&load, "b", "noisy", 3);
        assert!(beats.1.is_some(), "it is not b who writes without end");
        let fourth = write(&load, "b", "noisy", 1);
        assert!(fourth.1.is_some());
        let mut fifth = write(&load, "b", "noisy", 1);
        assert!(fifth.1.is_none());
        drop(beats);
        assert!((&mut fifth.0).now_or_never().is_some());
        held.pop();
        assert!((&mut waits.0).now_or_never().is_some());
        // One that is larger than the share has its turn when it is alone, and one that is given up leaves nothing.
        drop(write(&load, "a", "noisy", 10_000));
        let all = write(&load, "c", "noisy", 10_000);
        assert!(all.1.is_some() && write(&load, "c", "noisy", 1).1.is_none());
        // Each is its share at most of those that keep others from claiming.
        assert!(load.0.writes.load(Ordering::Acquire) <= 8, "{load:?}");
        drop((held, waits, fifth, fourth, all));
        assert_eq!(load.0.writes.load(Ordering::Acquire), 0);
        let known = load.0.principals.read().unwrap();
        let left = known.values().chain(load.0.namespaces.values());
        assert!(left.map(|account| account.writes.load(Ordering::Acquire)).all(|writes| writes == 0));
    }
}

#[test]
fn streams_take_places_of_their_principal_alone_for_as_long_as_they_are_open() {
    let load = Load::of(&of_tenants(LoadLimits { max_streams: 6, ..LoadLimits::default() }));
    let open = |who| load.stream(&caller(who)).map_err(Refusal::into_status);
    let mut held: Vec<_> = (0..3).map(|_| open("a").unwrap()).collect();
    let refused = open("a").unwrap_err();
    assert_refused(&refused, "LIMIT_REACHED", Some("principal_share"));
    let others: Vec<_> = (0..3).map(|_| open("b").unwrap()).collect();
    assert_refused(&open("c").unwrap_err(), "OVERLOADED", None);
    held.pop();
    open("a").unwrap();
    drop(others);
    open("c").unwrap();
    // Where nobody is asked who they are, there is one principal, who may have all.
    let load = Load::of(&ServerConfig {
        load: LoadLimits { max_streams: 2, ..LoadLimits::default() },
        ..ServerConfig::default()
    });
    let anyone = Caller::anyone(None);
    let _held = (load.stream(&anyone).unwrap(), load.stream(&anyone).unwrap());
    assert_refused(&load.stream(&anyone).unwrap_err().into_status(), "OVERLOADED", None);
}

#[test]
fn more_starts_than_it_bears_are_refused_with_a_delay() {
    // Nobody is asked who they are, and there is one namespace: it takes all places.
    let load = Load::of(&ServerConfig::default());
    let anyone = |errand| admit(&load, errand, "anyone", "default");
    let mut starts: Vec<_> = (0..2048).map(|_| anyone(Errand::Start).unwrap()).collect();
    let refused = anyone(Errand::Start).unwrap_err();
    assert_refused(&refused, "OVERLOADED", None);
    assert_eq!(refused.get_details_retry_info().unwrap().retry_delay, Some(RETRY_AFTER));
    assert!(write(&load, "anyone", "default", 1).1.is_some());
    anyone(Errand::Other(Patience::AtOnce)).unwrap();
    starts.pop();
    anyone(Errand::Start).unwrap();
}

#[test]
fn one_principal_takes_its_share_of_each_kind_of_places_and_others_find_room() {
    let limits =
        LoadLimits { max_starts_in_flight: 8, max_reads_in_flight: 4, max_waits: 6, ..LoadLimits::default() };
    let load = Load::of(&of_tenants(LoadLimits { namespace_share: 1.0, ..limits }));
    let kinds =
        [(Errand::Start, 4), (Errand::Other(Patience::AtOnce), 2), (Errand::Other(Patience::Waits), 3)];
    for (errand, share) in kinds {
        let held: Vec<_> = (0..share).map(|_| admit(&load, errand, "noisy", "default").unwrap()).collect();
        let refused = admit(&load, errand, "noisy", "default").unwrap_err();
        assert_refused(&refused, "LIMIT_REACHED", Some("principal_share"));
        // What finishes work is never refused, and opens no account.
        assert!(write(&load, "noisy", "default", 1).1.is_some());
        admit(&load, Errand::Open, "noisy", "default").unwrap();
        let others: Vec<_> = (0..share).map(|_| admit(&load, errand, "quiet", "default").unwrap()).collect();
        let refused = admit(&load, errand, "third", "default").unwrap_err();
        assert_refused(&refused, "OVERLOADED", None);
        drop((held, others));
        admit(&load, errand, "noisy", "default").unwrap();
    }
}

#[test]
fn a_namespace_takes_its_share_whoever_its_callers_are() {
    let limits = LoadLimits { max_waits: 4, namespace_share: 0.5, ..LoadLimits::default() };
    let load = Load::of(&of_tenants(LoadLimits { principal_share: 1.0, ..limits }));
    let polls = Errand::Claim(Patience::Waits);
    let _held = (admit(&load, polls, "a", "noisy").unwrap(), admit(&load, polls, "b", "noisy").unwrap());
    let refused = admit(&load, polls, "c", "noisy").unwrap_err();
    assert_refused(&refused, "LIMIT_REACHED", Some("namespace_share"));
    admit(&load, polls, "c", "quiet").unwrap();
    // What was refused holds no place of its principal either.
    for _ in 0..10 {
        admit(&load, polls, "c", "noisy").unwrap_err();
    }
    admit(&load, polls, "c", "quiet").unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_batch_costs_each_namespace_its_own_starts_and_one_larger_than_the_burst_is_told_so() {
    let rate = Some(RateLimit { per_second: 10, burst: 10 });
    let limits = LoadLimits { rate_per_namespace: rate, ..LoadLimits::default() };
    let load = Load::of(&of_tenants(limits));
    let (noisy, quiet) = (namespace("noisy"), namespace("quiet"));
    let charge = |starts: &[&Namespace]| {
        let charged = load.charge(Errand::Start, &caller("x"), starts.iter().copied()).now_or_never();
        charged.expect("nobody waits")
    };
    charge(&[&noisy, &noisy, &quiet, &noisy, &noisy]).unwrap();
    charge(&[&noisy; 7]).unwrap_err();
    charge(&[&noisy; 6]).unwrap();
    let Err(Excess::ForNow(refusal)) = charge(&[&noisy]) else { panic!("4 and 6 are all there is") };
    assert_refused(&refusal.into_status(), "LIMIT_REACHED", Some("rate_per_namespace"));
    charge(&[&quiet; 9]).unwrap();
    let Err(Excess::ForEver(error)) = charge(&[&noisy; 11]) else { panic!("it never fits") };
    let told = error.to_string();
    assert!(told.contains("at most 10 at once, the server's rate_per_namespace_burst"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn a_poll_that_waits_for_work_waits_for_its_turn_and_no_other_call_does() {
    let rate = Some(RateLimit { per_second: 10, burst: 1 });
    let limits = LoadLimits { rate_per_namespace: rate, max_waits: 20, ..LoadLimits::default() };
    let load = Load::of(&of_tenants(LoadLimits { namespace_share: 1.0, principal_share: 1.0, ..limits }));
    let (anyone, noisy) = (caller("anyone"), namespace("noisy"));
    let charge = |errand| load.charge(errand, &anyone, [&noisy].into_iter());
    let waits = Errand::Claim(Patience::Waits);
    charge(Errand::Start).await.unwrap();
    for errand in [Errand::Start, Errand::Claim(Patience::AtOnce), Errand::Other(Patience::Waits)] {
        charge(errand).now_or_never().expect("it is told at once").unwrap_err();
    }
    let began = Instant::now();
    charge(waits).await.unwrap();
    let its_turn = Duration::from_millis(100)..=Duration::from_millis(102);
    assert!(its_turn.contains(&began.elapsed()), "{:?}", began.elapsed());
    let began = Instant::now();
    let charged = futures::future::join_all((0..20).map(|_| charge(waits))).await;
    assert!(began.elapsed() <= TURN_WITHIN, "{:?}", began.elapsed());
    let granted = charged.iter().filter(|charged| charged.is_ok()).count();
    assert!((3..=5).contains(&granted), "{granted} in half a second, at ten a second");
    for refused in charged.into_iter().filter_map(Result::err) {
        let Excess::ForNow(refusal) = refused else { panic!("it fits") };
        assert_refused(&refusal.into_status(), "LIMIT_REACHED", Some("rate_per_namespace"));
    }
    let _held: Vec<_> = (0..20).map(|_| admit(&load, waits, "anyone", "noisy").unwrap()).collect();
    let Err(Excess::ForNow(refusal)) = charge(waits).now_or_never().unwrap() else { panic!("no place") };
    assert_refused(&refusal.into_status(), "OVERLOADED", None);
}

/// Services whose callers are all one principal, limited to some calls.
fn limited(burst: u32) -> Services {
    let rate = Some(RateLimit { per_second: 1, burst });
    let load = LoadLimits { rate_per_principal: rate, ..LoadLimits::default() };
    services_of(&ServerConfig { load, ..ServerConfig::default() })
}

fn a_start() -> Request<v1::StartWorkflowRequest> {
    Request::new(v1::StartWorkflowRequest {
        namespace: "default".to_owned(),
        queue: "q".to_owned(),
        workflow_type: "t".to_owned(),
        ..Default::default()
    })
}

fn depths() -> Request<v1::GetQueueDepthsRequest> {
    Request::new(v1::GetQueueDepthsRequest { namespace: "default".to_owned() })
}

fn a_poll(wait: Duration) -> Request<v1::PollActivityRequest> {
    Request::new(v1::PollActivityRequest {
        namespace: "default".to_owned(),
        queues: vec!["q".to_owned()],
        worker_id: "w".to_owned(),
        limit: 1,
        wait: Some(duration_to_wire(wait)),
        ..Default::default()
    })
}

#[tokio::test(start_paused = true)]
async fn starts_reads_and_polls_are_charged_and_what_finishes_work_is_not() {
    let services = limited(3);
    start(&services, 0).await;
    let lease = claim(&services).await.lease.lease;
    services.start_workflow(a_start()).await.unwrap();
    services.get_queue_depths(depths()).await.unwrap();
    services.poll_activity(a_poll(Duration::ZERO)).await.unwrap();
    for refused in [
        services.start_workflow(a_start()).await.unwrap_err(),
        services.get_queue_depths(depths()).await.unwrap_err(),
        services.poll_activity(a_poll(Duration::ZERO)).await.unwrap_err(),
    ] {
        assert_refused(&refused, "LIMIT_REACHED", Some("rate_per_principal"));
        assert_eq!(refused.get_details_retry_info().unwrap().retry_delay, Some(Duration::from_secs(1)));
    }
    assert_counted(&services, "rate_per_principal", 3);

    let lease = Some(kagzi_sdk::wire::IntoWire::into_wire(lease));
    let beat = v1::Heartbeat { lease: lease.clone(), lease_length: None };
    for _ in 0..10 {
        let beats = v1::RecordHeartbeatRequest { heartbeats: vec![beat.clone()] };
        services.record_heartbeat(Request::new(beats)).await.unwrap();
    }
    let complete = v1::CompleteWorkflowRequest { lease, ..Default::default() };
    services.complete_workflow(Request::new(complete)).await.unwrap();

    tokio::time::advance(Duration::from_secs(1)).await;
    services.start_workflow(a_start()).await.unwrap();
    services.start_workflow(a_start()).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn so_many_polls_wait_and_one_more_is_refused() {
    let load = LoadLimits { max_waits: 2, ..LoadLimits::default() };
    let services = services_of(&ServerConfig { load, ..ServerConfig::default() });
    let polls: Vec<_> = (0..2)
        .map(|_| {
            let polling = services.clone();
            tokio::spawn(async move { polling.poll_activity(a_poll(Duration::from_hours(1))).await })
        })
        .collect();
    while !anyone_polls(&services) {
        tokio::task::yield_now().await;
    }
    tokio::task::yield_now().await;
    let refused = services.poll_activity(a_poll(Duration::from_hours(1))).await.unwrap_err();
    assert_refused(&refused, "OVERLOADED", None);
    assert_counted(&services, "overloaded", 1);
    // One that does not wait needs no place among them.
    services.poll_activity(a_poll(Duration::ZERO)).await.unwrap();
    for poll in polls {
        poll.abort();
        poll.await.unwrap_err();
    }
    let again = services.clone();
    let again = tokio::spawn(async move { again.poll_activity(a_poll(Duration::from_secs(1))).await });
    again.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stream_opens_for_nothing_and_its_claims_are_charged_as_polls_are() {
    use v1::stream_work_request::Request as Ask;
    use v1::stream_work_response::Response as Answer;
    let services = limited(1);
    services.get_queue_depths(depths()).await.unwrap();
    let (requests, mut queue) = tokio::sync::mpsc::unbounded_channel();
    let ask = |id, request| {
        requests.send(Ok(v1::StreamWorkRequest { id, trace_context: None, request: Some(request) })).unwrap();
    };
    ask(
        0,
        Ask::Open(v1::OpenWork {
            namespace: "default".to_owned(),
            queues: vec!["q".to_owned()],
            worker_id: "w".to_owned(),
            ..Default::default()
        }),
    );
    let incoming = futures::stream::poll_fn(move |context| queue.poll_recv(context));
    let mut answers = services.open_stream(anyone(), incoming).await.unwrap();
    let take = || Ask::Take(v1::TakeRuns { limit: 1, ..Default::default() });
    ask(1, take());
    let refused = futures::StreamExt::next(&mut answers).await.unwrap().unwrap();
    let Some(Answer::Refused(refused)) = refused.response else { panic!("{refused:?}") };
    assert_eq!((refused.reason.as_str(), refused.code), ("LIMIT_REACHED", Code::ResourceExhausted.into()));
    assert_eq!(refused.retry_delay, Some(duration_to_wire(Duration::from_secs(1))));

    start(&services, 0).await;
    let lease = claim(&services).await.lease.lease;
    let beat = v1::Heartbeat { lease: Some(kagzi_sdk::wire::IntoWire::into_wire(lease)), lease_length: None };
    ask(2, Ask::Heartbeat(v1::RecordHeartbeatRequest { heartbeats: vec![beat] }));
    let beaten = futures::StreamExt::next(&mut answers).await.unwrap().unwrap();
    assert!(matches!(beaten.response, Some(Answer::Heartbeat(_))), "{beaten:?}");
    tokio::time::advance(Duration::from_secs(1)).await;
    ask(3, take());
    let taken = futures::StreamExt::next(&mut answers).await.unwrap().unwrap();
    assert!(matches!(taken.response, Some(Answer::Runs(_))), "{taken:?}");
}

/// What became of the calls of a tenant.
#[derive(Debug, Default)]
struct Tally {
    answered: u32,
    refused: u32,
}

impl Tally {
    fn count<T>(&mut self, answer: Result<T, Status>) {
        match answer {
            Ok(_) => self.answered += 1,
            Err(refused) => {
                assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
                self.refused += 1;
            }
        }
    }
}

fn of_tenant<T>(name: &str, mut request: Request<T>) -> Request<T> {
    request.extensions_mut().insert(caller(name));
    request
}

/// A tenant, and what each of its callers does until the end: it starts a run or not, looks at its queue,
/// polls, and pauses.
#[derive(Clone, Copy)]
struct Tenant {
    name: &'static str,
    starts: bool,
    /// How long its polls wait for work.
    waits: Duration,
    pause: Duration,
    end: tokio::time::Instant,
}

async fn call_again_and_again(services: Services, tenant: Tenant) -> Tally {
    let Tenant { name, starts, waits, pause, end } = tenant;
    let mut tally = Tally::default();
    while tokio::time::Instant::now() < end {
        if starts {
            let mut start = a_start();
            start.get_mut().namespace = name.to_owned();
            tally.count(services.start_workflow(of_tenant(name, start)).await);
        }
        let mut look = depths();
        look.get_mut().namespace = name.to_owned();
        tally.count(services.get_queue_depths(of_tenant(name, look)).await);
        let mut poll = a_poll(waits);
        poll.get_mut().namespace = name.to_owned();
        tally.count(services.poll_activity(of_tenant(name, poll)).await);
        tokio::time::sleep(pause).await;
    }
    tally
}

#[tokio::test(start_paused = true)]
async fn a_noisy_tenant_is_refused_and_a_quiet_one_beside_it_is_not() {
    const SECONDS: u32 = 3;
    let rate = RateLimit { per_second: 100, burst: 100 };
    // By its rate alone; by the places of those that wait alone, where it polls an empty queue.
    let by_rate = LoadLimits { rate_per_namespace: Some(rate), ..LoadLimits::default() };
    let by_places = LoadLimits { max_waits: 8, ..LoadLimits::default() };
    for load in [by_rate, by_places] {
        let limited = load.rate_per_namespace.is_some();
        let services = services_of(&of_tenants(load));
        let end = tokio::time::Instant::now() + Duration::from_secs(SECONDS.into());
        let run = |name, starts, waits, pause| {
            let tenant = Tenant { name, starts, waits, pause: Duration::from_millis(pause), end };
            tokio::spawn(call_again_and_again(services.clone(), tenant))
        };
        let patience = Duration::from_secs(1);
        // A poll that waits would wait for its turn, too.
        let noisy_patience = if limited { Duration::ZERO } else { patience };
        let noisy: Vec<_> = (0..32).map(|_| run("noisy", limited, noisy_patience, 5)).collect();
        let quiet = run("quiet", true, patience, 100).await.unwrap();
        assert_eq!(quiet.refused, 0, "{quiet:?}");
        assert_eq!(quiet.answered, SECONDS * 10 * 3, "{quiet:?}");
        let mut all = Tally::default();
        for one in noisy {
            let one = one.await.unwrap();
            all.answered += one.answered;
            all.refused += one.refused;
        }
        assert!(all.refused > 1000, "{all:?}");
        assert_counted(
            &services,
            if limited { "rate_per_namespace" } else { "principal_share" },
            all.refused,
        );
        if limited {
            let most = rate.burst + rate.per_second * (SECONDS + 2);
            assert!((most / 2..=most).contains(&all.answered), "{all:?}");
        }
    }
}

fn anyone() -> Origin {
    Origin { caller: Caller::anyone(None), trace: None, place: None }
}
