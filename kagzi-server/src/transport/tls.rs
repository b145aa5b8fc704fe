//! TLS by rustls: the server's certificate and, if clients show theirs, the authorities that vouch for
//! them. All three are read again when the files have changed, so that certificates can be renewed without
//! a restart; connections that are open keep the server's certificate they began with, and a client's certificate counts
//! for as long as an authority of now vouches for it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::{ConfigError, ServerConfig};
use crate::document::{Document, Found};
use crate::metrics::{Metrics, NamedFile};
use crate::reload::{Ear, Look};

use super::certificate::{ClientCertificate, Rules};

/// What the files should hold.
const CERTIFICATES: &str = "a PEM file with certificates";
const KEY: &str = "a PEM file with a private key (PKCS#8, PKCS#1 or SEC1)";

/// Where the three files are.
#[derive(Debug)]
struct Files {
    certificate: Document,
    key: Document,
    client_authorities: Option<Document>,
}

/// What stands in them, read once, so that what is used and what later content is compared with are the same.
struct Contents {
    certificate: Found,
    key: Found,
    client_authorities: Option<Found>,
}

/// The rules of TLS as they are now. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct Tls {
    files: Arc<Files>,
    /// What tells the content that was first read from others.
    first: [u8; 32],
    current: Arc<watch::Sender<Rules>>,
}

/// A handshake that is to begin, by the rules of now.
pub(super) struct Handshake {
    current: Arc<watch::Sender<Rules>>,
    rules: Rules,
}

impl Handshake {
    /// The connection, and the certificate that its client showed.
    pub(super) async fn accept(
        self,
        stream: TcpStream,
    ) -> io::Result<(TlsStream<TcpStream>, Option<ClientCertificate>)> {
        let Rules { config, generation, .. } = self.rules;
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let shown = stream.get_ref().1.peer_certificates();
        let certificate = ClientCertificate::of(shown, &self.current, generation);
        Ok((stream, certificate))
    }
}

/// Shows where the files are; the key shows nowhere.
impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tls").field(&self.files).finish()
    }
}

impl Tls {
    /// Reads the files that a configuration names; nothing if it names none.
    pub(crate) fn of(config: &ServerConfig) -> Result<Option<Self>, ConfigError> {
        let (Some(certificate), Some(key)) = (&config.tls_cert, &config.tls_key) else { return Ok(None) };
        let files = Files {
            certificate: Document::at(certificate),
            key: Document::at(key),
            client_authorities: config.tls_client_ca.as_deref().map(Document::at),
        };
        let contents = files.read_now()?;
        files.warn_of_readers(&contents);
        let (first, rules) = (contents.fingerprint(), files.rules(&contents, 0)?);
        let current = Arc::new(watch::Sender::new(rules));
        Ok(Some(Self { files: Arc::new(files), first, current }))
    }

    pub(super) fn handshake(&self) -> Handshake {
        Handshake { current: Arc::clone(&self.current), rules: self.current.borrow().clone() }
    }

    /// Looks at the files every `interval` and when told, and goes by what they say now. Files that cannot be used
    /// change nothing, and are reported. Never returns.
    pub(crate) async fn keep_fresh(&self, interval: Duration, mut ear: Ear, metrics: &Metrics) {
        // Not what stands there by now: to open the store takes its time, and the files may have changed meanwhile.
        let mut known = Some(self.first);
        loop {
            let look = ear.told_or_after(interval).await;
            let contents = self.files.read().await;
            let now = contents.as_ref().ok().map(Contents::fingerprint);
            let changed = now != known;
            if !changed && look == Look::Again {
                continue;
            }
            known = now;
            let next = self.current.borrow().generation + 1;
            let rules = contents.and_then(|contents| Ok((self.files.rules(&contents, next)?, contents)));
            metrics.file_is_usable(NamedFile::TlsCert, rules.is_ok());
            match rules {
                Ok((rules, contents)) if changed => {
                    self.files.warn_of_readers(&contents);
                    self.current.send_replace(rules);
                    tracing::info!(
                        "the TLS files have changed: new connections get the new certificate, and open ones count if the authorities of now vouch for their clients"
                    );
                }
                Ok(_) => tracing::info!("the TLS certificate is as it was"),
                Err(error) => tracing::error!(%error, "the changed TLS files are not used"),
            }
        }
    }
}

