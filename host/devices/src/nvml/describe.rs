//! One GPU as NVML describes it. Every figure may be missing, and says so.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{
    Clock, ComputeMode, EccCounter, MemoryError, PcieUtilCounter, TemperatureSensor,
    TemperatureThreshold,
};
use nvml_wrapper::error::{NvmlError, nvml_try};
use nvml_wrapper::structs::device::CudaComputeCapability;
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{nvmlFieldValue_t, nvmlMarginTemperature_t};

use super::failure;
use super::links::active_links;
use super::running::processes;
use crate::gpu::{Facts, Failure, Gpu, Readings, Recovery};

/// Fields of `nvml.h`.
const MEMORY_TEMPERATURE: u32 = 82;
const SHUTDOWN_TLIMIT: u32 = 193;
const SLOWDOWN_TLIMIT: u32 = 194;
const RECOVERY_ACTION: u32 = 230;

/// Why the clocks are below the highest, by the names of `nvml.h`; whether it is more than idleness or
/// a setting.
const REASONS: [(ThrottleReasons, &str, bool); 9] = [
    (ThrottleReasons::GPU_IDLE, "gpu_idle", false),
    (
        ThrottleReasons::APPLICATIONS_CLOCKS_SETTING,
        "applications_clocks_setting",
        false,
    ),
    (ThrottleReasons::SW_POWER_CAP, "sw_power_cap", true),
    (ThrottleReasons::HW_SLOWDOWN, "hw_slowdown", true),
    (ThrottleReasons::SYNC_BOOST, "sync_boost", false),
    (
        ThrottleReasons::SW_THERMAL_SLOWDOWN,
        "sw_thermal_slowdown",
        true,
    ),
    (
        ThrottleReasons::HW_THERMAL_SLOWDOWN,
        "hw_thermal_slowdown",
        true,
    ),
    (
        ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN,
        "hw_power_brake_slowdown",
        true,
    ),
    (
        ThrottleReasons::DISPLAY_CLOCK_SETTING,
        "display_clock_setting",
        false,
    ),
];

/// What a GPU tells of its memory, all at once.
pub(super) const MEMORY: [&str; 4] = [
    "memory_total_bytes",
    "memory_reserved_bytes",
    "memory_used_bytes",
    "memory_free_bytes",
];

/// What a GPU does not tell.
#[derive(Clone, Default)]
pub(super) struct Gaps {
    pub(super) unsupported: Vec<&'static str>,
    pub(super) errors: BTreeMap<&'static str, String>,
    /// Why nothing that it tells counts.
    failure: Option<(Failure, String)>,
}

/// What hardly changes of a GPU, read once in a while.
pub(crate) struct Known {
    name: String,
    compute_capability: Option<String>,
    /// What its power is: `average_1s` or `instant`.
    power: &'static str,
    facts: Facts,
    gaps: Gaps,
    read: Instant,
}

/// How long facts are kept before they are read again.
const FACTS_AGE: Duration = Duration::from_secs(60);

impl Gaps {
    /// The value of a field; where there is none, notes why.
    pub(super) fn tell<T>(
        &mut self,
        field: &'static str,
        answer: Result<T, NvmlError>,
    ) -> Option<T> {
        self.tell_all(&[field], answer)
    }

