//! `WorkerService`: the life of a claimed run.

use kagzi_core::{Heartbeat, Lease, StoreError};
use kagzi_proto::v1;
use kagzi_proto::v1::heartbeat_verdict::Verdict;
use kagzi_proto::v1::worker_service_server::WorkerService;
use kagzi_sdk::wire::error::{Refusal, permission_denied};
use kagzi_sdk::wire::{IntoWire, Poll, heartbeats_from_wire, poll_from_wire, verdicts_to_wire};
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::Services;
use super::bounds::Within;
use super::limits::check_batch;
use super::load::Errand;
use super::stream::Answers;
use crate::auth::Caller;
use crate::metrics::Wait;

#[async_trait]
impl WorkerService for Services {
    async fn poll_activity(
        &self,
        request: Request<v1::PollActivityRequest>,
    ) -> Result<Response<v1::PollActivityResponse>, Status> {
        let origin = self.origin(&request)?;
        let read = self.read_poll(request.into_inner());
        let poll = |poll| async { self.poll(&origin.caller, poll).await.map(IntoWire::into_wire) };
        self.answer(&origin, "PollActivity", read, poll).await
    }

    async fn record_heartbeat(
        &self,
        request: Request<v1::RecordHeartbeatRequest>,
    ) -> Result<Response<v1::RecordHeartbeatResponse>, Status> {
        let origin = self.origin(&request)?;
        let read = self.read_heartbeats(request.into_inner());
        self.answer(&origin, "RecordHeartbeat", read, |batch| self.heartbeat(&origin.caller, batch)).await
    }

    async fn begin_step(
        &self,
        request: Request<v1::BeginStepRequest>,
    ) -> Result<Response<v1::BeginStepResponse>, Status> {
        self.call("BeginStep", request, |begin| self.store().begin_step(begin)).await
    }

    async fn complete_step(
        &self,
        request: Request<v1::CompleteStepRequest>,
    ) -> Result<Response<v1::CompleteStepResponse>, Status> {
        self.call("CompleteStep", request, |complete| self.store().complete_step(complete)).await
    }

    async fn fail_step(
        &self,
        request: Request<v1::FailStepRequest>,
    ) -> Result<Response<v1::FailStepResponse>, Status> {
        self.call("FailStep", request, |fail| self.store().fail_step(fail)).await
    }

    async fn schedule_sleep(
        &self,
        request: Request<v1::ScheduleSleepRequest>,
    ) -> Result<Response<v1::ScheduleSleepResponse>, Status> {
        self.call("ScheduleSleep", request, |sleep| self.store().sleep(sleep)).await
    }

    async fn complete_workflow(
        &self,
        request: Request<v1::CompleteWorkflowRequest>,
    ) -> Result<Response<v1::CompleteWorkflowResponse>, Status> {
        self.call("CompleteWorkflow", request, |complete| self.store().complete_run(complete)).await
    }

    async fn fail_workflow(
        &self,
        request: Request<v1::FailWorkflowRequest>,
    ) -> Result<Response<v1::FailWorkflowResponse>, Status> {
        self.call("FailWorkflow", request, |fail| self.store().fail_run(fail)).await
    }

    async fn release_workflow(
        &self,
        request: Request<v1::ReleaseWorkflowRequest>,
    ) -> Result<Response<v1::ReleaseWorkflowResponse>, Status> {
        self.call("ReleaseWorkflow", request, |release| self.store().release(release)).await
    }

    type StreamWorkStream = Answers<v1::StreamWorkResponse>;

    async fn stream_work(
        &self,
        request: Request<Streaming<v1::StreamWorkRequest>>,
    ) -> Result<Response<Self::StreamWorkStream>, Status> {
        let origin = self.origin(&request)?;
        self.open_stream(origin, request.into_inner()).await.map(Response::new)
    }
}

impl Services {
    fn read_poll(&self, wire: v1::PollActivityRequest) -> Result<Poll, StoreError> {
        let limits = self.limits();
        let poll = poll_from_wire(wire, limits.default_lease)?;
        limits.check_lease_length("lease_length", poll.claim.lease_length)?;
        Ok(self.bounded(poll))
    }

    /// A poll, cut to what the server allows.
    pub(super) fn bounded(&self, mut poll: Poll) -> Poll {
        let limits = self.limits();
        poll.claim.limit = poll.claim.limit.min(limits.max_batch);
        poll.claim.steps_limit = poll.claim.steps_limit.min(limits.max_batch);
        poll.wait = limits.wait(poll.wait);
        poll
    }

    /// Extends the leases on runs within the caller's bounds; each of the others is refused by itself, and so is
    /// each that would have to be looked up while its caller has made as many calls as they may.
    pub(super) async fn heartbeat(
        &self,
        caller: &Caller,
        batch: Vec<Heartbeat>,
    ) -> Result<v1::RecordHeartbeatResponse, StoreError> {
        const METHOD: &str = "RecordHeartbeat";
        let everywhere = |lease: &Lease| caller.may_everywhere(METHOD, lease.namespace.as_str());
        let (mut within, mut asked) = (vec![Within::Bounds; batch.len()], Vec::new());
        for (at, Heartbeat { lease, .. }) in batch.iter().enumerate() {
            if !everywhere(lease) {
                asked.push((at, (lease.namespace.clone(), lease.run_id)));
            }
        }
        let (at, runs): (Vec<usize>, Vec<_>) = asked.into_iter().unzip();
        let (told, not_now) = self.within(caller, METHOD, Errand::Work, &runs).await?;
        for (at, told) in at.into_iter().zip(told) {
            within[at] = told;
        }
        if let Some(refusal) = &not_now {
            self.0.metrics.refused(refusal);
        }
        let mut allowed = batch;
        let mut keep = within.iter().map(|within| *within == Within::Bounds);
        allowed.retain(|_| keep.next().unwrap_or(false));
        let verdicts = if allowed.is_empty() {
            Vec::new()
        } else {
            let namespaces = allowed.iter().map(|heartbeat| &heartbeat.lease.namespace);
            let turn = self.0.load.turn(Errand::Work, caller, namespaces);
            let _turn = self.0.metrics.waiting(Wait::Turn, turn).await;
            self.0.health.admit()?;
            self.store().heartbeat(allowed).await?
        };
        let mut verdicts = verdicts_to_wire(verdicts).verdicts.into_iter();
        let refused = |refusal: Refusal| {
            Some(v1::HeartbeatVerdict { verdict: Some(Verdict::Refused(refusal.into_item())) })
        };
        let answers = within.into_iter().filter_map(|within| match (within, &not_now) {
            (Within::Bounds, _) => verdicts.next(),
            (Within::Unknown, Some(refusal)) => refused(refusal.clone()),
            (Within::Unknown, None) | (Within::Nowhere, _) => refused(permission_denied(METHOD)),
        });
        Ok(v1::RecordHeartbeatResponse { verdicts: answers.collect() })
    }

    pub(super) fn read_heartbeats(
        &self,
        wire: v1::RecordHeartbeatRequest,
    ) -> Result<Vec<Heartbeat>, StoreError> {
        let limits = self.limits();
        check_batch("heartbeats", wire.heartbeats.len())?;
        let batch = heartbeats_from_wire(wire, limits.default_lease)?;
        for (at, heartbeat) in batch.iter().enumerate() {
            limits.check_lease_length(&format!("heartbeats[{at}].lease_length"), heartbeat.lease_length)?;
        }
        Ok(batch)
    }
}
