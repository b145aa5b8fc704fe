//! Why each case is there: the invariants it proves, and the saboteurs it is meant for.

use std::collections::BTreeMap;

use kagzi_conformance::all_cases;

use crate::list;
use crate::stores::postgres::Database;

/// Prints, for every case, what it is there for; whether each is there for something.
pub fn print() -> bool {
    let saboteurs = list::all(&Database::default());
    let mut idle = 0;
    let mut by_group: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for case in all_cases() {
        let name = case.full_name();
        let meant: Vec<&str> = saboteurs
            .iter()
            .filter(|one| one.meant.iter().any(|part| name.contains(part)))
            .map(|one| one.name)
            .collect();
        let invariants: Vec<String> = case.invariants.iter().map(ToString::to_string).collect();
        idle += u32::from(invariants.is_empty() && meant.is_empty());
        by_group.entry(case.group).or_default().push(format!(
            "| {} | {} | {} |",
            case.name,
            invariants.join(", "),
            meant.join("; ")
        ));
    }
    for (group, rows) in &by_group {
        println!("\n## {group}\n\n| case | invariants | saboteurs it is meant for |\n| --- | --- | --- |");
        for row in rows {
            println!("{row}");
        }
    }
    println!("\n{idle} cases stand on the catalogue alone; docs/conformance-catalogue.md names their rows");
    true
}
