//! The machine: its devices as the allocator, plugins and people see them.

pub mod gpus;
pub mod returned;
mod watch;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use devices::{
    Allocator, DeviceEntry, DeviceId, Gpu, History, InvalidPool, InvalidXid, Limits, Measurement,
    Monitor, News, PartialLimits, Point, Policy, Pool, Refusal, Selector, Snapshot, State, Usage,
    XidTable,
};

pub use self::watch::Shown;
use self::watch::Watch;
use crate::settings::Settings;
use crate::worker::listing;
use crate::worker::probe::Depth;
use crate::worker::protocol::DeviceFacts;

/// The time between two samples of NVML, unless the operator says otherwise.
pub const PERIOD: Duration = Duration::from_secs(1);
/// How long a start waits for the first sample; a GPU that wakes up takes up to 3 s.
const PATIENCE: Duration = Duration::from_secs(10);

const CPU_LIMITS: Limits = Limits {
    training: 2,
    inference: 4,
};
const GPU_LIMITS: Limits = Limits {
    training: 1,
    inference: 3,
};

/// The machine's devices.
pub struct Machine {
    /// Samples the GPUs.
    pub monitor: Monitor,
    /// Who holds what.
    pub allocator: Arc<Allocator>,
    /// The time between two samples.
    pub period: Duration,
    /// What the operator set.
    settings: Arc<Mutex<Settings>>,
    watch: Arc<Watch>,
    history: Arc<Mutex<History>>,
}

/// A change of the settings; what is none or empty stays.
#[derive(Debug, Default)]
pub struct Change {
    /// The host's policy.
    pub policy: Option<Policy>,
    /// Whether `cuda` means the CPU where no GPU can run tasks.
    pub cpu_fallback: Option<bool>,
    /// Seconds for which a GPU that was too hot stays cool before it takes tasks again.
    pub cool_seconds: Option<u64>,
    /// What is done at Xids, by number; none for what NVIDIA's catalogue says.
    pub xids: Vec<(String, Option<String>)>,
    /// Limits of devices, of `cuda` (every GPU), of pools.
    pub limits: Vec<(Selector, PartialLimits)>,
    /// Memory of GPUs, or of `cuda` (every GPU), that no lease takes, in bytes; none is the default.
    pub headroom: Vec<(Selector, Option<u64>)>,
    /// Pools by name; none removes one.
    pub pools: Vec<(String, Option<Pool>)>,
    /// Devices that take no new tasks from now on, or do again.
    pub draining: Vec<(DeviceId, bool)>,
}

/// Why settings are not changed. Nothing of the change is done then.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// `device.unknown`.
    #[error(transparent)]
    Unknown(#[from] Refusal),
    /// `pool.invalid`.
    #[error(transparent)]
    Pool(#[from] InvalidPool),
    /// `health.xid`.
    #[error(transparent)]
    Xid(#[from] InvalidXid),
    /// `device.headroom`.
    #[error("headroom of `{selector}`: {reason}")]
    Headroom {
        /// Of what it was to be.
        selector: Selector,
        /// Why it cannot be.
        reason: String,
    },
    /// `settings.failed`.
    #[error("{0:#}")]
    Failed(anyhow::Error),
}

impl ChangeError {
    /// The stable dotted code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unknown(refusal) => refusal.code(),
            Self::Pool(_) => "pool.invalid",
            Self::Xid(_) => "health.xid",
            Self::Headroom { .. } => "device.headroom",
            Self::Failed(_) => "settings.failed",
        }
    }
}

/// Memory of a GPU for leases and other programs, in bytes: what the driver reserves for itself is
/// neither used nor free.
fn usable(gpu: &Gpu) -> u64 {
    let known = gpu.memory_used_bytes.zip(gpu.memory_free_bytes);
    let usable = known.map(|(used, free)| used + free);
    // Without NVML the driver's total is what there is without the reserve.
    usable.or(gpu.memory_total_bytes).unwrap_or(0)
}

/// Memory of a GPU that no lease takes where nothing is set: 3 %, and 512 MiB at least, but no more
/// than an eighth.
fn headroom(memory_bytes: u64) -> u64 {
    (memory_bytes / 100 * 3).max(memory_bytes.div_euclid(8).min(512 << 20))
}

fn default_limits(id: DeviceId) -> Limits {
    match id {
        DeviceId::Cpu => CPU_LIMITS,
        DeviceId::Cuda(_) => GPU_LIMITS,
    }
}

/// What settings know a device by: `cpu`, or a GPU's UUID, else its ordinal.
fn key(snapshot: &Snapshot, id: DeviceId) -> String {
    let uuid = gpu(snapshot, id).and_then(|gpu| gpu.uuid.clone());
    uuid.unwrap_or_else(|| id.to_string())
}

