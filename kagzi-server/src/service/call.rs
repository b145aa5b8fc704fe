//! The frame of every call: admit, read, check the caller and the namespace, do, answer or report.

use kagzi_core::{Namespace, StoreError};
use kagzi_sdk::wire::error::{LIMIT_REACHED, Refusal, namespace_not_found};
use kagzi_sdk::wire::{FromWire, IntoWire};
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

use super::Services;
use super::bytes::RequestBytes;
use super::load::Excess;
use super::permission::Permission;
use super::stream::StreamPlace;
use super::subject::Subject;
use super::told::{Origin, Told, trace_of};
use crate::auth::{Caller, Deed, Target};
use crate::metrics::Wait;

/// Why what a request asks was not done, once it was let in.
#[derive(Debug)]
pub(super) enum NotDone {
    /// The store failed, or refused it.
    Failed(StoreError),
    /// There was no turn for it: that says nothing of the store.
    NoTurn(Refusal),
}

impl From<StoreError> for NotDone {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

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
        let origin = self.origin(&request)?;
        let reply = self.reply(&origin, method, D::from_wire(request.into_inner()), act).await;
        reply.map(|outcome| Response::new(outcome.into_wire())).map_err(Refusal::into_status)
    }

    /// Answers a call whose message was read, or not.
    pub(super) async fn answer<R, D, E, F>(
        &self,
        origin: &Origin,
        method: &'static str,
        read: Result<D, StoreError>,
        act: impl FnOnce(D) -> F,
    ) -> Result<Response<R>, Status>
    where
        D: Subject,
        E: Into<NotDone>,
        F: Future<Output = Result<R, E>>,
    {
        self.reply(origin, method, read, act).await.map(Response::new).map_err(Refusal::into_status)
    }

    /// Who makes a call, and as part of which trace.
    pub(super) fn origin<M>(&self, request: &Request<M>) -> Result<Origin, Status> {
        let caller = match request.extensions().get::<Caller>() {
            Some(caller) => caller.clone(),
            None => self.0.auth.unseen().map_err(Refusal::into_status)?,
        };
        let place = request.extensions().get::<StreamPlace>().cloned();
        let held = request.extensions().get::<RequestBytes>().cloned();
        Ok(Origin { caller, trace: trace_of(request), place, held })
    }

    /// Does what a request asks, whatever carried it here, within a span; counts it, and puts it on record if
    /// it is an operator's.
    pub(super) async fn reply<O, D, E, F>(
        &self,
        origin: &Origin,
        method: &'static str,
        mut read: Result<D, StoreError>,
        act: impl FnOnce(D) -> F,
    ) -> Result<O, Refusal>
    where
        D: Subject,
        E: Into<NotDone>,
        F: Future<Output = Result<O, E>>,
    {
        let told = Told::of(method, read.as_ref().ok(), origin);
        let span = told.span();
        if let Ok(request) = &mut read {
            request.continue_trace(|| told.context(&span));
        }
        let replying = async {
            let about = read.as_ref().ok();
            let namespace = about.and_then(|request| request.namespaces().next());
            let target = Target {
                namespace,
                run_id: about.and_then(Subject::run_id),
                queue: about.and_then(Subject::queue),
                reason: about.and_then(Subject::reason),
                removal: about.and_then(Subject::removal),
            };
            let deed = self.0.auth.audit().begin(&self.0.metrics, &origin.caller, method, target);
            let counted = self.0.metrics.request(method);
            let outcome = self.perform(&origin.caller, &told, &deed, read, act).await;
            counted.end(&outcome);
            match outcome.as_ref().map_err(Refusal::reason) {
                Ok(_) => deed.end("OK").await,
                // Nothing was done and nothing decided, and whoever calls without end shall not fill the record.
                Err(LIMIT_REACHED) => deed.untold(),
                Err(reason) => deed.end(reason).await,
            }
            told.ended(&span, &outcome);
            outcome
        };
        replying.instrument(span.clone()).await
    }

    async fn perform<O, D, E, F>(
        &self,
        caller: &Caller,
        told: &Told,
        deed: &Deed<'_>,
        read: Result<D, StoreError>,
        act: impl FnOnce(D) -> F,
    ) -> Result<O, Refusal>
    where
        D: Subject,
        E: Into<NotDone>,
        F: Future<Output = Result<O, E>>,
    {
        let method = told.method;
        // First of all: whatever becomes of the call would be a line on record.
        let namespace = read.as_ref().ok().and_then(|request| request.namespaces().next());
        self.0.auth.charge_record(caller, method, namespace)?;
        let in_flight = self.0.drain.admit()?;
        let (load, metrics) = (&self.0.load, &self.0.metrics);
        // Before anything is looked up: whoever is denied learns nothing of what is there, and who may never do this no
        // more from a request that cannot be read than from another.
        let permission = match &read {
            Ok(request) => request.permission(caller, method),
            Err(_) if caller.may_ever(method) => Permission::Granted,
            Err(_) => Permission::Denied,
        };
        // Either had to be read all the same.
        let paid = if permission == Permission::Denied || read.is_err() {
            load.charge_in_vain(caller)
        } else {
            Ok(())
        };
        if permission == Permission::Denied {
            // Whoever cannot pay is denied as well, and that is told and counted.
            return Err(self.0.auth.deny(caller, method));
        }
        paid?;
        let request = read.map_err(|error| self.refused(told, &error))?;
        let beside = request.beside_bytes();
        let beside = (beside > 0).then(|| load.payer(caller, metrics).anyway(beside));
        let charging = load.charge(request.errand(), caller, request.namespaces());
        metrics.waiting(Wait::Rate, charging).await.map_err(|excess| match excess {
            Excess::ForNow(refusal) => refusal,
            Excess::ForEver(error) => self.refused(told, &error),
        })?;
        if let Some(unknown) = self.not_served(&request) {
            told.not_served(&self.0.failures);
            return Err(namespace_not_found(unknown.as_str()));
        }
        // Not reported: the breaker tells once that it opened, not of each call that it refuses.
        self.0.health.admit().map_err(|error| Refusal::from(&error))?;
        // Before a run is looked up, since that is a read, too.
        let admitting = load.admit(request.errand(), caller, request.namespaces());
        let admitted = metrics.waiting(Wait::Calm, admitting).await?;
        let scan = load.scan(request.errand(), caller, request.namespaces());
        let scanning = metrics.waiting(Wait::Scan, scan).await?;
        if permission == Permission::IfRun {
            self.check_run(caller, told, &request).await?;
        }
        // After that: writes do not wait for the looks of others.
        let turn = load.turn(request.errand(), caller, request.namespaces());
        let writing = metrics.waiting(Wait::Turn, turn).await;
        self.0.health.admit().map_err(|error| Refusal::from(&error))?;
        deed.announce().await?;
        let answer = act(request).await.map_err(|not_done| match not_done.into() {
            NotDone::Failed(error) => self.refused(told, &error),
            NotDone::NoTurn(refusal) => refusal,
        })?;
        drop((admitted, scanning, writing, in_flight, beside));
        Ok(answer)
    }

    /// The first namespace of a request that this server does not serve.
    fn not_served<'a>(&self, request: &'a impl Subject) -> Option<&'a Namespace> {
        request.namespaces().find(|namespace| !self.limits().namespaces.contains(*namespace))
    }

    /// Reports a failed call, once, and makes its refusal.
    pub(super) fn refused(&self, told: &Told, error: &StoreError) -> Refusal {
        if matches!(error, StoreError::Unavailable { .. } | StoreError::OutcomeUnknown { .. }) {
            self.0.health.doubt();
        }
        told.failed(error, &self.0.failures);
        Refusal::from(error)
    }
}
