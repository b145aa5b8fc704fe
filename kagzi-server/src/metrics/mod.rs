//! What a server counts, in the words of Prometheus: `docs/operations.md` lists it all.
//!
//! No label holds what grows without bound: no run, step, worker or caller has series of its own, and
//! only so many queues do.

mod breaker;
mod depths;
mod files;
mod label;
mod lifecycle;
mod metered;
mod operation;
mod queues;
mod requests;
mod store;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use kagzi_core::{RunState, SharedStore};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use breaker::BreakerFigures;
pub(crate) use breaker::BreakerState;
use depths::Depths;
use files::FileFigures;
pub(crate) use files::NamedFile;
pub(crate) use label::Label;
use label::{Book, Described};
use lifecycle::Lifecycle;
pub(crate) use metered::Metered;
pub(crate) use operation::Operation;
use operation::Operations;
use queues::Queues;
use requests::Requests;
pub(crate) use requests::{OpenConnection, Shown, Wait};
use store::StoreFigures;

/// The media type of [`Metrics::text`].
pub(crate) const CONTENT_TYPE: &str = prometheus_client::encoding::prometheus_text::CONTENT_TYPE;

/// Everything that a server counts. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Metrics(Arc<Figures>);

#[derive(Debug)]
struct Figures {
    registry: Registry,
    #[cfg_attr(not(test), expect(dead_code, reason = "the documentation is checked against it"))]
    described: Vec<Described>,
    operations: Operations,
    lifecycle: Lifecycle,
    queues: Queues,
    depths: Depths,
    collect_failures: Counter,
    requests: Requests,
    breaker: BreakerFigures,
    files: FileFigures,
}

impl Metrics {
    /// Nothing counted yet, of a server over `store`.
    pub(crate) fn new(store: &SharedStore) -> Self {
        let mut book = Book::default();
        let labels = [("version", env!("CARGO_PKG_VERSION")), ("backend", store.backend())];
        book.register_info(
            "build",
            &["version", "backend"],
            "The version of kagzi and its store",
            Info::new(labels),
        );
        let operations = Operations::register(&mut book);
        let lifecycle = Lifecycle::register(&mut book);
        let queues = Queues::register(&mut book);
        let (depths, collect_failures) = Depths::register(&mut book);
        let requests = Requests::register(&mut book);
        let breaker = BreakerFigures::register(&mut book);
        let files = FileFigures::register(&mut book);
        StoreFigures::register(&mut book, Arc::clone(store));
        let (registry, described) = book.close();
        Self(Arc::new(Figures {
            registry,
            described,
            operations,
            lifecycle,
            queues,
            depths,
            collect_failures,
            requests,
            breaker,
            files,
        }))
    }

    /// Counts finished runs that retention removed.
    pub(crate) fn expired(&self, state: RunState, runs: u64) {
        self.0.lifecycle.expired(state, runs);
    }

    /// All of it in the Prometheus text format.
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::prometheus_text::encode(&mut text, &self.0.registry)?;
        Ok(text)
    }
}
