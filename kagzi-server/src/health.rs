//! Health by the gRPC protocol: SERVING while the store answers and the server takes calls.

use std::sync::Arc;
use std::time::Duration;

use kagzi_core::SharedStore;
use kagzi_proto::v1::admin_service_server::SERVICE_NAME as ADMIN;
use kagzi_proto::v1::worker_service_server::SERVICE_NAME as WORKER;
use kagzi_proto::v1::workflow_service_server::SERVICE_NAME as WORKFLOW;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// The shortest time between two looks at the store, however many calls report it away.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);

/// Who asks the store whether it is well, and tells.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    reporter: HealthReporter,
    /// A call found the store away.
    doubt: Arc<Notify>,
}

impl Health {
    pub(crate) fn new(reporter: HealthReporter) -> Self {
        Self { reporter, doubt: Arc::default() }
    }

    /// Tells that a call found the store away: it is looked at without waiting for the next time.
    pub(crate) fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Sets the status of the server and of each service.
    pub(crate) async fn set(&self, status: ServingStatus) {
        for service in ["", WORKFLOW, WORKER, ADMIN] {
            self.reporter.set_service_status(service, status).await;
        }
    }

    /// Looks at the store every `interval`, more often while it is away, and when a call is in doubt.
    pub(crate) async fn watch(&self, store: &SharedStore, interval: Duration) {
        let mut before = None;
        loop {
            let now = look(store, interval).await;
            if before != Some(now) {
                self.set(now).await;
                match now {
                    ServingStatus::Serving if before.is_some() => tracing::info!("the store answers again"),
                    ServingStatus::Serving => {}
                    _ => tracing::warn!("the store does not answer: health is NOT_SERVING"),
                }
                before = Some(now);
            }
            sleep(SHORTEST_PAUSE.min(interval)).await;
            let pause =
                if now == ServingStatus::Serving { interval } else { interval.min(Duration::from_secs(1)) };
            // Whether time or doubt ended the pause, the next step is the same: look again.
            timeout(pause, self.doubt.notified()).await.ok();
        }
    }
}

async fn look(store: &SharedStore, patience: Duration) -> ServingStatus {
    match timeout(patience, store.now()).await {
        Ok(Ok(_)) => ServingStatus::Serving,
        Ok(Err(_)) | Err(_) => ServingStatus::NotServing,
    }
}
