//! Who may come, and what they may do: a server in this process that asks, spoken to over real connections.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands, helpers included")]

mod audit;
mod bytes;
mod every_call;
mod exposure;
mod guesses;
mod jwt;
mod pipes;
mod pki;
mod roles;
mod strangers;
mod streams;
mod support;
mod tls;
mod tokens;
