//! YAML as JSON values, from the events of a parser: aliases, which no file here needs, are refused.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// Every document of a file.
pub fn documents(text: &str) -> Result<Vec<Value>, String> {
    let mut documents = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, at) = event.map_err(|error| error.to_string())?;
        let done = match event {
            Event::Scalar(text, style, _, _) => Some(scalar(&text, style)),
            Event::SequenceStart(..) => {
                open.push(Open::List(Vec::new()));
                None
            }
            Event::MappingStart(..) => {
                open.push(Open::Map(Map::new(), None));
                None
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(items)) => Some(Value::Array(items)),
                Some(Open::Map(entries, None)) => Some(Value::Object(entries)),
                _ => return Err(format!("a key without a value at line {}", at.start.line())),
            },
            Event::Alias(_) => return Err(format!("an alias at line {}", at.start.line())),
            _ => None,
        };
        let Some(value) = done else { continue };
        match open.last_mut() {
            None => documents.push(value),
            Some(Open::List(items)) => items.push(value),
            Some(Open::Map(entries, key)) => match key.take() {
                None => *key = Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned)),
                Some(name) => {
                    if entries.insert(name.clone(), value).is_some() {
                        return Err(format!("{name:?} twice at line {}", at.start.line()));
                    }
                }
            },
        }
    }
    Ok(documents)
}

/// A list or a map that is being read.
enum Open {
    List(Vec<Value>),
    /// With the key whose value is to come.
    Map(Map<String, Value>, Option<String>),
}

fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::from(text);
    }
    match text {
        "" | "~" | "null" => Value::Null,
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        number => number.parse::<i64>().map_or_else(|_| Value::from(text), Value::from),
    }
}

#[test]
fn what_is_no_yaml_or_says_a_thing_twice_is_refused() {
    for bad in ["a: [1", "a: 1\na: 2", "a: &x 1\nb: *x", "a: 'x", "a: b: c"] {
        assert!(documents(bad).is_err(), "{bad:?}");
    }
    let read = documents("a: {b: [1, 'x', true]}\n---\n- c\n").unwrap();
    assert_eq!(read, [serde_json::json!({"a": {"b": [1, "x", true]}}), serde_json::json!(["c"])]);
}
