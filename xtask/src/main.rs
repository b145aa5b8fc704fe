//! The project's own chores. `cargo xtask help` lists them.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a chore talks to the person who runs it")]

mod bench;
mod cluster;
mod deny;
mod postgres;
mod report;
mod saboteurs;
mod shell;
mod test;
mod torture;

use std::process::ExitCode;

const HELP: &str = "\
usage: cargo xtask <chore>

  test [--quick]   everything that CI checks: format, dependencies, lints, docs, unit tests, the
                   conformance suite over every store, the saboteurs, end-to-end tests, examples;
                   --quick leaves out the checks of format, dependencies, lints and docs
  deny             licences, versions, bans and sources of all dependencies, by deny.toml
  saboteurs [--tell | --full | --alone | --reasons [--write]] [FILTER...]
                   stores broken on purpose, and the cases that catch each; --full lets each meet
                   the whole suite, --alone finds those that one case alone catches, --reasons
                   checks what every case is there for
  soak [--rounds N] [FILTER...]
                   the suite over each store N times (50), comparing the verdicts
  torture [--minutes N] [--store sqlite|postgres|URL] [--seed S] [--rate N] [--json FILE]
                   servers, workers and clients under load while all of them and the database are
                   killed, paused and cut off from each other, and a judge over everything at the end
  bench [ARGS]     figures of both databases beside yardsticks and targets, into bench-results/;
                   --help lists what can be left out
  cluster          the suite and the demo on a Citus cluster: the one whose coordinator
                   KAGZI_TEST_CITUS_URL names, or three servers started from the binaries on this
                   machine, if the extension is installed; there also migrations that are killed, and
                   5,000 workflows while a data node is killed and comes back
  help             this text";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["test"] => test::run(test::Extent::Full),
        ["test", "--quick"] => test::run(test::Extent::Quick),
        ["deny"] => deny::check(),
        ["saboteurs", rest @ ..] => saboteurs::run(rest),
        ["soak", "--rounds", rounds, filters @ ..] => saboteurs::soak(rounds, filters),
        ["soak", filters @ ..] => saboteurs::soak("50", filters),
        ["torture", rest @ ..] => torture::run(rest),
        ["bench", rest @ ..] => bench::run(rest),
        ["cluster"] => cluster::run(),
        ["help" | "--help" | "-h"] => {
            println!("{HELP}");
            Ok(())
        }
        _ => Err(format!("unknown chore: {}\n\n{HELP}", arguments.join(" "))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("\nxtask: {message}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::shell::root;

    #[test]
    fn the_code_in_the_readme_is_that_of_the_examples_to_the_letter() {
        let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
        let examples = ["hello", "order"].map(|name| read(&format!("examples/examples/{name}.rs")));
        let readme = read("README.md");
        let shown = readme.split("```rust\n").skip(1).map(|rest| rest.split("```").next().unwrap_or(rest));
        let shown: Vec<&str> = shown.collect();
        assert_eq!(shown.len(), examples.len());
        assert_eq!(shown[0], examples[0], "the first workflow is an example as a whole");
        assert!(examples[1].contains(shown[1]), "not in examples/examples/order.rs:\n{}", shown[1]);
    }
}
