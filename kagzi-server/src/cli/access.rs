//! How a command reaches its server: the address, whom to trust, and what to show.
//!
//! No secret is an argument: whoever can list the processes of a machine sees those.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use kagzi_sdk::transport::{GrpcOptions, PlaintextTokens, Token};
use kagzi_sdk::{Client, ClientError, Encryption};
use kagzi_server::{may_hold_a_password, value_may_hold_a_password};
use tokio::process::Command;

/// Where a server listens unless told otherwise.
pub const DEFAULT_SERVER: &str = "http://127.0.0.1:7474";

/// The variable that may hold a token.
const TOKEN_VARIABLE: &str = "KAGZI_TOKEN";

/// The way to a server.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct ServerAccess {
    /// Where the server is.
    #[arg(long, global = true, env = "KAGZI_SERVER", value_name = "URL", hide_env_values = true,
        default_value = DEFAULT_SERVER)]
    pub server: String,
    /// A file with the token that the server knows you by; or put the token itself into the variable
    /// `KAGZI_TOKEN`.
    #[arg(long, global = true, env = "KAGZI_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The authorities to trust for `https://`, a PEM file [default: those of the system].
    #[arg(long, global = true, env = "KAGZI_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Your certificate with its chain, a PEM file, for servers that know you by it.
    #[arg(long, global = true, env = "KAGZI_CLIENT_CERT", value_name = "FILE")]
    client_cert: Option<PathBuf>,
    /// The key of your certificate, a PEM file.
    #[arg(long, global = true, env = "KAGZI_CLIENT_KEY", value_name = "FILE")]
    client_key: Option<PathBuf>,
    /// The keys by which applications encrypt their payloads, a file of lines `key-id:base64` (docs/security.md): what a
    /// command sends is encrypted with the first of them, what it shows is decrypted.
    #[arg(long, global = true, env = "KAGZI_PAYLOAD_KEY_FILE", value_name = "FILE")]
    payload_key_file: Option<PathBuf>,
    /// Send the token to another machine without TLS: something below encrypts.
    #[arg(long, global = true, env = "KAGZI_PLAINTEXT_TOKEN", value_name = "BOOL", num_args = 0..=1,
        require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true)]
    plaintext_token: bool,
}

impl ServerAccess {
    /// The same way to a server elsewhere.
    #[must_use]
    pub fn at(&self, server: &str) -> Self {
        Self { server: server.to_owned(), ..self.clone() }
    }

    /// Tells a child process the same way. It has the variables of this one already.
    pub fn hand_on(&self, command: &mut Command) {
        command.args(["--server", &self.server]);
        let files = [
            ("--token-file", &self.token_file),
            ("--tls-ca", &self.tls_ca),
            ("--client-cert", &self.client_cert),
            ("--client-key", &self.client_key),
        ];
        for (flag, file) in files {
            if let Some(file) = file {
                command.arg(flag).arg(file);
            }
        }
        if self.plaintext_token {
            command.arg("--plaintext-token");
        }
    }

    /// The client with the keys of payloads, if there are any. What is not encrypted is shown as it is: a person looks
    /// at it, no workflow.
    ///
    /// # Errors
    ///
    /// [`ClientError::Credentials`] naming the file, never a key.
    pub fn with_payload_keys(&self, client: Client) -> Result<Client, ClientError> {
        Ok(match &self.payload_key_file {
            Some(path) => {
                client.with_payload_codec(Arc::new(Encryption::from_file(path)?.accept_plaintext()))
            }
            None => client,
        })
    }

    /// Connects.
    ///
    /// # Errors
    ///
    /// [`ClientError`] if the address is none, what is to be shown cannot be read, or nobody answers.
    pub async fn client(&self) -> Result<Client, ClientError> {
        Client::connect_with(&self.server, &self.options()?).await
    }

