//! The codec of the generated clients and servers: prost's, but for what it says of a message that
//! cannot be read.
//!
//! tonic's own codec answers `INTERNAL` to a request with, say, invalid UTF-8 in a name. That blames
//! the server for the caller's mistake, so this one answers `INVALID_ARGUMENT`; the text of prost's
//! error names the field and quotes no content. And it counts the elements of a long message before it
//! decodes it ([`elements`](crate::elements)).

use std::marker::PhantomData;
use std::sync::Arc;

use prost::bytes::{Buf as _, Bytes};
use prost::{Message, Name};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::ProstCodec;

use crate::elements::{self, LONG_BYTES};

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
    /// A piece of the last message of a stream, if it was long: while it is there, the next one is not read into the
    /// same memory, which would stay as large as the largest message for as long as the stream is open.
    last: Option<Bytes>,
    message: PhantomData<U>,
}

impl<U: Message + Name + Default> Decoder for MessageDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let message = buffer.copy_to_bytes(buffer.remaining());
        self.last = (message.len() >= LONG_BYTES).then(|| message.slice(..1));
        if self.last.is_some() {
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
