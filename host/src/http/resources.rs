//! Routes about the machine and the host.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use devices::{Gpu, Kind, PartialLimits, Selector, Usage};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Shared;
use super::problem::Problem;
use crate::machine::Machine;
use crate::plugins::PluginState;
use crate::processor;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// GB as the old service counts them: 1024³ bytes, two decimals.
fn gigabytes(bytes: Option<u64>) -> Option<f64> {
    bytes.map(|bytes| (bytes as f64 / (1u64 << 30) as f64 * 100.0).round() / 100.0)
}

fn by_device(usage: &[Usage], value: impl Fn(&Usage) -> Value) -> Map<String, Value> {
    usage
        .iter()
        .map(|usage| (usage.device.to_string(), value(usage)))
        .collect()
}

fn counts(usage: &Usage) -> Value {
    json!({ "training": usage.count(Kind::Training), "inference": usage.count(Kind::Inference) })
}

fn active(usage: &Usage) -> Value {
    let tasks = usage.tasks.iter().map(|(id, kind)| {
        let kind = match kind {
            Kind::Training => "training",
            Kind::Inference => "inference",
        };
        json!({ "id": id, "type": kind })
    });
    tasks.collect()
}

fn gpu_info(machine: &Machine) -> Value {
    let (snapshot, usage) = (machine.monitor.snapshot(), machine.allocator.usage());
    let device = |gpu: &Gpu| {
        let name = format!("cuda:{}", gpu.index);
        let usage = usage.iter().find(|usage| usage.device.to_string() == name);
        let taken = gpu.memory_used_bytes.zip(gpu.memory_total_bytes);
        json!({
            "id": gpu.index,
            "device_name": name,
            "name": gpu.name,
            "compute_capability": gpu.compute_capability,
            "total_memory_gb": gigabytes(gpu.memory_total_bytes),
            "allocated_memory_gb": gigabytes(gpu.memory_used_bytes),
            "cached_memory_gb": usage.map(|usage| gigabytes(Some(usage.reserved_bytes))),
            "free_memory_gb": gigabytes(gpu.memory_free_bytes),
            "utilization": taken.map(|(used, total)| (used as f64 / total as f64 * 1e4).round() / 1e2),
            "current_tasks": usage.map(counts),
            "schedulable": usage.is_some_and(|usage| usage.state == devices::State::Ready),
            "reason": usage.and_then(|usage| usage.state.reason()),
            "nvml": gpu,
        })
    };
    json!({
        "available": !snapshot.gpus.is_empty(),
        "count": snapshot.gpus.len(),
        "cuda_version": snapshot.cuda_version,
        "driver_version": snapshot.driver_version,
        "pytorch_version": null,
        "devices": snapshot.gpus.iter().map(device).collect::<Vec<_>>(),
        "error": snapshot.nvml_error,
        "age_seconds": snapshot.taken.map(|taken| taken.elapsed().as_secs_f64()),
    })
}

pub(super) async fn gpu(State(host): Shared) -> Json<Value> {
    Json(gpu_info(&host.machine))
}

pub(super) async fn all(State(host): Shared) -> Json<Value> {
    let usage = host.machine.allocator.usage();
    Json(json!({
        "device_usage": by_device(&usage, counts),
        "active_tasks": by_device(&usage, active),
        "limits": by_device(&usage, |usage| json!(usage.limits)),
        "gpu_info": gpu_info(&host.machine),
    }))
}

pub(super) async fn cpu() -> Json<Value> {
    Json(processor::sample().await)
}

pub(super) async fn health(State(host): Shared) -> Json<Value> {
    let usage = host.machine.allocator.usage();
    let count = |kind| usage.iter().map(|usage| usage.count(kind)).sum::<u32>();
    Json(json!({
        "status": "healthy",
        "timestamp": jiff::Timestamp::now().to_string(),
        "version": VERSION,
        "training_tasks": count(Kind::Training),
        "inference_tasks": count(Kind::Inference),
        "active_log_streams": host.streams.load(Ordering::Relaxed),
        "resource_status": {
            "device_usage": by_device(&usage, counts),
            "active_tasks": by_device(&usage, active),
            "limits": by_device(&usage, |usage| json!(usage.limits)),
        },
    }))
}

