//! The GPUs as programs are shown them.

use std::time::Duration;

use devices::{DeviceId, Gpu, Health, Kind, Usage};
use serde_json::{Value, json};

use super::{Machine, Shown};

/// What was so long ago, as RFC 3339 has it.
fn ago(age: Duration) -> Option<String> {
    let time = jiff::Timestamp::now().checked_sub(age).ok()?;
    Some(format!("{time:.3}"))
}

/// A GPU's fields about its health.
fn health(shown: Option<Shown>) -> Value {
    let Some(shown) = shown else {
        return json!({
            "health": Health::Suspect,
            "health_reason": "it has just appeared",
            "health_since": null,
            "last_xid": null,
        });
    };
    let last_xid = shown
        .last_xid
        .map(|(xid, age)| json!({ "code": xid.code, "at": ago(age), "action": xid.action }));
    json!({
        "health": shown.health,
        "health_reason": shown.reason,
        "health_since": ago(shown.age),
        "last_xid": last_xid,
    })
}

/// The tasks on a device, by kind.
pub fn counts(usage: &Usage) -> Value {
    json!({ "training": usage.count(Kind::Training), "inference": usage.count(Kind::Inference) })
}

/// A GPU's fields: what NVML tells, what the ledger has, and whether tasks can run there.
pub fn fields(machine: &Machine, gpu: &Gpu, usage: Option<&Usage>) -> serde_json::Result<Value> {
    let mut fields = serde_json::to_value(gpu)?;
    let health = health(machine.health(gpu, usage));
    let added = json!({
        "device": DeviceId::Cuda(gpu.index).to_string(),
        // Workers name GPUs by UUID, so their driver's order is that of the host.
        "cuda_ordinal": gpu.unfit().is_none().then_some(gpu.index),
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
        "schedulable": usage.is_some_and(|usage| usage.reason().is_none()),
        "reason": usage.and_then(Usage::reason),
    });
    if let (Value::Object(fields), Value::Object(added), Value::Object(health)) =
        (&mut fields, added, health)
    {
        fields.extend(added);
        fields.extend(health);
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
        let gpus = snapshot
            .gpus
            .iter()
            .map(|gpu| fields(self, gpu, of(&usage, gpu)));
        let gpus: Vec<Value> = gpus.collect::<Result<_, _>>()?;
        let mut described = serde_json::to_value(&*snapshot)?;
        described["gpus"] = gpus.into();
        Ok(described)
    }
}
