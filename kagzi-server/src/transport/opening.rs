//! The first words of a connection, which have to come soon.
//!
//! HTTP/2 asks a silent connection for a sign of life only once it has begun. Until then nothing would ever end one
//! on which nobody speaks.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::ReadBuf;
use tokio::time::{Sleep, sleep};

/// How long a client has to begin. One that is slower is slow on purpose, or gone.
const WITHIN: Duration = Duration::from_secs(10);

/// How many bytes the preface of HTTP/2 has, with which every client begins.
const PREFACE_BYTES: usize = 24;

/// What a client has still to say, and until when; nothing once it has begun.
#[derive(Debug)]
pub(super) struct Opening(Option<Unsaid>);

#[derive(Debug)]
struct Unsaid {
    bytes: usize,
    deadline: Pin<Box<Sleep>>,
}

impl Opening {
    /// The time runs from now.
    pub(super) fn from_now() -> Self {
        Self(Some(Unsaid { bytes: PREFACE_BYTES, deadline: Box::pin(sleep(WITHIN)) }))
    }

    /// Reads by `read`, and fails once the client has had its time and has not begun.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
        read: impl FnOnce(&mut Context<'_>, &mut ReadBuf<'_>) -> Poll<io::Result<()>>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = read(cx, buf);
        let Some(unsaid) = &mut self.0 else { return polled };
        if polled.is_ready() {
            unsaid.bytes = unsaid.bytes.saturating_sub(buf.filled().len() - before);
            if unsaid.bytes == 0 {
                self.0 = None;
            }
            return polled;
        }
        unsaid.deadline.as_mut().poll(cx).map(|()| {
            let message = format!("the client has not begun to speak HTTP/2 within {WITHIN:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, message))
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::time::{Instant, advance};

    use super::super::soon;
    use super::*;

    struct Opened(Opening, DuplexStream);

    impl AsyncRead for Opened {
        fn poll_read(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let Self(opening, stream) = self.get_mut();
            opening.poll_read(cx, buf, |cx, buf| Pin::new(stream).poll_read(cx, buf))
        }
    }

    fn connection() -> (DuplexStream, Opened) {
        let (client, server) = duplex(1024);
        (client, Opened(Opening::from_now(), server))
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_or_too_little_has_its_time_and_no_more() {
        let began = Instant::now();
        let (_client, mut server) = connection();
        let error = soon(server.read_u8()).await.unwrap_err();
        assert_eq!((error.kind(), began.elapsed().as_secs()), (io::ErrorKind::TimedOut, WITHIN.as_secs()));

        // One byte a second does not help.
        let (mut client, mut server) = connection();
        let drip = async {
            for _ in 0..PREFACE_BYTES {
                client.write_u8(b'P').await.unwrap();
                advance(Duration::from_secs(1)).await;
            }
        };
        let listen = async {
            loop {
                match server.read_u8().await {
                    Ok(_) => {}
                    Err(error) => break error,
                }
            }
        };
        let error = tokio::select! {
            error = listen => error,
            () = drip => panic!("all of it was heard"),
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_has_begun_may_be_silent_for_as_long_as_it_likes() {
        let (mut client, mut server) = connection();
        client.write_all(&[b'P'; PREFACE_BYTES - 1]).await.unwrap();
        advance(WITHIN / 2).await;
        client.write_all(b"P").await.unwrap();
        soon(server.read_exact(&mut [0; PREFACE_BYTES])).await.unwrap();
        let later = async {
            tokio::time::sleep(100 * WITHIN).await;
            client.write_all(b"later").await.unwrap();
        };
        let mut said = [0; 5];
        let (heard, ()) = soon(async { tokio::join!(server.read_exact(&mut said), later) }).await;
        assert_eq!(heard.unwrap(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_goes_away_is_told_from_one_that_is_silent() {
        let (client, mut server) = connection();
        drop(client);
        assert_eq!(soon(server.read(&mut [0; 1])).await.unwrap(), 0);
    }
}
