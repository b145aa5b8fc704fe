//! Reaching the server, and what its answers mean for a command.

use std::time::Duration;

use kagzi_core::{Namespace, StoreError};
use kagzi_sdk::{Client, ClientError};
use kagzi_server::without_password;

use super::access::ServerAccess;
use super::error::{CliError, Exit};

/// For how long a command repeats a call that fails for a reason that may pass. People wait before the
/// screen, and scripts repeat by themselves.
const PATIENCE: Duration = Duration::from_secs(2);

/// A server, and whose runs are meant.
#[derive(Clone, Debug)]
pub struct Connection {
    client: Client,
    /// As it may be shown.
    address: String,
}

impl Connection {
    /// Connects to the server that `access` names.
    ///
    /// # Errors
    ///
    /// If the address is none, what is to be shown there cannot be read, or nobody answers.
    pub async fn open(access: &ServerAccess, namespace: &Namespace) -> Result<Self, CliError> {
        let address = access.server.as_str();
        let explain = |error| explain("could not reach the server", &without_password(address), &error);
        let options = access.options().map_err(explain)?;
        let client = Client::connect_with(address, &options).await.map_err(explain)?;
        let client = client.in_namespace(namespace).map_err(explain)?.with_patience(PATIENCE);
        let client = access.with_payload_keys(client).map_err(explain)?;
        Ok(Self { client, address: without_password(address) })
    }

    /// The way to the server.
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// What an answer that is no outcome means for the command that wanted to do `what`.
    pub fn explain(&self, what: &'static str) -> impl Fn(ClientError) -> CliError + '_ {
        move |error| explain(what, &self.address, &error)
    }

    /// As [`explain`](Self::explain), for a command that only asks: it has no outcome that could be unknown.
    pub fn explain_read(&self, what: &'static str) -> impl Fn(ClientError) -> CliError + '_ {
        move |error| explain_read(what, &self.address, &error)
    }
}

fn explain_read(what: &str, address: &str, error: &ClientError) -> CliError {
    let ClientError::Call(StoreError::OutcomeUnknown { reason, .. }) = error else {
        return explain(what, address, error);
    };
    let remedy = if address.starts_with("http://") {
        format!("again; if the server at {address} speaks TLS, name it with https://")
    } else {
        format!("again; the log of the server at {address} says more")
    };
    CliError { exit: Exit::Unavailable, ..CliError::failed(what, format!("no answer came: {reason}")) }
        .remedy(remedy)
}

fn explain(what: &str, address: &str, error: &ClientError) -> CliError {
    let (exit, remedy) = match error {
        ClientError::Address { .. } | ClientError::Credentials { .. } => (Exit::Usage, None),
        ClientError::Connect { .. } => (
            Exit::Unavailable,
            Some(format!("name the right server with --server or KAGZI_SERVER (now {address})")),
        ),
        ClientError::Call(error) => verdict(error, address),
        _ => (Exit::Failed, None),
    };
    CliError { exit, what: what.to_owned(), why: error.to_string(), remedy }
}

/// What an answer means. That there is one says that the address is right: it was connected to before.
fn verdict(error: &StoreError, address: &str) -> (Exit, Option<String>) {
    let (exit, remedy) = match error {
        StoreError::RunNotFound { .. } => {
            (Exit::NotFound, "`kagzi list` shows the runs; --namespace names another tenant")
        }
        StoreError::InvalidArgument { field, .. } if field == "credentials" => (
            Exit::Refused,
            "a token by --token-file or KAGZI_TOKEN, or a certificate by --client-cert, to which the server's access file grants this",
        ),
        StoreError::InvalidArgument { .. } | StoreError::TooLarge { .. } | StoreError::BadCursor { .. } => {
            return (Exit::Usage, None);
        }
        StoreError::Unavailable { .. } => {
            let remedy = format!("again when it has passed; the log of the server at {address} says more");
            return (Exit::Unavailable, Some(remedy));
        }
        StoreError::OutcomeUnknown { .. } => (Exit::Unavailable, "look whether it happened: `kagzi list`"),
        StoreError::WrongState { .. } => (Exit::Failed, "`kagzi get` shows its state"),
        _ => return (Exit::Failed, None),
    };
    (exit, Some(remedy.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_without_an_answer_has_no_outcome_and_may_want_tls() {
        let broke = || StoreError::outcome_unknown("the connection broke: eof").into();
        let explained = explain_read("could not list the runs", "http://a:1", &broke());
        let told = explained.to_string();
        assert_eq!(explained.exit, Exit::Unavailable);
        assert!(told.contains("the connection broke: eof") && told.contains("https://"), "{told}");
        assert!(!told.contains("outcome") && !told.contains("look whether"), "{told}");
        let told = explain_read("could not list the runs", "https://a:1", &broke()).to_string();
        assert!(!told.contains("name it with https://"), "{told}");
        // Whoever asked for a change has to look.
        let told = explain("could not start the run", "http://a:1", &broke()).to_string();
        assert!(told.contains("look whether it happened"), "{told}");
    }

    #[test]
    fn only_where_nobody_answers_another_address_is_suggested() {
        let remedy = |error: ClientError| {
            let explained = explain("could not", "http://a:1", &error);
            assert_eq!(explained.exit, Exit::Unavailable);
            explained.remedy.unwrap_or_default()
        };
        let (address, problem) = ("http://a:1".to_owned(), "refused".to_owned());
        assert!(remedy(ClientError::Connect { address, problem }).contains("--server"));
        let answered = remedy(StoreError::unavailable("Postgres is away", Duration::ZERO).into());
        assert!(!answered.contains("--server") && answered.contains("log of the server"), "{answered}");
    }
}
