//! What a bench says at its end: one object for programs, a table and a histogram for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::load::{Load, Measured};
use super::workflow::STEPS;
use crate::cli::pairs;

/// How many bars a histogram has at most.
const BARS: usize = 12;

/// How wide the longest bar is.
const WIDTH: u64 = 40;

/// What a bench showed. Times are in milliseconds.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The scheme of the store's URL.
    pub store: String,
    /// The URL, without a password.
    pub url: String,
    /// The namespace that the bench borrowed.
    pub namespace: String,
    /// `grpc` or `embedded`.
    pub mode: &'static str,
    /// How many workflows each round finished.
    pub workflows: u32,
    /// How many steps each had.
    pub steps_per_workflow: u32,
    /// How many were under way at once.
    pub in_flight: u32,
    /// The size of each input and each step's output.
    pub payload_bytes: usize,
    /// The median over the rounds.
    pub workflows_per_second: f64,
    /// The same in steps.
    pub steps_per_second: f64,
    /// Workflows a second of each round, in order.
    pub rounds: Vec<f64>,
    /// From start to result under load: the median.
    pub p50_ms: f64,
    /// All but one in ten are faster.
    pub p90_ms: f64,
    /// All but one in a hundred are faster.
    pub p99_ms: f64,
    /// The slowest.
    pub max_ms: f64,
    /// One workflow at a time, on the otherwise idle system.
    pub alone: Option<Alone>,
    /// Processor time for each workflow under load, by process, where the system tells.
    pub processor_ms_per_workflow: Option<BTreeMap<&'static str, f64>>,
}

/// One workflow at a time.
#[derive(Debug, Serialize)]
pub struct Alone {
    /// How many.
    pub workflows: u64,
    /// From start to result.
    pub p50_ms: f64,
    /// All but one in a hundred are faster.
    pub p99_ms: f64,
    /// From start to the execution of the first step.
    pub first_step_p50_ms: f64,
    /// All but one in a hundred are faster.
    pub first_step_p99_ms: f64,
}

impl Alone {
    /// From what was measured.
    pub fn from_measured(measured: &Measured) -> Self {
        Self {
            workflows: measured.result.len(),
            p50_ms: millis(&measured.result, 50.0),
            p99_ms: millis(&measured.result, 99.0),
            first_step_p50_ms: millis(&measured.first_step, 50.0),
            first_step_p99_ms: millis(&measured.first_step, 99.0),
        }
    }
}

impl Report {
    /// A report of these rounds of the same load.
    pub fn of_rounds(load: Load, mode: &'static str, rounds: Vec<f64>, latency: &Histogram<u64>) -> Self {
        let median = median(&rounds);
        Self {
            store: String::new(),
            url: String::new(),
            namespace: String::new(),
            mode,
            workflows: load.workflows,
            steps_per_workflow: STEPS,
            in_flight: load.in_flight,
            payload_bytes: load.payload_bytes,
            workflows_per_second: median,
            steps_per_second: median * f64::from(STEPS),
            rounds,
            p50_ms: millis(latency, 50.0),
            p90_ms: millis(latency, 90.0),
            p99_ms: millis(latency, 99.0),
            max_ms: millis(latency, 100.0),
            alone: None,
            processor_ms_per_workflow: None,
        }
    }

    /// For people.
    pub fn text(&self, latency: &Histogram<u64>) -> String {
        let rounds: Vec<String> = self.rounds.iter().map(|rate| format!("{rate:.0}")).collect();
        let mut lines = vec![
            ("store", format!("{} ({}), {}", self.store, self.url, self.mode)),
            (
                "load",
                format!(
                    "{} workflows of {} steps, {} in flight, payloads of {} bytes",
                    self.workflows, self.steps_per_workflow, self.in_flight, self.payload_bytes
                ),
            ),
            (
                "workflows",
                format!("{:.0} a second (rounds: {})", self.workflows_per_second, rounds.join(", ")),
            ),
            ("steps", format!("{:.0} a second", self.steps_per_second)),
            (
                "start to result",
                format!(
                    "p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
                    self.p50_ms, self.p90_ms, self.p99_ms, self.max_ms
                ),
            ),
        ];
        if let Some(alone) = &self.alone {
            lines.push(("one at a time", format!("p50 {:.1} ms, p99 {:.1} ms", alone.p50_ms, alone.p99_ms)));
            lines.push((
                "to the first step",
                format!("p50 {:.1} ms, p99 {:.1} ms", alone.first_step_p50_ms, alone.first_step_p99_ms),
            ));
        }
        if let Some(processes) = &self.processor_ms_per_workflow {
            let each: Vec<String> =
                processes.iter().map(|(process, millis)| format!("{process} {millis:.3} ms")).collect();
            lines.push(("processor", format!("{} a workflow", each.join(", "))));
        }
        format!("{}\n\nstart to result under load:\n{}", pairs(lines), bars(latency))
    }
}

