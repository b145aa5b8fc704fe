//! What commands show: the field names of `--json`, which programs rely on, and how people read the same.

use std::collections::BTreeMap;
use std::time::Duration;

use kagzi_core::{
    Attempt, ContentType, DeadLetterReason, Failure, Pause, Payload, QueueDepth, QueueState, Run, RunRecord,
    Timestamp, TraceContext,
};
use serde::Serialize;
use serde_json::Value;

use super::output::pairs;

/// Whether payloads are wanted. They may be large, or nobody's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payloads {
    /// Show them.
    Show,
    /// Leave them out.
    Hide,
}

/// A run in `--json`. Moments are RFC 3339 in UTC.
#[derive(Debug, Serialize)]
pub struct RunView {
    run_id: String,
    namespace: String,
    queue: String,
    workflow_type: String,
    state: &'static str,
    priority: i8,
    labels: BTreeMap<String, String>,
    idempotency_key: Option<String>,
    trace_id: Option<String>,
    worker_id: Option<String>,
    fencing_token: i64,
    claims: u32,
    lost_leases: u32,
    failures: u32,
    failure: Option<FailureView>,
    dead_letter: Option<&'static str>,
    due_at: String,
    deadline_at: Option<String>,
    lease_expires_at: Option<String>,
    created_at: String,
    updated_at: String,
    finished_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<Value>,
}

impl From<&Run> for RunView {
    fn from(run: &Run) -> Self {
        Self {
            run_id: run.run_id.to_string(),
            namespace: run.namespace.to_string(),
            queue: run.queue.to_string(),
            workflow_type: run.workflow_type.to_string(),
            state: run.state.as_str(),
            priority: run.priority.get(),
            labels: run.labels.as_map().clone(),
            idempotency_key: run.idempotency_key.as_ref().map(ToString::to_string),
            trace_id: trace_id(run),
            worker_id: run.worker_id.as_ref().map(ToString::to_string),
            fencing_token: run.fencing_token.get(),
            claims: run.claims,
            lost_leases: run.lost_leases,
            failures: run.failures,
            failure: run.failure.as_ref().map(FailureView::from),
            dead_letter: run.dead_letter.map(DeadLetterReason::as_str),
            due_at: run.due_at.to_string(),
            deadline_at: run.deadline_at.map(|at| at.to_string()),
            lease_expires_at: run.lease_expires_at.map(|at| at.to_string()),
            created_at: run.created_at.to_string(),
            updated_at: run.updated_at.to_string(),
            finished_at: run.finished_at.map(|at| at.to_string()),
            input: None,
            output: None,
        }
    }
}

/// The trace that a run is part of, if what it carries is one.
fn trace_id(run: &Run) -> Option<String> {
    let context = run.trace_context.as_deref().and_then(TraceContext::parse);
    context.map(|context| context.trace_id().to_owned())
}

impl RunView {
    /// A run with its payloads, if they are wanted.
    pub fn with_payloads(record: &RunRecord, payloads: Payloads) -> Self {
        let view = Self::from(&record.run);
        match payloads {
            Payloads::Hide => view,
            Payloads::Show => Self {
                input: Some(payload(&record.input)),
                output: record.output.as_ref().map(payload),
                ..view
            },
        }
    }
}

/// A failure in `--json`.
#[derive(Debug, Serialize)]
pub struct FailureView {
    kind: &'static str,
    code: String,
    message: String,
}

impl From<&Failure> for FailureView {
    fn from(failure: &Failure) -> Self {
        Self { kind: failure.kind.as_str(), code: failure.code.clone(), message: failure.message.clone() }
    }
}

/// An attempt in `--json`.
#[derive(Debug, Serialize)]
pub struct AttemptView {
    step_id: String,
    position: u32,
    kind: &'static str,
    attempt: u32,
    state: &'static str,
    worker_id: String,
    fencing_token: i64,
    failure: Option<FailureView>,
    created_at: String,
    finished_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<Value>,
}

impl AttemptView {
    /// An attempt with its output, if that is wanted.
    pub fn new(attempt: &Attempt, payloads: Payloads) -> Self {
        Self {
            step_id: attempt.step_id.to_string(),
            position: attempt.position,
            kind: attempt.kind.as_str(),
            attempt: attempt.attempt,
            state: attempt.state.as_str(),
            worker_id: attempt.worker_id.to_string(),
            fencing_token: attempt.fencing_token.get(),
            failure: attempt.failure.as_ref().map(FailureView::from),
            created_at: attempt.created_at.to_string(),
            finished_at: attempt.finished_at.map(|at| at.to_string()),
            output: attempt.output.as_ref().filter(|_| payloads == Payloads::Show).map(payload),
        }
    }
}

