//! Work on files, which blocks, beside work on sockets, which must not.

/// Runs `work` on a thread that may block, so that heartbeats and signals go on while it lasts.
pub async fn off_the_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        // Only a panic ends it otherwise: hand it on, to be recorded as such.
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going down, and this process with it.
            Err(_) => std::future::pending().await,
        },
    }
}
