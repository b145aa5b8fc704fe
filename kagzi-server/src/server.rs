//! A server from its first breath to its last: open, bind, serve, drain, close.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use kagzi_core::engine::Engine;
use kagzi_core::{SPANS, SharedStore, StoreError, Traced};
use kagzi_proto::FILE_DESCRIPTOR_SET;
use kagzi_sdk::wire::error::explained;
use tokio::net::{TcpListener, lookup_host};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::Response;
use tonic::transport::server::Router;
use tonic_health::ServingStatus;
use tonic_health::server::health_reporter;
use tower::layer::util::{Identity, Stack};
use tower::util::MapResponseLayer;

use crate::auth::{Auth, AuthLayer};
use crate::breaker::{Breaker, Guarded};
use crate::config::{Exposure, ServerConfig};
use crate::error::ServerError;
use crate::health::Health;
use crate::http::{self, Told};
use crate::metrics::{Metered, Metrics};
use crate::reload::Reload;
use crate::retention::Keeper;
use crate::service::{BytesLayer, Services, StreamLayer};
use crate::shown::without_password;
use crate::shutdown::{Drain, Drained};
use crate::start::{Opened, Waiting, open_or_wait};
use crate::transport::{Tls, incoming};

/// How many bytes one call may send ahead of what was read. The window moves on as it is read, so a large payload flows;
/// over a way of 20 ms it is 25 MB a second.
const STREAM_WINDOW_BYTES: u32 = 512 * 1024;

/// How many bytes all calls of a connection may send ahead of what was read. Nobody is charged for them, so every
/// connection may cost that much memory while its streams are not read from: little, as there may be thousands.
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// What a call about health or of reflection may say, in bytes. Strangers may ask for health, so what they
/// announce and then keep back must not be worth keeping.
const QUESTION_BYTES: usize = 4 * 1024;

/// How long connections have to deliver their last answers after all calls were answered, and the store to close
/// meanwhile.
const FAREWELL: Duration = Duration::from_secs(1);

/// A server that has its store and its address, and does not serve yet.
///
/// Calls that come before [`run`](Self::run) wait in the listener's backlog, so whoever has the address
/// may hand it out at once.
#[derive(Debug)]
pub struct Server {
    config: ServerConfig,
    security: Security,
    store: SharedStore,
    /// While the store is away.
    waiting: Option<Waiting>,
    reload: Reload,
    listener: TcpListener,
    local_addr: SocketAddr,
    http: Option<(TcpListener, SocketAddr)>,
}

impl Server {
    /// Opens the store and takes the address. A store that is away is waited for while the server
    /// [runs](Self::run), unless `start_timeout` is zero: until it is there, calls are refused with a delay.
    ///
    /// # Errors
    ///
    /// [`ServerError`] if the configuration, the store or the address is refused.
    pub async fn bind(config: ServerConfig) -> Result<Self, ServerError> {
        let security = Security::of(&config)?;
        resolve(&config.listen, security.lacks).await?;
        // The address last: who sees it taken may count on a server that will serve, once its store is there.
        let opened = open_or_wait(&config).await?;
        let store = opened.store.clone();
        match Listening::begin(&config, &security).await {
            Ok(listening) => Ok(Self::over(config, security, opened, listening)),
            Err(refused) => {
                if let Err(error) = close(&store).await {
                    tracing::warn!(%error, "the store did not close cleanly");
                }
                Err(refused)
            }
        }
    }

    /// Takes the address, over a store that is open already.
    ///
    /// # Errors
    ///
    /// [`ServerError`] if the configuration or the address is refused.
    pub async fn bind_over(config: ServerConfig, store: SharedStore) -> Result<Self, ServerError> {
        let security = Security::of(&config)?;
        let listening = Listening::begin(&config, &security).await?;
        Ok(Self::over(config, security, Opened { store, waiting: None }, listening))
    }

    fn over(config: ServerConfig, security: Security, opened: Opened, listening: Listening) -> Self {
        let Opened { store, waiting } = opened;
        let Listening { calls: (listener, local_addr), http } = listening;
        Self { config, security, store, waiting, reload: Reload::default(), listener, local_addr, http }
    }

