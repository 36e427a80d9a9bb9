//! The GPUs as the CUDA driver alone shows them, for machines without NVML (containers, WSL): found out
//! by a process of its own, as a probe's is.

use std::process::{Command, ExitCode};

use devices::Gpu;
use serde::{Deserialize, Serialize};

use super::probe;
use crate::program;

/// A GPU that the driver shows.
#[derive(Serialize, Deserialize)]
struct Listed {
    uuid: String,
    name: String,
    memory_bytes: u64,
    compute_capability: (i32, i32),
    pci: (i32, i32, i32),
}

impl From<compute::cuda::VisibleGpu> for Listed {
    fn from(gpu: compute::cuda::VisibleGpu) -> Self {
        Self {
            uuid: gpu.uuid,
            name: gpu.name,
            memory_bytes: gpu.memory_bytes,
            compute_capability: gpu.compute_capability,
            pci: gpu.pci,
        }
    }
}

impl From<Listed> for Gpu {
    fn from(gpu: Listed) -> Self {
        let ((major, minor), (domain, bus, device)) = (gpu.compute_capability, gpu.pci);
        Self {
            uuid: Some(gpu.uuid),
            name: gpu.name,
            pci_bus_id: Some(format!("{domain:08X}:{bus:02X}:{device:02X}.0")),
            compute_capability: Some(format!("{major}.{minor}")),
            memory_total_bytes: Some(gpu.memory_bytes),
            ..Self::default()
        }
    }
}

/// The body of the process that looks: prints what it finds.
pub fn run() -> ExitCode {
    let gpus = compute::cuda::visible();
    let listed: Result<Vec<Listed>, String> = gpus
        .map(|gpus| gpus.into_iter().map(Listed::from).collect())
        .map_err(|error| error.to_string());
    probe::answer(&listed)
}

/// The GPUs that the driver shows to this program, in the order of the bus, `CUDA_VISIBLE_DEVICES` taken
/// into account. Errors: why it shows none.
pub fn list() -> Result<Vec<Gpu>, String> {
    let mut command = Command::new(program::PATH);
    program::environment(&mut command, &[])
        .arg("list-gpus")
        .env("CUDA_DEVICE_ORDER", "PCI_BUS_ID");
    match std::env::var_os("CUDA_VISIBLE_DEVICES") {
        Some(visible) => command.env("CUDA_VISIBLE_DEVICES", visible),
        None => command.env_remove("CUDA_VISIBLE_DEVICES"),
    };
    let listed: Vec<Listed> = probe::ask(&mut command)?;
    Ok(listed.into_iter().map(Gpu::from).collect())
}
