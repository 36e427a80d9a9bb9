//! `devices`: what a task may ask for, and its lease.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use compute::Backend;
use wasmtime::component::Resource;

use super::State;
use super::error::{HostError, Result};
use crate::plugins::bindings::hangar::pipeline::{devices, types};
use crate::worker::protocol::{DeviceFacts, FromWorker, Grant, LeaseRequest};

/// Replicas that a plugin may ask for: more than any machine has GPUs.
const MOST_REPLICAS: u32 = 1024;

/// The device asked for where neither user nor plugin names one.
const ANY: &str = "cuda";

/// A device that the task may ask for.
pub struct Device(DeviceFacts);

/// A wish for a device.
pub struct Request {
    device: Option<String>,
    /// On the CPU.
    pub(super) bytes: u64,
    /// On each GPU.
    pub(super) gpu_bytes: u64,
    /// On how many devices the plugin wants it.
    replicas: u32,
    /// Plans were reserved for so many devices.
    pub(super) reserved: Option<u32>,
    /// Why the plans that were reserved cannot run on so many.
    pub(super) refused: Option<types::Error>,
    used: bool,
}

/// The plugin's handle of what it holds.
pub struct Lease(pub(super) Arc<Held>);

/// A lease, alive as long as the plugin's handle or a session on it is.
pub(super) struct Held {
    pub(super) grant: Grant,
    /// What the sessions on it hold.
    used_bytes: AtomicU64,
    /// Of each device, made for the first session; the others share its context.
    backends: Mutex<Vec<Arc<dyn Backend>>>,
    /// The plugin dropped its handle.
    pub(super) dropped: AtomicBool,
    /// The error that ended the use of the device.
    lost: Mutex<Option<types::Error>>,
    supervisor: Arc<dyn super::Supervisor>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.backends().clear();
        self.supervisor.tell(FromWorker::LeaseReleased);
    }
}

impl devices::Host for State {
    fn granted(&mut self) -> wasmtime::Result<Vec<Resource<Device>>> {
        let (cpu, gpus): (Vec<_>, Vec<_>) = self
            .grants
            .devices
            .iter()
            .cloned()
            .partition(|device| device.selector == "cpu");
        gpus.into_iter()
            .chain(cpu)
            .map(|device| Ok(self.table.push(Device(device))?))
            .collect()
    }
}

impl devices::HostDevice for State {
    fn selector(&mut self, device: Resource<Device>) -> wasmtime::Result<String> {
        Ok(self.table.get(&device)?.0.selector.clone())
    }

    fn name(&mut self, device: Resource<Device>) -> wasmtime::Result<String> {
        Ok(self.table.get(&device)?.0.name.clone())
    }

    fn total_bytes(&mut self, device: Resource<Device>) -> wasmtime::Result<u64> {
        Ok(self.table.get(&device)?.0.total_bytes)
    }

    fn property(
        &mut self,
        device: Resource<Device>,
        key: String,
    ) -> wasmtime::Result<Option<String>> {
        let properties = &self.table.get(&device)?.0.properties;
        let found = properties.iter().find(|(name, _)| *name == key);
        Ok(found.map(|(_, value)| value.clone()))
    }

    fn drop(&mut self, device: Resource<Device>) -> wasmtime::Result<()> {
        self.table.delete(device)?;
        Ok(())
    }
}

impl devices::HostRequest for State {
    fn new(&mut self) -> wasmtime::Result<Resource<Request>> {
        let request = Request {
            device: None,
            bytes: 0,
            gpu_bytes: 0,
            replicas: 1,
            reserved: None,
            refused: None,
            used: false,
        };
        Ok(self.table.push(request)?)
    }

    fn device(&mut self, request: Resource<Request>, selector: String) -> Result<()> {
        let parsed = selector
            .parse::<::devices::Selector>()
            .map_err(|error| HostError::new("device.invalid", error.to_string()))?;
        if let ::devices::Selector::Pool(name) = &parsed {
            let message =
                format!("`{name}`: pools are the user's choice; ask for `cpu`, `cuda` or `cuda:N`");
            return Err(HostError::new("device.invalid", message));
        }
        self.table.get_mut(&request)?.device = Some(parsed.to_string());
        Ok(())
    }

    fn bytes(&mut self, request: Resource<Request>, needed: u64) -> wasmtime::Result<()> {
        let request = self.table.get_mut(&request)?;
        request.bytes = request.bytes.max(needed);
        request.gpu_bytes = request.gpu_bytes.max(needed);
        Ok(())
    }

    fn replicas(&mut self, request: Resource<Request>, count: u32) -> Result<()> {
        if count == 0 || count > MOST_REPLICAS {
            let message = format!("a model has 1 to {MOST_REPLICAS} replicas");
            return Err(HostError::new("device.replicas", message));
        }
        let (before, own) = {
            let request = self.table.get_mut(&request)?;
            (
                request.reserved,
                std::mem::replace(&mut request.replicas, count),
            )
        };
        let wanted = self.devices_of(self.table.get(&request)?);
        if before.is_some_and(|reserved| reserved != wanted) {
            self.table.get_mut(&request)?.replicas = own;
            let message = "ask for replicas before `reserve`, which counts for each of them";
            return Err(HostError::new("device.replicas", message));
        }
        Ok(())
    }

