//! The figures of kagzi beside their yardsticks and targets, in one go: `cargo xtask bench`.
//!
//! Absolute figures drift from machine to machine and from minute to minute. So every round measures
//! everything once, yardsticks and kagzi in turn, and a ratio is taken within its round; the table shows
//! medians over the rounds and how far they spread.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it reports to the person who runs it")]

mod end_to_end;
mod growth;
mod idle;
mod metrics;
mod plot;
mod processes;
mod report;
mod store;
mod targets;
mod tenants;
mod timers;
mod yardstick;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use kagzi_benches::backends::{Backend, Failed};
use metrics::Metrics;
use tenants::Tenants;

/// What to measure.
#[derive(Debug, Parser)]
struct Arguments {
    /// Which stores.
    #[arg(long, value_delimiter = ',', default_value = "sqlite,postgres")]
    stores: Vec<Backend>,
    /// Which parts; all of them unless named.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// How many rounds; the table shows medians and the spread.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// How many workflows a load finishes.
    #[arg(long, default_value_t = 10_000)]
    workflows: u32,
    /// How many workflows are under way at once, where the part does not say.
    #[arg(long, default_value_t = 256)]
    in_flight: u32,
    /// Finished runs that the large table holds.
    #[arg(long, default_value_t = 10_000_000)]
    finished_runs: u32,
    /// How many sleepers wake, and how many leases expire, at once.
    #[arg(long, default_value_t = 100_000)]
    due: u32,
    /// For how long the idle system is watched, in seconds.
    #[arg(long, default_value_t = 20)]
    idle_seconds: u64,
    /// How many workflows of a quiet tenant are timed in each turn, alone and beside a noisy one.
    #[arg(long, default_value_t = 300)]
    quiet_workflows: u32,
    /// How many workflows the quiet tenant starts a second.
    #[arg(long, default_value_t = 5)]
    quiet_rate: u32,
    /// How many calls a second a tenant may make, which the noisy one uses up.
    #[arg(long, default_value_t = 500)]
    tenant_limit: u32,
    /// How long everything comes to rest when the noisy tenant has begun, and when it has ended.
    #[arg(long, default_value_t = 3)]
    settle_seconds: u64,
    /// Where the reports go.
    #[arg(long, default_value = "bench-results")]
    output: PathBuf,
}

/// A part of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// pgbench and plain SQLite.
    Yardsticks,
    /// The stores alone, 64 in flight.
    Store,
    /// Whole workflows, over gRPC and embedded.
    EndToEnd,
    /// Throughput against the number in flight.
    Curve,
    /// What an idle server costs, and how soon one is ready.
    Idle,
    /// Many sleepers and expired leases due at once.
    Timers,
    /// Claims among many finished runs.
    Growth,
    /// A quiet tenant beside a noisy one.
    Tenants,
}

impl Arguments {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let measured = runtime.map_err(Failed::from).and_then(|runtime| runtime.block_on(measure(&arguments)));
    match measured.and_then(|metrics| report::write(&metrics, &arguments.output)) {
        Ok(table) => {
            println!("{table}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("figures: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(arguments: &Arguments) -> Result<Metrics, Failed> {
    let mut metrics = Metrics::default();
    for round in 1..=arguments.rounds.max(1) {
        for backend in &arguments.stores {
            eprintln!("round {round} of {}: {}", arguments.rounds, backend.name());
            if arguments.wants(Part::Yardsticks) {
                yardstick::measure(*backend, &mut metrics).await?;
            }
            if arguments.wants(Part::Store) {
                store::measure(*backend, &mut metrics).await?;
            }
            if arguments.wants(Part::EndToEnd) {
                end_to_end::measure(*backend, arguments.workflows, arguments.in_flight, &mut metrics).await?;
            }
        }
    }
    // What needs no repeating, or takes long.
    for backend in &arguments.stores {
        if arguments.wants(Part::Curve) {
            eprintln!("throughput against in flight: {}", backend.name());
            end_to_end::curve(*backend, arguments.workflows, &mut metrics).await?;
        }
        if arguments.wants(Part::Idle) {
            eprintln!("idle: {}", backend.name());
            idle::measure(*backend, arguments.idle_seconds, &mut metrics).await?;
        }
        if arguments.wants(Part::Timers) {
            eprintln!("timers: {}", backend.name());
            timers::measure(*backend, arguments.due, &mut metrics).await?;
        }
        if arguments.wants(Part::Tenants) {
            eprintln!("tenants: {}", backend.name());
            let tenants = Tenants {
                workflows: arguments.quiet_workflows,
                per_second: arguments.quiet_rate,
                limit: arguments.tenant_limit,
                settle: Duration::from_secs(arguments.settle_seconds),
                turns: arguments.rounds,
                noisy_in_flight: arguments.in_flight,
            };
            tenants::measure(*backend, tenants, &mut metrics).await?;
        }
        if arguments.wants(Part::Growth) {
            eprintln!("growth: {}", backend.name());
            growth::measure(*backend, arguments.finished_runs, &mut metrics).await?;
        }
    }
    Ok(metrics)
}
