//! How the store is opened.

use std::fmt;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use kagzi_core::{Clock, Rules, SchemaPolicy, StoreError};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, SqlSafeStr as _};

use crate::route::Servers;
use crate::statement::{Begin, PIN_DURABILITY};

mod hosts;
mod parameters;

pub(crate) use hosts::Target;

/// Whether the store hears of other servers' changes through LISTEN/NOTIFY.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Listen {
    /// It listens and notifies, on a connection of its own for each.
    #[default]
    On,
    /// It does neither: workers hear of other servers' changes when they poll.
    Off,
}

/// A peer that vanished without a word is noticed by the server after about 45 s. Only asked for where
/// nothing stands between: a pooler's connections are its own affair.
const KEEPALIVE: [(&str, &str); 3] =
    [("tcp_keepalives_idle", "30"), ("tcp_keepalives_interval", "5"), ("tcp_keepalives_count", "3")];

/// What stands between the store and the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooler {
    /// Nothing, or a pooler that gives every client a session of its own.
    #[default]
    None,
    /// A pooler that gives a client another server connection for each transaction, such as
    /// PgBouncer with `pool_mode = transaction`: the store then sends its settings in each transaction
    /// instead of once a connection, and prepares no statement that outlives it, which costs two to
    /// three round trips an operation. LISTEN stays silent there, so the store does not use it, and
    /// wake-ups between servers wait for the next poll. Good for session pooling as well.
    Transaction,
}

/// Options of a [`PostgresStore`](crate::PostgresStore). Start from [`PostgresOptions::new`].
#[derive(Clone)]
pub struct PostgresOptions {
    /// `postgres://` or `postgresql://`, with the parameters of libpq and three more: `partitions`,
    /// `schema` and `pooler` (`none` or `transaction`), which set the fields of the same names.
    ///
    /// It may name several hosts, as for libpq (`postgres://a,b:5433/db`, or `host=a,b` with `port=`): the
    /// store works with one of them and follows to another when that one is away or writes no more.
    /// `target_session_attrs` says what a server must be like: `read-write`, `primary` or `any`. Unlike in
    /// libpq it is `read-write` unless said otherwise where several hosts are named, since the store is of
    /// no use on a standby, and `any` where there is one.
    pub url: String,
    /// Over how many partitions a **new** schema spreads its runs: 1 to 4,096. A schema keeps the
    /// number it was made with; naming another one for it later is refused, and so is a URL that says another
    /// than this field. Nothing: 1 for a new schema, whatever it has for an existing one.
    pub partitions: Option<u16>,
    /// The schema of the tables, made if it does not exist: a lower-case identifier. Nothing: the first
    /// of the connection's search path, which is `public` unless configured otherwise.
    pub schema: Option<String>,
    /// Limits and defaults that every backend applies alike.
    pub rules: Rules,
    /// Who tells the time. Nothing: the database's clock, so that servers with skewed clocks agree.
    pub clock: Option<Arc<dyn Clock>>,
    /// How many connections the store may open, beside two for [`Listen::On`]: 2 to 1,000. 16 by default.
    pub max_connections: u32,
    /// How many batches of one kind may be in flight at once with operations of one namespace: 1 to 64. 2 by default; of
    /// all namespaces together there may be one more. Over several partitions as many as these, or a quarter of the
    /// connections, if that is more.
    pub lanes: usize,
    /// How many operations a batch holds at most: 1 to 10,000. 256 by default.
    pub max_batch: usize,
    /// How many operations of one kind may wait or be in flight; more callers wait for a place. 1 to
    /// 1,000,000. 20,000 by default.
    pub max_queued: usize,
    /// How long to wait for a free connection: 1 ms to 1 hour. 5 s by default.
    pub acquire_timeout: Duration,
    /// How long the server may work on one statement: 1 ms to 1 hour. 30 s by default. An answer that is
    /// not there up to 5 s later does not come: the link is taken for dead, and the connection let go of.
    pub statement_timeout: Duration,
    /// How long an operation on one run waits for another session that holds it, before it answers that
    /// the store is unavailable: 1 ms to 1 hour. 5 s by default. Operations that are written together
    /// wait 1 s and then go one by one.
    pub lock_timeout: Duration,
    /// How long the server waits for the next statement of a transaction that holds locks, before it
    /// ends the session: 1 ms to 1 hour. 10 s by default. Nothing of the store's own waits so long; a
    /// server process that was frozen, or whose machine is gone, must not hold up the others for good.
    pub idle_in_transaction_timeout: Duration,
    /// Whether the store hears of other servers' changes at once.
    pub listen: Listen,
    /// What stands between the store and the server.
    pub pooler: Pooler,
    /// What to do about a schema of an older version, or none. By default it is brought up to date.
    pub schema_policy: SchemaPolicy,
}

