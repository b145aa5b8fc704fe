//! The access file: who may come, what they are known by, and what they may do.
//!
//! ```toml
//! [[principal]]
//! name = "billing-worker"
//! tokens = ["sha256:..."]                       # as `kagzi token new` prints it
//! subjects = ["system:serviceaccount:billing"]  # of JWTs
//! certificates = ["uri:spiffe://acme/billing"]  # of clients: uri:, dns: or cn:
//!
//! [[principal.grant]]
//! role = "worker"                               # client, worker, operator or admin
//! namespaces = ["billing"]                      # exact, `prefix*` or `*`
//! queues = ["invoices*"]                        # all, if left out
//! workflow_types = ["*"]                        # all, if left out
//! ```

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::caller::{Credential, Principal};
use super::grant::Grant;
use super::token::TokenDigest;
use crate::config::{Values, mistake};
use crate::document::Found;

/// Why an access file was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// It cannot be read.
    #[error("access file {}: {source}; give the path of a readable TOML file with --access-file", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// It is not TOML, has an unknown key, or a value that is none.
    #[error("access file {}, line {line}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line at fault, from 1.
        line: usize,
        /// What is wrong with it.
        message: String,
    },
    /// It names nobody.
    #[error("access file {}: expected at least one [[principal]], got none; to let nobody in, stop the server", path.display())]
    Nobody {
        /// The file.
        path: PathBuf,
    },
    /// A principal of it is refused.
    #[error("access file {}, principal {principal:?}: {problem}", path.display())]
    Principal {
        /// The file.
        path: PathBuf,
        /// Whose entry is at fault.
        principal: String,
        /// What is wrong with it.
        problem: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default, rename = "principal")]
    principals: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    #[serde(default)]
    tokens: Vec<String>,
    #[serde(default)]
    subjects: Vec<String>,
    #[serde(default)]
    certificates: Vec<String>,
    #[serde(default, rename = "grant")]
    grants: Vec<Grant>,
}

/// Everybody in the file, by what they are known by.
#[derive(Debug, Default)]
pub(crate) struct Access {
    tokens: HashMap<[u8; 8], Vec<(TokenDigest, Arc<Principal>)>>,
    subjects: HashMap<String, Arc<Principal>>,
    certificates: HashMap<String, Arc<Principal>>,
}

impl Access {
    /// What was found in the file as text, to be given to [`parse`](Self::parse): whoever wants to know later whether it
    /// has changed compares it with this, so that no change falls between two looks.
    pub(super) fn text(path: &Path, found: io::Result<Found>) -> Result<String, AccessError> {
        let text = found.and_then(|found| {
            String::from_utf8(found.content)
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
        });
        text.map_err(|source| AccessError::Read { path: path.to_owned(), source })
    }

    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, AccessError> {
        let file: File = toml::from_str(text).map_err(|error| {
            let (line, message) = mistake(text, error, Values::Hidden);
            AccessError::Parse { path: path.to_owned(), line, message }
        })?;
        // Nobody means that; a full disk and a copy that is not done leave files like this.
        if file.principals.is_empty() {
            return Err(AccessError::Nobody { path: path.to_owned() });
        }
        let (mut access, mut names) = (Self::default(), HashSet::new());
        for entry in file.principals {
            let name = entry.name.clone();
            let refuse = |problem: String| AccessError::Principal {
                path: path.to_owned(),
                principal: name.clone(),
                problem,
            };
            if name.is_empty() || name.chars().any(char::is_control) || !names.insert(name.clone()) {
                return Err(refuse("expected a name of its own, without control characters".to_owned()));
            }
            access.add(entry).map_err(refuse)?;
        }
        Ok(access)
    }

    fn add(&mut self, entry: Entry) -> Result<(), String> {
        let Entry { name, tokens, subjects, certificates, grants } = entry;
        let principal = Arc::new(Principal { name, grants });
        for token in &tokens {
            let digest = TokenDigest::parse(token)
                .ok_or("tokens: expected \"sha256:\" and 64 hexadecimal digits, as `kagzi token new` prints it; the token itself does not belong here")?;
            if self.by_token(&digest).is_some() {
                return Err(
                    "tokens: one of them is known already; each token belongs to one principal".to_owned()
                );
            }
            self.tokens.entry(digest.row()).or_default().push((digest, Arc::clone(&principal)));
        }
        // What is wrong is told by its place: a token may have been written there by mistake.
        for (at, subject) in (1..).zip(subjects) {
            if subject.is_empty() || self.subjects.insert(subject, Arc::clone(&principal)).is_some() {
                return Err(format!("subjects: number {at} is empty or known already"));
            }
        }
        for (at, identity) in (1..).zip(certificates) {
            let known_kind = ["uri:", "dns:", "cn:"]
                .iter()
                .any(|kind| identity.strip_prefix(kind).is_some_and(|name| !name.is_empty()));
            if !known_kind {
                return Err(format!(
                    "certificates: expected a name of a certificate after uri:, dns: or cn:, got another beginning at number {at}"
                ));
            }
            if self.certificates.insert(identity, Arc::clone(&principal)).is_some() {
                return Err(format!("certificates: number {at} is known already"));
            }
        }
        Ok(())
    }

    fn by_token(&self, shown: &TokenDigest) -> Option<&Arc<Principal>> {
        let row = self.tokens.get(&shown.row())?;
        row.iter().find(|(digest, _)| digest.is(shown)).map(|(_, principal)| principal)
    }

