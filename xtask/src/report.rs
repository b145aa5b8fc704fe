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

/// How many cases passed, did not apply, and failed.
type Counts = [u64; 3];

/// What is known of each group: by store.
type Groups = BTreeMap<String, BTreeMap<String, Counts>>;

/// Prints the table; an error if no store was judged or a case failed.
pub fn print(path: &Path) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut groups = Groups::new();
    let mut totals: BTreeMap<String, Counts> = BTreeMap::new();
    for line in text.lines() {
        let run: Value =
            serde_json::from_str(line).map_err(|error| format!("{}: {error}", path.display()))?;
        let store = run.get("store").and_then(Value::as_str).unwrap_or("unnamed");
        totals.insert(store.to_owned(), counts(&run));
        for (group, numbers) in run.get("groups").and_then(Value::as_object).into_iter().flatten() {
            groups.entry(group.clone()).or_default().insert(store.to_owned(), counts(numbers));
        }
    }
    print!("{}", table(&groups, &totals));
    let passed: u64 = totals.values().map(|counts| counts[0]).sum();
    let failed: u64 = totals.values().map(|counts| counts[2]).sum();
    println!("\nconformance: {passed} passed, {failed} failed");
    if totals.is_empty() || failed > 0 {
        Err("the conformance suite did not pass".to_owned())
    } else {
        Ok(())
    }
}

fn counts(numbers: &Value) -> Counts {
    let count = |field: &str| numbers.get(field).and_then(Value::as_u64).unwrap_or_default();
    [count("passed"), count("not_applicable"), count("failed")]
}

/// A row a group, a column a store: passed / not applicable / failed.
fn table(groups: &Groups, totals: &BTreeMap<String, Counts>) -> String {
    let width = totals.keys().map(String::len).max().unwrap_or_default().max(14);
    let line = |group: &str, cases: &str, columns: Vec<String>| {
        let columns = columns.iter().map(|column| format!("  {column:>width$}")).collect::<Vec<_>>().concat();
        format!("{group:<16}{cases:>7}{columns}\n")
    };
    let row = |group: &str, stores: &BTreeMap<String, Counts>| {
        let cases: u64 = stores.values().map(|counts| counts.iter().sum()).max().unwrap_or_default();
        let column = |store: &String| {
            let [passed, not_applicable, failed] = stores.get(store).copied().unwrap_or_default();
            format!("{passed} / {not_applicable} / {failed}")
        };
        line(group, &cases.to_string(), totals.keys().map(column).collect())
    };
    let head = line("group", "cases", totals.keys().cloned().collect());
    let rows: String = groups.iter().map(|(group, stores)| row(group, stores)).collect();
    format!("\n{head}{rows}{}(passed / not applicable / failed)\n", row("all", totals))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_row_for_each_group_and_a_column_for_each_store() {
        let counts = |passed| {
            BTreeMap::from([("memory".to_owned(), [passed, 1, 0]), ("sqlite".to_owned(), [passed, 0, 2])])
        };
        let groups = Groups::from([("start".to_owned(), counts(7)), ("claim".to_owned(), counts(9))]);
        let text = table(&groups, &counts(16));
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[1], ["group", "cases", "memory", "sqlite"]);
        assert_eq!(words[2], ["claim", "11", "9", "/", "1", "/", "0", "9", "/", "0", "/", "2"]);
        assert_eq!(words[4][..2], ["all", "18"]);
    }
}
