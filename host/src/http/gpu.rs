//! Routes about one GPU, and what `/resources/gpu` tells only when asked.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use devices::{DeviceId, Gpu, HISTORY, Point, Snapshot, Usage};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Shared;
use super::devices::device;
use super::problem::Problem;
use crate::machine::gpus;

/// What `/resources/gpu` is asked for.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Wanted {
    /// Whether to tell the processes on each GPU.
    pub(super) processes: bool,
}

/// What a history is asked for.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Span {
    /// How far back; all of it where none is given.
    seconds: Option<u64>,
}

/// The processes on a GPU, `owner` the task whose worker one is; null where NVML does not tell them.
/// `workers` are the tasks by process id.
///
/// In a container NVML's process ids may be another process's: a worker counts only on a GPU that its
/// task has a lease on. What is on a GPU that is split has its lease on an instance.
fn processes(gpu: &Gpu, usage: Option<&Usage>, workers: &HashMap<u32, String>) -> Value {
    let leased = |task: &&String| {
        let tasks = usage.map_or(&[][..], |usage| &usage.tasks);
        gpu.unfit().is_some() || tasks.iter().any(|(id, _)| id == *task)
    };
    let described = gpu.processes.as_ref().map(|processes| {
        let processes = processes.iter().map(|process| {
            let owner = workers.get(&process.pid).filter(leased);
            let mut described = json!(process);
            described["owner"] = json!(owner);
            described
        });
        processes.collect()
    });
    described.unwrap_or(Value::Null)
}

/// Adds the processes to the answer about the GPUs of a snapshot.
pub(super) fn add_processes(host: &super::Host, snapshot: &Snapshot, info: &mut Value) {
    let usage = host.machine.allocator.usage();
    let workers = host.tasks.workers();
    for described in info["devices"].as_array_mut().into_iter().flatten() {
        let same = |gpu: &&Gpu| described["index"] == gpu.index;
        let gpu = snapshot.gpus.iter().find(same);
        let processes = gpu.map(|gpu| processes(gpu, gpus::of(&usage, gpu), &workers));
        described["processes"] = processes.unwrap_or(Value::Null);
    }
}

fn point(point: &Point, now: (Instant, jiff::Timestamp)) -> Value {
    let taken = now
        .1
        .checked_sub(now.0.saturating_duration_since(point.taken));
    json!({
        "sampled_at": taken.ok().map(|time| format!("{time:.3}")),
        "utilization_gpu_percent": point.utilization_gpu_percent,
        "memory_used_bytes": point.memory_used_bytes,
        "temperature_gpu_c": point.temperature_gpu_c,
        "power_draw_watts": point.power_draw_watts,
    })
}

pub(super) async fn history(
    State(host): Shared,
    Path(name): Path<String>,
    span: Result<Query<Span>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(span) = span.map_err(|error| Problem::invalid("request.query", error.body_text()))?;
    let seconds = span.seconds.map_or(HISTORY, Duration::from_secs);
    let id = device(&name)?;
    let DeviceId::Cuda(index) = id else {
        let detail = format!("`{name}`: a history is kept of GPUs, `cuda:N`");
        return Err(Problem::invalid("device.invalid", detail));
    };
    let exists = host
        .machine
        .allocator
        .exists(&devices::Selector::Device(id));
    exists.map_err(|refusal| Problem::invalid(refusal.code(), &refusal))?;
    let now = (Instant::now(), jiff::Timestamp::now());
    let points = host.machine.history(index, seconds, now.0);
    Ok(Json(json!({
        "device": id.to_string(),
        "uuid": host.machine.uuid(id),
        "sample_interval_ms": host.machine.period.as_millis() as u64,
        "samples": points.iter().map(|one| point(one, now)).collect::<Vec<_>>(),
    })))
}
