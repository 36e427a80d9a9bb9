//! What is known of the machine's GPUs at one moment.

use std::collections::BTreeMap;

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
    /// Who may use it: `default`, `exclusive_process` or `prohibited`.
    pub compute_mode: Option<&'static str>,
    /// Whether the driver stays loaded without a client.
    pub persistence_mode: Option<bool>,
    /// Whether it shows a screen.
    pub display_active: Option<bool>,
}

/// All visible GPUs at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Snapshot {
    /// In PCI bus order.
    pub gpus: Vec<Gpu>,
    /// The driver's version, such as `580.105.08`.
    pub driver_version: Option<String>,
    /// NVML's version.
    pub nvml_version: Option<String>,
    /// The newest CUDA version that the driver supports, such as `13.0`.
    pub cuda_version: Option<String>,
    /// GPUs that NVML counts, those that are not visible among them.
    pub detected: u32,
    /// Why no GPUs are known: no NVML library, no driver, a failing or hanging call.
    pub nvml_error: Option<String>,
    /// When the sample was taken; none before the first.
    #[serde(skip)]
    pub taken: Option<std::time::Instant>,
}

impl Snapshot {
    /// Knows of no GPU, for a reason.
    pub(crate) fn unavailable(reason: String) -> Self {
        Self {
            gpus: Vec::new(),
            driver_version: None,
            nvml_version: None,
            cuda_version: None,
            detected: 0,
            nvml_error: Some(reason),
            taken: None,
        }
    }
}
