//! Moments and durations, to the microsecond.

use std::time::Duration;

use kagzi_core::{MAX_DURATION, StoreError, Timestamp};
use kagzi_proto as proto;

use super::field::{invalid, required};

const MICROS: i64 = 1_000_000;

/// A moment as messages carry it.
pub fn moment_to_wire(moment: Timestamp) -> proto::Timestamp {
    let micros = moment.as_micros();
    let nanos = i32::try_from(micros.rem_euclid(MICROS) * 1000).unwrap_or_default();
    proto::Timestamp { seconds: micros.div_euclid(MICROS), nanos }
}

/// Digits beyond the microsecond are cut off.
pub(super) fn moment(field: &str, wire: proto::Timestamp) -> Result<Timestamp, StoreError> {
    let refuse = || {
        invalid(
            field,
            "a moment from the year 1 to the year 9999, with nanos from 0 to 999999999",
            format!("{} s and {} ns since 1970", wire.seconds, wire.nanos),
        )
    };
    if !(0..1_000_000_000).contains(&wire.nanos) {
        return Err(refuse());
    }
    wire.seconds
        .checked_mul(MICROS)
        .and_then(|micros| micros.checked_add(i64::from(wire.nanos / 1000)))
        .and_then(|micros| Timestamp::from_micros(micros).ok())
        .ok_or_else(refuse)
}

pub(super) fn optional_moment(
    field: &str,
    wire: Option<proto::Timestamp>,
) -> Result<Option<Timestamp>, StoreError> {
    wire.map(|wire| moment(field, wire)).transpose()
}

pub(super) fn required_moment(field: &str, wire: Option<proto::Timestamp>) -> Result<Timestamp, StoreError> {
    moment(field, required(field, wire)?)
}

/// A duration as messages carry it. One over what the protocol can say is cut to the longest that it can.
pub fn duration_to_wire(duration: Duration) -> proto::Duration {
    let nanos = i32::try_from(duration.subsec_nanos()).unwrap_or_default();
    proto::Duration { seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX), nanos }
}

/// Digits beyond the microsecond are cut off, since that is what stores keep: a request that is sent
/// again must compare equal to what was recorded of it.
pub(super) fn duration(field: &str, wire: proto::Duration) -> Result<Duration, StoreError> {
    let refuse = || {
        invalid(
            field,
            "a duration from 0 to 100 years, with nanos from 0 to 999999999",
            format!("{} s and {} ns", wire.seconds, wire.nanos),
        )
    };
    let seconds = u64::try_from(wire.seconds).map_err(|_| refuse())?;
    let nanos = u32::try_from(wire.nanos).ok().filter(|nanos| *nanos < 1_000_000_000).ok_or_else(refuse)?;
    let duration = Duration::new(seconds, nanos - nanos % 1000);
    if duration > MAX_DURATION { Err(refuse()) } else { Ok(duration) }
}

pub(super) fn optional_duration(
    field: &str,
    wire: Option<proto::Duration>,
) -> Result<Option<Duration>, StoreError> {
    wire.map(|wire| duration(field, wire)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_and_durations_round_trip_to_the_microsecond() {
        for at in [Timestamp::MIN, Timestamp::UNIX_EPOCH, Timestamp::MAX] {
            assert_eq!(moment("at", moment_to_wire(at)).unwrap(), at);
        }
        for micros in [-1_000_001, -1_000_000, -999_999, -1, 1, 999_999, 1_000_001] {
            let at = Timestamp::from_micros(micros).unwrap();
            assert_eq!(moment("at", moment_to_wire(at)).unwrap(), at);
        }
        for length in [Duration::ZERO, Duration::from_micros(1), Duration::from_millis(1500), MAX_DURATION] {
            assert_eq!(duration("length", duration_to_wire(length)).unwrap(), length);
        }
    }

    #[test]
    fn digits_beyond_the_microsecond_are_cut_off() {
        let wire = proto::Duration { seconds: 1, nanos: 1_999 };
        assert_eq!(duration("length", wire).unwrap(), Duration::from_micros(1_000_001));
        let wire = proto::Timestamp { seconds: -1, nanos: 1_999 };
        assert_eq!(moment("at", wire).unwrap().as_micros(), -999_999);
    }

    #[test]
    fn absurd_times_are_refused_with_the_field() {
        let durations = [(-1, 0), (0, -1), (1, 1_000_000_000), (i64::MAX, 0), (100 * 367 * 86_400, 0)];
        for (seconds, nanos) in durations {
            let error = duration("lease_length", proto::Duration { seconds, nanos }).unwrap_err();
            assert!(error.to_string().starts_with("lease_length: "), "{error}");
        }
        let moments = [(i64::MIN, 0), (i64::MAX, 0), (0, -1), (0, 1_000_000_000), (253_402_300_800, 0)];
        for (seconds, nanos) in moments {
            let error = moment("start_at", proto::Timestamp { seconds, nanos }).unwrap_err();
            assert!(error.to_string().starts_with("start_at: "), "{error}");
        }
    }
}
