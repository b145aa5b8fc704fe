//! The tables: what is kept, and by which keys it is found.
//!
//! redb keeps each table as a B-tree in the order of its key, compared element by element. So a
//! secondary index is a table of its own whose key begins with what is looked for and ends with the run
//! id, and "the next due run" is the first entry of a range.

use std::ops::Range;

use kagzi_core::{OperationId, RunId, Timestamp};
use redb::{Table, TableDefinition, WriteTransaction};

use crate::error::Result;

/// The number of the layout below: 2 has queues that can be paused. A file with a larger one was written
/// by a newer program.
pub(crate) const VERSION: u64 = 2;

/// A run id as a number: the order of the numbers is the order of the ids.
pub(crate) type Id = u128;
/// A moment in microseconds.
pub(crate) type Micros = i64;
/// Content type and bytes.
pub(crate) type PayloadRow = (&'static str, &'static [u8]);
/// Reason and moment of a pause, operations, when it was made and changed.
pub(crate) type QueueValue = (Option<(&'static str, Micros)>, &'static str, Micros, Micros);
/// Run, position, step, number: the order in which histories are listed.
pub(crate) type AttemptKey = (Id, u32, &'static str, u32);
/// The attempt without its output, and the output.
pub(crate) type AttemptRow = (&'static [u8], Option<PayloadRow>);

pub(crate) fn id(run_id: RunId) -> Id {
    run_id.as_uuid().as_u128()
}

pub(crate) fn operation(operation: OperationId) -> u128 {
    operation.as_uuid().as_u128()
}

pub(crate) fn micros(moment: Timestamp) -> Micros {
    moment.as_micros()
}

/// The keys of all attempts of a run.
pub(crate) fn attempts_of(run_id: RunId) -> Range<(Id, u32, &'static str, u32)> {
    (id(run_id), 0, "", 0)..(id(run_id).saturating_add(1), 0, "", 0)
}

macro_rules! tables {
    ($($(#[$doc:meta])* $field:ident, $constant:ident: $key:ty => $value:ty;)*) => {
        $($(#[$doc])* pub(crate) const $constant: TableDefinition<$key, $value> =
            TableDefinition::new(stringify!($field));)*

        /// Every table, open for writing.
        pub(crate) struct Tables<'txn> {
            $($(#[$doc])* pub(crate) $field: Table<'txn, $key, $value>,)*
        }

        impl<'txn> Tables<'txn> {
            /// Opens every table, and makes those that do not exist.
            pub(crate) fn open(transaction: &'txn WriteTransaction) -> Result<Self> {
                Ok(Self { $($field: transaction.open_table($constant)?,)* })
            }
        }
    };
}

tables! {
    /// Facts about the file; `version` is the number of this layout.
    meta, META: &'static str => u64;

    /// Runs without their payloads: the hot rows.
    runs, RUNS: Id => &'static [u8];
    /// What runs were started with.
    inputs, INPUTS: Id => PayloadRow;
    /// What runs completed with.
    outputs, OUTPUTS: Id => PayloadRow;
    /// The history.
    attempts, ATTEMPTS: AttemptKey => AttemptRow;
    /// Where the attempts of a step are: its position, and the number of the latest.
    steps, STEPS: (Id, &'static str) => (u32, u32);
    /// The recorded answers of operations.
    answers, ANSWERS: (Id, u128) => &'static str;
    /// Queues that were paused or resumed: why and since when they are paused, the last operations on them,
    /// when the row was made and changed.
    queues, QUEUES: (&'static str, &'static str) => QueueValue;

    /// The run of an idempotency key.
    keys, KEYS: (&'static str, &'static str) => Id;
    /// PENDING runs of a queue in the order of claims, with their type.
    ready, READY: (&'static str, &'static str, i64, Id) => &'static str;
    /// Live runs of a queue by state and due time: how full queues are.
    live, LIVE: (&'static str, &'static str, &'static str, Micros, Id) => ();
    /// RUNNING runs by the claim that holds them.
    held, HELD: (u128, Id) => ();
    /// Runs by the moment at which time changes them.
    attention, ATTENTION: (Micros, Id) => ();
    /// The same within a queue, for claims.
    queue_attention, QUEUE_ATTENTION: (&'static str, &'static str, Micros, Id) => ();
    /// Runs of a namespace by age.
    created, CREATED: (&'static str, Micros, Id) => ();
    /// Finished runs by when they finished, with their namespace.
    finished, FINISHED: (Micros, Id) => &'static str;
    /// RUNNING attempts, to be abandoned when the lease ends.
    open_attempts, OPEN_ATTEMPTS: AttemptKey => ();
    /// RUNNING attempts that have a timeout, by the moment when it passes.
    deadlines, DEADLINES: (Micros, Id, u32, &'static str, u32) => ();
}
