//! A proxy between a worker and its server that can keep answers back and cut its connections.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// See the module. Dropping it cuts all and listens no more.
pub struct Proxy {
    address: SocketAddr,
    connections: Arc<watch::Sender<Connections>>,
    _listening: JoinSet<()>,
}

/// What the connections are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Connections {
    /// Those of an older generation are cut.
    generation: u64,
    muted: bool,
}

impl Proxy {
    /// A proxy in front of `server`.
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(watch::Sender::new(Connections { generation: 0, muted: false }));
        let mut listening = JoinSet::new();
        let orders = Arc::clone(&connections);
        listening.spawn(async move {
            let mut carried = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                carried.spawn(carry(client, server, orders.subscribe()));
            }
        });
        Self { address, connections, _listening: listening }
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on, what the server says is kept back.
    pub fn mute(&self) {
        self.connections.send_modify(|connections| connections.muted = true);
    }

    /// Cuts every connection; new ones are carried, both ways.
    pub fn cut(&self) {
        self.connections.send_modify(|connections| {
            connections.generation += 1;
            connections.muted = false;
        });
    }
}

async fn carry(client: TcpStream, server: SocketAddr, mut orders: watch::Receiver<Connections>) {
    let generation = orders.borrow_and_update().generation;
    let (mut from_client, to_client) = client.into_split();
    let (from_server, mut to_server) = TcpStream::connect(server).await.unwrap().into_split();
    let down = Down(tokio::spawn(answers(from_server, to_client, orders.clone())).abort_handle());
    tokio::select! {
        _ = orders.wait_for(|connections| connections.generation != generation) => {}
        _ = copy(&mut from_client, &mut to_server) => {}
    }
    drop(down);
}

/// The way down, which ends with the way up.
struct Down(AbortHandle);

impl Drop for Down {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn answers(
    mut server: OwnedReadHalf,
    mut client: OwnedWriteHalf,
    mut orders: watch::Receiver<Connections>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = server.read(&mut buffer).await {
        if orders.wait_for(|connections| !connections.muted).await.is_err()
            || client.write_all(&buffer[..read]).await.is_err()
        {
            return;
        }
    }
}
