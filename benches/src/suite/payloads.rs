//! What payloads cost the operations that carry them: written with a start, a step or the end of a run,
//! read with a claim or a run.

use criterion::{Criterion, Throughput};
use kagzi_core::Payload;
use tokio::runtime::Runtime;

use super::arena::{Arena, Load};
use super::operation::Operation;
use super::{group, measured};
use crate::benched::Benched;

const SIZES_BYTES: [usize; 4] = [0, 1024, 64 * 1024, 1024 * 1024];
const OPERATIONS: [Operation; 5] =
    [Operation::Start, Operation::Claim, Operation::Complete, Operation::CompleteRun, Operation::GetRun];
const IN_FLIGHT: usize = 16;

/// One group an operation.
pub fn bench(criterion: &mut Criterion, runtime: &Runtime, backend: &dyn Benched) {
    for operation in OPERATIONS {
        let mut group = group(criterion, backend, &format!("payloads/{}", operation.name()));
        for size_bytes in SIZES_BYTES {
            // A store for each size: a small payload is not to pay for the large ones before it.
            let mut arena = Arena::new(runtime, backend);
            let payload = Payload::raw(noise(size_bytes));
            let load = Load { operation, payload, in_flight: IN_FLIGHT, queue: None };
            group.throughput(match size_bytes {
                0 => Throughput::Elements(IN_FLIGHT as u64),
                _ => Throughput::Bytes((IN_FLIGHT * size_bytes) as u64),
            });
            group.bench_function(size_bytes.to_string(), |bencher| {
                bencher.iter_custom(|rounds| measured(arena.time(&load, rounds)));
            });
            measured(arena.close());
        }
        group.finish();
    }
}

/// Bytes that no store can compress, the same in every run.
fn noise(size_bytes: usize) -> Vec<u8> {
    let next = |state: &u64| Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    // The high bits are the ones that vary.
    std::iter::successors(Some(0x5a), next).map(|state| state.to_be_bytes()[0]).take(size_bytes).collect()
}
