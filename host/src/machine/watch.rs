//! The watch over GPUs: tells each one's [`Condition`] what happens to it, and does what follows: ends
//! leases, runs self-tests, opens and closes the GPU for tasks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use devices::{
    Allocator, Cause, Condition, DeviceEntry, DeviceId, Failure, Gpu, Health, LastXid, Monitor,
    News, Order, Recovery, Signal, Snapshot, State, Usage,
};

use super::{entry, measurement};
use crate::settings::Settings;
use crate::worker::probe::{Depth, Finding, probe};

/// A task's fault is told of with an Xid that was reported no longer before.
const RECENT: Duration = Duration::from_secs(10);
/// How often NVML is asked which of several GPUs has failed, and the pause between.
const LOOKS: u32 = 5;
const GLANCE: Duration = Duration::from_millis(100);

/// A GPU under watch.
struct Ward {
    condition: Condition,
    /// As it last answered.
    gpu: Gpu,
    /// Whether it has ever answered.
    known: bool,
    /// How well it was last shown to be, and since when.
    shown: (Health, Duration),
}

impl Ward {
    /// A GPU that is watched from a time on.
    fn new(gpu: &Gpu, now: Duration) -> Self {
        Self {
            condition: Condition::new(now),
            gpu: gpu.clone(),
            known: gpu.error.is_none(),
            shown: (Health::Healthy, now),
        }
    }
}

/// How well a GPU is, for those who look.
#[derive(Debug, Clone)]
pub struct Shown {
    /// In a word.
    pub health: Health,
    /// Why, where it is not healthy.
    pub reason: Option<String>,
    /// For how long.
    pub age: Duration,
    /// The last Xid, and how long ago it was reported.
    pub last_xid: Option<(LastXid, Duration)>,
}

/// What would recover a GPU, by its own word.
fn recovery(gpu: &Gpu) -> Option<Recovery> {
    let told = gpu.readings.recovery_action;
    told.filter(|recovery| *recovery != Recovery::None)
}

/// How thoroughly a GPU is tested.
type Depths = Box<dyn Fn(DeviceId) -> Depth + Send + Sync>;

/// The watch over the GPUs.
pub(super) struct Watch {
    monitor: Monitor,
    allocator: Arc<Allocator>,
    settings: Arc<Mutex<Settings>>,
    depth: Depths,
    began: Instant,
    /// By N of `cuda:N`. The allocator's lock is taken under this one, never the other way.
    wards: Mutex<BTreeMap<u32, Ward>>,
    tests: Mutex<Vec<JoinHandle<()>>>,
    /// How often it was told something.
    told: AtomicU64,
    own: Weak<Self>,
}

impl Watch {
    pub(super) fn new(
        monitor: Monitor,
        allocator: Arc<Allocator>,
        settings: Arc<Mutex<Settings>>,
        gpus: &[Gpu],
        depth: Depths,
    ) -> Arc<Self> {
        let wards = gpus
            .iter()
            .map(|gpu| (gpu.index, Ward::new(gpu, Duration::ZERO)));
        Arc::new_cyclic(|own| Self {
            monitor,
            allocator,
            settings,
            depth,
            began: Instant::now(),
            wards: Mutex::new(wards.collect()),
            tests: Mutex::default(),
            told: AtomicU64::new(0),
            own: own.clone(),
        })
    }

    fn wards(&self) -> MutexGuard<'_, BTreeMap<u32, Ward>> {
        self.wards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes news of the monitor's.
    pub(super) fn hear(&self, news: News<'_>) {
        match news {
            News::Sample(snapshot) => self.sampled(snapshot),
            News::Xid { gpu, code } => {
                let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
                let action = settings.health.xid.action(code);
                drop(settings);
                let (leases, beside) = self.leases(gpu);
                let signal = Signal::Xid {
                    code,
                    action,
                    leases,
                    beside,
                };
                self.tell(gpu, &signal);
            }
        }
    }

    fn sampled(&self, snapshot: &Snapshot) {
        for gpu in &snapshot.gpus {
            self.welcome(gpu);
            match (gpu.failure, &gpu.error) {
                (Some(failure), reason) => {
                    let reason = reason.as_deref().unwrap_or_default();
                    self.tell(gpu.index, &Signal::Failed(failure, reason));
                }
                (None, _) => {
                    let changed = self.is_changed(gpu);
                    self.identify(gpu);
                    if changed {
                        let what = gpu.unfit().unwrap_or("it is not split any more");
                        self.tell(gpu.index, &Signal::Changed(what));
                    }
                    self.tell(gpu.index, &Signal::Answered(recovery(gpu)));
                }
            }
        }
        let now = self.began.elapsed();
        let measured = snapshot.gpus.iter().map(|gpu| measurement(gpu, now));
        self.allocator.measured(&measured.collect::<Vec<_>>());
        for usage in self.allocator.usage() {
            if let DeviceId::Cuda(index) = usage.device {
                self.show(index, Some(&usage));
            }
        }
    }