    /// The values of fields that NVML tells together; where there are none, notes why.
    pub(super) fn tell_all<T>(
        &mut self,
        fields: &[&'static str],
        answer: Result<T, NvmlError>,
    ) -> Option<T> {
        let error = match answer {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        if absent(&error) {
            self.unsupported.extend(fields);
            return None;
        }
        let failure = failure(&error);
        if matches!(failure, Failure::Lost | Failure::ResetRequired) {
            self.failure = Some((failure, error.to_string()));
        }
        let error = error.to_string();
        self.errors
            .extend(fields.iter().map(|field| (*field, error.clone())));
        None
    }
}

/// Whether an error says that the GPU or its driver has no such figure.
pub(super) fn absent(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::NotSupported
            | NvmlError::FunctionNotFound
            | NvmlError::FailedToLoadSymbol(_)
            | NvmlError::UnexpectedVariant(_)
    )
}

/// The speed of a GPU's first fan, in percent. NVML has none of that number on a GPU without fans.
fn fan_speed(device: &Device<'_>) -> Result<u32, NvmlError> {
    device.fan_speed(0).map_err(|error| match error {
        NvmlError::InvalidArg => NvmlError::NotSupported,
        error => error,
    })
}

/// W of mW.
fn watts(milliwatts: u32) -> f64 {
    f64::from(milliwatts) / 1e3
}

/// A field of 32 bits, signed or not (`nvmlDeviceGetFieldValues`; the wrapper refuses the type
/// `NVML_VALUE_TYPE_SIGNED_INT`, in which drivers tell margins).
fn field(nvml: &Nvml, device: &Device<'_>, id: u32) -> Result<i32, NvmlError> {
    let call = nvml.lib().nvmlDeviceGetFieldValues.as_ref();
    let call = call.map_err(|_| NvmlError::NotSupported)?;
    // SAFETY: the structure is of numbers and a union of numbers, of which zero is one.
    let mut told: nvmlFieldValue_t = unsafe { std::mem::zeroed() };
    told.fieldId = id;
    // SAFETY: the function is the library's, the handle is that of a device of this library, which
    // lives, and one structure is passed.
    nvml_try(unsafe { call(device.handle(), 1, &mut told) })?;
    nvml_try(told.nvmlReturn)?;
    // SAFETY: every member of the union is a number that lies at its beginning, and all bits were set.
    Ok(unsafe { told.value.uiVal }.cast_signed())
}

/// °C to the temperature at which clocks are slowed down, as GPUs since Ada tell it
/// (`nvmlDeviceGetMarginTemperature`, which the wrapper lacks).
fn current_margin(nvml: &Nvml, device: &Device<'_>) -> Result<i32, NvmlError> {
    let call = nvml.lib().nvmlDeviceGetMarginTemperature.as_ref();
    let call = call.map_err(|_| NvmlError::NotSupported)?;
    let mut told = nvmlMarginTemperature_t {
        version: (size_of::<nvmlMarginTemperature_t>() | 1 << 24) as u32,
        marginTemperature: 0,
    };
    // SAFETY: the function is the library's, the handle is that of a device of this library, which
    // lives, and `told` is a structure of the version that it names.
    nvml_try(unsafe { call(device.handle(), &mut told) })?;
    Ok(told.marginTemperature)
}

/// Cores of a multiprocessor (CUDA Programming Guide, "Compute Capabilities").
fn cores_per_multiprocessor(major: i32, minor: i32) -> Option<u32> {
    match (major, minor) {
        (7, _) | (8, 0) => Some(64),
        (8, _) | (9, _) | (10, _) | (12, _) => Some(128),
        _ => None,
    }
}

fn facts(nvml: &Nvml, device: &Device<'_>, gaps: &mut Gaps) -> Facts {
    let cores = gaps.tell("cuda_cores", device.num_cores());
    let capability = device.cuda_compute_capability().ok();
    let each = capability.and_then(|c| cores_per_multiprocessor(c.major, c.minor));
    let constraints = gaps.tell(
        "power_limit_min_watts",
        device.power_management_limit_constraints(),
    );
    let threshold = |threshold| device.temperature_threshold(threshold);
    let clock = |clock| device.max_clock_info(clock);
    let default = device.power_management_limit_default();
    Facts {
        nvml_index: gaps.tell("nvml_index", device.index()),
        minor_number: gaps.tell("minor_number", device.minor_number()),
        serial: gaps.tell("serial", device.serial()),
        brand: gaps
            .tell("brand", device.brand())
            .map(|brand| format!("{brand:?}")),
        architecture: gaps
            .tell("architecture", device.architecture())
            .map(|architecture| architecture.to_string()),
        sm_count: cores.zip(each).map(|(cores, each)| cores / each),
        cuda_cores: cores,
        vbios_version: gaps.tell("vbios_version", device.vbios_version()),
        mig_enabled: gaps.tell("mig_enabled", split(device)),
        mig_parent_uuid: None,
        mig_gpu_instance: None,
        mig_compute_instance: None,
        nvlink_active_links: gaps.tell("nvlink_active_links", active_links(device)),
        peers: None,
        numa_node: gaps.tell("numa_node", device.numa_node_id()),
        bar1_total_bytes: gaps
            .tell("bar1_total_bytes", device.bar1_memory_info())
            .map(|bar1| bar1.total),
        threshold_slowdown_c: gaps.tell(
            "threshold_slowdown_c",
            threshold(TemperatureThreshold::Slowdown),
        ),
        threshold_shutdown_c: gaps.tell(
            "threshold_shutdown_c",
            threshold(TemperatureThreshold::Shutdown),
        ),
        threshold_max_operating_c: gaps.tell(
            "threshold_max_operating_c",
            threshold(TemperatureThreshold::GpuMax),
        ),
        tlimit_slowdown_c: gaps.tell("tlimit_slowdown_c", field(nvml, device, SLOWDOWN_TLIMIT)),
        tlimit_shutdown_c: gaps.tell("tlimit_shutdown_c", field(nvml, device, SHUTDOWN_TLIMIT)),
        power_limit_default_watts: gaps.tell("power_limit_default_watts", default).map(watts),
        power_limit_min_watts: constraints.as_ref().map(|limits| watts(limits.min_limit)),
        power_limit_max_watts: constraints.as_ref().map(|limits| watts(limits.max_limit)),
        clock_graphics_max_mhz: gaps.tell("clock_graphics_max_mhz", clock(Clock::Graphics)),
        clock_sm_max_mhz: gaps.tell("clock_sm_max_mhz", clock(Clock::SM)),
        clock_memory_max_mhz: gaps.tell("clock_memory_max_mhz", clock(Clock::Memory)),
        pcie_gen_max: gaps.tell("pcie_gen_max", device.max_pcie_link_gen()),
        pcie_width_max: gaps.tell("pcie_width_max", device.max_pcie_link_width()),
        ecc_enabled: gaps
            .tell("ecc_enabled", device.is_ecc_enabled())
            .map(|mode| mode.currently_enabled),
    }
}

/// °C to the slowdown temperature: of GPUs that tell margins the difference of two, of others that of
/// two temperatures.
fn thermal_margin(facts: &Facts, margin: Option<i32>, temperature: Option<u32>) -> Option<i32> {
    match (margin, facts.tlimit_slowdown_c) {
        (Some(margin), Some(slowdown)) => Some(margin - slowdown),
        _ => {
            let (slowdown, now) = facts.threshold_slowdown_c.zip(temperature)?;
            Some(i32::try_from(slowdown).ok()? - i32::try_from(now).ok()?)
        }
    }
}

/// What changes, but for what is told once of several fields.
fn readings(
    nvml: &Nvml,
    device: &Device<'_>,
    facts: &Facts,
    temperature: Option<u32>,
    gaps: &mut Gaps,
) -> Readings {
    let margin = gaps.tell("tlimit_current_c", current_margin(nvml, device));
    let reasons = gaps.tell("throttle_reasons", device.current_throttle_reasons());
    let active = || {
        reasons
            .iter()
            .flat_map(|set| REASONS.iter().filter(|(bit, ..)| set.contains(*bit)))
    };
    let memory = field(nvml, device, MEMORY_TEMPERATURE);
    let memory = memory.map(i32::cast_unsigned);
    // What a sensor cannot be.
    let plausible = |celsius: &u32| (1..200).contains(celsius);
    let ecc = facts.ecc_enabled == Some(true);
    let mut errors = |name, kind, counter| {
        ecc.then(|| gaps.tell(name, device.total_ecc_errors(kind, counter)))
            .flatten()
    };
    let [
        corrected_volatile,
        uncorrected_volatile,
        corrected_aggregate,
        uncorrected_aggregate,
    ] = [
        errors(
            "ecc_corrected_volatile",
            MemoryError::Corrected,
            EccCounter::Volatile,
        ),
        errors(
            "ecc_uncorrected_volatile",
            MemoryError::Uncorrected,
            EccCounter::Volatile,
        ),
        errors(
            "ecc_corrected_aggregate",
            MemoryError::Corrected,
            EccCounter::Aggregate,
        ),
        errors(
            "ecc_uncorrected_aggregate",
            MemoryError::Uncorrected,
            EccCounter::Aggregate,
        ),
    ];
    let clock = |clock| device.clock_info(clock);
    let mut throughput = |name, counter| gaps.tell(name, device.pcie_throughput(counter));
    let [sent, received] = [
        throughput("pcie_tx_kib_per_s", PcieUtilCounter::Send),
        throughput("pcie_rx_kib_per_s", PcieUtilCounter::Receive),
    ];
    let energy = gaps.tell("energy_total_joules", device.total_energy_consumption());
    Readings {
        bar1_used_bytes: gaps
            .tell("bar1_used_bytes", device.bar1_memory_info())
            .map(|bar1| bar1.used),
        encoder_percent: gaps
            .tell("encoder_percent", device.encoder_utilization())
            .map(|encoder| encoder.utilization),
        decoder_percent: gaps
            .tell("decoder_percent", device.decoder_utilization())
            .map(|decoder| decoder.utilization),
        temperature_memory_c: gaps.tell("temperature_memory_c", memory).filter(plausible),
        thermal_margin_c: thermal_margin(facts, margin, temperature),
        tlimit_current_c: margin,
        fan_speed_percent: gaps.tell("fan_speed_percent", fan_speed(device)),
        power_limit_enforced_watts: gaps
            .tell("power_limit_enforced_watts", device.enforced_power_limit())
            .map(watts),
        energy_total_joules: energy.map(|millijoules| millijoules as f64 / 1e3),
        clock_graphics_mhz: gaps.tell("clock_graphics_mhz", clock(Clock::Graphics)),
        clock_sm_mhz: gaps.tell("clock_sm_mhz", clock(Clock::SM)),
        clock_memory_mhz: gaps.tell("clock_memory_mhz", clock(Clock::Memory)),
        performance_state: gaps
            .tell("performance_state", device.performance_state())
            .map(|state| format!("P{}", state.as_c())),
        throttle_reasons: reasons
            .as_ref()
            .map(|_| active().map(|(_, name, _)| *name).collect()),
        throttle_active: reasons
            .as_ref()
            .map(|_| active().any(|(_, _, counts)| *counts)),
        pcie_gen_current: gaps.tell("pcie_gen_current", device.current_pcie_link_gen()),
        pcie_width_current: gaps.tell("pcie_width_current", device.current_pcie_link_width()),
        pcie_tx_kib_per_s: sent,
        pcie_rx_kib_per_s: received,
        pcie_replay_count: gaps.tell("pcie_replay_count", device.pcie_replay_counter()),
        ecc_corrected_volatile: corrected_volatile,
        ecc_uncorrected_volatile: uncorrected_volatile,
        ecc_corrected_aggregate: corrected_aggregate,
        ecc_uncorrected_aggregate: uncorrected_aggregate,
        retired_pages_pending: gaps
            .tell("retired_pages_pending", device.are_pages_pending_retired()),
        recovery_action: gaps
            .tell("recovery_action", field(nvml, device, RECOVERY_ACTION))
            .and_then(Recovery::new),
        compute_mode: gaps
            .tell("compute_mode", device.compute_mode())
            .map(|mode| match mode {
                ComputeMode::Default => "default",
                ComputeMode::Prohibited => "prohibited",
                ComputeMode::ExclusiveProcess | ComputeMode::ExclusiveThread => "exclusive_process",
            }),
        persistence_mode: gaps.tell("persistence_mode", device.is_in_persistent_mode()),
        display_active: gaps.tell("display_active", device.is_display_active()),
        ..Readings::default()
    }
}

/// What NVML's power is: an average of a second since Ampere, but for its first chip (`nvml.h`).
fn power_draw_kind(capability: Option<&CudaComputeCapability>) -> &'static str {
    match capability {
        Some(c) if (c.major, c.minor) > (8, 0) => "average_1s",
        _ => "instant",
    }
}

