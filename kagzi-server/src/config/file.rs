//! The TOML file.

use std::path::Path;

use super::mistake::{Values, mistake};
use super::{ConfigError, Settings};

/// Reads the settings of a file. Unknown keys are refused with the known ones.
pub(super) fn read(path: &Path) -> Result<Settings, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(path, &text)
}

pub(super) fn parse(path: &Path, text: &str) -> Result<Settings, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let (line, message) = mistake(text, error, Values::Harmless);
        ConfigError::Parse { path: path.to_owned(), line, message }
    })
}