    /// The address it listens on, with the port that was taken.
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Where `/metrics`, `/livez` and `/readyz` are answered, if anywhere.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(|(_, address)| *address)
    }

    /// The store below.
    pub const fn store(&self) -> &SharedStore {
        &self.store
    }

    /// Tells the server, while it runs, to read its files again at once.
    pub fn reload(&self) -> Reload {
        self.reload.clone()
    }

    /// Serves until `shutdown` is ready, drains, and closes the store.
    ///
    /// Dropping the future ends the server without draining: nothing acknowledged is lost, but
    /// connections stay open until their clients close them or the runtime ends.
    ///
    /// # Errors
    ///
    /// [`ServerError`] if the transport breaks down, the store does not come or does not close.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServerError> {
        let (reporter, health_service) = health_reporter();
        let health_service = health_service.max_decoding_message_size(QUESTION_BYTES);
        let drain = Drain::default();
        let metrics = Metrics::new(&self.store);
        metrics.show_limits(&self.config.load);
        // What the services, the engine and the reaper ask passes the breaker and is counted; whoever looks
        // whether the store is well does not ask the breaker.
        let counted = Metered::over(self.store.clone(), metrics.clone());
        let breaker = Breaker::new(metrics.clone());
        let health = Health::new(reporter, breaker.clone());
        let store = Guarded::over(counted.clone(), breaker);
        let traced = if tracing::span_enabled!(target: SPANS, tracing::Level::INFO) {
            Traced::over(store.clone())
        } else {
            store.clone()
        };
        let engine = Engine::new(traced, self.config.engine.clone());
        let Security { auth, tls, .. } = self.security;
        let told = Told { metrics: metrics.clone(), health: health.clone(), drain: drain.clone() };
        let services = Services::new(
            &self.config,
            engine.clone(),
            drain.clone(),
            health.clone(),
            auth.clone(),
            metrics.clone(),
        );
        let router = router(&self.config, &services, auth.clone())?.add_service(health_service);

        // Before the first call, so that nobody is told that all is well without a look.
        health.check(&counted).await;
        let stop = CancellationToken::new();
        let incoming = incoming(self.listener, tls.clone(), &self.config.load, metrics.clone());
        let transport = router.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        tracing::info!(
            address = %self.local_addr,
            http = self.http.as_ref().map(|(_, address)| tracing::field::display(*address)),
            store = without_password(&self.config.store),
            backend = self.store.backend(),
            namespaces = self.config.namespaces.len(),
            authentication = self.config.access_file.is_some(),
            tls = tls.is_some(),
            "{}",
            if self.waiting.is_some() { "listening; the store is waited for" } else { "serving" }
        );
        let opening = async {
            match self.waiting {
                // Boxed, as all that is large and rarely at work: the future of a server is moved about.
                Some(waiting) => Box::pin(waiting.run()).await,
                None => std::future::pending().await,
            }
        };
        // It answers until the very end: whoever asks while the server drains hears that it does.
        let http = Box::pin(http::serve(self.http.map(|(listener, _)| listener), told));
        let interval = self.config.auth_reload_interval;
        let fresh = Box::pin(keep_fresh(&auth, tls.as_ref(), interval, &self.reload, &metrics));
        let keeper =
            Keeper::new(store.clone(), metrics.clone(), &self.config.namespaces, &self.config.retention);
        let work = async {
            tokio::select! {
                () = engine.run_reaper(std::future::pending()) => {}
                () = health.watch(&counted, self.config.health_interval) => {}
                () = metrics.collect(&store, &self.config.namespaces, self.config.metrics_interval) => {}
                () = keeper.run() => {}
                () = fresh => {}
                () = shutdown => {}
            }
            tracing::info!("shutting down: no new calls, waits end, calls in flight finish");
            health.set(ServingStatus::NotServing).await;
            match drain.run(self.config.drain_timeout).await {
                Drained::Completely => {}
                Drained::WithCallsLeft(calls) => {
                    tracing::warn!(calls, "the drain timeout ended with calls in flight");
                }
            }
        };
        let serving = Box::pin(async {
            let mut transport = std::pin::pin!(transport);
            tokio::select! {
                served = &mut transport => return served.map_err(ServerError::from),
                given_up = opening => match given_up? {},
                () = work => {}
            }
            stop.cancel();
            // Connections close once their last answer is delivered. A client that does not take it, or that watches the
            // health for ever, does not hold up the end, and neither does a database that says nothing.
            let (delivered, closed) = tokio::join!(timeout(FAREWELL, transport), close(&self.store));
            if let Ok(served) = delivered {
                served?;
            }
            closed.map_err(ServerError::CloseStore)
        });
        tokio::select! {
            ended = serving => ended?,
            served = http => served.map_err(ServerError::Http)?,
        }
        tracing::info!("shut down");
        Ok(())
    }

    /// Serves on a task of its own, until the handle says otherwise.
    pub fn spawn(self) -> ServerHandle {
        let (local_addr, http_addr) = (self.local_addr, self.http_addr());
        let scheme = if self.security.tls.is_some() { "https" } else { "http" };
        let (store, reload) = (self.store.clone(), self.reload());
        let (shutdown, ordered) = oneshot::channel();
        let task = tokio::spawn(self.run(async {
            // A dropped handle orders the shutdown too.
            ordered.await.ok();
        }));
        ServerHandle { local_addr, http_addr, scheme, store, reload, shutdown, task }
    }
}

