//! Who calls, and what they may do.
//!
//! A call is looked at before its body is read ([`layer`]): who makes it is proven by what it shows, a
//! bearer token, a JWT or the certificate of its connection. What they may do stands in the access file
//! ([`access`]), by roles within bounds ([`grant`]); which role may make which call stands in [`right`].
//! Whether a request is within its caller's bounds is for the service to ask, once it is read and before
//! anything is looked up.

mod access;
mod audit;
mod caller;
mod grant;
mod jwt;
mod layer;
mod right;
mod token;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use kagzi_core::Namespace;
use kagzi_sdk::wire::error::{
    Refusal, limit_reached, overloaded, permission_denied, unauthenticated, unavailable,
};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tonic::codegen::http::HeaderMap;
use tonic::codegen::http::header::AUTHORIZATION;

use crate::config::ServerConfig;
use crate::document::Document;
use crate::error::ServerError;
use crate::metrics::{Metrics, NamedFile};
use crate::rates::Rates;
use crate::reload::{Ear, Look, Reload};
use crate::transport::{ClientCertificate, Peer, Rules};
use access::Access;
use caller::Credential;
use jwt::{Fault, Fingerprint, Jwt, Verified};
use token::TokenDigest;

pub use access::AccessError;
#[cfg(test)]
pub(crate) use audit::held;
pub(crate) use audit::{Audit, Deed, TARGET as AUDIT_TARGET, Target, on_record};
pub(crate) use caller::{Caller, Principal};
pub(crate) use grant::Area;
pub(crate) use layer::AuthLayer;
pub(crate) use right::{Audited, right};
pub use token::{NewToken, NoRandomness};

/// When a call that shows a JWT should be tried again while there are no keys to verify it by.
const NO_KEYS_YET: Duration = Duration::from_secs(2);

/// Who may come, as it is now. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Auth(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    mode: Mode,
    audit: Audit,
}

#[derive(Debug)]
enum Mode {
    /// Nobody is asked.
    Open(Arc<Principal>),
    /// Everybody is.
    Closed(Box<Closed>),
}

#[derive(Debug)]
struct Closed {
    file: Document,
    /// What stood in the file when it was first read.
    first: [u8; 32],
    access: watch::Sender<Arc<Access>>,
    jwt: Option<Jwt>,
    /// By address.
    failures: Rates<IpAddr>,
    /// By principal.
    denials: Rates<String>,
    /// Calls that go on record, by principals who do not oversee what they are about.
    on_record: Rates<String>,
}

/// Why nobody is found behind a call.
enum NoCaller {
    Refused(Refusal),
    /// It shows a JWT signed by a key that is not known, yet.
    UnknownKey,
}

impl From<Refusal> for NoCaller {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Auth {
    /// Reads what a configuration names.
    pub(crate) fn of(config: &ServerConfig) -> Result<Self, ServerError> {
        let mode = match &config.access_file {
            None => Mode::Open(Caller::anyone(None).principal),
            Some(path) => {
                let file = Document::at(path);
                let text = Access::text(path, file.read_now())?;
                Mode::Closed(Box::new(Closed {
                    access: watch::Sender::new(Arc::new(Access::parse(path, &text)?)),
                    file,
                    first: Sha256::digest(&text).into(),
                    jwt: Jwt::of(config)?,
                    failures: Rates::up_to(config.load.rate_auth_failures),
                    denials: Rates::up_to(config.load.rate_auth_failures),
                    on_record: Rates::up_to(config.load.rate_on_record),
                }))
            }
        };
        Ok(Self(Arc::new(Inner { mode, audit: Audit::of(config)? })))
    }

    /// Nobody is asked who they are.
    #[cfg(test)]
    pub(crate) fn open() -> Self {
        let mode = Mode::Open(Caller::anyone(None).principal);
        Self(Arc::new(Inner { mode, audit: Audit::default() }))
    }

    /// The same, where what they do is put on a record that a test keeps.
    #[cfg(test)]
    pub(crate) fn open_on_record(audit: Audit) -> Self {
        Self(Arc::new(Inner { mode: Mode::Open(Caller::anyone(None).principal), audit }))
    }

    pub(crate) fn audit(&self) -> &Audit {
        &self.0.audit
    }

    /// The refusal of a caller who may not do this, the same whatever is there. Whoever asks for such things again and
    /// again hears no more than when to come again.
    pub(crate) fn deny(&self, caller: &Caller, method: &str) -> Refusal {
        let principal = caller.name();
        if let Mode::Closed(closed) = &self.0.mode
            && let Err(retry_after) = closed.denials.count(principal.to_owned())
        {
            tracing::debug!(method, principal, "call refused: too many of this principal are denied");
            return limit_reached("rate_auth_failures", retry_after);
        }
        let refusal = permission_denied(method);
        tracing::info!(method, principal, reason = refusal.reason(), "call refused");
        refusal
    }

