//! The instances of GPUs that are split (MIG).

use std::ffi::{c_uint, c_ulonglong, c_void};

use super::{INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED, about, put, unit};
use crate::scenario::{Gpu, Instance, Unit};

/// The most instances that a GPU can be split into.
const MOST: c_uint = 7;

/// `nvmlDeviceAttributes_t`.
#[repr(C)]
pub struct Attributes {
    multiprocessors: c_uint,
    shared_copy_engines: c_uint,
    shared_decoders: c_uint,
    shared_encoders: c_uint,
    shared_jpeg: c_uint,
    shared_ofa: c_uint,
    gpu_slices: c_uint,
    compute_slices: c_uint,
    memory_mib: c_ulonglong,
}

pub(super) fn of(gpu: &Gpu, place: usize) -> Result<&Instance, c_uint> {
    let instances = gpu.mig.as_ref().ok_or(INVALID_ARGUMENT)?;
    instances.get(place).ok_or(INVALID_ARGUMENT)
}

exported! {
    /// How many instances a GPU can have.
    fn nvmlDeviceGetMaxMigDeviceCount(device: *mut c_void, count: *mut c_uint) {
        about("nvmlDeviceGetMaxMigDeviceCount", device, |gpu, _, _| {
            put(count, if gpu.mig.is_some() { MOST } else { 0 })
        })
    }

    /// An instance's handle.
    fn nvmlDeviceGetMigDeviceHandleByIndex(device: *mut c_void, index: c_uint, instance: *mut *mut c_void) {
        about("nvmlDeviceGetMigDeviceHandleByIndex", device, |gpu, _, number| {
            let instances = gpu.mig.as_ref().ok_or(NOT_SUPPORTED)?;
            instances.get(index as usize).ok_or(NOT_FOUND)?;
            let unit = Unit { gpu: number as usize, instance: Some(index as usize) };
            put(instance, (unit.number() + 1) as *mut c_void)
        })
    }

    /// The handle of an instance's GPU.
    fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instance: *mut c_void, device: *mut *mut c_void) {
        unit("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", instance, |_, unit| {
            unit.instance.ok_or(INVALID_ARGUMENT)?;
            put(device, (Unit::gpu(unit.gpu).number() + 1) as *mut c_void)
        })
    }

    /// Whether a handle is an instance's.
    fn nvmlDeviceIsMigDeviceHandle(device: *mut c_void, instance: *mut c_uint) {
        unit("nvmlDeviceIsMigDeviceHandle", device, |_, unit| put(instance, unit.instance.is_some().into()))
    }

    /// The number of an instance among its GPU's, from 1.
    fn nvmlDeviceGetGpuInstanceId(device: *mut c_void, id: *mut c_uint) {
        unit("nvmlDeviceGetGpuInstanceId", device, |_, unit| {
            put(id, unit.instance.ok_or(NOT_SUPPORTED)? as c_uint + 1)
        })
    }

    /// The number of an instance's compute instance, the only one.
    fn nvmlDeviceGetComputeInstanceId(device: *mut c_void, id: *mut c_uint) {
        unit("nvmlDeviceGetComputeInstanceId", device, |_, unit| {
            unit.instance.ok_or(NOT_SUPPORTED)?;
            put(id, 0)
        })
    }

    /// What an instance has.
    fn nvmlDeviceGetAttributes_v2(device: *mut c_void, attributes: *mut Attributes) {
        unit("nvmlDeviceGetAttributes_v2", device, |scenario, unit| {
            let instance = of(&scenario.gpus[unit.gpu], unit.instance.ok_or(NOT_SUPPORTED)?)?;
            put(attributes, Attributes {
                multiprocessors: instance.sm_count,
                shared_copy_engines: 1,
                shared_decoders: 0,
                shared_encoders: 0,
                shared_jpeg: 0,
                shared_ofa: 0,
                gpu_slices: 1,
                compute_slices: 1,
                memory_mib: instance.memory_mib,
            })
        })
    }
}
