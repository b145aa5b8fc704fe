//! The one who writes the record, on a thread of its own. A sink that takes nothing and does not say so (a network file
//! system that hangs) then holds up none but those whose action waits for its line, and those not for long.

use std::fmt;
use std::io;
use std::sync::{Mutex, PoisonError, mpsc as threads};
use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::TARGET;
use crate::metrics::Metrics;

/// How long an action waits for its line. Disks make those who write wait for a second, and are sound.
const WRITTEN_WITHIN: Duration = Duration::from_secs(3);

/// So many lines wait to be written, each of some kilobytes at most.
const MOST_LINES: usize = 1024;

/// Where the record is kept.
pub(super) trait Sink: Send {
    /// Adds a line. May take as long as it takes.
    fn add(&mut self, line: String) -> io::Result<Place>;

    /// Opens what stands in its place now.
    fn reopen(&mut self) -> io::Result<()>;
}

/// Where a line was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Where those before it are.
    Same,
    /// In what was opened anew for it.
    New,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Writer {
    /// Nothing once it ends.
    orders: Option<mpsc::Sender<Order>>,
    /// Disconnected when the thread has ended.
    ended: Mutex<threads::Receiver<()>>,
}

/// What the thread is to do.
#[derive(Debug)]
enum Order {
    Add { line: String, of: Moment, metrics: Metrics, written: oneshot::Sender<io::Result<()>> },
    Reopen { metrics: Metrics, done: oneshot::Sender<io::Result<()>> },
}

/// What a line is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// It announces an action, which is not done if nobody waits for the line any more: then it is not needed.
    Announced,
    /// It says what became of one.
    Ended,
}

/// A line that is to be written.
#[must_use = "nobody knows yet whether it is written"]
#[derive(Debug)]
pub(super) struct Ordered(oneshot::Receiver<io::Result<()>>);

/// Why a line is not on record.
#[derive(Debug)]
pub(super) enum Unwritten {
    /// The sink refused it, or the line could not be made.
    Refused(io::Error),
    /// It may be written yet, if it does not announce anything.
    Late,
    /// Too many wait.
    Full,
}

impl fmt::Display for Unwritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(error) => error.fmt(f),
            Self::Late => {
                write!(f, "it was not written within {WRITTEN_WITHIN:?}: its disk, or its server, hangs")
            }
            Self::Full => write!(f, "{MOST_LINES} lines wait to be written: its disk, or its server, hangs"),
        }
    }
}

impl From<io::Error> for Unwritten {
    fn from(error: io::Error) -> Self {
        Self::Refused(error)
    }
}

impl Writer {
    /// Starts the thread.
    pub(super) fn over(mut sink: Box<dyn Sink>) -> io::Result<Self> {
        let (orders, mut ordered) = mpsc::channel::<Order>(MOST_LINES);
        let (alive, ended) = threads::channel::<()>();
        let write = move || {
            while let Some(order) = ordered.blocking_recv() {
                order.carry_out(&mut *sink);
            }
            drop(alive);
        };
        std::thread::Builder::new().name("audit log".to_owned()).spawn(write)?;
        Ok(Self { orders: Some(orders), ended: Mutex::new(ended) })
    }

    /// Has a line written after those that were ordered before. Does not wait.
    pub(super) fn order(&self, line: String, of: Moment, metrics: &Metrics) -> Result<Ordered, Unwritten> {
        let (written, answer) = oneshot::channel();
        let order = Order::Add { line, of, metrics: metrics.clone(), written };
        // There is always a thread while this is there.
        let orders = self.orders.as_ref().ok_or(Unwritten::Full)?;
        match orders.try_send(order) {
            Ok(()) => Ok(Ordered(answer)),
            Err(TrySendError::Full(_)) => Err(Unwritten::Full),
            Err(TrySendError::Closed(_)) => Err(gone().into()),
        }
    }

    /// Has the sink opened anew, and waits until it is.
    pub(super) async fn reopen(&self, metrics: &Metrics) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        if let Some(orders) = &self.orders {
            let order = Order::Reopen { metrics: metrics.clone(), done };
            orders.send(order).await.map_err(|_| gone())?;
        }
        answer.await.map_err(|_| gone())?
    }
}

