//! What goes wrong, when, and how it is put right again: a schedule that follows from a seed.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use kagzi_testkit::{Direction, Proxy};
use rustix::process::Signal;
use tokio::time::Instant;

use crate::Failed;
use crate::load::Load;
use crate::world::{SERVERS, WORKERS, World};

/// What a fault befalls. No two faults befall the same at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    Worker(usize),
    Server(usize),
    Database,
    /// The link of a worker to its server.
    WorkerLink(usize),
    /// The link of clients to a server.
    ClientLink(usize),
    /// The link of a server to the database.
    DatabaseLink(usize),
    /// All clients at once.
    Clients,
}

/// What befalls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL; it comes back when the fault is over.
    Kill,
    /// SIGSTOP until the fault is over.
    Pause,
    /// Nothing gets through until the fault is over, and nobody is told.
    Partition,
    /// The connections that are open lead nowhere; they are cut when the fault is over.
    HalfOpen,
    /// Every connection is cut, once.
    Cut,
    /// Every connection is cut in the middle of what its server says next.
    CutAnswers,
    /// New connections are refused until the fault is over.
    Refuse,
    /// Late, and few bytes a second.
    Slow,
    /// Far more starts at once than workers can take.
    Burst,
}

impl Victim {
    const fn name(self) -> &'static str {
        match self {
            Self::Worker(_) => "worker",
            Self::Server(_) => "server",
            Self::Database => "database",
            Self::WorkerLink(_) => "link worker - server",
            Self::ClientLink(_) => "link client - server",
            Self::DatabaseLink(_) => "link server - database",
            Self::Clients => "clients",
        }
    }
}

impl Fault {
    const fn name(self) -> &'static str {
        match self {
            Self::Kill => "killed",
            Self::Pause => "paused",
            Self::Partition => "partitioned",
            Self::HalfOpen => "half open",
            Self::Cut => "cut",
            Self::CutAnswers => "answers cut",
            Self::Refuse => "refused",
            Self::Slow => "slow",
            Self::Burst => "burst",
        }
    }
}

/// How often each fault occurred, by victim and fault in words.
pub type Counts = BTreeMap<(&'static str, &'static str), u64>;

/// How many faults there are at once at most.
const AT_ONCE: usize = 3;

/// How often in a row a server may fail to start.
const STARTS: u32 = 20;

/// A planned fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    pub victim: Victim,
    pub fault: Fault,
    /// How long it lasts.
    pub lasts: Duration,
    /// How long nothing else is begun.
    pub then: Duration,
}

/// The schedule: an endless row of faults that follows from a seed.
#[derive(Clone, Debug)]
pub struct Schedule(Rng);

impl Schedule {
    pub fn new(seed: u64) -> Self {
        Self(Rng::with_seed(seed))
    }
}

impl Iterator for Schedule {
    type Item = Planned;

    fn next(&mut self) -> Option<Planned> {
        let dice = &mut self.0;
        let link = |dice: &mut Rng| match dice.u8(..8) {
            0 | 1 => Fault::Partition,
            2 => Fault::HalfOpen,
            3 => Fault::Cut,
            4 | 5 => Fault::CutAnswers,
            6 => Fault::Refuse,
            _ => Fault::Slow,
        };
        let (victim, fault, millis) = match dice.u8(..28) {
            0..5 => (Victim::Worker(dice.usize(..WORKERS)), Fault::Kill, dice.u64(..2_000)),
            // Longer than a lease, mostly.
            5..9 => (Victim::Worker(dice.usize(..WORKERS)), Fault::Pause, dice.u64(1_000..6_000)),
            9..12 => (Victim::Server(dice.usize(..SERVERS)), Fault::Kill, dice.u64(..3_000)),
            12..14 => (Victim::Server(dice.usize(..SERVERS)), Fault::Pause, dice.u64(500..6_000)),
            14 => (Victim::Database, Fault::Kill, dice.u64(..4_000)),
            15 => (Victim::Database, Fault::Pause, dice.u64(500..5_000)),
            16..20 => (Victim::WorkerLink(dice.usize(..WORKERS)), link(dice), dice.u64(500..8_000)),
            20..23 => (Victim::ClientLink(dice.usize(..SERVERS)), link(dice), dice.u64(500..8_000)),
            23..26 => (Victim::DatabaseLink(dice.usize(..SERVERS)), link(dice), dice.u64(500..8_000)),
            _ => (Victim::Clients, Fault::Burst, 1_000),
        };
        let then = Duration::from_millis(dice.u64(200..1_500));
        Some(Planned { victim, fault, lasts: Duration::from_millis(millis), then })
    }
}

