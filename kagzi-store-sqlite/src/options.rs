//! How a store is opened.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kagzi_core::{Clock, Rules, SchemaPolicy, StoreError, SystemClock};

/// What a [`SqliteStore`](crate::SqliteStore) is opened with. Everything but the path has a default.
///
/// ```
/// use kagzi_store_sqlite::SqliteOptions;
///
/// let options = SqliteOptions::from_url("sqlite:///var/lib/kagzi/kagzi.db")?.readers(4);
/// assert_eq!(options.path().to_str(), Some("/var/lib/kagzi/kagzi.db"));
/// # Ok::<(), kagzi_core::StoreError>(())
/// ```
#[derive(Clone, Debug)]
pub struct SqliteOptions {
    pub(crate) path: PathBuf,
    pub(crate) rules: Rules,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) max_batch: usize,
    pub(crate) queue_bound: usize,
    pub(crate) queue_bound_bytes: u32,
    pub(crate) readers: usize,
    pub(crate) busy_timeout: Duration,
    pub(crate) schema: SchemaPolicy,
}

impl SqliteOptions {
    /// Options for the database file at `path`, which is made if it does not exist; its directory
    /// must exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            rules: Rules::default(),
            clock: Arc::new(SystemClock),
            max_batch: 256,
            queue_bound: 4096,
            queue_bound_bytes: 64 * 1024 * 1024,
            readers: 2,
            busy_timeout: Duration::from_secs(5),
            schema: SchemaPolicy::default(),
        }
    }

    /// Options from `sqlite://PATH`, as in `sqlite://kagzi.db` (in the working directory) or
    /// `sqlite:///var/lib/kagzi/kagzi.db`. The path is taken as it stands; there are no parameters.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] for another scheme, no path, or one with `?` or `#` in it.
    pub fn from_url(url: &str) -> Result<Self, StoreError> {
        let refuse = |got: &str| {
            Err(StoreError::InvalidArgument {
                field: "store".to_owned(),
                expected: "sqlite://PATH, such as sqlite://kagzi.db or sqlite:///var/lib/kagzi/kagzi.db"
                    .to_owned(),
                got: got.to_owned(),
            })
        };
        let Some((scheme, path)) = url.split_once("://") else { return refuse("no scheme") };
        if !scheme.eq_ignore_ascii_case("sqlite") {
            return refuse("another scheme");
        }
        match path {
            "" => refuse("no path"),
            ":memory:" => refuse("a database in memory, which nothing would survive"),
            path if path.contains(['?', '#']) => refuse("parameters"),
            path => Ok(Self::new(path)),
        }
    }

    /// Limits, the default retry policy and the poison count. Default: [`Rules::default`].
    #[must_use]
    pub fn rules(mut self, rules: Rules) -> Self {
        self.rules = rules;
        self
    }

    /// Who tells the time. Default: the machine.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// How many operations share a commit at most, from 1 to 10,000. Default: 256.
    #[must_use]
    pub fn max_batch(mut self, operations: usize) -> Self {
        self.max_batch = operations;
        self
    }

    /// How many operations wait for the writer at most, from 1 to 1,000,000; the next callers wait for
    /// room. Default: 4,096.
    #[must_use]
    pub fn queue_bound(mut self, operations: usize) -> Self {
        self.queue_bound = operations;
        self
    }

    /// How many bytes of payloads operations that wait for the writer hold at most, from 1 to 4 GiB; the
    /// next callers wait for room. One operation that is larger waits until it is alone. Default: 64 MiB.
    #[must_use]
    pub fn queue_bound_bytes(mut self, bytes: u32) -> Self {
        self.queue_bound_bytes = bytes;
        self
    }

    /// How many reads run at a time, each on a connection of its own, from 1 to 64. Default: 2.
    #[must_use]
    pub fn readers(mut self, connections: usize) -> Self {
        self.readers = connections;
        self
    }

    /// How many pages, counts and depths of queues should be asked for at a time: all readers but one, so that who reads by
    /// ids, or asks what is due, does not wait for those, and one at least.
    pub fn scans_at_once(&self) -> usize {
        self.readers.saturating_sub(1).max(1)
    }

    /// How long to wait for another process that holds the file before the answer is
    /// [`StoreError::Unavailable`], at most an hour. Default: 5 s.
    #[must_use]
    pub fn busy_timeout(mut self, timeout: Duration) -> Self {
        self.busy_timeout = timeout;
        self
    }

    /// What to do about a file of an older version, or none. Default: bring it up to date, or make it.
    #[must_use]
    pub fn schema(mut self, policy: SchemaPolicy) -> Self {
        self.schema = policy;
        self
    }

    /// The database file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks every option.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] naming the option.
    pub fn validate(&self) -> Result<(), StoreError> {
        in_range("max_batch", self.max_batch, 10_000)?;
        in_range("queue_bound", self.queue_bound, 1_000_000)?;
        in_range("queue_bound_bytes", self.queue_bound_bytes as usize, u32::MAX as usize)?;
        in_range("readers", self.readers, 64)?;
        if self.busy_timeout > Duration::from_hours(1) {
            return Err(StoreError::InvalidArgument {
                field: "busy_timeout".to_owned(),
                expected: "at most an hour".to_owned(),
                got: format!("{} s", self.busy_timeout.as_secs()),
            });
        }
        Ok(())
    }
}

fn in_range(field: &str, value: usize, most: usize) -> Result<(), StoreError> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    Err(StoreError::InvalidArgument {
        field: field.to_owned(),
        expected: format!("from 1 to {most}"),
        got: value.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_file_and_nothing_else() {
        let path = |url| SqliteOptions::from_url(url).map(|options| options.path);
        assert_eq!(path("sqlite://kagzi.db").unwrap(), Path::new("kagzi.db"));
        assert_eq!(path("SQLITE:///a b/k.db").unwrap(), Path::new("/a b/k.db"));
        for url in ["kagzi.db", "sqlite://", "sqlite://:memory:", "postgres://x", "sqlite://k.db?mode=ro"] {
            assert!(path(url).is_err(), "{url}");
        }
    }

    #[test]
    fn options_outside_their_range_are_refused_by_name() {
        let good = SqliteOptions::new("k.db");
        good.validate().unwrap();
        for (bad, name) in [
            (good.clone().max_batch(0), "max_batch"),
            (good.clone().queue_bound(0), "queue_bound"),
            (good.clone().queue_bound_bytes(0), "queue_bound_bytes"),
            (good.clone().readers(65), "readers"),
            (good.busy_timeout(Duration::from_hours(2)), "busy_timeout"),
        ] {
            assert!(bad.validate().unwrap_err().to_string().starts_with(name));
        }
    }
}
