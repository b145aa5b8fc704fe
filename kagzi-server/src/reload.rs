//! Told to read its files again at once: by SIGHUP, or by whoever runs the server in a program of their own.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// Tells a server to read its files again, without waiting for the next look at them: the access file, the keys of JWTs,
/// certificate, key and authorities of TLS; and to open its audit log anew, which may have been moved away. What cannot be
/// used is reported, and what was read before still counts. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Reload(Arc<watch::Sender<u64>>);

impl Reload {
    /// Tells it. A server that does not run any more does not hear it.
    pub fn now(&self) {
        self.0.send_modify(|times| *times = times.wrapping_add(1));
    }

    /// Somebody who hears what is told from now on.
    pub(crate) fn ear(&self) -> Ear {
        Ear(self.0.subscribe())
    }
}

/// Somebody who hears that files are to be read again.
#[derive(Debug)]
pub(crate) struct Ear(watch::Receiver<u64>);

/// Why it is time to look at a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// It was told so.
    Told,
    /// It has not been looked at for so long.
    Again,
}

impl Ear {
    /// Ready when told, at once if that was since the last time. Cancel safe.
    pub(crate) async fn told(&mut self) {
        if self.0.changed().await.is_err() {
            // Nobody is left who could.
            std::future::pending::<()>().await;
        }
    }

    /// Ready when told, and after `interval` at the latest. Cancel safe.
    pub(crate) async fn told_or_after(&mut self, interval: Duration) -> Look {
        tokio::select! {
            biased;
            () = self.told() => Look::Told,
            () = tokio::time::sleep(interval) => Look::Again,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_told_is_heard_once_by_everybody_who_listened_before() {
        let reload = Reload::default();
        let (mut one, mut other) = (reload.ear(), reload.ear());
        let interval = Duration::from_secs(5);
        assert_eq!(one.told_or_after(interval).await, Look::Again);
        reload.now();
        let mut late = reload.ear();
        for ear in [&mut one, &mut other] {
            assert_eq!(ear.told_or_after(interval).now_or_never(), Some(Look::Told));
            assert_eq!(ear.told().now_or_never(), None);
        }
        assert_eq!(late.told().now_or_never(), None);
        drop(reload);
        assert_eq!(late.told_or_after(interval).await, Look::Again);
    }
}
