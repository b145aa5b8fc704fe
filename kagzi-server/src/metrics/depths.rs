//! What has to be asked of the store: how full the queues are, and what is overdue. Asked by the server
//! itself every so often, however many scrape it, and shown until the next time.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kagzi_core::{Namespace, QueueDepth, SharedStore, StoreError, Timestamp};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::Metrics;
use super::label::Book;
use super::queues::{Queues, Shown, labels};

const RUNS: (&str, &str) = ("queue_runs", "Live runs in a queue, by state");
const OLDEST: (&str, &str) = (
    "queue_oldest_due_age_seconds",
    "For how long the run that waits longest in a queue could have been claimed; 0 if none waits; of queues shown as one, those that are paused are left out",
);
const PAUSED: (&str, &str) = (
    "queue_paused",
    "1 while claims take nothing from a queue because an operator paused it, else 0; of queues shown as one, how many",
);
const LAG: (&str, &str) = (
    "reaper_lag_seconds",
    "For how long the earliest sleep, lease, deadline or timeout that has passed waits to be put in order; 0 if none does",
);

/// One queue, or several that are shown as one.
#[derive(Clone, Debug, Default, PartialEq)]
struct Depth {
    pending: u64,
    sleeping: u64,
    running: u64,
    oldest: Duration,
    paused: u64,
}

/// What a look found.
#[derive(Debug, Default)]
struct Found {
    queues: BTreeMap<Shown, Depth>,
    reaper_lag: Duration,
}

/// What the last look found, if the store answered it.
#[derive(Clone, Debug, Default)]
pub(super) struct Depths(Arc<Mutex<Option<Found>>>);

impl Depths {
    pub(super) fn register(book: &mut Book) -> (Self, Counter) {
        let depths = Self::default();
        book.describe(RUNS.0, MetricType::Gauge, &["namespace", "queue", "state"], RUNS.1);
        book.describe(OLDEST.0, MetricType::Gauge, &["namespace", "queue"], OLDEST.1);
        book.describe(PAUSED.0, MetricType::Gauge, &["namespace", "queue"], PAUSED.1);
        book.describe(LAG.0, MetricType::Gauge, &[], LAG.1);
        book.collector(depths.clone());
        let failures = book.register(
            "collect_failures",
            &[],
            "Looks at queues and overdue runs that the store did not answer; meanwhile their figures are absent",
            Counter::default(),
        );
        (depths, failures)
    }

    fn set(&self, found: Option<Found>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = found;
    }
}

impl Found {
    /// What waits in a queue that is paused waits because an operator wants it to. Its own series say so, while among many that
    /// are shown as one it would hide how long others wait.
    fn add(&mut self, name: Shown, depth: &QueueDepth, now: Timestamp) {
        let is_one_of_many = name.1.is_none();
        let shown = self.queues.entry(name).or_default();
        shown.pending += depth.pending;
        shown.sleeping += depth.sleeping;
        shown.running += depth.running;
        shown.paused += u64::from(depth.pause.is_some());
        if is_one_of_many && depth.pause.is_some() {
            return;
        }
        let age = depth.oldest_due_at.map_or(Duration::ZERO, |due_at| now.saturating_since(due_at));
        shown.oldest = shown.oldest.max(age);
    }
}

impl Metrics {
    /// Looks at the queues of `namespaces` every `interval`, for ever.
    pub(crate) async fn collect(&self, store: &SharedStore, namespaces: &[Namespace], interval: Duration) {
        loop {
            self.collect_now(store, namespaces, interval).await;
            tokio::time::sleep(interval).await;
        }
    }

    pub(super) async fn collect_now(
        &self,
        store: &SharedStore,
        namespaces: &[Namespace],
        patience: Duration,
    ) {
        let looked = tokio::time::timeout(patience, look(store, namespaces, &self.0.queues)).await;
        let found = looked.ok().and_then(Result::ok);
        if found.is_none() {
            // Health tells of a store that is away; old figures would look like a calm queue.
            self.0.collect_failures.inc();
        }
        self.0.depths.set(found);
    }
}

