//! Calls whose callers go away, at any of their awaits: each is done or not done, never half, whoever is in
//! flight beside it gets an answer, and sent again it gives the one answer.

use std::fmt::Debug;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use kagzi_core::{
    CompleteStep, NextStep, OperationId, Payload, QueueChange, QueueDepth, RunId, SetQueueState, SharedStore,
    SleepUntil, StartRun, StoreError, Then,
};
use tokio::task::JoinSet;

use crate::case::Case;
use crate::scenario::{Held, LEASE, Scenario, Snapshot, check, equal, fatal, hiccup, step_id};
use crate::violation::{Verdict, Violation};

/// More awaits than a call is expected to have; behind them its callers no longer go away.
const MOST_POLLS: usize = 12;

/// Up to so many polls, callers go away in each way; behind them in one way after the other.
const EACH_WAY: usize = 3;

/// An answer that has not come by then will not come. A guard: no case waits for it where the rule is kept.
const GUARD: Duration = Duration::from_secs(10);

/// What is sent. Whatever carries an operation id, and heartbeats, which may be said twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Start,
    Starts,
    Claim,
    Begin,
    Complete,
    CompleteAndBegin,
    CompleteAndFinish,
    Fail,
    Sleep,
    CompleteRun,
    FailRun,
    Heartbeat,
    Release,
    Cancel,
    Requeue,
    Pause,
}

impl Kind {
    const ALL: [Self; 16] = [
        Self::Start,
        Self::Starts,
        Self::Claim,
        Self::Begin,
        Self::Complete,
        Self::CompleteAndBegin,
        Self::CompleteAndFinish,
        Self::Fail,
        Self::Sleep,
        Self::CompleteRun,
        Self::FailRun,
        Self::Heartbeat,
        Self::Release,
        Self::Cancel,
        Self::Requeue,
        Self::Pause,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Starts => "batch_of_starts",
            Self::Claim => "claim",
            Self::Begin => "begin_step",
            Self::Complete => "complete_step",
            Self::CompleteAndBegin => "complete_and_begin_next",
            Self::CompleteAndFinish => "complete_and_finish_run",
            Self::Fail => "fail_step",
            Self::Sleep => "sleep",
            Self::CompleteRun => "complete_run",
            Self::FailRun => "fail_run",
            Self::Heartbeat => "heartbeat",
            Self::Release => "release",
            Self::Cancel => "cancel",
            Self::Requeue => "requeue",
            Self::Pause => "pause",
        }
    }

    /// Whether it is about a run that a worker holds.
    const fn is_of_a_worker(self) -> bool {
        !matches!(self, Self::Start | Self::Starts | Self::Claim | Self::Pause)
    }

    /// Puts what it needs in place, and gives the call.
    async fn prepare(self, s: &Scenario) -> Result<Call, Violation> {
        if self.is_of_a_worker() {
            let held = s.held().await?;
            held.begin("open").await?;
            return self.of_a_worker(s, &held).await;
        }
        let start = || StartRun { input: Payload::json("\"whole\""), ..s.start_request() };
        Ok(match self {
            Self::Starts => {
                let batch = vec![start(), start(), start()];
                let runs = batch.iter().map(StartRun::run_id).collect();
                Call::new(s, runs, batch, |store, it| async move { store.start(it).await })
            }
            Self::Claim => {
                let runs = s.start_many(2).await?;
                let claim = s.claim_request("w1", 2)?;
                Call::new(s, runs, claim, |store, it| async move { store.claim(it).await })
            }
            Self::Pause => {
                let StartRun { namespace, queue, .. } = s.start_request();
                let change = QueueChange::Pause { reason: "to look at it".to_owned() };
                let pause = SetQueueState { namespace, queue, change, operation: OperationId::generate() };
                let runs = vec![s.start_one().await?];
                Call::new(s, runs, pause, |store, it| async move { store.set_queue_state(it).await })
            }
            _ => {
                let start = start();
                let runs = vec![start.run_id()];
                Call::new(s, runs, vec![start], |store, it| async move { store.start(it).await })
            }
        })
    }

    async fn of_a_worker(self, s: &Scenario, held: &Held) -> Result<Call, Violation> {
        let runs = vec![held.run_id()];
        let complete = held.complete_request("open", 1, "1")?;
        let completes = |then| {
            let it = CompleteStep { then, ..complete.clone() };
            Call::new(s, runs.clone(), it, |store, it| async move { store.complete_step(it).await })
        };
        Ok(match self {
            Self::Begin => {
                let it = held.begin_request("next")?;
                Call::new(s, runs, it, |store, it| async move { store.begin_step(it).await })
            }
            Self::CompleteAndBegin => completes(Then::Begin(NextStep::new(step_id("next")?, 1))),
            Self::CompleteAndFinish => completes(Then::CompleteRun(Payload::json("2"))),
            Self::Fail => {
                let it = held.fail_request("open", 1, hiccup())?;
                Call::new(s, runs, it, |store, it| async move { store.fail_step(it).await })
            }
            Self::Sleep => {
                let it = held.sleep_request("nap", SleepUntil::After(LEASE))?;
                Call::new(s, runs, it, |store, it| async move { store.sleep(it).await })
            }
            Self::CompleteRun => {
                let it = held.complete_run_request("2");
                Call::new(s, runs, it, |store, it| async move { store.complete_run(it).await })
            }
            Self::FailRun => {
                let it = held.fail_run_request(hiccup());
                Call::new(s, runs, it, |store, it| async move { store.fail_run(it).await })
            }
            Self::Heartbeat => {
                let it = vec![held.heartbeat_request()];
                Call::new(s, runs, it, |store, it| async move {
                    store.heartbeat(it).await?.into_iter().collect::<Result<Vec<_>, _>>()
                })
            }
            Self::Release => {
                let it = held.release_request();
                Call::new(s, runs, it, |store, it| async move { store.release(it).await })
            }
            Self::Cancel => {
                let it = s.cancel_request(held.run_id());
                Call::new(s, runs, it, |store, it| async move { store.cancel(it).await })
            }
            Self::Requeue => {
                held.fail_run(fatal()).await?;
                let it = s.requeue_request(held.run_id());
                Call::new(s, runs, it, |store, it| async move { store.requeue(it).await })
            }
            _ => completes(Then::Nothing),
        })
    }
}

