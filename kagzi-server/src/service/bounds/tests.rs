//! What looks at runs cost a worker with bounds, and the server. Time is tokio's, paused, so that rates are exact.

use std::sync::Arc;
use std::time::Duration;

use kagzi_core::memory::MemoryStore;
use kagzi_core::{
    Claim, Lease, OperationId, Payload, QueueName, SharedStore, StartRun, WorkerId, WorkflowType,
};
use kagzi_proto::v1;
use kagzi_proto::v1::heartbeat_verdict::Verdict;
use kagzi_proto::v1::worker_service_server::WorkerService as _;
use kagzi_proto::v1::workflow_service_server::WorkflowService as _;
use kagzi_sdk::wire::IntoWire as _;
use tokio::time::Instant;
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

use super::*;
use crate::config::{LoadLimits, RateLimit, ServerConfig};
use crate::service::load::Patience;
use crate::service::tests::services_over;

fn default() -> Namespace {
    Namespace::new("default").unwrap()
}

/// Runs of a queue, claimed through another server.
async fn claimed(store: &SharedStore, queue: &str, count: u32) -> Vec<Lease> {
    let queue = QueueName::new(queue).unwrap();
    let start =
        StartRun::new(default(), queue.clone(), WorkflowType::new("t").unwrap(), Payload::raw(Vec::new()));
    let starts = (0..count).map(|_| StartRun { operation: OperationId::generate(), ..start.clone() });
    store.start(starts.collect()).await.unwrap();
    let claim = Claim {
        namespace: default(),
        queues: vec![queue],
        workflow_types: Vec::new(),
        worker_id: WorkerId::new("w").unwrap(),
        lease_length: Duration::from_secs(30),
        limit: count,
        steps_limit: 1,
        operation: OperationId::generate(),
    };
    let runs = store.claim(claim).await.unwrap();
    assert_eq!(runs.len(), count as usize);
    runs.into_iter().map(|run| run.lease.lease).collect()
}

/// Leases on runs that are not there.
fn made_up(like: &Lease, count: usize) -> Vec<Lease> {
    let id = |at: usize| format!("{:04x}{}", at, &like.run_id.to_string()[4..]).parse().unwrap();
    (0..count).map(|at| Lease { run_id: id(at), ..like.clone() }).collect()
}

fn from_bound<T>(message: T) -> Request<T> {
    from("bound", "worker", message)
}

/// A request of a caller who is bound to one queue.
fn from<T>(name: &str, role: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let grant = format!("role = '{role}'\nnamespaces = ['default']\nqueues = ['ours']");
    request.extensions_mut().insert(Caller::granted(name, &grant));
    request
}

/// The verdicts of a heartbeat: nothing, or the reason of a refusal.
async fn beat(services: &Services, leases: &[Lease]) -> Vec<Option<String>> {
    beat_as("bound", services, leases).await
}

async fn beat_as(name: &str, services: &Services, leases: &[Lease]) -> Vec<Option<String>> {
    let heartbeat =
        |lease: &Lease| v1::Heartbeat { lease: Some(lease.clone().into_wire()), lease_length: None };
    let heartbeats = leases.iter().map(heartbeat).collect();
    let answer =
        services.record_heartbeat(from(name, "worker", v1::RecordHeartbeatRequest { heartbeats })).await;
    let verdicts = answer.unwrap().into_inner().verdicts;
    assert_eq!(verdicts.len(), leases.len());
    let reason = |verdict: v1::HeartbeatVerdict| match verdict.verdict.unwrap() {
        Verdict::Refused(item) => {
            assert_eq!(item.reason == "LIMIT_REACHED", item.retry_delay.is_some(), "{item:?}");
            Some(item.reason)
        }
        Verdict::Granted(_) => None,
    };
    verdicts.into_iter().map(reason).collect()
}