/// A server that serves on a task of its own. Dropping the handle shuts the server down, without
/// waiting for it.
#[derive(Debug)]
pub struct ServerHandle {
    local_addr: SocketAddr,
    http_addr: Option<SocketAddr>,
    scheme: &'static str,
    store: SharedStore,
    reload: Reload,
    shutdown: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ServerError>>,
}

impl ServerHandle {
    /// The address it listens on.
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Where `/metrics`, `/livez` and `/readyz` are answered, if anywhere.
    pub const fn http_addr(&self) -> Option<SocketAddr> {
        self.http_addr
    }

    /// Where clients find it.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.local_addr)
    }

    /// The store below.
    pub const fn store(&self) -> &SharedStore {
        &self.store
    }

    /// Tells the server to read its files again at once.
    pub fn reload(&self) -> Reload {
        self.reload.clone()
    }

    /// Shuts the server down and waits for its end.
    ///
    /// # Errors
    ///
    /// Those of [`Server::run`], and [`ServerError::Task`] if it panicked.
    pub async fn shutdown(self) -> Result<(), ServerError> {
        // A server that has ended already does not hear it; its result says why.
        self.shutdown.send(()).ok();
        self.task.await?
    }
}

/// Opens the store, listens, and serves until `shutdown` is ready: the whole of `kagzi serve`.
///
/// # Errors
///
/// Those of [`Server::bind`] and [`Server::run`].
pub async fn serve(config: ServerConfig, shutdown: impl Future<Output = ()>) -> Result<(), ServerError> {
    Server::bind(config).await?.run(shutdown).await
}

/// The addresses that were taken.
struct Listening {
    calls: (TcpListener, SocketAddr),
    http: Option<(TcpListener, SocketAddr)>,
}

impl Listening {
    async fn begin(config: &ServerConfig, security: &Security) -> Result<Self, ServerError> {
        let http = match &config.http_listen {
            // Whether others may reach it was checked with the configuration.
            Some(address) => Some(listen(address, None).await?),
            None => None,
        };
        // The one that clients look for comes last, as the sign that all is there.
        Ok(Self { calls: listen(&config.listen, security.lacks).await?, http })
    }
}

/// Who may come, and how the way is encrypted.
#[derive(Debug)]
struct Security {
    auth: Auth,
    tls: Option<Tls>,
    /// What a server that can be reached from other machines would lack.
    lacks: Option<&'static str>,
}

