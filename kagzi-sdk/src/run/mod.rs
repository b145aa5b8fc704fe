//! The execution of one run: what its code asks for, what is written for it, and how it ends.

mod control;
mod driver;
pub(crate) mod ends;
pub(crate) mod journal;
mod naming;
mod writes;

pub(crate) use control::{Control, WhyLost};
pub(crate) use driver::Driver;
pub(crate) use ends::Ended;
pub(crate) use writes::Writes;
