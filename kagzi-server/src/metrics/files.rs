//! Files that a server reads again, or writes, beside its store: whether they can be used, and what stands in them.

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
}

impl FileFigures {
    pub(super) fn register(book: &mut Book) -> Self {
        let unusable: Family<[Pair; 1], Gauge> = book.register(
            "file_unusable",
            &["file"],
            "1 while what stands in a file, or behind the URL of the JWT keys, cannot be used, so that what was read before still counts; 1 for the audit log while it cannot be written; else 0",
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
        }
    }
}

impl Metrics {
    /// Whether a file could be used when it was last looked at or written to.
    pub(crate) fn file_is_usable(&self, file: NamedFile, usable: bool) {
        self.0.files.unusable[file.index()].set(i64::from(!usable));
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
