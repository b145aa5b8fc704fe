//! Whole workflows: `kagzi bench`, as its users run it.

use std::process::Stdio;

use kagzi_benches::backends::{Backend, Failed, Place};
use serde_json::Value;
use tokio::process::Command;

use crate::metrics::Metrics;
use crate::processes::kagzi;

/// How much is in flight at the points of the curve.
const CURVE: [u32; 7] = [1, 4, 16, 64, 256, 1024, 4096];

/// How many times the load is put on that is more than the system bears.
const OVERLOAD: u32 = 4;

/// One load over gRPC and one embedded, and over gRPC one with more in flight than helps.
pub async fn measure(
    backend: Backend,
    workflows: u32,
    in_flight: u32,
    metrics: &mut Metrics,
) -> Result<(), Failed> {
    for mode in modes(backend) {
        let report = bench(backend, mode, workflows, in_flight, 300).await?;
        let mut add = |name: &str, value: &Value| -> Result<(), Failed> {
            let value = value.as_f64().ok_or_else(|| format!("kagzi bench gave no {name}"))?;
            metrics.add(backend, &format!("{mode}.{name}"), value);
            Ok(())
        };
        for name in ["workflows_per_second", "steps_per_second", "p50_ms", "p99_ms"] {
            add(name, &report[name])?;
        }
        for name in ["p50_ms", "p99_ms"] {
            add(&format!("alone_{name}"), &report["alone"][name])?;
            add(&format!("first_step_{name}"), &report["alone"][format!("first_step_{name}")])?;
        }
        for (process, millis) in report["processor_ms_per_workflow"].as_object().into_iter().flatten() {
            add(&format!("processor_ms.{process}"), millis)?;
        }
    }
    if backend != Backend::Memory {
        let report = bench(backend, "grpc", workflows, in_flight.saturating_mul(OVERLOAD), 0).await?;
        for name in ["workflows_per_second", "p99_ms"] {
            let value = report[name].as_f64().ok_or_else(|| format!("kagzi bench gave no {name}"))?;
            metrics.add(backend, &format!("grpc.overload.{name}"), value);
        }
    }
    Ok(())
}

/// Throughput and latency against the number in flight.
pub async fn curve(backend: Backend, workflows: u32, metrics: &mut Metrics) -> Result<(), Failed> {
    for mode in modes(backend) {
        for in_flight in CURVE {
            // Few in flight take long.
            let workflows = workflows.min(in_flight.saturating_mul(200)).max(in_flight);
            let report = bench(backend, mode, workflows, in_flight, 0).await?;
            for name in ["workflows_per_second", "p50_ms", "p99_ms"] {
                let value = report[name].as_f64().ok_or_else(|| format!("kagzi bench gave no {name}"))?;
                metrics.add(backend, &format!("{mode}.curve.{in_flight:05}.{name}"), value);
            }
        }
    }
    Ok(())
}

fn modes(backend: Backend) -> impl Iterator<Item = &'static str> {
    // A store in memory is seen by its own process alone.
    ["grpc", "embedded"].into_iter().filter(move |mode| backend != Backend::Memory || *mode == "embedded")
}

async fn bench(
    backend: Backend,
    mode: &str,
    workflows: u32,
    in_flight: u32,
    alone: u32,
) -> Result<Value, Failed> {
    let place = Place::fresh(backend).await?;
    let mut command = Command::new(kagzi()?);
    command
        .args(["bench", "--json", "--rounds", "1", "--mode", mode, "--store", place.url()])
        .args(["--workflows", &workflows.to_string(), "--in-flight", &in_flight.to_string()])
        .args(["--alone", &alone.to_string(), "--concurrency", &in_flight.clamp(512, 10_000).to_string()])
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    let output = command.output().await?;
    if !output.status.success() {
        return Err(format!("kagzi bench ended with {}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
