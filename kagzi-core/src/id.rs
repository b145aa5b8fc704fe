//! The ids that kagzi gives: runs, operations, and the partition a run belongs to.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};
use uuid::{Uuid, Variant};

use crate::error::StoreError;
use crate::name::{IdempotencyKey, Namespace};

/// Names one write of one caller. A caller that did not hear the answer sends the write again under
/// the same id and gets the first answer, with no second effect (invariant 8).
///
/// It stands for that write of **its run** (of a start: in its namespace; of a pause: on its queue): under the id of
/// another run's write a write is a new one, with an answer of its own.
///
/// Made with [`OperationId::generate`], it is a `UUIDv7`. The id of a start must be one, since the
/// run's id takes its time from it; other operations accept any UUID.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OperationId(Uuid);

impl OperationId {
    /// A new id, later in order than the ones before it.
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// A new id for a start. Starts that come one soon after another in one process, at most 64 within 25 milliseconds,
    /// get the same routing bits: runs without a key that come together lie in one partition and go on together, in
    /// common batches. Over time they spread over all.
    pub fn for_start() -> Self {
        static ROUTE: Mutex<Route> = Mutex::new(Route { bits: [0; 2], since_millis: 0, left: 0 });
        let mut bytes = Uuid::now_v7().into_bytes();
        let millis = bytes[..6].iter().fold(0, |millis, byte| millis << 8 | u64::from(*byte));
        // It is never left half changed, so a panic elsewhere does not spoil it.
        let mut route = ROUTE.lock().unwrap_or_else(PoisonError::into_inner);
        let bits = route.next(millis, [bytes[14], bytes[15]]);
        drop(route);
        bytes[14..16].copy_from_slice(&bits);
        Self(Uuid::from_bytes(bytes))
    }

    /// An id that came from outside.
    pub const fn from_uuid(id: Uuid) -> Self {
        Self(id)
    }

    /// The id as a UUID.
    pub const fn as_uuid(self) -> Uuid {
        self.0
    }
}

/// How many starts share their routing bits, at most.
const TOGETHER: u32 = 64;

/// How long after the first of them, at most.
const TOGETHER_MILLIS: u64 = 25;

/// The routing bits that the starts of a process get now.
struct Route {
    bits: [u8; 2],
    /// When they were chosen.
    since_millis: u64,
    /// For how many more starts they hold.
    left: u32,
}

impl Route {
    fn next(&mut self, now_millis: u64, fresh: [u8; 2]) -> [u8; 2] {
        // A clock that was set back begins anew.
        let is_over = now_millis.checked_sub(self.since_millis).is_none_or(|age| age >= TOGETHER_MILLIS);
        if is_over || self.left == 0 {
            *self = Self { bits: fresh, since_millis: now_millis, left: TOGETHER };
        }
        self.left -= 1;
        self.bits
    }
}

/// Names one run. It carries its creation time in front (`UUIDv7`, so that new rows are neighbours
/// in every index) and **routing bits** in its last two bytes, from which anyone can compute the
/// [`partition`](RunId::partition) the run lives in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(Uuid);

impl RunId {
    /// Before every run id, for ranges.
    pub(crate) const MIN: Self = Self(Uuid::nil());
    /// After every run id, for ranges.
    pub(crate) const MAX: Self = Self(Uuid::max());

    /// The id of the run that the start `operation` makes.
    ///
    /// The id is a function of the start: sent again, the same operation names the same run, so a
    /// lost reply cannot start a second one. The namespace is part of the digest, so nobody can aim
    /// at a run of another namespace. With a key, the routing bits come from (namespace, key), which
    /// keeps the unique index on keys inside one partition.
    pub fn for_start(namespace: &Namespace, operation: OperationId, key: Option<&IdempotencyKey>) -> Self {
        let digest = Sha256::new()
            .chain_update(b"kagzi run\0")
            .chain_update(namespace.as_str())
            .chain_update([0])
            .chain_update(operation.0.as_bytes())
            .finalize();
        let mut bytes = *operation.0.as_bytes();
        bytes[6..14].copy_from_slice(&digest[..8]);
        bytes[6] = (bytes[6] & 0x0f) | 0x70;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        if let Some(key) = key {
            let route = Sha256::new()
                .chain_update(b"kagzi key\0")
                .chain_update(namespace.as_str())
                .chain_update([0])
                .chain_update(key.as_str())
                .finalize();
            bytes[14..16].copy_from_slice(&route[..2]);
        }
        Self(Uuid::from_bytes(bytes))
    }

    /// An id read back from a store or from the wire.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] if it is not a `UUIDv7`.
    pub fn from_uuid(id: Uuid) -> Result<Self, StoreError> {
        check_v7("run_id", id).map(|()| Self(id))
    }

