//! Routes that change how devices are given away.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use devices::{DeviceId, PartialLimits, Policy, Pool, Selector};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Shared;
use super::problem::Problem;
use super::resources::by_device;
use super::tasks::parse;
use crate::machine::{Change, ChangeError, Machine};

/// A change of the settings; what is left out stays.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    max_concurrent: BTreeMap<String, PartialLimits>,
    policy: Option<String>,
    cpu_fallback: Option<bool>,
    /// `null` is the default.
    headroom_bytes: BTreeMap<String, Option<u64>>,
    /// `null` removes a pool.
    pools: BTreeMap<String, Option<Pool>>,
    health: HealthConfig,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct HealthConfig {
    cool_seconds: Option<u64>,
    /// `null` is what NVIDIA's catalogue says.
    xid: BTreeMap<String, Option<String>>,
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Self {
        let status = match &error {
            ChangeError::Unknown(_)
            | ChangeError::Pool(_)
            | ChangeError::Xid(_)
            | ChangeError::Headroom { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            ChangeError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.code(), error)
    }
}

/// The pools: as they were set, their GPUs, and the tasks on these.
pub(super) fn pools(machine: &Machine) -> Map<String, Value> {
    let pools = machine.allocator.pools().into_iter().map(|usage| {
        let gpus: Vec<String> = usage.gpus.iter().map(DeviceId::to_string).collect();
        let mut pool = json!(usage.pool);
        pool["limits"] = json!(usage.pool.limits);
        pool["members"] = json!(gpus);
        pool["current_tasks"] = json!(usage.tasks);
        (usage.name.to_string(), pool)
    });
    pools.collect()
}

fn current(machine: &Machine) -> Value {
    let usage = machine.allocator.usage();
    let drained = usage.iter().filter(|usage| usage.draining);
    json!({
        "policy": machine.allocator.policy(),
        "cpu_fallback": machine.allocator.cpu_fallback(),
        "max_concurrent": by_device(&usage, |usage| json!(usage.limits)),
        "headroom_bytes": by_device(&usage, |usage| json!(usage.headroom_bytes)),
        "pools": pools(machine),
        "health": { "cool_seconds": machine.allocator.cool().as_secs(), "xid": machine.xids() },
        "drained": drained.map(|usage| usage.device.to_string()).collect::<Vec<_>>(),
    })
}

/// Changes the settings on a thread of its own, as it waits for the disk.
async fn change(host: &super::Host, change: Change) -> Result<(), Problem> {
    let (machine, state) = (std::sync::Arc::clone(&host.machine), host.state.clone());
    let changed = tokio::task::spawn_blocking(move || machine.change(&state, change)).await;
    let failed = |error| ChangeError::Failed(anyhow::Error::new(error));
    Ok(changed.map_err(failed)??)
}

pub(super) async fn config(State(host): Shared) -> Json<Value> {
    Json(current(&host.machine))
}

/// Settings by what they are of.
fn by_selector<T>(named: BTreeMap<String, T>) -> Result<Vec<(Selector, T)>, Problem> {
    let parsed = named.into_iter().map(|(device, value)| {
        let selector: Result<Selector, _> = device.parse();
        let selector = selector.map_err(|error| Problem::invalid("device.invalid", error))?;
        Ok((selector, value))
    });
    parsed.collect()
}

pub(super) async fn configure(State(host): Shared, body: Bytes) -> Result<Json<Value>, Problem> {
    let config: Config = parse(&body)?;
    let policy = config
        .policy
        .as_deref()
        .map(str::parse::<Policy>)
        .transpose();
    let wanted = Change {
        policy: policy.map_err(|error| Problem::invalid("device.policy", error))?,
        cpu_fallback: config.cpu_fallback,
        cool_seconds: config.health.cool_seconds,
        xids: config.health.xid.into_iter().collect(),
        limits: by_selector(config.max_concurrent)?,
        headroom: by_selector(config.headroom_bytes)?,
        pools: config.pools.into_iter().collect(),
        draining: Vec::new(),
    };
    change(&host, wanted).await?;
    Ok(Json(json!({
        "status": "success",
        "message": "the settings are changed",
        "current_config": current(&host.machine),
    })))
}

/// The device of a path.
pub(super) fn device(name: &str) -> Result<DeviceId, Problem> {
    let selector = name.parse::<Selector>();
    match selector.map_err(|error| Problem::invalid("device.invalid", error))? {
        Selector::Device(id) => Ok(id),
        Selector::AnyGpu | Selector::Pool(_) => {
            let detail = format!("`{name}`: name one device, `cpu` or `cuda:N`");
            Err(Problem::invalid("device.invalid", detail))
        }
    }
}

async fn set_draining(
    host: &super::Host,
    name: &str,
    draining: bool,
) -> Result<Json<Value>, Problem> {
    let id = device(name)?;
    change(
        host,
        Change {
            draining: vec![(id, draining)],
            ..Change::default()
        },
    )
    .await?;
    let usage = host.machine.allocator.usage();
    let tasks = usage
        .iter()
        .find(|usage| usage.device == id)
        .map(|usage| usage.tasks.len());
    Ok(Json(json!({
        "status": "success",
        "message": if draining {
            format!("{id} takes no new tasks; those that run go on")
        } else {
            format!("{id} takes tasks again")
        },
        "device": id.to_string(),
        "draining": draining,
        "active_tasks": tasks,
    })))
}

pub(super) async fn drain(
    State(host): Shared,
    Path(device): Path<String>,
) -> Result<Json<Value>, Problem> {
    set_draining(&host, &device, true).await
}

pub(super) async fn enable(
    State(host): Shared,
    Path(device): Path<String>,
) -> Result<Json<Value>, Problem> {
    set_draining(&host, &device, false).await
}
