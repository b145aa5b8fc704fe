//! What several tests of this crate begin with.

#![allow(dead_code, reason = "no test needs all of it")]

use std::time::Duration;

use kagzi_core::{
    BeginOutcome, BeginStep, Claim, Heartbeat, Lease, Namespace, NextStep, OperationId, Payload, QueueName,
    StartRun, StepId, Store, StoreError, WorkerId, WorkflowType,
};
use kagzi_testkit::{TestDatabase, postgres};

pub async fn database() -> TestDatabase {
    postgres().await.unwrap().fresh_database().await.unwrap()
}

pub fn namespace() -> Namespace {
    Namespace::new("n").unwrap()
}

pub fn start(queue: &str) -> StartRun {
    let (queue, workflow) = (QueueName::new(queue).unwrap(), WorkflowType::new("w").unwrap());
    StartRun::new(namespace(), queue, workflow, Payload::json("1"))
}

pub fn claim(queue: &str, limit: u32) -> Claim {
    Claim {
        namespace: namespace(),
        queues: vec![QueueName::new(queue).unwrap()],
        workflow_types: Vec::new(),
        worker_id: WorkerId::new("worker").unwrap(),
        lease_length: Duration::from_mins(1),
        limit,
        steps_limit: 10,
        operation: OperationId::generate(),
    }
}

/// Starts runs in the queue `q` and takes them.
pub async fn held(store: &dyn Store, count: u32) -> Vec<Lease> {
    store.start((0..count).map(|_| start("q")).collect()).await.unwrap();
    let taken = store.claim(claim("q", count)).await.unwrap();
    assert_eq!(taken.len(), count as usize);
    taken.into_iter().map(|run| run.lease.lease).collect()
}

pub async fn begin(store: &dyn Store, lease: &Lease, step: u32) -> Result<BeginOutcome, StoreError> {
    let step = NextStep::new(StepId::new(format!("step-{step}")).unwrap(), step);
    let operation = OperationId::generate();
    store.begin_step(BeginStep { lease: lease.clone(), step, operation }).await
}

pub fn beat(lease: &Lease) -> Heartbeat {
    Heartbeat { lease: lease.clone(), lease_length: Duration::from_mins(2) }
}
