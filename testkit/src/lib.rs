//! Where tests get a real Postgres and real kagzi processes from.
