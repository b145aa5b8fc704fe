//! What a noisy tenant costs a quiet one: the time from start to result of the quiet one's workflows, a few a
//! second, alone, beside one that has as many workflows under way as it can, and beside one that reads all it has and polls
//! for what it has not, each up to the limit of its namespace.
//!
//! The server, the worker of each tenant and the callers of the noisy one are processes of their own; both tenants
//! speak gRPC with the one server. Times alone and beside either are taken in turn, so that drift of the machine is in both.

use std::time::{Duration, Instant};

use kagzi_benches::backends::{Backend, Failed, Place};
use kagzi_core::{RunFilter, RunState};
use kagzi_sdk::{Client, Start};
use tokio::time::{MissedTickBehavior, interval};

use crate::metrics::Metrics;
use crate::processes::Process;

/// The tenants.
const QUIET: &str = "quiet";
const NOISY: &str = "noisy";

/// How the tenants behave.
#[derive(Clone, Copy, Debug)]
pub struct Tenants {
    /// How many workflows of the quiet one are timed in each turn.
    pub workflows: u32,
    /// How many the quiet one starts a second.
    pub per_second: u32,
    /// How many calls a second a namespace may make.
    pub limit: u32,
    /// How long the noisy one has to use up its burst, and the server to come to rest after it.
    pub settle: Duration,
    /// How often times are taken alone and beside.
    pub turns: u32,
    /// How many workflows the noisy one has under way, or waits to start, at once; and how many readers it has.
    pub noisy_in_flight: u32,
}

/// Both, in turn. A store in memory is not what tenants share.
pub async fn measure(backend: Backend, tenants: Tenants, metrics: &mut Metrics) -> Result<(), Failed> {
    if backend == Backend::Memory {
        return Ok(());
    }
    let place = Place::fresh(backend).await?;
    let settings = [
        ("KAGZI_NAMESPACES", format!("{QUIET},{NOISY}")),
        ("KAGZI_RATE_PER_NAMESPACE", tenants.limit.max(1).to_string()),
    ];
    let server = Process::server_with(&place, &settings)?;
    let client = Client::connect(server.url()).await?.in_namespace(QUIET)?;
    let noisy_client = client.clone().in_namespace(NOISY)?;
    let _worker = Process::worker(&server, QUIET, tenants.noisy_in_flight)?;
    let few = Tenants { workflows: tenants.per_second.saturating_mul(2), ..tenants };
    take_times(&client, few).await?;
    for _ in 0..tenants.turns.max(1) {
        let alone = take_times(&client, tenants).await?;
        let (before, began) = (finished(&noisy_client).await?, Instant::now());
        let noisy_worker = Process::worker(&server, NOISY, tenants.noisy_in_flight)?;
        let mut noisy = Process::callers(&server, NOISY, tenants.noisy_in_flight)?;
        tokio::time::sleep(tenants.settle).await;
        let beside = take_times(&client, tenants).await?;
        noisy.still_there()?;
        drop((noisy, noisy_worker));
        let rate = f64::from(finished(&noisy_client).await? - before) / began.elapsed().as_secs_f64();
        metrics.add(backend, "tenants.noisy_workflows_per_second", rate);
        tokio::time::sleep(tenants.settle).await;
        let mut readers = Process::readers(&server, NOISY, tenants.noisy_in_flight)?;
        tokio::time::sleep(tenants.settle).await;
        let beside_readers = take_times(&client, tenants).await?;
        readers.still_there()?;
        drop(readers);
        for (when, times) in [("alone", &alone), ("beside", &beside), ("beside_readers", &beside_readers)] {
            for (name, part) in [("p50_ms", 50), ("p99_ms", 99)] {
                metrics.add(backend, &format!("tenants.{when}_{name}"), at(times, part));
            }
        }
        metrics.add(backend, "tenants.p99_ratio", at(&beside, 99) / at(&alone, 99));
        metrics.add(backend, "tenants.readers_p99_ratio", at(&beside_readers, 99) / at(&alone, 99));
        tokio::time::sleep(tenants.settle).await;
    }
    Ok(())
}

/// How many workflows a tenant has finished so far.
async fn finished(client: &Client) -> Result<u32, Failed> {
    let filter = RunFilter { states: vec![RunState::Completed], ..RunFilter::default() };
    Ok(u32::try_from(client.count(&filter).await?)?)
}

/// The times from start to result, the shortest first. A start that is due while another workflow is under way does
/// not wait for it.
async fn take_times(client: &Client, tenants: Tenants) -> Result<Vec<Duration>, Failed> {
    let mut due = interval(Duration::from_secs(1) / tenants.per_second.max(1));
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut under_way = tokio::task::JoinSet::new();
    for _ in 0..tenants.workflows.max(1) {
        due.tick().await;
        under_way.spawn(take_time(client.clone()));
    }
    let mut times = Vec::new();
    while let Some(time) = under_way.join_next().await {
        times.push(time??);
    }
    times.sort_unstable();
    Ok(times)
}

async fn take_time(client: Client) -> Result<Duration, Failed> {
    let began = Instant::now();
    // The workflow of `kagzi bench`, whose worker this is.
    let start = Start::workflow("five-steps").queue("bench").input(&"x".repeat(16))?;
    client.start(start).await?.result::<u64>().await?;
    Ok(began.elapsed())
}

/// The time in milliseconds that so many in a hundred do not exceed.
fn at(times: &[Duration], part: usize) -> f64 {
    let place = (times.len() * part).div_ceil(100).saturating_sub(1);
    times.get(place).copied().unwrap_or_default().as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_one_in_a_hundred_are_not_longer() {
        let times: Vec<Duration> = (1..=300).map(Duration::from_millis).collect();
        assert!((at(&times, 99) - 297.0).abs() < 1e-9);
        assert!((at(&times, 50) - 150.0).abs() < 1e-9);
        assert!((at(&times[..1], 99) - 1.0).abs() < 1e-9);
        assert!(at(&[], 99).abs() < 1e-9);
    }
}
