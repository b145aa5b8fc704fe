//! The protocol from the outside: a server on a free port, spoken to with the raw generated clients,
//! over the reference store and over SQLite.

mod errors;
mod every_call;
mod lifecycle;
mod support;
