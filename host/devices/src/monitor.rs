//! The monitor: samples NVML on a thread of its own, so that a hanging driver hangs nobody.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::gpu::Snapshot;
use crate::nvml;

/// How long after a missing driver the monitor looks again.
const RETRY: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Shared {
    last: Mutex<Arc<Snapshot>>,
    sampled: Condvar,
}

/// Keeps the last sample of the machine's GPUs.
#[derive(Debug, Clone)]
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
            sampled: Condvar::new(),
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
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
        self.sampled.notify_all();
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
                    std::thread::sleep(period);
                },
            }
            std::thread::sleep(RETRY);
        }
    }
}
