//! The TOML file.

use std::path::Path;

use super::{ConfigError, Settings};

/// Reads the settings of a file. Unknown keys are refused with the known ones.
pub(super) fn read(path: &Path) -> Result<Settings, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(path, &text)
}

pub(super) fn parse(path: &Path, text: &str) -> Result<Settings, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let line = 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        ConfigError::Parse { path: path.to_owned(), line, message: message(error) }
    })
}

/// What is wrong, after the key it is wrong with.
fn message(mut error: toml::de::Error) -> String {
    // Without the text of the file, the error tells the key instead of quoting the line.
    error.set_input(None);
    let told = error.to_string();
    let key = told.trim_end().rsplit_once("\nin `").and_then(|(_, key)| key.strip_suffix('`'));
    let message = for_people(error.message());
    match key {
        // An unknown key is in the message already.
        Some(key) if !message.contains(&format!("`{key}`")) => format!("{key}: {message}"),
        _ => message,
    }
}

/// A message of the parser with the names of Rust's types as people call them.
fn for_people(message: &str) -> String {
    let Some((said, expected)) = message.rsplit_once(", expected ") else { return message.to_owned() };
    let expected = match expected {
        "u32" | "usize" => "a whole number, 0 or more",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a string" => "a text in quotes",
        "a sequence" => "a list of texts in square brackets",
        other => other,
    };
    format!("{said}, expected {expected}")
}
