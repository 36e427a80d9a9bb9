//! What `hangar top` shows, by the word of a server.

use anyhow::Context;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli::view::{self, Device};
use crate::client::{Client, ClientError};

/// Tasks that are asked for of each state.
const TASKS: usize = 1000;

/// A server at one moment.
#[derive(Debug, Clone)]
pub(super) struct View {
    /// Its address.
    pub(super) server: String,
    pub(super) gpus: Vec<Device>,
    pub(super) processor: Processor,
    pub(super) queue: Queue,
    /// In the order of their beginning.
    pub(super) running: Vec<Task>,
    /// In the order in which they go first.
    pub(super) waiting: Vec<Task>,
    /// Why there is nothing newer.
    pub(super) problem: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Processor {
    /// Of all cores.
    pub(super) percent: Option<f64>,
    pub(super) memory_percent: Option<f64>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Queue {
    /// Tasks that wait.
    pub(super) waiting: u64,
    /// How many may.
    pub(super) size: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Task {
    #[serde(rename = "task_id")]
    pub(super) id: String,
    #[serde(rename = "task_type")]
    pub(super) kind: String,
    pub(super) plugin: String,
    pub(super) model: String,
    pub(super) device: Option<String>,
    pub(super) device_requested: Option<String>,
    /// On how many GPUs it is to run.
    #[serde(default)]
    pub(super) gpus: Option<u32>,
    /// What it was granted.
    #[serde(default)]
    pub(super) devices: Vec<Value>,
    pub(super) priority: u8,
    /// 0 to 100.
    pub(super) progress: f64,
    pub(super) current_epoch: Option<u64>,
    pub(super) total_epochs: Option<u64>,
    pub(super) message: String,
    pub(super) waiting_reason: Option<String>,
    /// Its place among those that wait, from 1; none of one that begins.
    position: Option<u64>,
    pub(super) created_at: String,
}

/// Asks a server for all that is shown: one JSON document.
pub(super) async fn look(client: &Client) -> anyhow::Result<Value> {
    let (mut resources, processor, running, waiting) = tokio::try_join!(
        client.get("/api/v2/resources"),
        client.get("/api/v2/resources/cpu"),
        tasks(client, "running"),
        tasks(client, "queued"),
    )?;
    let mut gpus = resources["gpu_info"].take();
    Ok(json!({
        "server": client.server().to_string(),
        "gpus": gpus["devices"].take(),
        "nvml_error": gpus["nvml_error"].take(),
        "processor": processor,
        "queue": resources["queue"].take(),
        "running": running,
        "waiting": waiting,
    }))
}

/// The tasks in a state, of both kinds.
async fn tasks(client: &Client, state: &str) -> Result<Value, ClientError> {
    let path = format!("/api/v2/tasks?status={state}&limit={TASKS}");
    let mut lists = client.get(&path).await?;
    let of = |list: Value| match list {
        Value::Array(tasks) => tasks,
        _ => Vec::new(),
    };
    let (training, inference) = (
        lists["training_tasks"].take(),
        lists["inference_tasks"].take(),
    );
    Ok(of(training).into_iter().chain(of(inference)).collect())
}

impl View {
    /// Reads such a document. Errors: one of a server whose version is another.
    pub(super) fn read(document: &Value) -> anyhow::Result<Self> {
        let tasks = |list: &str| -> anyhow::Result<Vec<Task>> { member(document, list) };
        let (mut running, mut waiting) = (tasks("running")?, tasks("waiting")?);
        running.sort_by(|a, b| a.created_at.cmp(&b.created_at));
        waiting.sort_by_key(|task| task.position);
        Ok(Self {
            server: member(document, "server")?,
            gpus: view::gpus(document)?,
            processor: member(document, "processor")?,
            queue: member(document, "queue")?,
            running,
            waiting,
            problem: None,
        })
    }
}

fn member<T: serde::de::DeserializeOwned>(document: &Value, name: &str) -> anyhow::Result<T> {
    serde_json::from_value(document[name].clone())
        .with_context(|| format!("the server tells of `{name}` in another form"))
}
