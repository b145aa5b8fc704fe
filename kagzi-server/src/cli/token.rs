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
    /// Make a token that nobody can guess, and print it, once, with what the access file needs.
    ///
    /// The server keeps the token's digest alone, so a token that was lost is replaced, not found again.
    New {
        /// Print an entry for a principal of this name, to be appended to the access file as it is; grants go below it.
        /// Without a name, the one line is printed that belongs under the `[[principal]]` whose token it is, above its
        /// grants.
        #[arg(long, value_name = "NAME", value_parser = principal)]
        principal: Option<String>,
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
    principal: Option<String>,
}

fn principal(name: &str) -> Result<String, String> {
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err("expected a name without control characters".to_owned());
    }
    Ok(name.to_owned())
}

impl TokenView {
    /// What goes into the access file. An entry begins with an empty line, whatever it is appended to.
    fn entry(&self) -> String {
        let line = format!("tokens = [\"{}\"]", self.digest);
        match &self.principal {
            Some(name) => {
                // Without control characters a string of JSON is one of TOML, too.
                format!("\n[[principal]]\nname = {}\n{line}", serde_json::Value::from(name.as_str()))
            }
            None => line,
        }
    }

    /// Where in the access file that belongs.
    const fn place(&self) -> &'static str {
        if self.principal.is_some() {
            "at its end, with grants below"
        } else {
            "directly below the [[principal]] whose token it is, above its grants"
        }
    }
}

/// Makes a token.
pub fn token(args: TokenArgs, output: Output) -> Result<(), CliError> {
    let TokenCommand::New { principal, to } = args.command;
    let token = NewToken::generate().map_err(|why| CliError::failed("could not make a token", why))?;
    if let Some(path) = &to {
        write(path, token.reveal())?;
    }
    let view = TokenView {
        token: to.is_none().then(|| token.reveal().to_owned()),
        token_file: to.map(|path| path.display().to_string()),
        digest: token.digest(),
        principal,
    };
    output.show(&view, |view| {
        let entry = view.entry();
        match &view.token {
            Some(token) => format!(
                "{token}\n\nThat is the token, shown this once: keep it in a file that only its user can read.\n\
                 For the access file of the server, {}:\n\n{}",
                view.place(),
                entry.trim_start()
            ),
            None => entry,
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
