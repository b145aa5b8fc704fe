//! JSON Web Tokens of somebody who knows callers better than this server does: an identity provider, or a
//! cluster that vouches for its workloads.
//!
//! The verification is our own, over ring: of the crate that everybody uses, the versions on ring read
//! times of another type as if they were not there, and the later ones bring a second crypto library.
//! It is little: three algorithms, each fixed by its key, and claims that are checked or refused.

mod claims;
mod key;
mod source;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;

use crate::config::{ConfigError, ServerConfig};
use crate::metrics::{Metrics, NamedFile};
use crate::recent::Recent;
use crate::reload::{Ear, Look};
use claims::{Rules, verify};
use key::{Algorithm, Key};
use source::Source;

pub(crate) use claims::{Fault, Verified};
pub(crate) use key::Fingerprint;

/// A token that names a key that is not known, or is not signed by the one that has that name here, has the keys fetched
/// again, no more often than this: who makes up key ids or signatures shall not have us ask for ever.
const PAUSE_BETWEEN_FETCHES: Duration = Duration::from_secs(10);

/// So many calls may wait until the keys were fetched: whoever makes up key ids is not known, and holds memory meanwhile.
const MOST_WAITING: usize = 256;

/// How many verified tokens one generation holds. To verify one costs about as much as everything else
/// that a call does, and a caller shows the same one for minutes.
const GENERATION: usize = 4096;

/// Verifies JWTs by the keys of one issuer.
#[derive(Debug)]
pub(crate) struct Jwt {
    source: Source,
    rules: Rules,
    keys: RwLock<Arc<Vec<Key>>>,
    /// Tells those who stay for long that the keys are others.
    replaced: watch::Sender<()>,
    /// Whether they were ever had. That there is none may be what was said.
    had: AtomicBool,
    /// Why they could not be had the last time, if they could not.
    problem: Mutex<Option<String>>,
    /// Tokens whose signature and claims were right, by their digest; how long they count is in them.
    verified: Mutex<Recent<[u8; 32], Verified>>,
    /// When the keys were last asked for. Whoever asks holds it.
    asked: tokio::sync::Mutex<Option<Instant>>,
    /// How many more calls may wait for the keys.
    waiting: Semaphore,
    refresh: Duration,
}

/// The keys could not be had.
#[derive(Debug, thiserror::Error)]
#[error("the keys for JWTs at {place}: {problem}")]
pub(crate) struct NoKeys {
    pub(super) place: String,
    pub(super) problem: String,
}

impl Jwt {
    /// What a configuration says of JWTs; nothing if it says nothing. Keys in a file are read now, those
    /// behind a URL when the server runs.
    pub(crate) fn of(config: &ServerConfig) -> Result<Option<Self>, ConfigError> {
        let (Some(keys), Some(issuer), Some(audience)) =
            (&config.jwt_keys, &config.jwt_issuer, &config.jwt_audience)
        else {
            return Ok(None);
        };
        let refused = |got: String| ConfigError::Invalid {
            key: "jwt_keys".to_owned(),
            expected: "a JSON Web Key Set: a file, an https:// URL, or an http:// URL of this machine"
                .to_owned(),
            got,
        };
        let source = Source::of(keys).map_err(refused)?;
        let now = source.read_now().transpose().map_err(|error| refused(error.to_string()))?;
        if now.as_ref().is_some_and(Vec::is_empty) {
            return Err(refused("a set without a key that signs by EdDSA, ES256 or RS256".to_owned()));
        }
        Ok(Some(Self {
            source,
            rules: Rules {
                issuer: issuer.clone(),
                audience: audience.clone(),
                subject_claim: config.jwt_subject_claim.clone(),
                leeway: config.jwt_leeway,
            },
            had: AtomicBool::new(now.is_some()),
            keys: RwLock::new(Arc::new(now.unwrap_or_default())),
            replaced: watch::Sender::default(),
            problem: Mutex::default(),
            verified: Mutex::new(Recent::new(GENERATION)),
            asked: tokio::sync::Mutex::default(),
            waiting: Semaphore::new(MOST_WAITING),
            refresh: config.jwt_refresh_interval,
        }))
    }

