//! One run as the rules see it: its rows, and what each operation does to them.
//!
//! The rules are [`kagzi_core::decide`], the ones that every backend asks; here stands only what a
//! backend is: which rows an operation is about, and where its effects go.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use kagzi_core::decide::{self, AttemptWrite, Decision, Effects, OpenAttempts, Overdue, Progress};
use kagzi_core::{
    Attempt, AttemptScope, AttemptState, Claim, ClaimedRun, CompleteStep, CompleteStepOutcome, GrantedLease,
    Heartbeat, Lease, ListAttempts, Namespace, OperationId, Page, Payload, RecordedAnswer, Rules, Run, RunId,
    RunRecord, RunState, StartRun, StepId, StoreError, Then, Timestamp,
};

use crate::record::{Call, Reply};

/// A run with everything that is recorded about it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rows {
    pub(crate) run: Run,
    input: Payload,
    output: Option<Payload>,
    attempts: BTreeMap<(StepId, u32), Attempt>,
    operations: BTreeMap<OperationId, RecordedAnswer>,
}

impl Rows {
    /// The rows that a start makes.
    pub(crate) fn started(start: &StartRun, now: Timestamp) -> Self {
        Self {
            run: decide::new_run(start, now),
            input: start.input.clone(),
            output: None,
            attempts: BTreeMap::new(),
            operations: BTreeMap::new(),
        }
    }

