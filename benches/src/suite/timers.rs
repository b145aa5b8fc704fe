//! Many sleepers, and many expired leases, due in one moment.

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use kagzi_core::{Clock as _, ManualClock, Payload, SharedStore};
use tokio::runtime::Runtime;

use super::{from_environment, group, measured};
use crate::backends::Failed;
use crate::benched::Benched;
use crate::workload::{Names, claim_and_hold, reap_all, start_delayed, start_many};

/// How many are due, unless the variable says so.
const DUE: u32 = 100_000;
const DUE_VARIABLE: &str = "KAGZI_BENCH_DUE";
/// How many are started, or claimed, in one go.
const BATCH: u32 = 1_000;
/// How long after the start all are due; longer than the leases.
const LATER: Duration = Duration::from_hours(1);

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Sleepers,
    Leases,
}

/// How long it takes to wake all sleepers, and to take back all leases.
pub fn bench(criterion: &mut Criterion, runtime: &Runtime, backend: &dyn Benched) -> Result<(), Failed> {
    let count = from_environment(DUE_VARIABLE)?.unwrap_or(DUE);
    let mut group = group(criterion, backend, "timers");
    group.throughput(Throughput::Elements(u64::from(count)));
    for (name, due) in [("wake", Due::Sleepers), ("reap", Due::Leases)] {
        group.bench_function(format!("{name}/{count}"), |bencher| {
            bencher.iter_custom(|rounds| {
                (0..rounds).map(|_| measured(runtime.block_on(treat(backend, due, count)))).sum()
            });
        });
    }
    group.finish();
    Ok(())
}

/// In a store of their own, so that every round begins with the same.
async fn treat(backend: &dyn Benched, due: Due, count: u32) -> Result<Duration, Failed> {
    let clock = Arc::new(ManualClock::default());
    let bed = backend.open(Some(clock.clone())).await?;
    let store = bed.store();
    make(&store, due, count, &clock).await?;
    clock.advance(LATER);
    let began = Instant::now();
    let treated = reap_all(&store).await?;
    let elapsed = began.elapsed();
    store.close().await?;
    if treated == count { Ok(elapsed) } else { Err(format!("{treated} of {count} were treated").into()) }
}

async fn make(store: &SharedStore, due: Due, count: u32, clock: &ManualClock) -> Result<(), Failed> {
    let names = Names::new("timers")?;
    let payload = Payload::json("{}");
    let at = clock.now().saturating_add(LATER);
    let mut made = 0;
    while made < count {
        let batch = (count - made).min(BATCH);
        match due {
            Due::Sleepers => start_delayed(store, &names, &payload, batch as usize, at).await?,
            Due::Leases => {
                start_many(store, &names, &payload, batch as usize).await?;
                let mut held = 0;
                while held < batch as usize {
                    held += claim_and_hold(store, &names, batch).await?;
                }
            }
        }
        made += batch;
    }
    Ok(())
}
