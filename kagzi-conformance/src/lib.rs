//! The suite that decides what a kagzi store is.
