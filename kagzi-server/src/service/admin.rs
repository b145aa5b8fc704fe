//! `AdminService`: the server itself, and housekeeping.

use std::time::Duration;

use kagzi_core::{DeleteFinished, StoreError};
use kagzi_proto::v1;
use kagzi_proto::v1::admin_service_server::AdminService;
use kagzi_sdk::wire::{FromWire, duration_to_wire, moment_to_wire};
use tonic::{Request, Response, Status, async_trait};

use super::Services;

#[async_trait]
impl AdminService for Services {
    async fn get_server_info(
        &self,
        request: Request<v1::GetServerInfoRequest>,
    ) -> Result<Response<v1::GetServerInfoResponse>, Status> {
        let origin = self.origin(&request)?;
        self.answer(&origin, "GetServerInfo", Ok(()), |()| self.server_info()).await
    }

    async fn delete_finished(
        &self,
        request: Request<v1::DeleteFinishedRequest>,
    ) -> Result<Response<v1::DeleteFinishedResponse>, Status> {
        let origin = self.origin(&request)?;
        let read = DeleteFinished::from_wire(request.into_inner());
        self.answer(&origin, "DeleteFinished", read, |delete| async move {
            let deleted = self.store().delete_finished(&delete).await?;
            Ok::<_, StoreError>(v1::DeleteFinishedResponse { deleted })
        })
        .await
    }
}

impl Services {
    async fn server_info(&self) -> Result<v1::GetServerInfoResponse, StoreError> {
        let limits = self.limits();
        let length = |length: Duration| Some(duration_to_wire(length));
        Ok(v1::GetServerInfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            backend: self.store().backend().to_owned(),
            now: Some(moment_to_wire(self.store().now().await?)),
            max_payload_bytes: limits.rules.max_payload_bytes as u64,
            max_message_bytes: limits.max_message_bytes as u64,
            max_batch: limits.max_batch,
            max_poll_wait: length(limits.max_poll_wait),
            default_lease_length: length(limits.default_lease),
            min_lease_length: length(limits.min_lease),
            max_lease_length: length(limits.max_lease),
        })
    }
}
