//! Between the trace context that runs carry and OpenTelemetry's.
//!
//! Workers and clients use it by themselves: with the feature `opentelemetry`, a run continues the trace of
//! the code that starts it, and a step's function runs within a span of that trace, in whatever process.
//! All that is left for the application is to subscribe, with `tracing-opentelemetry`, as its own spans ask
//! for too; without that, nothing is made and nothing exported. `examples/tracing.rs` is the whole of it.

use kagzi_core::TraceContext;
use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The trace context of the code that runs now, in the form that [`Start`](crate::Start) takes; nothing if
/// it belongs to no trace.
pub fn current() -> Option<String> {
    // A layer may have been told not to make its spans the current ones.
    let own = || Span::current().context();
    as_text(&Some(Context::current()).filter(Context::has_active_span).unwrap_or_else(own))
}

/// The trace context of a span, which begins now if it has not; nothing if nobody exports it.
pub fn of(span: &Span) -> Option<String> {
    as_text(&span.context())
}

/// Makes a span that has not begun the continuation of a trace context, or the first of a trace if the text
/// is none. Answers whether anybody exports it.
pub fn continue_trace(span: &Span, context: &str) -> bool {
    span.set_parent(remote(context).unwrap_or_default()).is_ok()
}

/// Links a span to another trace, as one that treats many does.
pub fn link(span: &Span, context: &str) {
    if let Some(remote) = remote(context) {
        span.add_link(remote.span().span_context().clone());
    }
}

/// Leaves a span that has not begun where it is made. Answers whether anybody exports it.
pub(crate) fn stays_within(span: &Span) -> bool {
    span.set_parent(Context::current()).is_ok()
}

/// Gives a span attributes for export alone.
pub(crate) fn describe<const N: usize>(span: &Span, attributes: [(&'static str, String); N]) {
    for (name, value) in attributes {
        span.set_attribute(name, value);
    }
}

fn as_text(context: &Context) -> Option<String> {
    let span = context.span();
    let span = span.span_context();
    span.is_valid().then_some(())?;
    let (trace, parent, flags) = (span.trace_id(), span.span_id(), span.trace_flags().to_u8());
    let traceparent = format!("00-{trace}-{parent}-{flags:02x}");
    let tracestate = span.trace_state().header();
    TraceContext::of_headers(&traceparent, Some(&tracestate)).map(|context| context.to_string())
}

fn remote(text: &str) -> Option<Context> {
    let context = TraceContext::parse(text)?;
    let mut parts = context.traceparent().split('-').skip(1);
    let trace = TraceId::from_hex(parts.next()?).ok()?;
    let parent = SpanId::from_hex(parts.next()?).ok()?;
    let flags = u8::from_str_radix(parts.next()?, 16).ok()?;
    // A state that cannot be read costs the trace nothing but the state.
    let state = context.tracestate().and_then(|state| state.parse::<TraceState>().ok()).unwrap_or_default();
    let span = SpanContext::new(trace, parent, TraceFlags::new(flags), true, state);
    Some(Context::new().with_remote_span_context(span))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_run_carries_survives_the_way_through_opentelemetry() {
        for text in [
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00 congo=t61rcWkgMzE,rojo=00f067aa0ba902b7",
        ] {
            assert_eq!(as_text(&remote(text).unwrap()).as_deref(), Some(text));
        }
        assert!(remote("00-trace").is_none());
        assert_eq!(as_text(&Context::new()), None);
    }
}
