//! Connections, plain or under TLS, and who is at their other end.

mod certificate;
mod complaints;
mod connections;
mod der;
mod expiry;
mod handshakes;
mod names;
mod opening;
mod socket;
mod tls;

use std::net::SocketAddr;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::config::LoadLimits;
use crate::metrics::Metrics;
pub(crate) use certificate::{ClientCertificate, Rules};
use complaints::Complaints;
use connections::Connections;
pub(crate) use connections::{Standing, Visit, host};
use handshakes::{Begun, Handshakes};
pub(crate) use socket::Socket;
pub(crate) use tls::Tls;

/// How long a client has to shake hands. One that is slower is slow on purpose, or gone.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// How long accepting pauses after an error that would come again at once, such as too many open files.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);

/// Who is at the other end of a connection. Found in the extensions of every request. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) address: Option<SocketAddr>,
    /// If it showed one that was verified.
    pub(crate) certificate: Option<ClientCertificate>,
    /// Whether it is a stranger.
    pub(crate) standing: Standing,
}

#[cfg(test)]
impl Peer {
    /// Somebody on a connection that is not counted.
    pub(crate) fn stranger(address: Option<SocketAddr>) -> Self {
        Self { address, certificate: None, standing: Standing::uncounted() }
    }
}

struct Incoming {
    listener: TcpListener,
    tls: Option<Tls>,
    connections: Connections,
    metrics: Metrics,
    handshakes: Handshakes<Socket>,
    complaints: Complaints,
}

/// The connections that clients open, each after its handshake. Never ends.
pub(crate) fn incoming(
    listener: TcpListener,
    tls: Option<Tls>,
    limits: &LoadLimits,
    metrics: Metrics,
) -> impl Stream<Item = std::io::Result<Socket>> + Send + use<> {
    let connections = Connections::up_to(limits);
    let (handshakes, complaints) = (Handshakes::new(), Complaints::default());
    let incoming = Incoming { listener, tls, connections, metrics, handshakes, complaints };
    futures::stream::unfold(incoming, |mut incoming| async move {
        let socket = incoming.next().await;
        Some((Ok(socket), incoming))
    })
    .boxed()
}

impl Incoming {
    async fn next(&mut self) -> Socket {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, address)) => {
                        if let Some(socket) = self.accept(stream, address) {
                            return socket;
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                    }
                },
                socket = self.handshakes.next() => return socket,
            }
        }
    }

    /// The connection, if there is room for it, be it a stranger's, and it needs no handshake.
    fn accept(&mut self, stream: TcpStream, address: SocketAddr) -> Option<Socket> {
        let Some(counted) = self.connections.open(address.ip(), &self.metrics) else {
            self.metrics.refused_connection();
            tracing::debug!(%address, "a connection was closed: there are as many as may be");
            return None;
        };
        if let Err(error) = stream.set_nodelay(true) {
            // It has gone again, most likely; whoever reads from it will see.
            tracing::debug!(%address, %error, "a connection keeps its delay");
        }
        let Some(tls) = &self.tls else { return Some(Socket::plain(stream, address, counted)) };
        let (handshake, complaints) = (tls.handshake(), self.complaints.clone());
        let begun = self.handshakes.begin(host(address.ip()), async move {
            let shaken = tokio::select! {
                shaken = tokio::time::timeout(HANDSHAKE_WITHIN, handshake.accept(stream)) => shaken,
                () = counted.standing().gives_way() => return None,
            };
            match shaken {
                Ok(Ok((stream, certificate))) => Some(Socket::tls(stream, address, certificate, counted)),
                Ok(Err(error)) => {
                    complaints.handshake_failed(address, &error);
                    None
                }
                Err(_) => {
                    complaints.handshake_failed(address, &format_args!("no end within {HANDSHAKE_WITHIN:?}"));
                    None
                }
            }
        });
        match begun {
            Begun::Yes => {}
            Begun::No => {
                self.metrics.refused_connection();
                tracing::debug!(%address, "a connection was closed: its address has as many handshakes as may be");
            }
            Begun::InsteadOfOneOf(host) => {
                self.metrics.refused_connection();
                tracing::debug!(%host, "a handshake was ended: there are as many as may be, most of them from there");
            }
        }
        None
    }
}

/// Fails a test that would hang instead of letting it: in paused time, as soon as nothing else can happen.
#[cfg(test)]
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_hours(1), work).await.unwrap_or_else(|_| panic!("it would hang"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kagzi_core::SharedStore;
    use kagzi_core::memory::MemoryStore;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tonic::transport::server::Connected as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_on_which_nobody_speaks_ends_and_leaves_its_place_to_others() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let store: SharedStore = Arc::new(MemoryStore::default());
        let limits = LoadLimits { max_connections: 1, ..LoadLimits::default() };
        let mut incoming = incoming(listener, None, &limits, Metrics::new(&store));
        for _ in 0..3 {
            let _silent = TcpStream::connect(address).await.unwrap();
            let mut accepted = incoming.next().await.unwrap().unwrap();
            let error = soon(accepted.read_u8()).await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_on_which_nobody_has_called_for_a_while_ends_for_a_new_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let store: SharedStore = Arc::new(MemoryStore::default());
        let limits = LoadLimits { max_connections: 1, ..LoadLimits::default() };
        let mut incoming = incoming(listener, None, &limits, Metrics::new(&store));
        let mut first = TcpStream::connect(address).await.unwrap();
        let mut accepted = incoming.next().await.unwrap().unwrap();
        let standing = accepted.connect_info().standing;
        let (say, said) = tokio::sync::oneshot::channel();
        let reading = tokio::spawn(async move {
            // It is read from before anybody calls.
            accepted.read_exact(&mut [0; 24]).await?;
            say.send(()).unwrap();
            accepted.read_u8().await
        });
        first.write_all(&[0; 24]).await.unwrap();
        said.await.unwrap();
        drop(standing.visit());
        tokio::time::advance(Duration::from_mins(2)).await;
        let _second = TcpStream::connect(address).await.unwrap();
        incoming.next().await.unwrap().unwrap();
        let error = soon(reading).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted, "{error}");
    }
}
