//! Every saboteur, and what it does to a store.

mod postgres;
mod postgres_claims;
mod postgres_steps;
mod sqlite;
mod sqlite_late;
mod wrapped;
mod wrapped_listing;
mod wrapped_repairs;
mod wrapped_stale;

use std::fmt;
use std::sync::Arc;

use kagzi_conformance::{Filter, Fixture};

use crate::stores::memory::Memory;
use crate::stores::postgres::{Database, Postgres};
use crate::stores::sqlite::{self as files, Sqlite};

/// The stores that are broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The reference store, with a wrapper round it.
    Memory,
    /// SQLite, by SQL.
    Sqlite,
    /// Postgres, by SQL.
    Postgres,
    /// Postgres over seven partitions, by SQL.
    PostgresSpread,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Memory, Self::Sqlite, Self::Postgres, Self::PostgresSpread];

    /// The one that somebody names on the command line; an error is a text for them.
    pub fn parse(name: &str) -> Result<Self, String> {
        match name {
            "memory" => Ok(Self::Memory),
            "sqlite" => Ok(Self::Sqlite),
            "postgres" => Ok(Self::Postgres),
            "postgres-7" => Ok(Self::PostgresSpread),
            _ => Err(format!("--store: expected memory, sqlite, postgres or postgres-7; got {name:?}")),
        }
    }

    /// The store as it is.
    pub fn unbroken(self, database: &Database) -> Arc<dyn Fixture> {
        let postgres = |partitions| {
            Arc::new(Postgres::new(database, crate::stores::postgres::Tampering::None, partitions))
        };
        match self {
            Self::Memory => Arc::new(Memory::unbroken()),
            Self::Sqlite => Arc::new(Sqlite(files::Tampering::None)),
            Self::Postgres => postgres(1),
            Self::PostgresSpread => postgres(7),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Memory => "memory",
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
            Self::PostgresSpread => "postgres, 7",
        })
    }
}

/// A store with one bug.
#[derive(Clone, Debug)]
pub struct Saboteur {
    /// The bug, as a sentence.
    pub name: &'static str,
    /// The store it is in.
    pub kind: Kind,
    /// Parts of the names of the cases that are there to catch it.
    pub meant: &'static [&'static str],
    /// The broken store.
    pub fixture: Arc<dyn Fixture>,
}

impl Saboteur {
    /// What it is called where those of other stores stand too.
    pub fn key(&self) -> String {
        format!("{}: {}", self.kind, self.name)
    }

    /// Whether the case of this full name is there to catch it.
    pub fn is_meant_for(&self, case: &str) -> bool {
        self.meant.iter().any(|part| case.contains(part))
    }

    /// Whether its bug is that it does not answer, so that a case which never ends has caught it.
    pub fn hangs(&self) -> bool {
        HANGING.contains(&(self.kind, self.name))
    }

    /// The cases that are there to catch it.
    pub fn filter(&self) -> Filter {
        Filter { containing: self.meant.iter().map(ToString::to_string).collect(), ..Filter::default() }
    }
}

/// Saboteurs whose very bug is that somebody waits for ever. Of any other a case that never ends says
/// nothing: it may be the machine.
const HANGING: [(Kind, &str); 0] = [];

/// How the names of cases begin that play at random. They find much of what the others find, but by luck and
/// without saying its rule, so they take away from no case what it catches alone.
pub const RANDOM: [&str; 4] = ["fault::random_", "fault::workflows_", "history::", "model::"];

/// Whether a case, by its full name, plays at random.
pub fn is_random(case: &str) -> bool {
    RANDOM.iter().any(|beginning| case.starts_with(beginning))
}

/// Every saboteur.
pub fn all(database: &Database) -> Vec<Saboteur> {
    let mut all = wrapped::saboteurs();
    all.extend(wrapped_listing::saboteurs());
    all.extend(wrapped_stale::saboteurs());
    all.extend(wrapped_repairs::saboteurs());
    all.extend(sqlite::saboteurs());
    all.extend(sqlite_late::saboteurs());
    all.extend(postgres_steps::saboteurs(database));
    all.extend(postgres::saboteurs(database));
    all
}

#[cfg(test)]
mod tests {
    use kagzi_conformance::all_cases;

    use super::*;

    #[test]
    fn names_are_unique_within_a_store() {
        let all = all(&Database::default());
        let mut names: Vec<_> = all.iter().map(|one| (one.kind, one.name)).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.len());
    }

    #[test]
    fn every_saboteur_that_is_said_to_hang_exists() {
        let all = all(&Database::default());
        let named = HANGING.iter().filter(|named| all.iter().any(|one| (one.kind, one.name) == **named));
        assert_eq!(named.count(), HANGING.len());
        assert_eq!(all.iter().filter(|one| one.hangs()).count(), HANGING.len());
    }

    #[test]
    fn there_are_forty_and_half_of_them_are_at_the_level_of_sql() {
        let all = all(&Database::default());
        let by_sql = all.iter().filter(|one| one.kind != Kind::Memory).count();
        assert!(all.len() >= 40, "{}", all.len());
        assert!(by_sql * 2 >= all.len(), "{by_sql} of {}", all.len());
    }

    #[test]
    fn every_case_that_a_saboteur_is_meant_for_exists() {
        let names: Vec<String> = all_cases().iter().map(kagzi_conformance::Case::full_name).collect();
        for saboteur in all(&Database::default()) {
            for meant in saboteur.meant {
                assert!(names.iter().any(|name| name.contains(meant)), "{}: {meant}", saboteur.name);
            }
        }
    }
}
