//! The kagzi server: the gRPC services of `kagzi.v1` over any store, as a library, so that `kagzi
//! serve`, `kagzi dev`, the demo and the tests run the same one.
//!
//! ```
//! use kagzi_server::{Server, ServerConfig};
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let config = ServerConfig {
//!     listen: "127.0.0.1:0".to_owned(),
//!     store: "memory:".to_owned(),
//!     ..ServerConfig::default()
//! };
//! let server = Server::bind(config).await?.spawn();
//! assert_ne!(server.local_addr().port(), 0);
//! server.shutdown().await?;
//! # Ok::<(), kagzi_server::ServerError>(()) }).unwrap();
//! ```

pub mod config;
pub mod telemetry;

mod auth;
mod breaker;
mod document;
mod error;
mod health;
mod http;
mod metrics;
mod open;
mod rate;
mod rates;
mod recent;
mod reload;
mod retention;
mod server;
mod service;
mod shown;
mod shutdown;
mod start;
mod transport;
#[cfg(test)]
mod written;

pub use auth::{AccessError, NewToken, NoRandomness};
pub use config::{
    ConfigError, Exposure, LoadLimits, LogFormat, MigrateWhen, RateLimit, Reach, Retention, ServeArgs,
    ServerConfig, Settings,
};
pub use error::ServerError;
pub use kagzi_store_postgres::{Moved, MovedTable};
pub use kagzi_store_sqlite::{Copied, Existing, Restored};
pub use open::{
    BUILT_IN, back_up_store, migrate_store, move_to_partitions, open_store, plan_migration, restore_store,
    unknown_store,
};
pub use reload::Reload;
pub use server::{Server, ServerHandle, serve};
pub use shown::{may_hold_a_password, value_may_hold_a_password, without_password};