    /// What the connection needs, read from where it was said to be.
    ///
    /// # Errors
    ///
    /// [`ClientError::Credentials`] naming the file or variable that cannot be used.
    pub fn options(&self) -> Result<GrpcOptions, ClientError> {
        let mut options = GrpcOptions::default();
        options.token = match &self.token_file {
            Some(path) => Some(Token::from_file(path)?),
            None if std::env::var_os(TOKEN_VARIABLE).is_some_and(|value| !value.is_empty()) => {
                Some(Token::from_variable(TOKEN_VARIABLE)?)
            }
            None => None,
        };
        if let Some(path) = &self.tls_ca {
            options.tls = options.tls.authorities_file(path)?;
        }
        options.tls = match (&self.client_cert, &self.client_key) {
            (Some(certificate), Some(key)) => options.tls.identity_files(certificate, key)?,
            (None, None) => options.tls,
            (Some(_), None) => return Err(lacking("--client-cert", "--client-key")),
            (None, Some(_)) => return Err(lacking("--client-key", "--client-cert")),
        };
        if self.plaintext_token {
            options.plaintext_tokens = PlaintextTokens::Anywhere;
        }
        Ok(options)
    }
}

/// The first of a program's arguments that is a URL with a password, which every user of the machine can read, by the
/// name of its flag without the dashes; empty if it has none.
pub fn shown_password(args: impl IntoIterator<Item = OsString>) -> Option<String> {
    let mut flag = String::new();
    for arg in args {
        let arg = arg.to_string_lossy();
        let option = arg.strip_prefix("--").map(|option| (option, option.split_once('=')));
        let (name, value) = match option {
            Some((_, Some((name, value)))) => (name.to_owned(), value),
            Some((option, None)) => {
                option.clone_into(&mut flag);
                continue;
            }
            None => (std::mem::take(&mut flag), arg.as_ref()),
        };
        let is_url = ["store", "server", "jwt-keys", "otlp-endpoint"].contains(&name.as_str());
        let shown = if is_url { value_may_hold_a_password(value) } else { may_hold_a_password(value) };
        if shown {
            return Some(name);
        }
    }
    None
}

fn lacking(given: &str, other: &str) -> ClientError {
    ClientError::Credentials { from: given.to_owned(), problem: format!("expected {other} beside it") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_among_the_arguments_is_noticed_with_the_name_of_its_flag() {
        let shows = |args: &[&str]| shown_password(args.iter().map(OsString::from));
        for (args, flag) in [
            (["serve", "--store", "postgres://u:p@h/db"].as_slice(), "store"),
            (&["serve", "--store=postgres://u:p@h/db"], "store"),
            (&["serve", "--store=postgres://h/db?user=u&password=p"], "store"),
            (&["serve", "--store", "postgres://u:ab/Cd+e=@h/db"], "store"),
            (&["serve", "--store", "postgres:u:p@h"], "store"),
            (&["serve", "--store", "u:p@h/db"], "store"),
            (&["serve", "--store", "host=h password=p"], "store"),
            (&["serve", "--store", "postgres://h/db?passw%6Frd=p"], "store"),
            (&["serve", "--jwt-keys", "https://u:p@h/keys"], "jwt-keys"),
            (&["serve", "--otlp-endpoint=http://u:p@h:4317"], "otlp-endpoint"),
            (&["list", "--json", "--server", "http://u:p@h"], "server"),
            (&["start", "postgres://u:p@h/db"], ""),
        ] {
            assert_eq!(shows(args).as_deref(), Some(flag), "{args:?}");
        }
        for args in [
            ["serve", "--store", "postgres://u@h/db?sslmode=require"].as_slice(),
            &["serve", "--store", "postgres://h:5432/db?options=-c%20a=b"],
            &["serve", "--store=sqlite:///a@b:c.db"],
            &["serve", "--store", "kagzi.db"],
            &["start", "greet", "--input", "\"a=b\"", "--label", "mail=a:b@c"],
            &["list", "--server", "https://h:7474"],
        ] {
            assert_eq!(shows(args), None, "{args:?}");
        }
    }
}
