//! The load itself: callers that start a workflow, wait for its result, and start the next.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use kagzi_sdk::{Client, Start};
use tokio::task::JoinSet;

use super::workflow::{QUEUE, WORKFLOW_TYPE, micros_now};
use crate::cli::CliError;

/// The longest time that is told apart, in microseconds: an hour.
const LONGEST: u64 = 3_600_000_000;

/// How many workflows, how many of them at once, and how large.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// How many are finished in all.
    pub workflows: u32,
    /// How many are under way at once.
    pub in_flight: u32,
    /// The size of each input and each step's output.
    pub payload_bytes: usize,
}

/// What a load showed; times in microseconds.
#[derive(Debug)]
pub struct Measured {
    /// From the first start to the last result.
    pub elapsed: Duration,
    /// From a start to its result.
    pub result: Histogram<u64>,
    /// From a start to the execution of its first step.
    pub first_step: Histogram<u64>,
}

impl Measured {
    fn nothing() -> Result<Self, CliError> {
        let empty = || {
            Histogram::new_with_bounds(1, LONGEST, 3)
                .map_err(|why| CliError::failed("could not make a histogram", why))
        };
        Ok(Self { elapsed: Duration::ZERO, result: empty()?, first_step: empty()? })
    }

    /// Adds what another load, or another caller, showed.
    ///
    /// # Errors
    ///
    /// None: all histograms have the same bounds.
    pub fn add(&mut self, other: &Self) -> Result<(), CliError> {
        let failed = |why| CliError::failed("could not add up the times", why);
        self.elapsed += other.elapsed;
        self.result.add(&other.result).map_err(failed)?;
        self.first_step.add(&other.first_step).map_err(failed)
    }
}

/// Puts a load on.
///
/// # Errors
///
/// The first failed call.
pub async fn put_on(client: &Client, load: Load, progress: &ProgressBar) -> Result<Measured, CliError> {
    let taken = Arc::new(AtomicU32::new(0));
    let mut measured = Measured::nothing()?;
    let mut callers = JoinSet::new();
    let began = Instant::now();
    for _ in 0..load.in_flight.min(load.workflows) {
        callers.spawn(call(client.clone(), load, Arc::clone(&taken), progress.clone()));
    }
    while let Some(caller) = callers.join_next().await {
        let caller = caller.map_err(|why| CliError::failed("a caller of the bench failed", why))??;
        measured.add(&caller)?;
    }
    measured.elapsed = began.elapsed();
    Ok(measured)
}

/// One caller. It adds no time of its own to `elapsed`.
async fn call(
    client: Client,
    load: Load,
    taken: Arc<AtomicU32>,
    progress: ProgressBar,
) -> Result<Measured, CliError> {
    let failed = |why: &dyn std::fmt::Display| CliError::failed("a call of the bench failed", why);
    let filler = "x".repeat(load.payload_bytes);
    let mut measured = Measured::nothing()?;
    while taken.fetch_add(1, Ordering::Relaxed) < load.workflows {
        let (began, at) = (Instant::now(), micros_now().unwrap_or_default());
        let start = Start::workflow(WORKFLOW_TYPE).queue(QUEUE).input(&filler).map_err(|why| failed(&why))?;
        let run = client.start(start).await.map_err(|why| failed(&why))?;
        let first_step: u64 = run.result().await.map_err(|why| failed(&why))?;
        measured.result.saturating_record(micros(began.elapsed()));
        measured.first_step.saturating_record(first_step.saturating_sub(at).max(1));
        progress.inc(1);
    }
    Ok(measured)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(LONGEST).max(1)
}
