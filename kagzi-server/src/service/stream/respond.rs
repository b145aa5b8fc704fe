//! What the requests of a worker's stream do: what the calls of the same names do.

use kagzi_core::{
    BeginStep, Claim, CompleteRun, CompleteStep, FailRun, FailStep, ReleaseRun, Sleep, StoreError,
};
use kagzi_proto::v1;
use kagzi_proto::v1::stream_work_request::Request;
use kagzi_proto::v1::stream_work_response::Response;
use kagzi_sdk::wire::error::Refusal;
use kagzi_sdk::wire::{FromWire, IntoWire as _, Poll, take_from_wire};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::super::Services;
use super::super::call::NotDone;
use super::super::permission;
use super::super::poll::{Handover, Wide};
use super::super::subject::Subject;
use super::super::told::{self, Origin};
use super::misplaced;

impl Services {
    /// Does what a request asks, all but taking runs.
    pub(super) async fn respond(
        &self,
        origin: &Origin,
        request: Option<Request>,
    ) -> Result<Response, Refusal> {
        let store = self.store();
        match request {
            Some(Request::Heartbeat(wire)) => {
                let beat = |batch| self.heartbeat(&origin.caller, batch);
                let answer = self.reply(origin, "RecordHeartbeat", self.read_heartbeats(wire), beat).await;
                answer.map(Response::Heartbeat)
            }
            Some(Request::BeginStep(wire)) => {
                let answer =
                    self.write(origin, "BeginStep", wire, |begin: BeginStep| store.begin_step(begin)).await;
                answer.map(|outcome| Response::BeginStep(outcome.into_wire()))
            }
            Some(Request::CompleteStep(wire)) => {
                let complete = |complete: CompleteStep| store.complete_step(complete);
                let answer = self.write(origin, "CompleteStep", wire, complete).await;
                answer.map(|outcome| Response::CompleteStep(outcome.into_wire()))
            }
            Some(Request::FailStep(wire)) => {
                let answer =
                    self.write(origin, "FailStep", wire, |fail: FailStep| store.fail_step(fail)).await;
                answer.map(|outcome| Response::FailStep(outcome.into_wire()))
            }
            Some(Request::ScheduleSleep(wire)) => {
                let answer =
                    self.write(origin, "ScheduleSleep", wire, |sleep: Sleep| store.sleep(sleep)).await;
                answer.map(|outcome| Response::ScheduleSleep(outcome.into_wire()))
            }
            Some(Request::CompleteWorkflow(wire)) => {
                let complete = |complete: CompleteRun| store.complete_run(complete);
                let answer = self.write(origin, "CompleteWorkflow", wire, complete).await;
                answer.map(|outcome| Response::CompleteWorkflow(outcome.into_wire()))
            }
            Some(Request::FailWorkflow(wire)) => {
                let answer =
                    self.write(origin, "FailWorkflow", wire, |fail: FailRun| store.fail_run(fail)).await;
                answer.map(|outcome| Response::FailWorkflow(outcome.into_wire()))
            }
            Some(Request::ReleaseWorkflow(wire)) => {
                let release = |release: ReleaseRun| store.release(release);
                let answer = self.write(origin, "ReleaseWorkflow", wire, release).await;
                answer.map(|outcome| Response::ReleaseWorkflow(outcome.into_wire()))
            }
            Some(Request::Open(_)) => Err(misplaced("the stream is open; open another for another worker")),
            Some(Request::Take(_)) | None => Err(misplaced("a request of a kind that this server knows")),
        }
    }

    async fn write<M, D, O, F>(
        &self,
        origin: &Origin,
        method: &'static str,
        wire: M,
        act: impl FnOnce(D) -> F,
    ) -> Result<O, Refusal>
    where
        D: FromWire<M> + Subject,
        F: Future<Output = Result<O, StoreError>>,
    {
        self.reply(origin, method, D::from_wire(wire), act).await
    }

    /// Claims for a worker that has room, once the claim before has ended.
    pub(super) async fn take_runs(
        &self,
        origin: &Origin,
        take: &v1::TakeRuns,
        opened: &Claim,
        claiming: &Mutex<()>,
        stop: &CancellationToken,
    ) -> Result<Handover, Refusal> {
        let read = take_from_wire(take, opened).map(|poll| self.bounded(poll));
        self.reply(origin, "TakeRuns", read, |poll: Poll| async move {
            let _turn = claiming.lock().await;
            let stop = async {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = self.0.drain.begun() => {}
                }
            };
            let hold = self.0.claims.hold(poll.claim.operation);
            let wide = Wide::of(&poll.claim);
            let turn = || self.turn_to_claim(&origin.caller, wide.as_ref());
            let claimed = self.engine().poll_in_turn(poll.claim, poll.wait, stop, turn).await?;
            let claimed = permission::claimed(&origin.caller, "TakeRuns", claimed);
            told::claimed(&claimed);
            self.remember(&origin.caller, &claimed);
            Ok::<_, NotDone>(Handover::new(claimed, hold, self))
        })
        .await
    }
}
