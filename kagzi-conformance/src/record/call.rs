//! Calls and their answers as values: to be planned, sent, kept, compared and sent again.

use kagzi_core::{
    Attempt, BeginOutcome, BeginStep, CancelOutcome, CancelRun, Claim, ClaimedRun, CompleteRun, CompleteStep,
    CompleteStepOutcome, DeleteFinished, FailRun, FailStep, FailureOutcome, GrantedLease, Heartbeat,
    ListAttempts, ListRuns, Namespace, NextDue, Page, QueueDepth, QueueOutcome, Reaped, ReleaseRun,
    RequeueRun, Run, RunFilter, RunId, RunRecord, SetQueueState, Sleep, SleepOutcome, StartRun, Started,
    Store, StoreError,
};

use super::describe::Describe;

/// One call of the trait with everything it is asked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Call {
    Start(Vec<StartRun>),
    GetRun(Namespace, RunId),
    ListRuns(ListRuns),
    CountRuns(Namespace, RunFilter),
    ListAttempts(ListAttempts),
    Cancel(CancelRun),
    Requeue(RequeueRun),
    Claim(Claim),
    Heartbeat(Vec<Heartbeat>),
    BeginStep(BeginStep),
    CompleteStep(CompleteStep),
    FailStep(FailStep),
    Sleep(Sleep),
    CompleteRun(CompleteRun),
    FailRun(FailRun),
    Release(ReleaseRun),
    Reap(u32),
    NextDue,
    QueueDepths(Namespace),
    SetQueueState(SetQueueState),
    DeleteFinished(DeleteFinished),
}

/// What a call that was accepted answered. Outcomes with one value only have no field.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reply {
    Started(Vec<Started>),
    Record(Box<RunRecord>),
    Runs(Page<Run>),
    Count(u64),
    Attempts(Page<Attempt>),
    Cancelled(CancelOutcome),
    Requeued,
    Claimed(Vec<ClaimedRun>),
    Beats(Vec<Result<GrantedLease, Refusal>>),
    Begun(BeginOutcome),
    StepCompleted(CompleteStepOutcome),
    Failed(FailureOutcome),
    Slept(SleepOutcome),
    RunCompleted,
    Released,
    Reaped(Reaped),
    NextDue(NextDue),
    Depths(Vec<QueueDepth>),
    QueueStateSet(QueueOutcome),
    Deleted(u64),
}

/// An error of the store in a form that can be compared: to the last field, but not to the wording
/// of what only people read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: &'static str,
    pub(crate) detail: String,
    pub(crate) message: String,
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        let detail = match &error {
            // Each backend has its own words for these.
            StoreError::Unavailable { .. }
            | StoreError::OutcomeUnknown { .. }
            | StoreError::Internal { .. } => String::new(),
            other => format!("{other:?}"),
        };
        let message = if detail.is_empty() { String::new() } else { error.to_string() };
        Self { reason: error.reason(), detail, message }
    }
}

impl Refusal {
    /// Whether the call may have been carried out all the same.
    pub(crate) fn leaves_open(&self) -> bool {
        self.reason == "OUTCOME_UNKNOWN"
    }
}

/// What a call answered.
pub(crate) type Answer = Result<Reply, Refusal>;