    async fn acquire(&mut self, request: Resource<Request>) -> Result<Resource<Lease>> {
        self.check_cancelled()?;
        let replicas = self.devices_of(self.table.get(&request)?);
        let request = self.table.get_mut(&request)?;
        if request.used {
            let message = "this request was acquired before: make a new one";
            return Err(HostError::new("request.used", message));
        }
        request.used = true;
        if let Some(refused) = request.refused.take() {
            return Err(HostError::Told(refused));
        }
        let asked = LeaseRequest {
            device: self
                .grants
                .device
                .clone()
                .or_else(|| request.device.clone())
                .unwrap_or_else(|| ANY.to_owned()),
            bytes: request.bytes,
            gpu_bytes: request.gpu_bytes,
            replicas,
        };
        if self.held.strong_count() > 0 {
            let message =
                "the task holds a lease already: drop it and the sessions on it before the next";
            return Err(HostError::new("device.held", message));
        }
        let grant = self.grants.supervisor.acquire(asked).await?;
        let held = Arc::new(Held {
            grant,
            used_bytes: AtomicU64::new(0),
            backends: Mutex::default(),
            dropped: AtomicBool::new(false),
            lost: Mutex::default(),
            supervisor: Arc::clone(&self.grants.supervisor),
        });
        self.held = Arc::downgrade(&held);
        Ok(self.table.push(Lease(held))?)
    }

    fn drop(&mut self, request: Resource<Request>) -> wasmtime::Result<()> {
        self.table.delete(request)?;
        Ok(())
    }
}

impl devices::HostLease for State {
    fn device(&mut self, lease: Resource<Lease>) -> wasmtime::Result<String> {
        Ok(self.table.get(&lease)?.0.grant.device.clone())
    }

    fn fallback_reason(&mut self, lease: Resource<Lease>) -> wasmtime::Result<Option<String>> {
        Ok(self.table.get(&lease)?.0.grant.fallback_reason.clone())
    }

    fn width(&mut self, lease: Resource<Lease>) -> wasmtime::Result<u32> {
        Ok(self.table.get(&lease)?.0.width())
    }

    fn budget_bytes(&mut self, lease: Resource<Lease>) -> wasmtime::Result<u64> {
        Ok(self.table.get(&lease)?.0.grant.bytes)
    }

    fn used_bytes(&mut self, lease: Resource<Lease>) -> wasmtime::Result<u64> {
        Ok(self.table.get(&lease)?.0.used_bytes.load(Ordering::Relaxed))
    }

    fn lost(&mut self, lease: Resource<Lease>) -> wasmtime::Result<Option<types::Error>> {
        let Lease(held) = self.table.get(&lease)?;
        let lost = held.lost.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(lost.clone())
    }

    fn drop(&mut self, lease: Resource<Lease>) -> wasmtime::Result<()> {
        let Lease(held) = self.table.delete(lease)?;
        held.dropped.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl State {
    /// On how many devices a request is for: the user's choice wins, and one of a single device is a
    /// choice too.
    pub(super) fn devices_of(&self, request: &Request) -> u32 {
        let chosen = self.grants.device.as_ref().map(|text| text.parse());
        let single = matches!(chosen, Some(Ok(::devices::Selector::Device(_))));
        let own = if single { 1 } else { request.replicas };
        self.grants.gpus.unwrap_or(own)
    }
}

impl Held {
    /// The number of devices.
    pub(super) fn width(&self) -> u32 {
        u32::try_from(1 + self.grant.others.len()).unwrap_or(u32::MAX)
    }

    /// Turns an error of a session into the plugin's, and keeps the first after which the device
    /// cannot be used any more.
    pub(super) fn note(&self, error: compute::Error) -> HostError {
        let ends = ["device.lost", "device.fault"].contains(&error.code());
        let device = error.device().unwrap_or(&self.grant.device).to_owned();
        let told = HostError::from(error);
        if let (true, HostError::Told(error)) = (ends, &told) {
            let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
            if lost.is_none() {
                *lost = Some(error.clone());
                let message = error.message.clone();
                self.supervisor.tell(FromWorker::Fault { device, message });
            }
        }
        told
    }

    fn backends(&self) -> MutexGuard<'_, Vec<Arc<dyn Backend>>> {
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The backends of all sessions on the lease, one a device, made where there are none.
    pub(super) fn backends_or(
        &self,
        make: impl FnOnce(&Grant) -> std::result::Result<Vec<Arc<dyn Backend>>, compute::Error>,
    ) -> Result<Vec<Arc<dyn Backend>>> {
        let mut backends = self.backends();
        if !backends.is_empty() {
            return Ok(backends.clone());
        }
        let made = make(&self.grant).map_err(|error| self.note(error))?;
        backends.clone_from(&made);
        drop(backends);
        self.tell_memory(self.used_bytes.load(Ordering::Relaxed));
        Ok(made)
    }

    /// Notes what a session has taken.
    pub(super) fn took(&self, bytes: u64) {
        let before = self.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.tell_memory(before + bytes);
    }

    /// Notes what a session is about to give back.
    pub(super) fn gives_back(&self, bytes: u64) {
        let before = self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.tell_memory(before - bytes);
    }

    fn tell_memory(&self, session_bytes: u64) {
        self.supervisor.tell(FromWorker::Memory {
            context: self.grant.uuid.is_some() && !self.backends().is_empty(),
            session_bytes,
        });
    }

    /// The bytes of the lease that no session has taken.
    pub(super) fn free_bytes(&self) -> u64 {
        let used = self.used_bytes.load(Ordering::Relaxed);
        self.grant.bytes.saturating_sub(used)
    }
}
