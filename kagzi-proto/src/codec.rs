//! The codec of the generated clients and servers: prost's, but for what it says of a message that
//! cannot be read.
//!
//! tonic's own codec answers `INTERNAL` to a request with, say, invalid UTF-8 in a name. That blames
//! the server for the caller's mistake, so this one answers `INVALID_ARGUMENT`; the text of prost's
//! error names the field and quotes no content.

use std::marker::PhantomData;
use std::sync::Arc;

use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::ProstCodec;

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
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = MessageDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        self.0.encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        MessageDecoder(PhantomData)
    }
}

/// Decodes `U`.
#[derive(Clone, Debug)]
pub struct MessageDecoder<U>(PhantomData<U>);

impl<U: Message + Default> Decoder for MessageDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        U::decode(buffer).map(Some).map_err(|error| {
            let mut status = Status::invalid_argument(error.to_string());
            // Sources do not travel: a client that finds one knows that the answer was unreadable.
            status.set_source(Arc::new(error));
            status
        })
    }
}