    /// Whether a GPU was split into instances or put together since it last answered.
    fn is_changed(&self, gpu: &Gpu) -> bool {
        let wards = self.wards();
        let ward = wards.get(&gpu.index);
        ward.is_some_and(|ward| ward.known && ward.gpu.unfit() != gpu.unfit())
    }

    /// Takes a GPU under watch that has appeared since the host started, and tells the allocator.
    fn welcome(&self, gpu: &Gpu) {
        let mut wards = self.wards();
        if wards.contains_key(&gpu.index) {
            return;
        }
        wards.insert(gpu.index, Ward::new(gpu, self.began.elapsed()));
        let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let (entry, pools) = (entry(gpu, &settings), settings.named_pools());
        drop(settings);
        self.allocator.add(entry);
        if let Ok(pools) = pools {
            self.allocator.set_pools(pools);
        }
        self.told.fetch_add(1, Ordering::Release);
    }

    /// Keeps what is known of a GPU that answers. One that answers for the first time is told to the
    /// allocator.
    fn identify(&self, gpu: &Gpu) {
        let mut wards = self.wards();
        let Some(ward) = wards.get_mut(&gpu.index) else {
            return;
        };
        let linked = gpu.facts.peers != ward.gpu.facts.peers;
        ward.gpu.clone_from(gpu);
        if std::mem::replace(&mut ward.known, true) {
            // How GPUs are linked is known some time after they are.
            if linked {
                let peers = gpu.facts.peers.clone().unwrap_or_default();
                let id = DeviceId::Cuda(gpu.index);
                self.allocator.update(id, |entry| entry.peers = peers);
            }
            return;
        }
        let settings = self
            .settings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let state = ward.condition.state();
        let known = entry(gpu, &settings);
        self.allocator
            .update(known.id, |entry| *entry = DeviceEntry { state, ..known });
        if let Ok(pools) = settings.named_pools() {
            self.allocator.set_pools(pools);
        }
    }

    /// Tells what happened to a GPU, and does what follows.
    fn tell(&self, index: u32, signal: &Signal<'_>) {
        let id = DeviceId::Cuda(index);
        let mut wards = self.wards();
        let Some(ward) = wards.get_mut(&index) else {
            return;
        };
        let before = ward.condition.state();
        let orders = ward.condition.signal(self.began.elapsed(), signal);
        let state = ward.condition.state();
        self.told.fetch_add(1, Ordering::Release);
        if state != before {
            self.allocator.update(id, |entry| entry.state = state);
        }
        let uuid = ward.gpu.uuid.clone();
        let uuid = uuid.as_deref().unwrap_or("no UUID");
        let named = |cause: Cause| Cause {
            reason: format!("{id} ({uuid}): {}", cause.reason),
            ..cause
        };
        for order in orders {
            match order {
                Order::Fail(cause) => self.allocator.fail(id, &named(cause), false),
                Order::FailOnly(cause) => self.allocator.fail(id, &named(cause), true),
                Order::Test => {
                    if let Err(error) = self.test(&ward.gpu) {
                        let reason = format!("it cannot be tested: {error}");
                        let failed = Signal::Tested(Err(&reason));
                        // The next test is planned for later.
                        ward.condition.signal(self.began.elapsed(), &failed);
                        let state = ward.condition.state();
                        self.allocator.update(id, |entry| entry.state = state);
                    }
                }
            }
        }
    }

    /// Runs a self-test of a GPU on a thread of its own. Errors: where there is no thread.
    fn test(&self, gpu: &Gpu) -> std::io::Result<()> {
        let (index, uuid, unfit) = (gpu.index, gpu.uuid.clone(), gpu.unfit());
        let (own, depth) = (self.own.clone(), (self.depth)(DeviceId::Cuda(index)));
        let thread = std::thread::Builder::new().name(format!("test-cuda:{index}"));
        let test = thread.spawn(move || {
            let outcome = match (unfit, uuid) {
                (Some(reason), _) => Err(reason.to_owned()),
                (None, Some(uuid)) => probe(&uuid, depth),
                (None, None) => Err("NVML does not tell its UUID".to_owned()),
            };
            if let Some(watch) = own.upgrade() {
                // What the test held is seen to be gone before tasks are admitted.
                watch.monitor.refresh();
                watch.tested(index, outcome);
            }
        })?;
        let mut tests = self.tests.lock().unwrap_or_else(PoisonError::into_inner);
        tests.retain(|test| !test.is_finished());
        tests.push(test);
        Ok(())
    }