fn median(rounds: &[f64]) -> f64 {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// Workflows a second.
pub fn rate(workflows: u32, elapsed: Duration) -> f64 {
    f64::from(workflows) / elapsed.as_secs_f64().max(f64::EPSILON)
}

fn millis(histogram: &Histogram<u64>, percentile: f64) -> f64 {
    Duration::from_micros(histogram.value_at_percentile(percentile)).as_secs_f64() * 1000.0
}

/// Bars over equal spans of the logarithm, since latencies have a long tail.
fn bars(histogram: &Histogram<u64>) -> String {
    let mut counts: Vec<(u64, u64)> = Vec::new();
    let mut upper = histogram.min().max(1);
    let factor = growth(upper, histogram.max());
    while upper < histogram.max() {
        upper = (upper * factor / 1000).max(upper + 1).min(histogram.max());
        let below = histogram.count_between(0, upper).saturating_sub(counts.iter().map(|(_, n)| n).sum());
        counts.push((upper, below));
    }
    if counts.is_empty() {
        counts.push((upper, histogram.len()));
    }
    let most = counts.iter().map(|(_, count)| *count).max().unwrap_or_default().max(1);
    counts.iter().fold(String::new(), |mut text, (upper, count)| {
        let bar = "#".repeat(usize::try_from((count * WIDTH).div_ceil(most)).unwrap_or_default());
        let upper = Duration::from_micros(*upper).as_secs_f64() * 1000.0;
        // Writing into a string cannot fail.
        writeln!(text, "  up to {upper:>9.2} ms  {count:>9}  {bar}").ok();
        text
    })
}

/// By how many thousandths each bar ends above the one before, so that [`BARS`] of them suffice.
fn growth(lowest: u64, highest: u64) -> u64 {
    let bars = u32::try_from(BARS).unwrap_or(u32::MAX);
    let reaches = |thousandths: u64| {
        let mut upper = lowest;
        for _ in 0..bars {
            upper = upper.saturating_mul(thousandths) / 1000;
        }
        upper >= highest
    };
    [1100, 1200, 1350, 1500, 1750, 2000, 2500, 3000, 4000, 6000, 10_000]
        .into_iter()
        .find(|thousandths| reaches(*thousandths))
        .unwrap_or(20_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workflow_stands_in_one_bar() {
        let mut histogram = Histogram::<u64>::new_with_bounds(1, 3_600_000_000, 3).unwrap();
        for value in [1, 1, 700, 900, 3_000, 40_000, 2_000_000] {
            histogram.saturating_record(value);
        }
        let text = bars(&histogram);
        let counted: u64 =
            text.lines().map(|line| line.split_whitespace().nth(4).unwrap().parse::<u64>().unwrap()).sum();
        assert_eq!(counted, 7, "{text}");
        assert!(text.lines().count() <= BARS + 1, "{text}");
    }

    #[test]
    fn equal_times_make_one_bar() {
        let mut histogram = Histogram::<u64>::new_with_bounds(1, 3_600_000_000, 3).unwrap();
        histogram.saturating_record(5);
        histogram.saturating_record(5);
        assert_eq!(bars(&histogram).lines().count(), 1);
    }

    #[test]
    fn the_median_does_not_depend_on_the_order_of_rounds() {
        for rounds in [[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]] {
            assert!((median(&rounds) - 2.0).abs() < f64::EPSILON);
        }
    }
}