async fn look(store: &SharedStore, namespaces: &[Namespace], queues: &Queues) -> Result<Found, StoreError> {
    let next = store.next_due().await?;
    let reaper_lag = next.due_at.map_or(Duration::ZERO, |due_at| next.now.saturating_since(due_at));
    let mut found = Found { reaper_lag, ..Found::default() };
    for namespace in namespaces {
        for depth in store.queue_depths(namespace).await? {
            found.add(queues.name(namespace, &depth.queue), &depth, next.now);
        }
    }
    // A queue that has run empty is shown as empty, not left as it was.
    for name in queues.all() {
        found.queues.entry(name).or_default();
    }
    Ok(found)
}

impl Collector for Depths {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(found) = found.as_ref() else { return Ok(()) };
        if !found.queues.is_empty() {
            let mut runs = encoder.encode_descriptor(RUNS.0, RUNS.1, None, MetricType::Gauge)?;
            for (name, depth) in &found.queues {
                let [namespace, queue] = labels(name);
                for (state, count) in
                    [("pending", depth.pending), ("sleeping", depth.sleeping), ("running", depth.running)]
                {
                    let labels = [namespace.clone(), queue.clone(), ("state", state.to_owned())];
                    let count = i64::try_from(count).unwrap_or(i64::MAX);
                    ConstGauge::new(count).encode(runs.encode_family(&labels)?)?;
                }
            }
            let mut oldest = encoder.encode_descriptor(OLDEST.0, OLDEST.1, None, MetricType::Gauge)?;
            for (name, depth) in &found.queues {
                let age = ConstGauge::new(depth.oldest.as_secs_f64());
                age.encode(oldest.encode_family(&labels(name))?)?;
            }
        }
        if !found.queues.is_empty() {
            let mut paused = encoder.encode_descriptor(PAUSED.0, PAUSED.1, None, MetricType::Gauge)?;
            for (name, depth) in &found.queues {
                let count = ConstGauge::new(i64::try_from(depth.paused).unwrap_or(i64::MAX));
                count.encode(paused.encode_family(&labels(name))?)?;
            }
        }
        let lag = encoder.encode_descriptor(LAG.0, LAG.1, None, MetricType::Gauge)?;
        ConstGauge::new(found.reaper_lag.as_secs_f64()).encode(lag)
    }
}

#[cfg(test)]
mod tests {
    use kagzi_core::{Pause, QueueName};

    use super::*;

    #[test]
    fn a_queue_that_is_paused_hides_no_other_that_is_shown_as_one_with_it() {
        let [paused_at, due_at, now] =
            [0, 60, 100].map(|second| Timestamp::from_micros(second * 1_000_000).unwrap());
        let depth = |queue: &str, since: Timestamp, pause: bool| QueueDepth {
            pending: 1,
            oldest_due_at: Some(since),
            pause: pause.then(|| Pause { reason: String::new(), since: paused_at }),
            ..QueueDepth::empty(QueueName::new(queue).unwrap())
        };
        let (namespace, mut found) = (Namespace::new("n").unwrap(), Found::default());
        let others = (namespace.clone(), None);
        found.add(others.clone(), &depth("paused", paused_at, true), now);
        found.add(others.clone(), &depth("open", due_at, false), now);
        let shown = &found.queues[&others];
        assert_eq!((shown.pending, shown.paused, shown.oldest), (2, 1, Duration::from_secs(40)));
        // By itself its series say both.
        let own = (namespace, Some(QueueName::new("paused").unwrap()));
        found.add(own.clone(), &depth("paused", paused_at, true), now);
        assert_eq!((found.queues[&own].paused, found.queues[&own].oldest), (1, Duration::from_secs(100)));
    }
}