/// Whether a GPU is split into instances (`nvmlDeviceGetMigMode`).
fn split(device: &Device<'_>) -> Result<bool, NvmlError> {
    device.mig_mode().map(|mode| mode.current == 1)
}

impl Known {
    fn read(nvml: &Nvml, device: &Device<'_>) -> Self {
        let (read, mut gaps) = (Instant::now(), Gaps::default());
        let capability = device.cuda_compute_capability().ok();
        Self {
            name: name(device),
            power: power_draw_kind(capability.as_ref()),
            compute_capability: capability.map(|c| format!("{}.{}", c.major, c.minor)),
            facts: facts(nvml, device, &mut gaps),
            gaps,
            read,
        }
    }
}

fn name(device: &Device<'_>) -> String {
    device.name().unwrap_or_else(|_| "unknown GPU".to_owned())
}

/// A GPU, without its place among the visible ones. `known` is kept for the next time.
pub(super) fn describe(
    nvml: &Nvml,
    device: &Device<'_>,
    pci_bus_id: Option<String>,
    known: &mut Option<Known>,
) -> Gpu {
    let memory = device.memory_info();
    let uuid = device.uuid().ok();
    let silent = |failure, reason| {
        let identity = Gpu {
            uuid: uuid.clone(),
            pci_bus_id: pci_bus_id.clone(),
            name: name(device),
            ..Gpu::default()
        };
        identity.silenced(failure, reason)
    };
    // A GPU that fails still has a handle, but no answer to anything.
    if let Err(error) = &memory
        && !absent(error)
    {
        *known = None;
        return silent(failure(error), error.to_string());
    }
    // Whether it is split is looked at each time, as its instances are devices.
    let recent = known.take().filter(|known| {
        known.read.elapsed() < FACTS_AGE && known.facts.mig_enabled == split(device).ok()
    });
    let lasting = known.insert(recent.unwrap_or_else(|| Known::read(nvml, device)));
    let (facts, mut gaps) = (lasting.facts.clone(), lasting.gaps.clone());
    let memory = gaps.tell_all(&MEMORY, memory);
    let load = ["utilization_gpu_percent", "memory_busy_percent"];
    let utilization = gaps.tell_all(&load, device.utilization_rates());
    let temperature = device.temperature(TemperatureSensor::Gpu);
    let temperature = gaps.tell("temperature_gpu_c", temperature);
    let power = gaps.tell("power_draw_watts", device.power_usage());
    let readings = Readings {
        memory_busy_percent: utilization.as_ref().map(|rates| rates.memory),
        power_draw_kind: power.map(|_| lasting.power),
        ..readings(nvml, device, &facts, temperature, &mut gaps)
    };
    let processes = gaps.tell("processes", processes(device));
    if let Some((failure, reason)) = gaps.failure {
        *known = None;
        return silent(failure, reason);
    }
    Gpu {
        uuid,
        name: lasting.name.clone(),
        pci_bus_id,
        compute_capability: lasting.compute_capability.clone(),
        memory_total_bytes: memory.as_ref().map(|memory| memory.total),
        memory_reserved_bytes: memory.as_ref().map(|memory| memory.reserved),
        memory_used_bytes: memory.as_ref().map(|memory| memory.used),
        memory_free_bytes: memory.as_ref().map(|memory| memory.free),
        utilization_gpu_percent: utilization.map(|rates| rates.gpu),
        temperature_gpu_c: temperature,
        power_draw_watts: power.map(watts),
        facts,
        readings,
        unsupported: gaps.unsupported,
        errors: gaps.errors,
        processes,
        ..Gpu::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thermal_margin_is_that_of_either_presentation() {
        let absolute = Facts {
            threshold_slowdown_c: Some(93),
            ..Facts::default()
        };
        assert_eq!(thermal_margin(&absolute, None, Some(33)), Some(60));
        assert_eq!(thermal_margin(&absolute, None, Some(99)), Some(-6));
        assert_eq!(thermal_margin(&absolute, None, None), None);
        let margins = Facts {
            tlimit_slowdown_c: Some(-2),
            ..Facts::default()
        };
        assert_eq!(thermal_margin(&margins, Some(58), Some(29)), Some(60));
        assert_eq!(thermal_margin(&Facts::default(), Some(58), Some(29)), None);
    }
}
