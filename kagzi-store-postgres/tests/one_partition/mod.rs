//! The guard of the rule that lets a schema be spread over nodes: **every statement names one partition, by a constant, for
//! every table that it touches.** It watches what a suite really sends, so nothing has to be remembered.

#![allow(dead_code, reason = "not each test needs all of it")]

pub mod body;
pub mod rule;
pub mod tasks;

use std::collections::BTreeSet;
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};

/// Under this name the store tells of every statement that it sends.
const TARGET: &str = "kagzi::statements";

fn sent() -> &'static Mutex<BTreeSet<String>> {
    static SENT: OnceLock<Mutex<BTreeSet<String>>> = OnceLock::new();
    SENT.get_or_init(Mutex::default)
}

/// Hears of every statement of this process from now on, and of nothing else.
pub fn watch() {
    struct Watch;

    impl Subscriber for Watch {
        fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
            if metadata.target() == TARGET { Interest::always() } else { Interest::never() }
        }
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.target() == TARGET
        }
        fn max_level_hint(&self) -> Option<LevelFilter> {
            Some(LevelFilter::TRACE)
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, event: &Event<'_>) {
            event.record(&mut Statement);
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    struct Statement;

    impl Visit for Statement {
        fn record_str(&mut self, field: &Field, sql: &str) {
            let mut sent = sent().lock().unwrap_or_else(PoisonError::into_inner);
            if field.name() == "sql" && !sent.contains(sql) {
                sent.insert(sql.to_owned());
            }
        }
        fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
    }

    // Whoever has set another one in this process would hear in our place.
    assert!(tracing::subscriber::set_global_default(Watch).is_ok(), "somebody else watches already");
}

/// What was heard so far, each statement once.
pub fn heard() -> BTreeSet<String> {
    sent().lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Those of the statements that are about rows of ours: not about the schema, the server or a lock.
pub fn of_rows(sql: &str) -> bool {
    let names =
        |word: &str| rule::TABLES.contains(&word) || word.starts_with("kagzi_") && word != "kagzi_schema";
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    // The catalogue knows tables by their names as texts, and so do those who distribute them.
    let by_name = ["pg_class", "pg_proc", "create_distributed_"].iter().any(|word| sql.contains(word));
    !by_name && sql.split(|c| !is_word(c)).any(names)
}

/// The statements that were heard so far and are about rows of ours.
pub fn heard_of_rows() -> Vec<String> {
    heard().into_iter().filter(|sql| of_rows(sql)).collect()
}

/// Why statements that were sent break the rule, one text each; and how many keep it.
pub fn judge() -> (usize, Vec<String>) {
    let (mut kept, mut broken) = (0, Vec::new());
    for sql in heard_of_rows() {
        match rule::check(&sql, rule::From::Store) {
            Ok(_) => kept += 1,
            Err(why) => broken.push(why),
        }
    }
    (kept, broken)
}
