//! The circuit breaker: how it stands, and what it kept from the store.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::Metrics;
use super::label::{Book, Label as _, Pair, label};

label! {
    /// How the breaker stands.
    BreakerState { Closed => "closed", Open => "open", HalfOpen => "half_open" }
}

/// The figures of the breaker.
#[derive(Debug)]
pub(super) struct BreakerFigures {
    state: Family<[Pair; 1], Gauge>,
    opened: Counter,
    refused: Counter,
    cut_off: Counter,
}

impl BreakerFigures {
    pub(super) fn register(book: &mut Book) -> Self {
        Self {
            state: book.register(
                "breaker_state",
                &["state"],
                "1 for the state of the circuit breaker over the store; closed: calls pass",
                Family::default(),
            ),
            opened: book.register(
                "breaker_opened",
                &[],
                "How often the store was found away after it had been well",
                Counter::default(),
            ),
            refused: book.register(
                "breaker_refusals",
                &[],
                "Calls that were refused at once while the store was away",
                Counter::default(),
            ),
            cut_off: book.register(
                "breaker_cut_off",
                &[],
                "Calls that waited for the store when it was found away, and were answered without it",
                Counter::default(),
            ),
        }
    }
}

impl Metrics {
    pub(crate) fn breaker_is(&self, now: BreakerState) {
        for state in BreakerState::ALL {
            let gauge = self.0.breaker.state.get_or_create_owned(&[("state", state.as_str())]);
            gauge.set(i64::from(*state == now));
        }
    }

    pub(crate) fn breaker_opened(&self) {
        self.0.breaker.opened.inc();
    }

    pub(crate) fn breaker_refused(&self) {
        self.0.breaker.refused.inc();
    }

    pub(crate) fn breaker_cut_off(&self) {
        self.0.breaker.cut_off.inc();
    }
}
