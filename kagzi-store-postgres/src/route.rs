//! Which server the store works with, where the URL names several: the one that takes writes now.
//!
//! All are asked at once. Of those that will do, the one on the latest timeline is taken, then the one that
//! the store works with already, then the first of the URL. Whoever cannot get a connection soon, loses
//! one, or hears that the server is read-only, has them asked again, and the store moves as a whole: its
//! pools leave the old server altogether (see `pools.rs`).
//!
//! **No way back in time.** A promotion begins a new timeline, so a server of the same cluster on an
//! earlier one than the store has worked with is an old primary that was started again. It would take
//! writes that nobody will ever see, and is refused.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::error::said;
use crate::options::Target;

/// How long a server is given to answer, or all of them when all are asked.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the others are waited for once one will do: only a server that has vanished takes so long.
const GRACE: Duration = Duration::from_millis(500);

/// The pauses between two rounds of asking while none will do.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// The servers that a URL names, and what one must be like.
#[derive(Clone)]
pub(crate) struct Servers {
    pub(crate) each: Vec<PgConnectOptions>,
    pub(crate) target: Target,
}

/// Where they are. What else is asked of them may hold a password.
impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places: Vec<String> = self.each.iter().map(place).collect();
        f.debug_struct("Servers").field("each", &places).field("target", &self.target).finish()
    }
}

fn place(server: &PgConnectOptions) -> String {
    match server.get_socket() {
        Some(directory) => format!("{}:{}", directory.display(), server.get_port()),
        None => format!("{}:{}", server.get_host(), server.get_port()),
    }
}

/// The line of descent of a server's data: which cluster, and after how many promotions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lineage {
    system: i64,
    timeline: i32,
}

/// A server that will do.
struct Fit {
    at: usize,
    connection: PgConnection,
    /// Nothing where it cannot be told, as on other databases with the protocol of Postgres.
    lineage: Option<Lineage>,
}

/// Why a server, or none of several, will do. Nothing was written on any.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NoServer(String);

impl From<NoServer> for sqlx::Error {
    fn from(error: NoServer) -> Self {
        Self::Configuration(Box::new(error))
    }
}

/// See the module. Shared by everything of a store that connects.
pub(crate) struct Route {
    servers: Servers,
    at: watch::Sender<usize>,
    looking: AtomicBool,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Of the server that the store works with.
    lineage: Option<Lineage>,
    /// Why no server would do when one was last asked.
    why: Option<NoServer>,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route")
            .field("servers", &self.servers)
            .field("at", &self.at())
            .finish_non_exhaustive()
    }
}

impl Route {
    pub(crate) fn new(servers: Servers) -> Arc<Self> {
        Arc::new(Self {
            servers,
            at: watch::Sender::new(0),
            looking: AtomicBool::new(false),
            known: Mutex::default(),
        })
    }

    /// Whether there is but one server.
    pub(crate) fn is_fixed(&self) -> bool {
        self.servers.each.len() == 1
    }

    /// The place of the server that the store works with, among those of the URL.
    pub(crate) fn at(&self) -> usize {
        *self.at.borrow()
    }

    /// How to connect to the server at a place.
    pub(crate) fn server(&self, at: usize) -> Option<&PgConnectOptions> {
        self.servers.each.get(at)
    }

    /// Tells of every move from now on.
    pub(crate) fn moves(&self) -> watch::Receiver<usize> {
        self.at.subscribe()
    }