fn gpu(snapshot: &Snapshot, device: DeviceId) -> Option<&Gpu> {
    let same = |gpu: &&Gpu| DeviceId::Cuda(gpu.index) == device;
    snapshot.gpus.iter().find(same)
}

/// Refuses a headroom that leaves a GPU nothing, or of what has none.
fn check_headroom(
    usage: &[Usage],
    selector: &Selector,
    bytes: Option<u64>,
) -> Result<(), ChangeError> {
    let refuse = |reason| {
        let selector = selector.clone();
        Err(ChangeError::Headroom { selector, reason })
    };
    let meant = |usage: &&Usage| match selector {
        Selector::Device(id) => usage.device == *id,
        Selector::AnyGpu | Selector::Pool(_) => usage.device != DeviceId::Cpu,
    };
    if matches!(
        selector,
        Selector::Device(DeviceId::Cpu) | Selector::Pool(_)
    ) {
        return refuse("name a GPU, or `cuda` for every GPU".to_owned());
    }
    let memory = usage.iter().filter(meant).map(|usage| usage.memory_bytes);
    match (bytes, memory.filter(|bytes| *bytes > 0).min()) {
        (Some(bytes), Some(least)) if bytes >= least => {
            refuse(format!("{bytes} bytes of {least} leave nothing to tasks"))
        }
        _ => Ok(()),
    }
}

/// Why no task can run on a GPU now.
fn reason(usage: &[Usage], gpu: &Gpu) -> Option<String> {
    let id = DeviceId::Cuda(gpu.index);
    let usage = usage.iter().find(|usage| usage.device == id)?;
    usage.reason().map(str::to_owned)
}

/// A GPU for the allocator, not tested yet.
fn entry(gpu: &Gpu, settings: &Settings) -> DeviceEntry {
    let id = DeviceId::Cuda(gpu.index);
    let key = gpu.uuid.clone().unwrap_or_else(|| id.to_string());
    DeviceEntry {
        id,
        uuid: gpu.uuid.clone(),
        model: gpu.name.clone(),
        compute_capability: gpu.compute_capability.clone(),
        memory_bytes: usable(gpu),
        headroom_bytes: settings.headroom_bytes(&key, headroom(usable(gpu))),
        overhead_bytes: 0,
        limits: settings.limits(&key, default_limits(id)),
        draining: settings.drained.contains(&key),
        state: State::Probing,
        peers: gpu.facts.peers.clone().unwrap_or_default(),
    }
}

/// What a sample of a GPU, taken at a time since some beginning, tells the allocator.
fn measurement(gpu: &Gpu, at: Duration) -> (DeviceId, Measurement) {
    let measurement = Measurement {
        at,
        used_bytes: gpu.memory_used_bytes,
        utilization_percent: gpu.utilization_gpu_percent,
        thermal_margin_c: gpu.readings.thermal_margin_c,
        temperature_c: gpu.temperature_gpu_c,
        slowed_by_heat: gpu.slowed_by_heat(),
    };
    (DeviceId::Cuda(gpu.index), measurement)
}

impl Machine {
    /// Looks at the machine, and samples it every `period` from then on. GPUs are tested in the
    /// background, as deeply as `depth` says for each; until then their tasks wait.
    /// Errors: pools in `settings` that cannot be.
    pub fn look(
        settings: Settings,
        period: Duration,
        depth: impl Fn(DeviceId) -> Depth + Send + Sync + 'static,
    ) -> Result<Self, InvalidPool> {
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        let monitor = Monitor::start(period, PATIENCE, visible, Box::new(listing::list));
        let snapshot = monitor.snapshot();
        let gpus = snapshot.gpus.iter().map(|gpu| entry(gpu, &settings));
        let cpu = DeviceEntry {
            id: DeviceId::Cpu,
            uuid: None,
            model: "CPU".to_owned(),
            compute_capability: None,
            memory_bytes: memory_bytes(),
            headroom_bytes: 0,
            overhead_bytes: 0,
            limits: settings.limits("cpu", default_limits(DeviceId::Cpu)),
            draining: settings.drained.contains("cpu"),
            state: State::Ready,
            peers: Vec::new(),
        };
        let devices = std::iter::once(cpu).chain(gpus).collect();
        let allocator = Allocator::new(devices, settings.policy);
        allocator.set_cpu_fallback(settings.cpu_fallback);
        allocator.set_cool(Duration::from_secs(settings.health.cool_seconds));
        allocator.set_pools(settings.named_pools()?);
        let settings = Arc::new(Mutex::new(settings));
        let watch = Watch::new(
            monitor.clone(),
            Arc::clone(&allocator),
            Arc::clone(&settings),
            &snapshot.gpus,
            Box::new(depth),
        );
        let watching = Arc::clone(&watch);
        let history = Arc::new(Mutex::new(History::new(period)));
        let recording = Arc::clone(&history);
        monitor.listen(move |news| {
            if let News::Sample(snapshot) = news {
                let history = recording.lock();
                history
                    .unwrap_or_else(PoisonError::into_inner)
                    .record(snapshot);
            }
            watching.hear(news);
        });
        Ok(Self {
            monitor,
            allocator,
            period,
            settings,
            watch,
            history,
        })
    }