/// When the caller goes away, once it has polled as often as it is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gone {
    AtOnce,
    ALittleLater,
    /// When it is woken, and so told that there is more.
    WhenWoken,
}

impl Gone {
    const ALL: [Self; 3] = [Self::AtOnce, Self::ALittleLater, Self::WhenWoken];

    /// The ways that are tried after so many polls.
    fn after(polls: usize) -> impl Iterator<Item = Self> {
        let one = (polls == 0 || polls > EACH_WAY).then_some(polls % Self::ALL.len());
        Self::ALL
            .into_iter()
            .enumerate()
            .filter(move |(place, _)| one.is_none_or(|one| one == *place))
            .map(|(_, gone)| gone)
    }
}

type Sent = Pin<Box<dyn Future<Output = Result<String, StoreError>> + Send>>;

/// A call that can be sent again and again.
struct Call {
    /// The runs that it is about, which need not be there yet.
    runs: Vec<RunId>,
    send: Box<dyn Fn() -> Sent + Send + Sync>,
}

impl Call {
    fn new<R, T, F>(
        s: &Scenario,
        runs: Vec<RunId>,
        request: R,
        ask: impl Fn(SharedStore, R) -> F + Send + Sync + 'static,
    ) -> Self
    where
        R: Clone + Send + Sync + 'static,
        T: Debug,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let store = s.shared_store();
        let send = move || -> Sent {
            let answer = ask(SharedStore::clone(&store), request.clone());
            Box::pin(async move { answer.await.map(|told| format!("{told:?}")) })
        };
        Self { runs, send: Box::new(send) }
    }

    async fn accepted(&self, what: &str) -> Result<String, Violation> {
        (self.send)().await.map_err(|error| Violation::refused(what, &error))
    }
}

/// Polls a call so many times, each time but the first once it was woken, and drops it. `beside` is called
/// before it is dropped, if it has begun and not ended. Whether it ended.
async fn dropped<T>(call: impl Future<Output = T>, polls: usize, gone: Gone, beside: impl FnOnce()) -> bool {
    let mut call = Box::pin(call);
    let (mut polled, mut beside) = (0, Some(beside));
    let ended = poll_fn(|context| {
        if polled == polls {
            return Poll::Ready(false);
        }
        polled += 1;
        if call.as_mut().poll(context).is_ready() {
            return Poll::Ready(true);
        }
        if polled < polls {
            return Poll::Pending;
        }
        if let Some(beside) = beside.take() {
            beside();
        }
        if gone == Gone::WhenWoken { Poll::Pending } else { Poll::Ready(false) }
    })
    .await;
    if !ended && gone == Gone::ALittleLater {
        for _ in 0..64 {
            tokio::task::yield_now().await;
        }
    }
    ended
}

