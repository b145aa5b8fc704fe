//! Postgres in Docker, where the machine has no server of its own.

use std::fmt;

use testcontainers::core::{IntoContainerPort as _, WaitFor};
use testcontainers::runners::AsyncRunner as _;
use testcontainers::{ContainerAsync, GenericImage, ImageExt as _};

use crate::watchdog::Watchdog;
use crate::{TestkitError, database};

/// The image, as `name:tag`; set `KAGZI_TEST_POSTGRES_IMAGE` for another.
const IMAGE: &str = "postgres:17-alpine";

/// A Postgres in a container. It is removed with the handle or the process.
#[derive(Debug)]
pub struct Container {
    _container: ContainerAsync<GenericImage>,
    /// The handle lives in a static, which is never dropped, so somebody else must remove the container.
    _watchdog: Watchdog,
    image: String,
    host: String,
    port: u16,
}

impl Container {
    pub(crate) async fn start() -> Result<Self, TestkitError> {
        let image = std::env::var("KAGZI_TEST_POSTGRES_IMAGE").unwrap_or_else(|_| IMAGE.to_owned());
        let (name, tag) = image.rsplit_once(':').unwrap_or((&image, "latest"));
        let container = GenericImage::new(name, tag)
            .with_exposed_port(5432.tcp())
            .with_wait_for(WaitFor::message_on_stderr("database system is ready to accept connections"))
            .with_env_var("POSTGRES_HOST_AUTH_METHOD", "trust")
            .with_cmd(["postgres", "-c", "max_connections=300"])
            .start()
            .await
            .map_err(failed)?;
        let watchdog =
            Watchdog::start("read -r word; docker rm --force --volumes \"$1\"", &[container.id()])?;
        let host = container.get_host().await.map_err(failed)?.to_string();
        let port = container.get_host_port_ipv4(5432.tcp()).await.map_err(failed)?;
        let container = Self { _container: container, _watchdog: watchdog, image, host, port };
        // The image starts the server twice, so its first "ready" may be the wrong one.
        database::wait_until_ready(&container.url(), 60, String::new).await?;
        Ok(container)
    }

    /// A URL of the database `postgres`.
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}:{}/postgres", self.host, self.port)
    }
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "image {}, port {}", self.image, self.port)
    }
}

fn failed(error: testcontainers::TestcontainersError) -> TestkitError {
    TestkitError::Program { program: "docker".to_owned(), detail: error.to_string() }
}
