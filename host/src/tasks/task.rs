//! A task as it is recorded and shown: what was asked, how far it is, how it ended.

use std::path::PathBuf;

use devices::Policy;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What a task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// Trains a model.
    Training,
    /// Runs a trained model on data.
    Inference,
}

/// Where a task stands.
///
/// ```text
/// pending ─▶ queued ─▶ running ─▶ completed
///    │          │         ├─────▶ failed
///    └──────────┴─────────┴─────▶ cancelled
/// running (host ended) ─▶ interrupted
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Recorded, not yet in the queue.
    Pending,
    /// Waits for a worker or a device; planning counts as queued.
    Queued,
    /// Holds a lease.
    Running,
    /// Ended well.
    Completed,
    /// Ended with an error.
    Failed,
    /// Ended by the user.
    Cancelled,
    /// The host ended while the task ran.
    Interrupted,
}

impl TaskState {
    /// Whether the task has ended.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Pending | Self::Queued | Self::Running)
    }
}

/// A data set named by a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataSource {
    /// `train`, `validation` or `input`.
    pub name: String,
    /// A folder or a file, canonical and inside a granted root.
    pub path: PathBuf,
    /// A part of what is there, such as `train`; none for all of it.
    pub part: Option<String>,
}

/// A checked request for a task: paths resolved, device parsed, parameters checked and filled in.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The client's id, or none for a new UUID (version 4).
    pub id: Option<String>,
    /// What to do.
    pub kind: TaskKind,
    /// The plugin's name.
    pub plugin: String,
    /// SHA-256 of the plugin's file, in hexadecimal.
    pub plugin_hash: String,
    /// The registry's copy of the plugin's file, which never changes.
    pub plugin_file: PathBuf,
    /// One of the plugin's models.
    pub model: String,
    /// The plugin's parameters.
    pub parameters: Map<String, Value>,
    /// The device chosen by the user; none leaves the choice to the plugin.
    pub device: Option<String>,
    /// On how many GPUs the user wants it; none leaves the choice to the plugin.
    pub gpus: Option<u32>,
    /// Whether matrix products on a GPU may round their inputs to TF32.
    pub tf32: bool,
    /// Which of several free devices it gets; none for the pool's policy, else the host's.
    pub policy: Option<Policy>,
    /// 1 (first) to 10.
    pub priority: u8,
    /// How long it may wait, in seconds; 0 where it starts at once or not at all, none for ever.
    pub wait_seconds: Option<u64>,
    /// The user's note.
    pub description: Option<String>,
    /// Data sets granted.
    pub data: Vec<DataSource>,
    /// Weights to load.
    pub weights: Option<PathBuf>,
    /// The state of an earlier task to go on from, in whose folder its results stay.
    pub resume: Option<PathBuf>,
    /// The folder for checkpoints and artifacts; none for one of the task's own in the state folder.
    pub output: Option<PathBuf>,
}

/// A device that a task was granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskDevice {
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// The GPU's UUID.
    pub device_uuid: Option<String>,
    /// What NVML showed of the GPU's memory.
    pub device_memory: Option<DeviceMemory>,
}

/// Memory in use on a GPU by NVML, by all programs together, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceMemory {
    /// When the task was granted the GPU.
    pub before_bytes: u64,
    /// The most while the task ran.
    pub during_bytes: Option<u64>,
    /// After its worker had ended.
    pub after_bytes: Option<u64>,
}

impl DeviceMemory {
    /// What is known when the GPU is granted.
    pub fn before(before_bytes: u64) -> Self {
        Self {
            before_bytes,
            during_bytes: None,
            after_bytes: None,
        }
    }
}

/// A task as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// The identity.
    pub id: String,
    /// What it does.
    pub kind: TaskKind,
    /// Where it stands.
    pub state: TaskState,
    /// The plugin's name.
    pub plugin: String,
    /// SHA-256 of the plugin's file, in hexadecimal.
    pub plugin_hash: String,
    /// The registry's copy of the plugin's file, which never changes.
    pub plugin_file: PathBuf,
    /// The plugin's model.
    pub model: String,
    /// The plugin's parameters.
    pub parameters: Map<String, Value>,
    /// The device asked for.
    pub device_requested: Option<String>,
    /// On how many GPUs the user wants it; none left the choice to the plugin.
    #[serde(default)]
    pub gpus: Option<u32>,
    /// The device on which the backend ran; none before it did.
    pub device: Option<String>,
    /// Why the CPU was used where a GPU was asked for.
    pub fallback_reason: Option<String>,
    /// Why the task waits, while it does.
    pub waiting_reason: Option<String>,
    /// The UUID of the GPU that was granted, the first of several.
    #[serde(default)]
    pub device_uuid: Option<String>,
    /// What NVML showed of that GPU's memory.
    #[serde(default)]
    pub device_memory: Option<DeviceMemory>,
    /// All devices that were granted, in order.
    #[serde(default)]
    pub devices: Vec<TaskDevice>,
    /// Whether matrix products on a GPU may round their inputs to TF32.
    #[serde(default)]
    pub tf32: bool,
    /// Which of several free devices it gets; none for the pool's policy, else the host's.
    #[serde(default)]
    pub policy: Option<Policy>,
    /// Bytes of the lease on each device.
    pub lease_bytes: Option<u64>,
    /// The most that the worker has taken of its lease, in bytes: its arena, and a context on a GPU.
    #[serde(default)]
    pub lease_observed_bytes: Option<u64>,
    /// The most host memory that libraries and staging take beside a session's own, in bytes.
    #[serde(default)]
    pub scratch_bytes: Option<u64>,
    /// 1 (first) to 10.
    pub priority: u8,
    /// How long it may wait, in seconds; none for ever.
    #[serde(default)]
    pub wait_seconds: Option<u64>,
    /// The user's note.
    pub description: Option<String>,
    /// The last thing to know, for people.
    pub message: String,
    /// The dotted code of the error that ended it.
    pub error_code: Option<String>,
    /// 0 to 100.
    pub progress: f64,
    /// Epoch reached, from 1.
    pub current_epoch: Option<u64>,
    /// Epochs in all.
    pub total_epochs: Option<u64>,
    /// The newest metrics by name.
    pub latest_metrics: Map<String, Value>,
    /// Data sets granted.
    pub data: Vec<DataSource>,
    /// Weights to load.
    pub weights: Option<PathBuf>,
    /// The state of an earlier task that it goes on from.
    #[serde(default)]
    pub resume: Option<PathBuf>,
    /// The folder of checkpoints and artifacts.
    pub output: PathBuf,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// RFC 3339, UTC.
    pub updated_at: String,
    /// When it began to run.
    pub started_at: Option<String>,
    /// When it ended.
    pub ended_at: Option<String>,
}

impl TaskRecord {
    /// Notes how much memory was in use on each device, in bytes, by `note`.
    pub fn note_memory(&mut self, used: &[Option<u64>], note: fn(&mut DeviceMemory, Option<u64>)) {
        for (device, used) in self.devices.iter_mut().zip(used) {
            if let Some(memory) = &mut device.device_memory {
                note(memory, *used);
            }
        }
        self.device_memory = self.devices.first().and_then(|first| first.device_memory);
    }
}
