//! One call of a store, ready to be made.

use kagzi_core::{
    BeginOutcome, BeginStep, CancelOutcome, CancelRun, Claim, CompleteRun, CompleteStep, FailStep, Heartbeat,
    ListRuns, Namespace, ReleaseRun, RunId, SharedStore, Sleep, SleepOutcome, StartRun, StoreError,
};

use crate::workload::unexpected;

/// A call with what it asks for.
#[derive(Debug)]
pub enum Call {
    Start(StartRun),
    Claim(Claim),
    Begin(BeginStep),
    CompleteStep(CompleteStep),
    Fail(FailStep),
    Sleep(Sleep),
    Heartbeat(Heartbeat),
    Release(ReleaseRun),
    CompleteRun(CompleteRun),
    Cancel(CancelRun),
    GetRun(Namespace, RunId),
    List(ListRuns),
    Reap,
}

impl Call {
    /// Makes it. An answer that is not the one that is to be measured is an error.
    pub async fn make(self, store: &SharedStore) -> Result<(), StoreError> {
        let as_meant = match self {
            Self::Start(start) => store.start(vec![start]).await?.len() == 1,
            Self::Claim(claim) => {
                // As many runs are due as are claimed; a store may overlook those that others look at.
                while store.claim(claim.clone()).await?.is_empty() {}
                true
            }
            Self::Begin(begin) => matches!(store.begin_step(begin).await?, BeginOutcome::Execute { .. }),
            Self::CompleteStep(complete) => store.complete_step(complete).await.map(|_| true)?,
            Self::Fail(fail) => store.fail_step(fail).await.map(|_| true)?,
            Self::Sleep(sleep) => matches!(store.sleep(sleep).await?, SleepOutcome::Sleeping { .. }),
            Self::Heartbeat(heartbeat) => {
                let verdicts = store.heartbeat(vec![heartbeat]).await?;
                verdicts.into_iter().collect::<Result<Vec<_>, _>>()?.len() == 1
            }
            Self::Release(release) => store.release(release).await.map(|_| true)?,
            Self::CompleteRun(complete) => store.complete_run(complete).await.map(|_| true)?,
            Self::Cancel(cancel) => store.cancel(cancel).await? == CancelOutcome::Cancelled,
            Self::GetRun(namespace, run_id) => store.get_run(&namespace, run_id).await?.run.run_id == run_id,
            Self::List(list) => !store.list_runs(&list).await?.items.is_empty(),
            // Of two reapers at once one may find what the other has treated.
            Self::Reap => store.reap(1).await.map(|_| true)?,
        };
        if as_meant { Ok(()) } else { Err(unexpected()) }
    }
}
