//! What the database said, as what callers can act on.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use kagzi_core::{ErrorScope, StoreError};

use crate::route::no_server;

/// How long a caller should wait before it asks again after the database was away.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(500);

/// How often a transaction is tried again after the database undid it for the sake of another.
pub(crate) const MAX_TRIES: u32 = 10;

/// Why a transaction did not end in an answer.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The rules said no, or the data are damaged. Nothing was written.
    Refused(StoreError),
    /// The database failed before a commit was asked for. Nothing was written.
    Before(sqlx::Error),
    /// The database failed while committing.
    Committing(sqlx::Error),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        Self::Before(error)
    }
}

/// For logs: what the database said, never the values it said it of.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(error) => error.fmt(f),
            Self::Before(error) | Self::Committing(error) => {
                write!(f, "{} ({})", said(error), code(error).as_deref().unwrap_or("no SQLSTATE"))
            }
        }
    }
}

impl Fault {
    /// Whether a lock was not free in time. Nothing was written.
    pub(crate) fn is_locked(&self) -> bool {
        matches!(self, Self::Before(error) if code(error).as_deref() == Some("55P03"))
    }

    /// Whether the server ended a statement that took longer than it may. Nothing was written.
    pub(crate) fn is_too_slow(&self) -> bool {
        matches!(self, Self::Before(error) if code(error).as_deref() == Some("57014"))
    }

    /// Whether a node behind the server is gone, so that its partitions are, and no others.
    pub(crate) fn is_node_away(&self) -> bool {
        matches!(self, Self::Before(error) | Self::Committing(error) if is_node_away(error))
    }

    /// Whether the same again, at once, will probably do: the database undid the transaction for the
    /// sake of another (a deadlock, a conflict of serializable transactions) or because we were frozen
    /// in it, or it went over a connection that had died, which the pool replaces.
    pub(crate) fn is_transient(&self) -> bool {
        let undone = |error| matches!(code(error).as_deref(), Some("40001" | "40P01" | "25P03"));
        match self {
            Self::Refused(_) => false,
            // Where one link went silent the others probably did, and each costs a long wait.
            Self::Before(error) => {
                undone(error) || is_connection_lost(error) && !is_silence(error) && !is_node_away(error)
            }
            Self::Committing(error) => undone(error),
        }
    }

    /// The answer to whoever opens a store: what the server will refuse again, however often it is asked, is a mistake
    /// in the URL, or in how the server was prepared for it.
    pub(crate) fn on_opening(self, context: &'static str) -> StoreError {
        if let Self::Before(error) = &self
            && let Some(expected) = code(error).as_deref().and_then(mistake)
        {
            return StoreError::InvalidArgument {
                field: "url".to_owned(),
                expected: expected.to_owned(),
                got: format!("what Postgres refuses: {}", said(error)),
            };
        }
        self.into_store_error(context)
    }

    /// The answer to the caller. What a node took along is about its partitions, while the store as a whole is well.
    pub(crate) fn into_store_error(self, context: &'static str) -> StoreError {
        let scope = if self.is_node_away() { ErrorScope::Part } else { ErrorScope::Store };
        let error = match self {
            // Whoever refused knows what that is about.
            Self::Refused(error) => return error,
            Self::Before(error) => before(context, &error),
            // The database refused the commit in so many words: nothing was written.
            Self::Committing(error)
                if code(&error).is_some() && !is_away(&error) && !is_commit_unanswered(&error) =>
            {
                before(context, &error)
            }
            Self::Committing(error) => {
                let lost =
                    if is_node_away(&error) { "a node of the cluster" } else { "the connection to Postgres" };
                StoreError::outcome_unknown(format!("{lost} was lost while {context}: {}", said(&error)))
            }
        };
        error.within(scope)
    }
}

/// Whether the connection or the server is gone, rather than the statement refused.
pub(crate) fn is_away(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(_) => {
            let code = code(error).unwrap_or_default();
            code.starts_with("08") || matches!(code.as_str(), "57P01" | "57P02" | "57P03")
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        other => no_server(other).is_some(),
    }
}

/// Whether a connection that the pool had given out was lost. A statement that commits itself may
/// have been done then, or not.
pub(crate) fn is_connection_lost(error: &sqlx::Error) -> bool {
    is_away(error)
        && !matches!(error, sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed)
        && no_server(error).is_none()
}

/// Whether a server that spreads its tables over nodes (Citus) could not reach one of them. The server itself is well.
pub(crate) fn is_node_away(error: &sqlx::Error) -> bool {
    code(error).is_some_and(|code| code.starts_with("08")) && said(error).contains("remote node")
        || is_commit_unanswered(error)
}

