//! A short torture over each database, so that the program does not rot.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

use std::process::Command;

fn tortured(store: &str) {
    let directory = tempfile::tempdir().unwrap();
    let figures = directory.path().join("figures.json");
    let output = Command::new(env!("CARGO_BIN_EXE_torture"))
        .args(["--store", store, "--minutes", "0.34", "--json"])
        .arg(&figures)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complained}");
    let figures: serde_json::Value = serde_json::from_slice(&std::fs::read(figures).unwrap()).unwrap();
    let figure = |name: &str| figures[name].as_u64().unwrap();
    assert_eq!(figure("violations"), 0);
    // Nothing was proved if nothing happened.
    for name in ["acknowledged", "runs", "attempts", "executions", "histories"] {
        assert!(figure(name) > 50, "{name}: {said}");
    }
    let faults = figures["faults"].as_object().unwrap();
    assert!(faults.values().map(|count| count.as_u64().unwrap()).sum::<u64>() > 5, "{said}");
}

#[test]
fn a_short_torture_over_sqlite_finds_nothing() {
    tortured("sqlite");
}

#[test]
fn a_short_torture_over_postgres_finds_nothing() {
    tortured("postgres");
}
