//! What is said in the log of those whom nobody knows yet.
//!
//! Anybody who reaches the server can have a handshake fail, thousands of times a second. So that nobody fills a disk by
//! it, so many a second are told of, and the others only to those who want to hear every detail.

use std::fmt::Display;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use crate::config::RateLimit;
use crate::rate::Rate;

/// How often it is said, of all addresses together.
const AS_OFTEN_AS: RateLimit = RateLimit { per_second: 10, burst: 100 };

/// See the module. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct Complaints(Arc<Rate>);

impl Default for Complaints {
    fn default() -> Self {
        Self(Arc::new(Rate::new(AS_OFTEN_AS)))
    }
}

impl Complaints {
    pub(super) fn handshake_failed(&self, address: SocketAddr, error: &dyn Display) {
        if self.0.charge(NonZeroU32::MIN).is_ok() {
            tracing::info!(%address, %error, "a TLS handshake failed");
        } else {
            tracing::debug!(%address, %error, "a TLS handshake failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tracing::Level;

    use super::*;
    use crate::written::Written;

    /// How many lines of a log of `level` tell of a thousand failures now, and of as many a second later.
    async fn told(level: Level) -> [usize; 2] {
        let written = Arc::new(Written::default());
        let subscriber =
            tracing_subscriber::fmt().with_max_level(level).with_writer(Arc::clone(&written)).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let complaints = Complaints::default();
        let mut lines = [0; 2];
        for lines in &mut lines {
            for _ in 0..1000 {
                complaints.handshake_failed(([192, 0, 2, 1], 1).into(), &"nonsense");
            }
            *lines = written.take().split(|byte| *byte == b'\n').count() - 1;
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        lines
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_fails_again_and_again_does_not_fill_the_log() {
        assert_eq!(told(Level::INFO).await, [100, 10]);
        assert_eq!(told(Level::DEBUG).await, [1000, 1000]);
    }
}
