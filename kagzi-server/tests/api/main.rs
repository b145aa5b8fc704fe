//! The protocol from the outside: a server on a free port, spoken to with the raw generated clients,
//! over the reference store, SQLite and Postgres.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands, helpers included")]

mod client_stream;
mod connections;
mod encrypted;
mod errors;
mod every_call;
mod http;
mod lifecycle;
mod pause;
mod raw;
mod stream;
mod support;
mod unheard;
