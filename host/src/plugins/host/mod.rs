//! What the host does for a plugin: one file for each interface of the contract.
//!
//! Every number, string and list that comes from a plugin is checked here or in the crate that it is
//! handed to. Tensors, data sets and weights stay on this side; the plugin holds handles.

pub mod checkpoint;
pub mod data;
pub mod devices;
pub mod error;
pub mod graph;
pub mod model;
pub mod session;
mod storage;
mod task;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use wasmtime::component::ResourceTable;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use self::error::{HostError, Result};
use self::storage::Folder;
use super::bindings::hangar::pipeline::types;
use super::limiter::Limiter;
use super::standard_error::Tail;
use crate::worker::protocol::{
    DataGrant, DeviceFacts, Failure, FromWorker, Grant, LeaseRequest, Limits,
};

/// The way from a task to the supervisor.
pub trait Supervisor: Send + Sync {
    /// Tells something. It blocks while the supervisor is behind.
    fn tell(&self, message: FromWorker);

    /// Asks for a lease, and waits until it is granted, refused, or the task is cancelled.
    fn acquire(
        &self,
        request: LeaseRequest,
    ) -> Pin<Box<dyn Future<Output = std::result::Result<Grant, Failure>> + Send + '_>>;
}

/// What a task may use.
pub struct Grants {
    /// The task's parameters: a JSON object, with the member `model`.
    pub parameters: String,
    /// The device that the user chose.
    pub device: Option<String>,
    /// On how many GPUs the user wants it.
    pub gpus: Option<u32>,
    /// Every device of the machine.
    pub devices: Vec<DeviceFacts>,
    /// The data sets granted.
    pub data: Vec<DataGrant>,
    /// Weights to load.
    pub weights: Option<PathBuf>,
    /// The state that the task resumes from.
    pub resume: Option<PathBuf>,
    /// The task's folder; none where nothing may be written.
    pub output: Option<PathBuf>,
    /// Threads for compute on the CPU and for reading data.
    pub threads: usize,
    /// Whether matrix products on a GPU may round their inputs to TF32.
    pub tf32: bool,
    /// What the plugin may use.
    pub limits: Limits,
    /// Set once the user has cancelled the task.
    pub cancelled: Arc<AtomicBool>,
    /// The way to the supervisor.
    pub supervisor: Arc<dyn Supervisor>,
}

impl Grants {
    /// What `describe` gets: nothing.
    pub(super) fn none(limits: Limits) -> Self {
        struct Nobody;
        impl Supervisor for Nobody {
            fn tell(&self, _: FromWorker) {}

            fn acquire(
                &self,
                _: LeaseRequest,
            ) -> Pin<Box<dyn Future<Output = std::result::Result<Grant, Failure>> + Send + '_>>
            {
                Box::pin(std::future::ready(Err(Failure {
                    code: "device.unknown".to_owned(),
                    message: "no device is granted while a plugin describes itself".to_owned(),
                })))
            }
        }
        Self {
            parameters: "{}".to_owned(),
            device: None,
            gpus: None,
            devices: Vec::new(),
            data: Vec::new(),
            weights: None,
            resume: None,
            output: None,
            threads: 1,
            tf32: false,
            limits,
            cancelled: Arc::default(),
            supervisor: Arc::new(Nobody),
        }
    }
}

/// What one instance of a plugin holds on the host's side.
pub struct State {
    pub(super) table: ResourceTable,
    pub(super) limiter: Limiter,
    pub(super) standard_error: Tail,
    /// Host calls so far: whether the plugin came back to the host is how its deadline is judged.
    pub(super) calls: u64,
    wasi: WasiCtx,
    grants: Grants,
    folder: Folder,
    /// Bytes that graphs and plans hold for the plugin.
    graph_bytes: usize,
    /// Plans made before.
    plans: model::Known,
    /// Loaders alive.
    loaders: usize,
    /// The lease held, where there is one.
    held: Weak<devices::Held>,
    told_progress: Option<Instant>,
}

impl State {
    /// The state of a fresh instance.
    pub(super) fn new(grants: Grants) -> Self {
        let standard_error = Tail::default();
        let mut table = ResourceTable::new();
        table.set_max_capacity(grants.limits.handles);
        Self {
            table,
            limiter: Limiter::new(&grants.limits),
            wasi: WasiCtx::builder().stderr(standard_error.clone()).build(),
            standard_error,
            calls: 0,
            folder: Folder::new(grants.output.clone(), grants.limits.artifact_bytes),
            grants,
            graph_bytes: 0,
            plans: model::Known::default(),
            loaders: 0,
            held: Weak::new(),
            told_progress: None,
        }
    }

    fn tell(&self, message: FromWorker) {
        self.grants.supervisor.tell(message);
    }

    /// Refuses to begin work for a task that the user has cancelled.
    fn check_cancelled(&self) -> Result<()> {
        if self.grants.cancelled.load(Ordering::Relaxed) {
            return Err(HostError::cancelled());
        }
        Ok(())
    }

    /// Counts bytes that a graph will hold. They are bounded like the plugin's own memory.
    fn charge_graph(&mut self, bytes: usize) -> Result<()> {
        let limit = self.grants.limits.memory_bytes;
        // What is only kept for later makes room.
        while self.graph_bytes.saturating_add(bytes) > limit
            && let Some(freed) = self.plans.forget()
        {
            self.graph_bytes = self.graph_bytes.saturating_sub(freed);
        }
        let total = self.graph_bytes.saturating_add(bytes);
        if total > limit {
            let message = format!(
                "the task's graphs and plans would hold {total} bytes, more than the {limit} allowed: \
                 drop those no longer needed"
            );
            return Err(HostError::new("graph.limit", message));
        }
        self.graph_bytes = total;
        Ok(())
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl types::Host for State {
    fn convert_error(&mut self, error: HostError) -> wasmtime::Result<types::Error> {
        match error {
            HostError::Told(error) => Ok(error),
            HostError::Trap(error) => Err(error),
        }
    }
}

/// Whether a name is plain: at most 128 letters, digits, `-`, `_` and, where `dots`, `.` inside.
fn is_plain(name: &str, dots: bool) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && name.bytes().all(|byte| {
            byte.is_ascii_alphanumeric() || b"-_".contains(&byte) || dots && byte == b'.'
        })
}
