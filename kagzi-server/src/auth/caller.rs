//! Who calls, and what they may do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use super::grant::{Area, Grant, Role};
use super::jwt::Fingerprint;
use super::right::right;
use super::token::TokenDigest;
use crate::transport::{ClientCertificate, Visit};

/// Somebody whom the access file names.
#[derive(Debug)]
pub(crate) struct Principal {
    pub(crate) name: String,
    pub(crate) grants: Vec<Grant>,
}

/// What was proven, so that whom it belongs to can be looked up again when the access file has changed.
#[derive(Clone, Debug)]
pub(crate) enum Credential {
    /// Nothing: nobody is asked.
    None,
    /// A bearer token.
    Token(TokenDigest),
    /// The subject of a JWT.
    Subject(Arc<str>),
    /// The names of a client's certificate, the most telling first.
    Certificate(Arc<[String]>),
}

impl Credential {
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Token(_) => "token",
            Self::Subject(_) => "jwt",
            Self::Certificate(_) => "certificate",
        }
    }
}

/// Who makes a call. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) principal: Arc<Principal>,
    pub(crate) credential: Credential,
    /// From then on the credential counts no more.
    pub(crate) until: Option<SystemTime>,
    /// The key that signed it, if it is a JWT: it counts as long as that does.
    pub(crate) key: Option<Fingerprint>,
    /// The certificate, if it is known by one: it counts as long as an authority vouches for it.
    pub(crate) certificate: Option<ClientCertificate>,
    pub(crate) peer: Option<SocketAddr>,
    /// Keeps their connection from giving way to another.
    pub(crate) visit: Option<Visit>,
}

impl Caller {
    /// Somebody, where nobody is asked who they are: everything is allowed.
    pub(crate) fn anyone(peer: Option<SocketAddr>) -> Self {
        let principal = Principal { name: "anyone".to_owned(), grants: vec![Grant::everything()] };
        Self::unasked(Arc::new(principal), peer)
    }

    /// Whoever comes, where nobody is asked who they are.
    pub(crate) const fn unasked(principal: Arc<Principal>, peer: Option<SocketAddr>) -> Self {
        let credential = Credential::None;
        let (until, key, certificate, visit) = (None, None, None, None);
        Self { principal, credential, until, key, certificate, peer, visit }
    }

    /// Somebody of this name, who may do everything.
    #[cfg(test)]
    pub(crate) fn named(name: &str) -> Self {
        let principal = Principal { name: name.to_owned(), grants: vec![Grant::everything()] };
        Self { principal: Arc::new(principal), ..Self::anyone(None) }
    }

    /// Somebody of this name, with the grant that a text of the access file describes.
    #[cfg(test)]
    pub(crate) fn granted(name: &str, grant: &str) -> Self {
        let principal = Principal { name: name.to_owned(), grants: vec![toml::from_str(grant).unwrap()] };
        Self { principal: Arc::new(principal), ..Self::anyone(None) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.principal.name
    }

    /// The namespace that all of its grants are about, if it is one, named in full.
    pub(crate) fn only_namespace(&self) -> Option<&str> {
        let mut names = self.principal.grants.iter().map(Grant::only_namespace);
        let first = names.next()??;
        names.all(|name| name == Some(first)).then_some(first)
    }

    fn grants(&self, method: &str) -> impl Iterator<Item = &Grant> {
        let roles = right(method).map_or(&[][..], |right| right.roles);
        self.principal.grants.iter().filter(move |grant| roles.contains(&grant.role))
    }

    /// Whether there is anything that the caller may do by a call.
    pub(crate) fn may_ever(&self, method: &str) -> bool {
        self.grants(method).next().is_some()
    }

    /// Whether the caller may reach all of an area by a call.
    pub(crate) fn may(&self, method: &str, area: Area<'_>) -> bool {
        self.grants(method).any(|grant| grant.covers(area))
    }

    /// Whether the caller is an operator or an admin: of anything in a namespace, or where none is named, in each.
    pub(crate) fn oversees(&self, namespace: Option<&str>) -> bool {
        let overseen = |grant: &&Grant| matches!(grant.role, Role::Operator | Role::Admin);
        let mut grants = self.principal.grants.iter().filter(overseen);
        grants.any(|grant| grant.touches(namespace))
    }

    /// Whether the caller may reach anything of a namespace by a call.
    pub(crate) fn may_somewhere(&self, method: &str, namespace: &str) -> bool {
        self.grants(method).any(|grant| grant.touches(Some(namespace)))
    }

    /// Whether the caller may reach all of a namespace by a call: what a run's queue is does not matter.
    pub(crate) fn may_everywhere(&self, method: &str, namespace: &str) -> bool {
        self.may(method, Area { namespace, queue: None, workflow_type: None })
    }
}