    /// Whom a credential that was proven belongs to. Whoever others vouch for, an issuer of JWTs or an authority, and
    /// the file does not name, is as unknown as anybody.
    pub(crate) fn principal(&self, credential: &Credential) -> Option<Arc<Principal>> {
        match credential {
            Credential::None => None,
            Credential::Token(digest) => self.by_token(digest).cloned(),
            Credential::Subject(subject) => self.subjects.get(&**subject).cloned(),
            Credential::Certificate(names) => {
                names.iter().find_map(|name| self.certificates.get(name).cloned())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::token::NewToken;
    use super::*;

    fn parse(text: &str) -> Result<Access, AccessError> {
        Access::parse(Path::new("access.toml"), text)
    }

    #[test]
    fn principals_are_found_by_what_they_are_known_by() {
        let token = NewToken::generate().unwrap();
        let access = parse(&format!(
            "[[principal]]\nname = 'a'\ntokens = ['{}']\nsubjects = ['s']\ncertificates = ['dns:c']\n\
             [[principal.grant]]\nrole = 'worker'\nnamespaces = ['n']\n\
             [[principal]]\nname = 'b'\n",
            token.digest()
        ))
        .unwrap();
        let name = |credential: &Credential| access.principal(credential).map(|found| found.name.clone());
        assert_eq!(name(&Credential::Token(TokenDigest::of(token.reveal()))).as_deref(), Some("a"));
        assert_eq!(name(&Credential::Token(TokenDigest::of("another"))), None);
        assert_eq!(name(&Credential::Subject("s".into())).as_deref(), Some("a"));
        assert_eq!(name(&Credential::Subject("t".into())), None);
        let names = Credential::Certificate(["uri:x".to_owned(), "dns:c".to_owned()].into());
        assert_eq!(name(&names).as_deref(), Some("a"));
        let names = Credential::Certificate(["uri:x".to_owned()].into());
        assert_eq!(name(&names), None);
        assert_eq!(name(&Credential::Certificate([].into())), None);
        assert_eq!(name(&Credential::None), None);
    }

    #[test]
    fn a_file_with_a_mistake_is_refused_whole_with_the_place_and_without_its_secrets() {
        let digest = NewToken::generate().unwrap().digest();
        let twice = format!("[[principal]]\nname = 'a'\ntokens = ['{digest}', '{digest}']");
        let cases = [
            ("", "expected at least one [[principal]], got none"),
            ("# [[principal]]\n", "expected at least one"),
            ("principal = []", "expected at least one"),
            ("[[principal]]\nname = 'a'\ntokens = ['kagzi_s3cret']", "64 hexadecimal digits"),
            (twice.as_str(), "known already"),
            ("[[principal]]\nname = 'a'\n[[principal]]\nname = 'a'", "a name of its own"),
            ("[[principal]]\nname = ''", "a name of its own"),
            ("[[principal]]\nname = 'a'\ncertificates = ['c']", "uri:, dns: or cn:"),
            ("[[principal]]\nname = 'a'\ncertificates = ['cn:']", "uri:, dns: or cn:"),
            ("[[principal]]\nname = 'a'\nsubjects = ['']", "subjects"),
            ("\n[[principal]]\nnames = 'a'", "line 3"),
            ("[[principal]]\nname = 'a'\n[[principal.grant]]\nrole = 'king'\nnamespaces = ['a']", "line 4"),
            ("[[principal]]\nname = 'a'\n[[principal.grant]]\nrole = 'worker'", "namespaces"),
            ("[[principal]]\nname = 'a'\ntokens = [\"s3cret", "line 3"),
            (
                "[[principal]]\nname = 'a'\ntokens = 'kagzi_s3cret'",
                "line 3: principal.tokens: invalid type: string, expected a list of texts in square brackets",
            ),
            ("[[principal]]\nname = 'a'\ntokens = [{ a = 's3cret' }]", "line 3"),
            ("[[principal]]\nname = 'a'\ntokens = kagzi_s3cret", "line 3"),
            ("[[principal]]\nname = 'a'\ntokens = 's3cret, expected u32'", "line 3"),
            ("[[principal]]\nname = 'a'\ntokens = { kagzi_s3cret = 1 }", "line 3"),
            ("[[principal]]\nname = 'a'\nkagzi_s3cret = 1", "line 3: unknown field, expected one of `name`"),
            ("[[principal]]\nname = 'a'\nsubjects = 'kagzi_s3cret'", "principal.subjects: "),
            ("[[principal]]\nname = 'a'\nsubjects = ['kagzi_s3cret', 'kagzi_s3cret']", "number 2"),
            ("[[principal]]\nname = 'a'\ncertificates = ['kagzi_s3cret']", "number 1"),
            (
                "[[principal]]\nname = 'a'\n[[principal.grant]]\nrole = 'kagzi_s3cret'\nnamespaces = ['a']",
                "line 4",
            ),
            ("principal = 'kagzi_s3cret'", "line 1: principal: "),
            ("'kagzi_s3cret' = 1", "line 1: unknown field, expected "),
        ];
        for (text, expected) in cases {
            let error = parse(text).unwrap_err();
            let said = format!("{error} {error:?}");
            assert!(said.contains("access.toml") && said.contains(expected), "{text}: {said}");
            assert!(!said.contains("s3cret"), "{said}");
        }
    }
}