/// Whether Citus asked the one node that a transaction wrote on to commit, and got no answer. It says that in words only, as
/// an internal error, and what was written may stand.
fn is_commit_unanswered(error: &sqlx::Error) -> bool {
    code(error).as_deref() == Some("XX000") && said(error).contains("could not commit transaction for shard")
}

/// Whether an answer did not come in time, on a link that may be dead.
fn is_silence(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::TimedOut)
}

/// Whether the server, or the session, takes no writes: a standby, or a server that was told so.
pub(crate) fn is_read_only(error: &sqlx::Error) -> bool {
    code(error).as_deref() == Some("25006")
}

/// Whether there is no room left on a disk of the server.
pub(crate) fn is_full(error: &sqlx::Error) -> bool {
    code(error).as_deref() == Some("53100")
}

/// Whether the user has no right to do that.
pub(crate) fn is_forbidden(error: &sqlx::Error) -> bool {
    code(error).as_deref() == Some("42501")
}

/// The answer to a failure before anything was written.
pub(crate) fn before(context: &'static str, error: &sqlx::Error) -> StoreError {
    let reason = match error {
        sqlx::Error::PoolTimedOut => "no connection to Postgres could be had in time: either it is down or \
            unreachable, or all connections are taken (`max_connections` of the store)"
            .to_owned(),
        sqlx::Error::PoolClosed => "the store is closed".to_owned(),
        error if no_server(error).is_some() => {
            format!(
                "Postgres takes no writes: {}; see that the primary runs, or promote a standby",
                said(error)
            )
        }
        error if said(error).contains("unsupported startup parameter") => {
            format!("{}; {POOLER_REMEDY}", said(error))
        }
        error if is_node_away(error) => format!(
            "a node of the cluster cannot be reached, and with it its partitions: {}; start it again, or see `SELECT * \
             FROM citus_check_cluster_node_health()` on the coordinator",
            said(error)
        ),
        error if is_away(error) => format!(
            "Postgres cannot be reached: {}; check that it runs and that the host, port and network of the \
             URL are right",
            said(error)
        ),
        error => match refusal(&code(error).unwrap_or_default()) {
            Some(remedy) => format!("Postgres refuses: {}; {remedy}", said(error)),
            None => return StoreError::Internal { context, detail: said(error).into_owned() },
        },
    };
    StoreError::unavailable(reason, RETRY_AFTER)
}

/// What to do where a pooler shows itself.
const POOLER_REMEDY: &str = "a connection pooler such as PgBouncer answers in front of Postgres: add `?pooler=transaction` to the URL";

/// What the database said, without the place in its own source that sqlx adds.
pub(crate) fn said(error: &sqlx::Error) -> Cow<'_, str> {
    if let Some(why) = no_server(error) {
        return why.to_string().into();
    }
    match error {
        sqlx::Error::Database(error) => error.message().into(),
        other => other.to_string().into(),
    }
}

/// What whoever opens a store should have given, by the SQLSTATE of a refusal that does not pass.
fn mistake(code: &str) -> Option<&'static str> {
    match code {
        "3D000" => Some("a database that exists: create it, or name another"),
        "42501" => Some("a user with rights on the database and the schema: grant them, or name another"),
        _ if code.starts_with("28") => Some("a user whom the server lets in, and the right password"),
        _ => None,
    }
}

/// What to do about a refusal that passes or that the operator can lift, by SQLSTATE.
fn refusal(code: &str) -> Option<&'static str> {
    match code {
        "53300" => Some("raise max_connections of the server, or lower it in the stores"),
        "53100" => Some("free some disk space"),
        _ if code.starts_with("53") => Some("give the server more resources"),
        "25006" => Some("it is read-only now; point the URL at the primary, or name all servers in it"),
        "42P05" | "26000" => Some(POOLER_REMEDY),
        "25P03" => Some("this process did not go on for longer than idle_in_transaction_timeout; try again"),
        "57014" => Some("the statement took longer than its timeout; find out what blocks it"),
        "55P03" => Some("a lock was not free in time; find out who holds it"),
        "40001" | "40P01" => Some("it undid the transaction for the sake of another too often; try again"),
        _ if code.starts_with("28") => Some("check the user and the password of the URL"),
        "3D000" => Some("create the database, or name another in the URL"),
        "42501" => Some("grant the user its rights on the schema"),
        _ => None,
    }
}

fn code(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).map(Cow::into_owned)
}

/// Damaged data, or a bug: a value that this store never writes.
pub(crate) fn damaged(detail: impl Into<String>) -> StoreError {
    StoreError::Internal { context: "reading a row", detail: detail.into() }
}
