//! Until when a client's certificate counts, and the end of a connection that began with it.
//!
//! A handshake looks at it once, and connections last. So callers are known by their certificate until its `notAfter`
//! and no longer, to the second; the connection is closed a little later, so that its last answers say why, and its
//! client comes back with the certificate that it has by then.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use time::{Date, Month, PrimitiveDateTime, Time};
use tokio::time::{Sleep, sleep};

use super::der::{GENERALIZED_TIME, INTEGER, SEQUENCE, TAGGED_0, UTC_TIME, element};

/// For how long a connection goes on after its certificate has expired.
const FAREWELL: Duration = Duration::from_secs(5);

/// How often the clock on the wall is looked at, which may be set meanwhile.
const LOOK_AT_THE_CLOCK: Duration = Duration::from_mins(1);

/// The `notAfter` of a certificate. One that cannot be read has expired: whoever verified it read another.
pub(super) fn of(certificate: &CertificateDer<'_>) -> SystemTime {
    not_after(certificate).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn not_after(certificate: &[u8]) -> Option<SystemTime> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (mut rest, _) = element(certificate, SEQUENCE)?;
    if let Some((_version, after)) = element(rest, TAGGED_0) {
        rest = after;
    }
    // The serial number, the algorithm of the signature, and the issuer.
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        (_, rest) = element(rest, tag)?;
    }
    let (validity, _) = element(rest, SEQUENCE)?;
    let (_not_before, rest) = moment(validity)?;
    let (not_after, _) = moment(rest)?;
    Some(not_after.assume_utc().into())
}

/// A moment in one of its two forms, and what follows it.
fn moment(input: &[u8]) -> Option<(PrimitiveDateTime, &[u8])> {
    if let Some((text, rest)) = element(input, UTC_TIME) {
        let (year, text) = number(text, 2)?;
        // As RFC 5280 has it.
        let century = if year < 50 { 2000 } else { 1900 };
        return Some((in_year(century + year, text)?, rest));
    }
    let (text, rest) = element(input, GENERALIZED_TIME)?;
    let (year, text) = number(text, 4)?;
    Some((in_year(year, text)?, rest))
}

/// `MMDDhhmmssZ`: a certificate has whole seconds, and no other zone.
fn in_year(year: u16, text: &[u8]) -> Option<PrimitiveDateTime> {
    let mut rest = text;
    let mut next = || {
        let (value, after) = number(rest, 2)?;
        rest = after;
        u8::try_from(value).ok()
    };
    let (month, day, hour, minute, second) = (next()?, next()?, next()?, next()?, next()?);
    let date = Date::from_calendar_date(year.into(), Month::try_from(month).ok()?, day).ok()?;
    let time = Time::from_hms(hour, minute, second).ok()?;
    (rest == b"Z").then(|| PrimitiveDateTime::new(date, time))
}

fn number(text: &[u8], digits: usize) -> Option<(u16, &[u8])> {
    let (digits, rest) = text.split_at_checked(digits)?;
    let value = digits.iter().try_fold(0, |value: u16, digit| {
        digit.is_ascii_digit().then(|| value * 10 + u16::from(digit - b'0'))
    });
    Some((value?, rest))
}

/// Ends the reading of a connection some time after its certificate has expired.
#[derive(Debug)]
pub(super) struct Expiry {
    at: SystemTime,
    look: Pin<Box<Sleep>>,
}

impl Expiry {
    pub(super) fn of(until: SystemTime) -> Self {
        let at = until.checked_add(FAREWELL).unwrap_or(until);
        Self { at, look: Box::pin(sleep(pause(at))) }
    }

    /// Fails once it is time; wakes the reader for it.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while let Poll::Ready(()) = self.look.as_mut().poll(cx) {
            if SystemTime::now() >= self.at {
                let message = "the client's certificate has expired since the connection began";
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            self.look.set(sleep(pause(self.at)));
        }
        Ok(())
    }
}

fn pause(at: SystemTime) -> Duration {
    // A moment that has passed: at once.
    at.duration_since(SystemTime::now()).unwrap_or_default().min(LOOK_AT_THE_CLOCK)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use rcgen::{CertificateParams, KeyPair};
    use time::OffsetDateTime;

    use super::*;

    #[test]
    fn a_certificate_counts_until_its_not_after_in_either_form() {
        let key = KeyPair::generate().unwrap();
        for (year, month, day, time) in [
            (1999, Month::December, 31, (23, 59, 59)),
            (2026, Month::February, 28, (0, 0, 0)),
            (2028, Month::February, 29, (12, 34, 56)),
            (2049, Month::December, 31, (23, 59, 59)),
            (2050, Month::January, 1, (0, 0, 0)),
            (2999, Month::June, 30, (1, 2, 3)),
        ] {
            let date = Date::from_calendar_date(year, month, day).unwrap();
            let time = Time::from_hms(time.0, time.1, time.2).unwrap();
            let at = PrimitiveDateTime::new(date, time).assume_utc();
            let mut params = CertificateParams::default();
            params.not_before = OffsetDateTime::UNIX_EPOCH;
            params.not_after = at;
            let certificate = params.self_signed(&key).unwrap();
            assert_eq!(of(certificate.der()), SystemTime::from(at), "{at}");
            let whole = certificate.der().to_vec();
            for end in 0..whole.len() {
                // Cut off, it can be read no further than what is there.
                let cut = of(&CertificateDer::from(whole[..end].to_vec()));
                assert_eq!(cut, SystemTime::UNIX_EPOCH, "{end}");
            }
        }
        assert_eq!(of(&CertificateDer::from(Vec::new())), SystemTime::UNIX_EPOCH);
    }

    #[test]
    fn what_is_no_moment_is_none() {
        let utc = |text: &str| {
            let input = [&[UTC_TIME, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
            moment(&input).map(|(moment, _)| moment)
        };
        assert!(utc("261130081500Z").is_some());
        for text in
            ["261330081500Z", "260230081500Z", "261130241500Z", "261130081500", "26113008150+Z", "Z", ""]
        {
            assert_eq!(utc(text), None, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_some_time_after_its_certificate_and_not_before() {
        let now = SystemTime::now();
        let mut expired = Expiry::of(now - FAREWELL);
        let ended = poll_fn(|cx| Poll::Ready(expired.poll(cx))).await.unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        let mut fresh = Expiry::of(now + Duration::from_hours(1));
        // However often it is polled: the clock on the wall says that there is time.
        for _ in 0..200 {
            tokio::time::advance(LOOK_AT_THE_CLOCK).await;
            poll_fn(|cx| Poll::Ready(fresh.poll(cx))).await.unwrap();
        }
    }
}
