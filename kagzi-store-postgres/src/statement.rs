//! The one way to the database: every statement of the store is a [`Query`] and goes through here.
//!
//! What stands between the store and the server decides how a statement must be sent. On a connection of
//! our own it is prepared under a name and kept, and the settings of the session were sent when it was
//! opened. Behind a pooler that deals out server connections by the transaction neither outlives a
//! transaction: there every statement stands in one, unnamed, and the transaction begins with the
//! settings. [`Tx`] hides the connection, so no other file can send a statement past this one; clippy
//! refuses the plain functions of sqlx elsewhere (see `clippy.toml`).
//!
//! A link may die in silence: a firewall forgets it, a database is replaced by another machine. Neither
//! sqlx nor the system tells for a quarter of an hour or for ever. So nothing here waits for an answer much
//! longer than the database itself allows a statement (see [`Patience`]), and a connection that gave none is
//! let go of.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use kagzi_core::{ConnectionStats, ErrorScope};
use sqlx::postgres::{PgArguments, PgConnection, PgListener, PgRow};
use sqlx::{Connection as _, Encode, Executor as _, Postgres, SqlSafeStr, SqlStr, Type};
use tokio::runtime::Handle;

use crate::Inner;
use crate::error::{Fault, is_connection_lost, is_full, is_node_away, is_read_only};
use crate::pool::Pooled;
use crate::pools::Pools;

mod copy;

/// Statements that let no answer out before its commit is durable, whatever the server's default says:
/// where `synchronous_commit` is off they turn it on. Any other value stands, so that an operator may ask
/// for more, or leave replicas out (`local`).
pub(crate) struct PinDurability {
    pub(crate) in_session: &'static str,
    pub(crate) in_transaction: &'static str,
}

macro_rules! pin {
    ($local:literal) => {
        concat!(
            "SELECT set_config('synchronous_commit',
                 CASE current_setting('synchronous_commit')
                     WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, ",
            $local,
            ")"
        )
    };
}

pub(crate) const PIN_DURABILITY: PinDurability =
    PinDurability { in_session: pin!("false"), in_transaction: pin!("true") };

/// A statement with its arguments.
#[must_use = "it does nothing until it is sent"]
pub(crate) struct Query(sqlx::query::Query<'static, Postgres, PgArguments>);

/// A statement, whose arguments follow by [`Query::bind`].
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub(crate) fn query(sql: &'static str) -> Query {
    // Without values, and for nobody unless asked for by this name.
    tracing::trace!(target: "kagzi::statements", sql);
    Query(sqlx::query(sql))
}

impl Query {
    pub(crate) fn bind<'t, T: Encode<'t, Postgres> + Type<Postgres>>(self, value: T) -> Self {
        Self(self.0.bind(value))
    }

    pub(crate) async fn execute(self, tx: &mut Tx<'_>) -> Result<(), sqlx::Error> {
        let answer = tx.patience.answered(self.0.persistent(tx.names).execute(tx.connection()?)).await;
        tx.note(answer)?;
        Ok(())
    }

    pub(crate) async fn fetch_all(self, tx: &mut Tx<'_>) -> Result<Vec<PgRow>, sqlx::Error> {
        let answer = tx.patience.answered(self.0.persistent(tx.names).fetch_all(tx.connection()?)).await;
        tx.note(answer)
    }

    pub(crate) async fn fetch_one(self, tx: &mut Tx<'_>) -> Result<PgRow, sqlx::Error> {
        let answer = tx.patience.answered(self.0.persistent(tx.names).fetch_one(tx.connection()?)).await;
        tx.note(answer)
    }

    pub(crate) async fn fetch_optional(self, tx: &mut Tx<'_>) -> Result<Option<PgRow>, sqlx::Error> {
        let answer = tx.patience.answered(self.0.persistent(tx.names).fetch_optional(tx.connection()?)).await;
        tx.note(answer)
    }
}

/// How long to wait for an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience(Option<Duration>);

impl Patience {
    /// How much longer than the database allows a statement its answer may be on its way.
    const ON_THE_WAY: Duration = Duration::from_secs(5);

    /// For ever: what changes a schema takes as long as it takes.
    const ENDLESS: Self = Self(None);

    /// For the answer to a statement that the database ends after `statement_timeout`.
    pub(crate) fn beyond(statement_timeout: Duration) -> Self {
        Self(Some(statement_timeout.saturating_add(statement_timeout.min(Self::ON_THE_WAY))))
    }

    /// The answer to what was asked, or [`std::io::ErrorKind::TimedOut`] if none comes in time.
    async fn answered<T>(
        self,
        asked: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        let Some(limit) = self.0 else { return asked.await };
        tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| {
            let silent = format!("no answer within {limit:?}: the link is dead, or the server hangs");
            Err(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, silent)))
        })
    }
}

