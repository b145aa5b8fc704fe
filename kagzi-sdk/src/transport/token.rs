//! The secret that a server knows its caller by, sent with every call.

use std::fmt;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::error::ClientError;

/// How long a token that was read from a file is used before the file is looked at again.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A token, made by `kagzi token new` or a JWT, that is sent with every call as `authorization: Bearer`.
///
/// It never shows: not in `Debug`, not in an error, not in a log. Cloning is cheap.
#[derive(Clone)]
pub struct Token(Source);

#[derive(Clone)]
enum Source {
    Given(MetadataValue<Ascii>),
    File(Arc<TokenFile>),
}

struct TokenFile {
    path: PathBuf,
    last: Mutex<Last>,
}

/// What was read last, and when the file was looked at.
struct Last {
    value: MetadataValue<Ascii>,
    stamp: Stamp,
    looked_at: Instant,
}

/// What tells one content of a file from the next without reading it.
type Stamp = (u64, Option<SystemTime>);

impl Token {
    /// A token that stays the same. Keep it out of source code and arguments: [`from_variable`] and
    /// [`from_file`] are the ways for it to come.
    ///
    /// [`from_variable`]: Self::from_variable
    /// [`from_file`]: Self::from_file
    ///
    /// # Errors
    ///
    /// [`ClientError::Credentials`] unless it is one line of visible ASCII.
    pub fn new(text: impl AsRef<str>) -> Result<Self, ClientError> {
        header("the token", text.as_ref()).map(|value| Self(Source::Given(value)))
    }

    /// The token that the environment variable `name` holds.
    ///
    /// # Errors
    ///
    /// [`ClientError::Credentials`] if the variable is not set or holds no token.
    pub fn from_variable(name: &str) -> Result<Self, ClientError> {
        let from = format!("the variable {name}");
        match std::env::var(name) {
            Ok(text) => header(&from, text.trim()).map(|value| Self(Source::Given(value))),
            Err(std::env::VarError::NotPresent) => Err(refused(&from, "it is not set")),
            Err(std::env::VarError::NotUnicode(_)) => Err(refused(&from, "it is not UTF-8")),
        }
    }

    /// The token that a file holds, white space around it left out. The file is read again when it has
    /// changed, at most a second later, so that tokens can be replaced while the program runs.
    ///
    /// # Errors
    ///
    /// [`ClientError::Credentials`] if the file cannot be read or holds no token.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ClientError> {
        let path = path.as_ref().to_owned();
        let (value, stamp) = read(&path)?;
        let last = Mutex::new(Last { value, stamp, looked_at: Instant::now() });
        Ok(Self(Source::File(Arc::new(TokenFile { path, last }))))
    }

    fn header(&self) -> MetadataValue<Ascii> {
        match &self.0 {
            Source::Given(value) => value.clone(),
            Source::File(file) => file.header(),
        }
    }
}

impl TokenFile {
    fn lock(&self) -> MutexGuard<'_, Last> {
        // Its parts are replaced together, so a panic elsewhere does not spoil it.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn header(&self) -> MetadataValue<Ascii> {
        let mut last = self.lock();
        if last.looked_at.elapsed() >= LOOK_AGAIN_AFTER {
            last.looked_at = Instant::now();
            if std::fs::metadata(&self.path).is_ok_and(|now| stamp(&now) != last.stamp) {
                match read(&self.path) {
                    Ok((value, stamp)) => (last.value, last.stamp) = (value, stamp),
                    // A file that is just being written is whole the next time.
                    Err(error) => tracing::warn!(%error, "the token is not renewed; the last one is used"),
                }
            }
        }
        last.value.clone()
    }
}

fn stamp(metadata: &Metadata) -> Stamp {
    (metadata.len(), metadata.modified().ok())
}

fn read(path: &Path) -> Result<(MetadataValue<Ascii>, Stamp), ClientError> {
    let from = format!("the file {}", path.display());
    let metadata = std::fs::metadata(path).map_err(|error| refused(&from, &error.to_string()))?;
    let text = std::fs::read_to_string(path).map_err(|error| refused(&from, &error.to_string()))?;
    Ok((header(&from, text.trim())?, stamp(&metadata)))
}

fn header(from: &str, token: &str) -> Result<MetadataValue<Ascii>, ClientError> {
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(refused(from, "expected a token of visible ASCII without white space inside"));
    }
    let mut value = MetadataValue::try_from(format!("Bearer {token}"))
        .map_err(|_| refused(from, "it cannot be sent in a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn refused(from: &str, problem: &str) -> ClientError {
    ClientError::Credentials { from: from.to_owned(), problem: problem.to_owned() }
}

/// Shows where the token comes from, never the token.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Given(_) => f.write_str("Token(***)"),
            Source::File(file) => write!(f, "Token(*** from {:?})", file.path),
        }
    }
}

/// Puts the token, if there is one, on every request.
#[derive(Clone, Debug)]
pub(super) struct Authorize(pub(super) Option<Token>);

impl Interceptor for Authorize {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.header());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_never_shows() {
        let token = Token::new("s3cret-value").unwrap();
        assert_eq!(format!("{token:?}"), "Token(***)");
        assert!(!format!("{:?}", Authorize(Some(token.clone()))).contains("s3cret"));
        assert!(!format!("{:?}", token.header()).contains("s3cret"), "sensitive headers do not show either");
        for bad in ["", "two words", "line\nbreak-s3cret", "ü-s3cret"] {
            let error = Token::new(bad).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_file_is_read_again_when_it_has_changed_and_kept_when_it_cannot_be_read() {
        let directory = std::env::temp_dir().join(format!("kagzi-token-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&directory).unwrap();
        let path = directory.join("token");
        std::fs::write(&path, "first\n").unwrap();
        let token = Token::from_file(&path).unwrap();
        let Source::File(file) = &token.0 else { panic!() };
        let look_again = || {
            file.lock().looked_at = Instant::now().checked_sub(LOOK_AGAIN_AFTER).unwrap();
        };
        assert_eq!(token.header(), "Bearer first");
        std::fs::write(&path, "no token at all").unwrap();
        look_again();
        assert_eq!(token.header(), "Bearer first");
        std::fs::write(&path, "number-two").unwrap();
        look_again();
        assert_eq!(token.header(), "Bearer number-two");
        std::fs::remove_file(&path).unwrap();
        look_again();
        assert_eq!(token.header(), "Bearer number-two");
        std::fs::remove_dir_all(&directory).unwrap();
        assert!(Token::from_file(&path).unwrap_err().to_string().contains("token"));
    }
}
