//! What workers ask about their lease: extend it, or end it with the run or without.

use kagzi_core::decide;
use kagzi_core::{
    CompleteRun, CompleteRunOutcome, FailRun, FailureOutcome, GrantedLease, Heartbeat, ReleaseOutcome,
    ReleaseRun, StoreError,
};

use crate::error::{Error, Result};
use crate::save::Writing;

/// Extends leases, each with a verdict of its own.
pub(crate) fn heartbeat(
    writing: &mut Writing<'_>,
    batch: &[Heartbeat],
) -> Result<Vec<std::result::Result<GrantedLease, StoreError>>> {
    decide::check_heartbeats(batch)?;
    let now = writing.now();
    let mut verdicts = Vec::with_capacity(batch.len());
    for beat in batch {
        let verdict = match writing.run(&beat.lease.namespace, beat.lease.run_id) {
            Ok(run) => decide::heartbeat(&run, beat, now),
            Err(Error::Refused(error)) => Err(error),
            Err(broken) => return Err(broken),
        };
        verdicts.push(match verdict {
            Ok((run, granted)) => {
                writing.save_run(&run)?;
                Ok(granted)
            }
            Err(error) => Err(error),
        });
    }
    Ok(verdicts)
}

pub(crate) fn complete_run(writing: &mut Writing<'_>, request: &CompleteRun) -> Result<CompleteRunOutcome> {
    request.validate(&writing.shared.rules)?;
    let (lease, now) = (&request.lease, writing.now());
    let run = writing.run(&lease.namespace, lease.run_id)?;
    let decision = decide::complete_run(&run, request, now)?;
    writing.apply(run.run_id, &decision.effects, now)?;
    Ok(decision.answer)
}

pub(crate) fn fail_run(writing: &mut Writing<'_>, request: &FailRun) -> Result<FailureOutcome> {
    let rules = &writing.shared.rules;
    request.validate(rules)?;
    let (lease, now) = (&request.lease, writing.now());
    let run = writing.run(&lease.namespace, lease.run_id)?;
    let recorded = writing.recorded(run.run_id, request.operation)?;
    let decision = decide::fail_run(&run, recorded, request, rules, now)?;
    writing.apply(run.run_id, &decision.effects, now)?;
    Ok(decision.answer)
}

pub(crate) fn release(writing: &mut Writing<'_>, request: &ReleaseRun) -> Result<ReleaseOutcome> {
    let (lease, now) = (&request.lease, writing.now());
    let run = writing.run(&lease.namespace, lease.run_id)?;
    let recorded = writing.recorded(run.run_id, request.operation)?;
    let decision = decide::release(&run, recorded, request, now)?;
    writing.apply(run.run_id, &decision.effects, now)?;
    Ok(decision.answer)
}
