//! The instances of a GPU that is split (MIG).

use nvml_wrapper::error::{NvmlError, nvml_try};
use nvml_wrapper::{Device, Nvml};

use super::describe::{Gaps, MEMORY};
use super::running::processes;
use crate::gpu::{Facts, Gpu, Readings};

/// What is told of GPUs and not of instances.
const WHOLE: [&str; 22] = [
    "utilization_gpu_percent",
    "memory_busy_percent",
    "encoder_percent",
    "decoder_percent",
    "power_draw_watts",
    "power_limit_default_watts",
    "power_limit_min_watts",
    "power_limit_max_watts",
    "power_limit_enforced_watts",
    "energy_total_joules",
    "fan_speed_percent",
    "clock_graphics_mhz",
    "clock_sm_mhz",
    "clock_memory_mhz",
    "clock_graphics_max_mhz",
    "clock_sm_max_mhz",
    "clock_memory_max_mhz",
    "performance_state",
    "pcie_tx_kib_per_s",
    "pcie_rx_kib_per_s",
    "nvlink_active_links",
    "peers",
];

/// The instances of a GPU in NVML's order. What there is only one of, such as the temperature, is the
/// GPU's.
pub(super) fn instances(nvml: &Nvml, device: &Device<'_>, gpu: &Gpu) -> Vec<Gpu> {
    if gpu.facts.mig_enabled != Some(true) {
        return Vec::new();
    }
    let most = device.mig_device_count().unwrap_or(0);
    let instances = (0..most).filter_map(|index| device.mig_device_by_index(index).ok());
    instances
        .filter_map(|instance| describe(nvml, &instance, gpu))
        .collect()
}

/// An instance; none where it is taken apart at this moment.
fn describe(nvml: &Nvml, instance: &Device<'_>, gpu: &Gpu) -> Option<Gpu> {
    let mut gaps = Gaps::default();
    let uuid = instance.uuid().ok()?;
    let memory = gaps.tell_all(&MEMORY, instance.memory_info());
    let attributes = gaps.tell("sm_count", instance.attributes());
    let sm_count = attributes.map(|attributes| attributes.multiprocessor_count);
    let whole = &gpu.facts;
    let cores = whole.cuda_cores.zip(whole.sm_count).zip(sm_count);
    let facts = Facts {
        sm_count,
        cuda_cores: cores.map(|((cores, all), own)| cores / all.max(1) * own),
        brand: whole.brand.clone(),
        architecture: whole.architecture.clone(),
        vbios_version: whole.vbios_version.clone(),
        serial: whole.serial.clone(),
        minor_number: whole.minor_number,
        numa_node: whole.numa_node,
        mig_parent_uuid: gpu.uuid.clone(),
        mig_gpu_instance: gaps.tell("mig_gpu_instance", number(nvml, instance, false)),
        mig_compute_instance: gaps.tell("mig_compute_instance", number(nvml, instance, true)),
        threshold_slowdown_c: whole.threshold_slowdown_c,
        threshold_shutdown_c: whole.threshold_shutdown_c,
        threshold_max_operating_c: whole.threshold_max_operating_c,
        tlimit_slowdown_c: whole.tlimit_slowdown_c,
        tlimit_shutdown_c: whole.tlimit_shutdown_c,
        pcie_gen_max: whole.pcie_gen_max,
        pcie_width_max: whole.pcie_width_max,
        ecc_enabled: whole.ecc_enabled,
        ..Facts::default()
    };
    let now = &gpu.readings;
    let readings = Readings {
        temperature_memory_c: now.temperature_memory_c,
        thermal_margin_c: now.thermal_margin_c,
        tlimit_current_c: now.tlimit_current_c,
        throttle_reasons: now.throttle_reasons.clone(),
        throttle_active: now.throttle_active,
        pcie_gen_current: now.pcie_gen_current,
        pcie_width_current: now.pcie_width_current,
        recovery_action: now.recovery_action,
        compute_mode: now.compute_mode,
        persistence_mode: now.persistence_mode,
        ..Readings::default()
    };
    let processes = gaps.tell("processes", processes(instance));
    gaps.unsupported.extend(WHOLE);
    Some(Gpu {
        uuid: Some(uuid),
        name: instance
            .name()
            .unwrap_or_else(|_| format!("{} MIG", gpu.name)),
        pci_bus_id: gpu.pci_bus_id.clone(),
        compute_capability: gpu.compute_capability.clone(),
        memory_total_bytes: memory.as_ref().map(|memory| memory.total),
        memory_reserved_bytes: memory.as_ref().map(|memory| memory.reserved),
        memory_used_bytes: memory.as_ref().map(|memory| memory.used),
        memory_free_bytes: memory.as_ref().map(|memory| memory.free),
        temperature_gpu_c: gpu.temperature_gpu_c,
        facts,
        readings,
        unsupported: gaps.unsupported,
        errors: gaps.errors,
        processes,
        ..Gpu::default()
    })
}

/// The number of an instance among those of its GPU, or of its compute instance in it
/// (`nvmlDeviceGetGpuInstanceId`, `nvmlDeviceGetComputeInstanceId`, which the wrapper lacks).
fn number(nvml: &Nvml, instance: &Device<'_>, compute: bool) -> Result<u32, NvmlError> {
    let library = nvml.lib();
    let call = if compute {
        library.nvmlDeviceGetComputeInstanceId.as_ref()
    } else {
        library.nvmlDeviceGetGpuInstanceId.as_ref()
    };
    let call = call.map_err(|_| NvmlError::NotSupported)?;
    let mut number = 0;
    // SAFETY: the function is the library's, the handle is that of an instance of this library, which
    // lives, and a place for a number is passed.
    nvml_try(unsafe { call(instance.handle(), &mut number) })?;
    Ok(number)
}

/// The name that drivers before release 470 gave instances, which CUDA still reads.
pub(super) fn older_name(gpu: &Gpu) -> Option<String> {
    let facts = &gpu.facts;
    let (instance, compute) = facts.mig_gpu_instance.zip(facts.mig_compute_instance)?;
    let parent = facts.mig_parent_uuid.as_ref()?;
    Some(format!("MIG-{parent}/{instance}/{compute}"))
}
