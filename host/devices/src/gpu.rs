//! What is known of the machine's GPUs at one moment.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

/// One visible GPU. What a GPU or its driver does not tell is none, never 0.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Gpu {
    /// Position among the visible GPUs in PCI bus order: N of `cuda:N`.
    pub index: u32,
    /// NVML's identity, such as `GPU-5f2c…`; none where the GPU does not answer.
    pub uuid: Option<String>,
    /// The product name.
    pub name: String,
    /// Such as `00000000:53:00.0`.
    pub pci_bus_id: Option<String>,
    /// Such as `8.6`.
    pub compute_capability: Option<String>,
    /// Memory in bytes, the driver's reserve included.
    pub memory_total_bytes: Option<u64>,
    /// What the driver keeps of it for itself.
    pub memory_reserved_bytes: Option<u64>,
    /// Memory taken by processes, in bytes.
    pub memory_used_bytes: Option<u64>,
    /// Memory neither taken nor reserved, in bytes.
    pub memory_free_bytes: Option<u64>,
    /// Percent of the last sample period (1/6 to 1 s) in which a kernel ran.
    pub utilization_gpu_percent: Option<u32>,
    /// °C.
    pub temperature_gpu_c: Option<u32>,
    /// W.
    pub power_draw_watts: Option<f64>,
    /// What hardly changes.
    #[serde(flatten)]
    pub facts: Facts,
    /// What was read besides.
    #[serde(flatten)]
    pub readings: Readings,
    /// Fields that this GPU or its driver does not have.
    pub unsupported: Vec<&'static str>,
    /// Why fields are none that it should have.
    pub errors: BTreeMap<&'static str, String>,
    /// Why the GPU does not answer, such as that it fell off the bus.
    pub error: Option<String>,
    /// What kind of failure that is.
    #[serde(skip)]
    pub failure: Option<Failure>,
    /// The processes on it; none where it does not tell.
    #[serde(skip)]
    pub processes: Option<Vec<Process>>,
}

/// A process on a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Process {
    /// The machine's number of it, which is another than in a container.
    pub pid: u32,
    /// `compute`, `graphics`, both joined by `+`, or `mps`, which shares a context with others.
    pub kind: &'static str,
    /// Memory that it holds there, in bytes.
    pub used_bytes: Option<u64>,
    /// Percent of the multiprocessors that it used in the last second.
    pub sm_percent: Option<u32>,
}

/// Another GPU as one sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// The other's identity.
    pub uuid: String,
    /// What both are below: `internal` (one board), `single_switch`, `multiple_switches`,
    /// `host_bridge`, `numa_node` or `system`.
    pub level: Option<&'static str>,
    /// Whether one reads the other's memory: `ok`, or why not.
    pub p2p: Option<&'static str>,
}

/// Why a GPU does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It fell off the bus, or is not listed any more.
    Lost,
    /// It must be reset before it can be used.
    ResetRequired,
    /// This user may not look at it.
    NoPermission,
    /// A call about it has not returned for so long.
    Silent(Duration),
    /// Anything else, NVML as a whole among it.
    Unknown,
}

/// What NVML says would recover a GPU (`nvmlDeviceGpuRecoveryAction_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Recovery {
    /// Nothing is to be done.
    None,
    /// A reset of the GPU.
    GpuReset,
    /// A restart of the machine.
    NodeReboot,
    /// No more traffic to other GPUs.
    DrainP2p,
    /// The end of its tasks, then a reset.
    DrainAndReset,
}

impl Recovery {
    /// By NVML's number of it; none of a number that it may have one day.
    pub(crate) fn new(number: i32) -> Option<Self> {
        Some(match number {
            0 => Self::None,
            1 => Self::GpuReset,
            2 => Self::NodeReboot,
            3 => Self::DrainP2p,
            4 => Self::DrainAndReset,
            _ => return None,
        })
    }

    /// For people.
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Self::None => "NVML says that nothing is to be done",
            Self::GpuReset => "NVML says that the GPU must be reset",
            Self::NodeReboot => "NVML says that the machine must be restarted",
            Self::DrainP2p => "NVML says that the GPU must have no traffic with other GPUs",
            Self::DrainAndReset => "NVML says that the GPU's tasks must end and it must be reset",
        }
    }
}

impl Gpu {
    /// Whether it slows its clocks down for heat.
    pub fn slowed_by_heat(&self) -> bool {
        let heat = ["sw_thermal_slowdown", "hw_thermal_slowdown"];
        let reasons = self.readings.throttle_reasons.iter().flatten();
        reasons.into_iter().any(|reason| heat.contains(reason))
    }

