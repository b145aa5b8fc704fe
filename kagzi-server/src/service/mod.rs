//! The gRPC services: each call is admitted, read, checked, asked of the store, and answered.

mod admin;
mod bounds;
mod bytes;
mod call;
mod claims;
mod failures;
mod limits;
mod load;
mod page;
mod permission;
mod poll;
mod stream;
mod subject;
#[cfg(test)]
mod tests;
mod told;
mod weight;
mod worker;
mod workflow;

use std::sync::Arc;

use kagzi_core::SharedStore;
use kagzi_core::engine::Engine;
use kagzi_proto::v1::admin_service_server::AdminServiceServer;
use kagzi_proto::v1::worker_service_server::WorkerServiceServer;
use kagzi_proto::v1::workflow_service_server::WorkflowServiceServer;

use crate::auth::Auth;
use crate::config::ServerConfig;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::shutdown::Drain;
pub(crate) use bytes::BytesLayer;
use claims::Claims;
use failures::Failures;
use limits::Limits;
use load::Load;
use permission::Places;
pub(crate) use stream::StreamLayer;

/// What every call needs. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Services(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    engine: Engine,
    limits: Limits,
    drain: Drain,
    health: Health,
    load: Load,
    auth: Auth,
    places: Places,
    claims: Claims,
    failures: Failures,
    metrics: Metrics,
}

impl Services {
    pub(crate) fn new(
        config: &ServerConfig,
        engine: Engine,
        drain: Drain,
        health: Health,
        auth: Auth,
        metrics: Metrics,
    ) -> Self {
        let (limits, load, places) = (Limits::of(config), Load::of(config), Places::default());
        let (claims, failures) = (Claims::default(), Failures::default());
        Self(Arc::new(Shared {
            engine,
            limits,
            drain,
            health,
            load,
            auth,
            places,
            claims,
            failures,
            metrics,
        }))
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    fn store(&self) -> &SharedStore {
        self.0.engine.store()
    }

    fn engine(&self) -> &Engine {
        &self.0.engine
    }

    fn limits(&self) -> &Limits {
        &self.0.limits
    }

    pub(crate) fn workflow(&self) -> WorkflowServiceServer<Self> {
        WorkflowServiceServer::new(self.clone()).max_decoding_message_size(self.0.limits.max_message_bytes)
    }

    pub(crate) fn worker(&self) -> WorkerServiceServer<Self> {
        WorkerServiceServer::new(self.clone()).max_decoding_message_size(self.0.limits.max_message_bytes)
    }

    pub(crate) fn admin(&self) -> AdminServiceServer<Self> {
        AdminServiceServer::new(self.clone()).max_decoding_message_size(self.0.limits.max_message_bytes)
    }
}
