//! Labels whose values are known beforehand, and the registry with the names of all that is in it.

use std::marker::PhantomData;

use prometheus_client::collector::Collector;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Metric, Registry};

/// What stands in front of every name.
pub(crate) const PREFIX: &str = "kagzi";

/// A label with a fixed set of values.
pub(crate) trait Label: Copy + 'static {
    /// Every value.
    const ALL: &'static [Self];
    /// The value as it is shown.
    fn as_str(self) -> &'static str;
    /// Its place in [`ALL`](Self::ALL).
    fn index(self) -> usize;
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($variant:ident => $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name { $($variant),+ }

        impl $crate::metrics::label::Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];
            fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
            fn index(self) -> usize {
                self as usize
            }
        }
    };
}
pub(crate) use label;

/// One label of a series, its value known beforehand.
pub(crate) type Pair = (&'static str, &'static str);

/// A metric for each value of a label. All are shown from the beginning, at 0, so that a rate does not
/// miss the first one; none costs a look-up.
#[derive(Debug)]
pub(crate) struct Each<L, M> {
    each: Vec<M>,
    label: PhantomData<fn() -> L>,
}

/// A counter for each value of a label.
pub(crate) type Counters<L> = Each<L, Counter>;

/// A gauge for each value of a label.
pub(crate) type Gauges<L> = Each<L, Gauge>;

impl<L: Label, M> Each<L, M> {
    pub(crate) fn of(&self, value: L) -> &M {
        &self.each[value.index()]
    }
}

/// What a metric is, for the documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Described {
    /// The name as it is scraped.
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    pub(crate) labels: &'static [&'static str],
    pub(crate) help: &'static str,
}

/// The registry while it is filled.
#[derive(Debug)]
pub(crate) struct Book {
    registry: Registry,
    described: Vec<Described>,
}

impl Default for Book {
    fn default() -> Self {
        Self { registry: Registry::with_prefix(PREFIX), described: Vec::new() }
    }
}

impl Book {
    /// Registers a metric, its name without prefix and `_total`.
    pub(crate) fn register<M>(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
        metric: M,
    ) -> M
    where
        M: Metric + TypedMetric + Clone,
    {
        self.describe(name, M::TYPE, labels, help);
        self.registry.register(name, help, metric.clone());
        metric
    }

    /// Registers what is always the same.
    pub(crate) fn register_info(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
        info: impl Metric,
    ) {
        self.describe(name, MetricType::Info, labels, help);
        self.registry.register(name, help, info);
    }

    /// Registers a counter for each value of a label.
    pub(crate) fn counters<L: Label>(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str; 1],
        help: &'static str,
    ) -> Counters<L> {
        self.each(name, labels, help)
    }

    /// Registers a gauge for each value of a label.
    pub(crate) fn gauges<L: Label>(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str; 1],
        help: &'static str,
    ) -> Gauges<L> {
        self.each(name, labels, help)
    }

    fn each<L: Label, M>(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str; 1],
        help: &'static str,
    ) -> Each<L, M>
    where
        M: Default + Clone,
        Family<[Pair; 1], M>: Metric + TypedMetric,
    {
        let family = self.register(name, labels, help, Family::<[Pair; 1], M>::default());
        let key = labels[0];
        let each = L::ALL.iter().map(|value| family.get_or_create_owned(&[(key, value.as_str())])).collect();
        Each { each, label: PhantomData }
    }

    /// Registers what makes its figures when it is asked; each of them is described apart.
    pub(crate) fn collector(&mut self, collector: impl Collector) {
        self.registry.register_collector(Box::new(collector));
    }

    /// Notes down a metric of a collector.
    pub(crate) fn describe(
        &mut self,
        name: &'static str,
        kind: MetricType,
        labels: &'static [&'static str],
        help: &'static str,
    ) {
        let (kind, suffix) = match kind {
            MetricType::Counter => ("counter", "_total"),
            MetricType::Histogram => ("histogram", ""),
            MetricType::Info => ("gauge", "_info"),
            _ => ("gauge", ""),
        };
        self.described.push(Described { name: format!("{PREFIX}_{name}{suffix}"), kind, labels, help });
    }

    pub(crate) fn close(self) -> (Registry, Vec<Described>) {
        (self.registry, self.described)
    }
}