/// Brings faults upon a world, and takes them away again.
#[derive(Debug)]
pub struct Faults {
    schedule: Schedule,
    dice: Rng,
    /// What befell whom, and until when.
    present: Vec<(Victim, Fault, Instant)>,
    next: Instant,
    counts: Counts,
    /// How often in a row a server did not start.
    failed_starts: u32,
}

impl Faults {
    /// The first fault comes at once.
    pub fn new(seed: u64) -> Self {
        let (schedule, dice) = (Schedule::new(seed), Rng::with_seed(seed.rotate_left(32)));
        Self {
            schedule,
            dice,
            present: Vec::new(),
            next: Instant::now(),
            counts: Counts::new(),
            failed_starts: 0,
        }
    }

    /// How often each occurred.
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Goes on until then.
    pub async fn until(&mut self, end: Instant, world: &mut World, load: &Load) -> Result<(), Failed> {
        while Instant::now() < end {
            self.take_away(Instant::now(), world).await?;
            if Instant::now() >= self.next && self.present.len() < AT_ONCE {
                self.bring(world, load).await?;
            }
            let over = self.present.iter().map(|(_, _, until)| *until).min().unwrap_or(end);
            let next = if self.present.len() < AT_ONCE { self.next.min(over) } else { over };
            tokio::time::sleep_until(next.min(end)).await;
        }
        Ok(())
    }

    /// Takes all away.
    pub async fn end(&mut self, world: &mut World) -> Result<(), Failed> {
        let far = Instant::now() + Duration::from_hours(1);
        while !self.present.is_empty() {
            self.take_away(far, world).await?;
        }
        for number in 0..WORKERS {
            world.worker_link(number).cut();
        }
        for number in 0..SERVERS {
            world.client_link(number).cut();
            if let Some(link) = world.database_link(number) {
                link.cut();
            }
        }
        Ok(())
    }

    async fn bring(&mut self, world: &mut World, load: &Load) -> Result<(), Failed> {
        let Some(planned) = self.schedule.next() else { return Ok(()) };
        let Planned { victim, fault, lasts, then } = planned;
        self.next = Instant::now() + then;
        let busy = self.present.iter().any(|(other, ..)| *other == victim);
        if busy || !exists(victim, world) {
            return Ok(());
        }
        match (victim, fault) {
            (Victim::Worker(number), Fault::Kill) => world.kill_worker(number).await?,
            (Victim::Worker(number), _) => world.signal_worker(number, Signal::STOP)?,
            (Victim::Server(number), Fault::Kill) => world.kill_server(number).await?,
            (Victim::Server(number), _) => world.signal_server(number, Signal::STOP)?,
            (Victim::Database, Fault::Kill) => world.kill_database()?,
            (Victim::Database, _) => world.pause_database()?,
            (Victim::Clients, _) => load.burst(),
            (Victim::WorkerLink(_) | Victim::ClientLink(_) | Victim::DatabaseLink(_), _) => {
                if let Some(link) = link(victim, world) {
                    befall(link, fault, &mut self.dice);
                }
            }
        }
        *self.counts.entry((victim.name(), fault.name())).or_default() += 1;
        self.present.push((victim, fault, Instant::now() + lasts));
        Ok(())
    }

    /// Whether a server could be started.
    async fn start_server(&mut self, number: usize, world: &mut World) -> Result<bool, Failed> {
        match world.start_server(number).await {
            Ok(()) => self.failed_starts = 0,
            Err(error) if self.failed_starts >= STARTS => return Err(error),
            Err(_) => self.failed_starts += 1,
        }
        Ok(self.failed_starts == 0)
    }

