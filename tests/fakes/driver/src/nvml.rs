//! NVML's functions, as `nvml.h` declares them. A device handle is the number of the scenario's unit
//! plus 1.

pub mod details;
pub mod events;
pub mod instances;
pub mod links;
pub mod running;

use std::collections::BTreeSet;
use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::profiles::Profile;
use crate::scenario::{Gpu, Scenario, Unit};

const SUCCESS: c_uint = 0;
const UNINITIALIZED: c_uint = 1;
const INVALID_ARGUMENT: c_uint = 2;
const NOT_SUPPORTED: c_uint = 3;
const NOT_FOUND: c_uint = 6;
const INSUFFICIENT_SIZE: c_uint = 7;
const DRIVER_NOT_LOADED: c_uint = 9;
const TIMEOUT: c_uint = 10;
const GPU_IS_LOST: c_uint = 15;
const RESET_REQUIRED: c_uint = 16;
const UNKNOWN: c_uint = 999;

/// `nvmlPciInfo_t`.
#[repr(C)]
pub struct PciInfo {
    bus_id_legacy: [c_char; 16],
    domain: c_uint,
    bus: c_uint,
    device: c_uint,
    pci_device_id: c_uint,
    pci_subsystem_id: c_uint,
    bus_id: [c_char; 32],
}

/// `nvmlMemory_v2_t`, in bytes.
#[repr(C)]
pub struct Memory {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

/// `nvmlUtilization_t`, in percent.
#[repr(C)]
pub struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

type Answer = Result<(), c_uint>;

/// What NVML knows in this process, from its first start to its last end.
struct Session {
    /// Starts less ends.
    starts: u32,
    /// The driver's restarts when it was started.
    restarts: u32,
    /// GPUs that were seen to be lost.
    lost: BTreeSet<usize>,
}

static SESSION: Mutex<Session> = Mutex::new(Session {
    starts: 0,
    restarts: 0,
    lost: BTreeSet::new(),
});

fn session() -> MutexGuard<'static, Session> {
    SESSION.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads the machine. A file that cannot be read is a machine without a driver.
fn machine() -> Result<Arc<Scenario>, c_uint> {
    Scenario::read().map_err(|reason| {
        eprintln!("simulated NVIDIA machine: {reason}");
        DRIVER_NOT_LOADED
    })
}

/// Reads the machine, fails or hangs where it says so of a call about this GPU, and gives it.
fn admit(function: &str, gpu: Option<usize>) -> Result<Arc<Scenario>, c_uint> {
    let scenario = loop {
        let scenario = machine()?;
        match scenario.fault(function, gpu) {
            Some(fault) if fault.hang => std::thread::sleep(Duration::from_millis(20)),
            Some(fault) => return Err(fault.code),
            None => break scenario,
        }
    };
    let known = session();
    match function {
        "nvmlInit_v2" if scenario.unloaded => Err(DRIVER_NOT_LOADED),
        "nvmlInit_v2" => Ok(scenario),
        _ if known.starts == 0 => Err(UNINITIALIZED),
        _ if scenario.unloaded || known.restarts != scenario.restarts => Err(UNKNOWN),
        _ => Ok(scenario),
    }
}

/// Answers a call.
fn answer(function: &str, work: impl FnOnce(&Scenario) -> Answer) -> c_uint {
    let answered = admit(function, None).and_then(|scenario| work(&scenario));
    answered.err().unwrap_or(SUCCESS)
}

/// Answers a call about one GPU or one instance.
fn unit(
    function: &str,
    device: *mut c_void,
    work: impl FnOnce(&Scenario, Unit) -> Answer,
) -> c_uint {
    let answered = || {
        let number = (device as usize).checked_sub(1).ok_or(INVALID_ARGUMENT)?;
        let unit = Unit::of(number);
        let scenario = admit(function, Some(unit.gpu))?;
        let gpu = scenario.gpus.get(unit.gpu).ok_or(INVALID_ARGUMENT)?;
        if gpu.lost {
            session().lost.insert(unit.gpu);
        }
        if session().lost.contains(&unit.gpu) {
            return Err(GPU_IS_LOST);
        }
        if gpu.reset_required {
            return Err(RESET_REQUIRED);
        }
        work(&scenario, unit)
    };
    answered().err().unwrap_or(SUCCESS)
}

/// Answers a call about one GPU, which instances do not support.
fn about(
    function: &str,
    device: *mut c_void,
    work: impl FnOnce(&Gpu, &Profile, u32) -> Answer,
) -> c_uint {
    unit(function, device, |scenario, unit| {
        if unit.instance.is_some() {
            return Err(NOT_SUPPORTED);
        }
        let gpu = scenario.gpus.get(unit.gpu).ok_or(INVALID_ARGUMENT)?;
        let profile = gpu.profile().map_err(|_| INVALID_ARGUMENT)?;
        work(gpu, profile, unit.gpu as u32)
    })
}

/// Writes a value for the caller.
fn put<T>(target: *mut T, value: T) -> Answer {
    if target.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, and the caller passes a place for a `T`, as nvml.h asks.
    unsafe { target.write(value) };
    Ok(())
}

/// Writes a text and its end for the caller, who has `length` bytes.
fn put_text(target: *mut c_char, length: c_uint, text: &str) -> Answer {
    if target.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    if text.len() >= length as usize {
        return Err(INSUFFICIENT_SIZE);
    }
    for (at, byte) in text.bytes().chain([0]).enumerate() {
        // SAFETY: `at` is below `length`, and the caller passes so many bytes.
        unsafe { target.add(at).write(byte as c_char) };
    }
    Ok(())
}

fn fixed<const N: usize>(text: &str) -> [c_char; N] {
    let mut out = [0; N];
    let room = N - 1;
    out.iter_mut()
        .take(room)
        .zip(text.bytes())
        .for_each(|(to, byte)| *to = byte as c_char);
    out
}

exported! {
    /// Starts NVML.
    fn nvmlInit_v2() {
        answer("nvmlInit_v2", |scenario| {
            let mut session = session();
            if session.starts == 0 {
                session.restarts = scenario.restarts;
            }
            session.starts += 1;
            Ok(())
        })
    }

    /// Ends NVML.
    fn nvmlShutdown() {
        let mut session = session();
        session.starts = session.starts.saturating_sub(1);
        if session.starts == 0 {
            session.lost.clear();
        }
        SUCCESS
    }

    /// The driver's version.
    fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) {
        answer("nvmlSystemGetDriverVersion", |scenario| put_text(version, length, &scenario.driver))
    }