pub(super) async fn info(State(host): Shared) -> Json<Value> {
    let usage = host.machine.allocator.usage();
    let loaded = host
        .registry
        .list()
        .into_iter()
        .filter_map(|entry| match entry.state {
            PluginState::Loaded(plugin) => Some(plugin),
            PluginState::Failed { .. } => None,
        });
    let models: Vec<String> = loaded
        .flat_map(|plugin| {
            plugin
                .description
                .models
                .iter()
                .map(|model| model.name.clone())
                .collect::<Vec<_>>()
        })
        .collect();
    Json(json!({
        "app_name": "Hangar",
        "version": VERSION,
        "environment": "production",
        "supported_models": models,
        "resource_limits": by_device(&usage, |usage| json!(usage.limits)),
        "gpu_available": usage.iter().any(|usage| usage.device != devices::DeviceId::Cpu && usage.state == devices::State::Ready),
    }))
}

pub(super) async fn plugins(State(host): Shared) -> Json<Value> {
    let entries = host
        .registry
        .list()
        .into_iter()
        .map(|entry| match entry.state {
            PluginState::Loaded(plugin) => json!({ "file": entry.file, "plugin": *plugin }),
            PluginState::Failed { reason } => json!({ "file": entry.file, "error": reason }),
        });
    Json(entries.collect())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    max_concurrent: BTreeMap<String, Change>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    training: Option<u32>,
    inference: Option<u32>,
}

pub(super) async fn config(
    State(host): Shared,
    config: Result<Json<Config>, axum::extract::rejection::JsonRejection>,
) -> Result<Json<Value>, Problem> {
    let Json(config) =
        config.map_err(|error| Problem::invalid("request.member", error.body_text()))?;
    for (device, change) in config.max_concurrent {
        let selector: Selector = device
            .parse()
            .map_err(|error| Problem::invalid("device.invalid", error))?;
        let limits = PartialLimits {
            training: change.training,
            inference: change.inference,
        };
        host.machine
            .allocator
            .set_limits(&selector, limits)
            .map_err(|refusal| Problem::invalid(refusal.code(), refusal))?;
    }
    let usage = host.machine.allocator.usage();
    Ok(Json(json!({
        "status": "success",
        "message": "the limits are changed",
        "current_config": { "max_concurrent": by_device(&usage, |usage| json!(usage.limits)) },
    })))
}

pub(super) async fn root() -> Json<Value> {
    Json(json!({
        "name": "Hangar",
        "version": VERSION,
        "features": ["training", "inference", "plugins", "devices", "event streams"],
        "endpoints": {
            "training": {
                "start": "POST /api/v2/training/start",
                "get": "GET /api/v2/training/{id}",
                "logs": "GET /api/v2/training/{id}/logs",
                "stop": "POST /api/v2/training/{id}/stop",
            },
            "inference": {
                "start": "POST /api/v2/inference/start",
                "get": "GET /api/v2/inference/{id}",
                "logs": "GET /api/v2/inference/{id}/logs",
                "stop": "POST /api/v2/inference/{id}/stop",
            },
            "tasks": {
                "list": "GET /api/v2/tasks",
                "get": "GET /api/v2/tasks/{id}",
                "logs": "GET /api/v2/tasks/{id}/logs",
                "cancel": "POST /api/v2/tasks/{id}/cancel",
                "delete": "DELETE /api/v2/tasks/{id}",
            },
            "resources": {
                "all": "GET /api/v2/resources",
                "gpu": "GET /api/v2/resources/gpu",
                "cpu": "GET /api/v2/resources/cpu",
                "config": "POST /api/v2/resources/config",
                "plugins": "GET /api/v2/plugins",
            },
            "host": { "health": "GET /api/v1/health", "info": "GET /api/v1/info" },
        },
    }))
}
