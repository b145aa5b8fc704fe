//! Executes one claimed run from the claim to its end here.

use std::future::Future;
use std::sync::Arc;

use kagzi_core::{Attempt, AttemptScope, ClaimedRun, ListAttempts, Namespace, PageRequest, StoreError};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::Settings;
use super::leases::Leases;
use super::registry::Registry;
use crate::calls::{About, Calls};
use crate::context::Context;
use crate::payload_codec::{Payloads, RunPayloads};
use crate::run::journal::Journal;
use crate::run::{Control, Driver, Ended, Writes, ends};
use crate::stats::Counters;
use crate::trace::{self, RunTrace};

/// What every execution of a worker needs. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Executor {
    pub(super) calls: Calls,
    pub(super) registry: Arc<Registry>,
    pub(super) namespace: Namespace,
    pub(super) payloads: Payloads,
    pub(super) leases: Arc<Leases>,
    pub(super) drain: CancellationToken,
    pub(super) abort: CancellationToken,
    pub(super) settings: Settings,
}

/// Counts a run as active while it lives.
struct Active(Arc<Counters>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.runs_active.one_less();
    }
}

impl Executor {
    /// Puts the lease of a run under the heartbeat, and returns the execution of the run. The slot is
    /// free again when that ends.
    pub(super) fn admit(
        &self,
        claimed: ClaimedRun,
        slot: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + Send + 'static {
        let counters = Arc::clone(&self.calls.reporter.counters);
        counters.runs_claimed.add(1);
        counters.runs_active.add(1);
        let active = Active(Arc::clone(&counters));
        let control = Arc::new(Control::new(self.drain.clone(), self.abort.clone()));
        let kept = self.leases.keep(&claimed.lease.lease, &control);
        let mut executor = self.clone();
        let trace = Arc::new(RunTrace::new(&claimed.run, claimed.lease.lease.worker_id.clone()));
        executor.calls.trace.clone_from(&trace.context);
        let span = trace.run_span(&claimed.run);
        let execution = span.clone();
        async move {
            let ended = executor.execute(claimed, control, trace).await;
            count(&counters, ended);
            tracing::debug!(?ended, "an execution ended");
            trace::run_ended(&execution, ended);
            drop((kept, active, slot));
        }
        .instrument(span)
    }

    async fn execute(&self, claimed: ClaimedRun, control: Arc<Control>, trace: Arc<RunTrace>) -> Ended {
        let writes = Writes { calls: self.calls.clone(), lease: claimed.lease.lease.clone() };
        let function = match self.registry.find(&claimed.run.workflow_type) {
            Ok(function) => Arc::clone(function),
            Err(failure) => {
                return control.unless_stopped(ends::ending(&writes, ends::Ending::FailRun(failure))).await;
            }
        };
        let ClaimedRun { run, input, steps, more_steps, .. } = claimed;
        let mut rest = ListAttempts {
            namespace: run.namespace.clone(),
            run_id: run.run_id,
            scope: AttemptScope::Latest,
            page: PageRequest { limit: self.settings.steps_limit, cursor: more_steps },
        };
        let fetched = tokio::select! {
            fetched = self.fetch_steps(steps, &mut rest) => fetched,
            () = control.lost.cancelled() => return Ended::Lost,
            () = control.drain.cancelled() => return control.unless_stopped(ends::released(&writes)).await,
        };
        let steps = match fetched {
            Ok(steps) => steps,
            Err(error) => return control.unless_stopped(ends::refused(&writes, &error)).await,
        };
        let journal = Arc::new(Journal::new(steps));
        let payloads = RunPayloads {
            payloads: self.payloads.clone(),
            namespace: self.namespace.clone(),
            run_id: run.run_id,
        };
        let context = Context::new(run, Arc::clone(&journal), payloads, trace, control.cancelled.clone());
        let code = Box::pin(async move { function(context, input).await });
        Driver::new(writes, control, journal, code, self.settings.cancel_grace).run().await
    }

    /// The recorded steps that did not come with the claim.
    async fn fetch_steps(
        &self,
        mut steps: Vec<Attempt>,
        rest: &mut ListAttempts,
    ) -> Result<Vec<Attempt>, StoreError> {
        while rest.page.cursor.is_some() {
            let about = About::of("list_attempts", rest.run_id);
            let page = self.calls.repeat(about, || self.calls.transport.list_attempts(rest)).await?;
            steps.extend(page.items);
            rest.page.cursor = page.next;
        }
        Ok(steps)
    }
}

fn count(counters: &Counters, ended: Ended) {
    match ended {
        Ended::Completed => counters.runs_completed.add(1),
        Ended::ToRetry => counters.runs_to_retry.add(1),
        Ended::DeadLettered => counters.runs_dead_lettered.add(1),
        Ended::Slept => counters.runs_slept.add(1),
        Ended::Released => counters.runs_released.add(1),
        Ended::Lost => counters.leases_lost.add(1),
        Ended::Stuck => {
            tracing::warn!("the end of an execution could not be recorded; its lease will expire");
        }
    }
}
