//! What connects a GPU to others.

use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::{P2pCapabilitiesIndex, P2pStatus, TopologyLevel};
use nvml_wrapper::error::NvmlError;

use super::Session;
use crate::gpu::Peer;

/// `NVML_NVLINK_MAX_LINKS`.
const MOST_LINKS: u32 = 18;

/// The NVLinks of a GPU that work.
pub(super) fn active_links(device: &Device<'_>) -> Result<u32, NvmlError> {
    let mut active = 0;
    for link in 0..MOST_LINKS {
        match device.link_wrapper_for(link).is_active() {
            Ok(works) => active += u32::from(works),
            // It has no more of them.
            Err(NvmlError::InvalidArg | NvmlError::NotSupported) if link > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(active)
}

fn level(level: TopologyLevel) -> &'static str {
    match level {
        TopologyLevel::Internal => "internal",
        TopologyLevel::Single => "single_switch",
        TopologyLevel::Multiple => "multiple_switches",
        TopologyLevel::HostBridge => "host_bridge",
        TopologyLevel::Node => "numa_node",
        TopologyLevel::System => "system",
    }
}

fn status(status: P2pStatus) -> &'static str {
    match status {
        P2pStatus::Ok => "ok",
        P2pStatus::ChipsetNotSupported => "chipset_not_supported",
        P2pStatus::GpuNotSupported => "gpu_not_supported",
        P2pStatus::IohTopologyNotSupported => "topology_not_supported",
        P2pStatus::DisabledByRegkey => "disabled",
        P2pStatus::NotSupported => "not_supported",
        P2pStatus::Unknown => "unknown",
    }
}

impl Session {
    /// How these GPUs, by NVML's numbers, are connected: of each, all others that answer.
    pub(crate) fn peers(&self, gpus: &[u32]) -> Vec<(u32, Vec<Peer>)> {
        let device = |&index: &u32| Some((index, self.nvml.device_by_index(index).ok()?));
        let devices: Vec<(u32, Device<'_>)> = gpus.iter().filter_map(device).collect();
        let peers = devices.iter().map(|(index, device)| {
            let others = gpus.iter().filter(|other| *other != index);
            let peer = |other: &u32| {
                let other = self.nvml.device_by_index(*other).ok()?;
                Some(Peer {
                    uuid: other.uuid().ok()?,
                    p2p: device
                        .p2p_status(&other, P2pCapabilitiesIndex::Read)
                        .ok()
                        .map(status),
                    level: device.topology_common_ancestor(other).ok().map(level),
                })
            };
            (*index, others.filter_map(peer).collect())
        });
        peers.collect()
    }
}