/// An open transaction. Dropped, it is rolled back.
///
/// It is not sqlx's own: when a caller goes away while that one begins, the BEGIN is sent and forgotten,
/// and the pool gives out a connection with a transaction open. What is written on it then as a
/// transaction of its own is answered as done, is not committed, and keeps its locks.
pub(crate) struct Tx<'c> {
    held: Held<'c>,
    /// Whether statements are prepared under names and kept.
    names: bool,
    /// Whether the connection is to be closed and not used again.
    spent: bool,
    patience: Patience,
    /// Where it came from.
    pools: Option<Arc<Pools>>,
}

enum Held<'c> {
    Pooled(Pooled),
    /// Its owner closes it where the transaction does not end in order.
    Borrowed(&'c mut PgConnection),
    /// The transaction has ended.
    Nothing,
}

impl Tx<'_> {
    fn connection(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        match &mut self.held {
            Held::Pooled(connection) => Ok(connection),
            Held::Borrowed(connection) => Ok(connection),
            // Cannot be: whoever ends a transaction gives it away.
            Held::Nothing => Err(sqlx::Error::WorkerCrashed),
        }
    }

    pub(crate) async fn commit(self) -> Result<(), sqlx::Error> {
        self.end("COMMIT").await
    }

    pub(crate) async fn rollback(self) -> Result<(), sqlx::Error> {
        self.end("ROLLBACK").await
    }

    async fn end(mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        let patience = self.patience;
        let answer = patience.answered(self.connection()?.execute(sql)).await;
        self.note(answer)?;
        self.give_back();
        Ok(())
    }

    /// Runs statements without arguments, of which the text is our own.
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub(crate) async fn run(&mut self, script: impl SqlSafeStr + Send) -> Result<(), sqlx::Error> {
        let patience = self.patience;
        let answer = patience.answered(self.connection()?.execute(sqlx::raw_sql(script))).await;
        self.note(answer)?;
        Ok(())
    }

    /// The server takes no writes: its connection is closed afterwards, and where the URL names several
    /// servers, all are asked again.
    pub(crate) fn leave_server(&mut self) {
        self.spent = true;
        if let Some(pools) = &self.pools {
            pools.suspect();
        }
    }

    fn note<T>(&mut self, answer: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        if answer.as_ref().is_err_and(speaks_against_the_server) {
            self.leave_server();
        }
        if let Some(pools) = self.pools.as_ref().filter(|_| answer.as_ref().is_err_and(is_full)) {
            pools.note_full(true);
        }
        answer
    }

    /// After the transaction has ended.
    fn give_back(&mut self) {
        if let (Held::Pooled(connection), false) =
            (std::mem::replace(&mut self.held, Held::Nothing), self.spent)
        {
            connection.keep();
        }
    }
}

fn speaks_against_the_server(error: &sqlx::Error) -> bool {
    is_read_only(error) || is_connection_lost(error) && !is_node_away(error)
}

impl Drop for Tx<'_> {
    fn drop(&mut self) {
        let Held::Pooled(mut connection) = std::mem::replace(&mut self.held, Held::Nothing) else { return };
        // Nobody is left to roll back, or to be heard; the server does when the connection closes.
        let (false, Ok(runtime)) = (self.spent, Handle::try_current()) else { return };
        let patience = self.patience;
        runtime.spawn(async move {
            // Whatever was under way ends first. The pool does not get back what cannot be rolled back.
            if patience.answered(connection.execute("ROLLBACK")).await.is_ok() {
                connection.keep();
            }
        });
    }
}

/// A connection for one statement that is a transaction of its own.
struct Lent {
    /// Nothing once it was given back.
    connection: Option<Pooled>,
    patience: Patience,
}

impl Lent {
    async fn fetch_all(mut self, query: Query) -> Result<Vec<PgRow>, sqlx::Error> {
        // Cannot be: it is given back below.
        let Some(connection) = &mut self.connection else { return Err(sqlx::Error::WorkerCrashed) };
        let answer = self.patience.answered(query.0.fetch_all(&mut **connection)).await;
        // Any other error leaves it open what the server says next.
        if let (Some(connection), Ok(_) | Err(sqlx::Error::Database(_))) = (self.connection.take(), &answer)
            && !answer.as_ref().is_err_and(speaks_against_the_server)
        {
            connection.keep();
        }
        answer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // Whoever asked went away before the answer, which comes first.
        let (Some(mut connection), Ok(runtime)) = (self.connection.take(), Handle::try_current()) else {
            return;
        };
        let patience = self.patience;
        runtime.spawn(async move {
            if patience.answered(connection.ping()).await.is_ok() {
                connection.keep();
            }
        });
    }
}

/// How transactions begin.
#[derive(Clone, Debug)]
pub(crate) enum Begin {
    /// Plainly: the connection was opened with the settings.
    Plainly,
    /// Behind a transaction pooler: with these statements, of which the first is BEGIN.
    With(SqlStr),
}

