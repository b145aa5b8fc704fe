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
use kagzi_sdk::wire::IntoWire as _;
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

use super::*;
use crate::config::{LoadLimits, RateLimit, ServerConfig};
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
    let mut request = Request::new(message);
    let grant = "role = 'worker'\nnamespaces = ['default']\nqueues = ['ours']";
    request.extensions_mut().insert(Caller::granted("bound", grant));
    request
}

/// The verdicts of a heartbeat: nothing, or the reason of a refusal.
async fn beat(services: &Services, leases: &[Lease]) -> Vec<Option<String>> {
    let heartbeat =
        |lease: &Lease| v1::Heartbeat { lease: Some(lease.clone().into_wire()), lease_length: None };
    let heartbeats = leases.iter().map(heartbeat).collect();
    let answer = services.record_heartbeat(from_bound(v1::RecordHeartbeatRequest { heartbeats })).await;
    let verdicts = answer.unwrap().into_inner().verdicts;
    assert_eq!(verdicts.len(), leases.len());
    let reason = |verdict: v1::HeartbeatVerdict| match verdict.verdict.unwrap() {
        Verdict::Refused(item) => {
            assert_eq!(item.reason == "LIMIT_REACHED", item.retry_delay.is_some(), "{item:?}");
            Some(item.reason)
        }
        _ => None,
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
        assert_eq!(beat(&services, &theirs).await, [denied.clone()]);
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
