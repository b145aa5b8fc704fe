//! The measuring program runs, as far as that can be told without measuring anything: what it says of a busy machine
//! and debug builds is nobody's figure.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::Command;

use serde_json::Value;

#[test]
fn a_quiet_tenant_is_timed_alone_and_beside_a_noisy_one_over_both_databases() {
    let directory = tempfile::tempdir().unwrap();
    let measured = Command::new(env!("CARGO_BIN_EXE_figures"))
        .args(["--only", "tenants", "--rounds", "1", "--quiet-workflows", "10", "--quiet-rate", "5"])
        .args(["--settle-seconds", "0", "--in-flight", "8", "--tenant-limit", "100", "--output"])
        .arg(directory.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&measured.stderr);
    assert!(measured.status.success(), "(built by `cargo test --workspace`?) {said}");
    let figures = std::fs::read(directory.path().join("figures.json")).unwrap();
    let figures: Value = serde_json::from_slice(&figures).unwrap();
    for store in ["sqlite", "postgres"] {
        let sample = |name: &str| {
            let samples = figures["samples"][format!("{store}.tenants.{name}")].as_array().unwrap();
            assert_eq!(samples.len(), 1, "{name}");
            samples[0].as_f64().unwrap()
        };
        let (alone, beside) = (sample("alone_p99_ms"), sample("beside_p99_ms"));
        assert!(alone > 0.0 && beside > 0.0, "{figures}");
        assert!((sample("p99_ratio") - beside / alone).abs() < 1e-9, "{figures}");
        let readers = sample("beside_readers_p99_ms");
        assert!(readers > 0.0 && (sample("readers_p99_ratio") - readers / alone).abs() < 1e-9, "{figures}");
        assert!(sample("noisy_workflows_per_second") > 0.0, "{figures}");
        // A tenant at its limit starts fewer than that: its claims and waits count, too.
        assert!(sample("noisy_workflows_per_second") < 200.0, "{figures}");
    }
    let table = String::from_utf8(measured.stdout).unwrap();
    assert!(table.contains("a quiet tenant beside a noisy one, Postgres, p99"), "{table}");
}
