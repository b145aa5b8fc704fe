//! Connections, plain or under TLS, and who is at their other end.

mod connections;
mod names;
mod socket;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::config::LoadLimits;
use crate::metrics::Metrics;
use connections::Connections;
pub(crate) use connections::host;
pub(crate) use socket::Socket;
pub(crate) use tls::Tls;

/// How long a client has to shake hands. One that is slower is slow on purpose, or gone.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// So many may shake hands at once; others wait to be accepted, so that a flood of them costs a bounded
/// amount of memory and processor time.
const MOST_HANDSHAKES: usize = 256;

/// How long accepting pauses after an error that would come again at once, such as too many open files.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);

/// Who is at the other end of a connection. Found in the extensions of every request. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) address: Option<SocketAddr>,
    /// What its certificate calls it, if it showed one that was verified.
    pub(crate) names: Option<Arc<[String]>>,
}

struct Incoming {
    listener: TcpListener,
    tls: Option<Tls>,
    connections: Connections,
    metrics: Metrics,
    handshakes: JoinSet<Option<Socket>>,
}

/// The connections that clients open, each after its handshake. Never ends.
pub(crate) fn incoming(
    listener: TcpListener,
    tls: Option<Tls>,
    limits: &LoadLimits,
    metrics: Metrics,
) -> impl Stream<Item = std::io::Result<Socket>> + Send + use<> {
    let connections = Connections::up_to(limits);
    let incoming = Incoming { listener, tls, connections, metrics, handshakes: JoinSet::new() };
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
                accepted = self.listener.accept(), if self.handshakes.len() < MOST_HANDSHAKES => {
                    match accepted {
                        Ok((stream, address)) => {
                            if let Some(socket) = self.accept(stream, address) {
                                return socket;
                            }
                        }
                        Err(error) => {
                            tracing::warn!(%error, "a connection could not be accepted");
                            tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                        }
                    }
                }
                Some(shaken) = self.handshakes.join_next() => {
                    if let Ok(Some(socket)) = shaken {
                        return socket;
                    }
                }
            }
        }
    }

    /// The connection, if there is room for it and it needs no handshake.
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
        let acceptor = tls.acceptor();
        self.handshakes.spawn(async move {
            match tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => Some(Socket::tls(stream, address, counted)),
                Ok(Err(error)) => {
                    tracing::info!(%address, %error, "a TLS handshake failed");
                    None
                }
                Err(_) => {
                    tracing::info!(%address, "a TLS handshake took too long");
                    None
                }
            }
        });
        None
    }
}
