//! The targets of the project, and which figure each is about.

use crate::metrics::{Metrics, Spread};

/// A target.
#[derive(Debug)]
pub struct Target {
    /// For people.
    pub what: &'static str,
    /// The name of the figure.
    pub figure: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// What it must keep.
    pub bound: Bound,
}

/// A bound.
#[derive(Debug)]
pub enum Bound {
    /// At least this much.
    Least(f64),
    /// At most this much.
    Most(f64),
    /// At least so many times another figure of the same round.
    LeastTimes(f64, &'static str),
    /// At most so many times another figure of the same round.
    MostTimes(f64, &'static str),
}

/// How a target was met.
#[derive(Debug)]
pub struct Reached {
    /// The figure.
    pub figure: Spread,
    /// The figure, or its ratio to the other one, in parts of the bound: from 1 on a lower bound is kept.
    pub of_bound: f64,
    /// Whether the bound is kept.
    pub kept: bool,
}

impl Target {
    /// How it was met, if it was measured.
    pub fn reached(&self, metrics: &Metrics) -> Option<Reached> {
        let figure = Spread::of(metrics.samples(self.figure)?)?;
        let (value, bound) = match self.bound {
            Bound::Least(bound) | Bound::Most(bound) => (figure.median, bound),
            Bound::LeastTimes(bound, other) | Bound::MostTimes(bound, other) => {
                (Spread::of(&metrics.ratios(self.figure, other)?)?.median, bound)
            }
        };
        let kept = match self.bound {
            Bound::Least(_) | Bound::LeastTimes(..) => value >= bound,
            Bound::Most(_) | Bound::MostTimes(..) => value <= bound,
        };
        Some(Reached { figure, of_bound: value / bound, kept })
    }
}

impl Bound {
    /// For people.
    pub fn describe(&self) -> String {
        match self {
            Self::Least(bound) => format!("at least {bound}"),
            Self::Most(bound) => format!("at most {bound}"),
            Self::LeastTimes(bound, other) => format!("at least {bound} x {other}"),
            Self::MostTimes(bound, other) => format!("at most {bound} x {other}"),
        }
    }
}

const fn target(what: &'static str, figure: &'static str, unit: &'static str, bound: Bound) -> Target {
    Target { what, figure, unit, bound }
}

/// All of them.
pub const TARGETS: &[Target] = &[
    target(
        "store, Postgres: complete a step and begin the next, 64 in flight",
        "postgres.store.steps_per_second",
        "/s",
        Bound::LeastTimes(3.0, "postgres.pgbench.inserts_per_second"),
    ),
    target(
        "store, SQLite: complete a step and begin the next, 64 in flight",
        "sqlite.store.steps_per_second",
        "/s",
        Bound::LeastTimes(15.0, "sqlite.plain.rows_per_second"),
    ),
    target(
        "store, Postgres: claim and complete runs, in batches",
        "postgres.store.claims_per_second",
        "/s",
        Bound::LeastTimes(3.0, "postgres.pgbench.claims_per_second"),
    ),
    target(
        "workflows over gRPC, Postgres",
        "postgres.grpc.workflows_per_second",
        "/s",
        Bound::Least(4_000.0),
    ),
    target("workflows over gRPC, SQLite", "sqlite.grpc.workflows_per_second", "/s", Bound::Least(8_000.0)),
    target(
        "workflows embedded, SQLite",
        "sqlite.embedded.workflows_per_second",
        "/s",
        Bound::Least(12_000.0),
    ),
    target(
        "workflows embedded, SQLite, beside plain SQL",
        "sqlite.embedded.workflows_per_second",
        "/s",
        Bound::LeastTimes(0.6, "sqlite.plain.workflows_per_second"),
    ),
    target(
        "workflows embedded, Postgres",
        "postgres.embedded.workflows_per_second",
        "/s",
        Bound::Least(5_000.0),
    ),
    target(
        "workflows over gRPC at 4 times the load, Postgres",
        "postgres.grpc.overload.workflows_per_second",
        "/s",
        Bound::LeastTimes(0.8, "postgres.grpc.workflows_per_second"),
    ),
    target(
        "workflows over gRPC at 4 times the load, SQLite",
        "sqlite.grpc.overload.workflows_per_second",
        "/s",
        Bound::LeastTimes(0.8, "sqlite.grpc.workflows_per_second"),
    ),
    target("alone over gRPC, Postgres, p50", "postgres.grpc.alone_p50_ms", "ms", Bound::Most(5.0)),
    target("alone over gRPC, SQLite, p50", "sqlite.grpc.alone_p50_ms", "ms", Bound::Most(3.0)),
    target("alone embedded, Postgres, p50", "postgres.embedded.alone_p50_ms", "ms", Bound::Most(3.0)),
    target("alone embedded, SQLite, p50", "sqlite.embedded.alone_p50_ms", "ms", Bound::Most(2.0)),
    target(
        "alone over gRPC, Postgres, p99",
        "postgres.grpc.alone_p99_ms",
        "ms",
        Bound::MostTimes(3.0, "postgres.grpc.alone_p50_ms"),
    ),
    target(
        "alone over gRPC, SQLite, p99",
        "sqlite.grpc.alone_p99_ms",
        "ms",
        Bound::MostTimes(3.0, "sqlite.grpc.alone_p50_ms"),
    ),
    target("start to first step, Postgres, p50", "postgres.grpc.first_step_p50_ms", "ms", Bound::Most(5.0)),
    target("start to first step, SQLite, p50", "sqlite.grpc.first_step_p50_ms", "ms", Bound::Most(5.0)),
    target(
        "claims among finished runs, Postgres",
        "postgres.growth.large_claims_per_second",
        "/s",
        Bound::LeastTimes(0.8, "postgres.growth.empty_claims_per_second"),
    ),
    target(
        "claims among finished runs, SQLite",
        "sqlite.growth.large_claims_per_second",
        "/s",
        Bound::LeastTimes(0.8, "sqlite.growth.empty_claims_per_second"),
    ),
    target("waking 100,000 sleepers, Postgres", "postgres.timers.wake_seconds", "s", Bound::Most(5.0)),
    target("waking 100,000 sleepers, SQLite", "sqlite.timers.wake_seconds", "s", Bound::Most(5.0)),
    target(
        "claims while sleepers wake, Postgres, p99",
        "postgres.timers.claim_p99_ms",
        "ms",
        Bound::Most(50.0),
    ),
    target("claims while sleepers wake, SQLite, p99", "sqlite.timers.claim_p99_ms", "ms", Bound::Most(50.0)),
    target("reaping 100,000 leases, Postgres", "postgres.timers.reap_seconds", "s", Bound::Most(5.0)),
    target("reaping 100,000 leases, SQLite", "sqlite.timers.reap_seconds", "s", Bound::Most(5.0)),
    target(
        "a quiet tenant beside a noisy one, Postgres, p99",
        "postgres.tenants.beside_p99_ms",
        "ms",
        Bound::MostTimes(2.0, "postgres.tenants.alone_p99_ms"),
    ),
    target(
        "a quiet tenant beside a noisy one, SQLite, p99",
        "sqlite.tenants.beside_p99_ms",
        "ms",
        Bound::MostTimes(2.0, "sqlite.tenants.alone_p99_ms"),
    ),
    target(
        "a quiet tenant beside readers, Postgres, p99",
        "postgres.tenants.beside_readers_p99_ms",
        "ms",
        Bound::MostTimes(2.0, "postgres.tenants.alone_p99_ms"),
    ),
    target(
        "a quiet tenant beside readers, SQLite, p99",
        "sqlite.tenants.beside_readers_p99_ms",
        "ms",
        Bound::MostTimes(2.0, "sqlite.tenants.alone_p99_ms"),
    ),
    target("idle server, Postgres", "postgres.idle.core_percent", "% of a core", Bound::Most(1.0)),
    target("idle server, SQLite", "sqlite.idle.core_percent", "% of a core", Bound::Most(1.0)),
    target(
        "idle server, Postgres, at the database",
        "postgres.idle.transactions_per_second",
        "/s",
        Bound::Most(2.0),
    ),
    target(
        "memory with 100,000 pending and 1,000 leased, Postgres",
        "postgres.idle.full_mib",
        "MiB",
        Bound::Most(150.0),
    ),
    target(
        "memory with 100,000 pending and 1,000 leased, SQLite",
        "sqlite.idle.full_mib",
        "MiB",
        Bound::Most(150.0),
    ),
    target("size of the binary", "sqlite.idle.binary_mib", "MiB", Bound::Most(40.0)),
    target("start to ready, SQLite", "sqlite.idle.ready_ms", "ms", Bound::Most(200.0)),
];

#[cfg(test)]
mod tests {
    use super::*;
    use kagzi_benches::backends::Backend;

    #[test]
    fn a_ratio_keeps_its_bound_or_not() {
        let mut metrics = Metrics::default();
        metrics.add(Backend::Sqlite, "store.steps_per_second", 150.0);
        metrics.add(Backend::Sqlite, "plain.rows_per_second", 10.0);
        let steps = TARGETS.iter().find(|target| target.figure == "sqlite.store.steps_per_second").unwrap();
        let reached = steps.reached(&metrics).unwrap();
        assert!(reached.kept && (reached.of_bound - 1.0).abs() < 1e-9);
        metrics.add(Backend::Sqlite, "store.steps_per_second", 10.0);
        metrics.add(Backend::Sqlite, "plain.rows_per_second", 10.0);
        metrics.add(Backend::Sqlite, "store.steps_per_second", 10.0);
        metrics.add(Backend::Sqlite, "plain.rows_per_second", 10.0);
        assert!(!steps.reached(&metrics).unwrap().kept);
    }

    #[test]
    fn what_was_not_measured_is_not_judged() {
        assert!(TARGETS.iter().all(|target| target.reached(&Metrics::default()).is_none()));
    }
}
