//! Durations as people write them: numbers with units.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use kagzi_core::MAX_DURATION;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer};

/// The units with their lengths in nanoseconds.
const UNITS: [(&str, u128); 6] = [
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

/// A duration in a setting or on the command line, such as `250ms`, `30s`, `1h30m`, `1.5h` or `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length(Duration);

/// A text that is no duration, or one that is longer than any may be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a number with a unit (us, ms, s, m, h, d), such as 250ms, 30s or 1h30m, from 0s to 100 years (36600d), got {0:?}"
)]
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
        read(text).map(Self).ok_or_else(|| NotALength(text.chars().take(64).collect()))
    }
}

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(InQuotes)
    }
}

/// Reads a length in a file, and says how one is written to who writes a bare number.
struct InQuotes;

impl Visitor<'_> for InQuotes {
    type Value = Length;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#"a number with a unit, in quotes, such as "7d" or "250ms""#)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Length, E> {
        text.parse().map_err(E::custom)
    }
}

/// The sum of the parts of `text`, if it is one.
fn read(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut nanos: u128 = 0;
    loop {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(unit_at);
        let next_at = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(next_at);
        let (_, unit_nanos) = UNITS.iter().find(|(name, _)| *name == unit)?;
        nanos = nanos.checked_add(part(number, *unit_nanos)?)?;
        rest = tail;
        if rest.is_empty() {
            break;
        }
    }
    let duration = Duration::from_nanos(u64::try_from(nanos).ok()?);
    (duration <= MAX_DURATION).then_some(duration)
}

/// `number` times a unit, in nanoseconds, what is finer cut off.
fn part(number: &str, unit_nanos: u128) -> Option<u128> {
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) if (1..=12).contains(&fraction.len()) => (whole, fraction),
        Some(_) => return None,
        None => (number, "0"),
    };
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let whole = whole.parse::<u128>().ok()?.checked_mul(unit_nanos)?;
    let fraction = fraction.parse::<u128>().ok()?.checked_mul(unit_nanos)?;
    whole.checked_add(fraction / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_with_units_are_a_duration() {
        let cases = [
            ("250ms", Duration::from_millis(250)),
            ("0s", Duration::ZERO),
            ("1.5h", Duration::from_mins(90)),
            ("1h30m", Duration::from_mins(90)),
            ("1d0.5s", Duration::from_millis(86_400_500)),
            ("7d", Duration::from_hours(7 * 24)),
            ("10us", Duration::from_micros(10)),
            ("36600d", MAX_DURATION),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Length>().map(Duration::from), Ok(expected), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_the_form_and_the_bounds() {
        let refused = [
            "",
            "30",
            "-1s",
            "s",
            "1 s",
            "1w",
            "1.2.3s",
            "1.s",
            ".5s",
            "9e9s",
            "1e400d",
            "1h30",
            "1S",
            "36601d",
            "999999999999999999999999999999999999999999d",
            "340282366920938463463374607431768211455us",
        ];
        for text in refused {
            let error = text.parse::<Length>().unwrap_err().to_string();
            assert!(error.contains("such as 250ms") && error.contains("100 years"), "{text}: {error}");
        }
    }
}