impl Security {
    /// Checks a configuration, and reads the files that it names.
    fn of(config: &ServerConfig) -> Result<Self, ServerError> {
        config.validate()?;
        let (auth, tls) = (Auth::of(config)?, Tls::of(config)?);
        let lacks = match (config.exposure, &config.access_file, &tls) {
            (Exposure::Insecure, _, _) | (Exposure::Guarded, Some(_), Some(_)) => None,
            (Exposure::Guarded, None, None) => Some("neither authentication nor TLS"),
            (Exposure::Guarded, None, Some(_)) => Some("no authentication"),
            (Exposure::Guarded, Some(_), None) => Some("no TLS"),
        };
        Ok(Self { auth, tls, lacks })
    }
}

/// Closes a store, or leaves it to the end of the process if that takes long: its database does not answer.
async fn close(store: &SharedStore) -> Result<(), StoreError> {
    timeout(FAREWELL, store.close()).await.unwrap_or_else(|_| {
        tracing::warn!("the store did not close within {FAREWELL:?}; its connections are dropped");
        Ok(())
    })
}

/// Goes by what the files of access and TLS say now. Never returns.
async fn keep_fresh(auth: &Auth, tls: Option<&Tls>, interval: Duration, reload: &Reload, metrics: &Metrics) {
    let tls = async {
        match tls {
            Some(tls) => tls.keep_fresh(interval, reload.ear(), metrics).await,
            None => std::future::pending().await,
        }
    };
    tokio::join!(auth.keep_fresh(interval, reload, metrics), tls);
}

/// The addresses that an address of the configuration stands for, if the server may listen there.
async fn resolve(address: &str, lacks: Option<&'static str>) -> Result<Vec<SocketAddr>, ServerError> {
    let resolved = lookup_host(address).await;
    let resolved = resolved.map_err(|source| ServerError::Bind { address: address.to_owned(), source })?;
    let resolved: Vec<SocketAddr> = resolved.collect();
    match lacks {
        Some(lacks) if resolved.iter().any(|resolved| !resolved.ip().is_loopback()) => {
            Err(ServerError::Exposed { address: address.to_owned(), lacks })
        }
        _ => Ok(resolved),
    }
}

async fn listen(
    address: &str,
    lacks: Option<&'static str>,
) -> Result<(TcpListener, SocketAddr), ServerError> {
    let refuse = |source: std::io::Error| match source.kind() {
        ErrorKind::AddrInUse => ServerError::AddressInUse { address: address.to_owned() },
        _ => ServerError::Bind { address: address.to_owned(), source },
    };
    let resolved = resolve(address, lacks).await?;
    let listener = TcpListener::bind(resolved.as_slice()).await.map_err(refuse)?;
    let local_addr = listener.local_addr().map_err(refuse)?;
    Ok((listener, local_addr))
}

/// What every answer goes through on its way out.
type Outgoing = Stack<BytesLayer, Stack<StreamLayer, Stack<AuthLayer, Stack<Explaining, Identity>>>>;

type Explaining = MapResponseLayer<fn(Response<Body>) -> Response<Body>>;

/// Requests that the transport itself refuses get the details that every other error has.
fn explain_refusals(response: Response<Body>) -> Response<Body> {
    match response.extensions().get::<Status>().and_then(explained) {
        Some(status) => status.into_http(),
        None => response,
    }
}

fn router(config: &ServerConfig, services: &Services, auth: Auth) -> Result<Router<Outgoing>, ServerError> {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?
        .max_decoding_message_size(QUESTION_BYTES);
    Ok(tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(config.keepalive_interval))
        .max_concurrent_streams(config.max_concurrent_streams)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .layer(MapResponseLayer::new(explain_refusals as fn(_) -> _))
        .layer(AuthLayer { auth, metrics: services.metrics().clone() })
        .layer(StreamLayer(services.clone()))
        .layer(BytesLayer { services: services.clone(), within: config.request_body_timeout })
        .add_service(services.workflow())
        .add_service(services.worker())
        .add_service(services.admin())
        .add_service(reflection))
}