    /// Why no task can ever run on it as it is set up.
    pub fn unfit(&self) -> Option<&'static str> {
        let split = self.facts.mig_enabled == Some(true);
        split.then_some("it is split into MIG instances, which are devices of their own")
    }

    /// Whether it is an instance of a GPU.
    pub fn is_instance(&self) -> bool {
        self.facts.mig_parent_uuid.is_some()
    }

    /// The same GPU when it does not answer: its identity and what hardly changes.
    pub(crate) fn silenced(&self, failure: Failure, reason: String) -> Self {
        Self {
            index: self.index,
            uuid: self.uuid.clone(),
            name: self.name.clone(),
            pci_bus_id: self.pci_bus_id.clone(),
            compute_capability: self.compute_capability.clone(),
            facts: self.facts.clone(),
            error: Some(reason),
            failure: Some(failure),
            ..Self::default()
        }
    }
}

/// What hardly changes of a GPU.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Facts {
    /// Position in NVML's order, which may differ from `index`.
    pub nvml_index: Option<u32>,
    /// N of `/dev/nvidiaN`.
    pub minor_number: Option<u32>,
    /// The board's.
    pub serial: Option<String>,
    /// Such as `GeForce`.
    pub brand: Option<String>,
    /// Such as `Ampere`.
    pub architecture: Option<String>,
    /// Multiprocessors.
    pub sm_count: Option<u32>,
    /// Cores.
    pub cuda_cores: Option<u32>,
    /// Of the board.
    pub vbios_version: Option<String>,
    /// Whether it is split into instances.
    pub mig_enabled: Option<bool>,
    /// Of an instance the GPU's identity.
    pub mig_parent_uuid: Option<String>,
    /// Of an instance its number among the GPU's instances.
    pub mig_gpu_instance: Option<u32>,
    /// Of an instance its number among the compute instances of that GPU instance.
    pub mig_compute_instance: Option<u32>,
    /// NVLinks that work.
    pub nvlink_active_links: Option<u32>,
    /// The other GPUs.
    pub peers: Option<Vec<Peer>>,
    /// Of the processor's memory that is closest.
    pub numa_node: Option<u32>,
    /// The window of its memory on the bus, in bytes.
    pub bar1_total_bytes: Option<u64>,
    /// °C at which its clocks are slowed down; none where it tells a margin instead.
    pub threshold_slowdown_c: Option<u32>,
    /// °C at which it turns off.
    pub threshold_shutdown_c: Option<u32>,
    /// °C that it may reach at work.
    pub threshold_max_operating_c: Option<u32>,
    /// The margin in °C at which its clocks are slowed down, on GPUs that tell margins.
    pub tlimit_slowdown_c: Option<i32>,
    /// The margin in °C at which it turns off.
    pub tlimit_shutdown_c: Option<i32>,
    /// W.
    pub power_limit_default_watts: Option<f64>,
    /// W.
    pub power_limit_min_watts: Option<f64>,
    /// W.
    pub power_limit_max_watts: Option<f64>,
    /// MHz.
    pub clock_graphics_max_mhz: Option<u32>,
    /// MHz.
    pub clock_sm_max_mhz: Option<u32>,
    /// MHz.
    pub clock_memory_max_mhz: Option<u32>,
    /// Generation.
    pub pcie_gen_max: Option<u32>,
    /// Lanes.
    pub pcie_width_max: Option<u32>,
    /// Whether memory errors are corrected.
    pub ecc_enabled: Option<bool>,
}

