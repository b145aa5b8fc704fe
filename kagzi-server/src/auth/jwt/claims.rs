//! One JWT: taken apart, its signature verified, its claims checked.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::key::{Algorithm, Fingerprint, Key};

/// Longer ones are refused unread.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// What names a caller is no longer than this.
const MAX_SUBJECT_BYTES: usize = 1024;

/// What a token must say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) issuer: String,
    pub(super) audience: String,
    /// Which claim names the caller.
    pub(super) subject_claim: String,
    /// How far clocks may be apart.
    pub(super) leeway: Duration,
}

/// Who a token speaks of, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verified {
    pub(crate) subject: Arc<str>,
    pub(crate) until: SystemTime,
    /// The key that signed it.
    pub(crate) key: Fingerprint,
}

/// Why a token does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is signed by a key that is not known, here and now, or by nobody.
    UnknownKey,
    /// It will not do, for this reason.
    Refused(&'static str),
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
}

/// Verifies a token by `keys` and checks what it says, at the moment `now`.
pub(super) fn verify(token: &str, keys: &[Key], rules: &Rules, now: SystemTime) -> Result<Verified, Fault> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(Fault::Refused("a JWT that is too long"));
    }
    let mut parts = token.split('.');
    let (Some(header), Some(payload), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Fault::Refused("a JWT that does not have three parts"));
    };
    let signed = &token[..header.len() + 1 + payload.len()];
    let header: Header = json(header)?;
    if header.crit.is_some() {
        return Err(Fault::Refused("a JWT with extensions that must be understood and are not"));
    }
    let signature = decoded(signature)?;
    let key = check_signature(&header, signed.as_bytes(), &signature, keys)?;
    let (subject, until) = check_claims(&json(payload)?, rules, now)?;
    Ok(Verified { subject, until, key })
}

/// A key with the id that the token names, or any where it names none, must have signed it, by its own
/// algorithm. The token's word for that algorithm must be the same.
fn check_signature(
    header: &Header,
    signed: &[u8],
    signature: &[u8],
    keys: &[Key],
) -> Result<Fingerprint, Fault> {
    let mut candidates = keys.iter().filter(|key| header.kid.is_none() || key.id == header.kid).peekable();
    if candidates.peek().is_none() {
        return Err(Fault::UnknownKey);
    }
    let by = candidates.find(|key| key.algorithm.name() == header.alg && key.verifies(signed, signature));
    match by {
        Some(key) => Ok(key.fingerprint()),
        None if !Algorithm::ALL.iter().any(|known| known.name() == header.alg) => {
            Err(Fault::Refused("a JWT of an algorithm that no key here has"))
        }
        // It may be by a key that is not known yet, also where the id is: issuers give a new key the id of an old one.
        None => Err(Fault::UnknownKey),
    }
}

fn check_claims(
    claims: &Map<String, Value>,
    rules: &Rules,
    now: SystemTime,
) -> Result<(Arc<str>, SystemTime), Fault> {
    let refused = |why| Err(Fault::Refused(why));
    let Some(expires) = moment(claims.get("exp"))? else { return refused("a JWT that never expires") };
    let Some(until) = expires.checked_add(rules.leeway) else { return refused("a JWT that never expires") };
    if now >= until {
        return refused("a JWT that has expired");
    }
    if let Some(not_before) = moment(claims.get("nbf"))?
        && now.checked_add(rules.leeway).is_none_or(|now| now < not_before)
    {
        return refused("a JWT that does not count yet");
    }
    if claims.get("iss").and_then(Value::as_str) != Some(rules.issuer.as_str()) {
        return refused("a JWT of another issuer");
    }
    let is_us = |value: &Value| value.as_str() == Some(rules.audience.as_str());
    let for_us = match claims.get("aud") {
        Some(Value::Array(audiences)) => audiences.iter().any(is_us),
        Some(audience) => is_us(audience),
        None => false,
    };
    if !for_us {
        return refused("a JWT for another audience");
    }
    match claims.get(&rules.subject_claim).and_then(Value::as_str) {
        Some(subject)
            if (1..=MAX_SUBJECT_BYTES).contains(&subject.len()) && !subject.chars().any(char::is_control) =>
        {
            Ok((subject.into(), until))
        }
        _ => refused("a JWT that names nobody"),
    }
}

/// A moment in seconds since 1970. One that is none is a fault, not a claim that is missing.
fn moment(claim: Option<&Value>) -> Result<Option<SystemTime>, Fault> {
    let Some(claim) = claim else { return Ok(None) };
    let seconds = claim.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let moment = seconds.and_then(|seconds| UNIX_EPOCH.checked_add(seconds));
    moment.map(Some).ok_or(Fault::Refused("a JWT with a time that is none"))
}

fn decoded(part: &str) -> Result<Vec<u8>, Fault> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| Fault::Refused("a JWT that is not base64url"))
}

/// Errors of the parser quote what they read, so none of them is passed on.
fn json<T: DeserializeOwned>(part: &str) -> Result<T, Fault> {
    serde_json::from_slice(&decoded(part)?).map_err(|_| Fault::Refused("a JWT that is not JSON"))
}

#[cfg(test)]
#[path = "tests.rs"]
pub(super) mod tests;
