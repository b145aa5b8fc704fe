//! What is bounded, for whom, and what is not. Time is tokio's, paused, so that rates are exact.

mod charges;
mod places;
mod scans;
mod tenants;
mod writes;

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
