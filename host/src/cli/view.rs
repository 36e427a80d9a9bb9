//! The GPUs as commands show them, of the machine or by the word of a server: one form for both.

use devices::{DeviceId, Kind, Limits, Usage};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::client::{Client, ClientError};
use crate::machine::Machine;

/// What is shown of a device. What is not known is none.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Device {
    /// `cuda:N` or `cpu`.
    pub(super) device: String,
    pub(super) name: String,
    pub(super) compute_capability: Option<String>,
    pub(super) memory_total_bytes: Option<u64>,
    pub(super) memory_used_bytes: Option<u64>,
    pub(super) utilization_gpu_percent: Option<u32>,
    pub(super) temperature_gpu_c: Option<u32>,
    pub(super) power_draw_watts: Option<f64>,
    pub(super) power_limit_enforced_watts: Option<f64>,
    pub(super) current_tasks: Option<Limits>,
    pub(super) limits: Option<Limits>,
    pub(super) pools: Option<Vec<String>>,
    pub(super) health: String,
    pub(super) schedulable: bool,
    /// Why it takes no task.
    pub(super) reason: Option<String>,
}

impl Device {
    /// The processor.
    pub(super) fn processor(usage: &Usage, memory_bytes: u64) -> Self {
        Self {
            device: DeviceId::Cpu.to_string(),
            name: "processor".to_owned(),
            compute_capability: None,
            memory_total_bytes: Some(memory_bytes),
            memory_used_bytes: None,
            utilization_gpu_percent: None,
            temperature_gpu_c: None,
            power_draw_watts: None,
            power_limit_enforced_watts: None,
            current_tasks: Some(Limits {
                training: usage.count(Kind::Training),
                inference: usage.count(Kind::Inference),
            }),
            limits: Some(usage.limits),
            pools: None,
            health: if usage.draining {
                "draining"
            } else {
                "healthy"
            }
            .to_owned(),
            schedulable: usage.reason().is_none(),
            reason: usage.reason().map(str::to_owned),
        }
    }

    /// What it does, in words: `ready`, or why it takes no task.
    pub(super) fn state(&self) -> String {
        let health = Some(&self.health).filter(|health| *health != "healthy");
        match (self.schedulable, &self.reason, health) {
            (true, _, None) => "ready".to_owned(),
            (true, _, Some(health)) => format!("ready, {health}"),
            (false, Some(reason), None) => reason.clone(),
            (false, Some(reason), Some(health)) => format!("{health}: {reason}"),
            (false, None, _) => self.health.clone(),
        }
    }
}

/// The GPUs of the machine: a JSON document with `gpus`, as a server describes them.
pub(super) fn of_machine(machine: &Machine) -> anyhow::Result<Value> {
    let mut document = machine.describe()?;
    document["server"] = Value::Null;
    Ok(document)
}

/// The same by the word of a server.
pub(super) async fn of_server(client: &Client) -> Result<Value, ClientError> {
    let mut document = client.get("/api/v2/resources/gpu").await?;
    if let Value::Object(members) = &mut document {
        let gpus = members.remove("devices");
        members.insert("gpus".to_owned(), json!(gpus));
        members.insert("server".to_owned(), client.server().to_string().into());
    }
    Ok(document)
}

/// The GPUs of a document. Errors: those of a server whose version is another.
pub(super) fn gpus(document: &Value) -> anyhow::Result<Vec<Device>> {
    let gpus = document.get("gpus").cloned().unwrap_or_default();
    serde_json::from_value(gpus)
        .map_err(|error| anyhow::anyhow!("the server describes its GPUs in another form: {error}"))
}