    /// The newest CUDA version that the driver supports.
    fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) {
        answer("nvmlSystemGetCudaDriverVersion_v2", |scenario| put(version, scenario.cuda))
    }

    /// The number of GPUs.
    fn nvmlDeviceGetCount_v2(count: *mut c_uint) {
        answer("nvmlDeviceGetCount_v2", |scenario| put(count, scenario.gpus.len() as c_uint))
    }

    /// A GPU's handle.
    fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut *mut c_void) {
        let admitted = admit("nvmlDeviceGetHandleByIndex_v2", Some(index as usize));
        let answered = admitted.and_then(|scenario| {
            if index as usize >= scenario.gpus.len() {
                return Err(INVALID_ARGUMENT);
            }
            put(device, (index as usize + 1) as *mut c_void)
        });
        answered.err().unwrap_or(SUCCESS)
    }

    /// The handle of the GPU of an identity.
    fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, device: *mut *mut c_void) {
        answer("nvmlDeviceGetHandleByUUID", |scenario| {
            if uuid.is_null() {
                return Err(INVALID_ARGUMENT);
            }
            // SAFETY: not null, and the caller passes a text and its end.
            let wanted = unsafe { CStr::from_ptr(uuid) }.to_str().map_err(|_| INVALID_ARGUMENT)?;
            let mut units = scenario.units().into_iter();
            let found = units.find(|unit| scenario.identity(*unit).as_deref() == Some(wanted));
            put(device, (found.ok_or(NOT_FOUND)?.number() + 1) as *mut c_void)
        })
    }

    /// A GPU's identity, or an instance's.
    fn nvmlDeviceGetUUID(device: *mut c_void, uuid: *mut c_char, length: c_uint) {
        unit("nvmlDeviceGetUUID", device, |scenario, unit| {
            put_text(uuid, length, &scenario.identity(unit).ok_or(INVALID_ARGUMENT)?)
        })
    }

    /// A GPU's product name, or an instance's.
    fn nvmlDeviceGetName(device: *mut c_void, name: *mut c_char, length: c_uint) {
        unit("nvmlDeviceGetName", device, |scenario, unit| {
            let gpu = &scenario.gpus[unit.gpu];
            let board = gpu.profile().map_err(|_| INVALID_ARGUMENT)?.name;
            match unit.instance {
                None => put_text(name, length, board),
                Some(place) => {
                    put_text(name, length, &format!("{board} MIG {}", instances::of(gpu, place)?.name))
                }
            }
        })
    }

    /// Where a GPU is on the PCI bus.
    fn nvmlDeviceGetPciInfo_v3(device: *mut c_void, info: *mut PciInfo) {
        about("nvmlDeviceGetPciInfo_v3", device, |gpu, profile, number| {
            let bus = gpu.bus.unwrap_or(number + 1);
            put(info, PciInfo {
                bus_id_legacy: fixed(&format!("0000:{bus:02X}:00.0")),
                domain: 0,
                bus,
                device: 0,
                pci_device_id: profile.pci_device,
                pci_subsystem_id: 0,
                bus_id: fixed(&format!("00000000:{bus:02X}:00.0")),
            })
        })
    }

    /// A GPU's compute capability.
    fn nvmlDeviceGetCudaComputeCapability(device: *mut c_void, major: *mut c_int, minor: *mut c_int) {
        about("nvmlDeviceGetCudaComputeCapability", device, |_, profile, _| {
            put(major, profile.compute_capability.0)?;
            put(minor, profile.compute_capability.1)
        })
    }

    /// A GPU's memory, or an instance's.
    fn nvmlDeviceGetMemoryInfo_v2(device: *mut c_void, memory: *mut Memory) {
        unit("nvmlDeviceGetMemoryInfo_v2", device, |scenario, unit| {
            let (total, reserved, used) = scenario.memory_bytes(unit).ok_or(INVALID_ARGUMENT)?;
            put(memory, Memory {
                version: (size_of::<Memory>() | 2 << 24) as c_uint,
                total,
                reserved,
                free: total.saturating_sub(reserved + used),
                used,
            })
        })
    }

    /// A GPU's temperature in °C; the only sensor is 0.
    fn nvmlDeviceGetTemperature(device: *mut c_void, sensor: c_uint, temperature: *mut c_uint) {
        about("nvmlDeviceGetTemperature", device, |gpu, profile, _| {
            if sensor != 0 {
                return Err(INVALID_ARGUMENT);
            }
            put(temperature, gpu.temperature.unwrap_or(profile.temperature))
        })
    }

    /// The power that a GPU draws, in mW.
    fn nvmlDeviceGetPowerUsage(device: *mut c_void, power: *mut c_uint) {
        about("nvmlDeviceGetPowerUsage", device, |gpu, profile, _| {
            put(power, (gpu.power.unwrap_or(profile.power) * 1e3) as c_uint)
        })
    }

    /// A GPU's power limit, in mW.
    fn nvmlDeviceGetEnforcedPowerLimit(device: *mut c_void, limit: *mut c_uint) {
        about("nvmlDeviceGetEnforcedPowerLimit", device, |_, profile, _| {
            put(limit, (profile.power_limit * 1e3) as c_uint)
        })
    }

    /// How busy a GPU is; one that is split does not tell.
    fn nvmlDeviceGetUtilizationRates(device: *mut c_void, rates: *mut Utilization) {
        about("nvmlDeviceGetUtilizationRates", device, |gpu, _, _| {
            if gpu.mig.is_some() {
                return Err(NOT_SUPPORTED);
            }
            put(rates, Utilization { gpu: gpu.utilization, memory: 0 })
        })
    }
}
