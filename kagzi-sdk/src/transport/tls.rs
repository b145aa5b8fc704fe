//! What a connection needs to know about TLS: whom to trust, and what to show.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::error::ClientError;

/// How connections to `https://` addresses are made: TLS 1.2 or 1.3 by rustls.
///
/// Without anything said, the certificate authorities of the system are trusted, the server's certificate
/// must be for the host of the address, and no certificate is shown.
#[derive(Clone, Default)]
pub struct Tls {
    authorities: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
    server_name: Option<String>,
}

impl Tls {
    /// Trusts these certificate authorities, in PEM, and no others.
    ///
    /// # Errors
    ///
    /// [`ClientError::Credentials`] if there is no certificate in it.
    pub fn authorities(mut self, pem: impl Into<Vec<u8>>) -> Result<Self, ClientError> {
        let pem = pem.into();
        holds(&pem, "CERTIFICATE", "the certificate authorities")?;
        self.authorities = Some(pem);
        Ok(self)
    }

    /// Like [`authorities`](Self::authorities), from a PEM file.
    ///
    /// # Errors
    ///
    /// [`ClientError::Credentials`] if it cannot be read or holds no certificate.
    pub fn authorities_file(self, path: impl AsRef<Path>) -> Result<Self, ClientError> {
        let pem = read(path.as_ref())?;
        self.authorities(pem).map_err(|error| at(path.as_ref(), error))
    }

    /// Shows the server this certificate (with its chain) and proves it by its key, both in PEM.
    ///
    /// # Errors
    ///
    /// [`ClientError::Credentials`] if either is missing.
    pub fn identity(
        mut self,
        certificate_pem: impl Into<Vec<u8>>,
        key_pem: impl Into<Vec<u8>>,
    ) -> Result<Self, ClientError> {
        let (certificate, key) = (certificate_pem.into(), key_pem.into());
        holds(&certificate, "CERTIFICATE", "the client's certificate")?;
        holds(&key, "PRIVATE KEY", "the client's key")?;
        self.identity = Some((certificate, key));
        Ok(self)
    }

    /// Like [`identity`](Self::identity), from two PEM files. They are read now and never again: a program whose
    /// certificate is renewed has to be started again before the old one ends.
    ///
    /// # Errors
    ///
    /// [`ClientError::Credentials`] if one cannot be read or does not hold what it should.
    pub fn identity_files(
        self,
        certificate: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Result<Self, ClientError> {
        self.identity(read(certificate.as_ref())?, read(key.as_ref())?)
    }

    /// Expects the server's certificate to be for this name, instead of the host of the address: for
    /// addresses that are IP numbers or tunnels.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    pub(super) fn config(&self, timeout: Duration) -> ClientTlsConfig {
        let config = ClientTlsConfig::new().timeout(timeout);
        let config = match &self.authorities {
            Some(pem) => config.ca_certificate(Certificate::from_pem(pem)),
            None => config.with_native_roots(),
        };
        let config = match &self.identity {
            Some((certificate, key)) => config.identity(Identity::from_pem(certificate, key)),
            None => config,
        };
        match &self.server_name {
            Some(name) => config.domain_name(name),
            None => config,
        }
    }
}

/// Shows what was said, no key.
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("own_authorities", &self.authorities.is_some())
            .field("identity", &self.identity.as_ref().map(|_| "***"))
            .field("server_name", &self.server_name)
            .finish()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ClientError> {
    std::fs::read(path).map_err(|error| ClientError::Credentials {
        from: format!("the file {}", path.display()),
        problem: error.to_string(),
    })
}

/// PEM that lacks what it is for would only fail later, as a certificate that nobody trusts.
fn holds(pem: &[u8], what: &str, from: &str) -> Result<(), ClientError> {
    let label = format!("{what}-----");
    if pem.windows(label.len()).any(|part| part == label.as_bytes()) {
        return Ok(());
    }
    let problem = format!("expected PEM with a block that ends in {label}");
    Err(ClientError::Credentials { from: from.to_owned(), problem })
}

fn at(path: &Path, error: ClientError) -> ClientError {
    match error {
        ClientError::Credentials { problem, .. } => {
            ClientError::Credentials { from: format!("the file {}", path.display()), problem }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_pem_is_refused_by_name_and_no_key_shows() {
        let error = Tls::default().authorities("nothing").unwrap_err().to_string();
        assert!(error.contains("authorities") && error.contains("PEM"), "{error}");
        let (certificate, key) = ("-----BEGIN CERTIFICATE-----", "-----BEGIN PRIVATE KEY-----s3cret");
        let error = Tls::default().identity(certificate, "s3cret").unwrap_err().to_string();
        assert!(error.contains("key") && !error.contains("s3cret"), "{error}");
        let tls = Tls::default().identity(certificate, key).unwrap();
        assert!(!format!("{tls:?}").contains("s3cret"), "{tls:?}");
        let error = Tls::default().authorities_file("no/such.pem").unwrap_err().to_string();
        assert!(error.contains("no/such.pem"), "{error}");
    }
}
