//! The pool of the server that the store works with.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPool};
use tokio::time::sleep;

use crate::pool::{Pool, Pooled};
use crate::route::Route;

/// Who waits for a connection for so long has the servers asked.
const SLOW: Duration = Duration::from_millis(250);

/// One pool after the other: when the store moves to another server, the pool is left with every
/// connection in it, and a new one is made.
pub(crate) struct Pools {
    route: Arc<Route>,
    make: Box<dyn Fn(PgConnectOptions) -> PgPool + Send + Sync>,
    held: RwLock<Held>,
    full: AtomicBool,
}

struct Held {
    pool: Arc<Pool>,
    /// The server that it connects to.
    at: usize,
    closed: bool,
}

impl fmt::Debug for Pools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pools").field("route", &self.route).finish_non_exhaustive()
    }
}

impl Pools {
    /// Pools whose connections are opened as `make` says.
    pub(crate) fn new(
        route: Arc<Route>,
        make: impl Fn(PgConnectOptions) -> PgPool + Send + Sync + 'static,
    ) -> Self {
        let at = route.at();
        let pool = Pool::new(make(route.server(at).cloned().unwrap_or_default()));
        Self {
            route,
            make: Box::new(make),
            held: RwLock::new(Held { pool, at, closed: false }),
            full: AtomicBool::new(false),
        }
    }

    /// A connection of the pool to the server that the store works with.
    pub(crate) async fn acquire(&self) -> Result<Pooled, sqlx::Error> {
        if self.route.is_fixed() {
            self.now().acquire().await.map_err(|error| self.route.told(error))
        } else {
            Box::pin(self.following(async |pool| pool.acquire().await)).await
        }
    }

    /// A connection that listens.
    pub(crate) async fn listener(&self) -> Result<PgListener, sqlx::Error> {
        self.following(async |pool| pool.listener().await).await
    }

    /// Whether a statement found no room on a disk of the server, and nobody has found any since.
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Notes whether there is room on the server's disks.
    pub(crate) fn note_full(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
    }

    /// Something speaks against the server: all are asked again.
    pub(crate) fn suspect(&self) {
        self.route.suspect();
    }

    /// The pool of now.
    pub(crate) fn now(&self) -> Arc<Pool> {
        let at = self.route.at();
        {
            let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
            if held.at == at || held.closed {
                return Arc::clone(&held.pool);
            }
        }
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        if let (false, Some(server)) = (held.at == at || held.closed, self.route.server(at)) {
            let left = std::mem::replace(&mut held.pool, Pool::new((self.make)(server.clone())));
            held.at = at;
            // From here on it gives out nothing; what is idle in it is closed, what is at work later.
            tokio::spawn(async move { left.close().await });
        }
        Arc::clone(&held.pool)
    }

    /// Asks the pool of now, and the next one if the store moves meanwhile. Each has its own patience.
    async fn following<T>(
        &self,
        ask: impl AsyncFn(Arc<Pool>) -> Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        let mut moves = self.route.moves();
        loop {
            moves.mark_unchanged();
            let mut asking = std::pin::pin!(ask(self.now()));
            let mut slow = std::pin::pin!(sleep(SLOW));
            let mut suspected = false;
            loop {
                tokio::select! {
                    biased;
                    answer = &mut asking => match answer {
                        Ok(answer) => return Ok(answer),
                        // It was left in the meantime.
                        Err(sqlx::Error::PoolClosed) if !self.is_closed() => break,
                        Err(sqlx::Error::PoolClosed) => return Err(sqlx::Error::PoolClosed),
                        Err(error) => {
                            self.suspect();
                            return Err(self.route.told(error));
                        }
                    },
                    _ = moves.changed() => break,
                    () = &mut slow, if !suspected => {
                        suspected = true;
                        self.suspect();
                    }
                }
            }
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.held.read().unwrap_or_else(PoisonError::into_inner).closed
    }

    pub(crate) async fn close(&self) {
        let pool = {
            let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
            held.closed = true;
            Arc::clone(&held.pool)
        };
        pool.close().await;
    }
}
