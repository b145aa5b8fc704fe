//! Log lines as JSON: one object a line, whose keys are the same wherever a line comes from.
//!
//! A line has what its event says and what the spans around it say, all at the top: `run_id`, `step`,
//! `attempt`, `worker`, `namespace`, `queue`, `trace_id` and so on, whether the event knew it or a span did.
//! So lines of servers and workers are found by the same question.

use std::fmt;
use std::io::Write as _;
use std::time::SystemTime;

use kagzi_core::Timestamp;
use opentelemetry::trace::TraceContextExt as _;
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// See the module.
pub(super) struct JsonLines<W> {
    writer: W,
}

/// What an event or a span says, in the order in which it is said.
#[derive(Default)]
struct Fields(Vec<(&'static str, Value)>);

impl<W> JsonLines<W> {
    pub(super) const fn to(writer: W) -> Self {
        Self { writer }
    }
}

/// The key for a field; nothing for what is said to exporters of spans alone.
fn key(field: &'static str) -> Option<&'static str> {
    match field {
        "kagzi.worker_id" => Some("worker"),
        // A line's own, which nobody else may set.
        "timestamp" | "level" | "target" => None,
        _ if field.starts_with("otel.") => None,
        _ => Some(field.strip_prefix("kagzi.").unwrap_or(field)),
    }
}

impl Fields {
    /// Sets a key, unless what is nearer to the event has set it.
    fn add(&mut self, key: &'static str, value: Value) {
        if !self.0.iter().any(|(known, _)| *known == key) {
            self.0.push((key, value));
        }
    }

    fn set(&mut self, field: &Field, value: Value) {
        let Some(key) = key(field.name()) else { return };
        match self.0.iter_mut().find(|(known, _)| *known == key) {
            Some((_, known)) => *known = value,
            None => self.0.push((key, value)),
        }
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, Value::String(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, Value::from(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, Value::Bool(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, Value::from(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, Value::from(value));
    }
}

impl<S, W> Layer<S> for JsonLines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut said = Fields::default();
        event.record(&mut said);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(fields) = span.extensions().get::<Fields>() {
                for (key, value) in &fields.0 {
                    said.add(key, value.clone());
                }
            }
        }
        // The trace that spans are exported to; a line that names another one knows better.
        let current = opentelemetry::Context::current();
        let trace = current.span().span_context().clone();
        if trace.is_valid() {
            said.add("trace_id", Value::String(trace.trace_id().to_string()));
            said.add("span_id", Value::String(trace.span_id().to_string()));
        }
        let metadata = event.metadata();
        let mut line = Fields(vec![
            ("timestamp", Value::String(Timestamp::from(SystemTime::now()).to_string())),
            ("level", Value::from(metadata.level().as_str())),
        ]);
        line.0.extend(said.0);
        line.0.push(("target", Value::from(metadata.target())));
        if let Ok(mut text) = serde_json::to_vec(&line) {
            text.push(b'\n');
            // Whom could it be told that the log cannot be written?
            self.writer.make_writer_for(metadata).write_all(&text).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::written::Written;

    /// What is logged by `act`, without the times.
    fn lines(act: impl FnOnce()) -> Vec<Value> {
        let written = Arc::new(Written::default());
        let subscriber = tracing_subscriber::registry().with(JsonLines::to(Arc::clone(&written)));
        tracing::subscriber::with_default(subscriber, act);
        let lines = String::from_utf8(written.take()).unwrap();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).map(without_time).collect()
    }

    fn without_time(mut line: Value) -> Value {
        let time = line.as_object_mut().unwrap().remove("timestamp").unwrap();
        time.as_str().unwrap().parse::<Timestamp>().unwrap();
        line
    }

    #[test]
    fn a_line_has_all_that_it_and_the_spans_around_it_say_and_what_is_nearest_counts() {
        let lines = lines(|| {
            let run = tracing::info_span!(
                "run",
                kagzi.run_id = "r",
                kagzi.worker_id = "w",
                kagzi.queue = tracing::field::Empty,
                attempt = 1,
                otel.name = "run x",
            );
            let _in_run = run.enter();
            run.record("kagzi.queue", "q");
            let _in_step = tracing::info_span!("step", kagzi.step = "s", kagzi.attempt = 2).entered();
            tracing::warn!(target: "t", ok = true, bytes = 7, part = 0.5, step = %"own", "line\n\"one\"");
        });
        let expected = json!({
            "level": "WARN", "message": "line\n\"one\"", "ok": true, "bytes": 7, "part": 0.5, "step": "own",
            "attempt": 2, "run_id": "r", "worker": "w", "queue": "q", "target": "t",
        });
        assert_eq!(lines, [expected]);
    }

    #[test]
    fn a_field_cannot_pass_for_the_level_or_the_target() {
        let lines = lines(|| tracing::info!(target: "t", level = "none", timestamp = 1, "x"));
        assert_eq!(lines, [json!({ "level": "INFO", "message": "x", "target": "t" })]);
    }
}
