//! Durations as people write them: a number with a unit.

use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

/// A duration in a setting, such as `250ms`, `30s`, `5m`, `1.5h` or `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Length(Duration);

/// A text that is no duration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a number with a unit (us, ms, s, m, h, d), such as 250ms or 30s, got {0:?}")]
pub struct NotALength(String);

impl From<Length> for Duration {
    fn from(length: Length) -> Self {
        length.0
    }
}

impl From<Duration> for Length {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl FromStr for Length {
    type Err = NotALength;

    fn from_str(text: &str) -> Result<Self, NotALength> {
        let refuse = || NotALength(text.chars().take(64).collect());
        let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(refuse)?;
        let (number, unit) = text.split_at(unit_at);
        let seconds = match unit {
            "us" => 0.000_001,
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return Err(refuse()),
        };
        let number: f64 = number.parse().map_err(|_| refuse())?;
        Duration::try_from_secs_f64(number * seconds).map(Self).map_err(|_| refuse())
    }
}

impl TryFrom<String> for Length {
    type Error = NotALength;

    fn try_from(text: String) -> Result<Self, NotALength> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_with_a_unit_is_a_duration() {
        let cases = [
            ("250ms", Duration::from_millis(250)),
            ("0s", Duration::ZERO),
            ("1.5h", Duration::from_mins(90)),
            ("7d", Duration::from_hours(7 * 24)),
            ("10us", Duration::from_micros(10)),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Length>().map(Duration::from), Ok(expected), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in
            ["", "30", "-1s", "s", "1 s", "1w", "1.2.3s", "9e9s", "1e400d", "99999999999999999999999d"]
        {
            assert!(text.parse::<Length>().is_err(), "{text}");
        }
    }
}
