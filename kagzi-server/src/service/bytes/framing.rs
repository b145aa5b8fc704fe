//! Where the messages of a stream begin and end.

use super::super::load::MESSAGE_HEADER_BYTES;

/// What a message that is told of did, with its size, header and all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Its header is there: its reader takes memory for all of it now.
    Begins(usize),
    /// All of it is there.
    Ends(usize),
}

/// How far a message has come: a header, its last four bytes the length of the rest.
#[derive(Clone, Debug, Default)]
pub(super) struct Framing {
    header: [u8; MESSAGE_HEADER_BYTES],
    /// How much of the header is there.
    filled: usize,
    /// How much of the rest is not, once the header is.
    left: usize,
    size: usize,
}

impl Framing {
    /// How much memory is taken for what comes: all of each message whose header ends in it. One that is longer than
    /// `most` is not read, so what came is all of it.
    pub(super) fn takes(&self, data: &[u8], most: usize) -> usize {
        let mut taken = 0_usize;
        self.clone().pass(data, |event| {
            if let Event::Begins(size) = event {
                taken = taken.saturating_add(if size <= most { size } else { data.len() });
            }
        });
        taken
    }

    /// Goes on by what came; tells of each message that begins or ends in it.
    pub(super) fn pass(&mut self, mut data: &[u8], mut tell: impl FnMut(Event)) {
        while !data.is_empty() {
            let of_header = data.len().min(MESSAGE_HEADER_BYTES - self.filled);
            if of_header > 0 {
                let (header, rest) = data.split_at(of_header);
                self.header[self.filled..self.filled + of_header].copy_from_slice(header);
                self.filled += of_header;
                data = rest;
                if self.filled < MESSAGE_HEADER_BYTES {
                    return;
                }
                let [_compressed, length @ ..] = self.header;
                self.left = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                self.size = self.left.saturating_add(MESSAGE_HEADER_BYTES);
                tell(Event::Begins(self.size));
            }
            let of_rest = data.len().min(self.left);
            data = &data[of_rest..];
            self.left -= of_rest;
            if self.left == 0 {
                tell(Event::Ends(self.size));
                self.filled = 0;
            }
        }
    }

    /// Whether a message has begun and not ended.
    pub(super) const fn is_within_a_message(&self) -> bool {
        self.filled > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u32) -> Vec<u8> {
        let rest = vec![0xff; length as usize];
        [&[0], &length.to_be_bytes()[..], &rest].concat()
    }

    #[test]
    fn messages_end_where_they_do_however_the_bytes_are_cut() {
        let all = [message(0), message(3), message(0), message(0), message(300), message(1)].concat();
        for piece in 1..=all.len() {
            let (mut framing, mut sizes, mut taken) = (Framing::default(), Vec::new(), 0);
            for data in all.chunks(piece) {
                taken += framing.takes(data, 305);
                framing.pass(data, |event| {
                    if let Event::Ends(size) = event {
                        sizes.push(size);
                    }
                });
            }
            assert_eq!(sizes, [5, 8, 5, 5, 305, 6], "{piece}");
            assert_eq!(taken, all.len());
            assert!(!framing.is_within_a_message());
        }
        for cut in 1..8 {
            let mut framing = Framing::default();
            framing.pass(&message(3)[..cut], |event| assert_eq!(event, Event::Begins(8), "it has not ended"));
            assert!(framing.is_within_a_message(), "{cut}");
        }
    }

    #[test]
    fn memory_is_taken_for_a_message_as_soon_as_its_length_is_known_and_once() {
        let mut framing = Framing::default();
        let whole = message(1_000_000);
        let mut taken = Vec::new();
        for data in [&whole[..4], &whole[4..5], &whole[5..7], &whole[7..]] {
            taken.push(framing.takes(data, 2_000_000));
            framing.pass(data, |_| {});
        }
        assert_eq!(taken, [0, 1_000_005, 0, 0]);
        assert_eq!(framing.takes(&message(1_000_000)[..7], 1_000_004), 7, "it will be refused");
    }
}
