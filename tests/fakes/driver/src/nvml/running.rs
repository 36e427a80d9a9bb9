//! The processes on GPUs.

use std::ffi::{c_uint, c_ulonglong, c_void};

use super::{Answer, INSUFFICIENT_SIZE, INVALID_ARGUMENT, NOT_FOUND, about, put, unit};
use crate::processes;
use crate::scenario::{Scenario, Unit};

/// `nvmlProcessInfo_v2_t`.
#[repr(C)]
pub struct Process {
    pid: c_uint,
    used_bytes: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

/// `nvmlProcessUtilizationSample_t`, in percent.
#[repr(C)]
pub struct Sample {
    pid: c_uint,
    timestamp: c_ulonglong,
    multiprocessors: c_uint,
    memory: c_uint,
    encoder: c_uint,
    decoder: c_uint,
}

/// Those of other programs on GPUs that are not split.
fn others(scenario: &Scenario, unit: Unit, graphics: bool) -> Vec<(u32, u64)> {
    let there = scenario.gpus[unit.gpu].processes.iter();
    let there = there.filter(|other| unit.instance.is_none() && other.graphics == graphics);
    there
        .map(|other| (other.pid, other.used_mib << 20))
        .collect()
}

/// Tells entries: with too little room only how many there are.
fn tell<T>(found: Vec<T>, count: *mut c_uint, room: *mut T) -> Answer {
    if count.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, and the caller passes a number.
    let capacity = unsafe { count.read() } as usize;
    put(count, found.len() as c_uint)?;
    if found.len() > capacity {
        return Err(INSUFFICIENT_SIZE);
    }
    for (at, one) in found.into_iter().enumerate() {
        // SAFETY: the caller passes room for `capacity` entries, and `at` is below that.
        put(unsafe { room.add(at) }, one)?;
    }
    Ok(())
}

fn process((pid, used_bytes): (u32, u64)) -> Process {
    Process {
        pid,
        used_bytes,
        gpu_instance: u32::MAX,
        compute_instance: u32::MAX,
    }
}

exported! {
    /// Those that compute.
    fn nvmlDeviceGetComputeRunningProcesses_v3(device: *mut c_void, count: *mut c_uint, room: *mut Process) {
        unit("nvmlDeviceGetComputeRunningProcesses_v3", device, |scenario, unit| {
            let found = [processes::holders(unit), others(scenario, unit, false)].concat();
            tell(found.into_iter().map(process).collect(), count, room)
        })
    }

    /// Those that draw.
    fn nvmlDeviceGetGraphicsRunningProcesses_v3(device: *mut c_void, count: *mut c_uint, room: *mut Process) {
        unit("nvmlDeviceGetGraphicsRunningProcesses_v3", device, |scenario, unit| {
            let found = others(scenario, unit, true).into_iter();
            tell(found.map(process).collect(), count, room)
        })
    }

    /// Those that share a context: none.
    fn nvmlDeviceGetMPSComputeRunningProcesses_v3(device: *mut c_void, count: *mut c_uint, room: *mut Process) {
        unit("nvmlDeviceGetMPSComputeRunningProcesses_v3", device, |_, _| {
            tell(Vec::new(), count, room)
        })
    }

    /// What processes used lately: those of other programs that used anything.
    fn nvmlDeviceGetProcessUtilization(device: *mut c_void, room: *mut Sample, count: *mut c_uint, since: c_ulonglong) {
        about("nvmlDeviceGetProcessUtilization", device, |gpu, _, _| {
            let used = gpu.processes.iter().filter(|one| one.sm_percent > 0);
            let samples: Vec<Sample> = used
                .map(|one| Sample {
                    pid: one.pid,
                    timestamp: since + 1,
                    multiprocessors: one.sm_percent,
                    memory: 0,
                    encoder: 0,
                    decoder: 0,
                })
                .collect();
            if samples.is_empty() {
                return Err(NOT_FOUND);
            }
            tell(samples, count, room)
        })
    }
}
