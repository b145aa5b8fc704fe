//! A request on its way in.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use kagzi_proto::codec::{BEHIND_BYTES, LONG_BYTES};
use kagzi_sdk::wire::error::{Refusal, request_timeout};
use tokio::time::{Instant, Sleep, sleep};
use tonic::Status;
use tonic::body::Body;

use super::super::load::{Charge, Payer, READING_BYTES, Waiting};
use super::Kind;
use super::framing::{Event, Framing};
use crate::metrics::{Metrics, Shown, Wait};

/// How often a request that waits for room looks whether there is. Whoever makes room has nobody to tell, so that it
/// costs nothing where nobody waits.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(20);

/// What is held of a request, or of the messages of a session, until the last of its copies is dropped.
#[derive(Clone, Debug)]
pub(in crate::service) struct RequestBytes(Arc<Held>);

#[derive(Debug)]
struct Held {
    /// For the call as such.
    call: Arc<Charge>,
    charge: Arc<Charge>,
    messages: Mutex<Messages>,
}

/// Those of a session.
#[derive(Debug, Default)]
struct Messages {
    /// The sizes of those that have come whole and were not taken.
    whole: VecDeque<usize>,
    /// The last long one: the memory that it was read into is kept until others have been read that fill it.
    last_long: Option<Arc<Message>>,
    /// How many bytes have been taken since.
    since: usize,
}

/// A message that a session took, charged for until it is dropped.
#[derive(Debug)]
pub(in crate::service) struct Message {
    charge: Arc<Charge>,
    bytes: usize,
}

impl RequestBytes {
    pub(super) fn of(payer: &Payer) -> Self {
        let (call, charge) = (Arc::new(payer.charge()), Arc::new(payer.charge()));
        Self(Arc::new(Held { call, charge, messages: Mutex::default() }))
    }

    /// What is charged for the call as such.
    pub(super) fn call(&self) -> Arc<Charge> {
        Arc::clone(&self.0.call)
    }

    /// The next message of a session, which has just been read: each is taken once, in their order. It is charged for
    /// until it is dropped and, if it is long, others have taken its place in memory.
    pub(in crate::service) fn take(&self) -> Arc<Message> {
        let mut messages = self.messages();
        let bytes = messages.whole.pop_front().unwrap_or_default();
        let message = Arc::new(Message { charge: Arc::clone(&self.0.charge), bytes });
        messages.since = messages.since.saturating_add(bytes);
        if bytes >= LONG_BYTES {
            (messages.last_long, messages.since) = (Some(Arc::clone(&message)), 0);
        } else if messages.since > BEHIND_BYTES {
            messages.last_long = None;
        }
        message
    }

    fn messages(&self) -> MutexGuard<'_, Messages> {
        self.0.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        self.charge.less(self.bytes);
    }
}

/// How long something may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// A request, or a message of a stream, to arrive whole.
    pub(super) within: Duration,
    /// What has come of it, to wait for room.
    pub(super) for_room: Duration,
}

/// What a request may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// How long a message of it, header and all.
    pub(super) most: usize,
    pub(super) times: Times,
}

/// Waits for room.
#[derive(Debug)]
struct ForRoom {
    until: Instant,
    look: Pin<Box<Sleep>>,
    _counted: Option<Waiting>,
    _shown: Shown,
}

/// Why nothing more comes.
#[derive(Debug)]
enum Broken {
    /// The connection or the client broke it off.
    Line(Status),
    Refused(Refusal),
}

/// The body of a request, each message of which is charged for as soon as its length is known, and must come in time.
#[derive(Debug)]
pub(super) struct Incoming {
    body: Body,
    kind: Kind,
    held: RequestBytes,
    /// What is to be paid before anything else is read: at first for the call as such, then for what `came`.
    owed: usize,
    came: Option<Frame<Bytes>>,
    room: Option<ForRoom>,
    framing: Framing,
    /// How long a message may be.
    most: usize,
    /// How long the longest of [`Kind::Questions`] was: the memory that it was read into is kept.
    longest: usize,
    times: Times,
    /// Once it was waited for.
    late: Option<Pin<Box<Sleep>>>,
    ended: bool,
    metrics: Metrics,
}

impl Incoming {
    /// `owed` is charged for the call as such.
    pub(super) fn new(
        body: Body,
        kind: Kind,
        held: RequestBytes,
        owed: usize,
        Bounds { most, times }: Bounds,
        metrics: Metrics,
    ) -> Self {
        let (framing, longest) = (Framing::default(), 0);
        let (came, room, late) = (None, None, None);
        let ended = false;
        Self { body, kind, held, owed, came, room, framing, most, longest, times, late, ended, metrics }
    }

