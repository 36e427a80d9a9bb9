//! The monitor: samples NVML off the request path, each GPU on a thread of its own, so that a GPU
//! whose calls hang hangs nobody.
//!
//! A thread that calls nothing of NVML conducts ([`rounds`]): every period it asks the threads for a
//! sample and waits for a while; who has not answered then is told of as silent, and not asked again
//! until the call returns. [`roster`] keeps which GPU is which `cuda:N`.

mod roster;
mod rounds;

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use self::rounds::{Message, Rounds};
use crate::gpu::{Gpu, Snapshot};

/// The longest that a caller waits for a sample of its own.
const REFRESH: Duration = Duration::from_secs(1);

/// What the monitor's listener is told.
#[derive(Debug, Clone, Copy)]
pub enum News<'a> {
    /// A new sample.
    Sample(&'a Snapshot),
    /// An Xid: an error that the driver reports of a GPU.
    Xid {
        /// N of `cuda:N`.
        gpu: u32,
        /// NVIDIA's number of the error.
        code: u64,
    },
}

/// Lists the GPUs where there is no NVML, or tells why there are none.
pub type Listing = Box<dyn Fn() -> Result<Vec<Gpu>, String> + Send>;

/// Called with all news.
type Listener = Box<dyn Fn(News<'_>) + Send>;

struct Shared {
    last: Mutex<Arc<Snapshot>>,
    sampled: Condvar,
    listener: Mutex<Option<Listener>>,
}

/// Keeps the last sample of the machine's GPUs.
#[derive(Clone)]
pub struct Monitor {
    shared: Arc<Shared>,
    conductor: Sender<(u64, Message)>,
}

impl Monitor {
    /// Starts to sample every `period`, and waits for the first sample: `patience` at most, as a GPU
    /// that wakes up takes some seconds. `visible` is the value of `CUDA_VISIBLE_DEVICES`; `listing` is
    /// called once, where NVML cannot be used at first.
    pub fn start(
        period: Duration,
        patience: Duration,
        visible: Option<String>,
        listing: Listing,
    ) -> Self {
        let shared = Arc::new(Shared {
            last: Mutex::new(Arc::new(Snapshot::unavailable(
                "NVML has not answered yet".to_owned(),
            ))),
            sampled: Condvar::new(),
            listener: Mutex::default(),
        });
        let (conductor, inbox) = channel();
        let rounds = Rounds::new(Arc::clone(&shared), conductor.clone(), visible, listing);
        let thread = std::thread::Builder::new().name("monitor".to_owned());
        let spawned = thread.spawn(move || rounds.conduct(&inbox, period, patience));
        let monitor = Self { shared, conductor };
        match spawned {
            Ok(_) => monitor.wait_for_first(patience),
            Err(error) => {
                let reason = format!("no thread to read NVML on: {error}");
                monitor.shared.store(Snapshot::unavailable(reason));
            }
        }
        monitor
    }

    fn wait_for_first(&self, patience: Duration) {
        let last = self
            .shared
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let pending = |last: &mut Arc<Snapshot>| last.taken.is_none();
        // The conductor gives up after `patience` itself, and then says of whom.
        let patience = patience + REFRESH;
        let _ = self
            .shared
            .sampled
            .wait_timeout_while(last, patience, pending);
    }

    /// A sample taken after this was called; the last one where NVML takes longer than a second.
    pub fn refresh(&self) -> Arc<Snapshot> {
        let asked = Instant::now();
        // Without a conductor there is no other sample.
        let _none = self.conductor.send((0, Message::Wanted));
        let last = self
            .shared
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let older = |last: &mut Arc<Snapshot>| last.taken.is_none_or(|taken| taken < asked);
        let waited = self.shared.sampled.wait_timeout_while(last, REFRESH, older);
        let (last, _) = waited.unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&last)
    }

    /// Calls `listener` with the last sample and all news to come.
    pub fn listen(&self, listener: impl Fn(News<'_>) + Send + 'static) {
        let mut slot = self
            .shared
            .listener
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        listener(News::Sample(&self.snapshot()));
        *slot = Some(Box::new(listener));
    }

    /// The last sample.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        let last = self.shared.last.lock();
        Arc::clone(&last.unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shared {
    fn store(&self, mut snapshot: Snapshot) {
        snapshot.taken.get_or_insert_with(Instant::now);
        let snapshot = Arc::new(snapshot);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&snapshot);
        self.sampled.notify_all();
        self.tell(News::Sample(&snapshot));
    }

    fn tell(&self, news: News<'_>) {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(listener) = &*listener {
            listener(news);
        }
    }
}
