//! Puts a client's codec, if it has one, on what comes and goes.

use std::sync::Arc;

use kagzi_core::{Attempt, Failure, Namespace, Payload, Run, RunId, RunRecord, StartRun, StepId, StepKind};

use super::{PayloadCodec, PayloadPlace};
use crate::codec::CodecError;

/// The codec of a client. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub(crate) struct Payloads(Option<Arc<dyn PayloadCodec>>);

impl Payloads {
    pub(crate) fn through(codec: Arc<dyn PayloadCodec>) -> Self {
        Self(Some(codec))
    }

    /// Whether payloads go as they are.
    pub(crate) const fn are_plain(&self) -> bool {
        self.0.is_none()
    }

    fn encode(
        &self,
        payload: Payload,
        place: &PayloadPlace<'_>,
        what: impl FnOnce() -> String,
    ) -> Result<Payload, CodecError> {
        let Some(codec) = &self.0 else { return Ok(payload) };
        codec.encode(payload, place).map_err(|error| CodecError::Payload { what: what(), error })
    }

    fn decode(
        &self,
        payload: Payload,
        place: &PayloadPlace<'_>,
        what: impl FnOnce() -> String,
    ) -> Result<Payload, CodecError> {
        let Some(codec) = &self.0 else { return Ok(payload) };
        codec.decode(payload, place).map_err(|error| CodecError::Payload { what: what(), error })
    }

    /// The input of a start on its way out.
    pub(crate) fn encode_input(&self, start: &StartRun) -> Result<Payload, CodecError> {
        let place = PayloadPlace::Input {
            namespace: &start.namespace,
            workflow_type: &start.workflow_type,
            idempotency_key: start.idempotency_key.as_ref(),
        };
        self.encode(start.input.clone(), &place, || "the input".to_owned())
    }

    /// A run as its client asked for it. Namespace and id are the client's own: an answer about another
    /// run must not pass for one about this.
    pub(crate) fn decode_record(
        &self,
        namespace: &Namespace,
        run_id: RunId,
        record: RunRecord,
    ) -> Result<RunRecord, CodecError> {
        let one = RunPayloads { payloads: self.clone(), namespace: namespace.clone(), run_id };
        let RunRecord { mut run, input, output } = record;
        let input = one.decode_input(&run, input)?;
        let output = output.map(|output| one.decode_result(output)).transpose()?;
        run.failure = run.failure.map(|failure| one.decode_failure(failure)).transpose()?;
        Ok(RunRecord { run, input, output })
    }

    /// An attempt of a run, as its client asked for it.
    pub(crate) fn decode_attempt(
        &self,
        namespace: &Namespace,
        run_id: RunId,
        mut attempt: Attempt,
    ) -> Result<Attempt, CodecError> {
        let one = RunPayloads { payloads: self.clone(), namespace: namespace.clone(), run_id };
        // The output of a sleep is the engine's, and empty.
        if attempt.kind == StepKind::Task
            && let Some(output) = attempt.output.take()
        {
            attempt.output = Some(one.decode_output(output, &attempt.step_id)?);
        }
        attempt.failure = attempt.failure.map(|failure| one.decode_failure(failure)).transpose()?;
        Ok(attempt)
    }
}

/// The codec as it applies to one run. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct RunPayloads {
    pub(crate) payloads: Payloads,
    pub(crate) namespace: Namespace,
    pub(crate) run_id: RunId,
}

impl RunPayloads {
    fn step_output<'a>(&'a self, step_id: &'a StepId) -> PayloadPlace<'a> {
        PayloadPlace::StepOutput { namespace: &self.namespace, run_id: self.run_id, step_id }
    }

    fn run_output(&self) -> PayloadPlace<'_> {
        PayloadPlace::RunOutput { namespace: &self.namespace, run_id: self.run_id }
    }

    fn failure_details(&self) -> PayloadPlace<'_> {
        PayloadPlace::FailureDetails { namespace: &self.namespace, run_id: self.run_id }
    }

    pub(crate) fn decode_input(&self, run: &Run, input: Payload) -> Result<Payload, CodecError> {
        let place = PayloadPlace::Input {
            namespace: &self.namespace,
            workflow_type: &run.workflow_type,
            idempotency_key: run.idempotency_key.as_ref(),
        };
        self.payloads.decode(input, &place, || format!("the input of run {}", self.run_id))
    }

    pub(crate) fn encode_output(&self, output: Payload, step_id: &StepId) -> Result<Payload, CodecError> {
        self.payloads.encode(output, &self.step_output(step_id), || self.name_of(step_id))
    }

    pub(crate) fn decode_output(&self, output: Payload, step_id: &StepId) -> Result<Payload, CodecError> {
        self.payloads.decode(output, &self.step_output(step_id), || self.name_of(step_id))
    }

    fn name_of(&self, step_id: &StepId) -> String {
        format!("the output of step {step_id:?} of run {}", self.run_id)
    }

    pub(crate) fn encode_result(&self, output: Payload) -> Result<Payload, CodecError> {
        self.payloads.encode(output, &self.run_output(), || format!("the output of run {}", self.run_id))
    }

    pub(crate) fn decode_result(&self, output: Payload) -> Result<Payload, CodecError> {
        self.payloads.decode(output, &self.run_output(), || format!("the output of run {}", self.run_id))
    }

    /// A failure on its way out. Details that cannot be encoded are left out: the failure itself must
    /// be recorded, and they must not go as they are.
    pub(crate) fn encode_failure(&self, mut failure: Failure) -> Failure {
        let what = || format!("the details of a failure of run {}", self.run_id);
        if let Some(details) = failure.details.take() {
            match self.payloads.encode(details, &self.failure_details(), what) {
                Ok(details) => failure.details = Some(details),
                Err(error) => tracing::warn!(%error, "a failure is recorded without its details"),
            }
        }
        failure
    }

    fn decode_failure(&self, mut failure: Failure) -> Result<Failure, CodecError> {
        let what = || format!("the details of a failure of run {}", self.run_id);
        let details = failure.details.take();
        failure.details = details
            .map(|details| self.payloads.decode(details, &self.failure_details(), what))
            .transpose()?;
        Ok(failure)
    }
}