    fn tested(&self, index: u32, outcome: Result<Finding, String>) {
        let id = DeviceId::Cuda(index);
        let wards = self.wards();
        let first = wards
            .get(&index)
            .is_some_and(|ward| ward.condition.state() == State::Probing);
        drop(wards);
        let outcome = outcome.and_then(|finding| match finding.untested {
            // Tasks wait for memory as for any.
            Some(reason) if !first => Err(reason),
            _ => Ok(finding.context_bytes),
        });
        if let Ok(bytes) = outcome {
            self.allocator.update(id, |entry| {
                if entry.overhead_bytes == 0 {
                    entry.overhead_bytes = bytes;
                }
            });
        }
        let outcome = outcome.as_ref().map(|_| ()).map_err(String::as_str);
        self.tell(index, &Signal::Tested(outcome));
    }

    /// Tells that a task had a fault of its GPU.
    pub(super) fn fault(&self, index: u32, reason: &str) {
        self.tell(index, &Signal::Fault(reason));
    }

    /// Which of several GPUs a task's fault is of: the one that the task named, unless NVML or the driver's
    /// Xids tell of another and of that one nothing. NVML may know of it some time after the task, so it
    /// is asked up to [`LOOKS`] times, until it tells of one.
    pub(super) fn culprit(&self, named: u32, among: &[u32]) -> u32 {
        for look in 0..LOOKS {
            if look > 0 {
                std::thread::sleep(GLANCE);
            }
            let sample = self.monitor.refresh();
            let told = |index: &u32| {
                // The sample may not have been heard of yet.
                let mut sampled = sample.gpus.iter().filter(|gpu| gpu.index == *index);
                let lost = |gpu: &Gpu| {
                    let gone = [Some(Failure::Lost), Some(Failure::ResetRequired)];
                    gone.contains(&gpu.failure) || recovery(gpu).is_some()
                };
                let wards = self.wards();
                let health = wards.get(index).map(|ward| ward.condition.health());
                drop(wards);
                sampled.any(lost)
                    || health.is_some_and(|health| health != Health::Healthy)
                    || self.reported(*index).is_some()
            };
            if told(&named) {
                return named;
            }
            if let Some(&other) = among.iter().find(|index| told(index)) {
                return other;
            }
        }
        named
    }

    /// The Xid that the driver reported of a GPU just before.
    pub(super) fn reported(&self, index: u32) -> Option<u64> {
        let wards = self.wards();
        let last = wards.get(&index)?.condition.last_xid()?;
        (self.began.elapsed() < last.at + RECENT).then_some(last.code)
    }

    /// Tells that the operator wants a GPU back.
    pub(super) fn enable(&self, index: u32) {
        self.tell(index, &Signal::Enabled);
    }

    /// Another number after every change of what it shows.
    pub(super) fn version(&self) -> u64 {
        self.told.load(Ordering::Acquire)
    }

    /// Waits for the self-tests that run.
    pub(super) fn settled(&self) {
        let tests = std::mem::take(&mut *self.tests.lock().unwrap_or_else(PoisonError::into_inner));
        for test in tests {
            // One that panicked leaves its GPU as it was: tasks wait.
            let _settled = test.join();
        }
    }

    /// Leases on a GPU, and on other instances of the one that it is of.
    fn leases(&self, index: u32) -> (usize, usize) {
        let usage = self.allocator.usage();
        let wards = self.wards();
        let board = |index: u32| {
            let gpu = &wards.get(&index)?.gpu;
            gpu.facts.mig_parent_uuid.clone().or(gpu.uuid.clone())
        };
        let own = board(index);
        let (mut leases, mut beside) = (0, 0);
        for usage in &usage {
            match usage.device {
                DeviceId::Cuda(other) if other == index => leases = usage.tasks.len(),
                DeviceId::Cuda(other) if own.is_some() && board(other) == own => {
                    beside += usage.tasks.len();
                }
                _ => {}
            }
        }
        (leases, beside)
    }

    /// How well a GPU is; none of one that is not watched.
    pub(super) fn show(&self, index: u32, usage: Option<&Usage>) -> Option<Shown> {
        let now = self.began.elapsed();
        let mut wards = self.wards();
        let ward = wards.get_mut(&index)?;
        let condition = &ward.condition;
        let health = match (condition.health(), usage) {
            (Health::Healthy, Some(usage)) if usage.draining => Health::Draining,
            (Health::Healthy, Some(usage)) if usage.hot => Health::Throttled,
            (health, _) => health,
        };
        if ward.shown.0 != health {
            ward.shown = (health, now);
        }
        let since = match health {
            Health::Draining | Health::Throttled => ward.shown.1,
            _ => ward.shown.1.max(condition.since()),
        };
        let reason = condition.reason().or_else(|| usage?.reason());
        Some(Shown {
            health,
            reason: reason.map(str::to_owned),
            age: now.saturating_sub(since),
            last_xid: condition
                .last_xid()
                .map(|xid| (xid, now.saturating_sub(xid.at))),
        })
    }
}
