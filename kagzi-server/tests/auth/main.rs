//! Who may come, and what they may do: a server in this process that asks, spoken to over real connections.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands, helpers included")]

mod exposure;
mod pki;
mod support;
mod tls;
mod tokens;