    /// Changes the settings, and keeps them in the state folder before it returns.
    pub fn change(&self, state: &Path, change: Change) -> Result<(), ChangeError> {
        let mut kept = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let (snapshot, allocator) = (self.monitor.snapshot(), &self.allocator);
        let mut settings = kept.clone();
        settings.policy = change.policy.unwrap_or(settings.policy);
        settings.cpu_fallback = change.cpu_fallback.unwrap_or(settings.cpu_fallback);
        if let Some(seconds) = change.cool_seconds {
            settings.health.cool_seconds = seconds;
        }
        for (number, action) in change.xids {
            settings.health.xid.set(&number, action.as_deref())?;
        }
        for (name, pool) in change.pools {
            match pool {
                Some(pool) => drop(settings.pools.insert(name, pool)),
                None => drop(settings.pools.remove(&name)),
            }
        }
        for (selector, limits) in change.limits {
            match &selector {
                Selector::Pool(name) => match settings.pools.get_mut(&name.to_string()) {
                    Some(pool) => pool.limits = pool.limits.with(limits),
                    None => allocator.exists(&selector)?,
                },
                Selector::AnyGpu => {
                    allocator.exists(&selector)?;
                    settings.set_limits("cuda", limits);
                }
                Selector::Device(id) => {
                    allocator.exists(&selector)?;
                    settings.set_limits(&key(&snapshot, *id), limits);
                }
            }
        }
        for (selector, bytes) in change.headroom {
            allocator.exists(&selector)?;
            check_headroom(&allocator.usage(), &selector, bytes)?;
            match selector {
                Selector::Device(id) => settings.set_headroom(&key(&snapshot, id), bytes),
                Selector::AnyGpu | Selector::Pool(_) => settings.set_headroom("cuda", bytes),
            }
        }
        let mut enabled = Vec::new();
        for (id, draining) in change.draining {
            allocator.exists(&Selector::Device(id))?;
            let key = key(&snapshot, id);
            if draining {
                settings.drained.insert(key);
            } else {
                settings.drained.remove(&key);
                enabled.push(id);
            }
        }
        let pools = settings.named_pools()?;
        settings.write(state).map_err(ChangeError::Failed)?;
        allocator.set_policy(settings.policy);
        allocator.set_cpu_fallback(settings.cpu_fallback);
        allocator.set_cool(Duration::from_secs(settings.health.cool_seconds));
        allocator.set_pools(pools);
        for usage in allocator.usage() {
            let (id, key) = (usage.device, key(&snapshot, usage.device));
            let limits = settings.limits(&key, default_limits(id));
            let limits = PartialLimits {
                training: Some(limits.training),
                inference: Some(limits.inference),
            };
            allocator.set_limits(&Selector::Device(id), limits)?;
            if id != DeviceId::Cpu {
                let bytes = settings.headroom_bytes(&key, headroom(usage.memory_bytes));
                allocator.set_headroom(id, bytes)?;
            }
            allocator.drain(id, settings.drained.contains(&key))?;
        }
        *kept = settings;
        drop(kept);
        for id in enabled {
            if let DeviceId::Cuda(index) = id {
                self.watch.enable(index);
            }
        }
        Ok(())
    }

    /// What the operator says of Xids.
    pub fn xids(&self) -> XidTable {
        let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        settings.health.xid.clone()
    }

    /// Another number after every change of the devices but for a sample.
    pub fn version(&self) -> u64 {
        // Both count up.
        self.allocator.version().wrapping_add(self.watch.version())
    }

    /// Waits until every GPU is tested.
    pub fn probed(&self) {
        self.watch.settled();
    }

    /// How well a GPU is; none of one that has just appeared.
    pub fn health(&self, gpu: &Gpu, usage: Option<&Usage>) -> Option<Shown> {
        self.watch.show(gpu.index, usage)
    }

    /// Tells that a task had a fault of its device.
    pub fn fault(&self, device: DeviceId, reason: &str) {
        if let DeviceId::Cuda(index) = device {
            self.watch.fault(index, reason);
        }
    }

