//! The table of figures, beside the targets.

use comfy_table::{Table, presets};
use kagzi_benches::backends::Backend;

use crate::measure::{Figures, Latency};

/// One row.
#[derive(Debug)]
pub struct Line {
    /// The store.
    pub store: Backend,
    /// The way to it.
    pub mode: String,
    /// What was measured.
    pub figures: Figures,
}

/// The target for workflows a second.
fn target(store: Backend, mode: &str) -> Option<f64> {
    match (store, mode) {
        (Backend::Postgres, "grpc") => Some(4_000.0),
        (Backend::Postgres, _) => Some(5_000.0),
        (Backend::Sqlite, "grpc") => Some(8_000.0),
        (Backend::Sqlite, _) => Some(12_000.0),
        (Backend::Memory, _) => None,
    }
}

/// The table, as Markdown.
pub fn table(lines: &[Line]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        "store",
        "mode",
        "in flight",
        "workflows/s (min-max)",
        "steps/s",
        "of target",
        "loaded p50/p99 ms",
        "alone p50/p99 ms",
        "to first step p50/p99 ms",
        "idle CPU %",
        "idle tx/s",
        "idle MiB",
    ]);
    for line in lines {
        table.add_row(row(line));
    }
    table
}

fn row(line: &Line) -> Vec<String> {
    let figures = &line.figures;
    let at = |index: usize| figures.per_second.get(index).copied().unwrap_or_default();
    let median = at(figures.per_second.len() / 2);
    let (min, max) = (at(0), at(figures.per_second.len().saturating_sub(1)));
    let latency = |latency: Latency| format!("{:.1} / {:.1}", latency.p50, latency.p99);
    let of_target = target(line.store, &line.mode).map_or_else(String::new, |t| format!("{:.2}", median / t));
    let idle = figures.idle;
    vec![
        line.store.name().to_owned(),
        line.mode.clone(),
        figures.in_flight.to_string(),
        format!("{median:.0} ({min:.0}-{max:.0})"),
        format!("{:.0}", median * 5.0),
        of_target,
        latency(figures.loaded),
        latency(figures.alone),
        latency(figures.wake),
        idle.map_or_else(String::new, |idle| format!("{:.2}", idle.cpu_percent)),
        idle.and_then(|idle| idle.transactions).map_or_else(String::new, |rate| format!("{rate:.1}")),
        idle.map_or_else(String::new, |idle| format!("{:.0}", idle.resident_mib)),
    ]
}
