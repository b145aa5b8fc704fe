//! The Postgres backend of kagzi: durable workflows for production, with set-based batches.
