//! Whole workflows of five steps: eight durable writes each.

use std::time::Instant;

use criterion::{Criterion, Throughput};
use kagzi_core::Payload;
use tokio::runtime::Runtime;

use super::arena::Arena;
use super::{IN_FLIGHT, group, measured};
use crate::backends::Failed;
use crate::benched::Benched;
use crate::workload::{Names, run_workflows};

/// As many workflows a round as are in flight.
pub fn bench(criterion: &mut Criterion, runtime: &Runtime, backend: &dyn Benched) -> Result<(), Failed> {
    let names = Names::new("workflows")?;
    let payload = Payload::json(r#"{"order":1234567}"#);
    let mut arena = Arena::new(runtime, backend);
    let mut group = group(criterion, backend, "workflows");
    for in_flight in IN_FLIGHT {
        let mut time = |rounds: u64| {
            let count = in_flight * usize::try_from(rounds)?;
            let store = arena.bed()?.store();
            let began = Instant::now();
            runtime.block_on(run_workflows(&store, &names, &payload, count, in_flight))?;
            Ok(began.elapsed())
        };
        group.throughput(Throughput::Elements(in_flight as u64));
        group.bench_function(in_flight.to_string(), |bencher| {
            bencher.iter_custom(|rounds| measured(time(rounds)));
        });
    }
    group.finish();
    arena.close()
}
