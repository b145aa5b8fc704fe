//! What the store tells of itself, read when somebody scrapes: it costs no question to the database.

use std::fmt;

use kagzi_core::SharedStore;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::label::{Book, Pair};

const CONNECTIONS: (&str, &str) =
    ("store_connections", "Open connections to the database, by whether they are at work");
const LIMIT: (&str, &str) = ("store_connections_limit", "How many connections to the database there may be");
const BATCHES: (&str, &str) =
    ("store_batches", "Batches that were sent to the database together, as one commit");
const BATCHED: (&str, &str) =
    ("store_batched_operations", "Operations in these batches; over kagzi_store_batches_total the mean size");

/// Reads the figures of a store.
#[derive(Debug)]
pub(super) struct StoreFigures(SharedStore);

impl StoreFigures {
    pub(super) fn register(book: &mut Book, store: SharedStore) {
        book.describe(CONNECTIONS.0, MetricType::Gauge, &["state"], CONNECTIONS.1);
        book.describe(LIMIT.0, MetricType::Gauge, &[], LIMIT.1);
        book.describe(BATCHES.0, MetricType::Counter, &[], BATCHES.1);
        book.describe(BATCHED.0, MetricType::Counter, &[], BATCHED.1);
        book.collector(Self(store));
    }
}

impl Collector for StoreFigures {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let stats = self.0.stats();
        if let Some(connections) = stats.connections {
            let mut open =
                encoder.encode_descriptor(CONNECTIONS.0, CONNECTIONS.1, None, MetricType::Gauge)?;
            for (state, count) in [("in_use", connections.in_use), ("idle", connections.idle)] {
                let labels: [Pair; 1] = [("state", state)];
                ConstGauge::new(i64::from(count)).encode(open.encode_family(&labels)?)?;
            }
            let limit = encoder.encode_descriptor(LIMIT.0, LIMIT.1, None, MetricType::Gauge)?;
            ConstGauge::new(i64::from(connections.limit)).encode(limit)?;
        }
        if let Some(batches) = stats.batches {
            for ((name, help), count) in [(BATCHES, batches.commits), (BATCHED, batches.operations)] {
                let counter = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
                ConstCounter::new(count).encode(counter)?;
            }
        }
        Ok(())
    }
}
