//! Housekeeping.

use kagzi_core::{DeleteFinished, Namespace, StoreError};
use kagzi_proto::v1;

use super::field::WireEnum;
use super::listing::states;
use super::page::{DEFAULT_PAGE_LIMIT, limit};
use super::time::{moment_to_wire, required_moment};
use super::{FromWire, IntoWire};

/// A deletion over all namespaces cannot be asked for from outside: `namespace` is then empty, and
/// the server refuses it.
impl IntoWire<v1::DeleteFinishedRequest> for DeleteFinished {
    fn into_wire(self) -> v1::DeleteFinishedRequest {
        v1::DeleteFinishedRequest {
            namespace: self.namespace.map(Into::into).unwrap_or_default(),
            states: self.states.into_iter().map(WireEnum::number).collect(),
            before: Some(moment_to_wire(self.before)),
            limit: self.limit,
        }
    }
}

impl FromWire<v1::DeleteFinishedRequest> for DeleteFinished {
    fn from_wire(wire: v1::DeleteFinishedRequest) -> Result<Self, StoreError> {
        let request = Self {
            namespace: Some(Namespace::new(wire.namespace)?),
            states: states(wire.states)?,
            before: required_moment("before", wire.before)?,
            limit: limit("limit", wire.limit, DEFAULT_PAGE_LIMIT)?,
        };
        request.validate()?;
        Ok(request)
    }
}