/// Everything that a call may change.
#[derive(Debug, PartialEq)]
struct Seen {
    runs: Vec<Option<Snapshot>>,
    queue: Option<QueueDepth>,
}

async fn seen_once(s: &Scenario, runs: &[RunId]) -> Result<Seen, Violation> {
    let mut snapshots = Vec::new();
    for run_id in runs {
        snapshots.push(match s.store().get_run(s.namespace(), *run_id).await {
            Err(StoreError::RunNotFound { .. }) => None,
            Err(error) => return Err(Violation::refused("reading a run", &error)),
            Ok(_) => Some(s.snapshot(*run_id).await?),
        });
    }
    let queue = s.start_request().queue;
    let depths = s.store().queue_depths(s.namespace()).await;
    let depths = depths.map_err(|error| Violation::refused("queue depths", &error))?;
    Ok(Seen { runs: snapshots, queue: depths.into_iter().find(|depth| depth.queue == queue) })
}

/// What is seen twice in a row: the call may still be under way, and is done between two reads at most once.
async fn seen(s: &Scenario, runs: &[RunId]) -> Result<Seen, Violation> {
    let mut before = seen_once(s, runs).await?;
    loop {
        let now = seen_once(s, runs).await?;
        if now == before {
            return Ok(now);
        }
        before = now;
    }
}

/// Others, whose calls are in flight beside the one that is dropped.
struct Others {
    s: Scenario,
    beating: Held,
    stepping: Held,
    in_flight: JoinSet<Verdict>,
}

impl Others {
    async fn new(s: &Scenario) -> Result<Self, Violation> {
        let s = s.on_queue("others")?;
        let (beating, stepping) = (s.held().await?, s.held().await?);
        Ok(Self { s, beating, stepping, in_flight: JoinSet::new() })
    }

    fn come_before(&mut self) {
        let (s, beating) = (self.s.clone(), self.beating.clone());
        self.in_flight.spawn(async move { s.start_one().await.map(drop) });
        self.in_flight.spawn(async move { beating.heartbeat().await.map(drop) });
    }

    fn come_behind(&mut self, round: usize) {
        let stepping = self.stepping.clone();
        self.in_flight.spawn(async move { stepping.step(&format!("step{round}"), "1").await });
    }

    async fn are_answered(&mut self) -> Verdict {
        const RULE: &str = "who is in flight beside a call that is dropped gets an answer [15]";
        loop {
            match tokio::time::timeout(GUARD, self.in_flight.join_next()).await {
                Ok(None) => return check(true, RULE, "", ""),
                Ok(Some(Ok(verdict))) => verdict?,
                other => return check(false, RULE, "an answer", other.map_err(|_| "none")),
            }
        }
    }
}

/// Every kind of call, a case each.
pub(super) fn cases() -> Vec<Case> {
    let case = |kind: Kind| {
        let name = format!("a_dropped_{}_is_done_or_not_and_can_be_sent_again", kind.name());
        Case::new("batching", name, &[8, 15], &[], move |s| Box::pin(is_done_or_not(s, kind)))
    };
    Kind::ALL.into_iter().map(case).collect()
}

async fn is_done_or_not(s: Scenario, kind: Kind) -> Verdict {
    let mut others = Others::new(&s).await?;
    let mut round = 0;
    for polls in 0..=MOST_POLLS {
        let mut ended = false;
        for gone in Gone::after(polls) {
            round += 1;
            let own = s.on_queue(&format!("queue{round}"))?;
            let call = kind.prepare(&own).await?;
            s.turn(Duration::from_micros(1));
            let before = seen(&own, &call.runs).await?;
            others.come_before();
            s.log().note(format!("the next call is dropped after {polls} polls, {gone:?}"));
            ended |= dropped((call.send)(), polls, gone, || others.come_behind(round)).await;
            others.are_answered().await?;
            let after = seen(&own, &call.runs).await?;
            let first = call.accepted("what was dropped, sent again,").await?;
            let done = seen(&own, &call.runs).await?;
            check(
                after == before || after == done,
                &format!("a dropped {} is done or not done, never half [15]", kind.name()),
                ("either", &before, "or", &done),
                &after,
            )?;
            let second = call.accepted("a repeat").await?;
            equal("what was dropped gives one answer, however often it is sent [8]", &first, &second)?;
            equal("and has one effect [8]", &done, &seen(&own, &call.runs).await?)?;
        }
        if ended {
            return Ok(());
        }
    }
    Ok(())
}
