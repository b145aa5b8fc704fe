//! Logs: what is written, how and where.

use std::io::IsTerminal as _;

use tracing_subscriber::filter::FilterExt as _;
use tracing_subscriber::filter::{EnvFilter, LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

use crate::auth::AUDIT_TARGET;

use crate::config::{ConfigError, LogFormat};

/// Why logging could not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// The level is neither one of trace, debug, info, warn, error, off nor a list of directives.
    #[error(transparent)]
    Level(#[from] ConfigError),
    /// Something else in this process logs already.
    #[error("logging was set up before: {0}")]
    AlreadySetUp(String),
}

/// Begins to write log lines to standard error, so that standard output stays for results.
///
/// No line of kagzi holds a payload at any level. What operators do is on record whatever the level.
///
/// # Errors
///
/// [`TelemetryError`] for a level that cannot be read, or if a subscriber is set already.
pub fn init(format: LogFormat, level: &str) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(level).map_err(|error| ConfigError::Invalid {
        key: "log_level".to_owned(),
        expected: "a level such as info, or directives such as info,kagzi_core=debug".to_owned(),
        got: format!("{level:?} ({error})"),
    })?;
    let record = filter_fn(|line| line.target() == AUDIT_TARGET).with_max_level_hint(LevelFilter::INFO);
    let filter = filter.or(record);
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let lines = match format {
        LogFormat::Text => lines.with_filter(filter).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_filter(filter).boxed(),
    };
    let begun = tracing_subscriber::registry().with(lines).try_init();
    begun.map_err(|error| TelemetryError::AlreadySetUp(error.to_string()))
}
