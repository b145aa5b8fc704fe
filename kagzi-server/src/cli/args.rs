//! How values are written on the command line.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::time::Duration;

use kagzi_core::{ContentType, Labels, Payload, RunState, TraceContext};
use kagzi_server::config::{Length, NotALength};

use super::error::CliError;

/// A duration such as `250ms`, `30s`, `5m`, `1h30m`, `2d`.
///
/// # Errors
///
/// A text that says what was expected.
pub fn duration(text: &str) -> Result<Duration, NotALength> {
    text.parse::<Length>().map(Duration::from)
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

/// Labels as they were given, each key once: of two values nobody can tell which one was meant.
///
/// # Errors
///
/// If a key is given twice, or a label is outside the rule of labels.
pub fn labels(given: &[(String, String)]) -> Result<Labels, CliError> {
    let refuse = |why: &dyn fmt::Display| CliError::usage("could not read --label", why);
    let mut labels = BTreeMap::new();
    for (key, value) in given {
        if labels.insert(key.clone(), value.clone()).is_some() {
            return Err(refuse(&format_args!("{key:?} is given twice")).remedy("give each key once"));
        }
    }
    Labels::new(labels).map_err(|why| refuse(&why))
}

/// The trace that a run is to continue: what was said, or else what the variables `TRACEPARENT` and
/// `TRACESTATE` say, by which programs in a shell pass it on. A variable that is none counts for nothing, as
/// the standard has it.
pub fn trace_context(said: Option<&str>) -> Option<String> {
    let variable = |name| std::env::var(name).ok();
    let (parent, state) = match said {
        Some(said) => (Some(said.to_owned()), None),
        None => (variable("TRACEPARENT"), variable("TRACESTATE")),
    };
    TraceContext::of_headers(&parent?, state.as_deref()).map(|context| context.to_string())
}

/// A `traceparent` as W3C has it.
///
/// # Errors
///
/// A text that says what was expected.
pub fn traceparent(text: &str) -> Result<String, String> {
    match TraceContext::of_headers(text, None) {
        Some(_) => Ok(text.to_owned()),
        None => {
            Err("expected one such as 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned())
        }
    }
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
/// If it cannot be read, or is written out or said to be JSON, and is not.
pub fn payload(input: &str, content_type: Option<&ContentType>) -> Result<Payload, CliError> {
    let (bytes, origin) = read_input(input)?;
    let json = serde_json::from_slice::<serde::de::IgnoredAny>(&bytes);
    match (content_type, json) {
        (Some(said), Err(why)) if *said == ContentType::json() => {
            Err(CliError::usage(UNREADABLE_INPUT, format!("it is not JSON, as --content-type says: {why}"))
                .remedy("mend it, or say what it is with --content-type"))
        }
        (Some(said), _) => Ok(Payload::new(said.clone(), bytes)),
        (None, Ok(_)) => Ok(Payload::json(bytes)),
        (None, Err(_)) if origin == Origin::Elsewhere => Ok(Payload::raw(bytes)),
        (None, Err(why)) => Err(CliError::usage(UNREADABLE_INPUT, format!("it is not JSON: {why}")).remedy(
            r#"write text as '"text"', or name a file as @path, or say what it is with --content-type"#,
        )),
    }
}

const UNREADABLE_INPUT: &str = "could not read --input";

/// Where an input was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// On the command line itself.
    CommandLine,
    /// In a file or the standard input.
    Elsewhere,
}

fn read_input(input: &str) -> Result<(Vec<u8>, Origin), CliError> {
    if input == "-" {
        let mut bytes = Vec::new();
        let read = std::io::stdin().lock().read_to_end(&mut bytes);
        read.map_err(|why| CliError::failed(UNREADABLE_INPUT, format!("the standard input: {why}")))?;
        return Ok((bytes, Origin::Elsewhere));
    }
    let Some(path) = input.strip_prefix('@') else {
        return Ok((input.as_bytes().to_vec(), Origin::CommandLine));
    };
    let bytes = std::fs::read(path).map_err(|why| {
        CliError::usage(UNREADABLE_INPUT, format!("{path:?}: {why}"))
            .remedy("name a file that can be read after the @")
    })?;
    Ok((bytes, Origin::Elsewhere))
}

#[cfg(test)]
mod tests {
    use super::super::error::Exit;
    use super::*;

    #[test]
    fn labels_keep_everything_after_the_first_sign() {
        assert_eq!(label("a=b=c").unwrap(), ("a".to_owned(), "b=c".to_owned()));
        assert_eq!(label("a=").unwrap(), ("a".to_owned(), String::new()));
        assert!(label("a").is_err());
    }

    #[test]
    fn a_label_key_is_given_once() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(labels(&[pair("a", "b"), pair("c", "b")]).unwrap().as_map().len(), 2);
        let twice = labels(&[pair("a", "b"), pair("a", "b")]).unwrap_err();
        assert!(twice.exit == Exit::Usage && twice.why.contains("\"a\" is given twice"), "{twice}");
        assert!(labels(&[pair("", "b")]).unwrap_err().why.contains("an empty text"));
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
        assert_eq!(payload("text", None).unwrap_err().exit, Exit::Usage);
        let plain = ContentType::new("text/plain").unwrap();
        assert_eq!(&payload("text", Some(&plain)).unwrap().bytes[..], b"text");
        let refused = payload("text", Some(&ContentType::json())).unwrap_err();
        assert!(refused.exit == Exit::Usage && refused.why.contains("--content-type"), "{refused}");
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
