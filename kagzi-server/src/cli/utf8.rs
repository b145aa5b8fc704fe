//! Which value of the command line is not UTF-8: `clap` only says that one is.

use std::ffi::{OsStr, OsString};

use clap::builder::{OsStringValueParser, ValueParser};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

/// The error for `args`, which `command` refused because of some value that is not UTF-8, naming its field
/// and where it came from; nothing if no field can be told.
pub fn refusal(command: &Command, args: &[OsString]) -> Option<clap::Error> {
    // Read once more, by a command line that takes anything.
    let matches = lenient(command.clone()).try_get_matches_from(args).ok()?;
    let (mut command, mut matches) = (command.clone(), &matches);
    // Gives each command below the options that all of them have.
    command.build();
    loop {
        let blamed = command.get_arguments().find_map(|arg| blame(arg, matches));
        if let Some(what) = blamed {
            return Some(command.error(ErrorKind::InvalidUtf8, what));
        }
        let (name, below) = matches.subcommand()?;
        (command, matches) = (command.find_subcommand(name)?.clone(), below);
    }
}

fn lenient(command: Command) -> Command {
    let take_anything = |arg: Arg| {
        let arg = arg.required(false);
        if arg.get_action().takes_values() { arg.value_parser(OsStringValueParser::new()) } else { arg }
    };
    command
        .subcommand_required(false)
        .arg_required_else_help(false)
        .mut_args(take_anything)
        .mut_subcommands(lenient)
}

/// What is wrong with the value of `arg`, if it is not UTF-8 and has to be.
fn blame(arg: &Arg, matches: &ArgMatches) -> Option<String> {
    let id = arg.get_id().as_str();
    let takes_any_bytes = ValueParser::path_buf().type_id() == arg.get_value_parser().type_id();
    if takes_any_bytes || !arg.get_action().takes_values() {
        return None;
    }
    let typed = matches.value_source(id) == Some(ValueSource::CommandLine);
    let mut values = matches.try_get_raw(id).ok().flatten().filter(|_| typed).into_iter().flatten();
    if let Some(value) = values.find(|value| value.to_str().is_none()) {
        return Some(format!("invalid value{} for '{arg}': expected UTF-8", shown(arg, value)));
    }
    // A variable is read even where the command line says otherwise.
    let variable = arg.get_env()?;
    let value = std::env::var_os(variable).filter(|value| value.to_str().is_none())?;
    let shown = shown(arg, &value);
    Some(format!("invalid value{shown} of the variable {} for '{arg}': expected UTF-8", variable.display()))
}

/// The value, unless it is one of those that may hold a secret.
fn shown(arg: &Arg, value: &OsStr) -> String {
    if arg.is_hide_env_values_set() { String::new() } else { format!(" '{}'", value.display()) }
}
