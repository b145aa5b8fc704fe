//! Runs that time has overtaken when the writer starts: their leases, naps, deadlines and timeouts ran out
//! meanwhile, so a reaper is at work on them when the crash comes.

use std::sync::Arc;
use std::time::Duration;

use kagzi_core::memory::MemoryStore;
use kagzi_core::{
    BeginStep, Claim, ClaimedRun, ManualClock, Namespace, NextStep, OperationId, Payload, QueueName, Run,
    Sleep, SleepUntil, StartRun, StepId, Store, StoreError, WorkerId, WorkflowType,
};
use uuid::Builder;

use super::script::{MILLIS, rules, snapshots};
use crate::scenario::Snapshot;
use crate::violation::Violation;

/// How long after the runs were made the writer starts. All that is played and judged is played then.
pub(super) const LATER: Duration = Duration::from_hours(1);

/// What the runs are given.
const SOON: Duration = Duration::from_mins(30);

/// How many runs each reap may treat.
pub(super) const LIMIT: u32 = 3;

/// How many runs each fate has.
const EACH: u8 = 5;

/// The clock of everything but the making of these runs.
pub(super) fn clock() -> ManualClock {
    let clock = ManualClock::default();
    clock.advance(LATER);
    clock
}

/// What has run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// A lease, with an attempt open under it.
    Lease,
    Nap,
    /// The time of the run.
    Deadline,
    /// The time of an attempt, under a lease that is good.
    Attempt,
}

const FATES: [Fate; 4] = [Fate::Lease, Fate::Nap, Fate::Deadline, Fate::Attempt];

/// How many runs of a round lapse.
pub(super) const fn count() -> usize {
    FATES.len() * EACH as usize
}

/// The runs of one round.
#[derive(Clone, Debug)]
pub(super) struct Lapsed {
    namespace: Namespace,
    seed: u64,
}

impl Lapsed {
    /// Those of a round.
    pub(super) fn of(round: &str, seed: u64) -> Result<Self, StoreError> {
        Ok(Self { namespace: Namespace::new(format!("{round}-lapsed"))?, seed })
    }

    /// Where they are.
    pub(super) const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    fn operation(&self, number: u8, what: u64) -> OperationId {
        let mut random = fastrand::Rng::with_seed(self.seed.wrapping_mul(31) ^ u64::from(number) << 8 ^ what);
        let bytes: [u8; 10] = std::array::from_fn(|_| random.u8(..));
        OperationId::from_uuid(Builder::from_unix_timestamp_millis(MILLIS, &bytes).into_uuid())
    }

    /// Each has its own queue, so that a claim takes it and no other.
    fn start(&self, number: u8, fate: Fate) -> Result<StartRun, StoreError> {
        Ok(StartRun {
            run_timeout: (fate == Fate::Deadline).then_some(SOON),
            operation: self.operation(number, 0),
            ..StartRun::new(
                self.namespace.clone(),
                QueueName::new(format!("queue-{number}"))?,
                WorkflowType::new("crash")?,
                Payload::raw(vec![number]),
            )
        })
    }

    fn each() -> impl Iterator<Item = (u8, Fate)> {
        FATES.into_iter().cycle().zip(0..EACH * 4).map(|(fate, number)| (number, fate))
    }

    /// Makes them, before anything has run out.
    pub(super) async fn make(&self, store: &dyn Store) -> Result<(), StoreError> {
        for (number, fate) in Self::each() {
            let start = self.start(number, fate)?;
            let queue = start.queue.clone();
            store.start(vec![start]).await?;
            if fate == Fate::Deadline {
                continue;
            }
            let claim = Claim {
                namespace: self.namespace.clone(),
                queues: vec![queue],
                workflow_types: Vec::new(),
                worker_id: WorkerId::new("w")?,
                lease_length: if fate == Fate::Attempt { 2 * LATER } else { SOON },
                limit: 1,
                steps_limit: 100,
                operation: self.operation(number, 1),
            };
            for ClaimedRun { lease, .. } in store.claim(claim).await? {
                let (lease, step_id, operation) = (lease.lease, StepId::new("a")?, self.operation(number, 2));
                if fate == Fate::Nap {
                    let until = SleepUntil::After(SOON);
                    store.sleep(Sleep { lease, step_id, position: 0, until, operation }).await?;
                } else {
                    let timeout = (fate == Fate::Attempt).then_some(SOON);
                    let step = NextStep { timeout, ..NextStep::new(step_id, 0) };
                    store.begin_step(BeginStep { lease, step, operation }).await?;
                }
            }
        }
        Ok(())
    }

    async fn rows(&self, store: &dyn Store) -> Result<Vec<Option<Snapshot>>, StoreError> {
        let runs: Result<Vec<_>, StoreError> =
            Self::each().map(|(number, fate)| Ok(self.start(number, fate)?.run_id())).collect();
        snapshots(store, &self.namespace, &runs?).await
    }

