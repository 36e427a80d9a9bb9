//! The machine: its devices as the allocator, plugins and people see them.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use comfy_table::{Table, presets};
use devices::{
    Allocator, DeviceEntry, DeviceId, Gpu, Kind, Limits, Monitor, Snapshot, State, Usage,
};

use crate::worker::probe::{Depth, probe};
use crate::worker::protocol::DeviceFacts;

/// The time between two samples of NVML.
const PERIOD: Duration = Duration::from_secs(2);
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
    /// Those that still run.
    probes: Mutex<Vec<JoinHandle<()>>>,
}

fn gpu(snapshot: &Snapshot, device: DeviceId) -> Option<&Gpu> {
    let same = |gpu: &&Gpu| DeviceId::Cuda(gpu.index) == device;
    snapshot.gpus.iter().find(same)
}

/// Why no task can run on a GPU now.
fn reason(usage: &[Usage], gpu: &Gpu) -> Option<String> {
    let id = DeviceId::Cuda(gpu.index);
    let usage = usage.iter().find(|usage| usage.device == id)?;
    usage.state.reason().map(str::to_owned)
}

impl Machine {
    /// Looks at the machine. GPUs that answer are probed in the background, as deeply as `depth` says
    /// for each; until then their tasks wait.
    pub fn look(depth: impl Fn(DeviceId) -> Depth) -> Self {
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        let monitor = Monitor::start(PERIOD, PATIENCE, visible);
        let snapshot = monitor.snapshot();
        let gpus = snapshot.gpus.iter().map(|gpu| DeviceEntry {
            id: DeviceId::Cuda(gpu.index),
            // What the driver reserves for itself is neither used nor free.
            memory_bytes: gpu
                .memory_used_bytes
                .zip(gpu.memory_free_bytes)
                .map_or(0, |(used, free)| used + free),
            overhead_bytes: 0,
            limits: GPU_LIMITS,
            state: match (&gpu.error, &gpu.uuid) {
                (Some(error), _) => State::Unable(error.clone()),
                (None, None) => State::Unable("NVML does not tell its UUID".to_owned()),
                (None, Some(_)) => State::Probing,
            },
        });
        let cpu = DeviceEntry {
            id: DeviceId::Cpu,
            memory_bytes: memory_bytes(),
            overhead_bytes: 0,
            limits: CPU_LIMITS,
            state: State::Ready,
        };
        let allocator = Allocator::new(std::iter::once(cpu).chain(gpus).collect());
        let measuring = Arc::clone(&allocator);
        monitor.on_sample(move |snapshot| {
            for gpu in &snapshot.gpus {
                if let Some(used) = gpu.memory_used_bytes {
                    measuring.measured(DeviceId::Cuda(gpu.index), used);
                }
            }
        });
        let probes = snapshot.gpus.iter().filter(|gpu| gpu.error.is_none());
        let probes = probes.filter_map(|gpu| {
            let (id, uuid) = (DeviceId::Cuda(gpu.index), gpu.uuid.clone()?);
            let (settling, depth) = (Arc::clone(&allocator), depth(id));
            let thread = std::thread::Builder::new().name(format!("probe-{id}"));
            let spawned = thread.spawn(move || settling.settle(id, probe(&uuid, depth)));
            match spawned {
                Ok(probe) => Some(probe),
                Err(error) => {
                    allocator.settle(id, Err(format!("it cannot be probed: {error}")));
                    None
                }
            }
        });
        let probes = Mutex::new(probes.collect());
        Self {
            monitor,
            allocator,
            probes,
        }
    }

