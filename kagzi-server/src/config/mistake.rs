//! What is wrong with a TOML file, in words for people: which key, what was expected, what came.
//!
//! What came is told without its value where the value could be a secret.

/// Whether values of a file may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Values {
    /// None: any of them may be a secret in the wrong place.
    Hidden,
    /// Short ones that look like no URL and no secret.
    Harmless,
}

/// The longest value that is repeated, in bytes.
const MAX_SHOWN_BYTES: usize = 32;

/// The line of `text` that is at fault, from 1, and what is wrong with it.
pub(crate) fn mistake(text: &str, mut error: toml::de::Error, values: Values) -> (usize, String) {
    let at = error.span().map_or(0, |span| span.start);
    let line = 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
    // Without the text of the file, the error tells the key instead of quoting the line.
    error.set_input(None);
    let told = error.to_string();
    let key = told.trim_end().rsplit_once("\nin `").and_then(|(_, key)| key.strip_suffix('`'));
    let message = for_people(error.message(), values);
    let message = match key {
        // An unknown key is in the message already.
        Some(key)
            if is_shown(last(key), Values::Harmless) && !error.message().starts_with("unknown field") =>
        {
            format!("{key}: {message}")
        }
        _ => message,
    };
    (line, message)
}

fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// A message of the parser without values that are not to be shown, with the names of Rust's types as people call
/// them.
fn for_people(message: &str, values: Values) -> String {
    let Some((said, expected)) = split(message) else {
        // The parser's own words about the form, or those of a type about a value, which they quote.
        return match (message.find('"'), message.rfind('"')) {
            (Some(from), Some(to)) if !is_shown(message.get(from + 1..to).unwrap_or_default(), values) => {
                format!("{}what may be a password, and is not repeated", &message[..from])
            }
            _ => message.to_owned(),
        };
    };
    let expected = match expected {
        "u32" | "usize" => "a whole number, 0 or more",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a string" => "a text in quotes",
        "a sequence" => "a list of texts in square brackets",
        other => other,
    };
    let said = match said.split_once(['"', '`']) {
        // A key is no value, but who confuses the two would show it.
        Some((before, rest)) => {
            let shown = if before.starts_with("unknown field") { Values::Harmless } else { values };
            let value = rest.trim_end_matches(['"', '`']);
            if is_shown(value, shown) { said.to_owned() } else { before.trim_end().to_owned() }
        }
        None => said.to_owned(),
    };
    format!("{said}, expected {expected}")
}

/// What was found, and what was expected instead.
fn split(message: &str) -> Option<(&str, &str)> {
    // The value may hold anything, also the words between the two; what was expected holds no text of the file.
    message.rsplit_once(", expected ")
}

fn is_shown(value: &str, values: Values) -> bool {
    let secret = value.contains(['@', '/']) || value.to_ascii_lowercase().starts_with("kagzi_");
    values == Values::Harmless && value.len() <= MAX_SHOWN_BYTES && !secret
}
