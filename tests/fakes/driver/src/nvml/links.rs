//! What connects GPUs: the bus and NVLinks.

use std::ffi::{c_uint, c_void};

use super::{INVALID_ARGUMENT, NOT_SUPPORTED, about, put, unit};
use crate::scenario::{Gpu, Scenario, Unit};

/// `NVML_TOPOLOGY_SINGLE`: one switch, and `NVML_TOPOLOGY_SYSTEM`.
const SWITCH: c_uint = 10;
const SYSTEM: c_uint = 50;
/// `NVML_P2P_STATUS_OK` and `NVML_P2P_STATUS_GPU_NOT_SUPPORTED`.
const OK: c_uint = 0;
const UNABLE: c_uint = 2;

/// The GPUs of two handles.
fn pair(scenario: &Scenario, one: Unit, other: *mut c_void) -> Result<[&Gpu; 2], c_uint> {
    let other = (other as usize).checked_sub(1).ok_or(INVALID_ARGUMENT)?;
    let other = scenario.gpus.get(other).ok_or(INVALID_ARGUMENT)?;
    Ok([&scenario.gpus[one.gpu], other])
}

exported! {
    /// KiB/s over the last 20 ms: 0 sent, 1 received.
    fn nvmlDeviceGetPcieThroughput(device: *mut c_void, counter: c_uint, value: *mut c_uint) {
        about("nvmlDeviceGetPcieThroughput", device, |gpu, _, _| {
            put(value, *gpu.pcie_kib.get(counter as usize).ok_or(INVALID_ARGUMENT)?)
        })
    }

    /// Whether an NVLink is active.
    fn nvmlDeviceGetNvLinkState(device: *mut c_void, link: c_uint, active: *mut c_uint) {
        about("nvmlDeviceGetNvLinkState", device, |gpu, _, _| {
            if gpu.nvlinks == 0 {
                return Err(NOT_SUPPORTED);
            }
            if link >= gpu.nvlinks {
                return Err(INVALID_ARGUMENT);
            }
            put(active, (link < gpu.nvlinks_active).into())
        })
    }

    /// What two GPUs are both below.
    fn nvmlDeviceGetTopologyCommonAncestor(device: *mut c_void, other: *mut c_void, level: *mut c_uint) {
        unit("nvmlDeviceGetTopologyCommonAncestor", device, |scenario, unit| {
            let [one, other] = pair(scenario, unit, other)?;
            let same = one.switch.is_some() && one.switch == other.switch;
            put(level, if same { SWITCH } else { SYSTEM })
        })
    }

    /// Whether two GPUs reach each other's memory.
    fn nvmlDeviceGetP2PStatus(device: *mut c_void, other: *mut c_void, _index: c_uint, status: *mut c_uint) {
        unit("nvmlDeviceGetP2PStatus", device, |scenario, unit| {
            let [one, other] = pair(scenario, unit, other)?;
            put(status, if one.profile == other.profile { OK } else { UNABLE })
        })
    }
}
