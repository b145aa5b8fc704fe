//! The clock that a process sees: right, or hours off. Its timers are not touched, only what it takes for
//! the time of day.

use std::ffi::OsString;
use std::path::PathBuf;

/// By how much a process's clock is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Not at all.
    Right,
    /// So many seconds ahead (or behind, if negative).
    Off(i64),
}

/// There is no way to another clock here.
#[derive(Debug, thiserror::Error)]
#[error(
    "needs libfaketime, found under none of {0:?}; install it (Debian and Ubuntu: apt-get install libfaketime)"
)]
pub struct NoClock(Vec<&'static str>);

/// Where distributions put the library, one folder below for the architecture at Debian's.
const PLACES: [&str; 3] = ["/usr/lib", "/usr/lib64", "/usr/local/lib"];

impl Clock {
    /// What gives a process this clock, in its environment.
    ///
    /// # Errors
    ///
    /// [`NoClock`] if the clock is another and the library is not on this machine.
    pub fn variables(self) -> Result<Vec<(&'static str, OsString)>, NoClock> {
        let Self::Off(seconds) = self else { return Ok(Vec::new()) };
        Ok(vec![
            ("LD_PRELOAD", library()?.into()),
            ("FAKETIME", format!("{seconds:+}").into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
            ("FAKETIME_NO_CACHE", "0".into()),
        ])
    }
}

fn library() -> Result<PathBuf, NoClock> {
    let file = "faketime/libfaketimeMT.so.1";
    let below =
        |place: &str| std::fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.path());
    PLACES
        .into_iter()
        .flat_map(|place| std::iter::once(PathBuf::from(place)).chain(below(place)))
        .map(|folder| folder.join(file))
        .find(|path| path.is_file())
        .ok_or_else(|| NoClock(PLACES.to_vec()))
}
