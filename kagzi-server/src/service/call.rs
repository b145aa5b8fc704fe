//! The frame of every call: admit, read, check the namespace, do, answer or report.

use kagzi_core::{Namespace, RunId, StoreError};
use kagzi_sdk::wire::error::{Refusal, namespace_not_found};
use kagzi_sdk::wire::{FromWire, IntoWire};
use tonic::{Request, Response, Status};

use super::Services;
use super::subject::Subject;

impl Services {
    /// Answers a call whose message reads and whose answer writes by itself.
    pub(super) async fn call<M, R, D, O, F>(
        &self,
        method: &'static str,
        request: Request<M>,
        act: impl FnOnce(D) -> F,
    ) -> Result<Response<R>, Status>
    where
        D: FromWire<M> + Subject,
        O: IntoWire<R>,
        F: Future<Output = Result<O, StoreError>>,
    {
        let reply = self.reply(method, D::from_wire(request.into_inner()), act).await;
        reply.map(|outcome| Response::new(outcome.into_wire())).map_err(Refusal::into_status)
    }

    /// Answers a call whose message was read, or not.
    pub(super) async fn answer<R, D, F>(
        &self,
        method: &'static str,
        read: Result<D, StoreError>,
        act: impl FnOnce(D) -> F,
    ) -> Result<Response<R>, Status>
    where
        D: Subject,
        F: Future<Output = Result<R, StoreError>>,
    {
        self.reply(method, read, act).await.map(Response::new).map_err(Refusal::into_status)
    }

    /// Does what a request asks, whatever carried it here.
    pub(super) async fn reply<O, D, F>(
        &self,
        method: &'static str,
        read: Result<D, StoreError>,
        act: impl FnOnce(D) -> F,
    ) -> Result<O, Refusal>
    where
        D: Subject,
        F: Future<Output = Result<O, StoreError>>,
    {
        let in_flight = self.0.drain.admit()?;
        let request = read.map_err(|error| self.refused(method, None, &error))?;
        if let Some(unknown) = self.not_served(&request) {
            tracing::info!(method, namespace = %unknown, reason = "NAMESPACE_NOT_FOUND", "call failed");
            return Err(namespace_not_found(unknown.as_str()));
        }
        let run_id = request.run_id();
        self.0.health.admit().map_err(|error| self.refused(method, run_id, &error))?;
        let admitted = self.0.load.admit(request.errand()).await?;
        let answer = act(request).await.map_err(|error| self.refused(method, run_id, &error))?;
        drop((admitted, in_flight));
        Ok(answer)
    }

    /// The first namespace of a request that this server does not serve.
    fn not_served<'a>(&self, request: &'a impl Subject) -> Option<&'a Namespace> {
        request.namespaces().find(|namespace| !self.limits().namespaces.contains(*namespace))
    }

    /// Reports a failed call, once, and makes its refusal. Errors hold no payload.
    fn refused(&self, method: &'static str, run_id: Option<RunId>, error: &StoreError) -> Refusal {
        let run_id = run_id.map(tracing::field::display);
        match error {
            StoreError::Unavailable { .. } | StoreError::OutcomeUnknown { .. } => {
                self.0.health.doubt();
                tracing::warn!(method, run_id, reason = error.reason(), %error, "call failed");
            }
            StoreError::Internal { .. } | StoreError::SchemaMismatch { .. } => {
                tracing::error!(method, run_id, reason = error.reason(), %error, "call failed");
            }
            _ => tracing::info!(method, run_id, reason = error.reason(), %error, "call failed"),
        }
        Refusal::from(error)
    }
}
