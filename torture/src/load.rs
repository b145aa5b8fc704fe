//! The clients: they start runs, look at them, cancel and requeue them, some more than workers can take.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use kagzi_sdk::{Client, RunFilter, RunId, RunState};
use tokio::task::JoinSet;

use crate::Failed;
use crate::log::Log;
use crate::plan;
use crate::roles::{NAMESPACES, client};
use crate::world::{SERVERS, World};

/// How many callers there are for each server and namespace.
const CALLERS: u32 = 2;

/// How many starts a burst sends, by so many callers at once.
const BURST: u64 = 200;
const BURST_CALLERS: usize = 24;

/// How long a client repeats a call before it gives it up, with its outcome open.
const PATIENCE: Duration = Duration::from_secs(4);

/// The runs that are looked at are among so many that were started last.
const REMEMBERED: usize = 400;

/// What callers share.
#[derive(Debug, Default)]
struct Shared {
    calls: AtomicU64,
    acknowledged: AtomicU64,
    numbers: AtomicU64,
    recent: [Mutex<Vec<(RunId, u64)>>; NAMESPACES.len()],
}

/// The clients at work.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<(usize, Client)>,
    callers: Mutex<JoinSet<()>>,
}

/// How much was done so far.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    pub calls: u64,
    pub acknowledged: u64,
}

impl Load {
    /// Begins; `rate` is how many starts a second there are, about.
    pub fn begin(world: &World, seed: u64, rate: f64) -> Result<Self, Failed> {
        let log = Arc::new(Log::create(&world.logs().join("clients.log"))?);
        let shared = Arc::new(Shared::default());
        let mut dice = Rng::with_seed(seed);
        let mut clients = Vec::new();
        let mut callers = JoinSet::new();
        // Each waits half of the longest pause, on average.
        let pause = Duration::from_secs_f64(2.0 / rate.max(0.1)) * CALLERS * 4;
        for server in 0..SERVERS {
            for (at, namespace) in NAMESPACES.into_iter().enumerate() {
                let client = client(&world.client_url(server), namespace, &log)?.with_patience(PATIENCE);
                clients.push((at, client.clone()));
                for _ in 0..CALLERS {
                    let caller = Caller {
                        shared: Arc::clone(&shared),
                        namespace: at,
                        client: client.clone(),
                        dice: dice.fork(),
                    };
                    callers.spawn(caller.call_on(pause));
                }
            }
        }
        Ok(Self { shared, clients, callers: Mutex::new(callers) })
    }

    /// Sends far more starts at once than workers can take.
    pub fn burst(&self) {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        for number in 0..BURST_CALLERS {
            let (namespace, client) = self.clients[number % self.clients.len()].clone();
            let dice = Rng::with_seed(number as u64);
            let mut caller = Caller { shared: Arc::clone(&self.shared), namespace, client, dice };
            callers.spawn(async move {
                for _ in 0..BURST.div_ceil(BURST_CALLERS as u64) {
                    caller.start().await;
                }
            });
        }
    }

    /// How much was done so far.
    pub fn done(&self) -> Done {
        Done {
            calls: self.shared.calls.load(Ordering::Relaxed),
            acknowledged: self.shared.acknowledged.load(Ordering::Relaxed),
        }
    }

    /// Ends it: calls in flight are given up with their outcome open.
    pub async fn end(&self) -> Result<(), Failed> {
        let mut callers = std::mem::take(&mut *self.callers.lock().unwrap_or_else(PoisonError::into_inner));
        callers.abort_all();
        while let Some(ended) = callers.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                return Err(error.into());
            }
        }
        Ok(())
    }
}

/// Who calls, one call after the other.
struct Caller {
    shared: Arc<Shared>,
    namespace: usize,
    client: Client,
    dice: Rng,
}

impl Caller {
    async fn call_on(mut self, pause: Duration) {
        loop {
            self.call().await;
            tokio::time::sleep(pause.mul_f64(self.dice.f64())).await;
        }
    }

    /// Makes one call after a start. What it answers is on record; here nothing depends on it.
    async fn call(&mut self) {
        self.start().await;
        let kind = self.dice.u8(..100);
        let Some((run, number)) = self.any_recent(self.namespace) else { return };
        let other = 1 - self.namespace;
        let ok = match kind {
            0..10 => self.client.cancel(run, "enough").await.is_ok(),
            10..25 => self.client.get(run).await.is_ok(),
            25..35 => {
                let wait = self.client.handle(run);
                tokio::time::timeout(Duration::from_secs(2), wait.finished()).await.is_ok()
            }
            35..40 => self.client.list(&RunFilter::default(), 30, None).await.is_ok(),
            40..60 => return self.requeue().await,
            // The same request again, or another under the same key.
            60..66 => return self.start_numbered(number, number).await,
            66..68 => return self.start_numbered(number, number + 1).await,
            // A run of somebody else, which is to be nobody's here.
            68..70 => match self.any_recent(other) {
                Some((run, _)) => self.client.get(run).await.is_ok(),
                None => return,
            },
            70..74 => return self.start_many().await,
            _ => return,
        };
        self.count(ok);
    }

    async fn start(&mut self) {
        let number = self.shared.numbers.fetch_add(1, Ordering::Relaxed);
        self.start_numbered(number, number).await;
    }

    /// Starts a run under the key of one number with the input of another; some have no key.
    async fn start_numbered(&mut self, key: u64, number: u64) {
        let Ok(mut start) = plan::start(number) else { return };
        if !key.is_multiple_of(3) {
            start = start.idempotency_key(format!("key-{key}"));
        }
        let started = self.client.start(start).await;
        self.count(started.is_ok());
        if let Ok(handle) = started {
            self.remember(handle.run_id(), key);
        }
    }

    async fn start_many(&mut self) {
        let first = self.shared.numbers.fetch_add(8, Ordering::Relaxed);
        let Ok(starts) = (first..first + 8).map(plan::start).collect::<Result<Vec<_>, _>>() else { return };
        let started = self.client.start_many(starts).await;
        self.count(started.is_ok());
        for (number, handle) in (first..).zip(started.unwrap_or_default()) {
            // These have no keys: one that is started again makes another run.
            self.remember(handle.run_id(), number - number % 3);
        }
    }

    /// Puts a dead letter back to work.
    async fn requeue(&mut self) {
        let filter = RunFilter { states: vec![RunState::Failed], ..RunFilter::default() };
        let Ok(page) = self.client.list(&filter, 10, None).await else { return };
        if let Some(run) = self.dice.choice(&page.items) {
            let requeued = self.client.requeue(run.run_id).await;
            self.count(requeued.is_ok());
        }
    }

    fn count(&self, acknowledged: bool) {
        self.shared.calls.fetch_add(1, Ordering::Relaxed);
        self.shared.acknowledged.fetch_add(u64::from(acknowledged), Ordering::Relaxed);
    }

    fn remember(&mut self, run: RunId, number: u64) {
        let mut recent = self.shared.recent[self.namespace].lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() < REMEMBERED {
            recent.push((run, number));
        } else {
            let at = self.dice.usize(..REMEMBERED);
            recent[at] = (run, number);
        }
    }

    fn any_recent(&mut self, namespace: usize) -> Option<(RunId, u64)> {
        let recent = self.shared.recent[namespace].lock().unwrap_or_else(PoisonError::into_inner);
        self.dice.choice(&*recent).copied()
    }
}