    /// A connection to the server that the store works with from now on.
    pub(crate) async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        if let [server] = self.servers.each.as_slice() {
            let connected = timeout(PATIENCE, PgConnection::connect_with(server)).await;
            let mut connection = connected.unwrap_or_else(|_| Err(no_answer()))?;
            self.check(&mut connection).await?;
            return Ok(connection);
        }
        let fit = self.ask_all().await?;
        Ok(self.settle(fit))
    }

    /// Whether the server of a new connection is what the URL asks for.
    pub(crate) async fn check(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        if self.servers.target == Target::Any {
            return Ok(());
        }
        let row = connection
            .fetch_one(
                "SELECT pg_is_in_recovery() AS standby,
                     current_setting('transaction_read_only') = 'on' AS read_only",
            )
            .await?;
        let unfit = if row.try_get("standby")? {
            "this server is a standby"
        } else if self.servers.target == Target::ReadWrite && row.try_get("read_only")? {
            "this server is read-only: default_transaction_read_only is on"
        } else {
            return Ok(());
        };
        Err(NoServer(unfit.to_owned()).into())
    }

    /// The same for a connection of a pool, which keeps to itself why it cannot connect.
    pub(crate) async fn check_for_pool(
        self: &Arc<Self>,
        connection: &mut PgConnection,
    ) -> Result<(), sqlx::Error> {
        let checked = self.check(connection).await;
        match &checked {
            Ok(()) => self.known().why = None,
            Err(error) => {
                self.known().why = no_server(error).cloned();
                self.suspect();
            }
        }
        checked
    }

    /// Has all servers asked again, in the background and until one will do, unless that is under way.
    pub(crate) fn suspect(self: &Arc<Self>) {
        if self.is_fixed() || self.looking.swap(true, Ordering::Relaxed) {
            return;
        }
        let route = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut pause = FIRST_PAUSE;
            // It ends with the store.
            while let Some(route) = route.upgrade() {
                match route.ask_all().await {
                    Ok(fit) => {
                        let connection = route.settle(fit);
                        route.looking.store(false, Ordering::Relaxed);
                        // What it served for is done.
                        drop(connection.close().await);
                        return;
                    }
                    Err(error) => tracing::debug!(error = %said(&error), "no server to work with yet"),
                }
                drop(route);
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        });
    }

    /// An error as it is told: who waited in vain for a connection hears why there is none.
    pub(crate) fn told(&self, error: sqlx::Error) -> sqlx::Error {
        match (error, &self.known().why) {
            (sqlx::Error::PoolTimedOut, Some(why)) => why.clone().into(),
            (error, _) => error,
        }
    }

    async fn ask_all(&self) -> Result<Fit, sqlx::Error> {
        let mut asked: FuturesUnordered<_> =
            self.servers.each.iter().enumerate().map(|(at, server)| self.ask(at, server)).collect();
        let (mut fit, mut unfit) = (Vec::new(), Vec::new());
        let mut deadline = Instant::now() + PATIENCE;
        while let Ok(Some((at, answer))) = timeout_at(deadline, asked.next()).await {
            match answer {
                Ok(one) => {
                    fit.push(one);
                    deadline = deadline.min(Instant::now() + GRACE);
                }
                Err(error) => unfit.push((at, said(&error).into_owned())),
            }
        }
        drop(asked);
        if fit.len() > 1 && self.servers.target != Target::Any {
            let places: Vec<_> = fit.iter().filter_map(|one| self.server(one.at)).map(place).collect();
            tracing::error!(
                servers = places.join(", "),
                "several servers of the URL take writes; the store works with the one on the latest timeline. \
                 If one is an old primary that came back, stop it, and make it a standby by pg_rewind"
            );
        }
        let here = self.at();
        let best = fit.into_iter().max_by_key(|one| {
            (one.lineage.map(|lineage| lineage.timeline), one.at == here, std::cmp::Reverse(one.at))
        });
        if let Some(best) = best {
            return Ok(best);
        }
        let why = self.why(&unfit);
        self.known().why = Some(why.clone());
        Err(why.into())
    }

    /// What each server said, in the order of the URL.
    fn why(&self, unfit: &[(usize, String)]) -> NoServer {
        let each = self.servers.each.iter().enumerate().map(|(at, server)| {
            let what = unfit.iter().find(|(other, _)| *other == at).map_or("no answer", |(_, what)| what);
            format!("{}: {what}", place(server))
        });
        let (count, each) = (self.servers.each.len(), each.collect::<Vec<_>>().join("; "));
        NoServer(format!("none of the {count} servers of the URL takes writes: {each}"))
    }

    async fn ask(&self, at: usize, server: &PgConnectOptions) -> (usize, Result<Fit, sqlx::Error>) {
        let asking = async {
            let mut connection = PgConnection::connect_with(server).await?;
            self.check(&mut connection).await?;
            let lineage = match self.servers.target {
                Target::Any => None,
                Target::ReadWrite | Target::Primary => lineage(&mut connection).await,
            };
            self.refuse_a_way_back(lineage)?;
            Ok(Fit { at, connection, lineage })
        };
        (at, asking.await)
    }

    fn refuse_a_way_back(&self, lineage: Option<Lineage>) -> Result<(), sqlx::Error> {
        match (self.known().lineage, lineage) {
            (Some(known), Some(found)) if found.system == known.system && found.timeline < known.timeline => {
                let refused = format!(
                    "this is an old primary: it is on timeline {}, and the store has worked with timeline {}; \
                     stop it, and make it a standby by pg_rewind (if it is right and the other was wrong, \
                     restart this process)",
                    found.timeline, known.timeline
                );
                Err(NoServer(refused).into())
            }
            _ => Ok(()),
        }
    }

    /// Works with this server from now on.
    fn settle(&self, fit: Fit) -> PgConnection {
        let from = self.at();
        let mut known = self.known();
        let timeline = fit.lineage.map(|lineage| lineage.timeline);
        if from != fit.at || known.lineage != fit.lineage {
            let server = self.server(fit.at).map(place).unwrap_or_default();
            tracing::info!(server, timeline, "the store works with this server of its URL");
        }
        known.lineage = fit.lineage.or(known.lineage);
        known.why = None;
        drop(known);
        self.at.send_if_modified(|at| std::mem::replace(at, fit.at) != fit.at);
        fit.connection
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // It is never left half changed, so a panic elsewhere does not spoil it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_answer() -> sqlx::Error {
    let message = format!("no answer within {PATIENCE:?}");
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, message))
}

/// What the error says about servers that will not do, if it is of that kind.
pub(crate) fn no_server(error: &sqlx::Error) -> Option<&NoServer> {
    match error {
        sqlx::Error::Configuration(inner) => inner.downcast_ref(),
        _ => None,
    }
}

/// Nothing where the server does not tell it, or not to this user.
async fn lineage(connection: &mut PgConnection) -> Option<Lineage> {
    // The control file has the timeline only after the next checkpoint; what is written now has it at once.
    let row = connection
        .fetch_one(
            "SELECT (SELECT system_identifier FROM pg_control_system()) AS system,
                 ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer AS timeline",
        )
        .await
        .ok()?;
    Some(Lineage { system: row.try_get("system").ok()?, timeline: row.try_get("timeline").ok()? })
}