/// How often the store was asked for this.
fn asked(services: &Services, operation: &str) -> u32 {
    let text = services.metrics().text().unwrap();
    let series =
        format!("kagzi_store_operation_duration_seconds_count{{operation=\"{operation}\",outcome=\"ok\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&series)).map_or(0, |count| count.parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn leases_that_another_server_gave_are_looked_up_many_by_one_read_and_once() {
    let store: SharedStore = Arc::new(MemoryStore::default());
    let services = services_over(&ServerConfig::default(), Arc::clone(&store));
    let (ours, theirs) = (claimed(&store, "ours", 200).await, claimed(&store, "theirs", 1).await);
    for _ in 0..2 {
        assert_eq!(beat(&services, &ours).await, vec![None; 200]);
        assert_eq!((asked(&services, "get_run"), asked(&services, "get_runs")), (0, 4));
    }
    // What is elsewhere and what is not there are denied alike, beside others that are extended.
    let mixed = [theirs[0].clone(), ours[0].clone(), made_up(&ours[0], 1).remove(0)];
    let denied = Some("PERMISSION_DENIED".to_owned());
    for _ in 0..2 {
        assert_eq!(beat(&services, &mixed).await, [denied.clone(), None, denied.clone()]);
    }
}

#[tokio::test(start_paused = true)]
async fn looks_are_charged_before_they_are_made_and_what_was_handed_out_costs_nothing() {
    let store: SharedStore = Arc::new(MemoryStore::default());
    let rate = RateLimit { per_second: 1, burst: 4 };
    // By principal, and by namespace.
    for by_principal in [true, false] {
        let load = LoadLimits {
            rate_per_principal: Some(rate).filter(|_| by_principal),
            rate_per_namespace: Some(rate).filter(|_| !by_principal),
            ..LoadLimits::default()
        };
        let services = services_over(&ServerConfig { load, ..ServerConfig::default() }, Arc::clone(&store));
        let (ours, theirs) = (claimed(&store, "ours", 2).await, claimed(&store, "theirs", 1).await);
        // The first two looks are those at what it holds and at what is another's.
        assert_eq!(beat(&services, &ours[..1]).await, [None]);
        let (denied, limited) = (Some("PERMISSION_DENIED".to_owned()), Some("LIMIT_REACHED".to_owned()));
        assert_eq!(beat(&services, &theirs).await, std::slice::from_ref(&denied));
        let made_up = made_up(&ours[0], 200);
        let verdicts = beat(&services, &made_up).await;
        assert_eq!(verdicts[..2], [denied.clone(), denied]);
        assert!(verdicts[2..].iter().all(|verdict| *verdict == limited), "{verdicts:?}");
        let reads = asked(&services, "get_runs");
        // What it holds goes on; what is elsewhere, and known to be, is refused as what is not there.
        let mixed = [theirs[0].clone(), ours[0].clone(), made_up[0].clone(), ours[1].clone()];
        let expected = [limited.clone(), None, limited.clone(), limited];
        assert_eq!(beat(&services, &mixed).await, expected);
        let release = |lease: &Lease| {
            let lease = Some(lease.clone().into_wire());
            from_bound(v1::ReleaseWorkflowRequest { lease, ..Default::default() })
        };
        let refused = services.release_workflow(release(&ours[1])).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
        let limit = refused.get_details_error_info().unwrap().metadata["limit"].clone();
        assert_eq!(limit, if by_principal { "rate_per_principal" } else { "rate_per_namespace" });
        assert_eq!(asked(&services, "get_runs"), reads, "nothing was looked up");
        let text = services.metrics().text().unwrap();
        assert!(text.contains(&format!("kagzi_refusals_total{{reason=\"{limit}\"}} 3\n")), "{text}");
        services.release_workflow(release(&ours[0])).await.unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        services.release_workflow(release(&ours[1])).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_runs_looked_for_in_vain_waits_for_themselves_and_nobody_else_does() {
    const BEATS: u32 = 20;
    let store: SharedStore = Arc::new(MemoryStore::default());
    // No rate is configured.
    let config = ServerConfig { access_file: Some("access.toml".into()), ..ServerConfig::default() };
    let services = services_over(&config, Arc::clone(&store));
    let (ours, theirs) = (claimed(&store, "ours", 601).await, claimed(&store, "theirs", 1).await);
    let began = Instant::now();
    let flood = |leases: Vec<Lease>| {
        let services = services.clone();
        tokio::spawn(async move {
            for _ in 0..BEATS {
                let verdicts = beat_as("noisy", &services, &leases).await;
                assert!(verdicts.iter().all(|verdict| verdict.as_deref() == Some("PERMISSION_DENIED")));
            }
            began.elapsed()
        })
    };
    // What is not there, and what is another's and known to be, is waited for alike.
    let mut noisy: Vec<_> = (0..3).map(|_| flood(made_up(&ours[0], 200))).collect();
    noisy.push(flood(vec![theirs[0].clone(); 200]));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let shown = services.metrics().text().unwrap();
    assert!(shown.contains("\nkagzi_requests_waiting{for=\"look\"} 4\n"), "{shown}");
    let before = Instant::now();
    assert_eq!(beat_as("quiet", &services, &ours[..600]).await, vec![None; 600]);
    assert_eq!(before.elapsed(), Duration::ZERO, "a worker of another principal finds what it holds at once");
    // One of the same waits for the looks of theirs that are before it, and with what is known for none.
    assert_eq!(beat_as("noisy", &services, &ours[600..]).await, [None]);
    assert!(before.elapsed() <= Duration::from_millis(50), "{:?}", before.elapsed());
    let before = Instant::now();
    assert_eq!(beat_as("noisy", &services, &ours).await, vec![None; 601]);
    let release =
        v1::ReleaseWorkflowRequest { lease: Some(ours[0].clone().into_wire()), ..Default::default() };
    services.release_workflow(from("noisy", "worker", release)).await.unwrap();
    assert_eq!(before.elapsed(), Duration::ZERO);
    let mut last = Duration::ZERO;
    for one in noisy {
        assert!(!one.is_finished());
        last = last.max(one.await.unwrap());
    }
    // Each look but the last keeps another away, 64 runs at a time.
    let in_vain = Duration::from_millis(10) * 4 * BEATS * 4;
    assert!((in_vain * 9 / 10..=in_vain * 12 / 10).contains(&last), "{last:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_looks_once_it_has_its_place_among_the_reads() {
    let store: SharedStore = Arc::new(MemoryStore::default());
    let load = LoadLimits { max_reads_in_flight: 1, ..LoadLimits::default() };
    let services = services_over(&ServerConfig { load, ..ServerConfig::default() }, Arc::clone(&store));
    let lease = claimed(&store, "ours", 1).await.remove(0);
    let get = || {
        let get = v1::GetWorkflowRequest {
            namespace: "default".to_owned(),
            run_id: lease.run_id.to_string(),
            ..Default::default()
        };
        services.get_workflow(from("client", "client", get))
    };
    let namespace = default();
    let read = Errand::Other(Patience::AtOnce);
    let held =
        services.0.load.admit(read, &Caller::named("another"), [&namespace].into_iter()).await.unwrap();
    let refused = get().await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert_eq!(asked(&services, "get_runs"), 0, "nothing was looked up");
    drop(held);
    get().await.unwrap();
    assert_eq!(asked(&services, "get_runs"), 1);
}
