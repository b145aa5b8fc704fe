//! The reports: a table in Markdown, everything in JSON, and the curve as a picture.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use comfy_table::{Table, presets};
use kagzi_benches::backends::Failed;
use serde_json::{Value, json};

use crate::metrics::{Metrics, Spread};
use crate::plot;
use crate::targets::TARGETS;

/// Writes all of them into the directory; answers the text.
pub fn write(metrics: &Metrics, directory: &Path) -> Result<String, Failed> {
    fs::create_dir_all(directory)?;
    let machine = machine();
    let mut text = String::from("# Figures\n\n");
    for (name, value) in &machine {
        writeln!(text, "- {name}: {value}")?;
    }
    write!(text, "\n## Targets\n\n{}\n\n## All figures\n\n{}\n", targets(metrics), figures(metrics))?;
    fs::write(directory.join("figures.md"), &text)?;
    let samples: BTreeMap<&str, &[f64]> = metrics.iter().collect();
    let machine: BTreeMap<&str, &str> = machine.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let all: Value = json!({ "machine": machine, "samples": samples });
    fs::write(directory.join("figures.json"), serde_json::to_string_pretty(&all)?)?;
    plot::curves(metrics, directory)?;
    Ok(text)
}

fn targets(metrics: &Metrics) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["what", "median (min to max)", "target", "part of it", "kept"]);
    for target in TARGETS {
        let Some(reached) = target.reached(metrics) else { continue };
        let Spread { median, min, max } = reached.figure;
        table.add_row([
            target.what.to_owned(),
            format!("{} ({} to {}) {}", short(median), short(min), short(max), target.unit),
            target.bound.describe(),
            format!("{:.2}", reached.of_bound),
            if reached.kept { "yes" } else { "no" }.to_owned(),
        ]);
    }
    table
}

fn figures(metrics: &Metrics) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["figure", "median", "min", "max", "samples"]);
    for (name, samples) in metrics.iter() {
        let Some(Spread { median, min, max }) = Spread::of(samples) else { continue };
        table.add_row([name.to_owned(), short(median), short(min), short(max), samples.len().to_string()]);
    }
    table
}

fn short(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// What it was measured on.
fn machine() -> Vec<(&'static str, String)> {
    let first_line = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned())
    };
    let processor = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    let unknown = || "unknown".to_owned();
    vec![
        ("processor", processor.unwrap_or_else(unknown)),
        ("cores", std::thread::available_parallelism().map_or_else(|_| unknown(), |cores| cores.to_string())),
        ("system", first_line("uname", &["-sr"]).unwrap_or_else(unknown)),
        ("rust", first_line("rustc", &["--version"]).unwrap_or_else(unknown)),
        ("postgres", first_line("postgres", &["--version"]).unwrap_or_else(unknown)),
        ("sqlite", rusqlite::version().to_owned()),
        ("kagzi", env!("CARGO_PKG_VERSION").to_owned()),
    ]
}