    /// Charges a call that goes on record to its principal, unless that is an operator or an admin of what the call is
    /// about: whoever called without end would fill the disk of the record, and then no operator could act.
    ///
    /// # Errors
    ///
    /// The refusal of a call that is one too many for now.
    pub(crate) fn charge_record(
        &self,
        caller: &Caller,
        method: &str,
        namespace: Option<&Namespace>,
    ) -> Result<(), Refusal> {
        let Mode::Closed(closed) = &self.0.mode else { return Ok(()) };
        let on_record = right(method).is_some_and(|right| right.audited != Audited::No);
        if !on_record || caller.oversees(namespace.map(Namespace::as_str)) {
            return Ok(());
        }
        closed.on_record.count(caller.name().to_owned()).map_err(|retry_after| {
            tracing::debug!(
                method,
                principal = caller.name(),
                "call refused: too many of this principal go on record"
            );
            limit_reached("rate_on_record", retry_after)
        })
    }

    /// Who makes a call that came without having been looked at: somebody, if nobody is asked.
    pub(crate) fn unseen(&self) -> Result<Caller, Refusal> {
        match &self.0.mode {
            Mode::Open(anyone) => Ok(someone(anyone, None)),
            Mode::Closed(_) => Err(unauthenticated("none")),
        }
    }

    /// Who makes a call, by what it shows. Their connection is no stranger's while they do.
    fn authenticate(&self, headers: &HeaderMap, peer: Option<&Peer>) -> Result<Caller, NoCaller> {
        let caller = self.find(headers, peer)?;
        Ok(Caller { visit: peer.map(|peer| peer.standing.visit()), ..caller })
    }

    fn find(&self, headers: &HeaderMap, peer: Option<&Peer>) -> Result<Caller, NoCaller> {
        let address = peer.and_then(|peer| peer.address);
        let closed = match &self.0.mode {
            Mode::Open(anyone) => return Ok(someone(anyone, address)),
            Mode::Closed(closed) => closed,
        };
        let certificate = peer.and_then(|peer| peer.certificate.as_ref());
        let (credential, until, key) = match (bearer(headers)?, certificate) {
            // What a call shows by itself counts, and must be right: a certificate does not mend it.
            (Some(token), _) => match closed.jwt.as_ref().filter(|_| Jwt::looks_like_one(token)) {
                Some(jwt) => match jwt.verify(token) {
                    Ok(Verified { subject, until, key }) => {
                        (Credential::Subject(subject), Some(until), Some(key))
                    }
                    Err(Fault::UnknownKey) => return Err(NoCaller::UnknownKey),
                    Err(Fault::Refused(why)) => return Err(unauthenticated(why).into()),
                },
                None => (Credential::Token(TokenDigest::of(token)), None, None),
            },
            (None, Some(certificate)) => {
                let names = Arc::clone(certificate.names());
                let credential = Credential::Certificate(names);
                let caller = closed.caller(credential, Some(certificate.until()), None, address)?;
                return Ok(vouched(caller, certificate)?);
            }
            (None, None) => return Err(unauthenticated("none").into()),
        };
        Ok(closed.caller(credential, until, key, address)?)
    }

    /// Who makes a call that shows a JWT signed by a key that was not known, once the keys were looked at
    /// again.
    async fn authenticate_later(
        &self,
        headers: &HeaderMap,
        peer: Option<&Peer>,
        metrics: &Metrics,
    ) -> Result<Caller, Refusal> {
        let jwt = match &self.0.mode {
            Mode::Closed(closed) => closed.jwt.as_ref(),
            Mode::Open(_) => None,
        };
        let Some(jwt) = jwt else { return self.unseen() };
        let Some(_waiting) = jwt.wait() else { return Err(overloaded(NO_KEYS_YET)) };
        jwt.look_for_new_keys(metrics).await;
        self.authenticate(headers, peer).map_err(|nobody| match nobody {
            NoCaller::Refused(refusal) => refusal,
            NoCaller::UnknownKey if jwt.keys_were_had() => {
                unauthenticated("a JWT of a key that is not known, or whose signature is wrong")
            }
            NoCaller::UnknownKey => {
                unavailable("the keys that JWTs are verified by cannot be had", NO_KEYS_YET)
            }
        })
    }

    /// The same caller, by what the access file and the keys of JWTs are now, for one who stays for long.
    pub(crate) fn renew(&self, caller: &Caller) -> Result<Caller, Refusal> {
        let Mode::Closed(closed) = &self.0.mode else { return Ok(caller.clone()) };
        let counts = |key: &Fingerprint| closed.jwt.as_ref().is_some_and(|jwt| jwt.knows(key));
        if caller.key.as_ref().is_some_and(|key| !counts(key)) {
            return Err(unauthenticated("a JWT of a key that was taken back"));
        }
        let renewed = closed.caller(caller.credential.clone(), caller.until, caller.key, caller.peer)?;
        let renewed = Caller { visit: caller.visit.clone(), ..renewed };
        match &caller.certificate {
            Some(certificate) => vouched(renewed, certificate),
            None => Ok(renewed),
        }
    }