    /// Whether a token looks like one of these.
    pub(crate) fn looks_like_one(token: &str) -> bool {
        token.bytes().filter(|byte| *byte == b'.').count() == 2
    }

    fn keys(&self) -> Arc<Vec<Key>> {
        // It is replaced whole, so a panic elsewhere does not spoil it.
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the key that signed a token counts now.
    pub(crate) fn knows(&self, key: &Fingerprint) -> bool {
        self.keys().iter().any(|known| known.fingerprint() == *key)
    }

    /// Hears of other keys.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.replaced.subscribe()
    }

    fn remembered(&self) -> MutexGuard<'_, Recent<[u8; 32], Verified>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whom a token speaks of.
    pub(crate) fn verify(&self, token: &str) -> Result<Verified, Fault> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        // Whether it still counts is asked of every credential alike, where its caller is found.
        if let Some(verified) = self.remembered().find(&digest) {
            return Ok(verified);
        }
        let keys = self.keys();
        let verified = verify(token, &keys, &self.rules, SystemTime::now())?;
        let mut remembered = self.remembered();
        // A key that was taken back in the meantime shall not live on in what was remembered too late.
        if Arc::ptr_eq(&keys, &self.keys()) {
            remembered.insert(digest, verified.clone());
        }
        Ok(verified)
    }

    /// Whether there is a key at all.
    fn has_keys(&self) -> bool {
        !self.keys().is_empty()
    }

    /// Whether the keys were ever had, be it to hear that there is none.
    pub(crate) fn keys_were_had(&self) -> bool {
        self.had.load(Ordering::Relaxed)
    }

    /// Lets a call wait for the keys, unless many do.
    pub(crate) fn wait(&self) -> Option<SemaphorePermit<'_>> {
        self.waiting.try_acquire().ok()
    }

    /// Asks for the keys, unless somebody has just done so.
    pub(crate) async fn look_for_new_keys(&self, metrics: &Metrics) {
        let mut asked = self.asked.lock().await;
        if asked.is_some_and(|asked| asked.elapsed() < PAUSE_BETWEEN_FETCHES) {
            return;
        }
        *asked = Some(Instant::now());
        self.fetch(Look::Again, metrics).await;
    }

    async fn fetch(&self, look: Look, metrics: &Metrics) {
        let read = self.source.read().await;
        metrics.file_is_usable(NamedFile::JwtKeys, read.is_ok());
        let problem = read.as_ref().err().map(ToString::to_string);
        let before = std::mem::replace(
            &mut *self.problem.lock().unwrap_or_else(PoisonError::into_inner),
            problem.clone(),
        );
        match read {
            Ok((true, keys)) => self.go_by(keys, metrics),
            Ok((false, _)) if before.is_some() || look == Look::Told => {
                tracing::info!("the keys for JWTs are as they were");
            }
            Ok((false, _)) => {}
            // Once, not at every look.
            Err(_) if before == problem && look == Look::Again => {}
            Err(error) => tracing::error!(%error, "the keys for JWTs stay as they are"),
        }
    }

    /// A set without a key of use is a word of the issuer like any other: all keys were taken back.
    fn go_by(&self, keys: Vec<Key>, metrics: &Metrics) {
        if keys.is_empty() {
            tracing::warn!(
                "the keys for JWTs were all taken back: nobody gets in by a JWT until there is a new one"
            );
        } else {
            tracing::info!(keys = keys.len(), "the keys for JWTs have changed");
        }
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        self.replaced.send_replace(());
        self.had.store(true, Ordering::Relaxed);
        self.remembered().clear();
        self.count(metrics);
    }

    fn count(&self, metrics: &Metrics) {
        let keys = self.keys();
        for algorithm in Algorithm::ALL {
            let of_it = keys.iter().filter(|key| key.algorithm == algorithm).count();
            metrics.jwt_keys(algorithm.name(), of_it);
        }
    }

    /// Asks for the keys again and again: those in a file every `interval`, those behind a URL as often as
    /// they are to be refreshed, and soon again while there are none; both at once when told. Never returns.
    pub(crate) async fn keep_fresh(&self, interval: Duration, mut ear: Ear, metrics: &Metrics) {
        self.count(metrics);
        loop {
            let pause = match &self.source {
                Source::File(_) => interval,
                Source::Url(_) if self.has_keys() => self.refresh,
                Source::Url(_) => {
                    self.look_for_new_keys(metrics).await;
                    if self.has_keys() { self.refresh } else { self.refresh.min(PAUSE_BETWEEN_FETCHES) }
                }
            };
            let look = ear.told_or_after(pause).await;
            let mut asked = self.asked.lock().await;
            *asked = Some(Instant::now());
            self.fetch(look, metrics).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::claims::tests::Signer;
    use super::*;

    /// Not in paused time, which would pass by itself while a file is read.
    async fn later(by: Duration) {
        tokio::time::pause();
        tokio::time::advance(by).await;
        tokio::time::resume();
    }

    #[tokio::test]
    async fn a_key_that_is_not_known_has_the_keys_read_again_but_not_all_the_time() {
        let (one, two) = (Signer::new(), Signer::new());
        let file = tempfile::NamedTempFile::new().unwrap();
        let publish = |keys: &[serde_json::Value]| {
            std::fs::write(file.path(), json!({ "keys": keys }).to_string()).unwrap();
        };
        publish(&[one.jwk("one")]);
        let store: kagzi_core::SharedStore = Arc::new(kagzi_core::memory::MemoryStore::default());
        let metrics = Metrics::new(&store);
        let jwt = Jwt::of(&ServerConfig {
            jwt_keys: Some(file.path().display().to_string()),
            jwt_issuer: Some("joe".to_owned()),
            jwt_audience: Some("kagzi".to_owned()),
            ..ServerConfig::default()
        });
        let jwt = jwt.unwrap().unwrap();
        let claims = json!({"iss": "joe", "aud": "kagzi", "sub": "ada", "exp": 32_503_680_000_u64});
        let by_one = one.sign(&json!({"alg": "EdDSA", "kid": "one"}), &claims);
        let by_two = two.sign(&json!({"alg": "EdDSA", "kid": "two"}), &claims);
        assert!(jwt.verify(&by_one).is_ok());
        assert_eq!(jwt.verify(&by_two), Err(Fault::UnknownKey));

        publish(&[two.jwk("two")]);
        jwt.look_for_new_keys(&metrics).await;
        assert!(jwt.verify(&by_two).is_ok());
        assert_eq!(jwt.verify(&by_one), Err(Fault::UnknownKey), "it was seen before, and its key is gone");

        publish(&[one.jwk("one")]);
        jwt.look_for_new_keys(&metrics).await;
        assert!(jwt.verify(&by_one).is_err(), "they were read just now");
        later(PAUSE_BETWEEN_FETCHES).await;
        jwt.look_for_new_keys(&metrics).await;
        assert!(jwt.verify(&by_one).is_ok() && jwt.verify(&by_two).is_err());

        let waiting: Vec<_> = (0..MOST_WAITING).map(|_| jwt.wait().unwrap()).collect();
        assert!(jwt.wait().is_none(), "too many wait for the keys");
        drop(waiting);
        assert!(jwt.wait().is_some());

        // A new key with the id of an old one is told by its signature. An algorithm that no key has is no reason to ask.
        let anew = two.sign(&json!({"alg": "EdDSA", "kid": "one"}), &claims);
        assert_eq!(jwt.verify(&anew), Err(Fault::UnknownKey));
        assert!(matches!(
            jwt.verify(&two.sign(&json!({"alg": "none", "kid": "one"}), &claims)),
            Err(Fault::Refused(_))
        ));
        publish(&[two.jwk("one")]);
        later(PAUSE_BETWEEN_FETCHES).await;
        jwt.look_for_new_keys(&metrics).await;
        assert!(jwt.verify(&anew).is_ok());
        assert_eq!(jwt.verify(&by_one), Err(Fault::UnknownKey), "its key has lost its name");
    }
}
