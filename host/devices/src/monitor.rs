//! The monitor: samples NVML on a thread of its own, so that a hanging driver hangs nobody.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::gpu::Snapshot;
use crate::nvml;

/// How long after a missing driver the monitor looks again.
const RETRY: Duration = Duration::from_secs(30);
/// The longest that a caller waits for a sample of its own.
const REFRESH: Duration = Duration::from_secs(1);

/// Called with every sample.
type Listener = Box<dyn Fn(&Snapshot) + Send>;

struct Shared {
    /// Set by who wants a sample before its time.
    wanted: Mutex<bool>,
    wake: Condvar,
    last: Mutex<Arc<Snapshot>>,
    sampled: Condvar,
    listener: Mutex<Option<Listener>>,
}

/// Keeps the last sample of the machine's GPUs.
#[derive(Clone)]
pub struct Monitor {
    shared: Arc<Shared>,
    patience: Duration,
}

impl Monitor {
    /// Starts to sample every `period`, and waits for the first sample, `patience` at most.
    /// `visible` is the value of `CUDA_VISIBLE_DEVICES`.
    pub fn start(period: Duration, patience: Duration, visible: Option<String>) -> Self {
        let waiting = Snapshot::unavailable(format!(
            "NVML has not answered for {} s",
            patience.as_secs_f64()
        ));
        let shared = Arc::new(Shared {
            last: Mutex::new(Arc::new(waiting)),
            wanted: Mutex::new(false),
            wake: Condvar::new(),
            sampled: Condvar::new(),
            listener: Mutex::default(),
        });
        let sampling = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("nvml".to_owned());
        let spawned = thread.spawn(move || sampling.sample_for_ever(period, visible.as_deref()));
        let monitor = Self { shared, patience };
        match spawned {
            Ok(_) => monitor.wait_for_first(),
            Err(error) => {
                let reason = format!("no thread to read NVML on: {error}");
                monitor.shared.store(Snapshot::unavailable(reason));
            }
        }
        monitor
    }

    fn wait_for_first(&self) {
        let last = self
            .shared
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let pending = |last: &mut Arc<Snapshot>| last.taken.is_none();
        let _ = self
            .shared
            .sampled
            .wait_timeout_while(last, self.patience, pending);
    }

    /// A sample taken after this was called; the last one where NVML takes longer than a second.
    pub fn refresh(&self) -> Arc<Snapshot> {
        let asked = Instant::now();
        *self
            .shared
            .wanted
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.wake.notify_all();
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

    /// Calls `listener` with the last sample and every one to come.
    pub fn on_sample(&self, listener: impl Fn(&Snapshot) + Send + 'static) {
        let mut slot = self
            .shared
            .listener
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        listener(&self.snapshot());
        *slot = Some(Box::new(listener));
    }

    /// The last sample. Where NVML has stopped answering since, its GPUs say so.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        let last = Arc::clone(
            &self
                .shared
                .last
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        let age = last.taken.map(|taken| taken.elapsed());
        match age {
            Some(age) if age > self.patience.max(RETRY) && last.nvml_error.is_none() => {
                let mut stale = Snapshot::clone(&last);
                let reason = format!("NVML has not answered for {} s", age.as_secs());
                for gpu in &mut stale.gpus {
                    gpu.error = Some(reason.clone());
                }
                stale.nvml_error = Some(reason);
                Arc::new(stale)
            }
            _ => last,
        }
    }
}

impl Shared {
    fn store(&self, mut snapshot: Snapshot) {
        snapshot.taken.get_or_insert_with(Instant::now);
        let snapshot = Arc::new(snapshot);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&snapshot);
        self.sampled.notify_all();
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(listener) = &*listener {
            listener(&snapshot);
        }
    }

    /// Waits for the next sample's time, or for somebody who wants one now.
    fn pause(&self, period: Duration) {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .wake
            .wait_timeout_while(wanted, period, |wanted| !*wanted);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
    }

    fn sample_for_ever(&self, period: Duration, visible: Option<&str>) {
        loop {
            match nvml::open() {
                Err(reason) => self.store(Snapshot::unavailable(reason)),
                Ok(nvml) => loop {
                    let snapshot = nvml::sample(&nvml, visible);
                    let failed = snapshot.nvml_error.is_some();
                    self.store(snapshot);
                    if failed {
                        break;
                    }
                    self.pause(period);
                },
            }
            std::thread::sleep(RETRY);
        }
    }
}
