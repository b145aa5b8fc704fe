//! The record of what operators did, or tried to: one line each, whatever the log level.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use kagzi_core::{Namespace, QueueName, RunId, Timestamp};
use serde::Serialize;

use super::{Audited, Caller, right};
use crate::config::{ConfigError, ServerConfig};

/// The target of the lines; `telemetry` lets them through whatever the log level.
pub(crate) const TARGET: &str = "kagzi::audit";

/// The outcome of an action whose caller did not wait for it: it may have been done or not.
const UNKNOWN: &str = "CALLER_GONE";

/// Where the record goes, beside the log.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    file: Option<Mutex<File>>,
}

/// One action, put on record when it ends.
#[must_use]
#[derive(Debug)]
pub(crate) struct Deed<'a> {
    audit: &'a Audit,
    line: Option<Line<'a>>,
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    time: String,
    principal: &'a str,
    credential: &'static str,
    peer: Option<String>,
    method: &'a str,
    namespace: Option<String>,
    run_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    outcome: &'a str,
}

/// What an action is about, as far as the request could be read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Target<'t> {
    pub(crate) namespace: Option<&'t Namespace>,
    pub(crate) run_id: Option<RunId>,
    pub(crate) queue: Option<&'t QueueName>,
    /// Why, as the caller says.
    pub(crate) reason: Option<&'t str>,
}

impl Audit {
    pub(crate) fn of(config: &ServerConfig) -> Result<Self, ConfigError> {
        let Some(path) = &config.audit_log else { return Ok(Self::default()) };
        let mut options = OpenOptions::new();
        options.create(true).append(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(path).map_err(|error| ConfigError::Invalid {
            key: "audit_log".to_owned(),
            expected: "a file that can be written to".to_owned(),
            got: format!("{}: {error}", path.display()),
        })?;
        Ok(Self { file: Some(Mutex::new(file)) })
    }

    /// Begins an action; nothing comes of it unless it is one of those that are put on record.
    pub(crate) fn begin<'a>(&'a self, caller: &'a Caller, method: &'a str, target: Target<'_>) -> Deed<'a> {
        let audited = right(method).is_some_and(|right| right.audited == Audited::Yes);
        let line = audited.then(|| Line {
            time: Timestamp::from(SystemTime::now()).to_string(),
            principal: caller.name(),
            credential: caller.credential.kind(),
            peer: caller.peer.map(|peer| peer.to_string()),
            method,
            namespace: target.namespace.map(ToString::to_string),
            run_id: target.run_id.map(|run_id| run_id.to_string()),
            queue: target.queue.map(ToString::to_string),
            reason: target.reason.map(ToOwned::to_owned),
            outcome: UNKNOWN,
        });
        Deed { audit: self, line }
    }

    fn write(&self, line: &Line<'_>) {
        tracing::info!(
            target: TARGET,
            principal = line.principal,
            credential = line.credential,
            peer = line.peer,
            method = line.method,
            namespace = line.namespace,
            run_id = line.run_id,
            queue = line.queue,
            reason = line.reason,
            outcome = line.outcome,
            "operator action"
        );
        let Some(file) = &self.file else { return };
        let written = serde_json::to_string(line).map_err(std::io::Error::from).and_then(|mut text| {
            text.push('\n');
            // One write a line, at the end of the file, so that lines of several servers do not mix.
            file.lock().unwrap_or_else(PoisonError::into_inner).write_all(text.as_bytes())
        });
        if let Err(error) = written {
            tracing::error!(target: TARGET, %error, "the audit log could not be written");
        }
    }
}

impl Deed<'_> {
    /// Ends the action: `OK`, or the reason why not.
    pub(crate) fn end(mut self, outcome: &str) {
        if let Some(line) = self.line.take() {
            self.audit.write(&Line { outcome, ..line });
        }
    }
}

/// Who goes away while their action is done does not keep it off the record.
impl Drop for Deed<'_> {
    fn drop(&mut self) {
        if let Some(line) = self.line.take() {
            self.audit.write(&line);
        }
    }
}
