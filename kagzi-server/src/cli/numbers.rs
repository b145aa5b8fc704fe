//! Which numbers a field takes: the parsers of numbers only say that a digit is none.

use std::num::{IntErrorKind, ParseFloatError, ParseIntError};

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// `error` with what was expected, if it is about a text that is no number; else nothing.
pub fn refusal(command: &mut Command, error: &clap::Error) -> Option<clap::Error> {
    if error.kind() != ErrorKind::ValueValidation {
        return None;
    }
    let expected = expected(std::error::Error::source(error)?)?;
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let (field, value) = (text(ContextKind::InvalidArg)?, text(ContextKind::InvalidValue)?);
    let told = format!("invalid value '{value}' for '{field}': expected {expected}");
    Some(command.error(ErrorKind::ValueValidation, told))
}

fn expected(why: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    if why.is::<ParseFloatError>() {
        return Some("a number, such as 2 or 0.5");
    }
    match why.downcast_ref::<ParseIntError>()?.kind() {
        IntErrorKind::PosOverflow => Some("a smaller whole number"),
        _ => Some("a whole number, 0 or more, such as 100"),
    }
}
