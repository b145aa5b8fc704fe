//! Beginning, completing and failing steps, and sleeping.

use kagzi_core::{
    BeginOutcome, BeginStep, CompleteStep, CompleteStepOutcome, DeadLetterReason, FailStep, FailureOutcome,
    NextStep, Payload, Sleep, SleepOutcome, SleepUntil, StepId, StoreError, Then,
};
use kagzi_proto::v1;
use kagzi_proto::v1::{begin_outcome, complete_step_request, complete_step_response, failure_outcome};
use kagzi_proto::v1::{schedule_sleep_request, schedule_sleep_response};

use super::field::{WireEnum, invalid, operation_id, required, within};
use super::lease::lease;
use super::retry::retry_policy;
use super::time::{duration, duration_to_wire, moment, moment_to_wire, optional_duration, required_moment};
use super::value::{payload, required_failure};
use super::{FromWire, IntoWire};

impl IntoWire<v1::NextStep> for NextStep {
    fn into_wire(self) -> v1::NextStep {
        v1::NextStep {
            step_id: self.step_id.into(),
            position: self.position,
            retry_policy: self.retry.map(IntoWire::into_wire),
            timeout: self.timeout.map(duration_to_wire),
        }
    }
}

/// Its ranges are checked here, where the field that holds the step is known.
impl FromWire<v1::NextStep> for NextStep {
    fn from_wire(wire: v1::NextStep) -> Result<Self, StoreError> {
        let step = Self {
            step_id: StepId::new(wire.step_id)?,
            position: wire.position,
            retry: retry_policy(wire.retry_policy)?,
            timeout: optional_duration("timeout", wire.timeout)?,
        };
        step.validate()?;
        Ok(step)
    }
}

impl IntoWire<v1::BeginStepRequest> for BeginStep {
    fn into_wire(self) -> v1::BeginStepRequest {
        v1::BeginStepRequest {
            lease: Some(self.lease.into_wire()),
            step: Some(self.step.into_wire()),
            operation_id: self.operation.to_string(),
        }
    }
}

impl FromWire<v1::BeginStepRequest> for BeginStep {
    fn from_wire(wire: v1::BeginStepRequest) -> Result<Self, StoreError> {
        Ok(Self {
            lease: lease(wire.lease)?,
            step: within("step", NextStep::from_wire(required("step", wire.step)?))?,
            operation: operation_id(&wire.operation_id)?,
        })
    }
}

impl IntoWire<v1::BeginOutcome> for BeginOutcome {
    fn into_wire(self) -> v1::BeginOutcome {
        use begin_outcome::{Execute, InProgress, Memoized, Outcome};
        let outcome = match self {
            Self::Execute { attempt } => Outcome::Execute(Execute { attempt }),
            Self::Memoized { attempt, output } => {
                Outcome::Memoized(Memoized { attempt, output: Some(output.into_wire()) })
            }
            Self::InProgress { attempt } => Outcome::InProgress(InProgress { attempt }),
        };
        v1::BeginOutcome { outcome: Some(outcome) }
    }
}

impl FromWire<v1::BeginOutcome> for BeginOutcome {
    fn from_wire(wire: v1::BeginOutcome) -> Result<Self, StoreError> {
        use begin_outcome::Outcome;
        Ok(match required("outcome", wire.outcome)? {
            Outcome::Execute(execute) => Self::Execute { attempt: execute.attempt },
            Outcome::Memoized(memoized) => {
                let output = within("memoized", required("output", memoized.output))?;
                let output = within("memoized.output", Payload::from_wire(output))?;
                Self::Memoized { attempt: memoized.attempt, output }
            }
            Outcome::InProgress(running) => Self::InProgress { attempt: running.attempt },
        })
    }
}

impl IntoWire<v1::BeginStepResponse> for BeginOutcome {
    fn into_wire(self) -> v1::BeginStepResponse {
        v1::BeginStepResponse { outcome: Some(self.into_wire()) }
    }
}

impl FromWire<v1::BeginStepResponse> for BeginOutcome {
    fn from_wire(wire: v1::BeginStepResponse) -> Result<Self, StoreError> {
        within("outcome", Self::from_wire(required("outcome", wire.outcome)?))
    }
}

impl IntoWire<v1::CompleteStepRequest> for CompleteStep {
    fn into_wire(self) -> v1::CompleteStepRequest {
        use complete_step_request::Then as Wire;
        v1::CompleteStepRequest {
            lease: Some(self.lease.into_wire()),
            step_id: self.step_id.into(),
            attempt: self.attempt,
            output: Some(self.output.into_wire()),
            then: match self.then {
                Then::Nothing => None,
                Then::Begin(next) => Some(Wire::Begin(next.into_wire())),
                Then::CompleteRun(output) => Some(Wire::RunOutput(output.into_wire())),
            },
            operation_id: self.operation.to_string(),
        }
    }
}

impl FromWire<v1::CompleteStepRequest> for CompleteStep {
    fn from_wire(wire: v1::CompleteStepRequest) -> Result<Self, StoreError> {
        use complete_step_request::Then as Wire;
        let step_id = StepId::new(wire.step_id)?;
        let then = match wire.then {
            None => Then::Nothing,
            Some(Wire::Begin(next)) => {
                let next = within("begin", NextStep::from_wire(next))?;
                if next.step_id == step_id {
                    let expected = "another step than the one that completes";
                    return Err(invalid("begin.step_id", expected, "the same step"));
                }
                Then::Begin(next)
            }
            Some(Wire::RunOutput(output)) => {
                Then::CompleteRun(within("run_output", Payload::from_wire(output))?)
            }
        };
        Ok(Self {
            lease: lease(wire.lease)?,
            step_id,
            attempt: wire.attempt,
            output: payload("output", wire.output)?,
            then,
            operation: operation_id(&wire.operation_id)?,
        })
    }
}

