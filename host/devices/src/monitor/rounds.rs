//! Rounds of samples: who is asked, who is waited for, and what is told of those that are silent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::roster::Roster;
use super::{Listing, News, Shared};
use crate::gpu::{Failure, Peer, Reading, Snapshot, Source, System};
use crate::nvml::{self, Session};

/// A call that takes longer is taken to hang.
const TIMEOUT: Duration = Duration::from_secs(2);
/// A GPU whose call hangs is looked at this often at least, so that its tasks end in time.
const GLANCE: Duration = Duration::from_secs(1);
/// How long after a failure NVML is first opened anew; each further time it is twice as long.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(300);

/// What the conductor is told.
pub(super) enum Message {
    /// NVML was loaded and counted the GPUs, or why not.
    Opened(Result<(Arc<Session>, System), String>),
    /// NVML counted the GPUs again, or why not.
    Counted(Result<System, String>),
    /// What the GPU of this number of NVML's told.
    Read(u32, Box<Reading>),
    /// An Xid of the GPU of this number of NVML's.
    Xid(u32, u64),
    /// How GPUs, by NVML's numbers, are connected to others.
    Connected(Vec<(u32, Vec<Peer>)>),
    /// Somebody wants a sample before its time.
    Wanted,
}

/// A thread that makes one call at a time when asked.
struct Caller {
    ask: Sender<()>,
    /// Since when it has not answered; none where it is idle.
    asked: Option<Instant>,
}

impl Caller {
    /// `work` is called on a thread of this name whenever it is asked.
    fn spawn(name: String, mut work: impl FnMut() + Send + 'static) -> std::io::Result<Self> {
        let (ask, asked) = channel::<()>();
        std::thread::Builder::new().name(name).spawn(move || {
            while asked.recv().is_ok() {
                work();
            }
        })?;
        Ok(Self { ask, asked: None })
    }

    /// Asks it unless it still has not answered; true where it was asked.
    fn ask(&mut self) -> bool {
        if self.asked.is_some() || self.ask.send(()).is_err() {
            return false;
        }
        self.asked = Some(Instant::now());
        true
    }

    /// For how long it has not answered, where that is long.
    fn hangs(&self) -> Option<Duration> {
        let silence = self.asked?.elapsed();
        (silence >= TIMEOUT).then_some(silence)
    }
}

/// The threads of one session of NVML.
#[derive(Default)]
struct Threads {
    /// Opens NVML and counts GPUs.
    counter: Option<Caller>,
    session: Option<Arc<Session>>,
    system: System,
    /// By NVML's numbers.
    gpus: BTreeMap<u32, Caller>,
    readings: BTreeMap<u32, Reading>,
    /// Set to end the thread that waits for Xids.
    ended: Arc<AtomicBool>,
    /// Whether there is such a thread.
    listens: bool,
    /// How GPUs are connected to others, once it is known.
    peers: BTreeMap<u32, Vec<Peer>>,
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// When to open NVML anew.
#[derive(Default)]
struct Retry {
    at: Option<Instant>,
    pause: Duration,
}

impl Retry {
    /// Plans a retry, unless one is planned.
    fn plan(&mut self) {
        let pause = self.pause.max(FIRST_RETRY);
        self.at.get_or_insert_with(|| Instant::now() + pause);
    }

