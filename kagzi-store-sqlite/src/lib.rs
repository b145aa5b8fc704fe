//! The SQLite backend of kagzi: durable workflows in one file, with group commit.
