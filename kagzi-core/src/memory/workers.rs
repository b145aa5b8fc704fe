//! What workers ask of a run that they hold: heartbeats, steps, sleep, finish, release. Each loads,
//! asks [`decide`], and writes.

use super::MemoryStore;
use crate::decide;
use crate::error::StoreError;
use crate::lease::GrantedLease;
use crate::op::{
    BeginOutcome, BeginStep, CompleteRun, CompleteRunOutcome, CompleteStep, CompleteStepOutcome, FailRun,
    FailStep, FailureOutcome, Heartbeat, ReleaseOutcome, ReleaseRun, Sleep, SleepOutcome, Then,
};

impl MemoryStore {
    pub(super) fn extend_leases(
        &self,
        batch: &[Heartbeat],
    ) -> Result<Vec<Result<GrantedLease, StoreError>>, StoreError> {
        decide::check_heartbeats(batch)?;
        let (mut state, now) = self.open()?;
        let mut answers = Vec::with_capacity(batch.len());
        for beat in batch {
            let verdict = state
                .run(&beat.lease.namespace, beat.lease.run_id)
                .and_then(|run| decide::heartbeat(run, beat, now));
            answers.push(verdict.map(|(run, granted)| {
                state.save_run(run, &self.shared.hub);
                granted
            }));
        }
        Ok(answers)
    }

    pub(super) fn begin(&self, request: &BeginStep) -> Result<BeginOutcome, StoreError> {
        request.validate()?;
        let run_id = request.lease.run_id;
        let (mut state, now) = self.open()?;
        let run = state.run(&request.lease.namespace, run_id)?;
        let latest = state.latest_attempt(run_id, &request.step.step_id);
        let decision = decide::begin_step(run, latest, request, now)?;
        state.apply(run_id, decision.effects, now, &self.shared.hub);
        Ok(decision.answer)
    }

    pub(super) fn complete(&self, request: &CompleteStep) -> Result<CompleteStepOutcome, StoreError> {
        request.validate(&self.shared.rules)?;
        let run_id = request.lease.run_id;
        let (mut state, now) = self.open()?;
        let run = state.run(&request.lease.namespace, run_id)?;
        let attempt = state.attempt(run_id, &request.step_id, request.attempt);
        let next = match &request.then {
            Then::Begin(next) => Some(&next.step_id),
            Then::Nothing | Then::CompleteRun(_) => None,
        };
        let latest = next.and_then(|step_id| state.latest_attempt(run_id, step_id));
        if decide::was_completed_by(attempt, request.operation) {
            let begun = next.and_then(|step_id| {
                state
                    .attempts_of_step(run_id, step_id)
                    .find(|attempt| attempt.begin_operation == request.operation)
            });
            return decide::completed_again(run, begun, latest, request);
        }
        let decision = decide::complete_step(run, attempt, latest, request, now)?;
        state.apply(run_id, decision.effects, now, &self.shared.hub);
        Ok(decision.answer)
    }

    pub(super) fn fail(&self, request: &FailStep) -> Result<FailureOutcome, StoreError> {
        let rules = &self.shared.rules;
        request.validate(rules)?;
        let run_id = request.lease.run_id;
        let (mut state, now) = self.open()?;
        let run = state.run(&request.lease.namespace, run_id)?;
        let attempt = state.attempt(run_id, &request.step_id, request.attempt);
        let failures = state.failures(run, &request.step_id);
        let recorded = state.recorded(run_id, request.operation);
        let decision = decide::fail_step(run, attempt, failures, recorded, request, rules, now)?;
        state.apply(run_id, decision.effects, now, &self.shared.hub);
        Ok(decision.answer)
    }

    pub(super) fn put_to_sleep(&self, request: &Sleep) -> Result<SleepOutcome, StoreError> {
        request.validate()?;
        let run_id = request.lease.run_id;
        let (mut state, now) = self.open()?;
        let run = state.run(&request.lease.namespace, run_id)?;
        let latest = state.latest_attempt(run_id, &request.step_id);
        let recorded = state.recorded(run_id, request.operation);
        let decision = decide::sleep(run, latest, recorded, request, now)?;
        state.apply(run_id, decision.effects, now, &self.shared.hub);
        Ok(decision.answer)
    }

    pub(super) fn finish(&self, request: &CompleteRun) -> Result<CompleteRunOutcome, StoreError> {
        request.validate(&self.shared.rules)?;
        let run_id = request.lease.run_id;
        let (mut state, now) = self.open()?;
        let run = state.run(&request.lease.namespace, run_id)?;
        let decision = decide::complete_run(run, request, now)?;
        state.apply(run_id, decision.effects, now, &self.shared.hub);
        Ok(decision.answer)
    }

    pub(super) fn give_up(&self, request: &FailRun) -> Result<FailureOutcome, StoreError> {
        let rules = &self.shared.rules;
        request.validate(rules)?;
        let run_id = request.lease.run_id;
        let (mut state, now) = self.open()?;
        let run = state.run(&request.lease.namespace, run_id)?;
        let recorded = state.recorded(run_id, request.operation);
        let decision = decide::fail_run(run, recorded, request, rules, now)?;
        state.apply(run_id, decision.effects, now, &self.shared.hub);
        Ok(decision.answer)
    }

    pub(super) fn give_back(&self, request: &ReleaseRun) -> Result<ReleaseOutcome, StoreError> {
        let run_id = request.lease.run_id;
        let (mut state, now) = self.open()?;
        let run = state.run(&request.lease.namespace, run_id)?;
        let recorded = state.recorded(run_id, request.operation);
        let decision = decide::release(run, recorded, request, now)?;
        state.apply(run_id, decision.effects, now, &self.shared.hub);
        Ok(decision.answer)
    }
}
