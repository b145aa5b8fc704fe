//! Drives one run: polls its code, writes what it did, and ends it.
//!
//! # One durable write per step
//!
//! A step's result goes to the code before it is recorded. If the code then begins another step, or
//! returns, the record and what follows go out as one write; if it does neither, the record goes out by
//! itself. That the code sees a result which a crash could still take back is harmless, because until
//! the write is durable nothing else of the run happens: no step function is called, no other result is
//! handed over, nothing is written. After a crash, the run is replayed from what is durable, and the
//! step whose record was lost is executed again, as if the worker had died just before its end.

use std::future::{Future as _, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, Stream as _};
use kagzi_core::{BeginOutcome, Payload, StepId, StoreError};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::control::{Control, WhyLost};
use super::ends::{self, Ended, Ending};
use super::journal::{Completion, Journal, StepFailed};
use super::writes::{Begun, Writes};
use crate::error::{WorkflowError, panicked};

type Code = BoxFuture<'static, Result<Payload, WorkflowError>>;
pub(super) type Write = BoxFuture<'static, Result<Option<Begun>, StoreError>>;

/// One execution of a run. See the module.
pub(crate) struct Driver {
    writes: Writes,
    control: Arc<Control>,
    journal: Arc<Journal>,
    cancel_grace: Duration,
    /// The workflow's code; nothing once it is over.
    code: Option<Code>,
    /// The record of the result that the code had last. Nothing overtakes it.
    recording: Option<Write>,
    /// The step that `recording` is about.
    recorded_step: Option<(StepId, u32)>,
    /// Steps beginning side by side.
    begins: FuturesUnordered<Write>,
    /// Set when the execution is to end as soon as the steps in flight have ended.
    ending: Option<Ending>,
    /// The engine refused to record something that the code has had.
    refused: bool,
    signals: Signals,
}

struct Signals {
    lost: Pin<Box<WaitForCancellationFutureOwned>>,
    drain: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    abort: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// Why the driver stops polling the code.
enum Event {
    Returned(Result<Payload, WorkflowError>),
    Ending(Ending),
    Lost,
    Aborted,
}

/// What the driver found to do between two polls of the code.
enum Advance {
    /// Something that lets code or writes go on.
    Again,
    /// Nothing until something else happens.
    Wait,
    End(Ending),
}

impl Driver {
    pub(crate) fn new(
        writes: Writes,
        control: Arc<Control>,
        journal: Arc<Journal>,
        code: Code,
        cancel_grace: Duration,
    ) -> Self {
        let signals = Signals {
            lost: Box::pin(control.lost.clone().cancelled_owned()),
            drain: Some(Box::pin(control.drain.clone().cancelled_owned())),
            abort: Box::pin(control.abort.clone().cancelled_owned()),
        };
        Self {
            writes,
            control,
            journal,
            cancel_grace,
            code: Some(code),
            recording: None,
            recorded_step: None,
            begins: FuturesUnordered::new(),
            ending: None,
            refused: false,
            signals,
        }
    }

    /// Executes the run until it ends here.
    pub(crate) async fn run(mut self) -> Ended {
        let end: BoxFuture<'static, Ended> = match poll_fn(|context| self.poll_event(context)).await {
            Event::Lost => return self.stop_lost().await,
            Event::Aborted => {
                self.control.cancelled.cancel();
                self.stop();
                return ends::released(&self.writes).await;
            }
            // The code went on with a result that could not be recorded: what it returns does not count.
            Event::Returned(_) if self.refused => {
                let writes = self.writes.clone();
                let ending = self.ending.take().unwrap_or(Ending::Release);
                Box::pin(async move { ends::ending(&writes, ending).await })
            }
            Event::Returned(result) => {
                let (writes, journal) = (self.writes.clone(), Arc::clone(&self.journal));
                let recording = self.recording.take();
                Box::pin(async move { ends::returned(&writes, &journal, recording, result).await })
            }
            Event::Ending(ending) => {
                let writes = self.writes.clone();
                Box::pin(async move { ends::ending(&writes, ending).await })
            }
        };
        self.stop();
        self.control.unless_stopped(end).await
    }

    /// Drops the code with all that it is doing.
    fn stop(&mut self) {
        self.code = None;
        self.recording = None;
        self.begins.clear();
    }

    /// The lease is lost. After a cancellation nobody else executes the run, so steps in flight have a
    /// moment to notice; else they must stop at once.
    async fn stop_lost(mut self) -> Ended {
        self.recording = None;
        self.begins.clear();
        self.journal.give_up_unstarted();
        if self.control.why_lost() == WhyLost::Cancelled && self.journal.is_busy() {
            let grace = self.cancel_grace;
            let noticing = poll_fn(|context| match self.poll_code(context) {
                Poll::Pending if self.journal.is_busy() => Poll::Pending,
                _ => Poll::Ready(()),
            });
            // Over its grace, the code is dropped wherever it stands.
            tokio::time::timeout(grace, noticing).await.ok();
        }
        self.stop();
        Ended::Lost
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        loop {
            if self.signals.lost.as_mut().poll(context).is_ready() {
                return Poll::Ready(Event::Lost);
            }
            if self.signals.abort.as_mut().poll(context).is_ready() {
                return Poll::Ready(Event::Aborted);
            }
            if let Some(drain) = &mut self.signals.drain
                && drain.as_mut().poll(context).is_ready()
            {
                self.signals.drain = None;
                self.end_with(Ending::Release);
            }
            if let Err(why) = self.poll_writes(context) {
                self.control.lose(why);
                continue;
            }
            if let Poll::Ready(event) = self.poll_code(context) {
                return Poll::Ready(event);
            }
            match self.advance() {
                Advance::Again => {}
                Advance::Wait => return Poll::Pending,
                Advance::End(ending) => return Poll::Ready(Event::Ending(ending)),
            }
        }
    }

