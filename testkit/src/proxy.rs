//! A TCP proxy that does what networks do on bad days: it cuts, keeps back, slows down, goes silent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::TestkitError;

/// How much is carried at a time.
const CHUNK_BYTES: usize = 16 * 1024;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server: requests.
    Up,
    /// From the server to the client: answers.
    Down,
}

/// How the link behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Open,
    /// Nothing goes in this direction.
    Muted(Direction),
    /// Nothing goes at all; new connections are accepted, and led nowhere.
    BlackHole,
    /// Each chunk is late, and so many bytes a second go in each direction.
    Slow {
        latency: Duration,
        bytes_per_second: u32,
    },
    /// A connection ends once this many more bytes have gone in this direction.
    CutAfter {
        direction: Direction,
        bytes: u64,
    },
    /// New connections are reset.
    Refused,
}

/// What the connections are to do.
#[derive(Clone, Copy, Debug)]
struct Orders {
    server: SocketAddr,
    link: Link,
    /// Grows with each order, so that bytes are counted from the order on.
    order: u64,
    /// Connections with a smaller number are cut.
    cut_below: u64,
    /// Connections with a smaller number are dead to both sides, who are not told.
    dead_below: u64,
}

/// A proxy on the loopback interface in front of a server. Its connections behave as the last order says;
/// an order holds for those that are open and for new ones, unless it says otherwise. Dropping it cuts all
/// and listens no more.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    orders: Arc<watch::Sender<Orders>>,
    numbers: Arc<watch::Sender<u64>>,
    requests: Arc<AtomicU64>,
    _listening: JoinSet<()>,
}

impl Proxy {
    /// A proxy in front of `server` that carries everything.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Io`] if there is no port left.
    pub async fn to(server: SocketAddr) -> Result<Self, TestkitError> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let orders = Orders { server, link: Link::Open, order: 0, cut_below: 0, dead_below: 0 };
        let orders = Arc::new(watch::Sender::new(orders));
        let numbers = Arc::new(watch::Sender::new(0));
        let requests = Arc::new(AtomicU64::new(0));
        let mut listening = JoinSet::new();
        listening.spawn(listen(listener, Arc::clone(&orders), Arc::clone(&numbers), Arc::clone(&requests)));
        Ok(Self { address, orders, numbers, requests, _listening: listening })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens, as the URL of an HTTP server.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it leads new connections.
    pub fn server(&self) -> SocketAddr {
        self.orders.borrow().server
    }

    /// Leads new connections to another server.
    pub fn lead_to(&self, server: SocketAddr) {
        self.orders.send_modify(|orders| orders.server = server);
    }

    /// Everything flows, also what was held up. Connections that [`half_open`](Self::half_open) left dead
    /// stay so.
    pub fn open(&self) {
        self.order(Link::Open);
    }

    /// Cuts every connection; new ones are carried.
    pub fn cut(&self) {
        let next = *self.numbers.borrow();
        self.orders.send_modify(|orders| {
            (orders.link, orders.order, orders.cut_below) = (Link::Open, orders.order + 1, next);
        });
    }

    /// Cuts each connection once so many more bytes have gone in one direction. With
    /// [`Direction::Down`] and 0 the server does what it is asked, and its answer is lost.
    pub fn cut_after(&self, direction: Direction, bytes: u64) {
        self.order(Link::CutAfter { direction, bytes });
    }

    /// From now on, what the server says is kept back.
    pub fn mute(&self) {
        self.order(Link::Muted(Direction::Down));
    }

    /// A partition: nothing gets through and nobody is told. New connections are accepted, as a full
    /// queue of a firewall would, and lead nowhere. What was sent arrives once the link is
    /// [`open`](Self::open) again.
    pub fn black_hole(&self) {
        self.order(Link::BlackHole);
    }

    /// The connections that are open now lead nowhere any more and are not closed, as after the loss of a
    /// firewall's memory; new ones are carried.
    pub fn half_open(&self) {
        let next = *self.numbers.borrow();
        self.orders.send_modify(|orders| {
            (orders.link, orders.order, orders.dead_below) = (Link::Open, orders.order + 1, next);
        });
    }

    /// Each chunk of at most 16 KiB arrives this much later, and so many bytes a second at most go in each
    /// direction of a connection.
    pub fn slow(&self, latency: Duration, bytes_per_second: u32) {
        self.order(Link::Slow { latency, bytes_per_second });
    }

    /// Cuts every connection and resets new ones.
    pub fn refuse(&self) {
        let next = *self.numbers.borrow();
        self.orders.send_modify(|orders| {
            (orders.link, orders.order, orders.cut_below) = (Link::Refused, orders.order + 1, next);
        });
    }