    /// Takes away what is over by then.
    async fn take_away(&mut self, by: Instant, world: &mut World) -> Result<(), Failed> {
        let (over, present) =
            std::mem::take(&mut self.present).into_iter().partition(|(.., until)| *until <= by);
        self.present = present;
        let over: Vec<(Victim, Fault, Instant)> = over;
        // The database first: a server does not start without it.
        let database_first = |(victim, ..): &&(Victim, Fault, Instant)| *victim != Victim::Database;
        let mut over: Vec<_> = over.iter().collect();
        over.sort_by_key(database_first);
        for (victim, fault, until) in over {
            match (*victim, *fault) {
                (Victim::Worker(number), Fault::Kill) => world.start_worker(number).await?,
                (Victim::Worker(number), _) => world.signal_worker(number, Signal::CONT)?,
                (Victim::Server(number), Fault::Kill) => {
                    // Where its database is away it does not come to listening, and is tried again, as
                    // whoever looks after it would do.
                    let away = self.present.iter().any(|(other, ..)| keeps_from_starting(*other, number));
                    if away || !self.start_server(number, world).await? {
                        let later = *until + Duration::from_secs(1);
                        self.present.push((*victim, *fault, later));
                    }
                }
                (Victim::Server(number), _) => world.signal_server(number, Signal::CONT)?,
                (Victim::Database, Fault::Kill) => world.start_database().await?,
                (Victim::Database, _) => world.continue_database()?,
                (Victim::Clients, _) => {}
                (victim, fault) => {
                    if let Some(link) = link(victim, world) {
                        relieve(link, fault);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whether a server cannot start while this is befallen.
fn keeps_from_starting(victim: Victim, server: usize) -> bool {
    victim == Victim::Database || victim == Victim::DatabaseLink(server)
}

fn exists(victim: Victim, world: &World) -> bool {
    match victim {
        Victim::Database => world.owns_cluster(),
        Victim::DatabaseLink(number) => world.database_link(number).is_some(),
        _ => true,
    }
}

fn link(victim: Victim, world: &World) -> Option<&Proxy> {
    match victim {
        Victim::WorkerLink(number) => Some(world.worker_link(number)),
        Victim::ClientLink(number) => Some(world.client_link(number)),
        Victim::DatabaseLink(number) => world.database_link(number),
        Victim::Worker(_) | Victim::Server(_) | Victim::Database | Victim::Clients => None,
    }
}

fn befall(link: &Proxy, fault: Fault, dice: &mut Rng) {
    match fault {
        Fault::Partition => link.black_hole(),
        Fault::HalfOpen => link.half_open(),
        Fault::CutAnswers => link.cut_after(Direction::Down, dice.u64(..2_000)),
        Fault::Refuse => link.refuse(),
        Fault::Slow => link.slow(Duration::from_millis(dice.u64(5..100)), dice.u32(2_000..200_000)),
        Fault::Cut | Fault::Kill | Fault::Pause | Fault::Burst => link.cut(),
    }
}

fn relieve(link: &Proxy, fault: Fault) {
    match fault {
        // A firewall that forgot a connection resets it in the end.
        Fault::HalfOpen => link.cut(),
        // What was held up arrives now, late.
        _ => link.open(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_gives_the_same_schedule_and_a_schedule_gives_every_fault_to_every_victim() {
        let plan = |seed| Schedule::new(seed).take(2_000).collect::<Vec<_>>();
        assert_eq!(plan(3), plan(3));
        assert_ne!(plan(3), plan(4));
        let kinds: std::collections::BTreeSet<_> =
            plan(3).iter().map(|planned| (planned.victim.name(), planned.fault.name())).collect();
        // Two each for worker, server and database, six for each of the links, and the burst.
        assert_eq!(kinds.len(), 3 * 2 + 3 * 6 + 1, "{kinds:?}");
    }
}