    /// Which of the devices of a task its fault is of: the one that it named, unless NVML or the driver's
    /// Xids tell of another and of that one nothing. An error of one GPU may be told of others of the
    /// process too (`CUDA_ERROR_ILLEGAL_ADDRESS` and its like in cuda.h).
    pub async fn culprit(self: &Arc<Self>, named: DeviceId, among: &[DeviceId]) -> DeviceId {
        let gpu = |id: &DeviceId| match id {
            DeviceId::Cpu => None,
            DeviceId::Cuda(index) => Some(*index),
        };
        let (Some(index), [_, _, ..]) = (gpu(&named), among) else {
            return named;
        };
        let among: Vec<u32> = among.iter().filter_map(gpu).collect();
        let machine = Arc::clone(self);
        let asked = tokio::task::spawn_blocking(move || machine.watch.culprit(index, &among));
        asked.await.map_or(named, DeviceId::Cuda)
    }

    /// The Xid that the driver reported of a device just before.
    pub fn reported(&self, device: DeviceId) -> Option<u64> {
        match device {
            DeviceId::Cpu => None,
            DeviceId::Cuda(index) => self.watch.reported(index),
        }
    }

    /// The devices as plugins see them.
    pub fn facts(&self) -> Vec<DeviceFacts> {
        let cpu = DeviceFacts {
            selector: DeviceId::Cpu.to_string(),
            name: "CPU".to_owned(),
            total_bytes: memory_bytes(),
            properties: vec![("schedulable".to_owned(), "true".to_owned())],
        };
        let (snapshot, usage) = (self.monitor.snapshot(), self.allocator.usage());
        let gpus = snapshot.gpus.iter().map(|gpu| {
            let reason = reason(&usage, gpu);
            let known = [
                ("schedulable", Some(reason.is_none().to_string())),
                ("reason", reason),
                ("uuid", gpu.uuid.clone()),
                ("compute-capability", gpu.compute_capability.clone()),
                (
                    "free-bytes",
                    gpu.memory_free_bytes.map(|bytes| bytes.to_string()),
                ),
            ];
            let known = known.into_iter();
            DeviceFacts {
                selector: DeviceId::Cuda(gpu.index).to_string(),
                name: gpu.name.clone(),
                total_bytes: gpu.memory_total_bytes.unwrap_or(0),
                properties: known
                    .filter_map(|(key, value)| Some((key.to_owned(), value?)))
                    .collect(),
            }
        });
        std::iter::once(cpu).chain(gpus).collect()
    }

    /// The UUIDs of all GPUs that are known. Those that do not answer come last: where a driver does
    /// not find one in `CUDA_VISIBLE_DEVICES`, it does not see the ones behind it either. GPUs that are
    /// split are left out, and instances: a process that sees an instance sees no other device.
    pub fn uuids(&self) -> Vec<String> {
        let snapshot = self.monitor.snapshot();
        let whole = |gpu: &&Gpu| gpu.unfit().is_none() && !gpu.is_instance();
        let mut gpus: Vec<&Gpu> = snapshot.gpus.iter().filter(whole).collect();
        gpus.sort_by_key(|gpu| gpu.error.is_some());
        let uuids = gpus.into_iter().filter_map(|gpu| gpu.uuid.clone());
        uuids.collect()
    }

    /// Whether a GPU does not answer.
    pub fn fails(&self, device: DeviceId) -> bool {
        gpu(&self.monitor.snapshot(), device).is_some_and(|gpu| gpu.error.is_some())
    }

    /// What a GPU was in the last `span` before `now`, the oldest first.
    pub fn history(&self, gpu: u32, span: Duration, now: Instant) -> Vec<Point> {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.since(gpu, span, now)
    }

    /// The UUID of a GPU.
    pub fn uuid(&self, device: DeviceId) -> Option<String> {
        let snapshot = self.monitor.snapshot();
        gpu(&snapshot, device)?.uuid.clone()
    }

    /// The memory in use on a GPU by NVML, in bytes, sampled now; none where NVML does not tell in time.
    pub async fn used_bytes(&self, device: DeviceId) -> Option<u64> {
        self.used_bytes_on(&[device]).await.pop()?
    }

    /// The same of several GPUs, in one sample.
    pub async fn used_bytes_on(&self, devices: &[DeviceId]) -> Vec<Option<u64>> {
        let (monitor, asked) = (self.monitor.clone(), Instant::now());
        let sampled = tokio::task::spawn_blocking(move || monitor.refresh()).await;
        let sampled = sampled.ok().filter(|sample| sample.taken >= Some(asked));
        let used = |device: &DeviceId| gpu(sampled.as_ref()?, *device)?.memory_used_bytes;
        devices.iter().map(used).collect()
    }
}

/// The machine's memory in bytes (`MemTotal` of /proc/meminfo).
pub fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes =
        line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kibibytes.unwrap_or(0) << 10
}
