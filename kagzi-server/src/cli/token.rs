//! `kagzi token`: making what servers know their callers by.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use kagzi_server::NewToken;
use serde::Serialize;

use super::error::CliError;
use super::output::Output;

/// `kagzi token`.
#[derive(Debug, Args)]
pub struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token that nobody can guess, and print it, once, with the line for the access file.
    ///
    /// The server keeps the token's digest alone, so a token that was lost is replaced, not found again.
    New {
        /// Write the token into this new file, which only you can read, instead of printing it.
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
}

#[derive(Serialize)]
struct TokenView {
    token: Option<String>,
    token_file: Option<String>,
    digest: String,
}

/// Makes a token.
pub fn token(args: TokenArgs, output: Output) -> Result<(), CliError> {
    let TokenCommand::New { to } = args.command;
    let token = NewToken::generate().map_err(|why| CliError::failed("could not make a token", why))?;
    if let Some(path) = &to {
        write(path, token.reveal())?;
    }
    let view = TokenView {
        token: to.is_none().then(|| token.reveal().to_owned()),
        token_file: to.map(|path| path.display().to_string()),
        digest: token.digest(),
    };
    output.show(&view, |view| {
        let line = format!("tokens = [\"{}\"]", view.digest);
        match &view.token {
            Some(token) => format!(
                "{token}\n\nThat is the token, shown this once: keep it in a file that only its user can read.\n\
                 For the access file of the server, under [[principal]]:\n\n{line}"
            ),
            None => line,
        }
    })
}

fn write(path: &PathBuf, token: &str) -> Result<(), CliError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(path).and_then(|mut file| writeln!(file, "{token}"));
    written.map_err(|why| {
        CliError::failed("could not write the token", format!("{}: {why}", path.display()))
            .remedy("name a file that is not there yet, in a directory of yours")
    })
}
