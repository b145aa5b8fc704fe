//! The closing table of `cargo xtask test`: conformance cases per store.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::shell::root;

/// An empty file into which every run of the suite appends one line of JSON.
pub fn fresh_file() -> Result<PathBuf, String> {
    let directory = root().join("target");
    let path = directory.join("conformance-report.jsonl");
    fs::create_dir_all(&directory)
        .and_then(|()| fs::write(&path, ""))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    Ok(path)
}

/// Prints the table; an error if no store was judged or a case failed.
pub fn print(path: &Path) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut stores: BTreeMap<String, [u64; 3]> = BTreeMap::new();
    for line in text.lines() {
        let run: Value =
            serde_json::from_str(line).map_err(|error| format!("{}: {error}", path.display()))?;
        let count = |field: &str| run.get(field).and_then(Value::as_u64).unwrap_or_default();
        let store = run.get("store").and_then(Value::as_str).unwrap_or("unnamed").to_owned();
        stores.insert(store, [count("passed"), count("not_applicable"), count("failed")]);
    }
    println!("\nconformance suite          passed  not applicable  failed");
    for (store, [passed, not_applicable, failed]) in &stores {
        println!("  {store:<22}  {passed:>8}  {not_applicable:>14}  {failed:>6}");
    }
    let passed: u64 = stores.values().map(|counts| counts[0]).sum();
    let failed: u64 = stores.values().map(|counts| counts[2]).sum();
    println!("\nconformance: {passed} passed, {failed} failed");
    if stores.is_empty() || failed > 0 {
        Err("the conformance suite did not pass".to_owned())
    } else {
        Ok(())
    }
}
