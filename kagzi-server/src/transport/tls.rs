//! TLS by rustls: the server's certificate and, if clients show theirs, the authorities that vouch for
//! them. All three are read again when the files have changed, so that certificates can be renewed without
//! a restart; connections that are open keep the one they began with.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::config::{ConfigError, ServerConfig};

/// Where the three files are.
#[derive(Clone, Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    client_authorities: Option<PathBuf>,
}

/// The rules of TLS as they are now. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct Tls {
    files: Arc<Files>,
    current: Arc<watch::Sender<Arc<rustls::ServerConfig>>>,
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
            certificate: certificate.clone(),
            key: key.clone(),
            client_authorities: config.tls_client_ca.clone(),
        };
        let rules = files.rules()?;
        Ok(Some(Self { files: Arc::new(files), current: Arc::new(watch::Sender::new(Arc::new(rules))) }))
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.current.borrow()))
    }

    /// Looks at the files every `interval`, and goes by what they say now. Files that cannot be used
    /// change nothing, and are reported. Never returns.
    pub(crate) async fn keep_fresh(&self, interval: Duration) {
        let mut known = self.files.fingerprint();
        loop {
            tokio::time::sleep(interval).await;
            let now = self.files.fingerprint();
            if now == known {
                continue;
            }
            known = now;
            match self.files.rules() {
                Ok(rules) => {
                    self.current.send_replace(Arc::new(rules));
                    tracing::info!("the TLS certificate has changed: new connections get the new one");
                }
                Err(error) => tracing::error!(%error, "the changed TLS files are not used"),
            }
        }
    }
}

impl Files {
    fn all(&self) -> impl Iterator<Item = &Path> {
        [&self.certificate, &self.key].into_iter().chain(&self.client_authorities).map(PathBuf::as_path)
    }

    /// What tells one content from the next. Files that cannot be read count as empty.
    fn fingerprint(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        for path in self.all() {
            let content = std::fs::read(path).unwrap_or_default();
            digest.update(content.len().to_le_bytes());
            digest.update(content);
        }
        digest.finalize().into()
    }

    fn rules(&self) -> Result<rustls::ServerConfig, ConfigError> {
        let provider = Arc::new(ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| refused("tls_cert", "protocol versions that rustls knows", &error))?;
        let builder = match &self.client_authorities {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates("tls_client_ca", path)? {
                    roots
                        .add(authority)
                        .map_err(|error| refused("tls_client_ca", "certificates of authorities", &error))?;
                }
                // Who shows none may still show a token.
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| refused("tls_client_ca", "certificates of authorities", &error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let chain = certificates("tls_cert", &self.certificate)?;
        // What is wrong with a key file is said without anything that stands in it.
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|_| {
            let got = format!("{}, which cannot be read or holds none", self.key.display());
            refused("tls_key", "a PEM file with a private key (PKCS#8, PKCS#1 or SEC1)", &got)
        })?;
        let mut rules = builder
            .with_single_cert(chain, key)
            .map_err(|error| refused("tls_key", "the key of the certificate in tls_cert", &error))?;
        rules.alpn_protocols = vec![b"h2".to_vec()];
        Ok(rules)
    }
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let expected = "a PEM file with certificates";
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(refused(key, expected, &format!("{} without one", path.display()))),
        Err(error) => Err(refused(key, expected, &format!("{}: {error}", path.display()))),
    }
}

fn refused(key: &str, expected: &str, got: &impl ToString) -> ConfigError {
    ConfigError::Invalid { key: key.to_owned(), expected: expected.to_owned(), got: got.to_string() }
}