impl Contents {
    /// What tells one content from the next.
    fn fingerprint(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        for Found { content, .. } in
            [&self.certificate, &self.key].into_iter().chain(&self.client_authorities)
        {
            digest.update(content.len().to_le_bytes());
            digest.update(content);
        }
        digest.finalize().into()
    }
}

impl Files {
    fn read_now(&self) -> Result<Contents, ConfigError> {
        self.found(
            self.certificate.read_now(),
            self.key.read_now(),
            self.client_authorities.as_ref().map(Document::read_now),
        )
    }

    async fn read(&self) -> Result<Contents, ConfigError> {
        let authorities = async {
            match &self.client_authorities {
                Some(file) => Some(file.read().await),
                None => None,
            }
        };
        let (certificate, key, authorities) =
            tokio::join!(self.certificate.read(), self.key.read(), authorities);
        self.found(certificate, key, authorities)
    }

    fn found(
        &self,
        certificate: io::Result<Found>,
        key: io::Result<Found>,
        client_authorities: Option<io::Result<Found>>,
    ) -> Result<Contents, ConfigError> {
        let authorities = self.client_authorities.as_ref().zip(client_authorities);
        Ok(Contents {
            certificate: found("tls_cert", CERTIFICATES, &self.certificate, certificate)?,
            key: found("tls_key", KEY, &self.key, key)?,
            client_authorities: authorities
                .map(|(file, read)| found("tls_client_ca", CERTIFICATES, file, read))
                .transpose()?,
        })
    }

    fn rules(&self, contents: &Contents, generation: u64) -> Result<Rules, ConfigError> {
        let provider = Arc::new(ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| refused("tls_cert", "protocol versions that rustls knows", &error))?;
        let mut clients = None;
        let builder = match self.client_authorities.as_ref().zip(contents.client_authorities.as_ref()) {
            None => builder.with_no_client_auth(),
            Some((file, found)) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates("tls_client_ca", file, found)? {
                    roots
                        .add(authority)
                        .map_err(|error| refused("tls_client_ca", "certificates of authorities", &error))?;
                }
                // Who shows none may still show a token.
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| refused("tls_client_ca", "certificates of authorities", &error))?;
                clients = Some(Arc::clone(&verifier));
                builder.with_client_cert_verifier(verifier)
            }
        };
        let chain = certificates("tls_cert", &self.certificate, &contents.certificate)?;
        // What is wrong with a key file is said without anything that stands in it.
        let key = PrivateKeyDer::from_pem_slice(&contents.key.content)
            .map_err(|_| refused("tls_key", KEY, &format!("{} without one", self.key.path().display())))?;
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| refused("tls_key", "the key of the certificate in tls_cert", &error))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Rules { generation, config: Arc::new(config), clients })
    }

    /// Tells of a key that others than its user and group can read, or exchange. Whoever reads it can be this server.
    #[cfg(unix)]
    fn warn_of_readers(&self, contents: &Contents) {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = contents.key.metadata.permissions().mode();
        if mode & 0o006 != 0 {
            let (file, mode) = (self.key.path().display(), format!("{:04o}", mode & 0o7777));
            tracing::warn!(%file, mode, "every user of this machine may read the key of TLS, or write to it: chmod 600 it");
        }
    }

    #[cfg(not(unix))]
    const fn warn_of_readers(&self, _: &Contents) {}
}

fn found(key: &str, expected: &str, file: &Document, read: io::Result<Found>) -> Result<Found, ConfigError> {
    read.map_err(|error| refused(key, expected, &format!("{}: {error}", file.path().display())))
}

fn certificates(
    key: &str,
    file: &Document,
    found: &Found,
) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let path = file.path();
    match CertificateDer::pem_slice_iter(&found.content).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(refused(key, CERTIFICATES, &format!("{} without one", path.display()))),
        Err(error) => Err(refused(key, CERTIFICATES, &format!("{}: {error}", path.display()))),
    }
}

fn refused(key: &str, expected: &str, got: &impl ToString) -> ConfigError {
    ConfigError::Invalid { key: key.to_owned(), expected: expected.to_owned(), got: got.to_string() }
}