impl IntoWire<v1::CompleteStepResponse> for CompleteStepOutcome {
    fn into_wire(self) -> v1::CompleteStepResponse {
        use complete_step_response::{RunCompleted, Then as Wire};
        let then = match self {
            Self::Recorded => None,
            Self::RecordedAndNext(outcome) => Some(Wire::Begun(outcome.into_wire())),
            Self::RecordedAndRunCompleted => Some(Wire::RunCompleted(RunCompleted {})),
        };
        v1::CompleteStepResponse { then }
    }
}

impl FromWire<v1::CompleteStepResponse> for CompleteStepOutcome {
    fn from_wire(wire: v1::CompleteStepResponse) -> Result<Self, StoreError> {
        use complete_step_response::Then as Wire;
        Ok(match wire.then {
            None => Self::Recorded,
            Some(Wire::Begun(outcome)) => {
                Self::RecordedAndNext(within("begun", BeginOutcome::from_wire(outcome))?)
            }
            Some(Wire::RunCompleted(_)) => Self::RecordedAndRunCompleted,
        })
    }
}

impl IntoWire<v1::FailStepRequest> for FailStep {
    fn into_wire(self) -> v1::FailStepRequest {
        v1::FailStepRequest {
            lease: Some(self.lease.into_wire()),
            step_id: self.step_id.into(),
            attempt: self.attempt,
            failure: Some(self.failure.into_wire()),
            operation_id: self.operation.to_string(),
        }
    }
}

impl FromWire<v1::FailStepRequest> for FailStep {
    fn from_wire(wire: v1::FailStepRequest) -> Result<Self, StoreError> {
        Ok(Self {
            lease: lease(wire.lease)?,
            step_id: StepId::new(wire.step_id)?,
            attempt: wire.attempt,
            failure: required_failure(wire.failure)?,
            operation: operation_id(&wire.operation_id)?,
        })
    }
}

impl IntoWire<v1::FailureOutcome> for FailureOutcome {
    fn into_wire(self) -> v1::FailureOutcome {
        use failure_outcome::Outcome;
        let outcome = match self {
            Self::RetryAt(at) => Outcome::RetryAt(moment_to_wire(at)),
            Self::DeadLetter(reason) => Outcome::DeadLetter(reason.number()),
        };
        v1::FailureOutcome { outcome: Some(outcome) }
    }
}

impl FromWire<v1::FailureOutcome> for FailureOutcome {
    fn from_wire(wire: v1::FailureOutcome) -> Result<Self, StoreError> {
        use failure_outcome::Outcome;
        match required("outcome", wire.outcome)? {
            Outcome::RetryAt(at) => moment("retry_at", at).map(Self::RetryAt),
            Outcome::DeadLetter(reason) => {
                DeadLetterReason::from_number("dead_letter", reason).map(Self::DeadLetter)
            }
        }
    }
}

impl IntoWire<v1::FailStepResponse> for FailureOutcome {
    fn into_wire(self) -> v1::FailStepResponse {
        v1::FailStepResponse { outcome: Some(self.into_wire()) }
    }
}

impl FromWire<v1::FailStepResponse> for FailureOutcome {
    fn from_wire(wire: v1::FailStepResponse) -> Result<Self, StoreError> {
        within("outcome", Self::from_wire(required("outcome", wire.outcome)?))
    }
}

impl IntoWire<v1::ScheduleSleepRequest> for Sleep {
    fn into_wire(self) -> v1::ScheduleSleepRequest {
        use schedule_sleep_request::Until;
        let until = match self.until {
            SleepUntil::After(length) => Until::After(duration_to_wire(length)),
            SleepUntil::At(at) => Until::At(moment_to_wire(at)),
        };
        v1::ScheduleSleepRequest {
            lease: Some(self.lease.into_wire()),
            step_id: self.step_id.into(),
            position: self.position,
            until: Some(until),
            operation_id: self.operation.to_string(),
        }
    }
}

impl FromWire<v1::ScheduleSleepRequest> for Sleep {
    fn from_wire(wire: v1::ScheduleSleepRequest) -> Result<Self, StoreError> {
        use schedule_sleep_request::Until;
        let until = match required("until", wire.until)? {
            Until::After(length) => SleepUntil::After(duration("after", length)?),
            Until::At(at) => SleepUntil::At(moment("at", at)?),
        };
        Ok(Self {
            lease: lease(wire.lease)?,
            step_id: StepId::new(wire.step_id)?,
            position: wire.position,
            until,
            operation: operation_id(&wire.operation_id)?,
        })
    }
}

impl IntoWire<v1::ScheduleSleepResponse> for SleepOutcome {
    fn into_wire(self) -> v1::ScheduleSleepResponse {
        use schedule_sleep_response::{AlreadySlept, Outcome, Sleeping};
        let outcome = match self {
            Self::Sleeping { due_at } => Outcome::Sleeping(Sleeping { due_at: Some(moment_to_wire(due_at)) }),
            Self::AlreadySlept => Outcome::AlreadySlept(AlreadySlept {}),
        };
        v1::ScheduleSleepResponse { outcome: Some(outcome) }
    }
}

impl FromWire<v1::ScheduleSleepResponse> for SleepOutcome {
    fn from_wire(wire: v1::ScheduleSleepResponse) -> Result<Self, StoreError> {
        use schedule_sleep_response::Outcome;
        match required("outcome", wire.outcome)? {
            Outcome::Sleeping(sleeping) => {
                Ok(Self::Sleeping { due_at: required_moment("sleeping.due_at", sleeping.due_at)? })
            }
            Outcome::AlreadySlept(_) => Ok(Self::AlreadySlept),
        }
    }
}
