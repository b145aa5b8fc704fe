//! Reaching the server, and what its answers mean for a command.

use std::time::Duration;

use kagzi_core::{Namespace, StoreError};
use kagzi_sdk::{Client, ClientError};

use super::error::{CliError, Exit};

/// For how long a command repeats a call that fails for a reason that may pass. People wait before the
/// screen, and scripts repeat by themselves.
const PATIENCE: Duration = Duration::from_secs(2);

/// A server, and whose runs are meant.
#[derive(Clone, Debug)]
pub struct Connection {
    client: Client,
    address: String,
}

impl Connection {
    /// Connects to the server at `address`.
    ///
    /// # Errors
    ///
    /// If the address is none, or nobody answers there.
    pub async fn open(address: &str, namespace: &Namespace) -> Result<Self, CliError> {
        let explain = |error| explain("could not reach the server", address, &error);
        let client = Client::connect(address).await.map_err(explain)?;
        let client = client.in_namespace(namespace).map_err(explain)?.with_patience(PATIENCE);
        Ok(Self { client, address: address.to_owned() })
    }

    /// The way to the server.
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// What an answer that is no outcome means for the command that wanted to do `what`.
    pub fn explain(&self, what: &'static str) -> impl Fn(ClientError) -> CliError + '_ {
        move |error| explain(what, &self.address, &error)
    }
}

fn explain(what: &str, address: &str, error: &ClientError) -> CliError {
    let name_it = || Some(format!("name the right server with --server or KAGZI_SERVER (now {address})"));
    let (exit, remedy) = match error {
        ClientError::Address { .. } => (Exit::Usage, None),
        ClientError::Connect { .. } => (Exit::Unavailable, name_it()),
        ClientError::Call(error) => match error {
            StoreError::RunNotFound { .. } => (
                Exit::NotFound,
                Some("`kagzi list` shows the runs; --namespace names another tenant".to_owned()),
            ),
            StoreError::InvalidArgument { .. }
            | StoreError::TooLarge { .. }
            | StoreError::BadCursor { .. } => (Exit::Usage, None),
            StoreError::Unavailable { .. } => (Exit::Unavailable, name_it()),
            StoreError::OutcomeUnknown { .. } => {
                (Exit::Unavailable, Some("look whether it happened".to_owned()))
            }
            StoreError::WrongState { .. } => (Exit::Failed, Some("`kagzi get` shows its state".to_owned())),
            _ => (Exit::Failed, None),
        },
        _ => (Exit::Failed, None),
    };
    CliError { exit, what: what.to_owned(), why: error.to_string(), remedy }
}
