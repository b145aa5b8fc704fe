//! The guide for authors of backends shows this crate as it is.

use std::path::Path;

/// The excerpts of the guide: the file each says it is from, and its lines.
fn excerpts(guide: &str) -> Vec<(&str, Vec<&str>)> {
    let mut excerpts = Vec::new();
    let mut lines = guide.lines();
    while let Some(line) = lines.next() {
        let Some(path) = line.strip_prefix("<!-- from ").and_then(|rest| rest.strip_suffix(" -->")) else {
            continue;
        };
        assert_eq!(lines.next(), Some("```rust,ignore"), "an excerpt follows its source: {path}");
        excerpts.push((path, lines.by_ref().take_while(|line| *line != "```").collect()));
    }
    excerpts
}

/// Whether `source` has these lines in a row, all moved in by the same blanks.
fn shows(source: &str, excerpt: &[&str]) -> bool {
    let source: Vec<&str> = source.lines().collect();
    [0, 4, 8].iter().any(|blanks| {
        let moved: Vec<String> = excerpt
            .iter()
            .map(
                |line| if line.is_empty() { String::new() } else { format!("{}{line}", " ".repeat(*blanks)) },
            )
            .collect();
        source.windows(moved.len()).any(|lines| lines.iter().eq(&moved))
    })
}

#[test]
fn every_excerpt_stands_in_the_source_it_names() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let guide = std::fs::read_to_string(root.join("docs/write-your-own-backend.md")).unwrap();
    let excerpts = excerpts(&guide);
    assert!(excerpts.len() >= 8, "{} excerpts", excerpts.len());
    for (path, excerpt) in excerpts {
        let source = std::fs::read_to_string(root.join(path)).unwrap();
        assert!(shows(&source, &excerpt), "{path} no longer has:\n{}", excerpt.join("\n"));
    }
}
