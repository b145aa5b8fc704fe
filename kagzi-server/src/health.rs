//! Health by the gRPC protocol: SERVING while the store answers, writes included, and the server takes calls. Who looks at
//! the store for it also tells the breaker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kagzi_core::{SharedStore, StoreError};
use kagzi_proto::v1::admin_service_server::SERVICE_NAME as ADMIN;
use kagzi_proto::v1::worker_service_server::SERVICE_NAME as WORKER;
use kagzi_proto::v1::workflow_service_server::SERVICE_NAME as WORKFLOW;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::breaker::{Breaker, Stalled};

/// The shortest time between two looks at the store, however many calls report it away.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);

/// How long a look may take: less than a second, so that who called when it began is told within one. One slow answer
/// under load is no reason to refuse every call: it counts only if no call was answered meanwhile.
const PATIENCE: Duration = Duration::from_millis(900);

/// How long a look may take when calls wait already and none is answered.
const PATIENCE_WHEN_STALLED: Duration = Duration::from_millis(350);

/// A look that is found to have had so much more time than it was given says of the server, not of the store, that it does
/// not keep up: the answer may have been there for as long.
const LATE: Duration = Duration::from_millis(100);

/// So many such looks in a row are not counted; the next one is.
const LATE_LOOKS: u32 = 2;

/// Who asks the store whether it is well, and tells. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    reporter: HealthReporter,
    breaker: Breaker,
    /// A call found the store away.
    doubt: Arc<Notify>,
    /// What was told last.
    told: Arc<watch::Sender<ServingStatus>>,
    /// How many looks in a row ended late, without an answer.
    late: Arc<AtomicU32>,
}

/// What a look asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    /// For the next due moment: cheap, and unlike the time it is read from the data in every backend.
    Reads,
    /// Whether it can write as well. Asked where there is a doubt, and where nobody has written of late.
    Writes,
}

impl Health {
    pub(crate) fn new(reporter: HealthReporter, breaker: Breaker) -> Self {
        let told = Arc::new(watch::Sender::new(ServingStatus::Unknown));
        Self { reporter, breaker, doubt: Arc::default(), told, late: Arc::default() }
    }

    /// Tells that a call found the store away: it is looked at without waiting for the next time.
    pub(crate) fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Refuses a call while the store is away: it would only join the others that wait for it.
    pub(crate) fn admit(&self) -> Result<(), StoreError> {
        self.breaker.admit()
    }

    /// Whether the store does not answer.
    pub(crate) fn is_away(&self) -> bool {
        self.breaker.is_open()
    }

    /// What was told last.
    pub(crate) fn status(&self) -> ServingStatus {
        *self.told.borrow()
    }

    /// Sets the status of the server and of each service.
    pub(crate) async fn set(&self, status: ServingStatus) {
        self.told.send_replace(status);
        for service in ["", WORKFLOW, WORKER, ADMIN] {
            self.reporter.set_service_status(service, status).await;
        }
    }

    /// Looks at the store and tells what it found.
    pub(crate) async fn check(&self, store: &SharedStore) -> ServingStatus {
        self.look(store, Question::Reads, PATIENCE).await
    }

    /// Looks at the store every `interval`, when a call is in doubt or none is answered, and while it is
    /// away as often as the breaker says.
    pub(crate) async fn watch(&self, store: &SharedStore, interval: Duration) {
        let mut looked = Instant::now();
        loop {
            let (question, patience) = if let Some(look_at) = self.breaker.look_at() {
                self.tell_once(ServingStatus::NotServing).await;
                sleep_until(look_at).await;
                self.breaker.half_open();
                (Question::Writes, PATIENCE)
            } else {
                tokio::select! {
                    // What calls found out is told at once.
                    () = self.breaker.opened() => continue,
                    () = self.in_doubt(looked) => (Question::Writes, PATIENCE),
                    stalled = self.breaker.stalled() => match stalled {
                        Stalled::Everything => (Question::Writes, PATIENCE_WHEN_STALLED),
                        Stalled::Writes => (Question::Writes, PATIENCE),
                    },
                    () = sleep(interval) => (self.regular_question(interval), PATIENCE),
                }
            };
            self.look(store, question, patience).await;
            looked = Instant::now();
        }
    }

    /// A store that nobody writes to is asked whether it would take a write, since nobody else would find out.
    fn regular_question(&self, interval: Duration) -> Question {
        if self.breaker.has_written_within(interval) { Question::Reads } else { Question::Writes }
    }

    async fn in_doubt(&self, looked: Instant) {
        sleep_until(looked + SHORTEST_PAUSE).await;
        self.doubt.notified().await;
    }

    async fn look(&self, store: &SharedStore, question: Question, patience: Duration) -> ServingStatus {
        let answer = async {
            match question {
                Question::Reads => store.next_due().await.map(|_| ()),
                Question::Writes => store.probe().await,
            }
        };
        let (closed, began) = (!self.breaker.is_open(), Instant::now());
        let looked = tokio::select! {
            biased;
            looked = timeout(patience, answer) => looked,
            // Calls have found out in the meantime.
            () = self.breaker.opened(), if closed => {
                self.tell_once(ServingStatus::NotServing).await;
                return ServingStatus::NotServing;
            }
        };
        let status = match looked {
            Ok(Ok(())) => {
                self.late.store(0, Ordering::Relaxed);
                if question == Question::Writes {
                    self.breaker.note_write();
                }
                self.breaker.close();
                ServingStatus::Serving
            }
            Ok(Err(error)) => {
                self.breaker.open(&error);
                ServingStatus::NotServing
            }
            // It answers others.
            Err(_) if !self.breaker.is_open() && self.breaker.answers_within(patience) => {
                ServingStatus::Serving
            }
            // Nobody can tell: whoever waits has it looked at again.
            Err(_) if self.is_excused(began.elapsed().saturating_sub(patience)) => ServingStatus::Serving,
            Err(_) => {
                self.breaker.open(&format_args!("no answer within {patience:?}"));
                ServingStatus::NotServing
            }
        };
        self.tell_once(status).await;
        status
    }

    /// Whether a look without an answer that ended so late is not counted: only where all was well before, and not too often.
    fn is_excused(&self, late_by: Duration) -> bool {
        late_by > LATE
            && self.status() == ServingStatus::Serving
            && self.late.fetch_add(1, Ordering::Relaxed) < LATE_LOOKS
    }

    async fn tell_once(&self, status: ServingStatus) {
        if self.status() != status {
            self.set(status).await;
        }
    }
}
