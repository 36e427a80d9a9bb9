//! Reading NVML. Every figure may be missing; a GPU that does not answer is a state, not an error.

mod describe;
mod events;
mod instances;
mod links;
mod running;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

pub(crate) use self::describe::Known;
use self::describe::describe;
use self::instances::instances;
use crate::gpu::{Failure, Gpu, Reading, System};
use crate::visible::{Identity, chosen};

/// NVML, loaded and initialised until it is dropped.
pub(crate) struct Session {
    nvml: Nvml,
}

impl Session {
    /// Loads the library and initialises it: a reason where there is none.
    pub(crate) fn open() -> Result<Self, String> {
        let nvml = Nvml::init().map_err(|error| match error {
            NvmlError::LibloadingError(_) => {
                "no NVML library (libnvidia-ml.so.1): no NVIDIA driver is installed".to_owned()
            }
            other => format!("NVML does not start: {other}"),
        })?;
        Ok(Self { nvml })
    }

    /// What NVML tells of the machine. Errors: a reason why there are no GPUs to look at.
    pub(crate) fn system(&self) -> Result<System, String> {
        let count = self.nvml.device_count();
        let detected = count.map_err(|error| format!("NVML does not count GPUs: {error}"))?;
        let cuda = self.nvml.sys_cuda_driver_version().ok();
        Ok(System {
            driver_version: self.nvml.sys_driver_version().ok(),
            nvml_version: self.nvml.sys_nvml_version().ok(),
            // cuDriverGetVersion: 1000·major + 10·minor.
            cuda_version: cuda.map(|version| format!("{}.{}", version / 1000, version % 1000 / 10)),
            detected,
        })
    }

    /// Samples the GPU of this number of NVML's. `known` is kept for the next sample of it.
    pub(crate) fn read(&self, index: u32, known: &mut Option<Known>) -> Reading {
        let device = match self.nvml.device_by_index(index) {
            Ok(device) => device,
            Err(error) => {
                *known = None;
                return Reading::failed(index, failure(&error), error.to_string());
            }
        };
        let pci = device.pci_info().ok();
        let position = pci.as_ref().map(|pci| (pci.domain, pci.bus, pci.device));
        let gpu = describe(&self.nvml, &device, pci.map(|pci| pci.bus_id), known);
        Reading {
            instances: instances(&self.nvml, &device, &gpu),
            gpu,
            position: position.unwrap_or((u32::MAX, u32::MAX, index)),
        }
    }
}

/// What kind of failure of a GPU an error is.
fn failure(error: &NvmlError) -> Failure {
    match error {
        NvmlError::GpuLost => Failure::Lost,
        NvmlError::ResetRequired => Failure::ResetRequired,
        NvmlError::NoPermission => Failure::NoPermission,
        _ => Failure::Unknown,
    }
}

/// The memory in use on a GPU at this moment, in bytes (`nvmlDeviceGetMemoryInfo_v2`). Errors: a
/// reason.
pub fn memory_used(uuid: &str) -> Result<u64, String> {
    let Session { nvml } = Session::open()?;
    let device = nvml
        .device_by_uuid(uuid)
        .map_err(|error| error.to_string())?;
    Ok(device
        .memory_info()
        .map_err(|error| error.to_string())?
        .used)
}

/// Keeps what `CUDA_VISIBLE_DEVICES` names of GPUs, each with its instances behind it. The order stays that of the bus: N of `cuda:N` counts in
/// it everywhere.
pub(crate) fn filter(gpus: Vec<Gpu>, visible: &str) -> Vec<Gpu> {
    let mut count = 0;
    let identities = gpus.iter().map(|gpu| {
        count += usize::from(!gpu.is_instance());
        Identity {
            gpu: count.saturating_sub(1),
            uuid: gpu.uuid.clone(),
            instance: instances::older_name(gpu),
        }
    });
    let all: Vec<Identity> = identities.collect();
    let chosen = chosen(&all, visible);
    let visible = (0..).zip(gpus).filter(|(at, _)| chosen.contains(at));
    visible.map(|(_, gpu)| gpu).collect()
}
