//! What workers ask about the steps of a run that they hold.

use kagzi_core::decide;
use kagzi_core::{
    BeginOutcome, BeginStep, CompleteStep, CompleteStepOutcome, FailStep, FailureOutcome, Sleep,
    SleepOutcome, Then,
};

use crate::error::Result;
use crate::save::Writing;

pub(crate) fn begin(writing: &mut Writing<'_>, request: &BeginStep) -> Result<BeginOutcome> {
    request.validate()?; // bad input is refused before anything is touched
    let (lease, now) = (&request.lease, writing.now());
    let run = writing.run(&lease.namespace, lease.run_id)?;
    let latest = writing.latest_attempt(run.run_id, &request.step.step_id)?;
    let decision = decide::begin_step(&run, latest.as_ref(), request, now)?;
    writing.apply(run.run_id, &decision.effects, now)?;
    Ok(decision.answer) // which the caller hears once the commit is durable (invariant 9)
}

pub(crate) fn complete(writing: &mut Writing<'_>, request: &CompleteStep) -> Result<CompleteStepOutcome> {
    request.validate(&writing.shared.rules)?;
    let (lease, now) = (&request.lease, writing.now());
    let run = writing.run(&lease.namespace, lease.run_id)?;
    let attempt = writing.attempt(run.run_id, &request.step_id, request.attempt)?;
    let next = match &request.then {
        Then::Begin(next) => writing.attempts_of_step(run.run_id, &next.step_id)?,
        Then::Nothing | Then::CompleteRun(_) => Vec::new(),
    };
    if decide::was_completed_by(attempt.as_ref(), request.operation) {
        let begun = next.iter().find(|attempt| attempt.begin_operation == request.operation);
        return Ok(decide::completed_again(&run, begun, next.last(), request)?);
    }
    let decision = decide::complete_step(&run, attempt.as_ref(), next.last(), request, now)?;
    writing.apply(run.run_id, &decision.effects, now)?;
    Ok(decision.answer)
}

pub(crate) fn fail(writing: &mut Writing<'_>, request: &FailStep) -> Result<FailureOutcome> {
    let rules = &writing.shared.rules;
    request.validate(rules)?;
    let (lease, now) = (&request.lease, writing.now());
    let run = writing.run(&lease.namespace, lease.run_id)?;
    let attempt = writing.attempt(run.run_id, &request.step_id, request.attempt)?;
    let failures = writing.failures(&run, &request.step_id)?;
    let recorded = writing.recorded(run.run_id, request.operation)?;
    let decision = decide::fail_step(&run, attempt.as_ref(), failures, recorded, request, rules, now)?;
    writing.apply(run.run_id, &decision.effects, now)?;
    Ok(decision.answer)
}

pub(crate) fn sleep(writing: &mut Writing<'_>, request: &Sleep) -> Result<SleepOutcome> {
    request.validate()?;
    let (lease, now) = (&request.lease, writing.now());
    let run = writing.run(&lease.namespace, lease.run_id)?;
    let latest = writing.latest_attempt(run.run_id, &request.step_id)?;
    let recorded = writing.recorded(run.run_id, request.operation)?;
    let decision = decide::sleep(&run, latest.as_ref(), recorded, request, now)?;
    writing.apply(run.run_id, &decision.effects, now)?;
    Ok(decision.answer)
}