    /// Takes in what the store said. The error tells that the lease is lost.
    fn poll_writes(&mut self, context: &mut Context<'_>) -> Result<(), WhyLost> {
        if let Some(recording) = &mut self.recording
            && let Poll::Ready(answer) = recording.as_mut().poll(context)
        {
            self.recording = None;
            match answer {
                Ok(begun) => begun.into_iter().for_each(|begun| self.begun(begun)),
                Err(error) => self.refused(&error, Refused::Record)?,
            }
        }
        while let Poll::Ready(Some(answer)) = Pin::new(&mut self.begins).poll_next(context) {
            match answer {
                Ok(begun) => begun.into_iter().for_each(|begun| self.begun(begun)),
                Err(error) => self.refused(&error, Refused::Begin)?,
            }
        }
        Ok(())
    }

    fn begun(&mut self, begun: Begun) {
        let Begun { position, outcome, since } = begun;
        match outcome {
            _ if self.ending.is_some() => self.journal.give_up(position),
            BeginOutcome::Execute { attempt } => {
                if self.journal.execute(position, attempt, since) {
                    self.writes.calls.reporter.counters.steps_executed.add(1);
                }
            }
            BeginOutcome::Memoized { output, .. } => self.journal.memoized(position, output),
            BeginOutcome::InProgress { attempt } => {
                // Nobody else begins steps under this lease.
                tracing::error!(
                    run_id = %self.writes.lease.run_id, position, attempt,
                    "the engine says that this worker is executing a step which it is not"
                );
                self.journal.give_up(position);
                self.end_with(Ending::Release);
            }
        }
    }

    /// Decides what an error that no repeat can cure means for the run.
    fn refused(&mut self, error: &StoreError, what: Refused) -> Result<(), WhyLost> {
        if let Some(why) = WhyLost::of(error) {
            return Err(why);
        }
        self.refused = true;
        self.journal.give_up_unstarted();
        let failure = ends::failure_of(error);
        let ending = match (what, self.recorded_step.take()) {
            (Refused::Record, Some((step_id, attempt))) => {
                Ending::FailStep(StepFailed { step_id, attempt, failure })
            }
            _ => Ending::FailRun(failure),
        };
        self.end_with(ending);
        Ok(())
    }

    /// Ends the execution once the steps in flight have ended. A failure that cannot be retried decides
    /// the run whatever else happens, so it goes before one that can; else the first reason stands.
    fn end_with(&mut self, ending: Ending) {
        match &self.ending {
            Some(first) if first.gravity() >= ending.gravity() => {
                tracing::warn!(
                    run_id = %self.writes.lease.run_id, ?ending,
                    "a second reason to end this execution of the run; the first is recorded"
                );
            }
            _ => self.ending = Some(ending),
        }
    }

    fn poll_code(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        let Some(code) = &mut self.code else { return Poll::Pending };
        let polled = catch_unwind(AssertUnwindSafe(|| code.as_mut().poll(context)));
        Poll::Ready(match polled {
            Ok(polled) => Event::Returned(ready!(polled)),
            Err(panic) => {
                let failure = panicked("the workflow", panic.as_ref());
                Event::Returned(Err(WorkflowError::from_failure(failure)))
            }
        })
    }

    /// Moves on what can be moved on between two polls of the code.
    fn advance(&mut self) -> Advance {
        for failed in self.journal.take_failed() {
            self.end_with(Ending::FailStep(failed));
        }
        if self.ending.is_none()
            && let Some(failure) = self.journal.broken()
        {
            self.end_with(Ending::FailRun(failure));
        }
        if self.recording.is_some() {
            return Advance::Wait;
        }
        if let Some(completion) = self.journal.take_completion() {
            self.record(completion);
            return Advance::Again;
        }
        if self.ending.is_some() {
            if let Some(completion) = self.journal.take_finished() {
                self.record(completion);
                return Advance::Again;
            }
        } else if self.let_code_go_on() {
            return Advance::Again;
        }
        if !self.begins.is_empty() || self.journal.is_busy() {
            return Advance::Wait;
        }
        let ending = self.ending.take().or_else(|| self.journal.next_sleep().map(Ending::Sleep));
        ending.map_or(Advance::Wait, Advance::End)
    }

    /// Hands over a recorded result, else begins steps, else hands over a fresh result. Recorded ones
    /// go first: a step that a recorded result makes needless (in a `select!`) is then never begun.
    fn let_code_go_on(&mut self) -> bool {
        if self.journal.grant_replayed() {
            self.writes.calls.reporter.counters.steps_replayed.add(1);
            return true;
        }
        let begins = self.begins.len();
        while let Some((position, step)) = self.journal.take_begin() {
            let writes = self.writes.clone();
            self.begins.push(Box::pin(async move { writes.begin(position, step).await.map(Some) }));
        }
        self.begins.len() > begins || self.journal.grant_finished()
    }

    /// Sends the record of a result, together with the beginning of the next step if the code wants one.
    fn record(&mut self, completion: Completion) {
        self.recorded_step = Some((completion.step_id.clone(), completion.attempt));
        let next = if self.ending.is_none() { self.journal.take_begin() } else { None };
        self.recording = Some(Box::pin(self.writes.clone().complete_step(completion, next)));
    }
}

/// What was refused.
#[derive(Clone, Copy)]
enum Refused {
    Record,
    Begin,
}
