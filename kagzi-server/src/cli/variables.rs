//! Variables that look like settings and are none: a misspelt one would leave a server without the access file that
//! its operator believes in.

use std::collections::BTreeSet;

use clap::Command;

use super::error::CliError;

/// What ours begin with.
const PREFIX: &str = "KAGZI_";

/// Read elsewhere than by the command line: the token itself, and what tests, benches and the suite go by.
const READ_ELSEWHERE: [&str; 6] =
    ["KAGZI_TOKEN", "KAGZI_BENCH_*", "KAGZI_CONFORMANCE_*", "KAGZI_CRASH_*", "KAGZI_PLANS_*", "KAGZI_TEST_*"];

/// What clusters set in every container beside a service of the name `kagzi`.
const OF_CLUSTERS: [&str; 3] = ["KAGZI_PORT", "KAGZI_PORT_*", "KAGZI_SERVICE_*"];

/// So few changes make a name another one by mistake.
const NEAR: usize = 2;

/// Refuses a variable that is nearly one of `command` or its subcommands; answers the other unknown ones.
///
/// # Errors
///
/// [`CliError`] with the name that was probably meant. No value is told.
pub fn check(command: &Command, set: impl IntoIterator<Item = String>) -> Result<Vec<String>, CliError> {
    let known = known(command);
    let mut unknown = Vec::new();
    for name in set {
        let is = |pattern: &&str| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == **pattern,
        };
        let read = known.contains(&name) || READ_ELSEWHERE.iter().chain(&OF_CLUSTERS).any(is);
        if read || !name.starts_with(PREFIX) {
            continue;
        }
        match nearest(&name, &known) {
            Some((near, distance)) if distance <= NEAR => {
                let why = format!(
                    "{name}: expected a variable that is known, such as {near}; nobody reads this one"
                );
                let remedy = format!("{near}, or unset {name}");
                return Err(CliError::usage("could not read the variables", why).remedy(remedy));
            }
            _ => unknown.push(name),
        }
    }
    Ok(unknown)
}

/// The variables that the command line reads, whatever the command.
fn known(command: &Command) -> BTreeSet<String> {
    let own = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str().map(str::to_owned));
    let below = command.get_subcommands().flat_map(known);
    own.chain(below).collect()
}

fn nearest<'k>(name: &str, known: &'k BTreeSet<String>) -> Option<(&'k str, usize)> {
    known.iter().map(|one| (one.as_str(), distance(name, one))).min_by_key(|(_, distance)| *distance)
}

/// How many letters have to be put in, taken out or replaced to make `one` the `other`.
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, letter) in one.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], at + 1);
        for (column, candidate) in other.bytes().enumerate() {
            let replaced = diagonal + usize::from(letter != candidate);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    fn judge(names: &[&str]) -> Result<Vec<String>, CliError> {
        let flag = |name: &'static str| Arg::new(name).long(name).env(name);
        let serve = Command::new("serve").arg(flag("KAGZI_ACCESS_FILE")).arg(flag("KAGZI_STORE"));
        let command = Command::new("kagzi").arg(flag("KAGZI_SERVER")).subcommand(serve);
        check(&command, names.iter().map(|name| (*name).to_owned()))
    }

    #[test]
    fn a_misspelt_variable_is_refused_with_the_one_that_was_meant() {
        for (misspelt, meant) in [
            ("KAGZI_ACCESSFILE", "KAGZI_ACCESS_FILE"),
            ("KAGZI_ACESS_FILE", "KAGZI_ACCESS_FILE"),
            ("KAGZI_STORES", "KAGZI_STORE"),
            ("KAGZI_SERVE", "KAGZI_SERVER"),
        ] {
            let told = judge(&["PATH", misspelt]).unwrap_err().to_string();
            assert!(told.contains(&format!("{misspelt}: ")) && told.contains(meant), "{told}");
        }
    }

    #[test]
    fn variables_that_somebody_reads_are_left_alone_and_others_are_told() {
        let read =
            ["KAGZI_STORE", "KAGZI_SERVER", "KAGZI_TOKEN", "KAGZI_TEST_X", "KAGZI_CONFORMANCE_SEED", "HOME"];
        assert_eq!(judge(&read).unwrap(), Vec::<String>::new());
        let of_cluster = ["KAGZI_PORT", "KAGZI_PORT_7474_TCP", "KAGZI_SERVICE_HOST", "KAGZI_BENCH_STORE"];
        assert_eq!(judge(&of_cluster).unwrap(), Vec::<String>::new());
        assert_eq!(judge(&["KAGZI_SOMETHING"]).unwrap(), ["KAGZI_SOMETHING"]);
    }
}