impl Ordered {
    /// Waits until the line is written, but not for long.
    pub(super) async fn written(self) -> Result<(), Unwritten> {
        match timeout(WRITTEN_WITHIN, self.0).await {
            Ok(answer) => Ok(answer.map_err(|_| gone())??),
            Err(_) => Err(Unwritten::Late),
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("the thread that writes it has ended")
}

impl Order {
    fn carry_out(self, sink: &mut dyn Sink) {
        match self {
            Self::Add { of: Moment::Announced, written, .. } if written.is_closed() => {}
            Self::Add { line, metrics, written, .. } => {
                let answer = sink.add(line);
                metrics.audit_log_is_written(answer.is_ok());
                match &answer {
                    Ok(Place::Same) => {}
                    Ok(Place::New) => metrics.audit_log_is_opened(true),
                    Err(error) => {
                        metrics.audit_failed();
                        tracing::error!(target: TARGET, %error, "the audit log could not be written");
                    }
                }
                // Whoever ordered it may have gone.
                written.send(answer.map(drop)).ok();
            }
            Self::Reopen { metrics, done } => {
                let answer = sink.reopen();
                metrics.audit_log_is_opened(answer.is_ok());
                done.send(answer).ok();
            }
        }
    }
}

/// What was ordered is written first, unless the sink hangs: then this does not.
impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.orders.take());
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(WRITTEN_WITHIN) == Err(threads::RecvTimeoutError::Timeout) {
            tracing::error!(target: TARGET, "the last lines of the audit log could not be written: it hangs");
        }
    }
}

#[cfg(test)]
pub(crate) mod held {
    //! A sink that writes a line when it is told to, and not before.

    use std::sync::{Arc, Mutex, mpsc};

    use super::{Place, Sink, io};

    pub(crate) struct Held {
        go: mpsc::Receiver<()>,
        begins: mpsc::Sender<()>,
        lines: Arc<Mutex<Vec<String>>>,
    }

    /// The one who tells it.
    pub(crate) struct Holder {
        /// Sent once for each line; dropped, the sink is held no more.
        pub(crate) go: mpsc::Sender<()>,
        /// Hears of each line before it is written.
        pub(crate) begun: mpsc::Receiver<()>,
        pub(crate) lines: Arc<Mutex<Vec<String>>>,
    }

    pub(crate) fn held() -> (Box<Held>, Holder) {
        let (go, told) = mpsc::channel();
        let (begins, begun) = mpsc::channel();
        let lines = Arc::default();
        (Box::new(Held { go: told, begins, lines: Arc::clone(&lines) }), Holder { go, begun, lines })
    }

    impl Sink for Held {
        fn add(&mut self, line: String) -> io::Result<Place> {
            self.begins.send(()).ok();
            self.go.recv().ok();
            self.lines.lock().unwrap().push(line);
            Ok(Place::Same)
        }

        fn reopen(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kagzi_core::Rules;
    use kagzi_core::SharedStore;
    use kagzi_core::memory::MemoryStore;

    use super::held::held;
    use super::*;

    fn metrics() -> Metrics {
        let store: SharedStore =
            Arc::new(MemoryStore::new(Arc::new(kagzi_core::SystemClock), Rules::default()));
        Metrics::new(&store)
    }

    #[tokio::test(start_paused = true)]
    async fn lines_that_wait_have_a_bound_and_what_was_given_up_before_it_began_is_not_announced() {
        let (sink, holder) = held();
        let (writer, metrics) = (Writer::over(sink).unwrap(), metrics());
        let order = |line: String, of| writer.order(line, of, &metrics);
        let first = order("first".to_owned(), Moment::Announced).unwrap();
        holder.begun.recv().unwrap();
        assert!(matches!(first.written().await, Err(Unwritten::Late)), "the sink is held");
        let given_up = order("given up".to_owned(), Moment::Announced).unwrap();
        assert!(matches!(given_up.written().await, Err(Unwritten::Late)));
        drop(order("first ended".to_owned(), Moment::Ended).unwrap());
        let mut more = 0;
        while order(format!("more {more}"), Moment::Ended).is_ok() {
            more += 1;
            assert!(more <= MOST_LINES);
        }
        drop(holder.go);
        // It ends when all is written.
        drop(writer);
        let lines = holder.lines.lock().unwrap();
        assert_eq!(lines[..2], ["first", "first ended"]);
        assert_eq!(lines.len(), 2 + more);
    }
}
