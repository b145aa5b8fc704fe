//! The measuring itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kagzi_benches::backends::Failed;
use kagzi_sdk::{Client, Start};
use tokio::task::JoinSet;

use crate::work::{FIVE_STEPS, micros_now};

/// How many workflows go ahead of each measurement.
const WARM_UP: u32 = 500;
/// How many workflows run one after the other on the idle system.
const ALONE: u32 = 300;

/// What a load showed.
#[derive(Debug)]
pub struct Figures {
    /// Workflows a second of each round, ascending.
    pub per_second: Vec<f64>,
    /// How many were under way.
    pub in_flight: u32,
    /// From start to result under load.
    pub loaded: Latency,
    /// From start to result, one at a time.
    pub alone: Latency,
    /// From start to the first step, one at a time.
    pub wake: Latency,
    /// What the idle system cost, where there is a server to watch.
    pub idle: Option<Idle>,
}

/// A distribution in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// Half are faster.
    pub p50: f64,
    /// All but one of a hundred are faster.
    pub p99: f64,
}

/// An idle server with a hundred idle workers.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// Of one core, in per cent.
    pub cpu_percent: f64,
    /// Transactions a second at the database, where it counts them.
    pub transactions: Option<f64>,
    /// Resident memory of the server.
    pub resident_mib: f64,
}

/// Puts the load on.
pub async fn load(client: &Client, workflows: u32, in_flight: u32, rounds: u32) -> Result<Figures, Failed> {
    together(client, WARM_UP, in_flight).await?;
    let mut per_second = Vec::new();
    let mut loaded = Vec::new();
    for _ in 0..rounds.max(1) {
        let began = Instant::now();
        let samples = together(client, workflows, in_flight).await?;
        per_second.push(f64::from(workflows) / began.elapsed().as_secs_f64());
        loaded.extend(samples.into_iter().map(|sample| sample.result));
    }
    per_second.sort_by(f64::total_cmp);
    together(client, 20, 1).await?;
    let alone = together(client, ALONE, 1).await?;
    Ok(Figures {
        per_second,
        in_flight,
        loaded: latency(loaded),
        wake: latency(alone.iter().map(|sample| sample.first_step).collect()),
        alone: latency(alone.into_iter().map(|sample| sample.result).collect()),
        idle: None,
    })
}

struct Sample {
    first_step: Duration,
    result: Duration,
}

/// Runs workflows with `in_flight` callers, each of which starts the next when it has a result.
async fn together(client: &Client, workflows: u32, in_flight: u32) -> Result<Vec<Sample>, Failed> {
    let taken = Arc::new(AtomicU32::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..in_flight {
        let (client, taken) = (client.clone(), Arc::clone(&taken));
        callers.spawn(async move {
            let mut samples = Vec::new();
            while taken.fetch_add(1, Ordering::Relaxed) < workflows {
                let (began, at) = (Instant::now(), micros_now()?);
                let run = client.start(Start::workflow(FIVE_STEPS).queue("default").input(&1_u64)?).await?;
                let first_step: u64 = run.result().await?;
                let first_step = Duration::from_micros(first_step.saturating_sub(at));
                samples.push(Sample { first_step, result: began.elapsed() });
            }
            Ok::<_, Failed>(samples)
        });
    }
    let mut samples = Vec::new();
    while let Some(caller) = callers.join_next().await {
        samples.extend(caller??);
    }
    Ok(samples)
}

fn latency(mut samples: Vec<Duration>) -> Latency {
    samples.sort_unstable();
    let at = |percent: usize| {
        let index = (samples.len() * percent / 100).min(samples.len().saturating_sub(1));
        samples.get(index).map_or(0.0, |sample| sample.as_secs_f64() * 1000.0)
    };
    Latency { p50: at(50), p99: at(99) }
}
