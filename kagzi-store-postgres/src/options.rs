//! How the store is opened.

use std::fmt;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use kagzi_core::{Clock, Rules, StoreError};
use sqlx::postgres::PgConnectOptions;

/// Whether the store hears of other servers' changes through LISTEN/NOTIFY.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Listen {
    /// It listens and notifies, on a connection of its own for each.
    #[default]
    On,
    /// It does neither: workers hear of other servers' changes when they poll.
    Off,
}

/// What stands between the store and the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooler {
    /// Nothing, or a pooler that gives every client a session of its own.
    #[default]
    None,
    /// A pooler that gives a client another server connection for each transaction, such as
    /// `PgBouncer` with `pool_mode = transaction`: the store then prepares no statements that outlive
    /// a transaction and sends no settings when it connects. LISTEN stays silent there, so wake-ups
    /// between servers wait for the next poll.
    Transaction,
}

/// Options of a [`PostgresStore`](crate::PostgresStore). Start from [`PostgresOptions::new`].
#[derive(Clone)]
pub struct PostgresOptions {
    /// `postgres://` or `postgresql://`, with the parameters of libpq and three more: `partitions`,
    /// `schema` and `pooler` (`none` or `transaction`), which set the fields of the same names.
    pub url: String,
    /// Over how many partitions a **new** schema spreads its runs: 1 to 1,024. A schema keeps the
    /// number it was made with; naming another one for it later is refused. Nothing: 1 for a new
    /// schema, whatever it has for an existing one.
    pub partitions: Option<u16>,
    /// The schema of the tables, made if it does not exist: a lower-case identifier. Nothing: the first
    /// of the connection's search path, which is `public` unless configured otherwise. With
    /// [`Pooler::Transaction`] set the search path of the role instead.
    pub schema: Option<String>,
    /// Limits and defaults that every backend applies alike.
    pub rules: Rules,
    /// Who tells the time. Nothing: the database's clock, so that servers with skewed clocks agree.
    pub clock: Option<Arc<dyn Clock>>,
    /// How many connections the store may open, beside two for [`Listen::On`]: 2 to 1,000. 16 by default.
    pub max_connections: u32,
    /// How many batches of one kind may be in flight at once: 1 to 64. 2 by default.
    pub lanes: usize,
    /// How many operations a batch holds at most: 1 to 10,000. 256 by default.
    pub max_batch: usize,
    /// How many operations of one kind may wait or be in flight; more callers wait for a place. 1 to
    /// 1,000,000. 20,000 by default.
    pub max_queued: usize,
    /// How long to wait for a free connection: 1 ms to 1 hour. 5 s by default.
    pub acquire_timeout: Duration,
    /// How long the server may work on one statement: 1 ms to 1 hour. 30 s by default. Not set through a
    /// [`Pooler::Transaction`]; set it for the role there.
    pub statement_timeout: Duration,
    /// Whether the store hears of other servers' changes at once.
    pub listen: Listen,
    /// What stands between the store and the server.
    pub pooler: Pooler,
}