    /// Whether it is time; the next is after twice as long.
    fn due(&mut self) -> bool {
        let due = self.at.is_some_and(|at| at <= Instant::now());
        if due {
            self.at = None;
            self.pause = (self.pause.max(FIRST_RETRY) * 2).min(LAST_RETRY);
        }
        due
    }
}

/// The conductor.
pub(super) struct Rounds {
    shared: Arc<Shared>,
    outbox: Sender<(u64, Message)>,
    visible: Option<String>,
    /// Called once, where NVML cannot be used at first.
    listing: Option<Listing>,
    /// Whether the GPUs are known from it.
    listed: bool,
    roster: Roster,
    /// The number of the session: what threads of others say does not count.
    generation: u64,
    threads: Threads,
    retry: Retry,
    /// Why NVML cannot be used.
    failure: Option<String>,
    /// Who was asked in this round and has not answered.
    awaited: BTreeSet<u32>,
    /// Whether the counting thread is among them.
    counts: bool,
    /// Whether somebody wants the next round at once.
    wanted: bool,
    /// Whether there is a GPU whose Xids are not waited for, which another session does.
    unheard: bool,
}

impl Rounds {
    pub(super) fn new(
        shared: Arc<Shared>,
        outbox: Sender<(u64, Message)>,
        visible: Option<String>,
        listing: Listing,
    ) -> Self {
        Self {
            shared,
            outbox,
            visible,
            listing: Some(listing),
            listed: false,
            roster: Roster::default(),
            generation: 0,
            threads: Threads::default(),
            retry: Retry::default(),
            failure: None,
            awaited: BTreeSet::new(),
            counts: false,
            wanted: false,
            unheard: false,
        }
    }

    /// Samples for ever. The first round waits as long as `patience`.
    pub(super) fn conduct(
        mut self,
        inbox: &Receiver<(u64, Message)>,
        period: Duration,
        patience: Duration,
    ) {
        self.open();
        let mut timeout = patience;
        loop {
            let begun = Instant::now();
            self.wanted = false;
            self.ask();
            while self.counts || !self.awaited.is_empty() {
                if !self.hear(inbox, begun + timeout) {
                    break;
                }
            }
            self.publish(begun, timeout);
            timeout = TIMEOUT;
            let hangs = self.threads.gpus.values().any(|gpu| gpu.asked.is_some());
            // A session in which a call hangs cannot be ended.
            if self.retry.due() || (self.unheard && !hangs) {
                self.unheard = false;
                self.open();
                continue;
            }
            let silent = self.threads.gpus.values().any(|gpu| gpu.hangs().is_some());
            let next = begun + if silent { period.min(GLANCE) } else { period };
            let next = self.retry.at.map_or(next, |at| next.min(at));
            while !self.wanted && self.hear(inbox, next) {}
        }
    }

