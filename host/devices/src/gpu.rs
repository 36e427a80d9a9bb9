//! What is known of the machine's GPUs at one moment.

use serde::Serialize;

/// One visible GPU. What a GPU or its driver does not tell is none, never 0.
#[derive(Debug, Clone, PartialEq, Serialize)]
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
    /// Memory taken by processes, in bytes.
    pub memory_used_bytes: Option<u64>,
    /// Memory neither taken nor reserved, in bytes.
    pub memory_free_bytes: Option<u64>,
    /// °C.
    pub temperature_celsius: Option<u32>,
    /// W.
    pub power_watts: Option<f64>,
    /// The power limit in force, in W.
    pub power_limit_watts: Option<f64>,
    /// Percent of the last sample period (1/6 to 1 s) in which a kernel ran.
    pub utilization_percent: Option<u32>,
    /// Why the GPU does not answer, such as that it fell off the bus.
    pub error: Option<String>,
}

/// All visible GPUs at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Snapshot {
    /// In PCI bus order.
    pub gpus: Vec<Gpu>,
    /// The driver's version, such as `580.105.08`.
    pub driver_version: Option<String>,
    /// The newest CUDA version that the driver supports, such as `13.0`.
    pub cuda_version: Option<String>,
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
            cuda_version: None,
            nvml_error: Some(reason),
            taken: None,
        }
    }
}