    /// Every attempt, by step and number.
    pub(crate) fn attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.values()
    }

    pub(crate) fn input(&self) -> &Payload {
        &self.input
    }

    /// A number by which different rows mostly differ.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let Run { state, due_at, fencing_token, lease_expires_at, lost_leases, updated_at, .. } = &self.run;
        (state, due_at, fencing_token, lease_expires_at, lost_leases, updated_at).hash(&mut hasher);
        self.operations.len().hash(&mut hasher);
        for (key, attempt) in &self.attempts {
            (key, attempt.state, attempt.updated_at).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// In a few words, for people.
    pub(crate) fn describe(&self) -> String {
        let run = &self.run;
        let holder = match (&run.worker_id, run.lease_expires_at) {
            (Some(worker), Some(expires_at)) => format!(" held by {worker} until {expires_at}"),
            _ => format!(" due {}", run.due_at),
        };
        let attempts: Vec<String> = self
            .attempts
            .values()
            .map(|a| {
                format!("{}#{} {} under token {}", a.step_id, a.attempt, a.state.as_str(), a.fencing_token)
            })
            .collect();
        format!(
            "{} {} token {}{holder}, {} lost leases, attempts: [{}]",
            run.run_id,
            run.state,
            run.fencing_token,
            run.lost_leases,
            attempts.join(", ")
        )
    }

    /// These rows after the effects of a decision.
    fn with(&self, effects: Effects, now: Timestamp) -> Self {
        let mut rows = self.clone();
        for write in effects.attempts {
            let (AttemptWrite::Insert(attempt) | AttemptWrite::Update(attempt)) = write;
            rows.attempts.insert((attempt.step_id.clone(), attempt.attempt), attempt);
        }
        if effects.open_attempts == OpenAttempts::Abandon {
            for attempt in rows.attempts.values_mut().filter(|a| a.state == AttemptState::Running) {
                attempt.state = AttemptState::Abandoned;
                attempt.updated_at = now;
                attempt.finished_at = Some(now);
            }
        }
        rows.output = effects.output.or(rows.output);
        rows.operations.extend(effects.record);
        rows.run = effects.run.unwrap_or(rows.run);
        rows
    }

    fn attempt(&self, step_id: &StepId, number: u32) -> Option<&Attempt> {
        self.attempts.get(&(step_id.clone(), number))
    }

    fn of_step(&self, step_id: &StepId) -> impl DoubleEndedIterator<Item = &Attempt> {
        self.attempts.range((step_id.clone(), 0)..=(step_id.clone(), u32::MAX)).map(|(_, attempt)| attempt)
    }

    fn latest(&self, step_id: &StepId) -> Option<&Attempt> {
        self.of_step(step_id).next_back()
    }

    fn failures(&self, step_id: &StepId) -> u32 {
        let counted = self
            .of_step(step_id)
            .filter(|a| a.state == AttemptState::Failed && a.fencing_token > self.run.budget_token)
            .count();
        u32::try_from(counted).unwrap_or(u32::MAX)
    }

    fn progress(&self) -> Progress {
        let made = self
            .attempts
            .values()
            .any(|a| a.state == AttemptState::Completed && a.fencing_token == self.run.fencing_token);
        if made { Progress::Made } else { Progress::None }
    }

    fn listed(&self, request: &ListAttempts) -> Page<Attempt> {
        let mut items: Vec<Attempt> = match request.scope {
            AttemptScope::All => self.attempts.values().cloned().collect(),
            AttemptScope::Latest => self.latest_of_each().cloned().collect(),
        };
        items.sort_by_key(Attempt::sort_key);
        Page { items, next: None }
    }

    /// The latest attempt of each step.
    pub(crate) fn latest_of_each(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.values().filter(|a| self.latest(&a.step_id).is_some_and(|l| l.attempt == a.attempt))
    }

    /// What time did to the run: its repair, if it needs one.
    pub(crate) fn repaired(&self, rules: &Rules, now: Timestamp) -> Option<Self> {
        let Overdue { effects, .. } = decide::overdue(&self.run, self.progress(), rules, now)?;
        Some(self.with(effects, now))
    }

    /// What time did to its attempts: one of them failed, whichever a reaper comes upon first.
    pub(crate) fn timed_out(&self, rules: &Rules, now: Timestamp) -> Vec<Self> {
        self.attempts
            .values()
            .filter_map(|a| decide::step_overdue(&self.run, a, self.failures(&a.step_id), rules, now))
            .map(|overdue| self.with(overdue.effects, now))
            .collect()
    }

    /// The run in the hands of `claim`, if it may have it.
    pub(crate) fn claimed(
        &self,
        claim: &Claim,
        rules: &Rules,
        now: Timestamp,
    ) -> Option<(Self, GrantedLease)> {
        let run = &self.run;
        let by_this_claim =
            run.claim_operation == Some(claim.operation) && run.worker_id.as_ref() == Some(&claim.worker_id);
        if let (true, Some(worker_id), Some(expires_at)) =
            (by_this_claim, run.worker_id.clone(), run.lease_expires_at)
        {
            let lease = Lease {
                namespace: run.namespace.clone(),
                run_id: run.run_id,
                worker_id,
                fencing_token: run.fencing_token,
            };
            return Some((self.clone(), GrantedLease { lease, expires_at }));
        }
        let wanted = self.waits_for(claim)
            && (claim.workflow_types.is_empty() || claim.workflow_types.contains(&run.workflow_type))
            && run.state == RunState::Pending
            && decide::overdue(run, self.progress(), rules, now).is_none();
        wanted.then(|| {
            let (run, lease) = decide::claimed(run, claim, now);
            (Self { run, ..self.clone() }, lease)
        })
    }

    /// Whether the run is in one of the queues that `claim` looks into.
    pub(crate) fn waits_for(&self, claim: &Claim) -> bool {
        self.run.namespace == claim.namespace && claim.queues.contains(&self.run.queue)
    }

    /// Whether `claimed` hands over this run as it is now. Its steps may be younger: they may be read
    /// after the claim was made. Where it says that there are more, it need not tell of those behind the last one told.
    pub(crate) fn handed_over_by(&self, claimed: &ClaimedRun) -> bool {
        claimed.run == self.run
            && claimed.input == self.input
            && self.latest_of_each().all(|mine| {
                match claimed.steps.iter().find(|theirs| theirs.step_id == mine.step_id) {
                    None => {
                        claimed.more_steps.is_some()
                            && claimed.steps.last().is_none_or(|last| last.sort_key() < mine.sort_key())
                    }
                    Some(theirs) if mine.state == AttemptState::Completed => theirs == mine,
                    Some(theirs) => theirs.attempt >= mine.attempt,
                }
            })
    }

    /// What a call about one run answers, and the rows after it.
    pub(crate) fn ask(
        &self,
        call: &Call,
        rules: &Rules,
        now: Timestamp,
    ) -> Result<(Reply, Self), StoreError> {
        let (run, recorded) = (&self.run, |operation| self.operations.get(&operation).copied());
        if let Some((namespace, run_id)) = about(call)
            && (run.run_id != run_id || run.namespace != *namespace)
        {
            return Err(StoreError::RunNotFound { run_id });
        }
        let (reply, effects) = match call {
            Call::GetRun(..) => {
                let output = self.output.clone();
                let record = RunRecord { run: run.clone(), input: self.input.clone(), output };
                (Reply::Record(Box::new(record)), Effects::default())
            }
            Call::ListAttempts(list) => (Reply::Attempts(self.listed(list)), Effects::default()),
            Call::Cancel(r) => {
                let decision = decide::cancel(run, recorded(r.operation), r, now)?;
                (Reply::Cancelled(decision.answer), decision.effects)
            }
            Call::Requeue(r) => {
                (Reply::Requeued, decide::requeue(run, recorded(r.operation), r, now)?.effects)
            }
            Call::BeginStep(r) => {
                let decision = decide::begin_step(run, self.latest(&r.step.step_id), r, now)?;
                (Reply::Begun(decision.answer), decision.effects)
            }
            Call::CompleteStep(r) => {
                let decision = self.complete_step(r, now)?;
                (Reply::StepCompleted(decision.answer), decision.effects)
            }
            Call::FailStep(r) => {
                let attempt = self.attempt(&r.step_id, r.attempt);
                let failures = self.failures(&r.step_id);
                let recorded = recorded(r.operation);
                let decision = decide::fail_step(run, attempt, failures, recorded, r, rules, now)?;
                (Reply::Failed(decision.answer), decision.effects)
            }
            Call::Sleep(r) => {
                let decision = decide::sleep(run, self.latest(&r.step_id), recorded(r.operation), r, now)?;
                (Reply::Slept(decision.answer), decision.effects)
            }
            Call::CompleteRun(r) => (Reply::RunCompleted, decide::complete_run(run, r, now)?.effects),
            Call::FailRun(r) => {
                let decision = decide::fail_run(run, recorded(r.operation), r, rules, now)?;
                (Reply::Failed(decision.answer), decision.effects)
            }
            Call::Release(r) => {
                (Reply::Released, decide::release(run, recorded(r.operation), r, now)?.effects)
            }
            other => {
                let detail = format!("a call about several runs: {other:?}");
                return Err(StoreError::Internal { context: "asking the rows of one run", detail });
            }
        };
        Ok((reply, self.with(effects, now)))
    }

    fn complete_step(
        &self,
        request: &CompleteStep,
        now: Timestamp,
    ) -> Result<Decision<CompleteStepOutcome>, StoreError> {
        let attempt = self.attempt(&request.step_id, request.attempt);
        let next = match &request.then {
            Then::Begin(next) => Some(&next.step_id),
            Then::Nothing | Then::CompleteRun(_) => None,
        };
        let latest = next.and_then(|step_id| self.latest(step_id));
        if decide::was_completed_by(attempt, request.operation) {
            let begun = next.and_then(|step_id| {
                self.of_step(step_id).find(|attempt| attempt.begin_operation == request.operation)
            });
            return decide::completed_again(&self.run, begun, latest, request).map(Decision::unchanged);
        }
        decide::complete_step(&self.run, attempt, latest, request, now)
    }

    /// What a heartbeat answers, and the rows after it.
    pub(crate) fn beat(&self, beat: &Heartbeat, now: Timestamp) -> Result<(GrantedLease, Self), StoreError> {
        if beat.lease.run_id != self.run.run_id || beat.lease.namespace != self.run.namespace {
            return Err(StoreError::RunNotFound { run_id: beat.lease.run_id });
        }
        let (run, granted) = decide::heartbeat(&self.run, beat, now)?;
        Ok((granted, Self { run, ..self.clone() }))
    }
}

/// The lease that a call about one run shows, if it shows one.
pub(crate) fn lease_of(call: &Call) -> Option<&Lease> {
    match call {
        Call::Heartbeat(batch) => batch.first().map(|beat| &beat.lease),
        Call::BeginStep(r) => Some(&r.lease),
        Call::CompleteStep(r) => Some(&r.lease),
        Call::FailStep(r) => Some(&r.lease),
        Call::Sleep(r) => Some(&r.lease),
        Call::CompleteRun(r) => Some(&r.lease),
        Call::FailRun(r) => Some(&r.lease),
        Call::Release(r) => Some(&r.lease),
        _ => None,
    }
}

/// The run that a call is about, if it is about one and no other.
pub(crate) fn about(call: &Call) -> Option<(&Namespace, RunId)> {
    match call {
        Call::GetRun(namespace, run_id) => Some((namespace, *run_id)),
        Call::ListAttempts(r) => Some((&r.namespace, r.run_id)),
        Call::Cancel(r) => Some((&r.namespace, r.run_id)),
        Call::Requeue(r) => Some((&r.namespace, r.run_id)),
        Call::Heartbeat(_) => None,
        other => lease_of(other).map(|lease| (&lease.namespace, lease.run_id)),
    }
}