    /// Waits until every GPU is probed.
    pub fn probed(&self) {
        let mut probes = self.probes.lock().unwrap_or_else(PoisonError::into_inner);
        for probe in probes.drain(..) {
            // A probe that panicked leaves its GPU as it was: tasks wait.
            let _settled = probe.join();
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

    /// The UUIDs of all GPUs that are known.
    pub fn uuids(&self) -> Vec<String> {
        let snapshot = self.monitor.snapshot();
        let uuids = snapshot.gpus.iter().filter_map(|gpu| gpu.uuid.clone());
        uuids.collect()
    }

    /// The UUID of a GPU.
    pub fn uuid(&self, device: DeviceId) -> Option<String> {
        let snapshot = self.monitor.snapshot();
        gpu(&snapshot, device)?.uuid.clone()
    }

    /// The memory in use on a GPU by NVML, in bytes, sampled now; none where NVML does not tell.
    pub async fn used_bytes(&self, device: DeviceId) -> Option<u64> {
        let monitor = self.monitor.clone();
        let sampled = tokio::task::spawn_blocking(move || monitor.refresh()).await;
        gpu(&*sampled.ok()?, device)?.memory_used_bytes
    }

    /// The GPUs for programs: what NVML tells, and whether tasks can run there.
    pub fn describe(&self) -> anyhow::Result<serde_json::Value> {
        let (snapshot, usage) = (self.monitor.snapshot(), self.allocator.usage());
        let mut described = serde_json::to_value(&*snapshot)?;
        let gpus = described["gpus"].as_array_mut().into_iter().flatten();
        for (described, gpu) in gpus.zip(&snapshot.gpus) {
            let reason = reason(&usage, gpu);
            described["schedulable"] = reason.is_none().into();
            described["reason"] = reason.into();
        }
        Ok(described)
    }

    /// The table of GPUs for people: memory in MiB, temperature in °C, power in W.
    pub fn table(&self) -> String {
        let snapshot = self.monitor.snapshot();
        if snapshot.gpus.is_empty() {
            let reason = snapshot.nvml_error.as_deref().unwrap_or("NVML shows none");
            return format!("No GPU: {reason}");
        }
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header([
            "GPU",
            "name",
            "cc",
            "total MiB",
            "used",
            "free",
            "°C",
            "W",
            "tasks",
            "state",
        ]);
        for gpu in &snapshot.gpus {
            table.add_row(self.row(gpu));
        }
        format!("{table}{}", heading(&snapshot))
    }

    fn row(&self, gpu: &Gpu) -> Vec<String> {
        let text = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
        let mib = |bytes: Option<u64>| text(bytes.map(|bytes| (bytes >> 20).to_string()));
        let usage = self.allocator.usage();
        let usage = usage
            .iter()
            .find(|usage| usage.device == DeviceId::Cuda(gpu.index));
        let tasks = usage.map(|usage| {
            let (training, inference) = (usage.count(Kind::Training), usage.count(Kind::Inference));
            format!("{training} + {inference}")
        });
        vec![
            gpu.index.to_string(),
            gpu.name.clone(),
            text(gpu.compute_capability.clone()),
            mib(gpu.memory_total_bytes),
            mib(gpu.memory_used_bytes),
            mib(gpu.memory_free_bytes),
            text(gpu.temperature_celsius.map(|celsius| celsius.to_string())),
            text(gpu.power_watts.map(|watts| format!("{watts:.0}"))),
            text(tasks),
            match usage.map(|usage| &usage.state) {
                Some(State::Ready) => "ready".to_owned(),
                Some(State::Probing) => "is being probed".to_owned(),
                Some(State::Unable(reason)) => format!("not schedulable: {reason}"),
                None => "unknown".to_owned(),
            },
        ]
    }
}

fn heading(snapshot: &Snapshot) -> String {
    let version = |what: &str, version: &Option<String>| {
        version
            .as_ref()
            .map(|version| format!("\n{what} {version}"))
            .unwrap_or_default()
    };
    version("driver", &snapshot.driver_version) + &version("CUDA up to", &snapshot.cuda_version)
}

/// The machine's memory in bytes (`MemTotal` of /proc/meminfo).
fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes =
        line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kibibytes.unwrap_or(0) << 10
}
