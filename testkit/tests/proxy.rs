//! What the proxy promises: it cuts where it is told to, keeps back what it is told to, and tells nobody.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::net::SocketAddr;
use std::time::Duration;

use kagzi_testkit::{Direction, Proxy};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A server that gives back what it gets.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = client.split();
                tokio::io::copy(&mut from, &mut to).await.ok();
            });
        }
    });
    address
}

/// What comes back, as far as it comes; `None` if the connection ends before.
async fn said(connection: &mut TcpStream, words: &str) -> Option<String> {
    connection.write_all(words.as_bytes()).await.ok()?;
    let mut answer = vec![0; words.len()];
    connection.read_exact(&mut answer).await.ok()?;
    Some(String::from_utf8(answer).unwrap())
}

async fn carried(proxy: &Proxy) -> TcpStream {
    let mut connection = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(said(&mut connection, "hello").await.unwrap(), "hello");
    connection
}

/// Whether nothing comes: as far as waiting a moment can tell.
async fn is_silent(connection: &mut TcpStream) -> bool {
    tokio::time::timeout(Duration::from_millis(100), connection.read_u8()).await.is_err()
}

#[tokio::test]
async fn a_cut_ends_what_is_open_and_new_connections_are_carried() {
    let proxy = Proxy::to(echo().await).await.unwrap();
    let mut connection = carried(&proxy).await;
    proxy.cut();
    assert_eq!(connection.read(&mut [0; 1]).await.unwrap_or_default(), 0);
    carried(&proxy).await;
}

#[tokio::test]
async fn an_answer_is_cut_after_so_many_bytes_on_every_connection() {
    let proxy = Proxy::to(echo().await).await.unwrap();
    let (mut one, mut other) = (carried(&proxy).await, carried(&proxy).await);
    proxy.cut_after(Direction::Down, 3);
    for connection in [&mut one, &mut other] {
        connection.write_all(b"hello").await.unwrap();
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).await.ok();
        assert_eq!(answer, b"hel");
    }
    proxy.open();
    carried(&proxy).await;
}

#[tokio::test]
async fn a_black_hole_swallows_old_and_new_connections_and_gives_all_back_when_it_opens() {
    let proxy = Proxy::to(echo().await).await.unwrap();
    let mut old = carried(&proxy).await;
    proxy.black_hole();
    let mut new = TcpStream::connect(proxy.address()).await.unwrap();
    for connection in [&mut old, &mut new] {
        connection.write_all(b"x").await.unwrap();
        assert!(is_silent(connection).await);
    }
    proxy.open();
    for connection in [&mut old, &mut new] {
        assert_eq!(connection.read_u8().await.unwrap(), b'x');
    }
}

#[tokio::test]
async fn half_open_connections_stay_dead_and_new_ones_are_carried() {
    let proxy = Proxy::to(echo().await).await.unwrap();
    let mut old = carried(&proxy).await;
    proxy.half_open();
    old.write_all(b"x").await.unwrap();
    carried(&proxy).await;
    proxy.open();
    assert!(is_silent(&mut old).await);
    proxy.cut();
    assert!(old.read_u8().await.is_err());
}

#[tokio::test]
async fn a_muted_server_hears_and_is_not_heard_until_the_link_opens() {
    let proxy = Proxy::to(echo().await).await.unwrap();
    let mut connection = carried(&proxy).await;
    proxy.mute();
    connection.write_all(b"x").await.unwrap();
    assert!(is_silent(&mut connection).await);
    proxy.open();
    assert_eq!(connection.read_u8().await.unwrap(), b'x');
}

#[tokio::test]
async fn whom_it_refuses_is_reset_and_where_it_leads_can_change() {
    let proxy = Proxy::to(SocketAddr::from(([127, 0, 0, 1], 1))).await.unwrap();
    proxy.lead_to(echo().await);
    let mut old = carried(&proxy).await;
    proxy.refuse();
    assert!(old.read_u8().await.is_err());
    if let Ok(mut connection) = TcpStream::connect(proxy.address()).await {
        assert!(said(&mut connection, "x").await.is_none());
    }
    proxy.open();
    carried(&proxy).await;
}

#[tokio::test]
async fn a_slow_link_is_late_and_carries_all() {
    let proxy = Proxy::to(echo().await).await.unwrap();
    proxy.slow(Duration::from_millis(20), 100_000);
    let mut connection = TcpStream::connect(proxy.address()).await.unwrap();
    let began = std::time::Instant::now();
    assert_eq!(said(&mut connection, "hello").await.unwrap(), "hello");
    // Once up and once down; how much later it is on a busy machine nobody can say.
    assert!(began.elapsed() >= Duration::from_millis(40));
}
