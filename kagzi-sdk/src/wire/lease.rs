//! Leases.

use kagzi_core::{FencingToken, GrantedLease, Lease, Namespace, StoreError, WorkerId};
use kagzi_proto::v1;

use super::field::{required, within};
use super::time::{moment_to_wire, required_moment};
use super::{FromWire, IntoWire};

impl IntoWire<v1::Lease> for Lease {
    fn into_wire(self) -> v1::Lease {
        v1::Lease {
            namespace: self.namespace.as_str().to_owned(),
            run_id: self.run_id.to_string(),
            worker_id: self.worker_id.as_str().to_owned(),
            fencing_token: self.fencing_token.get(),
        }
    }
}

impl FromWire<v1::Lease> for Lease {
    fn from_wire(wire: v1::Lease) -> Result<Self, StoreError> {
        Ok(Self {
            namespace: Namespace::new(wire.namespace)?,
            run_id: wire.run_id.parse()?,
            worker_id: WorkerId::new(wire.worker_id)?,
            fencing_token: FencingToken::new(wire.fencing_token)?,
        })
    }
}

/// The lease in the field `lease`, which must be there.
pub(super) fn lease(wire: Option<v1::Lease>) -> Result<Lease, StoreError> {
    within("lease", Lease::from_wire(required("lease", wire)?))
}

impl IntoWire<v1::GrantedLease> for GrantedLease {
    fn into_wire(self) -> v1::GrantedLease {
        v1::GrantedLease {
            lease: Some(self.lease.into_wire()),
            expires_at: Some(moment_to_wire(self.expires_at)),
        }
    }
}

impl FromWire<v1::GrantedLease> for GrantedLease {
    fn from_wire(wire: v1::GrantedLease) -> Result<Self, StoreError> {
        Ok(Self { lease: lease(wire.lease)?, expires_at: required_moment("expires_at", wire.expires_at)? })
    }
}
