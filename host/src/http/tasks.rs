//! Routes about tasks.

use std::collections::HashMap;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Shared;
use super::problem::Problem;
use super::requests::{Inference, Training};
use crate::tasks::store::TaskFilter;
use crate::tasks::task::{TaskKind, TaskRecord, TaskState};

type Answer = Result<Json<Value>, Problem>;

/// A task as clients see it; what Hangar adds follows the old members. `positions` are those of the tasks
/// that wait.
fn response(record: &TaskRecord, positions: &HashMap<String, u64>) -> Value {
    json!({
        "task_id": record.id,
        "task_type": record.kind,
        "status": record.state,
        "message": record.message,
        "progress": record.progress,
        "device": record.device,
        "priority": record.priority,
        "wait_seconds": record.wait_seconds,
        "created_at": record.created_at,
        "updated_at": record.updated_at,
        "current_epoch": record.current_epoch,
        "total_epochs": record.total_epochs,
        "latest_metrics": record.latest_metrics,
        "plugin": record.plugin,
        "model": record.model,
        "params": record.parameters,
        "device_requested": record.device_requested,
        "gpus": record.gpus,
        "fallback_reason": record.fallback_reason,
        "waiting_reason": record.waiting_reason,
        "position": positions.get(&record.id),
        "device_uuid": record.device_uuid,
        "device_memory": record.device_memory,
        "devices": record.devices,
        "tf32": record.tf32,
        "policy": record.policy,
        "lease_bytes": record.lease_bytes,
        "lease_observed_bytes": record.lease_observed_bytes,
        "scratch_bytes": record.scratch_bytes,
        "error_code": record.error_code,
        "output": record.output,
        "description": record.description,
    })
}

pub(super) fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        if error.is_data() {
            Problem::invalid("request.member", error)
        } else {
            Problem::new(
                StatusCode::BAD_REQUEST,
                "request.json",
                format!("not JSON: {error}"),
            )
        }
    })
}

pub(super) async fn train(State(host): Shared, body: Bytes) -> Answer {
    let submission = parse::<Training>(&body)?.submission(&host.registry, &host.tasks)?;
    let record = host.tasks.submit(submission)?;
    Ok(Json(response(&record, &host.tasks.positions())))
}

pub(super) async fn infer(State(host): Shared, body: Bytes) -> Answer {
    let submission = parse::<Inference>(&body)?.submission(&host.registry)?;
    let record = host.tasks.submit(submission)?;
    Ok(Json(response(&record, &host.tasks.positions())))
}

pub(super) async fn get(State(host): Shared, Path(id): Path<String>) -> Answer {
    let record = host.tasks.get(&id)?;
    Ok(Json(response(&record, &host.tasks.positions())))
}

fn done(id: &str, message: &str) -> Json<Value> {
    Json(json!({ "status": "success", "message": message, "task_id": id }))
}

pub(super) async fn cancel(State(host): Shared, Path(id): Path<String>) -> Answer {
    host.tasks.cancel(&id)?;
    Ok(done(&id, "the task is being cancelled"))
}

pub(super) async fn delete(State(host): Shared, Path(id): Path<String>) -> Answer {
    host.tasks.delete(&id)?;
    Ok(done(&id, "the task is deleted"))
}

#[derive(Deserialize)]
pub(super) struct Listing {
    status: Option<TaskState>,
    task_type: Option<TaskKind>,
    limit: Option<usize>,
}

pub(super) async fn list(
    State(host): Shared,
    listing: Result<Query<Listing>, axum::extract::rejection::QueryRejection>,
) -> Answer {
    let Query(listing) =
        listing.map_err(|error| Problem::invalid("request.query", error.body_text()))?;
    let positions = host.tasks.positions();
    let of = |kind: TaskKind| -> Result<Vec<Value>, Problem> {
        if listing.task_type.is_some_and(|wanted| wanted != kind) {
            return Ok(Vec::new());
        }
        let limit = listing.limit.unwrap_or(100).min(10_000);
        let filter = TaskFilter {
            state: listing.status,
            kind: Some(kind),
            limit,
        };
        let records = host.tasks.list(&filter)?;
        let described = records.iter().map(|record| response(record, &positions));
        Ok(described.collect())
    };
    let (training, inference) = (of(TaskKind::Training)?, of(TaskKind::Inference)?);
    Ok(Json(json!({
        "total_training": training.len(),
        "total_inference": inference.len(),
        "training_tasks": training,
        "inference_tasks": inference,
    })))
}