impl Call {
    /// Sends the call to `store`.
    pub(crate) async fn send(&self, store: &dyn Store) -> Answer {
        let reply = match self.clone() {
            Self::Start(batch) => store.start(batch).await.map(Reply::Started),
            Self::GetRun(namespace, run_id) => {
                store.get_run(&namespace, run_id).await.map(|record| Reply::Record(Box::new(record)))
            }
            Self::ListRuns(request) => store.list_runs(&request).await.map(Reply::Runs),
            Self::CountRuns(namespace, filter) => {
                store.count_runs(&namespace, &filter).await.map(Reply::Count)
            }
            Self::ListAttempts(request) => store.list_attempts(&request).await.map(Reply::Attempts),
            Self::Cancel(request) => store.cancel(request).await.map(Reply::Cancelled),
            Self::Requeue(request) => store.requeue(request).await.map(|_| Reply::Requeued),
            Self::Claim(request) => store.claim(request).await.map(Reply::Claimed),
            Self::Heartbeat(batch) => store.heartbeat(batch).await.map(|verdicts| {
                Reply::Beats(verdicts.into_iter().map(|verdict| verdict.map_err(Refusal::from)).collect())
            }),
            Self::BeginStep(request) => store.begin_step(request).await.map(Reply::Begun),
            Self::CompleteStep(request) => store.complete_step(request).await.map(Reply::StepCompleted),
            Self::FailStep(request) => store.fail_step(request).await.map(Reply::Failed),
            Self::Sleep(request) => store.sleep(request).await.map(Reply::Slept),
            Self::CompleteRun(request) => store.complete_run(request).await.map(|_| Reply::RunCompleted),
            Self::FailRun(request) => store.fail_run(request).await.map(Reply::Failed),
            Self::Release(request) => store.release(request).await.map(|_| Reply::Released),
            Self::Reap(limit) => store.reap(limit).await.map(Reply::Reaped),
            Self::NextDue => store.next_due().await.map(Reply::NextDue),
            Self::QueueDepths(namespace) => store.queue_depths(&namespace).await.map(Reply::Depths),
            Self::SetQueueState(request) => store.set_queue_state(request).await.map(Reply::QueueStateSet),
            Self::DeleteFinished(request) => store.delete_finished(&request).await.map(Reply::Deleted),
        };
        reply.map_err(Refusal::from)
    }
}

impl Describe for Call {
    fn describe(&self) -> String {
        match self {
            Self::Start(batch) => format!("start({})", batch.describe()),
            Self::GetRun(namespace, run_id) => format!("get_run({namespace}, {run_id})"),
            Self::ListRuns(request) => format!("list_runs({})", request.describe()),
            Self::CountRuns(namespace, _) => format!("count_runs({namespace})"),
            Self::ListAttempts(request) => format!("list_attempts({})", request.describe()),
            Self::Cancel(request) => format!("cancel({})", request.describe()),
            Self::Requeue(request) => format!("requeue({})", request.describe()),
            Self::Claim(request) => format!("claim({})", request.describe()),
            Self::Heartbeat(batch) => format!("heartbeat({})", batch.describe()),
            Self::BeginStep(request) => format!("begin_step({})", request.describe()),
            Self::CompleteStep(request) => format!("complete_step({})", request.describe()),
            Self::FailStep(request) => format!("fail_step({})", request.describe()),
            Self::Sleep(request) => format!("sleep({})", request.describe()),
            Self::CompleteRun(request) => format!("complete_run({})", request.describe()),
            Self::FailRun(request) => format!("fail_run({})", request.describe()),
            Self::Release(request) => format!("release({})", request.describe()),
            Self::Reap(limit) => format!("reap({limit})"),
            Self::NextDue => "next_due()".to_owned(),
            Self::QueueDepths(namespace) => format!("queue_depths({namespace})"),
            Self::SetQueueState(request) => format!("set_queue_state({})", request.describe()),
            Self::DeleteFinished(request) => format!("delete_finished({})", request.describe()),
        }
    }
}

impl Describe for Reply {
    fn describe(&self) -> String {
        match self {
            Self::Started(started) => started.describe(),
            Self::Record(record) => record.describe(),
            Self::Runs(page) => page.describe(),
            Self::Attempts(page) => page.describe(),
            Self::Claimed(claimed) => claimed.describe(),
            Self::Beats(verdicts) => {
                let each: Vec<String> = verdicts
                    .iter()
                    .map(|verdict| match verdict {
                        Ok(granted) => format!("until {}", granted.expires_at),
                        Err(refusal) => refusal.describe(),
                    })
                    .collect();
                format!("[{}]", each.join(", "))
            }
            Self::Begun(outcome) => outcome.describe(),
            Self::StepCompleted(outcome) => outcome.describe(),
            Self::Failed(outcome) => outcome.describe(),
            Self::Slept(outcome) => outcome.describe(),
            other => format!("{other:?}"),
        }
    }
}

impl Describe for Refusal {
    fn describe(&self) -> String {
        format!("{}: {}", self.reason, self.message)
    }
}

impl Describe for Answer {
    fn describe(&self) -> String {
        match self {
            Ok(reply) => reply.describe(),
            Err(refusal) => refusal.describe(),
        }
    }
}