    /// Pays what is owed, once there is room for it; gives what has come.
    fn poll_pay(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, Refusal>> {
        while self.owed > 0 {
            let Held { call, charge, .. } = &*self.held.0;
            let of = if self.came.is_some() { charge } else { call };
            match of.more(self.owed) {
                Ok(()) => self.owed = 0,
                Err(refusal) => {
                    if !ready!(self.poll_room(cx)) {
                        return Poll::Ready(Err(refusal));
                    }
                }
            }
        }
        self.room = None;
        if self.kind != Kind::Call && self.came.is_none() && !self.framing.is_within_a_message() {
            // It waited for room to be there, and no message has begun.
            self.late = None;
        }
        let came = self.came.take();
        if let Some(data) = came.as_ref().and_then(Frame::data_ref) {
            self.pass(data);
        }
        Poll::Ready(Ok(came))
    }

    /// Ready when there may be room, or with `false` when it was waited for long enough.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.times.for_room.is_zero() {
            return Poll::Ready(false);
        }
        if self.room.is_none() {
            // A stream that is open has paid for being there, and has a place.
            let counted = if self.kind == Kind::Session { None } else { self.held.0.call.wait() };
            if self.kind != Kind::Session && counted.is_none() {
                return Poll::Ready(false);
            }
            // Those who wait for each other's room end all the same.
            let until = self.late().deadline().min(Instant::now() + self.times.for_room);
            let shown = self.metrics.waits(Wait::Room);
            self.room = Some(ForRoom {
                until,
                look: Box::pin(sleep(LOOK_FOR_ROOM)),
                _counted: counted,
                _shown: shown,
            });
        }
        let Some(room) = &mut self.room else { return Poll::Ready(false) };
        ready!(room.look.as_mut().poll(cx));
        let now = Instant::now();
        room.look.as_mut().reset(now + LOOK_FOR_ROOM);
        Poll::Ready(now < room.until)
    }

    /// Goes on by what has come.
    fn pass(&mut self, data: &[u8]) {
        let mut ended = false;
        let (kind, held, longest) = (self.kind, &self.held, &mut self.longest);
        self.framing.pass(data, |event| {
            let Event::Ends(size) = event else { return };
            ended = true;
            match kind {
                Kind::Call => {}
                Kind::Session => held.messages().whole.push_back(size),
                Kind::Questions => {
                    held.0.charge.less(size.min(*longest));
                    *longest = size.max(*longest);
                }
            }
        });
        // A stream may be silent between messages for as long as it likes, and each message has its time, however many
        // pieces it comes in.
        if ended && kind != Kind::Call {
            self.late = None;
        }
    }

    fn late(&mut self) -> &mut Pin<Box<Sleep>> {
        let within = self.times.within;
        self.late.get_or_insert_with(|| Box::pin(sleep(within)))
    }

    /// Ready once what should have come has not.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Refusal> {
        if self.kind != Kind::Call && !self.framing.is_within_a_message() {
            return Poll::Pending;
        }
        let within = self.times.within;
        self.late().as_mut().poll(cx).map(|()| request_timeout(within))
    }

    /// The next piece, or why there is none.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, Broken>> {
        loop {
            if let Some(frame) = ready!(self.poll_pay(cx)).map_err(Broken::Refused)? {
                return Poll::Ready(Ok(Some(frame)));
            }
            match http_body::Body::poll_frame(Pin::new(&mut self.body), cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.owed = frame.data_ref().map_or(0, |data| self.framing.takes(data, self.most));
                    self.came = Some(frame);
                }
                Poll::Ready(None) => return Poll::Ready(Ok(None)),
                Poll::Ready(Some(Err(status))) => return Poll::Ready(Err(Broken::Line(status))),
                Poll::Pending => return self.poll_late(cx).map(|refusal| Err(Broken::Refused(refusal))),
            }
        }
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let status = match ready!(this.poll_next(cx)) {
            Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
            Ok(None) => None,
            Err(Broken::Line(status)) => Some(Err(status)),
            Err(Broken::Refused(refusal)) => {
                this.metrics.refused(&refusal);
                Some(Err(refusal.into_status()))
            }
        };
        this.ended = true;
        // What lies there unread goes at once.
        (this.body, this.came, this.room) = (Body::empty(), None, None);
        Poll::Ready(status)
    }

    fn is_end_stream(&self) -> bool {
        self.ended || (self.owed == 0 && self.came.is_none() && self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if self.kind == Kind::Call {
            self.held.0.call.less(READING_BYTES);
        }
    }
}
