//! Reading NVML. Every figure may be missing; a GPU that does not answer is a state, not an error.

mod describe;

use std::time::Instant;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use self::describe::{describe, silent};
use crate::gpu::{Gpu, Snapshot};
use crate::visible::{Identity, chosen};

/// A GPU before it has its place among the visible ones.
struct Found {
    gpu: Gpu,
    /// (domain, bus, device), the order of the GPUs; a GPU that does not tell comes last.
    position: (u32, u32, u32),
}

/// Loads the library and initialises it: a reason where there is none.
pub(crate) fn open() -> Result<Nvml, String> {
    Nvml::init().map_err(|error| match error {
        NvmlError::LibloadingError(_) => {
            "no NVML library (libnvidia-ml.so.1): no NVIDIA driver is installed".to_owned()
        }
        other => format!("NVML does not start: {other}"),
    })
}

/// Samples all GPUs. `visible` is the value of `CUDA_VISIBLE_DEVICES`.
pub(crate) fn sample(nvml: &Nvml, visible: Option<&str>) -> Snapshot {
    let taken = Some(Instant::now());
    let count = match nvml.device_count() {
        Ok(count) => count,
        Err(error) => return Snapshot::unavailable(format!("NVML does not count GPUs: {error}")),
    };
    let mut found: Vec<Found> = (0..count).map(|index| read(nvml, index)).collect();
    found.sort_by_key(|found| found.position);
    let mut gpus: Vec<Gpu> = found.into_iter().map(|found| found.gpu).collect();
    if let Some(visible) = visible {
        gpus = filter(gpus, visible);
    }
    for (index, gpu) in (0..).zip(&mut gpus) {
        gpu.index = index;
    }
    let cuda = nvml.sys_cuda_driver_version().ok();
    Snapshot {
        gpus,
        driver_version: nvml.sys_driver_version().ok(),
        nvml_version: nvml.sys_nvml_version().ok(),
        detected: count,
        // cuDriverGetVersion: 1000·major + 10·minor.
        cuda_version: cuda.map(|version| format!("{}.{}", version / 1000, version % 1000 / 10)),
        nvml_error: None,
        taken,
    }
}

/// The memory in use on a GPU at this moment, in bytes (`nvmlDeviceGetMemoryInfo_v2`). Errors: a
/// reason.
pub fn memory_used(uuid: &str) -> Result<u64, String> {
    let nvml = open()?;
    let device = nvml
        .device_by_uuid(uuid)
        .map_err(|error| error.to_string())?;
    Ok(device
        .memory_info()
        .map_err(|error| error.to_string())?
        .used)
}

fn read(nvml: &Nvml, index: u32) -> Found {
    match nvml.device_by_index(index) {
        Ok(device) => Found {
            position: device
                .pci_info()
                .map_or((u32::MAX, u32::MAX, index), |pci| {
                    (pci.domain, pci.bus, pci.device)
                }),
            gpu: describe(nvml, &device),
        },
        Err(error) => Found {
            gpu: silent(format!("GPU {index} of NVML"), error.to_string()),
            position: (u32::MAX, u32::MAX, index),
        },
    }
}

/// Keeps what `CUDA_VISIBLE_DEVICES` names. The order stays that of the bus: N of `cuda:N` counts in
/// it everywhere.
fn filter(gpus: Vec<Gpu>, visible: &str) -> Vec<Gpu> {
    let identity = |(number, gpu): (usize, &Gpu)| Identity {
        gpu: number,
        uuid: gpu.uuid.clone(),
        instance: None,
    };
    let all: Vec<Identity> = gpus.iter().enumerate().map(identity).collect();
    let chosen = chosen(&all, visible);
    let visible = (0..).zip(gpus).filter(|(at, _)| chosen.contains(at));
    visible.map(|(_, gpu)| gpu).collect()
}
