//! Pages of listings.

use kagzi_core::{Cursor, PageRequest, StoreError};
use kagzi_proto::v1;

use super::field::within;
use super::{FromWire, IntoWire};

/// How many items a page holds if the request does not say.
pub const DEFAULT_PAGE_LIMIT: u32 = 100;

impl IntoWire<v1::PageRequest> for PageRequest {
    fn into_wire(self) -> v1::PageRequest {
        v1::PageRequest { limit: self.limit, cursor: cursor_to_wire(self.cursor) }
    }
}

impl FromWire<v1::PageRequest> for PageRequest {
    fn from_wire(wire: v1::PageRequest) -> Result<Self, StoreError> {
        let limit = if wire.limit == 0 { DEFAULT_PAGE_LIMIT } else { wire.limit };
        let page = Self { limit, cursor: cursor(wire.cursor) };
        page.validate()?;
        Ok(page)
    }
}

/// The page in the field `page`, which may be left out.
pub(super) fn page(wire: Option<v1::PageRequest>) -> Result<PageRequest, StoreError> {
    PageRequest::from_wire(wire.unwrap_or_default())
}

/// A limit where 0 stands for `default`.
pub(super) fn limit(field: &str, wire: u32, default: u32) -> Result<u32, StoreError> {
    let limit = if wire == 0 { default } else { wire };
    super::field::named(field, PageRequest::first(limit).validate().map(|()| limit))
}

pub(super) fn cursor(wire: String) -> Option<Cursor> {
    (!wire.is_empty()).then(|| Cursor::from_text(wire))
}

pub(super) fn cursor_to_wire(cursor: Option<Cursor>) -> String {
    cursor.map(|cursor| cursor.as_str().to_owned()).unwrap_or_default()
}

/// Reads every item of a list, each error with its place in the list.
pub(super) fn items<T: FromWire<M>, M>(field: &str, wire: Vec<M>) -> Result<Vec<T>, StoreError> {
    wire.into_iter()
        .enumerate()
        .map(|(at, message)| within(&format!("{field}[{at}]"), T::from_wire(message)))
        .collect()
}

pub(super) fn items_to_wire<T: IntoWire<M>, M>(items: Vec<T>) -> Vec<M> {
    items.into_iter().map(IntoWire::into_wire).collect()
}