    /// How many connections were accepted since the proxy was made.
    pub fn connections(&self) -> u64 {
        *self.numbers.borrow()
    }

    /// How many chunks of at most 16 KiB came from clients since the proxy was made. For a client that sends
    /// a small request in one piece and waits for its answer, this counts the round trips.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Waits until this many connections were accepted since the proxy was made.
    pub async fn accepted(&self, connections: u64) {
        // The sender lives in this handle, so waiting cannot fail.
        self.numbers.subscribe().wait_for(|number| *number >= connections).await.ok();
    }

    fn order(&self, link: Link) {
        self.orders.send_modify(|orders| (orders.link, orders.order) = (link, orders.order + 1));
    }
}

async fn listen(
    listener: TcpListener,
    orders: Arc<watch::Sender<Orders>>,
    numbers: Arc<watch::Sender<u64>>,
    requests: Arc<AtomicU64>,
) {
    let mut carried = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let number = *numbers.borrow();
        numbers.send_replace(number + 1);
        carried.spawn(carry(client, number, orders.subscribe(), Arc::clone(&requests)));
        while carried.try_join_next().is_some() {}
    }
}

/// Carries one connection to its end.
async fn carry(
    client: TcpStream,
    number: u64,
    mut orders: watch::Receiver<Orders>,
    requests: Arc<AtomicU64>,
) {
    let mut cut = orders.clone();
    let carried = async {
        let Ok(now) = orders.wait_for(|orders| orders.link != Link::BlackHole).await.map(|orders| *orders)
        else {
            return;
        };
        if now.link == Link::Refused {
            // Reset rather than closed in order.
            client.set_zero_linger().ok();
            return;
        }
        let Ok(server) = TcpStream::connect(now.server).await else { return };
        // A proxy must not wait for more before it passes a small frame on.
        client.set_nodelay(true).ok();
        server.set_nodelay(true).ok();
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let way = |direction| {
            let requests = Arc::clone(&requests);
            Way { direction, number, orders: orders.clone(), order: 0, left: 0, requests }
        };
        tokio::select! {
            () = way(Direction::Up).carry(from_client, to_server) => {}
            () = way(Direction::Down).carry(from_server, to_client) => {}
        }
    };
    tokio::select! {
        _ = cut.wait_for(|orders| number < orders.cut_below) => {}
        () = carried => {}
    }
}

/// One direction of one connection.
struct Way {
    direction: Direction,
    number: u64,
    orders: watch::Receiver<Orders>,
    /// The order under which bytes are counted, and how many are left.
    order: u64,
    left: u64,
    requests: Arc<AtomicU64>,
}

impl Way {
    /// Carries until an end closes, or the orders say that it is enough.
    async fn carry(mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            if self.flows().await.is_none() {
                return;
            }
            let read = from.read(&mut buffer).await.unwrap_or_default();
            // The orders may have changed while it waited: an end is held up like anything else.
            let Some(link) = self.flows().await else { return };
            if read == 0 {
                return;
            }
            if self.direction == Direction::Up {
                self.requests.fetch_add(1, Ordering::Relaxed);
            }
            let chunk = &buffer[..read];
            match link {
                Link::Slow { latency, bytes_per_second } => {
                    let seconds = f64::from(u32::try_from(read).unwrap_or(u32::MAX))
                        / f64::from(bytes_per_second.max(1));
                    tokio::time::sleep(latency + Duration::from_secs_f64(seconds)).await;
                }
                Link::CutAfter { direction, .. } if direction == self.direction => {
                    let passed = usize::try_from(self.left).unwrap_or(usize::MAX).min(read);
                    if to.write_all(&chunk[..passed]).await.is_err() || passed < read {
                        return;
                    }
                    self.left -= passed as u64;
                    continue;
                }
                _ => {}
            }
            if to.write_all(chunk).await.is_err() {
                return;
            }
        }
    }

    /// Waits until bytes may go this way, and says how; nothing once the proxy is gone.
    async fn flows(&mut self) -> Option<Link> {
        let (number, direction) = (self.number, self.direction);
        let flows = |orders: &Orders| {
            number >= orders.dead_below
                && orders.link != Link::BlackHole
                && orders.link != Link::Muted(direction)
        };
        let orders = *self.orders.wait_for(flows).await.ok()?;
        if let (Link::CutAfter { bytes, .. }, true) = (orders.link, orders.order != self.order) {
            (self.order, self.left) = (orders.order, bytes);
        }
        Some(orders.link)
    }
}
