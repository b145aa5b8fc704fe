//! Why a server could not start or go on.

use std::path::PathBuf;
use std::time::Duration;

use kagzi_core::StoreError;

use crate::auth::AccessError;
use crate::config::ConfigError;

/// Why a server could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The configuration was refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The access file was refused.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// What a command is about to do to the store cannot be put on record, and so is not done.
    #[error(
        "audit log {}: {source}; nothing was done, since it cannot be put on record: make room there, or run the command as a user who may write the file", path.display()
    )]
    NotOnRecord {
        /// The file that the configuration names.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// The address can be reached from other machines, and the server lacks what that asks for.
    #[error(
        "address {address} can be reached from other machines, and this server has {lacks}. There are three ways out: listen on loopback (127.0.0.1 or ::1); or give it both, authentication (access_file) and TLS (tls_cert and tls_key); or, if a proxy or a closed network before it does both, say --insecure"
    )]
    Exposed {
        /// The address.
        address: String,
        /// What is missing.
        lacks: &'static str,
    },
    /// No backend of this program opens such a URL.
    #[error("store: expected a URL with one of the schemes built in ({built_in}), got {got}")]
    UnknownStore {
        /// The schemes that this program opens.
        built_in: String,
        /// What was given, in words.
        got: String,
    },
    /// The store did not open.
    #[error("store {url}: {source}")]
    OpenStore {
        /// The URL without its password.
        url: String,
        /// What the backend said.
        source: StoreError,
    },
    /// The store was away when the server started, and has stayed so.
    #[error(
        "store {url}: it has not opened within start_timeout ({waited:?}): {source}; see that it runs and can be reached, or wait longer with --start-timeout or KAGZI_START_TIMEOUT"
    )]
    StoreStayedAway {
        /// The URL without its password.
        url: String,
        /// For how long the server has waited.
        waited: Duration,
        /// What the backend said last.
        source: StoreError,
    },
    /// Somebody else listens there.
    #[error(
        "address {address} is in use; stop who listens there (another kagzi server?), or choose another with --listen or KAGZI_LISTEN"
    )]
    AddressInUse {
        /// The address.
        address: String,
    },
    /// The address cannot be listened on.
    #[error("address {address}: {source}; give a host:port of this machine with --listen or KAGZI_LISTEN")]
    Bind {
        /// The address.
        address: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The reflection service refused the protocol's own descriptors: a build gone wrong.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The transport broke down.
    #[error("gRPC transport: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The HTTP endpoint broke down.
    #[error("HTTP endpoint: {0}")]
    Http(#[source] std::io::Error),
    /// The store did not close cleanly. What was acknowledged is safe all the same.
    #[error("closing the store: {0}")]
    CloseStore(#[source] StoreError),
    /// A task of the server panicked or was aborted.
    #[error("a task of the server ended early: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl ServerError {
    /// Whether the store is only away: to open it may succeed later.
    pub(crate) const fn is_for_now(&self) -> bool {
        matches!(self, Self::OpenStore { source, .. } if source.is_retryable())
    }

    /// Why the store is away, for callers: nothing that tells where it is.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::OpenStore {
                source: StoreError::Unavailable { reason, .. } | StoreError::OutcomeUnknown { reason, .. },
                ..
            } => reason.clone(),
            _ => "the log of the server says why".to_owned(),
        }
    }

    /// The same of a store that was waited for.
    pub(crate) fn for_so_long(self, waited: Duration) -> Self {
        match self {
            Self::OpenStore { url, source } => Self::StoreStayedAway { url, waited, source },
            other => other,
        }
    }
}
