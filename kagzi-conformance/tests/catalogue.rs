//! Keeps `docs/conformance-catalogue.md` true: what it names exists, and what proves no invariant stands in it.

#![expect(clippy::expect_used, reason = "in a test a panic is the report")]

use std::fs;
use std::path::{Path, PathBuf};

use kagzi_conformance::{Case, all_cases};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn catalogue() -> String {
    fs::read_to_string(root().join("docs/conformance-catalogue.md")).expect("the catalogue is there")
}

/// A line that promises something, and the names that prove it.
struct Line<'a> {
    text: &'a str,
    names: Vec<&'a str>,
}

/// The lines of lists and tables.
fn lines(text: &str) -> Vec<Line<'_>> {
    let promises = |line: &&str| {
        line.starts_with("- ")
            || (line.starts_with("| ") && !line.starts_with("| what") && !line.starts_with("| ---"))
    };
    let named = |line| Line { text: line, names: names(line) };
    text.lines().filter(promises).map(named).collect()
}

/// What stands in backticks and looks like the path of a case or a test.
fn names(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).filter(|name| name.contains("::")).collect()
}

/// Whether a name fits a pattern in which `*` stands for any text.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, rest)) => name.strip_prefix(before).is_some_and(|tail| {
            (0..=tail.len()).any(|at| tail.get(at..).is_some_and(|tail| fits(rest, tail)))
        }),
    }
}

/// Whether a file of the workspace has a test of this name, as a function or in a table of cases.
fn is_a_test(name: &str) -> bool {
    let Some((file, test)) = name.split_once(".rs::") else { return false };
    let source = fs::read_to_string(root().join(format!("{file}.rs"))).unwrap_or_default();
    source.contains(&format!("fn {test}(")) || source.contains(&format!("\"{test}\""))
}

#[test]
fn every_name_in_the_catalogue_exists() {
    let cases: Vec<String> = all_cases().iter().map(Case::full_name).collect();
    let text = catalogue();
    let exists = |name: &&str| is_a_test(name) || cases.iter().any(|case| fits(name, case));
    let missing: Vec<&str> =
        lines(&text).into_iter().flat_map(|line| line.names).filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "the catalogue names what is not there: {missing:#?}");
}

#[test]
fn every_line_of_the_catalogue_is_proved_by_something() {
    let text = catalogue();
    let lines = lines(&text);
    let bare: Vec<&str> = lines.iter().filter(|line| line.names.is_empty()).map(|line| line.text).collect();
    assert!(bare.is_empty(), "nothing proves these: {bare:#?}");
    let of_the_field = lines.iter().filter(|line| line.text.starts_with("| ")).count();
    assert!(lines.len() > 120 && of_the_field >= 24, "{} lines, {of_the_field} of the field", lines.len());
}

#[test]
fn a_case_that_proves_no_invariant_stands_in_the_catalogue() {
    let text = catalogue();
    let patterns: Vec<&str> = lines(&text).into_iter().flat_map(|line| line.names).collect();
    let idle: Vec<String> = all_cases()
        .iter()
        .filter(|case| case.invariants.is_empty())
        .map(Case::full_name)
        .filter(|name| !patterns.iter().any(|pattern| fits(pattern, name)))
        .collect();
    assert!(idle.is_empty(), "these cases are there for no reason that is written down: {idle:#?}");
}

#[test]
fn a_star_stands_for_any_text() {
    assert!(fits("a::*_b*", "a::x_b_c") && fits("a::*", "a::") && fits("a", "a"));
    assert!(!fits("a::*_b", "a::x_b_c") && !fits("a", "ab"));
}

/// The group whose cases a file of the catalogue holds, as its source says.
fn group_of(source: &str) -> Option<&str> {
    let place = ["cases! {", "Case::new("].iter().find_map(|beginning| source.split_once(beginning));
    place?.1.split('"').nth(1)
}

#[test]
fn the_cases_of_a_group_stand_in_files_that_begin_with_its_name() {
    let catalogue = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cases");
    let mut files = 0;
    for entry in fs::read_dir(catalogue).expect("the catalogue is there") {
        let path = entry.expect("a file").path();
        let file = path.file_stem().expect("a name").to_string_lossy().into_owned();
        if file == "mod" {
            continue;
        }
        let source = fs::read_to_string(&path).expect("a source");
        let group = group_of(&source).expect("a group");
        let own = file == group || file.starts_with(&format!("{group}_"));
        assert!(own, "{file}.rs holds cases of the group {group}");
        files += 1;
    }
    assert!(files > 20, "{files} files");
}
