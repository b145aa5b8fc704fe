//! The benches, the same over every backend that is [`Benched`].
//!
//! One iteration is a round of as many operations as are in flight, so that the time is that of the
//! round and the throughput that of single operations. What an operation consumes is made before, out
//! of the time. Every group has a fresh store, which is opened only if the filter wants the group.

mod arena;
mod call;
mod growth;
mod operation;
mod payloads;
mod timers;
mod workflows;

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode};
use tokio::runtime::Runtime;

use crate::backends::Failed;
use crate::benched::Benched;

/// How many operations are in flight, from each alone.
const IN_FLIGHT: [usize; 4] = [1, 16, 64, 256];

/// Benches `backends` by the arguments of the command line, which are criterion's.
///
/// # Errors
///
/// No runtime, or a number in the environment that is none. A bench whose store fails panics.
pub fn bench(backends: &[&dyn Benched]) -> Result<(), Failed> {
    let runtime = Runtime::new()?;
    let mut criterion = Criterion::default().configure_from_args();
    for backend in backends {
        operation::bench(&mut criterion, &runtime, *backend);
        payloads::bench(&mut criterion, &runtime, *backend);
        workflows::bench(&mut criterion, &runtime, *backend)?;
        timers::bench(&mut criterion, &runtime, *backend)?;
        growth::bench(&mut criterion, &runtime, *backend)?;
    }
    criterion.final_summary();
    Ok(())
}

/// A group of benches that each take milliseconds or more, most of the time for what is made before.
fn group<'a>(
    criterion: &'a mut Criterion,
    backend: &dyn Benched,
    topic: &str,
) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(format!("{}/{topic}", backend.name()));
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    group
}

/// A number that the environment may give.
fn from_environment(name: &str) -> Result<Option<u32>, Failed> {
    match std::env::var(name) {
        Ok(text) => text.parse().map(Some).map_err(|error| format!("{name}={text}: {error}").into()),
        Err(_) => Ok(None),
    }
}

/// Benches cannot answer an error, and one that went on would give a figure of something else.
fn measured<T>(outcome: Result<T, Failed>) -> T {
    outcome.unwrap_or_else(|error| panic!("the bench could not run: {error}"))
}