    /// Ends what threads there are, and loads NVML anew once they have let go of it: what it lists is
    /// fresh only then.
    fn open(&mut self) {
        self.generation += 1;
        let before = self.threads.session.as_ref().map(Arc::downgrade);
        self.threads = Threads::default();
        let (generation, outbox) = (self.generation, self.outbox.clone());
        let mut session: Option<Arc<Session>> = None;
        let counter = Caller::spawn("nvml".to_owned(), move || {
            let message = match &session {
                Some(session) => Message::Counted(session.system()),
                None => {
                    let held = || {
                        before
                            .as_ref()
                            .is_some_and(|before| before.strong_count() > 0)
                    };
                    let end = Instant::now() + TIMEOUT;
                    while held() && Instant::now() < end {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    Message::Opened(Session::open().and_then(|opened| {
                        let system = opened.system()?;
                        Ok((Arc::clone(session.insert(Arc::new(opened))), system))
                    }))
                }
            };
            // The conductor lives as long as the program.
            let _ended = outbox.send((generation, message));
        });
        match counter {
            Ok(counter) => self.threads.counter = Some(counter),
            Err(error) => self.fail(format!("no thread to read NVML on: {error}")),
        }
    }

    /// NVML cannot be used, for a reason: it is opened anew after a while.
    fn fail(&mut self, reason: String) {
        self.failure = Some(reason);
        self.generation += 1;
        self.threads = Threads::default();
        self.awaited.clear();
        self.counts = false;
        self.retry.plan();
    }

    /// Asks all that are idle.
    fn ask(&mut self) {
        self.counts = self.threads.counter.as_mut().is_some_and(Caller::ask);
        self.awaited.clear();
        for (&index, gpu) in &mut self.threads.gpus {
            if gpu.ask() {
                self.awaited.insert(index);
            }
        }
    }

    /// Takes the next message that comes before `end`; false where there is none.
    fn hear(&mut self, inbox: &Receiver<(u64, Message)>, end: Instant) -> bool {
        let patience = end.saturating_duration_since(Instant::now());
        let Ok((generation, message)) = inbox.recv_timeout(patience) else {
            return false;
        };
        match message {
            Message::Wanted => self.wanted = true,
            // Of a session that has ended.
            _ if generation != self.generation => {}
            Message::Opened(opened) => {
                self.counted();
                match opened {
                    Ok((session, system)) => {
                        self.failure = None;
                        self.threads.session = Some(session);
                        self.list(system);
                    }
                    Err(reason) => self.fail(reason),
                }
            }
            Message::Counted(counted) => {
                self.counted();
                match counted {
                    Ok(system) => self.list(system),
                    Err(reason) => self.fail(reason),
                }
            }
            Message::Read(index, reading) => {
                if let Some(gpu) = self.threads.gpus.get_mut(&index) {
                    gpu.asked = None;
                    self.threads.readings.insert(index, *reading);
                }
                self.awaited.remove(&index);
            }
            Message::Connected(peers) => self.threads.peers = peers.into_iter().collect(),
            Message::Xid(index, code) => {
                for gpu in self.roster.indices(index) {
                    self.shared.tell(News::Xid { gpu, code });
                }
            }
        }
        true
    }

    fn counted(&mut self) {
        self.counts = false;
        if let Some(counter) = &mut self.threads.counter {
            counter.asked = None;
        }
    }

    /// Has a thread for each GPU that NVML counts; new ones are asked in this round.
    fn list(&mut self, system: System) {
        let count = system.detected;
        self.threads.system = system;
        self.threads.gpus.retain(|&index, _| index < count);
        self.threads.readings.retain(|&index, _| index < count);
        let Some(session) = &self.threads.session else {
            return;
        };
        for index in 0..count {
            if self.threads.gpus.contains_key(&index) {
                continue;
            }
            let (session, outbox) = (Arc::clone(session), self.outbox.clone());
            let (generation, mut known) = (self.generation, None);
            let gpu = Caller::spawn(format!("nvml-{index}"), move || {
                let reading = Box::new(session.read(index, &mut known));
                // The conductor lives as long as the program.
                let _ended = outbox.send((generation, Message::Read(index, reading)));
            });
            // Without a thread it is looked for again in the next round.
            if let Ok(mut gpu) = gpu {
                gpu.ask();
                self.awaited.insert(index);
                self.threads.gpus.insert(index, gpu);
            }
        }
    }

    /// What each GPU that NVML counts told last, or that it is silent.
    fn readings(&self) -> Vec<(u32, Reading)> {
        let gpus = self.threads.gpus.iter().map(|(&index, gpu)| {
            let reading = match (gpu.hangs(), self.threads.readings.get(&index)) {
                (None, Some(reading)) => {
                    let mut reading = reading.clone();
                    reading.gpu.facts.peers = self.threads.peers.get(&index).cloned();
                    reading
                }
                (Some(silence), _) => Reading::failed(
                    index,
                    Failure::Silent(silence),
                    format!("NVML has not answered about it for {} s", silence.as_secs()),
                ),
                (None, None) => Reading::failed(
                    index,
                    Failure::Unknown,
                    "NVML has not answered about it yet".to_owned(),
                ),
            };
            (index, reading)
        });
        gpus.collect()
    }

    fn publish(&mut self, begun: Instant, timeout: Duration) {
        let hangs = self.threads.counter.as_ref().and_then(Caller::hangs);
        let silence = hangs.map(|silence| {
            let silence = silence.max(timeout).as_secs_f64();
            format!("NVML has not answered for {silence:.0} s")
        });
        let failure = self.failure.clone().or(silence);
        if self.threads.session.is_none() {
            // While it is being opened, what was last told stays.
            let Some(reason) = failure else { return };
            if self.failure.is_some() {
                self.list_without_nvml();
            }
            let (gpus, source) = if self.listed {
                (self.roster.known(), Source::CudaOnly)
            } else {
                (self.roster.silenced(&reason), Source::None)
            };
            self.shared.store(Snapshot {
                gpus,
                source,
                taken: Some(begun),
                ..Snapshot::unavailable(reason)
            });
            return;
        }
        self.listing = None;
        self.listed = false;
        let readings = self.readings();
        if self.roster.is_empty() {
            let visible = self.visible.as_deref();
            let filter = |gpus| match visible {
                Some(visible) => nvml::filter(gpus, visible),
                None => gpus,
            };
            self.roster.seat(readings.clone(), filter);
        }
        let mut gpus = self.roster.gpus(&readings);
        // `CUDA_VISIBLE_DEVICES` counts what there was when it was set.
        if self.visible.is_none() {
            let (more, whole) = self.roster.seat_more(&readings);
            gpus.extend(more);
            self.unheard |= whole;
        }
        self.listen(&readings);
        // A session in which a call hangs cannot be ended, and others that fail would not be seen
        // afresh. A GPU that may not be looked at is no failure of NVML's.
        let fails = |failure| {
            matches!(
                failure,
                Failure::Lost | Failure::ResetRequired | Failure::Unknown
            )
        };
        let hangs = self.threads.gpus.values().any(|gpu| gpu.asked.is_some());
        if hangs || !gpus.iter().filter_map(|gpu| gpu.failure).any(fails) {
            self.retry = Retry::default();
        } else {
            self.retry.plan();
        }
        self.shared.store(Snapshot {
            gpus,
            system: self.threads.system.clone(),
            nvml_error: failure,
            source: Source::Nvml,
            taken: Some(begun),
        });
    }

    /// Takes the GPUs from the CUDA driver, the first time that NVML cannot be used.
    fn list_without_nvml(&mut self) {
        let listing = self.listing.take().filter(|_| self.roster.is_empty());
        let Some(Ok(gpus)) = listing.map(|listing| listing()) else {
            return;
        };
        let readings = (0..).zip(gpus).map(|(index, gpu)| {
            let position = (0, 0, index);
            (
                index,
                Reading {
                    gpu,
                    instances: Vec::new(),
                    position,
                },
            )
        });
        self.roster.seat(readings.collect(), |gpus| gpus);
        self.listed = !self.roster.is_empty();
    }

    /// Starts the thread that waits for Xids of the GPUs that answered, once in a session, and one that
    /// asks how they are connected, as a call about two GPUs may hang with either.
    fn listen(&mut self, readings: &[(u32, Reading)]) {
        let Some(session) = self
            .threads
            .session
            .clone()
            .filter(|_| !self.threads.listens)
        else {
            return;
        };
        let able = readings
            .iter()
            .filter(|(_, reading)| reading.gpu.error.is_none());
        let able: Vec<u32> = able.map(|&(index, _)| index).collect();
        let generation = self.generation;
        let (asked, all, outbox) = (Arc::clone(&session), able.clone(), self.outbox.clone());
        let thread = std::thread::Builder::new().name("nvml-links".to_owned());
        let _not_known = thread.spawn(move || {
            // The conductor lives as long as the program.
            let _ended = outbox.send((generation, Message::Connected(asked.peers(&all))));
        });
        let (ended, outbox) = (Arc::clone(&self.threads.ended), self.outbox.clone());
        let thread = std::thread::Builder::new().name("nvml-events".to_owned());
        let spawned = thread.spawn(move || {
            session.events(&able, &ended, |index, code| {
                // The conductor lives as long as the program.
                let _ended = outbox.send((generation, Message::Xid(index, code)));
            });
        });
        self.threads.listens = spawned.is_ok();
    }
}