/// What was read of a GPU besides what hosts decide by.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Readings {
    /// Of the window of its memory on the bus, in bytes.
    pub bar1_used_bytes: Option<u64>,
    /// Percent of the last sample period in which memory was read or written.
    pub memory_busy_percent: Option<u32>,
    /// Percent.
    pub encoder_percent: Option<u32>,
    /// Percent.
    pub decoder_percent: Option<u32>,
    /// °C.
    pub temperature_memory_c: Option<u32>,
    /// °C to its slowdown temperature.
    pub thermal_margin_c: Option<i32>,
    /// The margin in °C that it tells.
    pub tlimit_current_c: Option<i32>,
    /// Percent of the fastest.
    pub fan_speed_percent: Option<u32>,
    /// What `power_draw_watts` is: `average_1s` or `instant`.
    pub power_draw_kind: Option<&'static str>,
    /// The power limit in force, in W.
    pub power_limit_enforced_watts: Option<f64>,
    /// Since the driver was loaded, in J.
    pub energy_total_joules: Option<f64>,
    /// MHz.
    pub clock_graphics_mhz: Option<u32>,
    /// MHz.
    pub clock_sm_mhz: Option<u32>,
    /// MHz.
    pub clock_memory_mhz: Option<u32>,
    /// `P0` (the fastest) to `P15`.
    pub performance_state: Option<String>,
    /// Why its clocks are below the highest.
    pub throttle_reasons: Option<Vec<&'static str>>,
    /// Whether one of the reasons is more than idleness or a setting.
    pub throttle_active: Option<bool>,
    /// Generation.
    pub pcie_gen_current: Option<u32>,
    /// Lanes.
    pub pcie_width_current: Option<u32>,
    /// KiB/s sent over the bus in the last 20 ms.
    pub pcie_tx_kib_per_s: Option<u32>,
    /// KiB/s received over the bus in the last 20 ms.
    pub pcie_rx_kib_per_s: Option<u32>,
    /// Packets sent again.
    pub pcie_replay_count: Option<u32>,
    /// Memory errors corrected since the driver was loaded.
    pub ecc_corrected_volatile: Option<u64>,
    /// Memory errors not corrected since the driver was loaded.
    pub ecc_uncorrected_volatile: Option<u64>,
    /// Memory errors corrected in its life.
    pub ecc_corrected_aggregate: Option<u64>,
    /// Memory errors not corrected in its life.
    pub ecc_uncorrected_aggregate: Option<u64>,
    /// Whether memory waits for a restart to be taken out of use.
    pub retired_pages_pending: Option<bool>,
    /// What would recover it.
    pub recovery_action: Option<Recovery>,
    /// Who may use it: `default`, `exclusive_process` or `prohibited`.
    pub compute_mode: Option<&'static str>,
    /// Whether the driver stays loaded without a client.
    pub persistence_mode: Option<bool>,
    /// Whether it shows a screen.
    pub display_active: Option<bool>,
}

/// What one GPU told.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    /// The GPU; its `index` is not known yet.
    pub(crate) gpu: Gpu,
    /// Its instances, where it is split.
    pub(crate) instances: Vec<Gpu>,
    /// (domain, bus, device), the order of `cuda:N`; a GPU that does not tell comes last.
    pub(crate) position: (u32, u32, u32),
}

impl Reading {
    /// Of the GPU of this number of NVML's, which does not answer.
    pub(crate) fn failed(nvml_index: u32, failure: Failure, reason: String) -> Self {
        let unknown = Gpu {
            name: format!("GPU {nvml_index} of NVML"),
            ..Gpu::default()
        };
        Self {
            gpu: unknown.silenced(failure, reason),
            instances: Vec::new(),
            position: (u32::MAX, u32::MAX, nvml_index),
        }
    }
}

/// What NVML tells of the machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct System {
    /// The driver's version, such as `580.105.08`.
    pub driver_version: Option<String>,
    /// NVML's version.
    pub nvml_version: Option<String>,
    /// The newest CUDA version that the driver supports, such as `13.0`.
    pub cuda_version: Option<String>,
    /// GPUs that NVML counts, those that are not visible among them.
    pub detected: u32,
}

/// Whom the GPUs are known from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// NVML.
    Nvml,
    /// The CUDA driver: there is no NVML, and no figure that changes.
    CudaOnly,
    /// Nobody.
    #[default]
    None,
}

/// All visible GPUs at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Snapshot {
    /// In PCI bus order, as it was when the host started.
    pub gpus: Vec<Gpu>,
    /// Of the machine.
    #[serde(flatten)]
    pub system: System,
    /// Why nothing is known of GPUs now: no NVML library, no driver, a failing or hanging call.
    pub nvml_error: Option<String>,
    /// Whom the GPUs are known from.
    #[serde(skip)]
    pub source: Source,
    /// When the sample was taken; none before the first.
    #[serde(skip)]
    pub taken: Option<Instant>,
}

impl Snapshot {
    /// Knows of no GPU, for a reason.
    pub(crate) fn unavailable(reason: String) -> Self {
        Self {
            gpus: Vec::new(),
            system: System::default(),
            nvml_error: Some(reason),
            source: Source::None,
            taken: None,
        }
    }
}
