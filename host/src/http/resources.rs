//! Routes about the machine and the host.

use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use devices::{Gpu, Kind, Snapshot, Usage};
use serde_json::{Map, Value, json};

use super::Shared;
use super::gpu::{Wanted, add_processes};
use super::problem::Problem;
use crate::machine::Machine;
use crate::machine::gpus::{self, counts};
use crate::plugins::PluginState;
use crate::processor;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// GB as the old service counts them: 1024³ bytes, two decimals.
fn gigabytes(bytes: Option<u64>) -> Option<f64> {
    bytes.map(|bytes| (bytes as f64 / (1u64 << 30) as f64 * 100.0).round() / 100.0)
}

pub(super) fn by_device(usage: &[Usage], value: impl Fn(&Usage) -> Value) -> Map<String, Value> {
    usage
        .iter()
        .map(|usage| (usage.device.to_string(), value(usage)))
        .collect()
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

/// A GPU: the old service's members, then all that is known.
fn device(machine: &Machine, gpu: &Gpu, usage: Option<&Usage>) -> Value {
    let mut device = json!({
        "id": gpu.index,
        "device_name": format!("cuda:{}", gpu.index),
        "name": gpu.name,
        "compute_capability": gpu.compute_capability,
        "total_memory_gb": gigabytes(gpu.memory_total_bytes),
        "allocated_memory_gb": gigabytes(gpu.memory_used_bytes),
        "cached_memory_gb": usage.map(|usage| gigabytes(Some(usage.reserved_bytes))),
        "free_memory_gb": gigabytes(gpu.memory_free_bytes),
        "utilization": gpu.utilization_gpu_percent,
    });
    if let (Value::Object(device), Ok(Value::Object(fields))) =
        (&mut device, gpus::fields(machine, gpu, usage))
    {
        device.extend(fields);
    }
    device
}

/// The machine's name in its network (proc(5)).
fn host_id() -> Option<&'static str> {
    static NAME: OnceLock<Option<String>> = OnceLock::new();
    let read = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    NAME.get_or_init(read).as_deref().map(str::trim)
}

/// What is known of the GPUs of a snapshot.
pub(super) fn gpu_info(machine: &Machine, snapshot: &Snapshot) -> Value {
    let usage = machine.allocator.usage();
    let devices: Vec<Value> = snapshot
        .gpus
        .iter()
        .map(|gpu| device(machine, gpu, gpus::of(&usage, gpu)))
        .collect();
    let schedulable = devices
        .iter()
        .filter(|device| device["schedulable"] == true);
    let age = snapshot.taken.map(|taken| taken.elapsed());
    let sampled = age.and_then(|age| jiff::Timestamp::now().checked_sub(age).ok());
    json!({
        "available": !snapshot.gpus.is_empty(),
        "count": snapshot.gpus.len(),
        "cuda_version": snapshot.system.cuda_version,
        "driver_version": snapshot.system.driver_version,
        "pytorch_version": null,
        "schema_version": 1,
        "source": snapshot.source,
        "nvml_version": snapshot.system.nvml_version,
        "nvml_error": snapshot.nvml_error,
        "gpu_count_detected": snapshot.system.detected,
        "gpu_count_schedulable": schedulable.count(),
        "sampled_at": sampled.map(|time| format!("{time:.3}")),
        "sample_age_ms": age.map(|age| age.as_millis() as u64),
        "sample_interval_ms": machine.period.as_millis() as u64,
        "host_id": host_id(),
        "cuda_driver_version": snapshot.system.cuda_version,
        // That of `cuda:N`, whatever order the host's environment asks of drivers.
        "cuda_device_order": "PCI_BUS_ID",
        "cuda_visible_devices": std::env::var("CUDA_VISIBLE_DEVICES").ok(),
        "cpu_fallback_enabled": machine.allocator.cpu_fallback(),
        "devices": devices,
        "pools": super::devices::pools(machine),
    })
}

pub(super) async fn gpu(
    State(host): Shared,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(wanted) =
        wanted.map_err(|error| Problem::invalid("request.query", error.body_text()))?;
    if wanted.processes {
        let snapshot = host.machine.monitor.snapshot();
        let mut info = gpu_info(&host.machine, &snapshot);
        add_processes(&host, &snapshot, &mut info);
        return Ok(Json(info).into_response());
    }
    let json = [(header::CONTENT_TYPE, "application/json")];
    Ok((json, host.gpus.body(&host.machine)).into_response())
}

pub(super) async fn all(State(host): Shared) -> Json<Value> {
    let usage = host.machine.allocator.usage();
    Json(json!({
        "device_usage": by_device(&usage, counts),
        "active_tasks": by_device(&usage, active),
        "limits": by_device(&usage, |usage| json!(usage.limits)),
        "pools": super::devices::pools(&host.machine),
        "queue": { "waiting": host.tasks.waiting(), "size": host.tasks.queue_size() },
        "gpu_info": gpu_info(&host.machine, &host.machine.monitor.snapshot()),
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
                "history": "GET /api/v2/resources/gpu/{device}/history",
                "cpu": "GET /api/v2/resources/cpu",
                "config": "GET /api/v2/resources/config",
                "configure": "POST /api/v2/resources/config",
                "drain": "POST /api/v2/devices/{device}/drain",
                "enable": "POST /api/v2/devices/{device}/enable",
                "plugins": "GET /api/v2/plugins",
            },
            "host": { "health": "GET /api/v1/health", "info": "GET /api/v1/info" },
        },
    }))
}