    /// Tells a caller of changes of the access file, of the keys of JWTs and, if it is known by a certificate, of the
    /// authorities, and at once of those that may have been missed.
    pub(crate) fn changes(&self, caller: &Caller) -> Changes {
        let Mode::Closed(closed) = &self.0.mode else { return Changes::default() };
        let mut access = closed.access.subscribe();
        access.mark_changed();
        let authorities = caller.certificate.as_ref().map(ClientCertificate::changes);
        Changes { access: Some(access), keys: closed.jwt.as_ref().map(Jwt::changes), authorities }
    }

    /// Looks at the files every `interval` and when told, and goes by what they say now. A file that cannot be used
    /// changes nothing, and is reported. When told, the audit log is opened anew. Never returns.
    pub(crate) async fn keep_fresh(&self, interval: Duration, reload: &Reload, metrics: &Metrics) {
        let access = async {
            match &self.0.mode {
                Mode::Closed(closed) => closed.keep_fresh(interval, reload.ear(), metrics).await,
                Mode::Open(_) => std::future::pending().await,
            }
        };
        let keys = async {
            if let Mode::Closed(closed) = &self.0.mode
                && let Some(jwt) = &closed.jwt
            {
                jwt.keep_fresh(interval, reload.ear(), metrics).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::join!(self.0.audit.keep_fresh(reload.ear(), metrics), access, keys);
    }
}

impl Closed {
    async fn keep_fresh(&self, interval: Duration, mut ear: Ear, metrics: &Metrics) {
        // Not what stands there by now: to open the store takes its time, and who was struck out meanwhile is out.
        let mut known = Some(self.first);
        loop {
            let look = ear.told_or_after(interval).await;
            let path = self.file.path();
            let text = Access::text(path, self.file.read().await);
            let now: Option<[u8; 32]> = text.as_ref().ok().map(|text| Sha256::digest(text).into());
            let changed = now != known;
            if !changed && look == Look::Again {
                continue;
            }
            known = now;
            let read = text.and_then(|text| Access::parse(path, &text));
            metrics.file_is_usable(NamedFile::AccessFile, read.is_ok());
            match read {
                Ok(access) if changed => {
                    self.access.send_replace(Arc::new(access));
                    tracing::info!("the access file has changed, and counts from now on");
                }
                Ok(_) => tracing::info!("the access file is as it was"),
                Err(error) => tracing::error!(%error, "the changed access file is not used"),
            }
        }
    }
}

/// Who waits for the access file, the keys of JWTs or the authorities of certificates to change.
#[derive(Default)]
pub(crate) struct Changes {
    access: Option<watch::Receiver<Arc<Access>>>,
    keys: Option<watch::Receiver<()>>,
    authorities: Option<watch::Receiver<Rules>>,
}

impl Changes {
    /// Ready when there was a change since the last time, or never. Cancel safe.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            () = changed(self.access.as_mut()) => {}
            () = changed(self.keys.as_mut()) => {}
            () = changed(self.authorities.as_mut()) => {}
        }
    }
}

/// Ready when there was a change since the last time, or never. Cancel safe.
async fn changed<T>(watched: Option<&mut watch::Receiver<T>>) {
    let ended = match watched {
        Some(watched) => watched.changed().await.is_err(),
        None => true,
    };
    if ended {
        std::future::pending::<()>().await;
    }
}

impl Closed {
    fn caller(
        &self,
        credential: Credential,
        until: Option<std::time::SystemTime>,
        key: Option<Fingerprint>,
        peer: Option<std::net::SocketAddr>,
    ) -> Result<Caller, Refusal> {
        if until.is_some_and(|until| std::time::SystemTime::now() >= until) {
            return Err(unauthenticated("one that has expired"));
        }
        let principal = self.access.borrow().principal(&credential);
        let principal = principal.ok_or_else(|| {
            unauthenticated(match credential {
                Credential::None | Credential::Token(_) => "one that is not known",
                Credential::Subject(_) => "a JWT whose subject is not known",
                Credential::Certificate(_) => "a certificate whose names are not known",
            })
        })?;
        Ok(Caller { principal, credential, until, key, certificate: None, peer, visit: None })
    }
}

fn someone(anyone: &Arc<Principal>, peer: Option<std::net::SocketAddr>) -> Caller {
    Caller::unasked(Arc::clone(anyone), peer)
}

/// A caller who is known by a certificate, if an authority of now vouches for it.
fn vouched(caller: Caller, certificate: &ClientCertificate) -> Result<Caller, Refusal> {
    if !certificate.counts() {
        return Err(unauthenticated(
            "a certificate for which no authority of tls_client_ca vouches any more",
        ));
    }
    Ok(Caller { certificate: Some(certificate.clone()), ..caller })
}

/// The bearer token of a call, if it shows one.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut shown = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = shown.next() else { return Ok(None) };
    let token = value.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    match (token, shown.next()) {
        (Some(token), None) if !token.is_empty() => Ok(Some(token)),
        _ => Err(unauthenticated("an authorization header that is not one bearer token")),
    }
}
