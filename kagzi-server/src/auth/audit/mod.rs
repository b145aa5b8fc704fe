//! The record of what operators did, or tried to, whatever the log level: a line when an action ends, and before that one
//! that announces it, if it changes anything. An action that cannot be announced is not done: whoever fills a disk, or
//! moves a file away, does not act off the record by it.

mod file;
mod machine;
mod writer;

use std::io;
use std::time::{Duration, SystemTime};

use kagzi_core::{DeleteFinished, Namespace, OperationId, QueueName, RunId, RunState, Timestamp};
use kagzi_sdk::wire::error::{Refusal, unavailable};
use serde::Serialize;

use super::{Audited, Caller, right};
use crate::config::{ConfigError, ServerConfig};
use crate::metrics::Metrics;
use crate::reload::Ear;
use file::LogFile;
pub(crate) use machine::on_record;
#[cfg(test)]
pub(crate) use writer::held;
use writer::{Moment, Ordered, Unwritten, Writer};

/// The target of the lines; `telemetry` lets them through whatever the log level.
pub(crate) const TARGET: &str = "kagzi::audit";

/// The outcome of an action that is about to be done.
const BEGINS: &str = "BEGINS";

/// The outcome of an action whose caller did not wait for it: it may have been done or not.
const UNKNOWN: &str = "CALLER_GONE";

/// When an operator should try again whose action could not be put on record: somebody has to free a disk first.
const NOT_ON_RECORD: Duration = Duration::from_secs(5);

/// So many bytes of a reason stand on record: a cancellation's may be as long as a failure's message.
const REASON_BYTES: usize = 1024;

/// Where the record goes, beside the log.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    writer: Option<Writer>,
}

/// One action, put on record when it ends.
#[must_use]
#[derive(Debug)]
pub(crate) struct Deed<'a> {
    audit: &'a Audit,
    metrics: &'a Metrics,
    announced: bool,
    line: Option<Line<'a>>,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Line<'a> {
    time: String,
    /// The same in both lines of an action.
    action: String,
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
    /// Of a removal: runs in which states, that ended before when, and how many at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    states: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u32>,
    /// Of a command on the store's machine: which store, and the other file or store that it names.
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
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
    /// What is to be removed.
    pub(crate) removal: Option<&'t DeleteFinished>,
}

impl Audit {
    pub(crate) fn of(config: &ServerConfig) -> Result<Self, ConfigError> {
        let Some(path) = &config.audit_log else { return Ok(Self::default()) };
        let writer = LogFile::open(path).and_then(|file| Writer::over(Box::new(file)));
        let writer = writer.map_err(|error| ConfigError::Invalid {
            key: "audit_log".to_owned(),
            expected: "a regular file that can be written to (the log has the same lines, for a pipe or a collector)"
                .to_owned(),
            got: format!("{}: {error}", path.display()),
        })?;
        Ok(Self { writer: Some(writer) })
    }

    /// A record that is kept by a test.
    #[cfg(test)]
    pub(crate) fn kept_by(sink: Box<held::Held>) -> Self {
        Self { writer: Some(Writer::over(sink).unwrap()) }
    }

    /// Begins an action; nothing comes of it unless it is one of those that are put on record.
    pub(crate) fn begin<'a>(
        &'a self,
        metrics: &'a Metrics,
        caller: &'a Caller,
        method: &'a str,
        target: Target<'_>,
    ) -> Deed<'a> {
        let audited = right(method).map_or(Audited::No, |right| right.audited);
        let line = (audited != Audited::No).then(|| Line {
            time: now(),
            action: OperationId::generate().to_string(),
            principal: caller.name(),
            credential: caller.credential.kind(),
            peer: caller.peer.map(|peer| peer.to_string()),
            method,
            namespace: target.namespace.map(ToString::to_string),
            run_id: target.run_id.map(|run_id| run_id.to_string()),
            queue: target.queue.map(ToString::to_string),
            reason: target.reason.map(bounded),
            states: target.removal.map(|removal| states(&removal.states)),
            before: target.removal.map(|removal| removal.before.to_string()),
            limit: target.removal.map(|removal| removal.limit),
            outcome: UNKNOWN,
            ..Line::default()
        });
        Deed { audit: self, metrics, announced: audited == Audited::Announced, line }
    }

    /// Opens the file anew when told, since it may have been moved away. If that fails, the one that is open goes on.
    /// Never returns.
    pub(crate) async fn keep_fresh(&self, mut ear: Ear, metrics: &Metrics) {
        let Some(writer) = &self.writer else { return std::future::pending().await };
        loop {
            ear.told().await;
            match writer.reopen(metrics).await {
                Ok(()) => tracing::info!("the audit log was opened anew"),
                Err(error) => {
                    tracing::error!(%error, "the audit log could not be opened anew; the open one goes on");
                }
            }
        }
    }

    /// Puts a line into the log, and has it written to the file, if there is one: what is left to wait for.
    fn order(&self, line: &Line<'_>, of: Moment, metrics: &Metrics) -> Result<Option<Ordered>, Unwritten> {
        tracing::info!(
            target: TARGET,
            action = line.action,
            principal = line.principal,
            credential = line.credential,
            peer = line.peer,
            method = line.method,
            namespace = line.namespace,
            run_id = line.run_id,
            queue = line.queue,
            reason = line.reason,
            states = line.states,
            before = line.before,
            limit = line.limit,
            outcome = line.outcome,
            "operator action"
        );
        let Some(writer) = &self.writer else { return Ok(None) };
        let text = serde_json::to_string(line).map_err(io::Error::from);
        let ordered = text.map_err(Unwritten::from).and_then(|text| writer.order(text, of, metrics));
        ordered.map(Some).inspect_err(|why| report(why, metrics))
    }

    /// The same, and waits until it is written, but not for long.
    async fn write(&self, line: &Line<'_>, of: Moment, metrics: &Metrics) -> Result<(), Unwritten> {
        let Some(ordered) = self.order(line, of, metrics)? else { return Ok(()) };
        let written = ordered.written().await;
        if let Err(why @ Unwritten::Late) = &written {
            report(why, metrics);
        }
        written
    }
}