    /// The id as a UUID.
    pub const fn as_uuid(self) -> Uuid {
        self.0
    }

    /// The partition of this run where a schema has `partitions` of them: routing bits modulo
    /// `partitions`. One partition, or none, is partition 0.
    pub fn partition(self, partitions: u16) -> u16 {
        let bytes = self.0.as_bytes();
        u16::from_be_bytes([bytes[14], bytes[15]]) % partitions.max(1)
    }
}

/// Checks that the operation id of a start is a `UUIDv7`.
pub(crate) fn check_v7(field: &'static str, id: Uuid) -> Result<(), StoreError> {
    if id.get_version_num() == 7 && id.get_variant() == Variant::RFC4122 {
        Ok(())
    } else {
        Err(StoreError::InvalidArgument {
            field: field.to_owned(),
            expected: "a UUIDv7, such as 019ab3f0-2f5e-7c41-a8f2-0d7f3f6b9c11".to_owned(),
            got: format!("{id}, a UUID of version {}", id.get_version_num()),
        })
    }
}

fn parse(field: &'static str, text: &str) -> Result<Uuid, StoreError> {
    Uuid::try_parse(text).map_err(|_| StoreError::InvalidArgument {
        field: field.to_owned(),
        expected: "a UUID, such as 019ab3f0-2f5e-7c41-a8f2-0d7f3f6b9c11".to_owned(),
        got: text.chars().filter(|c| !c.is_control()).take(64).collect(),
    })
}

impl std::str::FromStr for RunId {
    type Err = StoreError;
    fn from_str(text: &str) -> Result<Self, StoreError> {
        Self::from_uuid(parse("run_id", text)?)
    }
}

impl std::str::FromStr for OperationId {
    type Err = StoreError;
    fn from_str(text: &str) -> Result<Self, StoreError> {
        parse("operation_id", text).map(Self)
    }
}

macro_rules! shown_as_uuid {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    )*};
}
shown_as_uuid!(RunId, OperationId);

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Namespace {
        Namespace::new(text).unwrap()
    }

    #[test]
    fn one_start_names_one_run_and_another_namespace_another() {
        let operation = OperationId::generate();
        let a = RunId::for_start(&name("a"), operation, None);
        assert_eq!(a, RunId::for_start(&name("a"), operation, None));
        assert_ne!(a, RunId::for_start(&name("b"), operation, None));
        assert!(RunId::from_uuid(a.as_uuid()).is_ok(), "it is a UUIDv7");
        assert_eq!(a.as_uuid().as_bytes()[..6], operation.as_uuid().as_bytes()[..6]);
    }

    #[test]
    fn starts_that_come_together_share_their_partition_for_a_while() {
        let mut route = Route { bits: [0; 2], since_millis: 0, left: 0 };
        let mut next = |now_millis, fresh| route.next(now_millis, [fresh, 0])[0];
        assert_eq!([next(100, 1), next(100, 2), next(100 + TOGETHER_MILLIS - 1, 3)], [1, 1, 1]);
        assert_eq!([next(100 + TOGETHER_MILLIS, 4), next(101 + TOGETHER_MILLIS, 5)], [4, 4], "too late");
        assert_eq!([next(90, 6), next(91, 7)], [6, 6], "the clock was set back");
        let as_many: Vec<u8> = (2..TOGETHER).map(|_| next(92, 8)).collect();
        assert_eq!(as_many, vec![6; as_many.len()]);
        assert_eq!(next(92, 9), 9, "too many");
    }

    #[test]
    fn the_routing_bits_of_a_start_without_a_key_are_those_of_its_run() {
        let operation = OperationId::for_start();
        let run = RunId::for_start(&name("a"), operation, None);
        assert_eq!(run.as_uuid().as_bytes()[14..], operation.as_uuid().as_bytes()[14..]);
        assert!(check_v7("operation_id", operation.as_uuid()).is_ok());
    }

    #[test]
    fn one_key_lives_in_one_partition() {
        let key = IdempotencyKey::new("order-1").unwrap();
        let partition = |_| RunId::for_start(&name("a"), OperationId::generate(), Some(&key)).partition(7);
        let first = partition(0);
        assert!((1..50).map(partition).all(|p| p == first));
    }

    #[test]
    fn runs_without_key_spread_over_the_partitions() {
        let mut seen = [0_u32; 7];
        for _ in 0..7000 {
            let id = RunId::for_start(&name("a"), OperationId::generate(), None);
            seen[usize::from(id.partition(7))] += 1;
        }
        assert!(seen.iter().all(|n| (800..1200).contains(n)), "{seen:?}");
    }
}
