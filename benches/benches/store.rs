//! Stores alone: what an operation costs by itself and with others in flight, the same over every
//! backend. `cargo bench -p kagzi-benches -- sqlite` benches one.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kagzi_benches::backends::{Backend, Failed, Place};
use kagzi_benches::workload::{Names, run_workflows, start_many};
use kagzi_core::Payload;
use tokio::runtime::Runtime;

const IN_FLIGHT: [usize; 4] = [1, 16, 64, 256];

fn whole_workflows(criterion: &mut Criterion) -> Result<(), Failed> {
    let runtime = Runtime::new()?;
    for backend in Backend::ALL {
        let place = runtime.block_on(Place::fresh(backend))?;
        let store = runtime.block_on(place.open())?;
        let names = Names::new("workflows")?;
        let payload = Payload::json(r#"{"order":1234567}"#);
        let mut group = criterion.benchmark_group(format!("{}/five-step workflow", backend.name()));
        group.sample_size(10);
        for in_flight in IN_FLIGHT {
            let count = in_flight * 8;
            group.throughput(Throughput::Elements(count as u64));
            group.bench_function(BenchmarkId::new("in flight", in_flight), |bencher| {
                bencher.iter(|| {
                    runtime
                        .block_on(run_workflows(&store, &names, &payload, count, in_flight))
                        .unwrap_or_else(|error| panic!("{error}"));
                });
            });
        }
        group.finish();
        runtime.block_on(store.close())?;
    }
    Ok(())
}

fn starts(criterion: &mut Criterion) -> Result<(), Failed> {
    let runtime = Runtime::new()?;
    for backend in Backend::ALL {
        let place = runtime.block_on(Place::fresh(backend))?;
        let store = runtime.block_on(place.open())?;
        let names = Names::new("starts")?;
        let mut group = criterion.benchmark_group(format!("{}/start", backend.name()));
        group.sample_size(10);
        for size_bytes in [0, 1024, 64 * 1024, 1024 * 1024] {
            let payload = Payload::raw(vec![0x5a; size_bytes]);
            let batch = if size_bytes > 4096 { 8 } else { 64 };
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(BenchmarkId::new("payload bytes", size_bytes), |bencher| {
                bencher.iter(|| {
                    runtime
                        .block_on(start_many(&store, &names, &payload, batch))
                        .unwrap_or_else(|error| panic!("{error}"));
                });
            });
        }
        group.finish();
        runtime.block_on(store.close())?;
    }
    Ok(())
}

fn all(criterion: &mut Criterion) {
    for bench in [starts, whole_workflows] {
        if let Err(error) = bench(criterion) {
            panic!("the bench could not run: {error}");
        }
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