/// Reports a line that did not reach the one who writes, or was not written in time; what the file refused is reported
/// where it is written.
fn report(why: &Unwritten, metrics: &Metrics) {
    metrics.audit_log_is_written(false);
    metrics.audit_failed();
    tracing::error!(target: TARGET, %why, "the audit log could not be written");
}

/// A reason, cut where it is longer than what stands on record.
fn bounded(reason: &str) -> String {
    if reason.len() <= REASON_BYTES {
        return reason.to_owned();
    }
    let kept = reason.char_indices().map(|(at, _)| at).take_while(|at| *at <= REASON_BYTES).last();
    format!("{}... ({} bytes)", &reason[..kept.unwrap_or(0)], reason.len())
}

/// The states of runs to remove; none stands for every final one.
fn states(states: &[RunState]) -> String {
    let all = if states.is_empty() { RunState::ALL.as_slice() } else { states };
    let names: Vec<&str> = all
        .iter()
        .filter(|state| !states.is_empty() || state.is_terminal())
        .map(|state| state.as_str())
        .collect();
    names.join(",")
}

fn now() -> String {
    Timestamp::from(SystemTime::now()).to_string()
}

impl Deed<'_> {
    /// Puts on record that the action is about to be done, if it changes anything.
    ///
    /// # Errors
    ///
    /// The refusal of an action that cannot be put on record.
    pub(crate) async fn announce(&self) -> Result<(), Refusal> {
        let Some(line) = self.line.as_ref().filter(|_| self.announced) else { return Ok(()) };
        let announcement = Line { time: now(), outcome: BEGINS, ..line.clone() };
        self.audit.write(&announcement, Moment::Announced, self.metrics).await.map_err(|_| {
            let cause = "the audit log cannot be written, and no operator acts off the record; see the log of the server";
            unavailable(cause, NOT_ON_RECORD)
        })
    }

    /// Ends the action: `OK`, or the reason why not. What cannot be written is reported; the next action is not done.
    pub(crate) async fn end(mut self, outcome: &str) {
        if let Some(line) = self.line.take() {
            let line = Line { time: now(), outcome, ..line };
            self.audit.write(&line, Moment::Ended, self.metrics).await.ok();
        }
    }

    /// Ends an action that did not begin, off the record.
    pub(crate) fn untold(mut self) {
        self.line = None;
    }
}

/// Who goes away while their action is done does not keep it off the record.
impl Drop for Deed<'_> {
    fn drop(&mut self) {
        if let Some(line) = self.line.take() {
            self.audit.order(&line, Moment::Ended, self.metrics).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_cut_between_characters_and_says_how_long_it_was() {
        assert_eq!(bounded(""), "");
        let fits = "ä".repeat(REASON_BYTES / 2);
        assert_eq!(bounded(&fits), fits);
        assert_eq!(bounded(&format!("{fits}x")), format!("{fits}... ({} bytes)", REASON_BYTES + 1));
        let odd = format!("x{fits}");
        assert_eq!(bounded(&odd), format!("{}... ({} bytes)", &odd[..REASON_BYTES - 1], odd.len()));
    }

    #[test]
    fn states_are_named_and_none_stands_for_every_final_one() {
        assert_eq!(states(&[RunState::Failed]), "FAILED");
        assert_eq!(states(&[RunState::Failed, RunState::Completed]), "FAILED,COMPLETED");
        assert_eq!(states(&[]), "COMPLETED,FAILED,CANCELLED");
    }
}