/// A queue in `--json`.
#[derive(Debug, Serialize)]
pub struct QueueView {
    queue: String,
    pending: u64,
    sleeping: u64,
    running: u64,
    oldest_due_at: Option<String>,
    state: &'static str,
    paused_since: Option<String>,
    pause_reason: Option<String>,
}

impl From<&QueueDepth> for QueueView {
    fn from(depth: &QueueDepth) -> Self {
        Self {
            queue: depth.queue.to_string(),
            pending: depth.pending,
            sleeping: depth.sleeping,
            running: depth.running,
            oldest_due_at: depth.oldest_due_at.map(|at| at.to_string()),
            state: if depth.pause.is_some() { QueueState::Paused } else { QueueState::Open }.as_str(),
            paused_since: depth.pause.as_ref().map(|pause| pause.since.to_string()),
            pause_reason: depth.pause.as_ref().map(|pause| pause.reason.clone()),
        }
    }
}

/// A payload: JSON as JSON, other text as text, anything else in base64.
fn payload(payload: &Payload) -> Value {
    let content_type = payload.content_type.as_str();
    if payload.content_type == ContentType::json()
        && let Ok(json) = serde_json::from_slice::<Value>(&payload.bytes)
    {
        return serde_json::json!({ "content_type": content_type, "json": json });
    }
    if let Ok(text) = std::str::from_utf8(&payload.bytes) {
        return serde_json::json!({ "content_type": content_type, "text": text });
    }
    // A payload's own form in JSON has its bytes in base64.
    let own = serde_json::to_value(payload).unwrap_or_default();
    serde_json::json!({ "content_type": content_type, "base64": own["bytes"] })
}

/// A payload for people: JSON over several lines, other text with its control characters escaped.
fn payload_text(name: &str, bytes: &Payload) -> String {
    let shown = match payload(bytes) {
        Value::Object(fields) if fields.contains_key("json") => {
            serde_json::to_string_pretty(&fields["json"]).unwrap_or_default()
        }
        Value::Object(fields) if fields.contains_key("text") => fields["text"]
            .as_str()
            .unwrap_or_default()
            .lines()
            .map(super::output::one_line)
            .collect::<Vec<_>>()
            .join("\n"),
        other => format!("base64 {}", other["base64"].as_str().unwrap_or_default()),
    };
    format!("\n\n{name} ({}, {} bytes)\n{shown}", bytes.content_type, bytes.len_bytes())
}

/// A moment as people read it, in UTC, to the second.
pub fn moment(at: Timestamp) -> String {
    let text = at.to_string();
    match (text.get(..10), text.get(11..19)) {
        (Some(day), Some(clock)) => format!("{day} {clock}"),
        _ => text,
    }
}

