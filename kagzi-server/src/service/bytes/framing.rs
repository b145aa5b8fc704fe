//! Where the messages of a stream begin and end.

use super::super::load::MESSAGE_HEADER_BYTES;

/// How far a message has come: a header, its last four bytes the length of the rest.
#[derive(Debug, Default)]
pub(super) struct Framing {
    header: [u8; MESSAGE_HEADER_BYTES],
    /// How much of the header is there.
    filled: usize,
    /// How much of the rest is not, once the header is.
    left: usize,
    size: usize,
}

impl Framing {
    /// Goes on by what came; tells the size of each message that ends in it, header and all.
    pub(super) fn pass(&mut self, mut data: &[u8], mut ended: impl FnMut(usize)) {
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
            }
            let of_rest = data.len().min(self.left);
            data = &data[of_rest..];
            self.left -= of_rest;
            if self.left == 0 {
                ended(self.size);
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

    #[test]
    fn messages_end_where_they_do_however_the_bytes_are_cut() {
        let message = |length: u32| {
            let rest = vec![0xff; length as usize];
            [&[0], &length.to_be_bytes()[..], &rest].concat()
        };
        let all = [message(0), message(3), message(0), message(0), message(300), message(1)].concat();
        for piece in 1..=all.len() {
            let (mut framing, mut sizes) = (Framing::default(), Vec::new());
            for data in all.chunks(piece) {
                framing.pass(data, |size| sizes.push(size));
            }
            assert_eq!(sizes, [5, 8, 5, 5, 305, 6], "{piece}");
            assert!(!framing.is_within_a_message());
        }
        for cut in 1..8 {
            let mut framing = Framing::default();
            framing.pass(&message(3)[..cut], |_| panic!("it has not ended"));
            assert!(framing.is_within_a_message(), "{cut}");
        }
    }
}
