//! What clients ask: start, cancel, requeue, delete.

use std::collections::HashMap;

use super::MemoryStore;
use super::state::State;
use crate::clock::Timestamp;
use crate::decide;
use crate::error::StoreError;
use crate::id::RunId;
use crate::name::{IdempotencyKey, Namespace};
use crate::op::{
    CancelOutcome, CancelRun, DeleteFinished, RequeueOutcome, RequeueRun, StartOutcome, StartRun, Started,
};
use crate::run::{Run, RunRecord};

impl MemoryStore {
    pub(super) fn start_runs(&self, batch: &[StartRun]) -> Result<Vec<Started>, StoreError> {
        decide::check_start_batch(batch, &self.shared.rules)?;
        let (mut state, now) = self.open()?;
        // All or nothing (invariant 15): first every verdict, then every write. Later starts of the
        // batch see the earlier ones in `fresh`.
        let mut fresh: Vec<(&StartRun, Run)> = Vec::new();
        let mut by_id: HashMap<RunId, usize> = HashMap::new();
        let mut by_key: HashMap<(&Namespace, &IdempotencyKey), usize> = HashMap::new();
        let mut answers = Vec::with_capacity(batch.len());
        for start in batch {
            let run_id = start.run_id();
            let key = start.idempotency_key.as_ref().map(|key| (&start.namespace, key));
            let stored = state.runs.get(&run_id).or_else(|| key.and_then(|(n, k)| state.run_by_key(n, k)));
            let earlier = by_id.get(&run_id).or_else(|| key.and_then(|key| by_key.get(&key)));
            let answer = if let Some(run) = stored {
                decide::existing_run(start, run, &state.input(run.run_id))?
            } else if let Some((earlier, run)) = earlier.and_then(|at| fresh.get(*at)) {
                decide::existing_run(start, run, &earlier.input)?
            } else {
                by_id.insert(run_id, fresh.len());
                by_key.extend(key.map(|key| (key, fresh.len())));
                fresh.push((start, decide::new_run(start, now)));
                Started { run_id, outcome: StartOutcome::Created }
            };
            answers.push(answer);
        }
        for (start, run) in fresh {
            state.insert_run(run, start.input.clone(), &self.shared.hub);
        }
        Ok(answers)
    }

    pub(super) fn record(&self, namespace: &Namespace, run_id: RunId) -> Result<RunRecord, StoreError> {
        let (state, _) = self.open()?;
        record_of(&state, namespace, run_id)
    }

    pub(super) fn records(
        &self,
        wanted: &[(Namespace, RunId)],
    ) -> Result<Vec<Result<RunRecord, StoreError>>, StoreError> {
        let (state, _) = self.open()?;
        Ok(wanted.iter().map(|(namespace, run_id)| record_of(&state, namespace, *run_id)).collect())
    }

    pub(super) fn cancel_run(&self, request: &CancelRun) -> Result<CancelOutcome, StoreError> {
        request.validate(&self.shared.rules)?;
        let (mut state, now) = self.open()?;
        let run = state.run(&request.namespace, request.run_id)?;
        let recorded = state.recorded(request.run_id, request.operation);
        let decision = decide::cancel(run, recorded, request, now)?;
        state.apply(request.run_id, decision.effects, now, &self.shared.hub);
        Ok(decision.answer)
    }

    pub(super) fn requeue_run(&self, request: &RequeueRun) -> Result<RequeueOutcome, StoreError> {
        let (mut state, now) = self.open()?;
        let run = state.run(&request.namespace, request.run_id)?;
        let recorded = state.recorded(request.run_id, request.operation);
        let decision = decide::requeue(run, recorded, request, now)?;
        state.apply(request.run_id, decision.effects, now, &self.shared.hub);
        Ok(decision.answer)
    }

    pub(super) fn delete(&self, request: &DeleteFinished) -> Result<u64, StoreError> {
        request.validate()?;
        let (mut state, _) = self.open()?;
        let mut found: Vec<(Option<Timestamp>, RunId)> = state
            .runs
            .values()
            .filter(|run| request.matches(&run.namespace, run.state, run.finished_at))
            .map(|run| (run.finished_at, run.run_id))
            .collect();
        found.sort_unstable();
        found.truncate(request.limit as usize);
        for (_, run_id) in &found {
            state.remove_run(*run_id);
        }
        Ok(found.len() as u64)
    }
}

fn record_of(state: &State, namespace: &Namespace, run_id: RunId) -> Result<RunRecord, StoreError> {
    let run = state.run(namespace, run_id)?.clone();
    Ok(RunRecord { run, input: state.input(run_id), output: state.output(run_id) })
}
