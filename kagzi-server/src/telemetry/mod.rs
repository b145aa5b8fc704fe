//! Logs and traces: what is written, how and where to.

mod export;
mod json;

use std::io::IsTerminal as _;

use kagzi_core::SPANS;
use tracing::Level;
use tracing_subscriber::filter::FilterExt as _;
use tracing_subscriber::filter::{EnvFilter, LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

use crate::auth::AUDIT_TARGET;
use crate::config::{ConfigError, LogFormat};
pub(crate) use export::check_endpoint;
pub use export::{Export, FLUSH_WITHIN, Traces};
use json::JsonLines;

/// Why logging or tracing could not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// The level is neither one of trace, debug, info, warn, error, off nor a list of directives; or what
    /// is said about the export of spans cannot be done.
    #[error(transparent)]
    Setting(#[from] ConfigError),
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
    init_with_traces(format, level, None).map(drop)
}

/// Like [`init`], and begins to export spans of level `INFO` and above, too, if `export` says where to. Call
/// it within a tokio runtime of several threads, and [`end`](Traces::end) what it gives when all is done.
///
/// Where nothing is exported, what is made for export alone costs nothing: no span, no line.
///
/// # Errors
///
/// As for [`init`]; also if the exporter refuses its settings.
pub fn init_with_traces(
    format: LogFormat,
    level: &str,
    export: Option<&Export>,
) -> Result<Traces, TelemetryError> {
    let filter = EnvFilter::try_new(level).map_err(|error| ConfigError::Invalid {
        key: "log_level".to_owned(),
        expected: "a level such as info, or directives such as info,kagzi_core=debug".to_owned(),
        got: format!("{level:?} ({error})"),
    })?;
    let record = filter_fn(|line| line.target() == AUDIT_TARGET).with_max_level_hint(LevelFilter::INFO);
    let for_lines = filter_fn(|of| of.target() != SPANS);
    let filter = filter.or(record).and(for_lines);
    let lines = match format {
        LogFormat::Text => {
            let ansi = std::io::stderr().is_terminal();
            fmt::layer().with_writer(std::io::stderr).with_ansi(ansi).with_filter(filter).boxed()
        }
        LogFormat::Json => JsonLines::to(std::io::stderr).with_filter(filter).boxed(),
    };
    let traces = export.map(Traces::begin).transpose()?.unwrap_or_default();
    let for_export =
        filter_fn(|of| of.is_span() && *of.level() <= Level::INFO).with_max_level_hint(LevelFilter::INFO);
    let spans = traces.layer().map(|layer| layer.with_filter(for_export));
    let begun = tracing_subscriber::registry().with(lines).with(spans).try_init();
    begun.map_err(|error| TelemetryError::AlreadySetUp(error.to_string()))?;
    Ok(traces)
}