/// A duration as people read it, rounded to what matters at its length.
pub fn length(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 if duration.as_millis() == 0 => format!("{} us", duration.as_micros()),
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// The columns of a run in a table.
pub const RUN_HEADER: [&str; 6] = ["RUN", "TYPE", "QUEUE", "STATE", "CREATED (UTC)", "TOOK"];

/// A run in a table.
pub fn run_row(run: &Run) -> [String; 6] {
    [
        run.run_id.to_string(),
        run.workflow_type.to_string(),
        run.queue.to_string(),
        run.state.to_string(),
        moment(run.created_at),
        run.finished_at.map_or_else(String::new, |end| length(end.saturating_since(run.created_at))),
    ]
}

/// The columns of a dead letter in a table.
pub const DEAD_LETTER_HEADER: [&str; 5] = ["RUN", "TYPE", "FAILED (UTC)", "REASON", "FAILURE"];

/// A dead letter in a table.
pub fn dead_letter_row(run: &Run) -> [String; 5] {
    [
        run.run_id.to_string(),
        run.workflow_type.to_string(),
        run.finished_at.map(moment).unwrap_or_default(),
        run.dead_letter.map(|reason| reason.as_str().to_owned()).unwrap_or_default(),
        run.failure.as_ref().map(failure_text).unwrap_or_default(),
    ]
}

/// The columns of an attempt in a table.
pub const ATTEMPT_HEADER: [&str; 7] =
    ["STEP", "ATTEMPT", "STATE", "BEGUN (UTC)", "TOOK", "WORKER", "FAILURE"];

/// An attempt in a table.
pub fn attempt_row(attempt: &Attempt) -> [String; 7] {
    [
        attempt.step_id.to_string(),
        attempt.attempt.to_string(),
        attempt.state.to_string(),
        moment(attempt.created_at),
        attempt.finished_at.map_or_else(String::new, |end| length(end.saturating_since(attempt.created_at))),
        attempt.worker_id.to_string(),
        attempt.failure.as_ref().map(failure_text).unwrap_or_default(),
    ]
}

/// The columns of a queue in a table.
pub const QUEUE_HEADER: [&str; 6] = ["QUEUE", "PENDING", "RUNNING", "SLEEPING", "OLDEST DUE (UTC)", "PAUSED"];

/// A queue in a table.
pub fn queue_row(depth: &QueueDepth) -> [String; 6] {
    [
        depth.queue.to_string(),
        depth.pending.to_string(),
        depth.running.to_string(),
        depth.sleeping.to_string(),
        depth.oldest_due_at.map(moment).unwrap_or_default(),
        depth.pause.as_ref().map(pause_text).unwrap_or_default(),
    ]
}

/// Since when a queue is paused, and why.
pub fn pause_text(pause: &Pause) -> String {
    let since = format!("since {} (UTC)", moment(pause.since));
    if pause.reason.is_empty() { since } else { format!("{since}: {}", pause.reason) }
}

/// One run for people, each field on a line, those that say nothing left out.
pub fn run_text(record: &RunRecord, payloads: Payloads) -> String {
    let run = &record.run;
    let labels: Vec<String> =
        run.labels.as_map().iter().map(|(key, value)| format!("{key}={value}")).collect();
    let fields = [
        ("run", Some(run.run_id.to_string())),
        ("type", Some(run.workflow_type.to_string())),
        ("queue", Some(run.queue.to_string())),
        ("state", Some(run.state.to_string())),
        ("reason", run.dead_letter.map(|reason| reason.as_str().to_owned())),
        ("failure", run.failure.as_ref().map(failure_text)),
        ("priority", (run.priority.get() != 0).then(|| run.priority.get().to_string())),
        ("key", run.idempotency_key.as_ref().map(ToString::to_string)),
        ("trace", trace_id(run)),
        ("labels", (!labels.is_empty()).then(|| labels.join(" "))),
        ("worker", run.worker_id.as_ref().map(ToString::to_string)),
        ("claims", (run.claims > 0).then(|| run.claims.to_string())),
        ("created", Some(moment(run.created_at))),
        ("due", (!run.state.is_terminal()).then(|| moment(run.due_at))),
        ("deadline", run.deadline_at.map(moment)),
        ("finished", run.finished_at.map(moment)),
        ("took", run.finished_at.map(|end| length(end.saturating_since(run.created_at)))),
        ("payloads", (payloads == Payloads::Hide).then(|| payload_sizes(record))),
    ];
    let mut text = pairs(fields.into_iter().filter_map(|(name, value)| Some((name, value?))));
    if payloads == Payloads::Show {
        text.push_str(&payload_text("input", &record.input));
        text.extend(record.output.as_ref().map(|output| payload_text("output", output)));
    }
    text
}

fn payload_sizes(record: &RunRecord) -> String {
    let output = record.output.as_ref().map(|output| format!(", output {} bytes", output.len_bytes()));
    let (input, output) = (record.input.len_bytes(), output.unwrap_or_default());
    format!("input {input} bytes{output}; --show-payloads shows them")
}

fn failure_text(failure: &Failure) -> String {
    if failure.code.is_empty() {
        failure.message.clone()
    } else {
        format!("{}: {}", failure.code, failure.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_shown_as_what_they_are() {
        assert_eq!(payload(&Payload::json("{\"a\":1}"))["json"]["a"], 1);
        assert_eq!(payload(&Payload::json("no json"))["text"], "no json");
        assert_eq!(payload(&Payload::raw(&b"\xff\0"[..]))["base64"], "/wA=");
    }

    #[test]
    fn a_text_payload_cannot_drive_the_terminal() {
        let text = payload_text("input", &Payload::raw("a\x1b[2Jb\nc"));
        assert!(text.ends_with("a\\u{1b}[2Jb\nc"), "{text}");
    }

    #[test]
    fn moments_and_lengths_read_well() {
        let at: Timestamp = "2026-11-24T10:31:20.000001Z".parse().unwrap();
        assert_eq!(moment(at), "2026-11-24 10:31:20");
        let shown = [900, 25_000, 1_500_000, 125_000_000, 7_260_000_000, 90_000_000_000]
            .map(|micros| length(Duration::from_micros(micros)));
        assert_eq!(shown, ["900 us", "25 ms", "1.5 s", "2 min 5 s", "2 h 1 min", "1 d 1 h"]);
    }
}
