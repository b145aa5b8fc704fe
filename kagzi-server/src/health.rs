//! Health by the gRPC protocol: SERVING while the store answers and the server takes calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kagzi_core::{SharedStore, StoreError};
use kagzi_proto::v1::admin_service_server::SERVICE_NAME as ADMIN;
use kagzi_proto::v1::worker_service_server::SERVICE_NAME as WORKER;
use kagzi_proto::v1::workflow_service_server::SERVICE_NAME as WORKFLOW;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// The shortest time between two looks at the store, however many calls report it away.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);

/// How often a store that is away is looked at, and how long callers are told to wait meanwhile.
const PAUSE_WHILE_AWAY: Duration = Duration::from_secs(1);

/// Who asks the store whether it is well, and tells. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    reporter: HealthReporter,
    /// A call found the store away.
    doubt: Arc<Notify>,
    away: Arc<AtomicBool>,
}

impl Health {
    pub(crate) fn new(reporter: HealthReporter) -> Self {
        Self { reporter, doubt: Arc::default(), away: Arc::default() }
    }

    /// Tells that a call found the store away: it is looked at without waiting for the next time.
    pub(crate) fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Refuses a call while the store is away (the circuit breaker): it would only join the others that
    /// wait for it. The next look that finds the store well lets calls in again.
    pub(crate) fn admit(&self) -> Result<(), StoreError> {
        if !self.away.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(StoreError::Unavailable {
            reason: "the server cannot reach its store; see the server's log, and retry".to_owned(),
            retry_after: PAUSE_WHILE_AWAY,
        })
    }

    /// Sets the status of the server and of each service.
    pub(crate) async fn set(&self, status: ServingStatus) {
        for service in ["", WORKFLOW, WORKER, ADMIN] {
            self.reporter.set_service_status(service, status).await;
        }
    }

    /// Looks at the store and tells what it found.
    pub(crate) async fn check(&self, store: &SharedStore, patience: Duration) -> ServingStatus {
        let status = look(store, patience).await;
        let away = status != ServingStatus::Serving;
        match (self.away.swap(away, Ordering::Relaxed), away) {
            (false, true) => tracing::warn!("the store does not answer: NOT_SERVING, calls are refused"),
            (true, false) => tracing::info!("the store answers again"),
            _ => {}
        }
        self.set(status).await;
        status
    }

    /// Looks at the store every `interval`, more often while it is away, and when a call is in doubt.
    pub(crate) async fn watch(&self, store: &SharedStore, interval: Duration) {
        loop {
            let pause = match self.check(store, interval).await {
                ServingStatus::Serving => interval,
                _ => interval.min(PAUSE_WHILE_AWAY),
            };
            sleep(SHORTEST_PAUSE.min(interval)).await;
            // Whether time or doubt ended the pause, the next step is the same: look again.
            timeout(pause, self.doubt.notified()).await.ok();
        }
    }
}

/// Asks for the next due moment: cheap, and unlike the time it is read from the data in every backend.
/// An error says that the store is away; silence does only if it lasts for a second look, since one slow
/// answer under load is no reason to refuse every call.
async fn look(store: &SharedStore, patience: Duration) -> ServingStatus {
    for _ in 0..2 {
        match timeout(patience, store.next_due()).await {
            Ok(Ok(_)) => return ServingStatus::Serving,
            Ok(Err(_)) => return ServingStatus::NotServing,
            Err(_) => {}
        }
    }
    ServingStatus::NotServing
}