    /// Every run is as it was before the reaper, or as a reap leaves it, and as many as were acknowledged are
    /// of the second kind. Gives the runs.
    pub(super) async fn recovered(
        &self,
        store: &dyn Store,
        acknowledged: usize,
    ) -> Result<Vec<Run>, Violation> {
        let failed = |error| Violation::refused("reading what a reaper worked on, after a crash", &error);
        let [before, after] = self.expected().await.map_err(failed)?;
        let seen = self.rows(store).await.map_err(failed)?;
        let mut reaped = 0;
        for ((before, after), (seen, (number, fate))) in
            before.iter().zip(&after).zip(seen.iter().zip(Self::each()))
        {
            if seen == after {
                reaped += 1;
            } else if seen != before {
                return Err(Violation::new(
                    "what a reaper worked on at the crash is as it was, or reaped, and nothing is half there [9, 15]",
                    format!(
                        "run {number}, whose {fate:?} has run out, as it was:\n{before:#?}\nor reaped:\n{after:#?}"
                    ),
                    format!("{seen:#?}"),
                ));
            }
        }
        let in_flight = LIMIT as usize;
        if !(acknowledged..=acknowledged + in_flight).contains(&reaped) {
            return Err(Violation::new(
                "what a reap said that it did is done [9, 14]",
                format!("{acknowledged} runs reaped, and at most {in_flight} by a reap in flight"),
                format!("{reaped} runs reaped"),
            ));
        }
        Ok(seen.into_iter().flatten().map(|snapshot| snapshot.record.run).collect())
    }

    /// The reaper goes on, and every run is as if nothing had happened.
    pub(super) async fn go_on(&self, store: &dyn Store) -> Result<(), Violation> {
        let failed = |error| Violation::refused("reaping after a crash", &error);
        while store.reap(LIMIT).await.map_err(failed)?.total() > 0 {}
        self.recovered(store, count()).await.map(drop)
    }

    /// The rows before the reaper, and after it.
    async fn expected(&self) -> Result<[Vec<Option<Snapshot>>; 2], StoreError> {
        let clock = ManualClock::default();
        let reference = MemoryStore::new(Arc::new(clock.clone()), rules());
        self.make(&reference).await?;
        clock.advance(LATER);
        let before = self.rows(&reference).await?;
        while reference.reap(LIMIT).await?.total() > 0 {}
        Ok([before, self.rows(&reference).await?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 7;

    /// A store in which the runs were made, and reaped so many times.
    async fn reaped(times: u32) -> (MemoryStore, Lapsed, usize) {
        let clock = ManualClock::default();
        let store = MemoryStore::new(Arc::new(clock.clone()), rules());
        let lapsed = Lapsed::of("round-0", SEED).unwrap();
        lapsed.make(&store).await.unwrap();
        clock.advance(LATER);
        let mut acknowledged = 0;
        for _ in 0..times {
            acknowledged += store.reap(LIMIT).await.unwrap().total() as usize;
        }
        (store, lapsed, acknowledged)
    }

    #[tokio::test]
    async fn every_run_lapses_and_a_reap_in_flight_may_have_been_done() {
        let [before, after] = Lapsed::of("round-0", SEED).unwrap().expected().await.unwrap();
        assert_eq!(before.len(), count());
        assert!(before.iter().zip(&after).all(|(before, after)| before.is_some() && before != after));
        for times in 0..3 {
            let (store, lapsed, acknowledged) = reaped(times).await;
            lapsed.recovered(&store, acknowledged).await.unwrap();
            let in_flight = acknowledged.saturating_sub(LIMIT as usize);
            lapsed.recovered(&store, in_flight).await.unwrap();
            lapsed.go_on(&store).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_reap_that_was_lost_and_one_that_nobody_sent_are_found() {
        let (store, lapsed, acknowledged) = reaped(2).await;
        let told = lapsed.recovered(&store, acknowledged + 1).await.unwrap_err().to_string();
        assert!(told.contains("what a reap said that it did is done"), "{told}");
        let told = lapsed.recovered(&store, 2).await.unwrap_err().to_string();
        assert!(told.contains("at most 3 by a reap in flight"), "{told}");
    }

    #[tokio::test]
    async fn a_run_that_was_half_reaped_is_found() {
        let (store, lapsed, _) = reaped(0).await;
        // Claimed under another name, which no reap does.
        let claim = Claim {
            namespace: lapsed.namespace.clone(),
            queues: vec![QueueName::new("queue-0").unwrap()],
            workflow_types: Vec::new(),
            worker_id: WorkerId::new("other").unwrap(),
            lease_length: SOON,
            limit: 1,
            steps_limit: 1,
            operation: OperationId::generate(),
        };
        assert_eq!(store.claim(claim).await.unwrap().len(), 1, "its lease has expired");
        let told = lapsed.recovered(&store, 0).await.unwrap_err().to_string();
        assert!(told.contains("run 0, whose Lease has run out"), "{told}");
    }
}