impl Begin {
    /// A transaction on a connection outside the pool.
    pub(crate) async fn on<'c>(&self, connection: &'c mut PgConnection) -> Result<Tx<'c>, sqlx::Error> {
        self.hold(Held::Borrowed(connection), Patience::ENDLESS, None).await
    }

    async fn hold<'c>(
        &self,
        held: Held<'c>,
        patience: Patience,
        pools: Option<Arc<Pools>>,
    ) -> Result<Tx<'c>, sqlx::Error> {
        // From here on dropping it rolls back, whether the BEGIN has been sent or not.
        let mut tx = Tx { held, names: matches!(self, Self::Plainly), spent: false, patience, pools };
        match self {
            Self::Plainly => tx.run("BEGIN").await?,
            Self::With(begin) => tx.run(begin.clone()).await?,
        }
        Ok(tx)
    }
}

/// The connections of the store.
#[derive(Clone, Debug)]
pub(crate) struct Sessions {
    pools: Arc<Pools>,
    begin: Begin,
    patience: Patience,
}

impl Sessions {
    pub(crate) fn new(pools: Pools, begin: Begin, patience: Patience) -> Self {
        Self { pools: Arc::new(pools), begin, patience }
    }

    /// How many connections are open, and at work.
    pub(crate) fn stats(&self) -> ConnectionStats {
        let pool = self.pools.now();
        ConnectionStats { in_use: pool.in_use(), idle: pool.idle(), limit: pool.most() }
    }

    pub(crate) async fn begin(&self) -> Result<Tx<'static>, sqlx::Error> {
        let held = Held::Pooled(self.pools.acquire().await?);
        self.begin.hold(held, self.patience, Some(Arc::clone(&self.pools))).await
    }

    /// A connection that listens.
    pub(crate) async fn listener(&self) -> Result<PgListener, sqlx::Error> {
        self.pools.listener().await
    }

    /// Runs a statement that is a transaction of its own. If the connection breaks on the way, its fate
    /// is open.
    pub(crate) async fn write_all(&self, query: Query) -> Result<Vec<PgRow>, Fault> {
        match self.begin {
            Begin::Plainly => {
                let lent = Lent { connection: Some(self.pools.acquire().await?), patience: self.patience };
                let answer = lent.fetch_all(query).await;
                if answer.as_ref().is_err_and(speaks_against_the_server) {
                    self.pools.suspect();
                }
                if answer.as_ref().is_err_and(is_full) {
                    self.pools.note_full(true);
                }
                answer.map_err(|error| {
                    if is_connection_lost(&error) { Fault::Committing(error) } else { Fault::Before(error) }
                })
            }
            Begin::With(_) => {
                let mut tx = self.begin().await?;
                let rows = query.fetch_all(&mut tx).await?;
                tx.commit().await.map_err(Fault::Committing)?;
                Ok(rows)
            }
        }
    }

    /// How many connections there may be at once.
    pub(crate) fn most(&self) -> u32 {
        self.pools.now().most()
    }

    /// Whether a pooler stands between here and the server, as far as the options say.
    pub(crate) const fn is_pooled(&self) -> bool {
        matches!(self.begin, Begin::With(_))
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.pools.is_closed()
    }

    /// Whether a statement found no room on a disk of the server, and nobody has found any since.
    pub(crate) fn is_full(&self) -> bool {
        self.pools.is_full()
    }

    /// Somebody found room.
    pub(crate) fn found_room(&self) {
        self.pools.note_full(false);
    }

    pub(crate) async fn close(&self) {
        self.pools.close().await;
    }
}

impl Inner {
    /// Runs a statement that only reads.
    pub(crate) async fn fetch_all(&self, query: Query) -> Result<Vec<PgRow>, Fault> {
        match self.write_all(query).await {
            // Nothing was to be written, so no fate is open.
            Err(Fault::Committing(error)) => Err(Fault::Before(error)),
            other => other,
        }
    }

    /// Runs a statement that only reads, and may read much: when it has its turn. One that is not done in time says that it
    /// reads too much, and nothing of the store.
    pub(crate) async fn scan(&self, query: Query) -> Result<Vec<PgRow>, Fault> {
        let _turn = self.reads.turn_to_scan().await?;
        let answer = self.fetch_all(query).await;
        answer.map_err(|fault| {
            if fault.is_too_slow() {
                fault.into_store_error("reading").within(ErrorScope::Part).into()
            } else {
                fault
            }
        })
    }

    /// Runs a statement that writes. If the connection breaks on the way, its fate is open.
    pub(crate) async fn write_all(&self, query: Query) -> Result<Vec<PgRow>, Fault> {
        self.pool.write_all(query).await
    }
}
