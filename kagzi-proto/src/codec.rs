//! The codec of the generated clients and servers: prost's, but for what it says of a message that
//! cannot be read.
//!
//! tonic's own codec answers `INTERNAL` to a request with, say, invalid UTF-8 in a name. That blames
//! the server for the caller's mistake, so this one answers `INVALID_ARGUMENT`; the text of prost's
//! error names the field and quotes no content. And it counts the elements of a long message before it
//! decodes it (`elements.rs`).

use std::marker::PhantomData;
use std::sync::Arc;

use prost::bytes::{Buf as _, Bytes};
use prost::{Message, Name};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::ProstCodec;

use crate::elements;

/// A message of so many bytes or more is long. The elements of a shorter one are not counted, since what becomes of it is
/// some megabytes at most, and it keeps no memory that would be worth a charge once it is done.
pub const LONG_BYTES: usize = 16 * 1024;

/// How much room there may be behind a long message in the memory that it was read into, about, in bytes: the reader takes
/// some more than the message needs.
pub const BEHIND_BYTES: usize = 64 * 1024;

/// Encodes `T`, decodes `U`.
#[derive(Clone, Debug)]
pub struct MessageCodec<T, U>(ProstCodec<T, U>);

impl<T, U> Default for MessageCodec<T, U> {
    fn default() -> Self {
        Self(ProstCodec::default())
    }
}

impl<T, U> Codec for MessageCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Name + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = MessageDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        self.0.encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        MessageDecoder { last: None, message: PhantomData }
    }
}

/// Decodes `U`.
#[derive(Clone, Debug)]
pub struct MessageDecoder<U> {
    /// Of a stream.
    last: Option<LastLong>,
    message: PhantomData<U>,
}

/// A piece of the last long message. While it is there, the next ones that do not fit behind it are not read into the
/// same memory, which would stay as large as the largest message for as long as the stream is open.
#[derive(Clone, Debug)]
struct LastLong {
    piece: Bytes,
    /// Where the message ended in memory.
    end: usize,
}

impl LastLong {
    fn of(message: &Bytes) -> Self {
        Self { piece: message.slice(..1), end: message.as_ptr().addr() + message.len() }
    }

    /// Whether a message lies behind it in the same memory.
    fn is_followed_by(&self, message: &Bytes) -> bool {
        let at = message.as_ptr().addr();
        self.piece.as_ptr().addr() <= at && at <= self.end + BEHIND_BYTES
    }
}

impl<U: Message + Name + Default> Decoder for MessageDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let message = buffer.copy_to_bytes(buffer.remaining());
        if message.len() < LONG_BYTES {
            self.last = self.last.take().filter(|last| last.is_followed_by(&message));
        } else {
            self.last = Some(LastLong::of(&message));
            elements::count(&U::full_name(), &message)
                .map_err(|too_many| Status::invalid_argument(too_many.to_string()))?;
        }
        U::decode(message).map(Some).map_err(|error| {
            let mut status = Status::invalid_argument(error.to_string());
            // Sources do not travel: a client that finds one knows that the answer was unreadable.
            status.set_source(Arc::new(error));
            status
        })
    }
}
