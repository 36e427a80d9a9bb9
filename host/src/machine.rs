//! The machine: its devices as the allocator, plugins and people see them.

use std::sync::Arc;
use std::time::Duration;

use comfy_table::{Table, presets};
use devices::{Allocator, DeviceEntry, DeviceId, Gpu, Kind, Limits, Monitor, Snapshot};

use crate::worker::protocol::DeviceFacts;

/// The time between two samples of NVML.
const PERIOD: Duration = Duration::from_secs(2);
/// How long a start waits for the first sample; a GPU that wakes up takes up to 3 s.
const PATIENCE: Duration = Duration::from_secs(10);
/// Why no GPU can run tasks.
const NO_BACKEND: &str = "this build has no CUDA backend";

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
}

impl Machine {
    /// Looks at the machine.
    pub fn look() -> Self {
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        let monitor = Monitor::start(PERIOD, PATIENCE, visible);
        let gpus = monitor.snapshot();
        let gpus = gpus.gpus.iter().map(|gpu| DeviceEntry {
            id: DeviceId::Cuda(gpu.index),
            memory_bytes: gpu.memory_total_bytes.unwrap_or(0),
            limits: GPU_LIMITS,
            schedulable: Err(gpu.error.clone().unwrap_or_else(|| NO_BACKEND.to_owned())),
        });
        let cpu = DeviceEntry {
            id: DeviceId::Cpu,
            memory_bytes: memory_bytes(),
            limits: CPU_LIMITS,
            schedulable: Ok(()),
        };
        let allocator = Allocator::new(std::iter::once(cpu).chain(gpus).collect());
        Self { monitor, allocator }
    }

    /// The devices as plugins see them.
    pub fn facts(&self) -> Vec<DeviceFacts> {
        let cpu = DeviceFacts {
            selector: DeviceId::Cpu.to_string(),
            name: "CPU".to_owned(),
            total_bytes: memory_bytes(),
            properties: vec![("schedulable".to_owned(), "true".to_owned())],
        };
        let snapshot = self.monitor.snapshot();
        let gpus = snapshot.gpus.iter().map(|gpu| {
            let mut properties = vec![
                ("schedulable".to_owned(), "false".to_owned()),
                (
                    "reason".to_owned(),
                    gpu.error.clone().unwrap_or_else(|| NO_BACKEND.to_owned()),
                ),
            ];
            let known = [
                ("uuid", gpu.uuid.clone()),
                ("compute-capability", gpu.compute_capability.clone()),
                (
                    "free-bytes",
                    gpu.memory_free_bytes.map(|bytes| bytes.to_string()),
                ),
            ];
            let known = known.into_iter();
            properties.extend(known.filter_map(|(key, value)| Some((key.to_owned(), value?))));
            DeviceFacts {
                selector: DeviceId::Cuda(gpu.index).to_string(),
                name: gpu.name.clone(),
                total_bytes: gpu.memory_total_bytes.unwrap_or(0),
                properties,
            }
        });
        std::iter::once(cpu).chain(gpus).collect()
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
            gpu.error
                .clone()
                .unwrap_or_else(|| format!("not schedulable: {NO_BACKEND}")),
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
