//! How values are written on the command line.

use std::io::Read as _;
use std::time::Duration;

use kagzi_core::{ContentType, Labels, Payload, RunState};

use super::error::CliError;

/// A duration such as `250ms`, `30s`, `5m`, `1h30m`, `2d`.
///
/// # Errors
///
/// A text that says what was expected.
pub fn duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, u64); 6] = [
        ("us", 1),
        ("ms", 1_000),
        ("s", 1_000_000),
        ("m", 60_000_000),
        ("h", 3_600_000_000),
        ("d", 86_400_000_000),
    ];
    let refuse = || format!("expected a duration such as 250ms, 30s, 5m, 1h30m or 2d, got {text:?}");
    let mut rest = text;
    let mut micros: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(refuse)?;
        let (count, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(refuse)?;
        let count: u64 = count.parse().map_err(|_| refuse())?;
        micros = count.checked_mul(*factor).and_then(|part| micros.checked_add(part)).ok_or_else(refuse)?;
        rest = tail;
    }
    if text.is_empty() { Err(refuse()) } else { Ok(Duration::from_micros(micros)) }
}

/// A label, `key=value`.
///
/// # Errors
///
/// A text that says what was expected.
pub fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("expected key=value, such as team=billing, got {text:?}"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Labels as they were given, a later one of the same key in place of an earlier one.
///
/// # Errors
///
/// If one is outside the rule of labels.
pub fn labels(given: Vec<(String, String)>) -> Result<Labels, CliError> {
    Labels::new(given.into_iter().collect()).map_err(|why| CliError::usage("could not read --label", why))
}

/// A run state in any case.
///
/// # Errors
///
/// A text that lists the states.
pub fn state(text: &str) -> Result<RunState, String> {
    RunState::ALL.into_iter().find(|state| state.as_str().eq_ignore_ascii_case(text)).ok_or_else(|| {
        let names = RunState::ALL.map(|state| state.as_str().to_ascii_lowercase());
        format!("expected one of {}, got {text:?}", names.join(", "))
    })
}

/// Reads `--input`: JSON as it stands, `@file`, or `-` for the standard input. A file may hold anything;
/// what kind it is is said by `content_type`, or else found by looking whether it is JSON.
///
/// # Errors
///
/// If it cannot be read, or is written out and not JSON.
pub fn payload(input: &str, content_type: Option<&ContentType>) -> Result<Payload, CliError> {
    let what = "could not read --input";
    let bytes = if input == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes).map_err(|why| CliError::failed(what, why))?;
        bytes
    } else if let Some(path) = input.strip_prefix('@') {
        std::fs::read(path).map_err(|why| {
            CliError::usage(what, format!("{path}: {why}")).remedy("name a file that can be read after the @")
        })?
    } else {
        input.as_bytes().to_vec()
    };
    let json = serde_json::from_slice::<serde::de::IgnoredAny>(&bytes);
    match (content_type, json) {
        (Some(content_type), _) => Ok(Payload::new(content_type.clone(), bytes)),
        (None, Ok(_)) => Ok(Payload::json(bytes)),
        (None, Err(_)) if input == "-" || input.starts_with('@') => Ok(Payload::raw(bytes)),
        (None, Err(why)) => Err(CliError::usage(what, format!("it is not JSON: {why}")).remedy(
            r#"write text as '"text"', or name a file as @path, or say what it is with --content-type"#,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_units() {
        let good =
            [("0s", 0), ("250ms", 250_000), ("1h30m", 5_400_000_000), ("2d", 172_800_000_000), ("7us", 7)];
        for (text, micros) in good {
            assert_eq!(duration(text).unwrap(), Duration::from_micros(micros), "{text}");
        }
        for text in ["", "5", "s", "-1s", "1.5s", "1 s", "5x", "99999999999999d", "1h30"] {
            assert!(duration(text).unwrap_err().contains("expected a duration"), "{text}");
        }
    }

    #[test]
    fn labels_keep_everything_after_the_first_sign() {
        assert_eq!(label("a=b=c").unwrap(), ("a".to_owned(), "b=c".to_owned()));
        assert_eq!(label("a=").unwrap(), ("a".to_owned(), String::new()));
        assert!(label("a").is_err());
    }

    #[test]
    fn states_are_known_in_any_case() {
        assert_eq!(state("failed").unwrap(), RunState::Failed);
        assert_eq!(state("PENDING").unwrap(), RunState::Pending);
        assert!(state("done").unwrap_err().contains("completed"));
    }

    #[test]
    fn an_input_is_json_unless_it_says_otherwise() {
        assert_eq!(payload(r#"{"a":1}"#, None).unwrap().content_type, ContentType::json());
        assert_eq!(payload("text", None).unwrap_err().exit, super::super::error::Exit::Usage);
        let plain = ContentType::new("text/plain").unwrap();
        assert_eq!(&payload("text", Some(&plain)).unwrap().bytes[..], b"text");
    }

    #[test]
    fn a_file_goes_in_to_the_byte() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"\0\xff").unwrap();
        let read = payload(&format!("@{}", file.path().display()), None).unwrap();
        assert_eq!((&read.bytes[..], read.content_type), (&b"\0\xff"[..], ContentType::bytes()));
        assert!(payload("@/no/such/file", None).unwrap_err().to_string().contains("/no/such/file"));
    }
}