impl PostgresOptions {
    /// The most partitions: more than any cluster has nodes, and few enough that a look at each ends soon.
    pub const MAX_PARTITIONS: u16 = 4096;

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
            lock_timeout: Duration::from_secs(5),
            idle_in_transaction_timeout: Duration::from_secs(10),
            listen: Listen::default(),
            pooler: Pooler::default(),
            schema_policy: SchemaPolicy::default(),
        }
    }

    /// How many pages, counts and depths of queues are read at once: by a quarter of the connections, one at least; an eighth
    /// is for runs that are too large to be read with others. Beside those that lock one run each, which have a half, this
    /// leaves some to everybody else.
    pub const fn scans_at_once(&self) -> u32 {
        if self.max_connections < 8 { 1 } else { self.max_connections / 4 }
    }

    /// Takes our own parameters out of the URL, checks every field, and makes what sqlx wants: how to
    /// connect to each server, and how to begin transactions.
    pub(crate) fn resolve(mut self) -> Result<(Self, Servers, Begin), StoreError> {
        if !(self.url.starts_with("postgres://") || self.url.starts_with("postgresql://")) {
            return Err(refused("url", "postgres://USER@HOST/DATABASE", "a text that begins otherwise"));
        }
        parameters::check(&self.url)?;
        let target = self.take_parameters()?;
        self.check()?;
        let settings = self.settings();
        let begin = match self.pooler {
            Pooler::None => Begin::Plainly,
            Pooler::Transaction => {
                let settings: String = settings
                    .iter()
                    .map(|(name, value)| format!("SET LOCAL {name} = {value}; "))
                    .chain([PIN_DURABILITY.in_transaction.to_owned()])
                    .collect();
                // Names of ours, numbers, and a schema that was checked letter by letter.
                Begin::With(AssertSqlSafe(format!("BEGIN; {settings}")).into_sql_str())
            }
        };
        let urls = hosts::one_url_each(&self.url)?;
        let target = target.unwrap_or(if urls.len() > 1 { Target::ReadWrite } else { Target::Any });
        let each = urls.iter().map(|url| self.connect_options(url, &settings)).collect::<Result<_, _>>()?;
        Ok((self, Servers { each, target }, begin))
    }

    /// How to connect to the one server that `url` names.
    fn connect_options(
        &self,
        url: &str,
        settings: &[(&'static str, String)],
    ) -> Result<PgConnectOptions, StoreError> {
        // The parser's message could quote the password.
        let connect = PgConnectOptions::from_str(url)
            .map_err(|_| refused("url", "postgres://USER@HOST/DATABASE", "a URL that cannot be read"))?
            .extra_float_digits(None);
        let connect = if connect.get_application_name().is_none() {
            connect.application_name("kagzi")
        } else {
            connect
        };
        Ok(match self.pooler {
            Pooler::None => connect.options(settings.iter().cloned()).options(KEEPALIVE),
            Pooler::Transaction => connect.statement_cache_capacity(0),
        })
    }

    /// What the store asks of every session.
    fn settings(&self) -> Vec<(&'static str, String)> {
        let millis = |timeout: Duration| timeout.as_millis().to_string();
        // Every statement has an index made for it that gives the rows in their order, and plans that
        // were cached while a table was small must not read and sort all of it later. Nothing here is
        // worth compiling.
        let mut settings = vec![
            ("statement_timeout", millis(self.statement_timeout)),
            ("lock_timeout", millis(self.lock_timeout)),
            ("idle_in_transaction_session_timeout", millis(self.idle_in_transaction_timeout)),
            ("enable_seqscan", "off".to_owned()),
            ("enable_bitmapscan", "off".to_owned()),
            ("jit", "off".to_owned()),
        ];
        settings.extend(self.schema.clone().map(|schema| ("search_path", schema)));
        settings
    }

    fn take_parameters(&mut self) -> Result<Option<Target>, StoreError> {
        let Some((base, query)) = self.url.split_once('?') else { return Ok(None) };
        let (base, mut kept, mut target) = (base.to_owned(), Vec::new(), None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()).map(str::to_owned).collect::<Vec<_>>() {
            match pair.split_once('=').unwrap_or((&pair, "")) {
                ("partitions", value) => self.partitions = Some(self.partitions_of_url(value)?),
                ("schema", value) => self.schema = Some(value.to_owned()),
                ("pooler", "none") => self.pooler = Pooler::None,
                ("pooler", "transaction") => self.pooler = Pooler::Transaction,
                ("pooler", value) => return Err(refused("pooler", "none or transaction", value)),
                ("target_session_attrs", value) => target = Some(Target::from_parameter(value)?),
                _ => kept.push(pair),
            }
        }
        self.url = if kept.is_empty() { base } else { format!("{base}?{}", kept.join("&")) };
        Ok(target)
    }

    /// The number that the URL says, which the field must not contradict.
    fn partitions_of_url(&self, value: &str) -> Result<u16, StoreError> {
        let expected = format!("from 1 to {}", Self::MAX_PARTITIONS);
        let number = value.parse().map_err(|_| refused("partitions", &expected, value))?;
        match self.partitions {
            Some(other) if other != number => {
                let expected = format!("{other} in the URL too, or no number there");
                Err(refused("partitions", &expected, value))
            }
            _ => Ok(number),
        }
    }

    fn check(&self) -> Result<(), StoreError> {
        let within = |field: &str, value: usize, low: usize, high: usize| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(refused(field, &format!("from {low} to {high}"), &value.to_string()))
            }
        };
        within("partitions", self.partitions.unwrap_or(1).into(), 1, Self::MAX_PARTITIONS.into())?;
        within("max_connections", self.max_connections as usize, 2, 1000)?;
        within("lanes", self.lanes, 1, 64)?;
        within("max_batch", self.max_batch, 1, 10_000)?;
        within("max_queued", self.max_queued, 1, 1_000_000)?;
        within("rules.poison_after", self.rules.poison_after as usize, 1, u32::MAX as usize)?;
        self.rules.default_retry.validate()?;
        for (field, timeout) in [
            ("acquire_timeout", self.acquire_timeout),
            ("statement_timeout", self.statement_timeout),
            ("lock_timeout", self.lock_timeout),
            ("idle_in_transaction_timeout", self.idle_in_transaction_timeout),
        ] {
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
            .field("acquire_timeout", &self.acquire_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .field("lock_timeout", &self.lock_timeout)
            .field("idle_in_transaction_timeout", &self.idle_in_transaction_timeout)
            .field("listen", &self.listen)
            .field("pooler", &self.pooler)
            .field("schema_policy", &self.schema_policy)
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
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_parameters_are_taken_out_of_the_url() {
        let options =
            PostgresOptions::new("postgres://u@h/d?partitions=7&sslmode=disable&schema=s1&pooler=none");
        let (options, servers, begin) = options.resolve().unwrap();
        assert_eq!(options.url, "postgres://u@h/d?sslmode=disable");
        assert_eq!((options.partitions, options.schema.as_deref()), (Some(7), Some("s1")));
        let asked = servers.each[0].get_options().unwrap();
        for one in ["search_path=s1", "idle_in_transaction_session_timeout=10000", "tcp_keepalives_idle=30"] {
            assert!(asked.contains(one), "{asked}");
        }
        assert!(matches!(begin, Begin::Plainly));
    }

    #[test]
    fn behind_a_transaction_pooler_a_connection_asks_for_nothing_and_each_transaction_for_all() {
        let options = PostgresOptions::new("postgres://h/d?pooler=transaction&schema=s1");
        let (_, servers, begin) = options.resolve().unwrap();
        assert_eq!(servers.each[0].get_options(), None);
        let Begin::With(begin) = begin else { panic!("{begin:?}") };
        let begin = begin.as_str();
        assert!(begin.starts_with("BEGIN; SET LOCAL statement_timeout = 30000; "), "{begin}");
        assert!(begin.contains("SET LOCAL search_path = s1; "), "{begin}");
        let mut statements = begin.split("; ").skip(1);
        assert!(statements.all(|one| one.starts_with("SET LOCAL ") || one.contains(", true)")), "{begin}");
    }

    #[test]
    fn a_field_and_a_url_that_say_different_numbers_of_partitions_are_refused_with_both() {
        let options = |url: &str| PostgresOptions { partitions: Some(32), ..PostgresOptions::new(url) };
        let (agreed, ..) = options("postgres://h/d?partitions=32").resolve().unwrap();
        assert_eq!(agreed.partitions, Some(32));
        assert_eq!(options("postgres://h/d").resolve().unwrap().0.partitions, Some(32));
        let told = options("postgres://h/d?partitions=7").resolve().unwrap_err().to_string();
        assert!(told.contains("partitions: expected 32") && told.contains("got 7"), "{told}");
    }

    #[test]
    fn several_hosts_are_servers_that_differ_in_nothing_else_and_must_take_writes() {
        let resolve = |url: &str| PostgresOptions::new(url).resolve().unwrap().1;
        let servers = resolve("postgres://u:S3CRET@a,b:5433/d?schema=s1&application_name=x&sslmode=require");
        let places: Vec<_> = servers.each.iter().map(|one| (one.get_host(), one.get_port())).collect();
        assert_eq!(places, [("a", 5432), ("b", 5433)]);
        for one in &servers.each {
            assert_eq!((one.get_username(), one.get_database()), ("u", Some("d")));
            assert!(one.get_options().unwrap().contains("search_path=s1"));
            assert_eq!(one.get_application_name(), Some("x"));
        }
        assert_eq!(servers.target, Target::ReadWrite, "a standby is of no use");
        assert_eq!(resolve("postgres://a,b/d?target_session_attrs=any").target, Target::Any);
        assert_eq!(resolve("postgres://a/d").target, Target::Any);
        assert_eq!(resolve("postgres://a/d?target_session_attrs=primary").target, Target::Primary);
        let shown = format!("{servers:?}");
        assert!(shown.contains("b:5433") && !shown.contains("S3CRET"), "{shown}");
    }

    #[test]
    fn bad_options_are_refused_by_name() {
        for (url, wanted) in [
            ("mysql://h/d", "url"),
            ("postgres://h/d?partitions=0", "partitions"),
            ("postgres://h/d?partitions=-1", "partitions"),
            ("postgres://h/d?partitions=4097", "partitions"),
            ("postgres://h/d?partitions=65536", "partitions"),
            ("postgres://h/d?partitions=7&partitions=8", "partitions"),
            ("postgres://h/d?partitions=", "partitions"),
            ("postgres://h/d?partitions=x", "partitions"),
            ("postgres://h/d?schema=A;drop", "schema"),
            ("postgres://h/d?pooler=session", "pooler"),
            ("postgres://h/d?pooler=transaction&schema=S", "schema"),
            ("postgres://h/d?target_session_attrs=standby", "target_session_attrs"),
            ("postgres://h/d?target_session_attrs=", "target_session_attrs"),
            ("postgres://a,,b/d?schema=s", "host"),
            ("postgres://h/d?pass=secret", "parameter"),
            ("postgres://u:a/secret@h/d", "url"),
            ("postgres://a,b/d?schema=s&port=1,2,3", "port"),
        ] {
            let error = PostgresOptions::new(url).resolve().unwrap_err();
            assert!(
                matches!(&error, StoreError::InvalidArgument { field, .. } if field == wanted),
                "{url}: {error}"
            );
        }
        let told = PostgresOptions::new("postgres://h/d?partitions=4097").resolve().unwrap_err().to_string();
        assert!(told.contains("from 1 to 4096") && told.contains("got 4097"), "{told}");
        let shown = format!("{:?}", PostgresOptions::new("postgres://u:secret@h/d"));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
