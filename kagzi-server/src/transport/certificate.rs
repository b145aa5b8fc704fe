//! The certificate of a client, and whether it still counts.
//!
//! A handshake looks once at who vouches for a certificate, and connections last. So whenever the authorities were read
//! again, the first call on a connection looks anew, by what they are then.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use tokio::sync::watch;

use super::{expiry, names};

/// The rules of TLS as they were read at one time.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// Grows whenever they are read again.
    pub(super) generation: u64,
    pub(super) config: Arc<rustls::ServerConfig>,
    /// Who vouches for certificates of clients, if they may show any.
    pub(super) clients: Option<Arc<dyn ClientCertVerifier>>,
}

/// A certificate that a client showed and that was verified. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct ClientCertificate(Arc<Shown>);

struct Shown {
    names: Arc<[String]>,
    until: SystemTime,
    chain: Vec<CertificateDer<'static>>,
    rules: Arc<watch::Sender<Rules>>,
    verdict: AtomicU64,
}

/// Whether it counts by the rules of a generation, in one number, so that neither is read without the other.
const fn verdict(generation: u64, counts: bool) -> u64 {
    (generation << 1) | counts as u64
}

impl ClientCertificate {
    /// What a client showed in a handshake by the rules of that generation; nothing if it showed none.
    pub(super) fn of(
        shown: Option<&[CertificateDer<'_>]>,
        rules: &Arc<watch::Sender<Rules>>,
        generation: u64,
    ) -> Option<Self> {
        let chain: Vec<_> = shown?.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let own = chain.first()?;
        let (names, until) = (names::of(own), expiry::of(own));
        let (rules, verdict) = (Arc::clone(rules), AtomicU64::new(verdict(generation, true)));
        Some(Self(Arc::new(Shown { names, until, chain, rules, verdict })))
    }

    /// What it calls its owner, the most telling first.
    pub(crate) fn names(&self) -> &Arc<[String]> {
        &self.0.names
    }

    /// From then on it counts no more.
    pub(crate) fn until(&self) -> SystemTime {
        self.0.until
    }

    /// Whether the authorities of today vouch for it.
    pub(crate) fn counts(&self) -> bool {
        let Shown { chain, rules, verdict: known, .. } = &*self.0;
        let generation = rules.borrow().generation;
        match known.load(Ordering::Acquire) {
            counts if counts == verdict(generation, true) => return true,
            counts if counts == verdict(generation, false) => return false,
            _ => {}
        }
        let Rules { generation, clients, .. } = rules.borrow().clone();
        let counts = chain.split_first().zip(clients).is_some_and(|((own, others), authorities)| {
            authorities.verify_client_cert(own, others, UnixTime::now()).is_ok()
        });
        // Calls at the same time find the same. What an older one says by older rules is looked at again.
        known.store(verdict(generation, counts), Ordering::Release);
        counts
    }

    /// Tells when the authorities have been read again.
    pub(crate) fn changes(&self) -> watch::Receiver<Rules> {
        self.0.rules.subscribe()
    }
}

/// Shows whose it is.
impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCertificate").field("names", &self.0.names).finish_non_exhaustive()
    }
}
