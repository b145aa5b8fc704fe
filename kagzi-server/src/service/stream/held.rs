//! How much memory the requests of one stream hold while they are in flight.

use prost::Message;

/// The bytes of requests in flight. A stream is not read from while they reach the bound. One more may
/// pass it by its own size, which `max_message_bytes` bounds.
#[derive(Debug)]
pub(super) struct HeldBytes {
    held: usize,
    most: usize,
}

impl HeldBytes {
    pub(super) const fn up_to(most: usize) -> Self {
        Self { held: 0, most }
    }

    /// Whether another request may be read.
    pub(super) const fn has_room(&self) -> bool {
        self.held < self.most
    }

    /// Counts a request; answers by how much.
    pub(super) fn take(&mut self, request: &impl Message) -> usize {
        let bytes = request.encoded_len();
        self.held += bytes;
        bytes
    }

    /// Ends what [`take`](Self::take) counted.
    pub(super) const fn release(&mut self, bytes: usize) {
        self.held = self.held.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use kagzi_proto::v1;
    use kagzi_proto::v1::StreamWorkRequest;
    use kagzi_proto::v1::stream_work_request::Request;

    use super::*;

    fn output(bytes: usize) -> StreamWorkRequest {
        let payload = v1::Payload { data: vec![0; bytes].into(), ..Default::default() };
        let complete = v1::CompleteStepRequest { output: Some(payload), ..Default::default() };
        StreamWorkRequest { id: 1, trace_context: None, request: Some(Request::CompleteStep(complete)) }
    }

    #[test]
    fn large_outputs_stop_the_reading_until_one_is_done_and_small_ones_do_not() {
        let mut held = HeldBytes::up_to(8 * 1024 * 1024);
        for _ in 0..1024 {
            held.take(&output(100));
        }
        assert!(held.has_room());
        let mut large = Vec::new();
        while held.has_room() {
            large.push(held.take(&output(1024 * 1024)));
        }
        assert_eq!(large.len(), 8);
        held.release(large[0]);
        assert!(held.has_room());
    }
}
