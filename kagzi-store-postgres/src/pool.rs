//! The connections to one server, as many as there may be, given out and kept.
//!
//! sqlx's pool opens them, and no more: it asks each connection that comes back for a sign of life, which is
//! a second round trip for every statement, and waits for it without end, so that each link that dies just
//! then is a place lost. Here a connection that comes back has had its last statement answered, and is kept
//! without a word.

use std::collections::VecDeque;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use sqlx::Connection as _;
use sqlx::postgres::{PgConnection, PgListener, PgPool};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

/// A connection that nobody used for so long is tried before it is used: it may have died since, with its
/// server. One that is in use shows it.
const RESTED: Duration = Duration::from_secs(1);

/// How long a connection that has rested may take to answer before it counts as dead. A link that died in
/// silence would else hold the caller for as long as it may wait for any connection.
const PONG_WITHIN: Duration = Duration::from_millis(500);

/// A connection that nobody used for so long is closed when another comes back.
const IDLE: Duration = Duration::from_mins(10);

/// A connection of this age is closed when it comes back: what a server keeps for a session grows.
const LIFETIME: Duration = Duration::from_mins(30);

/// How long saying goodbye to the server may take. It is a courtesy: a server that hangs does not hear it.
pub(crate) const GOODBYE_WITHIN: Duration = Duration::from_secs(1);

/// See the module. It is shared with the connections that it gave out.
pub(crate) struct Pool {
    opener: PgPool,
    /// One for each connection that there may be. Those of connections that are kept are free.
    places: Arc<Semaphore>,
    /// The one that came back last is at the end. Nothing once the pool is closed.
    kept: Mutex<Option<VecDeque<Kept>>>,
}

struct Kept {
    connection: PgConnection,
    opened: Instant,
    since: Instant,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("in_use", &self.in_use()).finish_non_exhaustive()
    }
}

impl Pool {
    /// As many connections, and as much patience, as the options of `opener` allow.
    pub(crate) fn new(opener: PgPool) -> Arc<Self> {
        let most = opener.options().get_max_connections() as usize;
        let (places, kept) =
            (Arc::new(Semaphore::new(most)), Mutex::new(Some(VecDeque::with_capacity(most))));
        Arc::new(Self { opener, places, kept })
    }

    /// A connection. Cancel safe.
    pub(crate) async fn acquire(self: &Arc<Self>) -> Result<Pooled, sqlx::Error> {
        let patience = self.opener.options().get_acquire_timeout();
        timeout(patience, self.take()).await.map_err(|_| sqlx::Error::PoolTimedOut)?
    }

    async fn take(self: &Arc<Self>) -> Result<Pooled, sqlx::Error> {
        let closed = |_| sqlx::Error::PoolClosed;
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(closed)?;
        let pooled =
            |connection, opened| Pooled { connection, opened, pool: Arc::clone(self), _place: place };
        loop {
            let last = self.kept().as_mut().ok_or(sqlx::Error::PoolClosed)?.pop_back();
            let Some(Kept { mut connection, opened, since }) = last else {
                let connection = self.opener.acquire().await?.detach();
                return Ok(pooled(connection, Instant::now()));
            };
            if since.elapsed() <= RESTED || answers(&mut connection).await {
                return Ok(pooled(connection, opened));
            }
        }
    }

    /// A connection that listens. It takes no place.
    pub(crate) async fn listener(&self) -> Result<PgListener, sqlx::Error> {
        PgListener::connect_with(&self.opener).await
    }

    /// How many connections there may be.
    pub(crate) fn most(&self) -> u32 {
        self.opener.options().get_max_connections()
    }

    /// How many are at work, or being opened.
    pub(crate) fn in_use(&self) -> u32 {
        let free = u32::try_from(self.places.available_permits()).unwrap_or(u32::MAX);
        self.most().saturating_sub(free)
    }

    /// How many are kept.
    pub(crate) fn idle(&self) -> u32 {
        let kept = self.kept().as_ref().map_or(0, VecDeque::len);
        u32::try_from(kept).unwrap_or(u32::MAX)
    }

    /// Gives nothing out any more, and waits until every connection has come back and is closed: as long as somebody may
    /// wait for an answer at most, and for ever where one listens to a server that is silent.
    pub(crate) async fn close(&self) {
        let kept = self.kept().take().unwrap_or_default();
        join_all(kept.into_iter().map(|kept| say_goodbye(kept.connection))).await;
        // Those who wait for a place have it before this, and hear that the pool is closed.
        let all = self.places.acquire_many(self.most()).await;
        self.places.close();
        // An error means that it was closed before.
        drop(all);
        self.opener.close().await;
    }

    fn keep(&self, connection: PgConnection, opened: Instant) {
        let mut kept = self.kept();
        let leaving = match kept.as_mut().filter(|_| opened.elapsed() < LIFETIME) {
            None => Some(connection),
            Some(kept) => {
                kept.push_back(Kept { connection, opened, since: Instant::now() });
                kept.pop_front_if(|longest| longest.since.elapsed() > IDLE).map(|longest| longest.connection)
            }
        };
        drop(kept);
        // Without a runtime there is nobody to wait: dropped, it is closed without a goodbye.
        if let (Some(leaving), Ok(runtime)) = (leaving, Handle::try_current()) {
            runtime.spawn(say_goodbye(leaving));
        }
    }

    fn kept(&self) -> MutexGuard<'_, Option<VecDeque<Kept>>> {
        // It is never left half changed, so a panic elsewhere does not spoil it.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn answers(connection: &mut PgConnection) -> bool {
    timeout(PONG_WITHIN, connection.ping()).await.is_ok_and(|pong| pong.is_ok())
}

async fn say_goodbye(connection: PgConnection) {
    if let Ok(Err(error)) = timeout(GOODBYE_WITHIN, connection.close()).await {
        tracing::debug!(%error, "a connection that was closed had broken before");
    }
}

/// A connection of a pool. Dropped, it is closed, and another may be opened in its place.
pub(crate) struct Pooled {
    connection: PgConnection,
    opened: Instant,
    pool: Arc<Pool>,
    _place: OwnedSemaphorePermit,
}

impl Pooled {
    /// Gives it back. The last statement was answered, and no transaction is open.
    pub(crate) fn keep(self) {
        let Self { connection, opened, pool, _place: place } = self;
        pool.keep(connection, opened);
        // Only now: whoever has a place finds what is kept.
        drop(place);
    }
}

impl Deref for Pooled {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}
