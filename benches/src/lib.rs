//! Criterion benches: the same code over every backend.
