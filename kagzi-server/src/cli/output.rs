//! The only place that writes to the standard output: one JSON value for programs, tables for people.

use std::fmt;
use std::io::{self, IsTerminal as _, Write};

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use serde::Serialize;

use super::error::CliError;

/// Whom a command talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Tables and sentences.
    People,
    /// One JSON value on the standard output, with stable field names.
    Programs,
}

/// Writes what a command has to say.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    audience: Audience,
}

impl Output {
    /// An output for `audience`.
    pub const fn new(audience: Audience) -> Self {
        Self { audience }
    }

    /// Whom it talks to.
    pub const fn audience(self) -> Audience {
        self.audience
    }

    /// Programs get `value`, people what `text` makes of it.
    ///
    /// # Errors
    ///
    /// If the standard output cannot be written, except that nobody reads it any more.
    pub fn show<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), CliError> {
        match self.audience {
            Audience::People => print(&text(value)),
            Audience::Programs => print(&pretty_json(value)?),
        }
    }

    /// A remark beside the result, for people only, on the standard error.
    pub fn note(self, remark: impl fmt::Display) {
        if self.audience == Audience::People {
            complain(remark);
        }
    }
}

/// `value` as JSON, readable.
///
/// # Errors
///
/// If it cannot be written as JSON.
pub fn pretty_json<T: Serialize>(value: &T) -> Result<String, CliError> {
    serde_json::to_string_pretty(value)
        .map_err(|why| CliError::failed("could not write the answer as JSON", why))
}

/// Writes a line, or several, to the standard output. `head` and the like may close it early: that is
/// their way of saying that they have enough.
///
/// # Errors
///
/// If it cannot be written for any other reason.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(CliError::failed("could not write the answer", error))
        }
        _ => Ok(()),
    }
}

/// Writes a line to the standard error. Where even that fails there is nobody left to tell.
pub fn complain(text: impl fmt::Display) {
    let _nobody_left_to_tell = writeln!(io::stderr().lock(), "{text}").is_ok();
}

/// A table with a header. On a terminal it has lines and fits the width, but never breaks the first
/// column, which is what people copy; elsewhere it is plain columns, one row a line.
pub fn table<const COLUMNS: usize>(
    header: [&str; COLUMNS],
    rows: impl IntoIterator<Item = [String; COLUMNS]>,
) -> String {
    let mut table = Table::new();
    table.set_header(header);
    table.add_rows(rows.into_iter().map(|row| row.map(|cell| one_line(&cell))));
    if io::stdout().is_terminal() {
        table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_constraints([ColumnConstraint::ContentWidth]);
    } else {
        plain(&mut table);
    }
    table.trim_fmt()
}

/// Names and values, one pair a line.
pub fn pairs(pairs: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let mut table = Table::new();
    table.add_rows(pairs.into_iter().map(|(name, value)| [name.to_owned(), one_line(&value)]));
    plain(&mut table);
    table.trim_fmt()
}

fn plain(table: &mut Table) {
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    for column in table.column_iter_mut() {
        column.set_padding((0, 1));
    }
}

/// Texts come from outside: nothing in them may break the line or drive the terminal.
pub fn one_line(text: &str) -> String {
    let mut harmless = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            harmless.extend(character.escape_default());
        } else {
            harmless.push(character);
        }
    }
    harmless
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_table_is_one_row_a_line() {
        let text = table(["RUN", "STATE"], [["1".to_owned(), "line\nbreak\u{1b}[31m".to_owned()]]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[1].contains("line\\nbreak\\u{1b}[31m"));
    }
}
