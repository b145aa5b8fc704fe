//! What a store tells operators about itself, in words: whoever asks needs no SQL to understand it.

use std::fmt;

/// How well a matter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works now, and will hurt.
    Warn,
    /// It does not work, or what was acknowledged is not safe.
    Fail,
}

impl Verdict {
    /// `ok`, `warn` or `fail`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an examination found in one matter; see [`Store::examine`](crate::Store::examine).
///
/// ```
/// use kagzi_core::{Finding, Verdict};
///
/// let finding = Finding::warn("autovacuum", "off", "set autovacuum = on in postgresql.conf");
/// assert_eq!(finding.verdict, Verdict::Warn);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The matter: a short stable name, such as `durability`.
    pub check: &'static str,
    /// How well it stands.
    pub verdict: Verdict,
    /// What was found. It never holds a secret or a payload.
    pub found: String,
    /// What to do about it; nothing where all is well.
    pub remedy: Option<String>,
}

impl Finding {
    /// All is well.
    pub fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, found: found.into(), remedy: None }
    }

    /// It works now, and will hurt unless somebody does what `remedy` says.
    pub fn warn(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warn, found: found.into(), remedy: Some(remedy.into()) }
    }

    /// It does not work, or is not safe, until somebody does what `remedy` says.
    pub fn fail(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Fail, found: found.into(), remedy: Some(remedy.into()) }
    }
}

/// What a store does about a schema of an older version, or none, when it is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SchemaPolicy {
    /// It brings it up to date.
    #[default]
    Migrate,
    /// It leaves it as it is and does not open:
    /// [`StoreError::SchemaMismatch`](crate::StoreError::SchemaMismatch).
    Require,
}

/// What bringing a schema up to date takes, or took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    /// The version before; 0 where there was none.
    pub from: i64,
    /// The version after: the newest that this program knows.
    pub to: i64,
    /// The migrations between the two, in order. None: the schema is up to date.
    pub steps: Vec<&'static str>,
}

/// What to do about a schema that is older than the program, for
/// [`StoreError::SchemaMismatch`](crate::StoreError::SchemaMismatch).
pub const MIGRATE_FIRST: &str = "bring it up to date with `kagzi migrate` (0: there is no schema yet)";
