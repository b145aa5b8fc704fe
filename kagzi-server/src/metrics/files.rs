//! Files that a server reads again, or writes, beside its store: whether they can be used, and what stands in them.

use std::sync::{Mutex, PoisonError};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::Metrics;
use super::label::{Book, Label as _, Pair, label};

label! {
    /// A file, by the setting that names it.
    NamedFile {
        AccessFile => "access_file",
        AuditLog => "audit_log",
        JwtKeys => "jwt_keys",
        TlsCert => "tls_cert",
    }
}

/// The figures of files.
#[derive(Debug)]
pub(super) struct FileFigures {
    unusable: Vec<Gauge>,
    jwt_keys: Family<[Pair; 1], Gauge>,
    audit_failures: Counter,
    audit_log: Mutex<AuditLog>,
}

/// What the audit log was good for the last time that each was tried: one that goes on in the file that was moved away is
/// no better for being written there.
#[derive(Debug)]
struct AuditLog {
    written: bool,
    opened: bool,
}

impl FileFigures {
    pub(super) fn register(book: &mut Book) -> Self {
        let unusable: Family<[Pair; 1], Gauge> = book.register(
            "file_unusable",
            &["file"],
            "1 while what stands in a file, or behind the URL of the JWT keys, cannot be used, so that what was read before still counts; 1 for the audit log while it cannot be written, or could not be opened anew when told; else 0",
            Family::default(),
        );
        let each = NamedFile::ALL.iter().map(|file| unusable.get_or_create_owned(&[("file", file.as_str())]));
        Self {
            unusable: each.collect(),
            jwt_keys: book.register(
                "jwt_keys",
                &["algorithm"],
                "Keys by which JWTs are verified; absent where there are no JWTs",
                Family::default(),
            ),
            audit_failures: book.register(
                "audit_failures",
                &[],
                "Lines that could not be written to the audit log; actions that could not be announced there were not done",
                Counter::default(),
            ),
            audit_log: Mutex::new(AuditLog { written: true, opened: true }),
        }
    }
}

impl Metrics {
    /// Whether a file could be used when it was last looked at. What becomes of the audit log has words of its own.
    pub(crate) fn file_is_usable(&self, file: NamedFile, usable: bool) {
        self.0.files.unusable[file.index()].set(i64::from(!usable));
    }

    /// Whether the audit log took the last line that was to be written there.
    pub(crate) fn audit_log_is_written(&self, written: bool) {
        self.audit_log(|audit_log| audit_log.written = written);
    }

    /// Whether what stands in the place of the audit log could be opened when that was last tried.
    pub(crate) fn audit_log_is_opened(&self, opened: bool) {
        self.audit_log(|audit_log| audit_log.opened = opened);
    }

    fn audit_log(&self, change: impl FnOnce(&mut AuditLog)) {
        let mut audit_log = self.0.files.audit_log.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut audit_log);
        // Under the lock, so that what is shown is what was known last.
        self.file_is_usable(NamedFile::AuditLog, audit_log.written && audit_log.opened);
    }

    /// How many keys of an algorithm there are.
    pub(crate) fn jwt_keys(&self, algorithm: &'static str, keys: usize) {
        let gauge = self.0.files.jwt_keys.get_or_create_owned(&[("algorithm", algorithm)]);
        gauge.set(i64::try_from(keys).unwrap_or(i64::MAX));
    }

    /// A line could not be written to the audit log.
    pub(crate) fn audit_failed(&self) {
        self.0.files.audit_failures.inc();
    }
}