impl PostgresOptions {
    /// The defaults, for the database at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            partitions: None,
            schema: None,
            rules: Rules::default(),
            clock: None,
            max_connections: 16,
            lanes: 2,
            max_batch: 256,
            max_queued: 20_000,
            acquire_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(30),
            listen: Listen::default(),
            pooler: Pooler::default(),
        }
    }

    /// Takes our own parameters out of the URL, checks every field, and makes what sqlx wants.
    pub(crate) fn resolve(mut self) -> Result<(Self, PgConnectOptions), StoreError> {
        if !(self.url.starts_with("postgres://") || self.url.starts_with("postgresql://")) {
            let scheme = self.url.split_once("://").map_or("no scheme", |(scheme, _)| scheme);
            return Err(refused("url", "postgres://USER@HOST/DATABASE", scheme));
        }
        self.take_parameters()?;
        self.check()?;
        // The parser's message could quote the password.
        let connect = PgConnectOptions::from_str(&self.url)
            .map_err(|_| refused("url", "postgres://USER@HOST/DATABASE", "a URL that cannot be read"))?
            .extra_float_digits(None);
        let connect = if connect.get_application_name().is_none() {
            connect.application_name("kagzi")
        } else {
            connect
        };
        let connect = match (self.pooler, &self.schema) {
            (Pooler::Transaction, Some(_)) => {
                return Err(refused(
                    "schema",
                    "none with pooler=transaction (ALTER ROLE ... SET search_path instead)",
                    "one",
                ));
            }
            (Pooler::Transaction, None) => connect.statement_cache_capacity(0),
            (Pooler::None, schema) => {
                let timeout = self.statement_timeout.as_millis().to_string();
                // Every statement has an index made for it that gives the rows in their order, and plans
                // that were cached while a table was small must not read and sort all of it later.
                // Nothing here is worth compiling.
                let connect = connect.options([
                    ("statement_timeout", timeout.as_str()),
                    ("enable_seqscan", "off"),
                    ("enable_bitmapscan", "off"),
                    ("jit", "off"),
                ]);
                match schema {
                    Some(schema) => connect.options([("search_path", schema)]),
                    None => connect,
                }
            }
        };
        Ok((self, connect))
    }

    fn take_parameters(&mut self) -> Result<(), StoreError> {
        let Some((base, query)) = self.url.split_once('?') else { return Ok(()) };
        let (base, mut kept) = (base.to_owned(), Vec::new());
        for pair in query.split('&').filter(|pair| !pair.is_empty()).map(str::to_owned).collect::<Vec<_>>() {
            match pair.split_once('=').unwrap_or((&pair, "")) {
                ("partitions", value) => {
                    let number = value.parse().map_err(|_| refused("partitions", "from 1 to 1024", value))?;
                    self.partitions = Some(number);
                }
                ("schema", value) => self.schema = Some(value.to_owned()),
                ("pooler", "none") => self.pooler = Pooler::None,
                ("pooler", "transaction") => self.pooler = Pooler::Transaction,
                ("pooler", value) => return Err(refused("pooler", "none or transaction", value)),
                _ => kept.push(pair),
            }
        }
        self.url = if kept.is_empty() { base } else { format!("{base}?{}", kept.join("&")) };
        Ok(())
    }

    fn check(&self) -> Result<(), StoreError> {
        let within = |field: &str, value: usize, low: usize, high: usize| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(refused(field, &format!("from {low} to {high}"), &value.to_string()))
            }
        };
        within("partitions", self.partitions.unwrap_or(1).into(), 1, 1024)?;
        within("max_connections", self.max_connections as usize, 2, 1000)?;
        within("lanes", self.lanes, 1, 64)?;
        within("max_batch", self.max_batch, 1, 10_000)?;
        within("max_queued", self.max_queued, 1, 1_000_000)?;
        within("rules.poison_after", self.rules.poison_after as usize, 1, u32::MAX as usize)?;
        self.rules.default_retry.validate()?;
        for (field, timeout) in
            [("acquire_timeout", self.acquire_timeout), ("statement_timeout", self.statement_timeout)]
        {
            if timeout < Duration::from_millis(1) || timeout > Duration::from_hours(1) {
                return Err(refused(field, "from 1 ms to 1 hour", &format!("{timeout:?}")));
            }
        }
        match &self.schema {
            Some(schema) if !is_plain_identifier(schema) => Err(refused(
                "schema",
                "1 to 56 characters of a-z, 0-9 and _, not beginning with a digit or pg_",
                schema,
            )),
            _ => Ok(()),
        }
    }
}

/// Without the URL, which may hold a password.
impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOptions")
            .field("partitions", &self.partitions)
            .field("schema", &self.schema)
            .field("clock", &self.clock)
            .field("max_connections", &self.max_connections)
            .field("lanes", &self.lanes)
            .field("max_batch", &self.max_batch)
            .field("listen", &self.listen)
            .field("pooler", &self.pooler)
            .finish_non_exhaustive()
    }
}

/// Postgres allows 63 bytes, of which the name of the notification channel needs some.
const MAX_SCHEMA_BYTES: usize = 56;

fn is_plain_identifier(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_SCHEMA_BYTES
        && !name.starts_with("pg_")
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

fn refused(field: &str, expected: &str, got: &str) -> StoreError {
    StoreError::InvalidArgument {
        field: field.to_owned(),
        expected: expected.to_owned(),
        got: got.chars().filter(|c| !c.is_control()).take(64).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_parameters_are_taken_out_of_the_url() {
        let options =
            PostgresOptions::new("postgres://u@h/d?partitions=7&sslmode=disable&schema=s1&pooler=none");
        let (options, connect) = options.resolve().unwrap();
        assert_eq!(options.url, "postgres://u@h/d?sslmode=disable");
        assert_eq!((options.partitions, options.schema.as_deref()), (Some(7), Some("s1")));
        assert!(connect.get_options().unwrap().contains("search_path=s1"));
    }

    #[test]
    fn bad_options_are_refused_by_name() {
        for (url, wanted) in [
            ("mysql://h/d", "url"),
            ("postgres://h/d?partitions=0", "partitions"),
            ("postgres://h/d?partitions=x", "partitions"),
            ("postgres://h/d?schema=A;drop", "schema"),
            ("postgres://h/d?pooler=session", "pooler"),
            ("postgres://h/d?pooler=transaction&schema=s", "schema"),
        ] {
            let error = PostgresOptions::new(url).resolve().unwrap_err();
            assert!(
                matches!(&error, StoreError::InvalidArgument { field, .. } if field == wanted),
                "{url}: {error}"
            );
        }
        let shown = format!("{:?}", PostgresOptions::new("postgres://u:secret@h/d"));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
