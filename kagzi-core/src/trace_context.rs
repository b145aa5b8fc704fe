//! W3C trace context, as a run carries it from its start to whoever executes it.

use std::fmt;

/// The longest text that a run carries, in bytes.
const MAX_BYTES: usize = 512;

/// The length of a `traceparent` of version 00, which a later version may only append to.
const TRACEPARENT_BYTES: usize = 55;

/// The target of the spans that are made for export alone: calls, store operations, rounds of the reaper.
///
/// They are at level `INFO`. Where nobody subscribes to them they cost a look at a flag. Log lines carry
/// what they need themselves, so a subscriber that only writes lines does best to leave them out.
pub const SPANS: &str = "kagzi::spans";

/// A trace, and the place in it that what follows belongs to.
///
/// As text, the form in which [`StartRun`](crate::StartRun) and [`Run`](crate::Run) have it, it is the
/// `traceparent` header of W3C Trace Context, followed by a space and the `tracestate` header if there is
/// one. To a store it is a text like any other: what it means is up to those who read it, and who cannot
/// read it goes on without.
///
/// ```
/// use kagzi_core::TraceContext;
///
/// let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01 congo=t61rcWkgMzE";
/// let context = TraceContext::parse(text).unwrap();
/// assert_eq!(context.trace_id(), "0af7651916cd43dd8448eb211c80319c");
/// assert_eq!(context.tracestate(), Some("congo=t61rcWkgMzE"));
/// assert_eq!(context.to_string(), text);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext<'a> {
    traceparent: &'a str,
    tracestate: Option<&'a str>,
}

impl<'a> TraceContext<'a> {
    /// Reads what a run carries; nothing if it is no trace context.
    pub fn parse(text: &'a str) -> Option<Self> {
        match text.split_once(' ') {
            Some((traceparent, tracestate)) => Self::of_headers(traceparent, Some(tracestate)),
            None => Self::of_headers(text, None),
        }
    }

    /// The trace context of two headers; nothing if the first is no `traceparent`.
    ///
    /// Members of a `tracestate` that is too long to be carried are left out from its end, as the standard
    /// has it, and one that is not visible ASCII altogether.
    pub fn of_headers(traceparent: &'a str, tracestate: Option<&'a str>) -> Option<Self> {
        is_traceparent(traceparent).then_some(())?;
        let room = MAX_BYTES.checked_sub(traceparent.len() + 1)?;
        let tracestate = tracestate
            .map(str::trim)
            .filter(|state| state.bytes().all(|byte| matches!(byte, b' '..=b'~')))
            .map(|state| fitting(state, room))
            .filter(|state| !state.is_empty());
        Some(Self { traceparent, tracestate })
    }

    /// The `traceparent` header.
    pub const fn traceparent(&self) -> &'a str {
        self.traceparent
    }

    /// The `tracestate` header.
    pub const fn tracestate(&self) -> Option<&'a str> {
        self.tracestate
    }

    /// The trace, in 32 hexadecimal digits.
    pub fn trace_id(&self) -> &'a str {
        &self.traceparent[3..35]
    }
}

impl fmt::Display for TraceContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.traceparent)?;
        self.tracestate.map_or(Ok(()), |state| write!(f, " {state}"))
    }
}

/// `version-trace-parent-flags`, in lower case; the ids are not all zeros and the version is not ff.
fn is_traceparent(text: &str) -> bool {
    let hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let id = |part: &str| hex(part) && part.bytes().any(|byte| byte != b'0');
    let Some((known, later)) = text.split_at_checked(TRACEPARENT_BYTES) else { return false };
    let mut parts = known.splitn(4, '-');
    let (Some(version), Some(trace), Some(parent), Some(flags)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let lengths = (version.len(), trace.len(), parent.len(), flags.len()) == (2, 32, 16, 2);
    let appended = later.is_empty()
        || (version != "00" && later.starts_with('-') && later.bytes().all(|byte| byte.is_ascii_graphic()));
    lengths && hex(version) && version != "ff" && id(trace) && id(parent) && hex(flags) && appended
}

/// The first members of a list that fit in so many bytes.
fn fitting(list: &str, room: usize) -> &str {
    if list.len() <= room {
        return list;
    }
    // One byte more, so that a member that ends just there is seen to end.
    list.get(..=room).and_then(|start| start.rsplit_once(',')).map_or("", |(members, _)| members.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_is_no_trace_context_is_not_taken_for_one() {
        for text in [
            "",
            "00-trace",
            "00-1-2-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "000af7651916cd43dd8448eb211c80319c--b7ad6b7169203331--01",
            "00-0af7651916cd43dd8448eb211c80319cäb7ad6b716920333-01xxx",
        ] {
            assert_eq!(TraceContext::parse(text), None, "{text}");
        }
        let later = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more";
        assert_eq!(TraceContext::parse(later).unwrap().trace_id(), "0af7651916cd43dd8448eb211c80319c");
    }

    #[test]
    fn a_trace_state_that_is_too_long_loses_members_from_its_end_and_the_text_fits_a_run() {
        let member = |at: usize| format!("vendor{at:02}={}", "x".repeat(40));
        let whole = (0..20).map(member).collect::<Vec<_>>().join(",");
        let context = TraceContext::of_headers(TRACEPARENT, Some(&whole)).unwrap();
        let kept = context.tracestate().unwrap();
        assert_eq!(kept, (0..9).map(member).collect::<Vec<_>>().join(","));
        assert!(context.to_string().len() <= MAX_BYTES);
        assert_eq!(TraceContext::parse(&context.to_string()), Some(context));
        let one = format!("vendor={}", "x".repeat(600));
        assert_eq!(TraceContext::of_headers(TRACEPARENT, Some(&one)).unwrap().tracestate(), None);
        let exact = format!("a={}", "x".repeat(512 - 56 - 2));
        let context = TraceContext::of_headers(TRACEPARENT, Some(&exact)).unwrap();
        assert_eq!((context.tracestate(), context.to_string().len()), (Some(&*exact), 512));
        let one_more = format!("{exact},b=c");
        let context = TraceContext::of_headers(TRACEPARENT, Some(&one_more)).unwrap();
        assert_eq!(context.tracestate(), Some(&*exact), "a member that ends just where the room does");
    }

    #[test]
    fn a_trace_state_that_has_no_place_in_a_line_is_left_out() {
        for state in ["a=b\nc=d", "a=b,\tc=d", "a=ä", "  "] {
            assert_eq!(TraceContext::of_headers(TRACEPARENT, Some(state)).unwrap().tracestate(), None);
        }
    }
}
