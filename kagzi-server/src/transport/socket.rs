//! One connection, plain or under TLS.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::Connected;

use super::connections::Counted;
use super::expiry::Expiry;
use super::opening::Opening;
use super::{ClientCertificate, Peer};

/// See the module.
pub(crate) struct Socket {
    stream: Stream,
    opening: Opening,
    /// Of the client's certificate, if it showed one.
    expiry: Option<Expiry>,
    peer: Peer,
    /// Ready when it gives way to another.
    gives_way: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Held, not read.
    _counted: Counted,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    pub(super) fn plain(stream: TcpStream, address: SocketAddr, counted: Counted) -> Self {
        let standing = counted.standing().clone();
        let peer = Peer { address: Some(address), certificate: None, standing };
        Self::of(Stream::Plain(stream), peer, counted)
    }

    pub(super) fn tls(
        stream: TlsStream<TcpStream>,
        address: SocketAddr,
        certificate: Option<ClientCertificate>,
        counted: Counted,
    ) -> Self {
        let standing = counted.standing().clone();
        let peer = Peer { address: Some(address), certificate, standing };
        Self::of(Stream::Tls(Box::new(stream)), peer, counted)
    }

    fn of(stream: Stream, peer: Peer, counted: Counted) -> Self {
        let expiry = peer.certificate.as_ref().map(|certificate| Expiry::of(certificate.until()));
        let gives_way = Box::pin(peer.standing.gives_way());
        Self { stream, opening: Opening::from_now(), expiry, peer, gives_way, _counted: counted }
    }

    /// Fails once it has to give way. Whoever reads and whoever writes asks, since one of them may wait for a client that
    /// does not answer. Each asks as a stranger before it is known, and is woken by that should it be one again.
    fn may_stay(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.peer.standing.is_known() || self.gives_way.as_mut().poll(cx).is_pending() {
            return Ok(());
        }
        let why = "it gives way to another connection: nobody who is known was calling on it";
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, why))
    }
}

impl Connected for Socket {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.may_stay(cx)?;
        let Self { stream, opening, expiry, .. } = this;
        if let Some(expiry) = expiry
            && let Err(expired) = expiry.poll(cx)
        {
            return Poll::Ready(Err(expired));
        }
        opening.poll_read(cx, buf, |cx, buf| match stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        })
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.may_stay(cx)?;
        match &mut this.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.may_stay(cx)?;
        match &mut this.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.may_stay(cx)?;
        match &mut this.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
