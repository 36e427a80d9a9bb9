//! The GPUs as programs are shown them.

use devices::{DeviceId, Gpu, Kind, Usage};
use serde_json::{Value, json};

use super::Machine;

/// What a device is called in `health`, for short.
fn health(gpu: &Gpu, usage: Option<&Usage>) -> (&'static str, Option<String>) {
    let unable = usage.and_then(|usage| usage.state.reason());
    match (&gpu.error, usage) {
        (Some(error), _) if error.contains("fell off the bus") => ("lost", Some(error.clone())),
        (Some(error), _) => ("suspect", Some(error.clone())),
        (None, Some(usage)) if usage.draining => ("draining", usage.reason().map(str::to_owned)),
        (None, Some(usage)) if usage.hot => ("throttled", usage.reason().map(str::to_owned)),
        (None, _) => ("healthy", unable.map(str::to_owned)),
    }
}

/// The tasks on a device, by kind.
pub fn counts(usage: &Usage) -> Value {
    json!({ "training": usage.count(Kind::Training), "inference": usage.count(Kind::Inference) })
}

/// A GPU's fields: what NVML tells, what the ledger has, and whether tasks can run there.
pub fn fields(gpu: &Gpu, usage: Option<&Usage>) -> serde_json::Result<Value> {
    let mut fields = serde_json::to_value(gpu)?;
    let (health, health_reason) = health(gpu, usage);
    let added = json!({
        "device": DeviceId::Cuda(gpu.index).to_string(),
        // Workers name GPUs by UUID, so their driver's order is that of the host.
        "cuda_ordinal": gpu.index,
        "mig_parent_uuid": null,
        "lease_reserved_bytes": usage.map(|usage| usage.reserved_bytes),
        "lease_observed_bytes": usage.map(|usage| usage.observed_bytes),
        "foreign_used_bytes": usage.map(|usage| usage.foreign_bytes),
        "returning_bytes": usage.map(|usage| usage.returning_bytes),
        "leaked_bytes": usage.map(|usage| usage.leaked_bytes),
        "allocatable_bytes": usage.map(|usage| usage.allocatable_bytes),
        "headroom_bytes": usage.map(|usage| usage.headroom_bytes),
        "active_leases": usage.map(|usage| usage.tasks.len()),
        "current_tasks": usage.map(counts),
        "utilization_gpu_ema_percent": usage.and_then(|usage| usage.utilization_percent),
        "limits": usage.map(|usage| usage.limits),
        "pools": usage.map(|usage| usage.pools.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "health": health,
        "health_reason": health_reason,
        "schedulable": usage.is_some_and(|usage| usage.reason().is_none()),
        "reason": usage.and_then(Usage::reason),
    });
    if let (Value::Object(fields), Value::Object(added)) = (&mut fields, added) {
        fields.extend(added);
    }
    Ok(fields)
}

/// What a device does at the moment, of all that are known.
pub fn of<'a>(usage: &'a [Usage], gpu: &Gpu) -> Option<&'a Usage> {
    let id = DeviceId::Cuda(gpu.index);
    usage.iter().find(|usage| usage.device == id)
}

impl Machine {
    /// The GPUs for programs.
    pub fn describe(&self) -> serde_json::Result<Value> {
        let (snapshot, usage) = (self.monitor.snapshot(), self.allocator.usage());
        let gpus = snapshot.gpus.iter().map(|gpu| fields(gpu, of(&usage, gpu)));
        let gpus: Vec<Value> = gpus.collect::<Result<_, _>>()?;
        let mut described = serde_json::to_value(&*snapshot)?;
        described["gpus"] = gpus.into();
        Ok(described)
    }
}
