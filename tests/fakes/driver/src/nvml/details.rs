//! What NVML tells of a GPU besides its memory and its temperature.

use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};

use super::{INVALID_ARGUMENT, NOT_SUPPORTED, SUCCESS, about, answer, put, put_text};

/// `nvmlBAR1Memory_t`, in bytes.
#[repr(C)]
pub struct Bar1 {
    total: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

/// `nvmlFieldValue_t`, with the value's 32 bits.
#[repr(C)]
pub struct Field {
    id: c_uint,
    scope: c_uint,
    timestamp: i64,
    latency: i64,
    kind: c_uint,
    answer: c_uint,
    value: i32,
    rest: u32,
}

/// `nvmlMarginTemperature_v1_t`, in °C.
#[repr(C)]
pub struct Margin {
    version: c_uint,
    margin: c_int,
}

/// `NVML_VALUE_TYPE_SIGNED_INT`.
const SIGNED_INT: c_uint = 5;

exported! {
    /// NVML's version.
    fn nvmlSystemGetNVMLVersion(version: *mut c_char, length: c_uint) {
        answer("nvmlSystemGetNVMLVersion", |scenario| put_text(version, length, &format!("13.{}", scenario.driver)))
    }

    /// A GPU's place in NVML's order.
    fn nvmlDeviceGetIndex(device: *mut c_void, index: *mut c_uint) {
        about("nvmlDeviceGetIndex", device, |_, _, number| put(index, number))
    }

    /// N of a GPU's `/dev/nvidiaN`.
    fn nvmlDeviceGetMinorNumber(device: *mut c_void, minor: *mut c_uint) {
        about("nvmlDeviceGetMinorNumber", device, |_, _, number| put(minor, number))
    }

    /// A board's number.
    fn nvmlDeviceGetSerial(device: *mut c_void, serial: *mut c_char, length: c_uint) {
        about("nvmlDeviceGetSerial", device, |_, profile, number| {
            if !profile.more.serial {
                return Err(NOT_SUPPORTED);
            }
            put_text(serial, length, &format!("165{number:010}"))
        })
    }

    /// A board's firmware.
    fn nvmlDeviceGetVbiosVersion(device: *mut c_void, version: *mut c_char, length: c_uint) {
        about("nvmlDeviceGetVbiosVersion", device, |_, _, _| put_text(version, length, "96.00.61.00.01"))
    }

    /// A GPU's brand.
    fn nvmlDeviceGetBrand(device: *mut c_void, value: *mut c_uint) {
        about("nvmlDeviceGetBrand", device, |_, profile, _| put(value, profile.more.brand))
    }

    /// A GPU's architecture.
    fn nvmlDeviceGetArchitecture(device: *mut c_void, value: *mut c_uint) {
        about("nvmlDeviceGetArchitecture", device, |_, profile, _| put(value, profile.more.architecture))
    }

    /// A GPU's cores.
    fn nvmlDeviceGetNumGpuCores(device: *mut c_void, value: *mut c_uint) {
        about("nvmlDeviceGetNumGpuCores", device, |_, profile, _| put(value, profile.more.cores))
    }

    /// The node of the processor's memory that is closest.
    fn nvmlDeviceGetNumaNodeId(device: *mut c_void, value: *mut c_uint) {
        about("nvmlDeviceGetNumaNodeId", device, |_, _, _| put(value, 0))
    }

    /// Whether a GPU is split, now and after a restart.
    fn nvmlDeviceGetMigMode(device: *mut c_void, now: *mut c_uint, then: *mut c_uint) {
        about("nvmlDeviceGetMigMode", device, |gpu, profile, _| {
            let able = profile.more.mig.ok_or(NOT_SUPPORTED)?;
            let mig = c_uint::from(able || gpu.mig.is_some());
            put(now, mig)?;
            put(then, mig)
        })
    }

    /// The window of a GPU's memory on the bus.
    fn nvmlDeviceGetBAR1MemoryInfo(device: *mut c_void, memory: *mut Bar1) {
        about("nvmlDeviceGetBAR1MemoryInfo", device, |_, profile, _| {
            let (total, used) = (profile.more.bar1_mib << 20, 2 << 20);
            put(memory, Bar1 { total, free: total - used, used })
        })
    }

    /// A temperature at which something happens: 0 shutdown, 1 slowdown, 3 the highest at work.
    fn nvmlDeviceGetTemperatureThreshold(device: *mut c_void, which: c_uint, celsius: *mut c_uint) {
        about("nvmlDeviceGetTemperatureThreshold", device, |_, profile, _| {
            let [shutdown, slowdown, most] = profile.more.thresholds.ok_or(NOT_SUPPORTED)?;
            put(celsius, match which {
                0 => shutdown,
                1 => slowdown,
                3 => most,
                _ => return Err(NOT_SUPPORTED),
            })
        })
    }

    /// The margin to the slowdown temperature. One that is hotter than its capture has less.
    fn nvmlDeviceGetMarginTemperature(device: *mut c_void, told: *mut Margin) {
        about("nvmlDeviceGetMarginTemperature", device, |gpu, profile, _| {
            let [now, ..] = profile.more.margins.ok_or(NOT_SUPPORTED)?;
            let warmer = gpu.temperature.unwrap_or(profile.temperature) as c_int - profile.temperature as c_int;
            put(told, Margin { version: (size_of::<Margin>() | 1 << 24) as c_uint, margin: now - warmer })
        })
    }

    /// Figures by number: 82 the memory's temperature, 193 and 194 the margins at shutdown and slowdown,
    /// 230 what would recover it.
    fn nvmlDeviceGetFieldValues(device: *mut c_void, count: c_int, fields: *mut Field) {
        about("nvmlDeviceGetFieldValues", device, |gpu, profile, _| {
            for at in 0..usize::try_from(count).map_err(|_| INVALID_ARGUMENT)? {
                // SAFETY: the caller passes so many fields.
                let field = unsafe { fields.add(at).as_mut() }.ok_or(INVALID_ARGUMENT)?;
                let value = match (field.id, profile.more.margins) {
                    (82, _) => profile.more.memory_temperature.map(|celsius| celsius as i32),
                    (193, Some([_, shutdown, _])) => Some(shutdown),
                    (194, Some([.., slowdown])) => Some(slowdown),
                    (230, _) => Some(gpu.recovery_action),
                    _ => None,
                };
                field.kind = SIGNED_INT;
                field.answer = value.map_or(NOT_SUPPORTED, |_| SUCCESS);
                field.value = value.unwrap_or(0);
            }
            Ok(())
        })
    }

    /// The power limit that a GPU starts with, in mW.
    fn nvmlDeviceGetPowerManagementDefaultLimit(device: *mut c_void, value: *mut c_uint) {
        about("nvmlDeviceGetPowerManagementDefaultLimit", device, |_, profile, _| put(value, profile.more.power_limits[0] * 1000))
    }

    /// The power limits that a GPU can have, in mW.
    fn nvmlDeviceGetPowerManagementLimitConstraints(device: *mut c_void, least: *mut c_uint, most: *mut c_uint) {
        about("nvmlDeviceGetPowerManagementLimitConstraints", device, |_, profile, _| {
            put(least, profile.more.power_limits[1] * 1000)?;
            put(most, profile.more.power_limits[2] * 1000)
        })
    }

    /// The energy that a GPU has taken, in mJ.
    fn nvmlDeviceGetTotalEnergyConsumption(device: *mut c_void, value: *mut c_ulonglong) {
        about("nvmlDeviceGetTotalEnergyConsumption", device, |_, profile, _| put(value, (profile.power * 3.6e6) as c_ulonglong))
    }

    /// A clock now, in MHz: 0 graphics, 1 SM, 2 memory.
    fn nvmlDeviceGetClockInfo(device: *mut c_void, which: c_uint, clock: *mut c_uint) {
        about("nvmlDeviceGetClockInfo", device, |_, profile, _| {
            put(clock, *profile.more.clocks.get(which as usize).ok_or(NOT_SUPPORTED)?)
        })
    }

    /// A clock at most, in MHz: 0 graphics, 1 SM, 2 memory.
    fn nvmlDeviceGetMaxClockInfo(device: *mut c_void, which: c_uint, clock: *mut c_uint) {
        about("nvmlDeviceGetMaxClockInfo", device, |_, profile, _| {
            put(clock, *profile.more.clocks_max.get(which as usize).ok_or(NOT_SUPPORTED)?)
        })
    }

    /// The bus generation in use.
    fn nvmlDeviceGetCurrPcieLinkGeneration(device: *mut c_void, value: *mut c_uint) {
        about("nvmlDeviceGetCurrPcieLinkGeneration", device, |_, profile, _| put(value, profile.more.pcie[0]))
    }

    /// The newest bus generation.
    fn nvmlDeviceGetMaxPcieLinkGeneration(device: *mut c_void, value: *mut c_uint) {
        about("nvmlDeviceGetMaxPcieLinkGeneration", device, |_, profile, _| put(value, profile.more.pcie[1]))
    }

    /// The lanes in use.
    fn nvmlDeviceGetCurrPcieLinkWidth(device: *mut c_void, value: *mut c_uint) {
        about("nvmlDeviceGetCurrPcieLinkWidth", device, |_, profile, _| put(value, profile.more.pcie[2]))
    }

    /// The lanes at most.
    fn nvmlDeviceGetMaxPcieLinkWidth(device: *mut c_void, value: *mut c_uint) {
        about("nvmlDeviceGetMaxPcieLinkWidth", device, |_, profile, _| put(value, profile.more.pcie[3]))
    }

    /// Packets sent again.
    fn nvmlDeviceGetPcieReplayCounter(device: *mut c_void, value: *mut c_uint) {
        about("nvmlDeviceGetPcieReplayCounter", device, |_, _, _| put(value, 0))
    }

    /// Whether memory errors are corrected, now and after a restart.
    fn nvmlDeviceGetEccMode(device: *mut c_void, now: *mut c_uint, then: *mut c_uint) {
        about("nvmlDeviceGetEccMode", device, |_, profile, _| {
            let ecc = c_uint::from(profile.more.ecc.ok_or(NOT_SUPPORTED)?);
            put(now, ecc)?;
            put(then, ecc)
        })
    }

    /// Memory errors of a kind (0 corrected) and a count (0 since the driver was loaded).
    fn nvmlDeviceGetTotalEccErrors(device: *mut c_void, _kind: c_uint, _counter: c_uint, count: *mut c_ulonglong) {
        about("nvmlDeviceGetTotalEccErrors", device, |gpu, _, _| put(count, gpu.ecc_errors))
    }

    /// Whether memory waits for a restart to be taken out of use.
    fn nvmlDeviceGetRetiredPagesPendingStatus(device: *mut c_void, pending: *mut c_uint) {
        about("nvmlDeviceGetRetiredPagesPendingStatus", device, |_, profile, _| {
            profile.more.ecc.ok_or(NOT_SUPPORTED)?;
            if profile.compute_capability.0 >= 8 {
                return Err(NOT_SUPPORTED);
            }
            put(pending, 0)
        })
    }

    /// How busy the encoder is, in percent, and the sampling period in µs.
    fn nvmlDeviceGetEncoderUtilization(device: *mut c_void, percent: *mut c_uint, period: *mut c_uint) {
        about("nvmlDeviceGetEncoderUtilization", device, |_, _, _| {
            put(percent, 0)?;
            put(period, 167_000)
        })
    }

    /// How busy the decoder is, in percent, and the sampling period in µs.
    fn nvmlDeviceGetDecoderUtilization(device: *mut c_void, percent: *mut c_uint, period: *mut c_uint) {
        about("nvmlDeviceGetDecoderUtilization", device, |_, _, _| {
            put(percent, 0)?;
            put(period, 167_000)
        })
    }

    /// The speed of a fan, in percent.
    fn nvmlDeviceGetFanSpeed_v2(device: *mut c_void, _fan: c_uint, speed: *mut c_uint) {
        about("nvmlDeviceGetFanSpeed_v2", device, |_, profile, _| put(speed, profile.more.fan.ok_or(INVALID_ARGUMENT)?))
    }

    /// N of `P0` to `P15`.
    fn nvmlDeviceGetPerformanceState(device: *mut c_void, value: *mut c_uint) {
        about("nvmlDeviceGetPerformanceState", device, |_, profile, _| put(value, profile.more.performance_state))
    }

    /// Why clocks are below the highest.
    fn nvmlDeviceGetCurrentClocksThrottleReasons(device: *mut c_void, reasons: *mut c_ulonglong) {
        about("nvmlDeviceGetCurrentClocksThrottleReasons", device, |gpu, profile, _| {
            put(reasons, gpu.throttle.unwrap_or(profile.more.throttle))
        })
    }

    /// Who may use a GPU: 0 everyone.
    fn nvmlDeviceGetComputeMode(device: *mut c_void, value: *mut c_uint) {
        about("nvmlDeviceGetComputeMode", device, |_, _, _| put(value, 0))
    }

    /// Whether the driver stays loaded.
    fn nvmlDeviceGetPersistenceMode(device: *mut c_void, value: *mut c_uint) {
        about("nvmlDeviceGetPersistenceMode", device, |_, profile, _| put(value, profile.more.persistence.into()))
    }

    /// Whether a GPU shows a screen.
    fn nvmlDeviceGetDisplayActive(device: *mut c_void, value: *mut c_uint) {
        about("nvmlDeviceGetDisplayActive", device, |_, _, _| put(value, 0))
    }
}
