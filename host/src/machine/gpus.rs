//! The GPUs as programs and people are shown them.

use comfy_table::{Table, presets};
use devices::{DeviceId, Gpu, Kind, Snapshot, State, Usage};
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
        "allocatable_bytes": usage.map(|usage| usage.allocatable_bytes),
        "headroom_bytes": usage.map(|usage| usage.headroom_bytes),
        "active_leases": usage.map(|usage| usage.tasks.len()),
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

    /// The table of GPUs for people: memory in MiB, temperature in °C, power in W.
    pub fn table(&self) -> String {
        let snapshot = self.monitor.snapshot();
        if snapshot.gpus.is_empty() {
            let reason = snapshot.nvml_error.as_deref().unwrap_or("NVML shows none");
            return format!("No GPU: {reason}");
        }
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header([
            "GPU",
            "name",
            "cc",
            "total MiB",
            "used",
            "free",
            "°C",
            "W",
            "tasks",
            "state",
        ]);
        for gpu in &snapshot.gpus {
            table.add_row(self.row(gpu));
        }
        format!("{table}{}", heading(&snapshot))
    }

    fn row(&self, gpu: &Gpu) -> Vec<String> {
        let text = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
        let mib = |bytes: Option<u64>| text(bytes.map(|bytes| (bytes >> 20).to_string()));
        let usage = self.allocator.usage();
        let usage = usage
            .iter()
            .find(|usage| usage.device == DeviceId::Cuda(gpu.index));
        let tasks = usage.map(|usage| {
            let (training, inference) = (usage.count(Kind::Training), usage.count(Kind::Inference));
            format!("{training} + {inference}")
        });
        vec![
            gpu.index.to_string(),
            gpu.name.clone(),
            text(gpu.compute_capability.clone()),
            mib(gpu.memory_total_bytes),
            mib(gpu.memory_used_bytes),
            mib(gpu.memory_free_bytes),
            text(gpu.temperature_gpu_c.map(|celsius| celsius.to_string())),
            text(gpu.power_draw_watts.map(|watts| format!("{watts:.0}"))),
            text(tasks),
            match usage.map(|usage| &usage.state) {
                Some(State::Ready) if usage.is_some_and(|usage| usage.draining) => {
                    "drained".to_owned()
                }
                Some(State::Ready) if usage.is_some_and(|usage| usage.hot) => "hot".to_owned(),
                Some(State::Ready) => "ready".to_owned(),
                Some(State::Probing) => "is being probed".to_owned(),
                Some(State::Unable(reason)) => format!("not schedulable: {reason}"),
                None => "unknown".to_owned(),
            },
        ]
    }
}

fn heading(snapshot: &Snapshot) -> String {
    let version = |what: &str, version: &Option<String>| {
        version
            .as_ref()
            .map(|version| format!("\n{what} {version}"))
            .unwrap_or_default()
    };
    version("driver", &snapshot.driver_version) + &version("CUDA up to", &snapshot.cuda_version)
}
