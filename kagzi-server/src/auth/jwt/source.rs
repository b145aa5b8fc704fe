//! Where the keys come from: a file, or a URL of their issuer.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use sha2::{Digest as _, Sha256};
use tonic::codegen::Bytes;
use tonic::codegen::http::Uri;

use super::NoKeys;
use super::key::{self, Key};
use crate::document::{Document, Found};
use crate::shown::file_or_url;

/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// No set is longer.
const MAX_SET_BYTES: usize = 1024 * 1024;

/// See the module.
#[derive(Debug)]
pub(super) enum Source {
    File(Origin<Document>),
    Url(Origin<Uri>),
}

/// One place, and what was found there last.
pub(super) struct Origin<P> {
    place: P,
    /// The place as it may be shown.
    shown: String,
    last: Mutex<Option<[u8; 32]>>,
}

/// Without the place, which may hold a password.
impl<P> fmt::Debug for Origin<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origin").field("place", &self.shown).finish_non_exhaustive()
    }
}

impl<P> Origin<P> {
    const fn new(place: P, shown: String) -> Self {
        Self { place, shown, last: Mutex::new(None) }
    }

    /// Reads what was found, and whether it is something else than the last time.
    fn found(&self, text: &[u8]) -> Result<(bool, Vec<Key>), String> {
        let keys = key::read(text)?;
        let digest = Some(Sha256::digest(text).into());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *last != digest;
        *last = digest;
        Ok((changed, keys))
    }
}

impl Source {
    /// Reads where the keys are: what looks like a URL is one.
    pub(super) fn of(text: &str) -> Result<Self, String> {
        let shown = file_or_url(text);
        if !text.contains("://") {
            return Ok(Self::File(Origin::new(Document::at(Path::new(text)), shown)));
        }
        let uri: Uri = text.parse().map_err(|_| "a URL that is none".to_owned())?;
        match (uri.scheme_str(), uri.host()) {
            (Some("https"), Some(_)) => Ok(Self::Url(Origin::new(uri, shown))),
            (Some("http"), Some(host)) if is_here(host) => Ok(Self::Url(Origin::new(uri, shown))),
            // Whoever sits in between would choose the keys.
            (Some("http"), _) => Err("an http:// URL of another machine".to_owned()),
            _ => Err("a URL of another kind".to_owned()),
        }
    }

    /// The keys, if they can be had without waiting.
    pub(super) fn read_now(&self) -> Option<Result<Vec<Key>, NoKeys>> {
        match self {
            Self::File(origin) => Some(origin.found_in_file(origin.place.read_now()).map(|(_, keys)| keys)),
            Self::Url(_) => None,
        }
    }

    /// The keys, and whether they are others than the last time.
    pub(super) async fn read(&self) -> Result<(bool, Vec<Key>), NoKeys> {
        match self {
            Self::File(origin) => origin.found_in_file(origin.place.read().await),
            Self::Url(origin) => {
                let refuse = |problem| NoKeys { place: origin.shown.clone(), problem };
                let answer = tokio::time::timeout(ANSWER_WITHIN, get(&origin.place)).await;
                let text = answer.unwrap_or_else(|_| Err(format!("no answer within {ANSWER_WITHIN:?}")));
                origin.found(&text.map_err(refuse)?).map_err(refuse)
            }
        }
    }
}

impl Origin<Document> {
    fn found_in_file(&self, found: io::Result<Found>) -> Result<(bool, Vec<Key>), NoKeys> {
        let refuse = |problem| NoKeys { place: self.shown.clone(), problem };
        let found = found.map_err(|error| refuse(error.to_string()))?;
        self.found(&found.content).map_err(refuse)
    }
}

fn is_here(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Asks for a document. Redirects are not followed: the configuration names the place.
async fn get(uri: &Uri) -> Result<Vec<u8>, String> {
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(connector()?);
    let answer = client.get(uri.clone()).await.map_err(|error| bottom(&error))?;
    if !answer.status().is_success() {
        return Err(format!("the answer was {}", answer.status()));
    }
    let body = Limited::new(answer.into_body(), MAX_SET_BYTES).collect().await;
    body.map(|body| body.to_bytes().to_vec()).map_err(|error| bottom(&*error))
}

fn connector() -> Result<HttpsConnector<HttpConnector>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = HttpsConnectorBuilder::new()
        .with_provider_and_native_roots(provider)
        .map_err(|error| format!("no authority to trust: {error}"))?;
    // Plain HTTP is for this machine alone, which was checked.
    Ok(builder.https_or_http().enable_http1().build())
}

/// What lies at the bottom of an error: its outer layers only say that something failed.
fn bottom(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
