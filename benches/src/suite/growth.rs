//! Claims beside many finished runs of the same queue.

use criterion::{Criterion, Throughput};
use kagzi_core::Payload;
use tokio::runtime::Runtime;

use super::arena::{Arena, Load};
use super::operation::Operation;
use super::{from_environment, group, measured};
use crate::backends::Failed;
use crate::benched::{Benched, FILLED_QUEUE};

/// How many finished runs the table holds.
const SIZES: [u32; 2] = [0, 1_000_000];
/// One more size, which may take minutes to fill, such as ten million.
const LARGEST: &str = "KAGZI_BENCH_FINISHED_RUNS";
const IN_FLIGHT: usize = 16;
/// How many rounds an iteration has: filling takes so long that criterion's quick mode is content with one.
const ROUNDS: u64 = 64;

/// One table, which grows from size to size.
pub fn bench(criterion: &mut Criterion, runtime: &Runtime, backend: &dyn Benched) -> Result<(), Failed> {
    let mut sizes: Vec<u32> = SIZES.into_iter().chain(from_environment(LARGEST)?).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let mut arena = Arena::new(runtime, backend);
    let mut filled = 0;
    let mut group = group(criterion, backend, "growth/claim");
    for size in sizes.into_iter().filter(|size| *size <= backend.most_finished_runs()) {
        let load = Load {
            operation: Operation::Claim,
            payload: Payload::json("{}"),
            in_flight: IN_FLIGHT,
            queue: Some(FILLED_QUEUE),
        };
        group.throughput(Throughput::Elements(IN_FLIGHT as u64 * ROUNDS));
        group.bench_function(size.to_string(), |bencher| {
            if filled < size {
                measured(
                    arena
                        .bed()
                        .and_then(|bed| runtime.block_on(bed.fill_with_finished_runs(filled + 1, size))),
                );
                filled = size;
                // The caches hold what was written last; claims are to find what they need there.
                measured(arena.time(&load, ROUNDS));
            }
            bencher.iter_custom(|times| measured(arena.time(&load, times * ROUNDS)));
        });
    }
    group.finish();
    arena.close()
}
